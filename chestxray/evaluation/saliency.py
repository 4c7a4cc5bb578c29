"""Quantitative checks of heatmaps, and stress tests of the model.

Heatmaps (not negative) and masks (``bool``) are (N, H, W); different shapes raise ValueError. For random
heatmaps, the expected hits, energy and precision are the share of the mask in the image. ``score`` is a model
as a function from ``images``, ``uint8`` (N, H, W), to scores (N,). ``groups`` are patient groups, (N,).
"""

from collections.abc import Callable, Iterator, Mapping

import cv2
import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.ndimage import shift
from scipy.stats import rankdata
from sklearn.metrics import average_precision_score

from chestxray.evaluation.metrics import bootstrap, evaluate, percentile_interval, ratio

Score = Callable[[NDArray], NDArray]


def pointing_game(maps: NDArray, masks: NDArray) -> NDArray:
    """Whether the maximum of each heatmap is above 0 and in its mask (Zhang 2016), ``bool`` (N,)."""
    maps, masks = _same_shape(maps, masks)
    flat = maps.reshape(len(maps), -1)
    hit = masks.reshape(len(masks), -1)[np.arange(len(maps)), flat.argmax(axis=1)]
    return hit & (flat.max(axis=1) > 0)


def energy_inside(maps: NDArray, masks: NDArray) -> NDArray:
    """Share of the sum of each heatmap that is in its mask, (N,); NaN for an empty heatmap."""
    maps, masks = _same_shape(maps, masks)
    return ratio((maps * masks).sum(axis=(1, 2)), maps.sum(axis=(1, 2)))


def pixel_precision(maps: NDArray, masks: NDArray) -> NDArray:
    """Average precision of the pixels of each heatmap, (N,); NaN for an empty mask."""
    maps, masks = _same_shape(maps, masks)
    pairs = zip(masks.reshape(len(masks), -1), maps.reshape(len(maps), -1))
    return np.array([average_precision_score(*pair) if pair[0].any() else np.nan for pair in pairs])


def similarity(first: NDArray, second: NDArray) -> NDArray:
    """Rank correlation (Spearman) of the pixels of two heatmaps, (N,); NaN if one is constant."""
    ranks = [rankdata(maps.reshape(len(maps), -1), axis=1) for maps in _same_shape(first, second)]
    first, second = (rank - rank.mean(axis=1, keepdims=True) for rank in ranks)
    lengths = [np.sqrt((centered**2).sum(axis=1)) for centered in (first, second)]
    return ratio((first * second).sum(axis=1), lengths[0] * lengths[1])


def _same_shape(first: ArrayLike, second: ArrayLike) -> tuple[NDArray, NDArray]:
    first, second = np.asarray(first), np.asarray(second)
    if first.ndim != 3 or first.shape != second.shape:
        raise ValueError(f"arrays must have one shape (N, H, W). Received: {first.shape}, {second.shape}")
    return first, second


