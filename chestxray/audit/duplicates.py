"""Copies of an image: byte-identical files, and files that were encoded again."""

import numpy as np
import pandas as pd
from scipy.sparse import triu
from sklearn.neighbors import radius_neighbors_graph

from chestxray.data.images import MAX_DISTANCE, perceptual_hashes

MIN_CORRELATION = 0.98  # of the pixels of two copies, if their hashes are also close


def find_copies(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """List pairs of copies among the images (N, H, W) or (N, H, W, 1) of a catalog with ``split``.

    Returns one row per pair: ``first, second`` (paths), ``exact`` (byte-identical), ``distance`` (bits of 256
    that differ), ``correlation`` (of the pixels), and ``same_label``, ``same_split`` and ``same_group``.
    """
    hashes = np.unpackbits(perceptual_hashes(images), axis=1)
    # The squared distance of two vectors of bits is the number of bits that differ.
    close = radius_neighbors_graph(hashes.astype(np.float32), np.sqrt(MAX_DISTANCE + 0.5))
    first, second = triu(close, 1).nonzero()
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    left, right = (table.iloc[rows].reset_index(drop=True) for rows in (first, second))
    pairs = pd.DataFrame(
        {
            "first": left["path"],
            "second": right["path"],
            "exact": left["sha256"] == right["sha256"],
            "distance": (hashes[first] != hashes[second]).sum(axis=1),
            "correlation": [_correlation(images[a], images[b]) for a, b in zip(first, second)],
        }
    )
    for name in ("label", "split", "group"):
        pairs[f"same_{name}"] = left[name] == right[name]
    return pairs[pairs["exact"] | (pairs["correlation"] >= MIN_CORRELATION)].reset_index(drop=True)


def _correlation(image: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two images to six digits; 1 if both are constant, 0 if only one is."""
    pixels = np.stack([image.ravel(), other.ravel()]).astype(np.float64)
    constant = pixels.std(axis=1) == 0
    return float(constant.all()) if constant.any() else round(float(np.corrcoef(pixels)[0, 1]), 6)
