"""Two models, or two ways of training, on the same images: what their difference is worth."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binomtest, norm, rankdata

from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.evaluation.metrics import (
    bootstrap_weights,
    check_labels,
    check_same_shape,
    check_scores,
    evaluate,
    weighted_metrics,
    weighted_ranking,
)
from chestxray.evaluation.thresholds import choose_thresholds


def auroc_difference(
    labels: ArrayLike,
    groups: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
) -> tuple[float, float, float]:
    """AUROC of the first model minus that of the second, with a paired 95 % interval.

    Both are scored on the same draw of patient groups every time, so that what
    is hard for both cancels; the interval is much narrower than that of either.

    Args:
        labels: Shape (N,), 0 or 1, both present.
        groups: Shape (N,), the patient group of each image.
        first: Shape (N,), probabilities of the first model, in the same order.
        second: Shape (N,), probabilities of the second model.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        ``(value, low, high)``, the bounds being the 2.5 and 97.5 percentiles.

    Raises:
        ValueError: Shapes differ, or labels or probabilities are no such.
    """
    labels, first = check_scores(labels, first, both_classes=True)
    _, second = check_scores(labels, second)
    check_same_shape(labels, "second", second)

    def difference(weights: np.ndarray) -> np.ndarray:
        return weighted_ranking(labels, first, weights)[0] - weighted_ranking(labels, second, weights)[0]

    weights = bootstrap_weights(labels, groups, draws, seed)
    drawn = np.concatenate([difference(some) for some in weights])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(difference(np.ones((1, len(labels))))[0]), float(low), float(high)


def variant_difference(
    labels: ArrayLike,
    groups: ArrayLike,
    first: ArrayLike,
    second: ArrayLike,
    first_thresholds: ArrayLike,
    second_thresholds: ArrayLike,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, dict[str, float]]:
    """Metrics of one way of training minus those of another, over patients and over training seeds.

    Both were trained with the same seeds. Every draw of the bootstrap takes
    patient groups and, independently, seeds with replacement, the same for
    both; the metrics are averaged over the seeds. Drawing S seeds
    understates their variance by (S − 1)/S, which is corrected; with two or
    three seeds the interval is still too narrow where they matter most.

    Args:
        labels: Shape (N,), 0 or 1, both present.
        groups: Shape (N,), the patient group of each image.
        first: Shape (S, N), probabilities of the first variant, one row a seed.
        second: Shape (S, N), of the second variant, with the same seeds.
        first_thresholds: Shape (S,), for sensitivity and specificity.
        second_thresholds: Shape (S,).
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        ``{metric: {"value", "low", "high"}}`` for auroc, brier, sensitivity
        and specificity; the bounds are the 2.5 and 97.5 percentiles.

    Raises:
        ValueError: Shapes differ, or labels or probabilities are no such.
    """
    variants = []
    for scores, cuts in ((first, first_thresholds), (second, second_thresholds)):
        pairs = list(zip(np.asarray(scores, np.float64), np.asarray(cuts, np.float64), strict=True))
        variants.append([(check_scores(labels, row, both_classes=True)[1], float(cut)) for row, cut in pairs])
    if len(variants[0]) != len(variants[1]):
        raise ValueError(
            f"both variants need the same seeds. Received: first={len(variants[0])}, second={len(variants[1])}"
        )
    labels, seeds = np.asarray(labels, np.int64), len(variants[0])

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        """Differences, (seeds, draws), by metric."""
        both = [
            [weighted_metrics(labels, scores, {"cut": cut}, {}, weights) for scores, cut in variant]
            for variant in variants
        ]
        keys = {
            "auroc": (None, "auroc"),
            "brier": (None, "brier"),
            "sensitivity": ("cut", "sensitivity"),
            "specificity": ("cut", "specificity"),
        }
        return {
            name: np.stack([one[key] - other[key] for one, other in zip(*both, strict=True)])
            for name, key in keys.items()
        }

    picks = np.random.default_rng([seed, 1]).multinomial(seeds, [1 / seeds] * seeds, size=draws) / seeds
    picks = 1 / seeds + (picks - 1 / seeds) * np.sqrt(seeds / max(1, seeds - 1))
    blocks = [values(some) for some in bootstrap_weights(labels, groups, draws, seed)]
    drawn = {name: np.concatenate([block[name] for block in blocks], axis=1) for name in blocks[0]}
    found = {}
    for name, value in values(np.ones((1, len(labels)))).items():
        low, high = np.clip(np.nanpercentile(np.sum(picks.T * drawn[name], axis=0), [2.5, 97.5]), -1, 1)
        found[name] = {"value": float(value.mean()), "low": float(low), "high": float(high)}
    return found


def mcnemar(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> dict[str, float | int]:
    """Test whether two models are wrong equally often on the same images (exact McNemar).

    Args:
        labels: Shape (N,), 0 or 1.
        first, second: Shape (N,), decisions 0 or 1.

    Returns:
        ``first_only`` and ``second_only``: images that only this one got
        right; ``p``: two-sided binomial probability. Images of one patient
        are taken for independent.
    """
    labels, first, second = (check_labels(values) for values in (labels, first, second))
    for name, values in (("first", first), ("second", second)):
        check_same_shape(labels, name, values)
    one = int(((first == labels) & (second != labels)).sum())
    other = int(((first != labels) & (second == labels)).sum())
    return {
        "first_only": one,
        "second_only": other,
        "p": float(binomtest(one, one + other).pvalue) if one + other else 1.0,
    }


def delong(labels: ArrayLike, first: ArrayLike, second: ArrayLike) -> dict[str, float]:
    """Compare two correlated AUROCs (DeLong 1988, by midranks as in Sun and Xu 2014).

    Images of one patient are taken for independent: where patients have
    several, :func:`auroc_difference` is the one to quote.

    Returns:
        ``difference`` (first minus second), ``standard_error``, ``low`` and
        ``high`` (95 %) and ``p`` (two-sided).

    Raises:
        ValueError: A class has fewer than two images, shapes differ, or
            labels or probabilities are no such.
    """
    labels, first = check_scores(labels, first, both_classes=True)
    _, second = check_scores(labels, second)
    positive, negative = labels == 1, labels == 0
    m, n = int(positive.sum()), int(negative.sum())
    if min(m, n) < 2:
        raise ValueError(f"two images of each class are needed. Received: positives={m}, negatives={n}")
    areas, by_positive, by_negative = [], [], []
    for scores in (first, second):
        whole = rankdata(scores)
        inside = np.empty(len(scores))
        inside[positive], inside[negative] = rankdata(scores[positive]), rankdata(scores[negative])
        by_positive.append((whole - inside)[positive] / n)
        by_negative.append(1 - (whole - inside)[negative] / m)
        areas.append(by_positive[-1].mean())
    covariance = np.cov(by_positive) / m + np.cov(by_negative) / n
    contrast = np.array([1.0, -1.0])
    error = float(np.sqrt(max(0.0, contrast @ covariance @ contrast)))
    difference = float(areas[0] - areas[1])
    p = 1.0 if difference == 0 else 0.0 if error == 0 else float(2 * norm.sf(abs(difference) / error))
    return {
        "difference": difference,
        "standard_error": error,
        "low": difference - 1.959964 * error,
        "high": difference + 1.959964 * error,
        "p": p,
    }


def pair_table(
    labels: ArrayLike,
    groups: ArrayLike,
    probabilities: Mapping[str, ArrayLike],
    thresholds: Mapping[str, float],
) -> pd.DataFrame:
    """Compare every two of several models on the same images.

    Args:
        labels: Shape (N,), 0 or 1, both present.
        groups: Shape (N,), the patient group of each image.
        probabilities: Shape (N,) for each model, in the same order.
        thresholds: One for each model, frozen on validation.

    Returns:
        One row a pair: ``first, second``; ``difference`` in AUROC with ``low``
        and ``high`` (:func:`auroc_difference`); ``p_delong`` and
        ``p_mcnemar``, each adjusted for the number of pairs (:func:`holm`;
        NaN for DeLong where a class has fewer than two images);
        ``agree``: share of images on which both decide alike; ``both_wrong``:
        number of images on which neither is right.
    """
    labels, rows = check_labels(labels), []
    enough = np.bincount(labels, minlength=2).min() >= 2
    for one, other in itertools.combinations(probabilities, 2):
        first, second = (np.asarray(probabilities[name], np.float64) for name in (one, other))
        value, low, high = auroc_difference(labels, groups, first, second)
        called, also = (first >= thresholds[one]).astype(int), (second >= thresholds[other]).astype(int)
        rows.append(
            {
                "first": one,
                "second": other,
                "difference": value,
                "low": low,
                "high": high,
                "p_delong": delong(labels, first, second)["p"] if enough else np.nan,
                "p_mcnemar": mcnemar(labels, called, also)["p"],
                "agree": float(np.mean(called == also)),
                "both_wrong": int(((called != labels) & (also != labels)).sum()),
            }
        )
    table = pd.DataFrame(rows)
    for column in ("p_delong", "p_mcnemar") if rows else ():
        table[column] = holm(table[column])
    return table


def holm(p_values: ArrayLike) -> np.ndarray:
    """Adjust p-values of several comparisons (Holm 1979); keeps their order."""
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    adjusted = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)))
    return adjusted[np.argsort(order, kind="stable")]


VARIANT_METRICS = ("auroc", "sensitivity", "specificity", "brier")


def score_variants(
    table: pd.DataFrame,
    variants: Mapping[str, Sequence[str]],
    baseline: str,
    subset: str = "test",
    draws: int = 2000,
) -> dict[str, Any]:
    """Score all variants, and the difference of each to the baseline.

    Every model is calibrated and gets its threshold (Youden) on the
    validation images.

    Args:
        table: One row an image: ``split`` (val and ``subset``), ``label``,
            ``group``, and the raw logits of each model.
        variants: Columns with the logits of each variant, one a seed, in the same
            order of seeds.
        baseline: Arm to compare with.
        subset: Which images are scored.
        draws: Draws of the bootstrap.

    Returns:
        ``{variant: {"seeds": {metric: [values]}, "mean": {…}, "sd": {…},
        "difference": {metric: {"value", "low", "high"}}}}`` for
        :data:`VARIANT_METRICS`; the baseline has no difference, and sd is None for one seed.
    """
    val, rows = table[table["split"] == "val"], table[table["split"] == subset]
    labels, everyone = rows["label"].to_numpy(), np.ones((1, len(rows)))
    scores, cuts, found = {}, {}, {}
    for variant, columns in variants.items():
        scores[variant], cuts[variant], seeds = [], [], []
        for column in columns:
            slope, intercept = calibrate(val[column], val["label"])
            thresholds, _ = choose_thresholds(val["label"], apply_platt(val[column], slope, intercept))
            scores[variant].append(apply_platt(rows[column], slope, intercept))
            cuts[variant].append(thresholds["youden"])
            values = weighted_metrics(labels, scores[variant][-1], {"cut": cuts[variant][-1]}, {}, everyone)
            seeds.append(
                {
                    metric: float(values["cut" if metric.endswith("ity") else None, metric][0])
                    for metric in VARIANT_METRICS
                }
            )
        seeds = pd.DataFrame(seeds)
        found[variant] = {
            "seeds": seeds.to_dict("list"),
            "mean": seeds.mean().to_dict(),
            "sd": seeds.std(ddof=1).to_dict() if len(seeds) > 1 else dict.fromkeys(VARIANT_METRICS),
        }
    for variant in found:
        if variant != baseline:
            found[variant]["difference"] = variant_difference(
                labels, rows["group"], scores[variant], scores[baseline], cuts[variant], cuts[baseline], draws
            )
    return found


def variant_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out mean ± standard deviation over the seeds, one row an variant, as text."""

    def cell(entry: Mapping[str, Any], metric: str) -> str:
        spread = entry["sd"][metric]
        return f"{entry['mean'][metric]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")

    return pd.DataFrame(
        [
            {"variant": variant, **{metric: cell(entry, metric) for metric in VARIANT_METRICS}}
            for variant, entry in scored.items()
        ]
    )


