"""Lung masks, made by others, for the same images."""

from __future__ import annotations

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
            or an ``.npz`` file with ``names`` (N,) and ``masks`` (N, H, W), or
            ``packed`` (N, ⌈H·W/8⌉) from :func:`numpy.packbits` and ``shape``
            (H, W).
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
        by_name = {path.stem: path for path in source.rglob("*.png")}
        places = [source / Path(path).with_suffix(".png") for path in table["path"]]
        files = [place if place.is_file() else by_name.get(stem)
                 for place, stem in zip(places, stems, strict=True)]
        known = np.array([file is not None for file in files])
        found = [_read_png(file) for file in files if file]
    elif source.is_file():
        names, masks = _read_npz(source)
        place = {str(name).rsplit(".", 1)[0]: number for number, name in enumerate(names)}
        known = stems.isin(list(place)).to_numpy()
        found = masks([place[stem] for stem in stems[known]])
    else:
        raise FileNotFoundError(f"no such folder or file of masks. Received: source={str(source)!r}")
    if not known.any():
        raise ValueError(f"no mask has the name of an image. Received: source={str(source)!r}")
    resized = [cv2.resize(np.asarray(mask, np.uint8), (size, size), interpolation=cv2.INTER_AREA)
               if mask.shape != (size, size) else mask for mask in found]
    return np.stack(resized).astype(bool), known


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
    except (KeyError, ValueError, OSError) as error:
        raise ValueError(f"not a file of masks ({error}). Received: path={str(path)!r}") from None
    return names, lambda rows: np.unpackbits(packed[rows], axis=1, count=height * width).reshape(
        -1, height, width)
