"""Metrics of predictions, their intervals over patients, and subgroups.

Arguments have one entry per image, shape (N,): ``labels`` (0 = NORMAL, 1 = PNEUMONIA, the positive class),
``probabilities`` of PNEUMONIA in [0, 1], and ``groups``, the patient groups. ``draws`` is the number of
bootstrap draws. A decision is positive when ``probability >= threshold``. Thresholds are chosen on the
validation split (`thresholds.py`) and only applied to the others.

Functions raise ValueError when shapes differ, labels are not 0 or 1, probabilities are NaN or outside [0, 1],
or a required class is missing. The ``weighted_…`` functions take weights of shape (D, N), check nothing and
return NaN where a metric is undefined. The module imports only NumPy: prediction needs no other library.
"""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chestxray.schema import SUBTYPES, check

if TYPE_CHECKING:
    import pandas as pd

_CHUNK = 1_000_000  # bootstrap weights in memory at a time: 8 MB


def confusion(labels: ArrayLike, probabilities: ArrayLike, threshold: float) -> dict[str, int]:
    """Count images: ``{"tp", "fp", "tn", "fn"}``. The threshold must be in [0, 1]."""
    labels, probabilities = check_scores(labels, probabilities)
    check(0 <= threshold <= 1, "threshold must be in [0, 1]", threshold=float(threshold))
    tn, fp, fn, tp = np.bincount(2 * labels + (probabilities >= threshold), minlength=4).tolist()
    return {"tp": tp, "fp": fp, "tn": tn, "fn": fn}


def wilson_interval(count: ArrayLike, total: ArrayLike) -> tuple[NDArray, NDArray, NDArray]:
    """Return the share count / total and its 95 % interval (Wilson, 1927); NaN if the total is 0."""
    from statsmodels.stats.proportion import proportion_confint

    with np.errstate(invalid="ignore", divide="ignore"):
        return ratio(count, total), *proportion_confint(count, total, method="wilson")


