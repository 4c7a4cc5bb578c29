"""Where the data folder is."""

from __future__ import annotations

import os
from pathlib import Path

SPLITS = ("train", "val", "test")

_KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
_KAGGLE_INPUT = Path("/kaggle/input")


def find_data(data_dir: str | Path | None = None) -> Path:
    """Find the folder that holds the class folders or ``train``, ``val``, ``test``.

    Args:
        data_dir: A folder (the nested copies of the Kaggle archive are seen
            through); ``"phantoms"`` for the synthetic default; ``"kaggle"``
            to download with kagglehub; None or ``""`` for the folder named by
            ``CHESTXRAY_DATA`` or, on Kaggle, the attached data set.

    Raises:
        FileNotFoundError: Nothing was found; says what was looked for.
    """
    if not data_dir:
        data_dir = os.environ.get("CHESTXRAY_DATA") or next(
            iter(sorted(_KAGGLE_INPUT.glob("**/chest_xray"))), None
        )
        if data_dir is None:
            raise FileNotFoundError(
                'no data folder: give data_dir, set CHESTXRAY_DATA, or use "kaggle" (download) or '
                '"phantoms" (synthetic). Received: data_dir=None'
            )
    if data_dir == "phantoms":
        from chestxray.data.phantom import phantom_dataset

        return phantom_dataset(images=600)
    if data_dir == "kaggle":
        try:
            import kagglehub
        except ImportError:
            raise ValueError(
                "downloading needs kagglehub: pip install -e '.[kaggle]'. Received: data_dir='kaggle'"
            ) from None
        data_dir = kagglehub.dataset_download(_KAGGLE_DATASET)
    folder = Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such data folder. Received: data_dir={str(data_dir)!r}")
    while not split_folders(folder):
        inner = folder / "chest_xray"
        if not inner.is_dir():
            return folder
        folder = inner
    return folder


def split_folders(folder: Path) -> list[Path]:
    """The folders train, val and test that there are."""
    return [folder / name for name in SPLITS if (folder / name).is_dir()]