def occlusion(score: Score, images: NDArray, window: int, step: int) -> NDArray:
    """Compute how much the score falls when a square is occluded; slow, but works for any model.

    A square has a side of ``window`` pixels and the mean value of its image. Squares are at most ``step``
    pixels apart and reach all edges. Returns (N, h, w): score of the image minus score with the square.
    """
    images = np.asarray(images)
    scores = np.asarray(score(images), np.float64)
    last = (max(0, side - window) for side in images.shape[1:])
    rows, columns = (np.linspace(0, end, 1 + -(-end // step)).round().astype(int) for end in last)
    drops = np.empty((len(images), len(rows), len(columns)))
    grey = images.mean(axis=(1, 2)).round().astype(np.uint8)[:, None, None]
    for i, top in enumerate(rows):
        for j, left in enumerate(columns):
            occluded = images.copy()
            occluded[:, top : top + window, left : left + window] = grey
            drops[:, i, j] = scores - score(occluded)
    return drops


def perturbation_curves(score: Score, images: NDArray, maps: NDArray, insert: bool = False) -> NDArray:
    """Blur pixels in the order of a heatmap, or ``insert`` them (Petsiuk 2018, arXiv:1806.07421).

    Departure: removed pixels are blurred, not black. Returns (N, 17): the scores after 0, 1, …, 16 equal
    portions of pixels, the highest values first.
    """
    images, maps = np.asarray(images), np.asarray(maps, np.float64)
    blurred = np.stack([cv2.GaussianBlur(image, (0, 0), images.shape[1] / 12) for image in images])
    start, end = (blurred, images) if insert else (images, blurred)
    ranks = rankdata(-maps.reshape(len(maps), -1), method="ordinal", axis=1).reshape(maps.shape) - 1
    counts = np.linspace(0, maps[0].size, 17)
    return np.stack([score(np.where(ranks < count, end, start)) for count in counts], axis=1)


def control_maps(images: NDArray, seed: int = 0) -> dict[str, NDArray]:
    """Heatmaps without information, (N, H, W) each: smooth noise, and a Gaussian in the centre."""
    count, height, width = np.asarray(images).shape
    rng = np.random.default_rng(seed)
    noise = [cv2.GaussianBlur(rng.random((height, width)), (0, 0), height / 16) for _ in range(count)]
    y, x = np.mgrid[:height, :width]
    gaussian = np.exp(-(((x - (width - 1) / 2) / width) ** 2 + ((y - (height - 1) / 2) / height) ** 2) / 0.1)
    noise = np.stack(noise) - np.min(noise, axis=(1, 2), keepdims=True)
    return {"random": noise, "centred Gaussian": np.broadcast_to(gaussian, (count, height, width))}


def faithfulness_table(curves: Mapping[str, Mapping], name: str, groups: ArrayLike) -> pd.DataFrame:
    """Compare the heatmap ``name`` with the others, its controls, by the area under the curve.

    ``curves`` are ``{game: {name: (N, 17)}}`` (:func:`perturbation_curves`). In the game ``deletion`` a small
    area is good, in ``insertion`` a large one. One row per game and control: ``game, control, area,
    control_area`` (means), and ``gain``, the advantage over the control, with ``low, high`` over patients.
    """
    rows = []
    for game, scores_of in curves.items():
        areas = {label: np.mean(scores, axis=1) for label, scores in scores_of.items()}
        for control in sorted(areas.keys() - {name}):
            gain = (areas[name] - areas[control]) * (1 if game == "insertion" else -1)
            means = [float(values.mean()) for values in (areas[name], areas[control], gain)]
            rows.append((game, control, *means, *mean_interval(gain, groups)))
    columns = ["game", "control", "area", "control_area", "gain", "low", "high"]
    return pd.DataFrame(rows, columns=columns).sort_values("game", kind="stable", ignore_index=True)


def mean_interval(values: ArrayLike, groups: ArrayLike) -> tuple[float, float]:
    """95 % interval of a mean by bootstrap over patient groups; NaN values are skipped."""
    values, groups = np.asarray(values, np.float64), np.asarray(groups)
    defined = ~np.isnan(values)
    values, groups = values[defined], groups[defined]
    means = bootstrap(lambda w: {"mean": w @ values / w.sum(axis=1)}, np.zeros(len(values), int), groups)
    interval = percentile_interval(*means["mean"])
    return interval["low"], interval["high"]


def centre_box(size: int) -> NDArray:
    """Mask of the central box of 0.7 of the side, ``bool`` (size, size), used if lung masks are missing."""
    mask, edge = np.zeros((size, size), bool), round(size * (1 - 0.7) / 2)
    mask[edge : size - edge, edge : size - edge] = True
    return mask


def _border(image: NDArray) -> NDArray:
    border, width = image.copy(), max(1, round(len(image) / 28))  # 8 of 224 pixels
    border[width:-width, width:-width] = 0
    return border


_JPEG = [cv2.IMWRITE_JPEG_QUALITY, 30]
STRESSES: dict[str, Callable[[NDArray], NDArray]] = {  # changes of an image, uint8 (H, W)
    "border only": _border,
    "blurred, sigma 2": lambda image: cv2.GaussianBlur(image, (0, 0), 2),
    "JPEG, quality 30": lambda image: cv2.imdecode(cv2.imencode(".jpg", image, _JPEG)[1], 0),
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "shifted by 5 %": lambda image: shift(image, round(len(image) / 20), order=0, mode="nearest"),
    "darker by 30 %": lambda image: np.rint(image * 0.7).astype(np.uint8),
    "brighter by 30 %": lambda image: np.minimum(np.rint(image * 1.3), 255).astype(np.uint8),
}


def stress_table(
    score: Score,
    images: NDArray,
    labels: ArrayLike,
    groups: ArrayLike,
    threshold: float,
    masks: NDArray | None = None,
    reframed: NDArray | None = None,
) -> pd.DataFrame:
    """Evaluate a trained model on changed images; ``score`` returns calibrated probabilities.

    ``masks`` are the lungs, which are blacked out; the default is :func:`centre_box`. ``reframed`` are the
    same images with another collimation. One row per change, the first is ``none``: ``change``; ``auroc``
    with ``low`` and ``high`` over patients; ``sensitivity``, ``specificity``; ``changed``, the share of
    decisions that the change reverses.
    """
    images = np.asarray(images)

    def changes() -> Iterator[tuple[str, NDArray]]:
        yield "none", images
        name = "centre blacked out" if masks is None else "lungs blacked out"
        masked = centre_box(images.shape[1])[None] if masks is None else np.asarray(masks, bool)
        yield name, np.where(masked, 0, images).astype(np.uint8)
        if reframed is not None:
            yield "lung box of the other class", reframed
        for name, change in STRESSES.items():
            yield name, np.stack([change(image) for image in images])

    rows, unchanged = [], None
    for name, changed in changes():
        probabilities = np.asarray(score(changed), np.float64)
        decisions = probabilities >= threshold
        unchanged = decisions if unchanged is None else unchanged
        metrics, _ = evaluate(labels, probabilities, groups, {"given": threshold}, draws=1000)
        row = {"change": name} | dict(zip(("auroc", "low", "high"), metrics["auroc"].values()))
        row |= {rate: metrics["given"][rate]["value"] for rate in ("sensitivity", "specificity")}
        rows.append(row | {"changed": float(np.mean(decisions != unchanged))})
    return pd.DataFrame(rows)
