"""Pairs of models and variants of training, on the same images of both classes; see `metrics.py`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chestxray.evaluation import metrics
from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.evaluation.thresholds import choose_thresholds

VARIANT_METRICS = ("auroc", "sensitivity", "specificity", "brier")


def auroc_difference(
    labels: ArrayLike, groups: ArrayLike, first: ArrayLike, second: ArrayLike
) -> tuple[float, float, float]:
    """Difference in AUROC of two models' probabilities (N,), ``(value, low, high)``, paired over patients."""
    labels, first = metrics.check_scores(labels, first, both_classes=True)
    _, second = metrics.check_scores(labels, second)

    def difference(weights: NDArray) -> dict[str, NDArray]:
        auroc, other = (metrics.weighted_ranking(labels, scores, weights)[0] for scores in (first, second))
        return {"auroc": auroc - other}

    estimate = metrics.bootstrap(difference, labels, groups)["auroc"]
    return tuple(metrics.percentile_interval(*estimate).values())


def pair_table(
    labels: ArrayLike, groups: ArrayLike, probabilities: Mapping[str, ArrayLike], thresholds: Mapping
) -> pd.DataFrame:
    """Compare every two of several models on the same images.

    ``probabilities``, (N,), and ``thresholds``, frozen on validation, have one entry a model. One row a pair:
    ``first, second``; ``difference`` in AUROC with ``low`` and ``high`` (:func:`auroc_difference`);
    ``p_mcnemar``, exact and adjusted for the number of pairs (Holm 1979), which treats images of one patient
    as independent; ``agree``, the share of equal decisions; ``both_wrong``, the number of common errors.
    """
    from statsmodels.stats.contingency_tables import mcnemar
    from statsmodels.stats.multitest import multipletests

    labels, rows = metrics.check_labels(labels), []
    right = {name: (np.asarray(p) >= thresholds[name]) == labels for name, p in probabilities.items()}
    for first, second in itertools.combinations(probabilities, 2):
        value, low, high = auroc_difference(labels, groups, probabilities[first], probabilities[second])
        row = {"first": first, "second": second, "difference": value, "low": low, "high": high}
        a, b = right[first], right[second]
        discordant = [[0, np.sum(a & ~b)], [np.sum(b & ~a), 0]]
        row["p_mcnemar"] = float(mcnemar(discordant, exact=True).pvalue)
        rows.append(row | {"agree": float(np.mean(a == b)), "both_wrong": int(np.sum(~a & ~b))})
    table = pd.DataFrame(rows)
    if rows:
        table["p_mcnemar"] = multipletests(table["p_mcnemar"], method="holm")[1]
    return table


def _variant_metrics(labels: NDArray, scores: NDArray, threshold: float, weights: NDArray) -> dict:
    values = metrics.weighted_metrics(labels, scores, {"chosen": threshold}, {}, weights)
    return {metric: value for (_, metric), value in values.items() if metric in VARIANT_METRICS}


def seed_weights(seeds: int, draws: int) -> NDArray:
    """Weights (draws, seeds) of bootstrap draws of S training seeds; each row sums to 1.

    Drawing S seeds understates their variance by (S − 1)/S, which is corrected; with two or three seeds an
    interval is still too narrow.
    """
    picks = np.random.default_rng([0, 1]).multinomial(seeds, [1 / seeds] * seeds, size=draws) / seeds
    return 1 / seeds + (picks - 1 / seeds) * np.sqrt(seeds / max(1, seeds - 1))


def variant_difference(
    labels: ArrayLike,
    groups: ArrayLike,
    first: Sequence[tuple],
    second: Sequence[tuple],
    comparisons: int = 1,
) -> dict[str, dict[str, float]]:
    """Metrics of one variant of training minus those of another, over patients and training seeds.

    ``first`` and ``second`` hold probabilities, (N,), and threshold of each model of a variant, for the same
    seeds in the same order (ValueError if their numbers differ). Every draw takes patient groups and seeds,
    the same for both variants, and averages over the seeds (:func:`seed_weights`). The intervals are adjusted
    for the number of ``comparisons`` (Bonferroni).
    """
    seeds, others = len(first), len(second)
    if seeds != others:
        raise ValueError(f"both variants need the same seeds. Received: first={seeds}, second={others}")
    labels = metrics.check_labels(labels, both_classes=True)

    def differences(weights: NDArray) -> dict[str, NDArray]:
        values = [_variant_metrics(labels, *model, weights) for model in (*first, *second)]
        pairs = list(zip(values, values[seeds:]))
        return {name: np.stack([a[name] - b[name] for a, b in pairs]) for name in values[0]}

    estimates = metrics.bootstrap(differences, labels, groups)
    picks = seed_weights(seeds, estimates["auroc"][1].shape[1])
    return {
        metric: metrics.percentile_interval(
            value.mean(), np.clip(np.sum(picks.T * drawn, axis=0), -1, 1), comparisons
        )
        for metric, (value, drawn) in estimates.items()
    }


