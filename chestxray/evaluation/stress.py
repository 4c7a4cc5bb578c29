"""What remains of a score when the lungs are gone, or the film is a little worse."""

from __future__ import annotations

from collections.abc import Callable

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chestxray.evaluation.metrics import evaluate

BOX = 0.7
"""Side of the central box, as a share of the image, that stands for the lungs where there is no mask."""

FRAME = 1 / 28
"""Width of the border, as a share of the image: 8 of 224 pixels."""


def centre_box(size: int) -> NDArray:
    """Mask of the central box, ``bool`` (size, size)."""
    mask, edge = np.zeros((size, size), bool), round(size * (1 - BOX) / 2)
    mask[edge : size - edge, edge : size - edge] = True
    return mask


def _border(image: NDArray) -> NDArray:
    kept, width = np.zeros_like(image), max(1, round(len(image) * FRAME))
    for part in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        kept[part] = image[part]
    return kept


def _jpeg(image: NDArray) -> NDArray:
    return cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_GRAYSCALE)


def _shift(image: NDArray) -> NDArray:
    step = round(len(image) / 20)
    move = np.float32([[1, 0, step], [0, 1, step]])
    return cv2.warpAffine(image, move, image.shape[::-1], borderMode=cv2.BORDER_REPLICATE)


STRESSES: dict[str, Callable[[NDArray], NDArray]] = {
    "border only": _border,
    "blurred, sigma 2": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
    "JPEG, quality 30": _jpeg,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "shifted by 5 %": _shift,
    "darker by 30 %": lambda image: np.rint(image * 0.7).astype(np.uint8),
    "brighter by 30 %": lambda image: np.minimum(np.rint(image * 1.3), 255).astype(np.uint8),
}
"""What is done to each image, ``uint8`` (H, W), besides blacking out the lungs."""


def stress_table(
    score: Callable[[NDArray], NDArray],
    images: NDArray,
    labels: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    masks: NDArray | None = None,
    draws: int = 1000,
) -> pd.DataFrame:
    """Score changed images with a trained model.

    Args:
        score: From images, ``uint8`` (N, H, W), to calibrated probabilities (N,).
        images: ``uint8`` (N, H, W), preprocessed.
        labels: (N,), 0 or 1, both present.
        groups: (N,), the patient group of each image.
        threshold: Frozen on validation.
        masks: Lungs, ``bool`` (N, H, W); without them the central
            :data:`BOX` is blacked out instead.
        draws: Of the bootstrap over patient groups.

    Returns:
        One row a change, the first being none: ``change``; ``auroc`` with
        ``low`` and ``high``; ``sensitivity``, ``specificity``; ``changed``,
        the share of decisions that are another than without the change.
    """
    images = np.asarray(images)
    hidden = centre_box(images.shape[1])[None] if masks is None else np.asarray(masks, bool)
    name = "centre blacked out" if masks is None else "lungs blacked out"
    variants = {"none": lambda: images, name: lambda: np.where(hidden, 0, images).astype(np.uint8)}
    variants |= {
        name: lambda change=change: np.stack([change(image) for image in images])
        for name, change in STRESSES.items()
    }
    rows, first = [], None
    for change, make in variants.items():
        probabilities = np.asarray(score(make()), np.float64)
        metrics, _ = evaluate(labels, probabilities, groups, {"cut": threshold}, draws=draws)
        first = probabilities >= threshold if first is None else first
        rows.append(
            {
                "change": change,
                "auroc": metrics["auroc"]["value"],
                "low": metrics["auroc"]["low"],
                "high": metrics["auroc"]["high"],
                **{rate: metrics["cut"][rate]["value"] for rate in ("sensitivity", "specificity")},
                "changed": float(np.mean((probabilities >= threshold) != first)),
            }
        )
    return pd.DataFrame(rows)
