"""Lung masks, made by others, for the same images."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray


def read_masks(source: str | Path, table: pd.DataFrame, size: int) -> tuple[NDArray, NDArray]:
    """Read the masks of some images, matched by the name of the file.

    Args:
        source: Folder of PNG files, white where the lungs (or lesions) are,
            with the images' paths or just their names, whatever the suffix;
            or an ``.npz`` file with ``names`` (N,) and ``masks`` (N, H, W),
            above 0 where the lungs are, or ``packed`` (N, ⌈H·W/8⌉) from
            :func:`numpy.packbits` and ``shape`` (H, W). A name counts alone
            only where one image and one mask have it.
        table: Images, ``path``.
        size: Side of the result in pixels; masks are squashed to it as the
            images are by ``resize="stretch"``.

    Returns:
        Masks ``bool`` (M, size, size), and which rows of the table they belong
        to, ``bool`` (len(table),) with M of them True, in the table's order.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file cannot be used, or no mask fits an image.
    """
    source = Path(source)
    stems = table["path"].str.rsplit("/", n=1).str[-1].str.rsplit(".", n=1).str[0]
    if source.is_dir():
        files = sorted(source.rglob("*.png"))
        by_name = _unique({path.stem: path for path in files}, [path.stem for path in files], stems)
        places = [source / Path(path).with_suffix(".png") for path in table["path"]]
        files = [
            place if place.is_file() else by_name.get(stem) for place, stem in zip(places, stems, strict=True)
        ]
        known = np.array([file is not None for file in files])
        found = [_read_png(file) for file in files if file]
    elif source.is_file():
        names, masks = _read_npz(source)
        names = [str(name).rsplit("/", 1)[-1].rsplit(".", 1)[0] for name in names]
        place = _unique({name: number for number, name in enumerate(names)}, names, stems)
        known = stems.isin(list(place)).to_numpy()
        found = masks([place[stem] for stem in stems[known]])
    else:
        raise FileNotFoundError(f"no such folder or file of masks. Received: source={str(source)!r}")
    if not known.any():
        raise ValueError(f"no mask has the name of an image. Received: source={str(source)!r}")
    shares = [
        cv2.resize(np.float32(np.asarray(mask) > 0), (size, size), interpolation=cv2.INTER_AREA)
        for mask in found
    ]
    return np.stack(shares) >= 0.5, known


def _unique(place: dict, names: list[str], stems: pd.Series) -> dict:
    """Leave out the names that several masks or several images have."""
    twice = {name for name, count in Counter(names).items() if count > 1} | set(stems[stems.duplicated()])
    return {name: value for name, value in place.items() if name not in twice}


def _read_png(path: Path) -> NDArray:
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise ValueError(f"not a mask that can be read. Received: path={str(path)!r}")
    return mask > 127


def _read_npz(path: Path) -> tuple[NDArray, Callable[[list[int]], NDArray]]:
    """Names, and a function from row numbers to their masks, so that only these are unpacked."""
    try:
        with np.load(path, allow_pickle=False) as file:
            names = file["names"]
            if "masks" in file:
                masks = file["masks"]
                return names, lambda rows: masks[rows]
            packed, (height, width) = file["packed"], file["shape"]
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(f"not a file of masks ({error}). Received: path={str(path)!r}") from None
    return names, lambda rows: np.unpackbits(packed[rows], axis=1, count=height * width).reshape(
        -1, height, width
    )
