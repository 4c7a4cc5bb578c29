"""Lung or lesion masks from files, matched to the images."""

from collections.abc import Callable, Sequence
from functools import partial
from os.path import basename, splitext
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chestxray.data.lungs import WHOLE, crop_window
from chestxray.schema import check, mistake


def read_masks(
    source: str | Path, table: pd.DataFrame, size: int, windows: Sequence[ArrayLike] | None = None
) -> tuple[NDArray, NDArray]:
    """Read the masks of images, matched by path, or by file name if only one image and one mask have it.

    ``source`` is a folder of PNG files, white in the lungs (or lesions), with the images' paths or names and
    any suffix; or an ``.npz`` file with ``names`` (N,) and ``masks`` (N, H, W), above 0 in the lungs, or
    ``packed`` (N, ⌈H·W/8⌉) from :func:`numpy.packbits` and ``shape`` (H, W). The masks are cut to the
    ``windows`` of the images, (N, 4) (:func:`chestxray.data.lungs.lung_window`), and stretched to ``size``.

    Returns masks ``bool`` (M, size, size), and for each row of the table if it has a mask, ``bool`` (N,).
    Raises FileNotFoundError if there is no source, and ValueError if a file cannot be used or no mask fits.
    """
    source = Path(source)
    check(source.exists(), "no such folder or file of masks", FileNotFoundError, source=str(source))
    if source.is_dir():
        files = sorted(source.rglob("*.png"))
        paths, read = [file.relative_to(source).as_posix() for file in files], partial(_read_png, files)
    else:
        paths, read = _read_npz(source)
    masks = pd.Series([splitext(path)[0] for path in paths], dtype=object)
    images = pd.Series([splitext(path)[0] for path in table["path"]])
    stems = images.map(basename).drop_duplicates(keep=False).reindex(images.index)
    rows = _rows(masks, images).fillna(_rows(masks.map(basename), stems))
    known = rows.notna().to_numpy()
    check(known.any(), "no mask has the name of an image", source=str(source))
    windows = np.asarray([WHOLE] * len(table) if windows is None else windows)[known]
    masks = (crop_window(np.float32(read(int(row)) > 0), window) for row, window in zip(rows[known], windows))
    shares = [cv2.resize(mask, (size, size), interpolation=cv2.INTER_AREA) for mask in masks]
    return np.stack(shares) >= 0.5, known


def _rows(masks: pd.Series, images: pd.Series) -> pd.Series:
    """Return the row of the mask with each image's name; NaN if there is none or more than one."""
    unique = masks.drop_duplicates(keep=False)
    return images.map(dict(zip(unique, unique.index))).astype(float)


def _read_png(files: list[Path], row: int) -> NDArray:
    mask = cv2.imread(str(files[row]), cv2.IMREAD_GRAYSCALE)
    check(mask is not None, "cannot read the mask", path=str(files[row]))
    return mask > 127


def _read_npz(path: Path) -> tuple[list[str], Callable[[int], NDArray]]:
    """Return names, and a function from a row to its mask, so that only masks that are used are unpacked."""
    with mistake("not a file of masks", path=str(path)), np.load(path, allow_pickle=False) as file:
        names = list(map(str, file["names"]))
        if "masks" in file:
            return names, file["masks"].__getitem__
        packed, (height, width) = file["packed"], file["shape"]
    return names, lambda row: np.unpackbits(packed[row], count=height * width).reshape(height, width)
