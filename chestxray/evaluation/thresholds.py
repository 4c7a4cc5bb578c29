"""Where to decide, and what a decision there means: thresholds, predictive values, triage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike

from chestxray.evaluation.metrics import (
    check_labels,
    check_same_shape,
    check_scores,
    confusion,
    wilson_interval,
)

PREVALENCES = (0.10, 0.25, 0.50)


def choose_thresholds(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[dict[str, float | None], dict[str, str]]:
    """Choose the operating points on the validation split.

    - ``youden``: largest sensitivity + specificity - 1 (Youden, 1950); of equal
      cuts the lowest, which has the highest sensitivity.
    - ``sensitivity_95``: highest cut at which the lower bound of the two-sided
      95 % Wilson interval (Wilson, 1927) of sensitivity is at least 0.95. It takes
      images for independent: several a patient make it somewhat optimistic.
    - ``half``: 0.5.

    Candidate cuts are 0 (all positive) and the midpoints between neighbouring
    distinct scores: a model that is saved and loaded again may move its scores by
    float noise, but not its decisions.

    Returns:
        ``thresholds``, ``{rule: value or None}``, and ``reasons``, a sentence for
        each rule whose threshold is None.
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    scores = np.unique(probabilities)
    cuts = np.append(0.0, (scores[:-1] + scores[1:]) / 2)
    positives, negatives = (np.sort(probabilities[labels == label]) for label in (1, 0))
    found = len(positives) - np.searchsorted(positives, cuts)
    cleared = np.searchsorted(negatives, cuts)
    # Youden's index times both class sizes plus a constant: integers, so ties are exact.
    best = np.argmax(found * len(negatives) + cleared * len(positives))
    thresholds = {"youden": float(cuts[best]), "sensitivity_95": None, "half": 0.5}

    enough = wilson_interval(found, len(positives))[0] >= 0.95
    if enough.any():
        thresholds["sensitivity_95"] = float(cuts[enough].max())
        return thresholds, {}
    sizes = np.arange(1, 100)
    needed = sizes[wilson_interval(sizes, sizes)[0] >= 0.95].min()
    reason = (
        f"validation has {len(positives)} positive (PNEUMONIA) images; a lower 95 % bound of "
        f"sensitivity of 0.95 needs at least {needed}, even when all of them are found"
    )
    return thresholds, {"sensitivity_95": reason}


def operating_points(
    labels: ArrayLike,
    probabilities: ArrayLike,
    thresholds: Mapping[str, float | None],
    prevalences: Sequence[float] = PREVALENCES,
) -> pd.DataFrame:
    """Describe decisions at each threshold.

    Args:
        labels, probabilities: Shape (N,), both classes present.
        thresholds: ``{rule: value}``, frozen on validation; None is left out.
        prevalences: For the predictive values.

    Returns:
        One row a rule: ``rule, threshold, tp, fp, tn, fn``; ``sensitivity``
        and ``specificity`` with ``_low`` and ``_high`` (Wilson, images taken
        for independent); the likelihood ratios ``lr_positive`` and
        ``lr_negative`` (NaN where 0/0, infinite where /0); ``ppv_10``,
        ``npv_10`` and so on for each prevalence in percent.
    """
    check_labels(labels, both_classes=True)
    rows = []
    for threshold_rule, threshold in thresholds.items():
        if threshold is None:
            continue
        counts = confusion(labels, probabilities, threshold)
        row = {"rule": threshold_rule, "threshold": threshold, **counts}
        for name, right, wrong in (("sensitivity", "tp", "fn"), ("specificity", "tn", "fp")):
            low, high = wilson_interval(counts[right], counts[right] + counts[wrong])
            row |= {
                name: counts[right] / (counts[right] + counts[wrong]),
                f"{name}_low": float(low),
                f"{name}_high": float(high),
            }
        found, cleared = row["sensitivity"], row["specificity"]
        row |= {"lr_positive": _ratio(found, 1 - cleared), "lr_negative": _ratio(1 - found, cleared)}
        for share in prevalences:
            true_call, false_call = found * share, (1 - cleared) * (1 - share)
            true_clear, false_clear = cleared * (1 - share), (1 - found) * share
            row |= {
                f"ppv_{100 * share:g}": _ratio(true_call, true_call + false_call),
                f"npv_{100 * share:g}": _ratio(true_clear, true_clear + false_clear),
            }
        rows.append(row)
    return pd.DataFrame(rows)


def _ratio(subset: float, whole: float) -> float:
    return subset / whole if whole else np.inf if subset else np.nan


