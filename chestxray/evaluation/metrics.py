"""What a score is worth: discrimination, operating points, confidence intervals.

Everything takes one entry an image: ``labels`` (0 = NORMAL, 1 = PNEUMONIA, the
positive class) and ``probabilities`` of PNEUMONIA in [0, 1], both of shape (N,).
A decision is positive when ``probability >= threshold``. Thresholds are chosen
on the validation split (`evaluation/operating.py`) and only applied to the others
(`evaluate`). `evaluate`, `confusion` and `roc_band` raise ValueError when shapes
differ, labels are not 0 or 1, probabilities are NaN or outside [0, 1], or, where
both classes are needed, one is missing; the `weighted_…` functions beneath them
check nothing and say NaN where `evaluate` says None.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import norm
from sklearn.metrics import roc_curve

# In the order to be shown: metrics of the probabilities, and of decisions at a threshold.
RANKING_METRICS = ("auroc", "auprc", "loss", "brier")
THRESHOLD_METRICS = ("accuracy", "balanced_accuracy", "precision",
                     "sensitivity", "specificity", "f1")  # fmt: skip
SUBTYPES = ("bacteria", "virus")  # each has its own metric, sensitivity_<subtype>
_CHUNK = 1_000_000  # weights held at once by the bootstrap: 8 MB


def confusion(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, int]:
    """Count images: ``{"tp", "fp", "tn", "fn"}``. The threshold must be in [0, 1]."""
    labels, probabilities = check_scores(labels, probabilities)
    if not 0 <= threshold <= 1:
        raise ValueError(f"threshold must be in [0, 1]. Received: threshold={threshold}")
    counts = _weighted_confusion(labels, probabilities >= threshold, np.ones(labels.shape))
    return {cell: int(count) for cell, count in counts.items()}


def wilson_interval(found: ArrayLike, total: ArrayLike) -> tuple[NDArray, NDArray]:
    """Return both bounds of the 95 % interval of the share found / total (Wilson, 1927), total > 0."""
    z, total = norm.ppf(0.975), np.asarray(total, np.float64)
    share = found / total
    center = share + z**2 / (2 * total)
    spread = z * np.sqrt(share * (1 - share) / total + z**2 / (4 * total**2))
    return tuple(np.clip((center + sign * spread) / (1 + z**2 / total), 0, 1) for sign in (-1, 1))


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    thresholds: Mapping[str, float | None],
    subtypes: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[dict, dict]:
    """Return all metrics of one split with 95 % bootstrap intervals over patients.

    Bounds are the 2.5 and 97.5 percentiles over `bootstrap_weights` (Efron and
    Tibshirani, 1993). Draws in which a metric is undefined are left out; if they
    are over half, the bounds are None. A rate of exactly 0 or 1 gets an interval
    of width 0, which is too narrow: quote Wilson's interval there.

    Args:
        labels, probabilities: Shape (N,); both classes present.
        groups: Shape (N,), the patient group of each image.
        thresholds: ``{rule: value}``; rules that are None are left out.
        subtypes: Shape (N,), texts. Adds the sensitivity for each of `SUBTYPES`
            that has positive images.
        draws, seed: Of the bootstrap.

    Returns:
        ``metrics``: ``{metric: {"value", "low", "high"}}`` for `RANKING_METRICS`
        and ``{rule: {metric: {...}}}`` for `THRESHOLD_METRICS`; ``confusion``:
        ``{rule: {"tp", "fp", "tn", "fn"}}``.

    Raises:
        ValueError: Bad input, only one class, a missing group, or no draws.
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    thresholds = {threshold_rule: cut for threshold_rule, cut in thresholds.items() if cut is not None}
    counts = {
        threshold_rule: confusion(labels, probabilities, cut) for threshold_rule, cut in thresholds.items()
    }
    kinds = np.full(labels.shape, "") if subtypes is None else np.asarray(subtypes)
    check_same_shape(labels, "subtypes", kinds)
    masks = {kind: m for kind in SUBTYPES if (m := (kinds == kind) & (labels == 1)).any()}

    data = (labels, probabilities, thresholds, masks)
    values = weighted_metrics(*data, np.ones((1, len(labels))))
    chunks = [weighted_metrics(*data, w) for w in bootstrap_weights(labels, groups, draws, seed)]
    metrics: dict = {}
    for (threshold_rule, metric), value in values.items():
        place = metrics if threshold_rule is None else metrics.setdefault(threshold_rule, {})
        drawn = np.concatenate([chunk[threshold_rule, metric] for chunk in chunks])
        drawn = drawn[~np.isnan(drawn)]
        bounds = np.percentile(drawn, [2.5, 97.5]) if 2 * len(drawn) >= draws else (np.nan, np.nan)
        place[metric] = dict(zip(("value", "low", "high"), map(_plain, (value[0], *bounds))))
    return metrics, counts


