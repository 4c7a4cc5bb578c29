"""Is a heatmap to be believed? Checks that need no opinion about what it should look like.

Maps and masks are (N, H, W); maps are not negative, masks are ``bool``. Models
enter as a callable from images, ``uint8`` (N, H, W), to scores (N,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from chestxray.evaluation.metrics import evaluate

Score = Callable[[NDArray], NDArray]


def pointing_game(maps: NDArray, masks: NDArray) -> NDArray:
    """Whether the largest value of each map lies in its mask (Zhang 2016), ``bool`` (N,).

    An empty map misses. By chance the share of hits is that of the mask in
    the picture.
    """
    maps, masks = _same_shape(maps, masks)
    flat = maps.reshape(len(maps), -1)
    hit = masks.reshape(len(masks), -1)[np.arange(len(maps)), flat.argmax(axis=1)]
    return hit & (flat.max(axis=1) > 0)


def energy_inside(maps: NDArray, masks: NDArray) -> NDArray:
    """Share of each map that lies in its mask, (N,); NaN for an empty map. By chance: the mask's share."""
    maps, masks = _same_shape(maps, masks)
    total = maps.sum(axis=(1, 2))
    return np.divide((maps * masks).sum(axis=(1, 2)), total, out=np.full(len(maps), np.nan), where=total > 0)


def pixel_precision(maps: NDArray, masks: NDArray) -> NDArray:
    """Average precision of each map as a ranking of pixels for its mask, (N,); NaN for an empty mask.

    The area under the precision–recall curve of the map, cut at all heights;
    by chance the mask's share of the picture.
    """
    maps, masks = _same_shape(maps, masks)
    return np.array(
        [
            average_precision_score(mask.ravel(), one.ravel()) if mask.any() else np.nan
            for one, mask in zip(maps, masks, strict=True)
        ]
    )


def similarity(first: NDArray, second: NDArray) -> NDArray:
    """Rank correlation (Spearman) of the pixels of each two maps, (N,); NaN where one is constant."""
    first, second = _same_shape(first, second)
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in (first, second)]
    centered = [one - one.mean(axis=1, keepdims=True) for one in ranks]
    lengths = [np.sqrt((one**2).sum(axis=1)) for one in centered]
    product = lengths[0] * lengths[1]
    return np.divide(
        (centered[0] * centered[1]).sum(axis=1), product, out=np.full(len(first), np.nan), where=product > 0
    )


def occlusion(score: Score, images: NDArray, window: int = 32, step: int = 16) -> NDArray:
    """Map how much the score falls when a square is greyed out: slow, and free of the model's inside.

    Args:
        score: The model.
        images: ``uint8`` (N, H, W).
        window: Side of the square, set to the picture's mean, in pixels.
        step: Largest distance of neighbouring squares; they reach all edges.

    Returns:
        (N, h, w): score of the picture minus that without the square, one
        value a place; negative where the square held the score down.
    """
    images = np.asarray(images)
    height, width = images.shape[1:]
    whole = np.asarray(score(images), np.float64)
    rows, columns = (_starts(side, window, step) for side in (height, width))
    found = np.empty((len(images), len(rows), len(columns)))
    grey = images.mean(axis=(1, 2)).round().astype(np.uint8)[:, None, None]
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            hidden = images.copy()
            hidden[:, top : top + window, left : left + window] = grey
            found[:, i, j] = whole - score(hidden)
    return found