def threshold_elsewhere(
    labels: ArrayLike,
    probabilities: ArrayLike,
    groups: ArrayLike,
    counts: Sequence[int] = (25, 50, 100, 200),
    draws: int = 200,
    seed: int = 0,
) -> pd.DataFrame:
    """Score decisions at a threshold that is chosen on some labelled images of the place itself.

    In each draw patient groups are taken at random until they hold enough
    images; the Youden threshold of these decides about all others. A draw
    does not count when either subset lacks a class, and a row is left out when
    fewer than half of its draws do. The spread over the draws is the luck of
    which images are labelled, not a confidence interval.

    Args:
        labels, probabilities, groups: Shape (N,), both classes present.
        counts: How many images are labelled.
        draws, seed: Of the parts.

    Returns:
        One row a count: ``labelled``, ``draws`` (that count) and, for
        accuracy, sensitivity and specificity on the other images, the mean
        over the draws and their 2.5 and 97.5 percentiles (``_low``, ``_high``).
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    groups = np.unique(np.asarray(groups), return_inverse=True)[1]
    check_same_shape(labels, "groups", groups)
    generator, rows = np.random.default_rng(seed), []
    for count in counts:
        found = []
        for _ in range(draws):
            rank = generator.permutation(groups.max() + 1)[groups]
            known = rank <= np.sort(rank)[min(count, len(rank)) - 1]
            if all(len(np.unique(labels[subset])) == 2 for subset in (known, ~known)):
                cut = choose_thresholds(labels[known], probabilities[known])[0]["youden"]
                right = (probabilities[~known] >= cut) == labels[~known]
                found.append([right.mean(), *(right[labels[~known] == label].mean() for label in (1, 0))])
        if 2 * len(found) < draws:
            continue
        low, high = np.percentile(found, [2.5, 97.5], axis=0)
        spans = zip(("accuracy", "sensitivity", "specificity"), np.mean(found, axis=0), low, high)
        rows.append(
            {"labelled": count, "draws": len(found)}
            | {
                f"{metric}{end}": value
                for metric, *values in spans
                for end, value in zip(("", "_low", "_high"), values)
            }
        )
    return pd.DataFrame(rows)


def choose_triage(
    labels: ArrayLike, probabilities: ArrayLike, sensitivity: float = 0.98, specificity: float = 0.98
) -> dict[str, float]:
    """Choose two thresholds on validation: rule out below the first, rule in from the second on.

    The first is the highest cut with at least this sensitivity, the second the
    lowest with at least this specificity; a good model has them the other way
    round, and then both become their middle: nobody is referred. Where too
    many negatives have probability 1, no cut reaches the specificity, and the
    second is 1.

    Returns:
        ``rule_out`` and ``rule_in``, rule_out ≤ rule_in.
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    scores = np.unique(probabilities)
    cuts = np.concatenate([[0.0], (scores[:-1] + scores[1:]) / 2, [1.0]])
    positives, negatives = (np.sort(probabilities[labels == label]) for label in (1, 0))
    found = 1 - np.searchsorted(positives, cuts) / len(positives)
    cleared = np.searchsorted(negatives, cuts) / len(negatives)
    low, high = cuts[found >= sensitivity].max(), cuts[cleared >= specificity].min(initial=1.0)
    if low > high:
        low = high = (low + high) / 2
    return {"rule_out": float(low), "rule_in": float(high)}


def triage_table(
    labels: ArrayLike, probabilities: ArrayLike, rule_out: float, rule_in: float
) -> pd.DataFrame:
    """Count what two thresholds do: rule out / refer / rule in.

    Returns:
        One row a decision: ``decision, images, share, pneumonia`` (images),
        ``wrong`` (pneumonias ruled out, normals ruled in; None for referred)
        and ``error`` with ``low`` and ``high``: wrong / images, Wilson.
    """
    labels, probabilities = check_scores(labels, probabilities)
    if not 0 <= rule_out <= rule_in <= 1:
        raise ValueError(
            f"0 <= rule_out <= rule_in <= 1 is needed. Received: rule_out={rule_out}, rule_in={rule_in}"
        )
    out, into = probabilities < rule_out, probabilities >= rule_in
    rows = []
    for decision, mine, wrong in (
        ("rule out", out, labels == 1),
        ("refer", ~out & ~into, None),
        ("rule in", into, labels == 0),
    ):
        images, mistakes = int(mine.sum()), None if wrong is None else int((mine & wrong).sum())
        known = wrong is not None and images
        low, high = map(float, wilson_interval(mistakes, images)) if known else (None, None)
        rows.append(
            (
                decision,
                images,
                images / len(labels),
                int((mine & (labels == 1)).sum()),
                mistakes,
                mistakes / images if known else None,
                low,
                high,
            )
        )
    return pd.DataFrame(
        rows, columns=["decision", "images", "share", "pneumonia", "wrong", "error", "low", "high"]
    )