def bootstrap_weights(
    labels: ArrayLike, groups: ArrayLike, draws: int = 2000, seed: int = 0
) -> Iterator[NDArray]:
    """Draw patient groups with replacement, stratified by label.

    A group is positive when any of its images is; each draw takes as many positive
    and as many negative groups as there are. Labels, groups and seed determine the
    draws: two models can be compared draw by draw.

    Yields:
        How often each image was drawn: float64 of shape (some of the draws, N).

    Raises:
        ValueError: Bad labels, shapes that differ, a missing group, or no draws;
            raised with the first draw, as in every generator.
    """
    labels, groups = check_labels(labels), np.asarray(groups)
    check_same_shape(labels, "groups", groups)
    missing = [group for group in groups.tolist() if group is None or group != group]
    if missing:
        raise ValueError(f"every image needs a group. Received: groups={missing[:3]}")
    if draws < 1:
        raise ValueError(f"draws must be at least 1. Received: draws={draws}")
    number = np.unique(groups, return_inverse=True)[1]  # of each image's group
    positive = np.bincount(number, labels) > 0
    pool = np.argsort(positive, kind="stable")  # group numbers, the negative stratum first
    sizes = np.bincount(positive, minlength=2)
    start, size = np.repeat([0, sizes[0]], sizes), np.repeat(sizes, sizes)
    rng = np.random.default_rng(seed)
    step = max(1, _CHUNK // len(labels))
    for first in range(0, draws, step):
        rows = min(step, draws - first)
        picked = pool[start + (rng.random((rows, len(pool))) * size).astype(np.int64)]
        flat = (picked + len(pool) * np.arange(rows)[:, None]).ravel()  # a range of bins a row
        times = np.bincount(flat, minlength=rows * len(pool)).reshape(rows, -1)
        yield times[:, number].astype(np.float64)


def weighted_ranking(labels: NDArray, probabilities: NDArray, weights: NDArray) -> NDArray:
    """Return AUROC and average precision, shape (2, draws), for weights of shape (draws, N).

    Both equal scikit-learn's with ``sample_weight``. NaN if undefined; input unchecked.
    """
    order = np.argsort(-probabilities, kind="stable")
    last = np.append(np.diff(probabilities[order]) != 0, True)  # of the images of one score
    counts = [np.cumsum((weights * (labels == y))[:, order], axis=1)[:, last] for y in (1, 0)]
    # One column a cut, from the highest down, beginning with nothing found.
    tp, fp = np.pad(counts, [(0, 0), (0, 0), (1, 0)])
    # Trapezoids: negatives of one score meet all higher positives and half of their equals.
    area = np.sum(np.diff(fp) * (tp[:, :-1] + tp[:, 1:]), axis=1) / 2
    # Precision is 0/0 while nothing is drawn; the step in recall is 0 there.
    precision = np.nan_to_num(_ratio(tp, tp + fp)[:, 1:])
    steps = np.sum(np.diff(tp) * precision, axis=1)
    return np.stack([_ratio(area, tp[:, -1] * fp[:, -1]), _ratio(steps, tp[:, -1])])


def roc_band(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike, draws: int = 500, seed: int = 0
) -> tuple[NDArray, NDArray, NDArray]:
    """Return 1 − specificity (101,), and pointwise 95 % bounds of sensitivity there, over patients."""
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    grid = np.linspace(0, 1, 101)
    curves = [
        np.interp(grid, *roc_curve(labels, probabilities, sample_weight=weights)[:2])
        for block in bootstrap_weights(labels, groups, draws, seed)
        for weights in block
        if 0 < weights @ labels < weights.sum()
    ]
    return grid, *np.percentile(curves, [2.5, 97.5], axis=0)


def check_labels(labels: ArrayLike, both_classes: bool = False) -> NDArray:
    """Return labels as int64 of shape (N,), N > 0, or raise ValueError."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"expected labels of shape (N,). Received: labels.shape={labels.shape}")
    wrong = labels[~np.isin(labels, (0, 1))].tolist()
    if wrong:
        raise ValueError(f"labels must be 0 or 1. Received: labels={wrong[:3]}")
    if both_classes and np.all(labels == labels[0]):
        raise ValueError(f"both classes are needed. Received: labels=all {labels[0]}")
    return labels.astype(np.int64)


def check_scores(
    labels: ArrayLike, probabilities: ArrayLike, both_classes: bool = False
) -> tuple[NDArray, NDArray]:
    """Return labels as int64 and probabilities as float64, or raise ValueError."""
    labels = check_labels(labels, both_classes)
    probabilities = np.asarray(probabilities, np.float64)
    check_same_shape(labels, "probabilities", probabilities)
    wrong = probabilities[~((probabilities >= 0) & (probabilities <= 1))].tolist()
    if wrong:
        raise ValueError(f"expected values in [0, 1]. Received: probabilities={wrong[:3]}")
    return labels, probabilities


def check_same_shape(labels: NDArray, name: str, array: NDArray) -> None:
    """Raise ValueError if the array, called ``name``, has not the shape of the labels."""
    if array.shape != labels.shape:
        raise ValueError(f"expected shape {labels.shape}. Received: {name}.shape={array.shape}")


def weighted_metrics(labels, probabilities, thresholds, masks, weights) -> dict:
    """Return ``{(rule or None, metric): array of shape (draws,)}``, NaN if undefined; input unchecked."""
    total = weights.sum(axis=1)
    area, steps = weighted_ranking(labels, probabilities, weights)
    values = {(None, "auroc"): area, (None, "auprc"): steps}
    values[None, "loss"] = weights @ _cross_entropy(labels, probabilities) / total
    values[None, "brier"] = weights @ (probabilities - labels) ** 2 / total
    for threshold_rule, threshold in thresholds.items():
        decisions = probabilities >= threshold
        counts = _weighted_confusion(labels, decisions, weights)
        values |= {(threshold_rule, metric): value for metric, value in _rates(**counts).items()}
        for kind, m in masks.items():
            values[threshold_rule, f"sensitivity_{kind}"] = _ratio(weights @ (m & decisions), weights @ m)
    return values


def _weighted_confusion(labels, decisions, weights) -> dict:
    cells = {"tp": (1, True), "fp": (0, True), "tn": (0, False), "fn": (1, False)}
    return {c: weights @ ((labels == y) & (decisions == d)) for c, (y, d) in cells.items()}


def _rates(tp, fp, tn, fn) -> dict:
    """Return `THRESHOLD_METRICS` of counts, or of arrays of counts; NaN where 0/0."""
    sensitivity, specificity = _ratio(tp, tp + fn), _ratio(tn, tn + fp)
    return {
        "accuracy": _ratio(tp + tn, tp + fp + tn + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "precision": _ratio(tp, tp + fp),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
    }


def _cross_entropy(labels: NDArray, probabilities: NDArray) -> NDArray:
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    return -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))


def _ratio(subset, whole):
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(subset, whole)


def _plain(value) -> float | None:
    return None if np.isnan(value) else float(value)


FEW = 30
"""Images of a class under which a rate is called uncertain: its interval is wider than ± 15 points."""

_MOST_VALUES = 6


def subgroup_table(table: pd.DataFrame, by: str, threshold: float, draws: int = 1000) -> pd.DataFrame:
    """Score each value of a column apart.

    Args:
        table: One row an image: ``label``, ``probability``, ``group`` and the
            column. Numbers of more than six different values are cut into
            thirds of equally many images; missing values are one more group.
        by: The column.
        threshold: For sensitivity and specificity.
        draws: Of the bootstrap over patient groups.

    Returns:
        One row a value: ``by, value, images, pneumonia``; ``auroc``,
        ``sensitivity`` and ``specificity`` with ``_low`` and ``_high``
        (bootstrap; Wilson for the rates; NaN where a class is missing);
        ``note``, which says when a class has few images.

    Raises:
        ValueError: There is no such column.
    """
    if by not in table:
        raise ValueError(f"no such column; there are {sorted(table)}. Received: by={by!r}")
    values = _values(table[by])
    rows = []
    for value in sorted(values.unique()):
        mine = table[values == value]
        labels, called = mine["label"].to_numpy(), (mine["probability"] >= threshold).to_numpy()
        row = {"by": by, "value": value, "images": len(mine), "pneumonia": int(labels.sum())}
        entry = {"value": np.nan, "low": np.nan, "high": np.nan}
        if 0 < labels.sum() < len(labels):
            entry = evaluate(labels, mine["probability"], mine["group"], {}, draws=draws)[0]["auroc"]
        row |= {"auroc": entry["value"], "auroc_low": entry["low"], "auroc_high": entry["high"]}
        for name, label in (("sensitivity", 1), ("specificity", 0)):
            right, total = int((called[labels == label] == label).sum()), int((labels == label).sum())
            low, high = wilson_interval(right, total) if total else (np.nan, np.nan)
            row |= {
                name: right / total if total else np.nan,
                f"{name}_low": float(low),
                f"{name}_high": float(high),
            }
        fewest = min(labels.sum(), len(labels) - labels.sum())
        rows.append(row | {"note": f"few images (under {FEW}) of a class" if fewest < FEW else ""})
    return pd.DataFrame(rows)


def _values(column: pd.Series) -> pd.Series:
    """Values as text, numbers in thirds."""
    numbers = pd.to_numeric(column, errors="coerce")
    known = column.notna() & (column.astype(str) != "")
    if numbers[known].notna().all() and numbers.nunique() > _MOST_VALUES:
        codes = pd.qcut(numbers, 3, labels=False, duplicates="drop")
        names = {
            code: f"{code + 1:.0f}: {numbers[codes == code].min():.10g} to "
            f"{numbers[codes == code].max():.10g}"
            for code in codes.dropna().unique()
        }
        return codes.map(names).fillna("unknown")
    return column.astype(str).where(known, "unknown")