def evaluate(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    thresholds: Mapping[str, float | None],
    subtypes: ArrayLike | None = None,
    draws: int = 2000,
) -> tuple[dict, dict]:
    """Return all metrics of one split with 95 % intervals (:func:`bootstrap`); both classes must be present.

    ``thresholds`` are ``{threshold_rule: value}``; None is skipped. ``subtypes``, strings (N,), add
    ``sensitivity_bacteria`` and ``sensitivity_virus`` if the subtype has positive images. If the value is 0
    or 1 and all draws are equal to it, the interval is Wilson's over patients: for a rate, the patients that
    it counts; for other metrics, those of the smaller class.

    Returns ``{metric: {"value", "low", "high"}}`` for auroc, auprc, loss and brier, the same for decisions
    under each threshold_rule, and the confusion, ``{threshold_rule: {cell: count}}``.
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    thresholds = {rule: threshold for rule, threshold in thresholds.items() if threshold is not None}
    counts = {rule: confusion(labels, probabilities, threshold) for rule, threshold in thresholds.items()}
    subtypes = np.full(labels.shape, "") if subtypes is None else np.asarray(subtypes)
    check_labels(labels, subtypes=subtypes)
    masks = {name: mask for name in SUBTYPES[1:] if (mask := (subtypes == name) & (labels == 1)).any()}

    all_metrics = functools.partial(weighted_metrics, labels, probabilities, thresholds, masks)
    metrics: dict = {}
    for (rule, metric), estimate in bootstrap(all_metrics, labels, groups, draws).items():
        entries = metrics if rule is None else metrics.setdefault(rule, {})
        entries[metric] = entry = percentile_interval(*estimate)
        if entry["value"] in (0, 1) and entry["low"] == entry["high"] is not None:
            images = {"sensitivity": labels == 1, "specificity": labels == 0, "accuracy": labels >= 0}
            images |= {f"sensitivity_{name}": mask for name, mask in masks.items()}
            images["precision"] = probabilities >= thresholds.get(rule, 0)
            smaller_class = labels == (labels.mean() < 0.5)
            patients = len(set(np.asarray(groups)[images.get(metric, smaller_class)].tolist()))
            _, low, high = wilson_interval(entry["value"] * patients, patients)
            entry |= {"low": float(low), "high": min(1.0, float(high))}
    return metrics, counts


def bootstrap(metrics: Callable, labels: NDArray, groups: ArrayLike, draws: int = 2000) -> dict:
    """Compute ``{name: (value, drawn)}`` on all images and on each draw of :func:`bootstrap_weights`.

    ``metrics`` is a function from weights, (D, N), to ``{name: array of shape (..., D)}``.
    """
    values = metrics(np.ones((1, len(labels))))
    blocks = [metrics(weights) for weights in bootstrap_weights(labels, groups, draws)]
    return {
        name: (value[..., 0], np.concatenate([block[name] for block in blocks], axis=-1))
        for name, value in values.items()
    }


def percentile_interval(value: float, drawn: NDArray, comparisons: int = 1) -> dict[str, float | None]:
    """Return ``value`` with ``low`` and ``high``, the 2.5 and 97.5 percentiles of its draws.

    Percentile bootstrap of Efron and Tibshirani (1993), wider with several ``comparisons`` (Bonferroni).
    Undefined draws (NaN) are skipped. If more than half are undefined, the bounds are None. An undefined
    value is None.
    """
    defined = drawn[~np.isnan(drawn)]
    tail = 2.5 / comparisons
    bounds = np.percentile(defined, [tail, 100 - tail]) if 2 * len(defined) >= len(drawn) else [np.nan] * 2
    entry = zip(("value", "low", "high"), (value, *bounds))
    return {name: None if np.isnan(number) else float(number) for name, number in entry}


def bootstrap_weights(labels: ArrayLike, groups: ArrayLike, draws: int = 2000) -> Iterator[NDArray]:
    """Draw patient groups with replacement, stratified by label, and yield how often each image was drawn.

    Each block is float64 of shape (number of draws, N). A group is positive when any of its images is. The
    draws depend only on labels and groups, so that two models can be compared draw by draw.
    """
    groups = np.asarray(groups)
    labels = check_labels(labels, groups=groups)
    missing = [group for group in groups.tolist() if group is None or group != group]
    check(not missing, "every image must have a group", groups=missing[:3])
    check(draws >= 1, "draws must be at least 1", draws=draws)
    number = np.unique(groups, return_inverse=True)[1]  # of the group of each image
    positive = np.bincount(number, labels) > 0
    pool = np.argsort(positive, kind="stable")  # group numbers, the negative stratum first
    sizes = np.bincount(positive, minlength=2)
    start, size = np.repeat([0, sizes[0]], sizes), np.repeat(sizes, sizes)
    rng = np.random.default_rng(0)
    step = max(1, _CHUNK // len(labels))
    for first in range(0, draws, step):
        picks = rng.random((min(step, draws - first), len(pool)))
        picked = pool[start + (picks * size).astype(np.int64)]
        times = np.stack([np.bincount(row, minlength=len(pool)) for row in picked])
        yield times[:, number].astype(np.float64)


def weighted_ranking(labels: NDArray, probabilities: NDArray, weights: NDArray) -> NDArray:
    """Return AUROC and average precision, shape (2, D), equal to scikit-learn's with ``sample_weight``."""
    order = np.argsort(-probabilities, kind="stable")
    last = np.append(np.diff(probabilities[order]) != 0, True)  # last image of each distinct score
    counts = [np.cumsum((weights * (labels == y))[:, order], axis=1)[:, last] for y in (1, 0)]
    # One column per threshold in descending order; the first has no positive decision.
    tp, fp = np.pad(counts, [(0, 0), (0, 0), (1, 0)])
    # The trapezoids count pairs of a negative and a positive with equal scores as one half.
    area = np.sum(np.diff(fp) * (tp[:, :-1] + tp[:, 1:]), axis=1) / 2
    # Precision is 0/0 before the first drawn image; the step in recall is 0 there.
    precision = np.nan_to_num(ratio(tp, tp + fp)[:, 1:])
    steps = np.sum(np.diff(tp) * precision, axis=1)
    return np.stack([ratio(area, tp[:, -1] * fp[:, -1]), ratio(steps, tp[:, -1])])


def weighted_metrics(
    labels: NDArray, probabilities: NDArray, thresholds: dict, masks: dict, weights: NDArray
) -> dict[tuple[str | None, str], NDArray]:
    """Return ``{(threshold_rule or None, metric): shape (D,)}`` at thresholds ``{threshold_rule: value}``.

    ``masks`` select the positive images of each subtype, ``{subtype: bool (N,)}``.
    """
    total = weights.sum(axis=1)
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    losses = -np.where(labels == 1, np.log(clipped), np.log1p(-clipped))
    auroc, auprc = weighted_ranking(labels, probabilities, weights)
    values = {(None, "auroc"): auroc, (None, "auprc"): auprc}
    values[None, "loss"] = weights @ losses / total
    values[None, "brier"] = weights @ (probabilities - labels) ** 2 / total
    for rule, threshold in thresholds.items():
        decisions = probabilities >= threshold
        rates = _weighted_rates(labels, decisions, weights)
        values |= {(rule, metric): rate for metric, rate in rates.items()}
        for name, mask in masks.items():
            values[rule, f"sensitivity_{name}"] = ratio(weights @ (mask & decisions), weights @ mask)
    return values


def _weighted_rates(labels: NDArray, decisions: NDArray, weights: NDArray) -> dict[str, NDArray]:
    tp, fp = (weights @ (decisions & (labels == label)) for label in (1, 0))
    fn, tn = (weights @ (~decisions & (labels == label)) for label in (1, 0))
    sensitivity, specificity = ratio(tp, tp + fn), ratio(tn, tn + fp)
    return {
        "accuracy": ratio(tp + tn, tp + fp + tn + fn),
        "balanced_accuracy": (sensitivity + specificity) / 2,
        "precision": ratio(tp, tp + fp),
        "sensitivity": sensitivity,
        "specificity": specificity,
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
    }