def _starts(side: int, window: int, step: int) -> list[int]:
    """Where squares begin so that they reach both edges, evenly and at most ``step`` apart."""
    last = max(0, side - window)
    return np.linspace(0, last, 1 + -(-last // step)).round().astype(int).tolist()


def perturbation_curves(
    score: Score, images: NDArray, maps: NDArray, insert: bool = False, steps: int = 16
) -> NDArray:
    """Blur pixels away in the order of a map, or bring them back (Petsiuk 2018, arXiv:1806.07421).

    Args:
        score: The model.
        images: ``uint8`` (N, H, W).
        maps: (N, H, W); the highest pixels go, or come, first.
        insert: Begin with the blurred picture and bring pixels back.
        steps: Equal portions of pixels.

    Returns:
        Scores after 0, 1, …, ``steps`` portions, (N, steps + 1). Departure:
        what is gone is blurred (sigma: 1/12 of the side), not black, which no
        film ever shows.
    """
    images, maps = np.asarray(images), np.asarray(maps, np.float64)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), images.shape[1] / 12) for image in images])
    first, then = (blurred, images) if insert else (images, blurred)
    order = np.argsort(-maps.reshape(len(maps), -1), axis=1, kind="stable")
    place = np.argsort(order, axis=1, kind="stable").reshape(maps.shape)
    portions = np.linspace(0, maps[0].size, steps + 1)
    return np.stack([score(np.where(place < many, then, first)) for many in portions], axis=1)


def control_maps(images: NDArray, seed: int = 0) -> dict[str, NDArray]:
    """Maps that know nothing, (N, H, W) each: smooth noise, and a bell over the middle of the picture."""
    count, height, width = np.asarray(images).shape
    generator = np.random.default_rng(seed)
    noise = np.stack(
        [cv2.GaussianBlur(generator.random((height, width)), (0, 0), height / 16) for _ in range(count)]
    )
    y, x = np.mgrid[:height, :width]
    bell = np.exp(-(((x - (width - 1) / 2) / width) ** 2 + ((y - (height - 1) / 2) / height) ** 2) / 0.1)
    return {
        "random": noise - noise.min(axis=(1, 2), keepdims=True),
        "centred Gaussian": np.broadcast_to(bell, (count, height, width)),
    }


def faithfulness_table(
    curves: Mapping[str, Mapping[str, NDArray]],
    name: str,
    groups: ArrayLike,
    draws: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare a map with controls by the areas under its curves.

    Args:
        curves: For the games ``deletion`` (small areas are good) and
            ``insertion`` (large ones) the curves of each map, (N, steps + 1),
            from :func:`perturbation_curves`.
        name: Of the map; the others are its controls.
        groups: (N,), the patient group of each image.
        draws, seed: Of the bootstrap over patient groups.

    Returns:
        One row a game and control: ``game, control, area, control_area``
        (mean scores along the curves), and ``gain`` with ``low`` and
        ``high``: by how much the map's area is better, 95 % interval.
    """
    rows = []
    for game, by_map in curves.items():
        areas = {label: np.mean(scores, axis=1) for label, scores in by_map.items()}
        for control in areas.keys() - {name}:
            gain = (areas[name] - areas[control]) * (1 if game == "insertion" else -1)
            low, high = mean_interval(gain, groups, draws, seed)
            rows.append(
                {
                    "game": game,
                    "control": control,
                    "area": float(areas[name].mean()),
                    "control_area": float(areas[control].mean()),
                    "gain": float(gain.mean()),
                    "low": low,
                    "high": high,
                }
            )
    return pd.DataFrame(rows).sort_values(["game", "control"], ignore_index=True)


def mean_interval(
    values: ArrayLike, groups: ArrayLike, draws: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % interval of a mean by bootstrap over patient groups; NaN values are left out."""
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    known = ~np.isnan(values)
    number = np.unique(groups[known], return_inverse=True)[1]
    sums, counts = np.bincount(number, values[known]), np.bincount(number)
    picks = np.random.default_rng(seed).integers(0, len(sums), (draws, len(sums)))
    low, high = np.percentile(sums[picks].sum(axis=1) / counts[picks].sum(axis=1), [2.5, 97.5])
    return float(low), float(high)


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[NDArray, NDArray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(
            f"two arrays (N, H, W) of one shape are needed. Received: {first.shape}, {second.shape}"
        )
    return first, second


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
    for subset in (np.s_[:width], np.s_[-width:], np.s_[:, :width], np.s_[:, -width:]):
        kept[subset] = image[subset]
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