def score_variants(
    table: pd.DataFrame, variants: Mapping[str, Sequence[str]], baseline: str, subset: str = "test"
) -> dict[str, Any]:
    """Score all variants of training, and the difference of each to the baseline.

    Every model is calibrated and gets its threshold (Youden) on the validation images. ``table`` has one row
    an image: ``split`` (val and ``subset``), ``label``, ``group``, and the raw logits of each model.
    ``variants`` are the columns with the logits of each variant, one a seed, in the same order of seeds. The
    result is ``{variant: {"seeds": {metric: [values]}, "mean": {…}, "sd": {…}, "difference": {…}}}`` for
    :data:`VARIANT_METRICS`; sd is None for one seed, and the baseline has no :func:`variant_difference`. The
    intervals of the differences are adjusted for the number of variants that are compared with the baseline.
    """
    val, rows = table[table["split"] == "val"], table[table["split"] == subset]
    labels, every_image = rows["label"].to_numpy(), np.ones((1, len(rows)))
    models, scored = {}, {}
    for variant, columns in variants.items():
        models[variant], seeds = [], []
        for column in columns:
            calibration = calibrate(val[column], val["label"])
            thresholds, _ = choose_thresholds(val["label"], apply_platt(val[column], *calibration))
            models[variant].append((apply_platt(rows[column], *calibration), thresholds["youden"]))
            values = _variant_metrics(labels, *models[variant][-1], every_image)
            seeds.append({metric: float(values[metric][0]) for metric in VARIANT_METRICS})
        seeds = pd.DataFrame(seeds)
        sd = seeds.std(ddof=1).to_dict() if len(seeds) > 1 else dict.fromkeys(VARIANT_METRICS)
        scored[variant] = {"seeds": seeds.to_dict("list"), "mean": seeds.mean().to_dict(), "sd": sd}
    for variant in scored.keys() - {baseline}:
        difference = variant_difference(
            labels, rows["group"], models[variant], models[baseline], len(variants) - 1
        )
        scored[variant]["difference"] = difference
    return scored


def variant_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out mean ± standard deviation over the seeds, one row a variant, as text."""
    rows = []
    for variant, entry in scored.items():
        rows.append({"variant": variant})
        for metric in VARIANT_METRICS:
            sd = "" if entry["sd"][metric] is None else f" ± {entry['sd'][metric]:.4f}"
            rows[-1][metric] = f"{entry['mean'][metric]:.4f}{sd}"
    return pd.DataFrame(rows)


def difference_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out each variant's difference to the baseline: variant, metric, value, low, high."""
    rows = []
    for variant, entry in scored.items():
        differences = entry.get("difference", {}).items()
        rows += [{"variant": variant, "metric": metric, **difference} for metric, difference in differences]
    return pd.DataFrame(rows)


def conclude(scored: Mapping[str, Any], baseline: str) -> str:
    """State how each variant's AUROC differs from the baseline's, by adjusted intervals."""
    seeds = len(scored[baseline]["seeds"]["auroc"])
    sentences = [f"{seeds} seeds, {len(scored) - 1} comparisons, intervals that together hold at 95 %:"]
    for variant, entry in scored.items():
        if "difference" in entry:
            value, low, high = (entry["difference"]["auroc"][name] for name in ("value", "low", "high"))
            verdict = "better than" if low > 0 else "not shown to differ from" if high >= 0 else "worse than"
            interval = f"AUROC {value:+.4f} ({low:+.4f} to {high:+.4f})"
            sentences.append(f"'{variant}' is {verdict} '{baseline}': {interval}.")
    return "\n".join(sentences)