def ratio(part: ArrayLike, whole: ArrayLike) -> NDArray:
    """Divide without a warning: 0/0 is NaN, and any other division by 0 is infinite."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.true_divide(part, whole)


def roc_band(labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike) -> tuple[NDArray, ...]:
    """Return 1 − specificity (101,) and pointwise 95 % bounds of sensitivity, over patients."""
    from sklearn.metrics import roc_curve

    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    grid = np.linspace(0, 1, 101)
    curves = [
        np.interp(grid, *roc_curve(labels, probabilities, sample_weight=weights)[:2])
        for block in bootstrap_weights(labels, groups, draws=500)
        for weights in block
        if 0 < weights @ labels < weights.sum()
    ]
    return grid, *np.percentile(curves, [2.5, 97.5], axis=0)


def check_labels(labels: ArrayLike, both_classes: bool = False, **arrays: NDArray) -> NDArray:
    """Return labels as int64 (N,), N > 0; other labels, or arrays of another shape, raise ValueError."""
    labels = np.asarray(labels)
    if labels.ndim != 1 or labels.size == 0:
        raise ValueError(f"labels must have shape (N,), N > 0. Received: labels.shape={labels.shape}")
    invalid = labels[~np.isin(labels, (0, 1))].tolist()
    check(not invalid, "labels must be 0 or 1", labels=invalid[:3])
    if both_classes and np.all(labels == labels[0]):
        raise ValueError(f"labels must contain both classes. Received: labels=all {labels[0]}")
    for name, array in arrays.items():
        same = array.shape == labels.shape
        check(same, f"{name} must have shape {labels.shape}", **{f"{name}.shape": array.shape})
    return labels.astype(np.int64)


def check_scores(
    labels: ArrayLike, probabilities: ArrayLike, both_classes: bool = False
) -> tuple[NDArray, NDArray]:
    """Return labels as int64 and probabilities as float64, or raise ValueError."""
    probabilities = np.asarray(probabilities, np.float64)
    labels = check_labels(labels, both_classes, probabilities=probabilities)
    invalid = probabilities[~((probabilities >= 0) & (probabilities <= 1))].tolist()
    check(not invalid, "probabilities must be in [0, 1]", probabilities=invalid[:3])
    return labels, probabilities


FEW = 30
"""With fewer images of a class, a rate is uncertain: its interval is wider than ± 15 percentage points."""


def subgroup_table(table: "pd.DataFrame", by: str, threshold: float, draws: int = 1000) -> "pd.DataFrame":
    """Compute metrics for each value of the column ``by``; ``threshold`` is the one of the rates.

    ``table`` has one row per image: ``label``, ``probability``, ``group`` and the column. More than six
    distinct numbers are divided into tertiles. Missing values are a subgroup of their own. Returns one row
    per value: ``by, value, images, pneumonia``; ``auroc``, ``sensitivity`` and ``specificity`` with ``_low``
    and ``_high`` (bootstrap; Wilson for the rates; NaN for a missing class); ``note`` on few images.
    """
    import pandas as pd

    check(by in table, f"by must be one of the columns {sorted(table)}", by=by)
    values, rows = _subgroups(table[by]), []
    for value in sorted(values.unique()):
        images = table[values == value]
        labels = images["label"].to_numpy()
        correct = (images["probability"] >= threshold).to_numpy() == labels
        sizes = {label: int((labels == label).sum()) for label in (0, 1)}
        row = {"by": by, "value": value, "images": len(images), "pneumonia": sizes[1]}
        auroc = [np.nan] * 3
        if all(sizes.values()):
            metrics, _ = evaluate(labels, images["probability"], images["group"], {}, draws=draws)
            auroc = metrics["auroc"].values()
        row |= interval_columns("auroc", auroc)
        for name, label in (("sensitivity", 1), ("specificity", 0)):
            row |= interval_columns(name, wilson_interval(correct[labels == label].sum(), sizes[label]))
        few = min(sizes.values()) < FEW
        rows.append(row | {"note": f"few images (under {FEW}) of a class" if few else ""})
    return pd.DataFrame(rows)


def interval_columns(name: str, numbers: Iterable[float]) -> dict[str, float]:
    """Name a value and its bounds as columns: ``name``, ``name_low``, ``name_high``."""
    return dict(zip((name, f"{name}_low", f"{name}_high"), numbers))


def _subgroups(column: "pd.Series") -> "pd.Series":
    """Return the subgroup of each row as text."""
    import pandas as pd

    numbers = pd.to_numeric(column, errors="coerce")
    known = column.notna() & (column.astype(str) != "")
    if numbers[known].isna().any() or numbers.nunique() <= 6:
        return column.astype(str).where(known, "unknown")
    thirds = pd.qcut(numbers, 3, labels=False, duplicates="drop")
    ranges = numbers.groupby(thirds).agg(["min", "max"])
    names = {third: f"{third + 1:.0f}: {low:.10g} to {high:.10g}" for third, low, high in ranges.itertuples()}
    return thirds.map(names).fillna("unknown")