def difference_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out each variant's difference to the baseline, one row a metric: variant, metric, value, low, high."""
    return pd.DataFrame(
        [
            {"variant": variant, "metric": metric, **found}
            for variant, entry in scored.items()
            for metric, found in entry.get("difference", {}).items()
        ]
    )


def conclude(scored: Mapping[str, Any], baseline: str) -> str:
    """Say in words what each variant brought in AUROC over the baseline, whatever it is.

    The number of seeds and of comparisons is named: the intervals are not
    adjusted for the latter.
    """
    seeds = len(scored[baseline]["seeds"]["auroc"])
    sentences = [f"{seeds} seeds, {len(scored) - 1} comparisons, each with its own 95 % interval:"]
    for variant, entry in scored.items():
        if "difference" not in entry:
            continue
        found = entry["difference"]["auroc"]
        verdict = (
            "better than"
            if found["low"] > 0
            else "worse than"
            if found["high"] < 0
            else "not shown to differ from"
        )
        sentences.append(
            f"'{variant}' is {verdict} '{baseline}': AUROC {found['value']:+.4f} "
            f"({found['low']:+.4f} to {found['high']:+.4f})."
        )
    return "\n".join(sentences)


_LEAST = 1e-15  # probability: of a certain answer the log-odds would be infinite


