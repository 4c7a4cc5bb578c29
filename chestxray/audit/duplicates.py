"""Copies of the same film: byte for byte, and after re-encoding."""

from __future__ import annotations

import cv2
import numpy as np
import pandas as pd
from scipy.fft import dctn

MAX_DISTANCE = 32
"""Bits of 256 that may differ between the hashes of two copies."""

MIN_CORRELATION = 0.98
"""Correlation of the pixels above which two films with close hashes are copies."""

_HASH_SIDE, _PICTURE_SIDE = 16, 64
_BLOCK = 1000  # images compared with all others at a time


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Compute 256-bit hashes that survive re-encoding, resizing and a change of exposure.

    Signs, about their median, of the 16 × 16 lowest frequencies of the cosine
    transform of the picture at 64 × 64 (Zauner 2010, with four times as many
    bits: chest films are so alike that 64 bits call thousands of strangers
    copies).

    Args:
        images: Grey pixels, (N, H, W) or (N, H, W, 1).

    Returns:
        ``bool`` (N, 256).
    """
    small = np.stack(
        [
            cv2.resize(np.squeeze(image), (_PICTURE_SIDE, _PICTURE_SIDE), interpolation=cv2.INTER_AREA)
            for image in images
        ]
    ).astype(np.float32)
    lowest = dctn(small, axes=(1, 2))[:, :_HASH_SIDE, :_HASH_SIDE].reshape(len(small), -1)
    return lowest > np.median(lowest, axis=1, keepdims=True)


def find_copies(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """List pairs of images that are copies of each other.

    Args:
        table: Catalog with ``path, label, split, group, sha256``.
        images: Their pixels, (N, H, W) or (N, H, W, 1), in the same order.

    Returns:
        One row a pair: ``first, second`` (paths), ``exact`` (byte for byte),
        ``distance`` (differing bits of 256), ``correlation`` (of the
        pixels), and whether both have the ``same_label``, ``same_split`` and
        ``same_group``.
    """
    signs = np.where(perceptual_hashes(images), 1.0, -1.0).astype(np.float32)
    blocks = [_close(signs, start) for start in range(0, len(signs), _BLOCK)]
    first, second, distance = np.concatenate(blocks, axis=1)
    values = {name: table[name].to_numpy() for name in ("path", "sha256", "label", "split", "group")}
    exact = values["sha256"][first] == values["sha256"][second]
    correlation = np.array([_correlation(images[a], images[b]) for a, b in zip(first, second, strict=True)])
    pairs = pd.DataFrame(
        {
            "first": values["path"][first],
            "second": values["path"][second],
            "exact": exact,
            "distance": distance,
            "correlation": correlation,
            **{
                f"same_{name}": values[name][first] == values[name][second]
                for name in ("label", "split", "group")
            },
        }
    )
    return pairs[exact | (correlation >= MIN_CORRELATION)].reset_index(drop=True)


def _close(signs: np.ndarray, start: int) -> np.ndarray:
    """Pairs whose first is in the block from ``start`` on: first, second, distance, as integers (3, P)."""
    rows = signs[start : start + _BLOCK]
    distances = ((signs.shape[1] - rows @ signs[start:].T) / 2).astype(np.int64)
    one, other = np.nonzero(np.triu(distances <= MAX_DISTANCE, 1))
    return np.stack([one + start, other + start, distances[one, other]])


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Correlation of the grey values of two pictures, to six digits; 1 for equal or two flat ones."""
    one, other = (np.ravel(image).astype(np.float64) for image in (one, other))
    if one.std() == 0 or other.std() == 0:
        return float(one.std() == other.std())
    return round(float(np.corrcoef(one, other)[0, 1]), 6)
