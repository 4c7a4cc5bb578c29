"""Thresholds, operating points and triage. Arguments and errors: see `metrics.py`."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chestxray.evaluation import metrics
from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.schema import check

PREVALENCES = (0.10, 0.25, 0.50)


def _candidates(labels: NDArray, probabilities: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Return candidate thresholds (0 and midpoints of distinct scores), and true positives and negatives."""
    scores = np.unique(probabilities)
    candidates = np.append(0.0, (scores[:-1] + scores[1:]) / 2)
    positives, negatives = (np.sort(probabilities[labels == label]) for label in (1, 0))
    true_positives = len(positives) - np.searchsorted(positives, candidates)
    return candidates, true_positives, np.searchsorted(negatives, candidates)


def choose_thresholds(labels: ArrayLike, probabilities: ArrayLike) -> tuple[dict, dict]:
    """Choose thresholds on the validation split: ``{threshold_rule: value or None}``, and reasons for None.

    - ``youden``: largest sensitivity + specificity - 1 (Youden, 1950); the lowest threshold of several.
    - ``sensitivity_95``: highest threshold at which the lower bound of the two-sided 95 % Wilson interval of
      sensitivity is at least 0.95. Images count as independent: optimistic if patients have several.
    - ``half``: 0.5.
    """
    labels, probabilities = metrics.check_scores(labels, probabilities, both_classes=True)
    candidates, true_positives, true_negatives = _candidates(labels, probabilities)
    negatives, positives = np.bincount(labels)
    # Youden's index, multiplied by both class sizes: with integers, ties are exact.
    best = np.argmax(true_positives * negatives + true_negatives * positives)
    thresholds = {"youden": float(candidates[best]), "sensitivity_95": None, "half": 0.5}
    sensitive = metrics.wilson_interval(true_positives, positives)[1] >= 0.95
    if sensitive.any():
        thresholds["sensitivity_95"] = float(candidates[sensitive].max())
        return thresholds, {}
    sizes = np.arange(1, 100)
    needed = sizes[metrics.wilson_interval(sizes, sizes)[1] >= 0.95].min()
    reason = f"validation has {positives} positive images; a lower 95 % bound of sensitivity "
    reason += f"of 0.95 needs at least {needed}, even when all of them are found"
    return thresholds, {"sensitivity_95": reason}


def operating_points(
    labels: ArrayLike,
    probabilities: ArrayLike,
    thresholds: Mapping[str, float | None],
    prevalences: Sequence[float] = PREVALENCES,
) -> pd.DataFrame:
    """Describe the decisions at each threshold, ``{threshold_rule: value}``; None is skipped.

    One row per threshold: ``threshold_rule, threshold, tp, fp, tn, fn``; ``sensitivity`` and ``specificity``
    with ``_low`` and ``_high`` (Wilson; images are treated as independent); the likelihood ratios
    ``lr_positive``, ``lr_negative`` (:func:`metrics.ratio`); ``ppv_10``, ``npv_10`` (prevalence in %), ….
    """
    metrics.check_labels(labels, both_classes=True)
    rows = []
    for threshold_rule, threshold in thresholds.items():
        if threshold is None:
            continue
        counts = metrics.confusion(labels, probabilities, threshold)
        row = {"threshold_rule": threshold_rule, "threshold": threshold, **counts}
        for name, true, false in (("sensitivity", "tp", "fn"), ("specificity", "tn", "fp")):
            interval = metrics.wilson_interval(counts[true], counts[true] + counts[false])
            row |= metrics.interval_columns(name, interval)
        sensitivity, specificity = row["sensitivity"], row["specificity"]
        row["lr_positive"] = metrics.ratio(sensitivity, 1 - specificity)
        row["lr_negative"] = metrics.ratio(1 - sensitivity, specificity)
        for share in prevalences:
            tp, fp = sensitivity * share, (1 - specificity) * (1 - share)
            tn, fn = specificity * (1 - share), (1 - sensitivity) * share
            row[f"ppv_{100 * share:g}"] = metrics.ratio(tp, tp + fp)
            row[f"npv_{100 * share:g}"] = metrics.ratio(tn, tn + fn)
        rows.append(row)
    return pd.DataFrame(rows)


def choose_triage(labels: ArrayLike, probabilities: ArrayLike) -> dict[str, float]:
    """Choose two thresholds on validation: ``rule_out`` and ``rule_in``.

    ``rule_out`` is the highest threshold with a sensitivity of at least 0.98. ``rule_in`` is the lowest with
    a specificity of at least 0.98, or 1. If they cross, both become their mean and no image is referred.
    """
    labels, probabilities = metrics.check_scores(labels, probabilities, both_classes=True)
    candidates, true_positives, true_negatives = _candidates(labels, probabilities)
    negatives, positives = np.bincount(labels)
    low = candidates[true_positives / positives >= 0.98].max()
    high = candidates[true_negatives / negatives >= 0.98].min(initial=1.0)
    if low > high:
        low = high = (low + high) / 2
    return {"rule_out": float(low), "rule_in": float(high)}


def fit_decisions(logits: ArrayLike, labels: ArrayLike) -> dict[str, dict]:
    """Fit calibration and thresholds of a card on raw logits and labels, (N,), of the validation split.

    The keys are ``calibration``, ``thresholds``, ``threshold_reasons`` and ``triage``.
    """
    slope, intercept = calibrate(logits, labels)
    probabilities = apply_platt(logits, slope, intercept)
    fitted = {"calibration": {"slope": slope, "intercept": intercept}}
    fitted["thresholds"], fitted["threshold_reasons"] = choose_thresholds(labels, probabilities)
    return fitted | {"triage": choose_triage(labels, probabilities)}


def triage_table(
    labels: ArrayLike, probabilities: ArrayLike, rule_out: float, rule_in: float
) -> pd.DataFrame:
    """Count the decisions of two thresholds, 0 <= rule_out <= rule_in <= 1 (else ValueError).

    One row per decision: ``decision, images, share, pneumonia`` (images), ``wrong`` (pneumonias ruled out,
    normals ruled in; NaN for referred) and ``error`` with ``low`` and ``high``: wrong / images, Wilson.
    """
    labels, probabilities = metrics.check_scores(labels, probabilities)
    valid = 0 <= rule_out <= rule_in <= 1
    check(valid, "thresholds must satisfy 0 <= rule_out <= rule_in <= 1", rule_out=rule_out, rule_in=rule_in)
    low, high = probabilities < rule_out, probabilities >= rule_in
    decisions = {"rule out": (low, 1), "refer": (~low & ~high, None), "rule in": (high, 0)}
    rows = []
    for decision, (mask, wrong_label) in decisions.items():
        images, pneumonia = int(mask.sum()), int(labels[mask].sum())
        wrong = np.nan if wrong_label is None else int((labels[mask] == wrong_label).sum())
        row = {"decision": decision, "images": images, "share": images / len(labels), "pneumonia": pneumonia}
        row |= {"wrong": wrong} | dict(zip(("error", "low", "high"), metrics.wilson_interval(wrong, images)))
        rows.append(row)
    return pd.DataFrame(rows)