def score_ensemble(tables: Sequence[pd.DataFrame]) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Average the calibrated log-odds of several models, and score the average as a model is scored.

    All weigh the same, so nothing is fitted but the calibration; it and the
    thresholds come from the validation rows alone.

    Args:
        tables: Predictions of the same images (contract 5), matched by
            ``path``; with rows of the split ``val``.

    Returns:
        Predictions of the ensemble in the order of the first table (``path,
        group, subtype, label, split, logit, probability``), and ``thresholds``
        and, by split, ``metrics`` and ``confusion`` as in a result.

    Raises:
        ValueError: Fewer than two tables, or not the same images with the same
            label and split.
    """
    if len(tables) < 2:
        raise ValueError(f"an ensemble has at least two members. Received: tables={len(tables)}")
    found = tables[0][["path", "group", "subtype", "label", "split"]].reset_index(drop=True)
    odds = []
    for table in tables:
        other = found[["path", "label", "split"]].merge(table, on=["path", "label", "split"])
        if not len(other) == len(found) == len(table):
            raise ValueError(
                "the members were scored on different images, labels or splits. "
                f"Received: images={[len(one) for one in tables]}"
            )
        likely = other["probability"].to_numpy(float).clip(_LEAST, 1 - _LEAST)
        odds.append(np.log(likely / (1 - likely)))
    found["logit"] = np.mean(odds, axis=0)
    val = found[found["split"] == "val"]
    found["probability"] = apply_platt(found["logit"], *calibrate(val["logit"], val["label"]))
    thresholds, _ = choose_thresholds(val["label"], found.loc[val.index, "probability"])
    scored: dict[str, Any] = {"thresholds": thresholds, "metrics": {}, "confusion": {}}
    for subset, rows in found.groupby("split", sort=False):
        scored["metrics"][subset], scored["confusion"][subset] = evaluate(
            rows["label"], rows["probability"], rows["group"], thresholds, rows["subtype"]
        )
    return found, scored
