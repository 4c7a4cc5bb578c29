"""Paired comparison of models and of training variants on the same images. Arguments: see `metrics.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray

from chestxray.evaluation import metrics
from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.evaluation.thresholds import choose_thresholds
from chestxray.schema import check

VARIANT_METRICS = ("auroc", "sensitivity", "specificity", "brier")


def auroc_difference(
    labels: ArrayLike, groups: ArrayLike, first: ArrayLike, second: ArrayLike
) -> tuple[float, float, float]:
    """AUROC of ``first`` minus ``second``, probabilities (N,): ``(value, low, high)`` over patients."""
    labels, first = metrics.check_scores(labels, first, both_classes=True)
    _, second = metrics.check_scores(labels, second)

    def difference(weights: NDArray) -> dict[str, NDArray]:
        aurocs = [metrics.weighted_ranking(labels, scores, weights)[0] for scores in (first, second)]
        return {"auroc": aurocs[0] - aurocs[1]}

    estimate = metrics.bootstrap(difference, labels, groups)["auroc"]
    return tuple(metrics.percentile_interval(*estimate).values())


def _variant_metrics(labels: NDArray, scores: NDArray, threshold: float, weights: NDArray) -> dict:
    values = metrics.weighted_metrics(labels, scores, {"chosen": threshold}, {}, weights)
    return {metric: value for (_, metric), value in values.items() if metric in VARIANT_METRICS}


def seed_weights(seeds: int, draws: int) -> NDArray:
    """Weights (draws, seeds) of bootstrap draws of S training seeds; each row sums to 1.

    Drawing S seeds underestimates their variance by the factor (S − 1)/S. The weights correct it. With two or
    three seeds an interval is still too narrow.
    """
    shares = np.random.default_rng([0, 1]).multinomial(seeds, [1 / seeds] * seeds, size=draws) / seeds
    return 1 / seeds + (shares - 1 / seeds) * np.sqrt(seeds / max(1, seeds - 1))


def variant_difference(
    labels: ArrayLike, groups: ArrayLike, first: Sequence, second: Sequence, comparisons: int = 1
) -> dict[str, dict[str, float]]:
    """Compute the metrics of one variant minus those of another, over patients and training seeds.

    ``first`` and ``second`` have one pair (probabilities (N,), threshold) per seed, with the same seeds in
    the same order (ValueError if their numbers differ). Each draw takes the same patient groups and seeds
    for both variants and averages over the seeds (:func:`seed_weights`). The intervals are adjusted for the
    number of ``comparisons`` (Bonferroni).
    """
    seeds = len(first)
    check(seeds == len(second), "variants must have the same seeds", first=seeds, second=len(second))
    labels = metrics.check_labels(labels, both_classes=True)

    def differences(weights: NDArray) -> dict[str, NDArray]:
        values = [_variant_metrics(labels, *model, weights) for model in (*first, *second)]
        pairs = list(zip(values, values[seeds:]))
        return {name: np.stack([a[name] - b[name] for a, b in pairs]) for name in values[0]}

    estimates = metrics.bootstrap(differences, labels, groups)
    weights, intervals = seed_weights(seeds, estimates["auroc"][1].shape[1]), {}
    for metric, (value, drawn) in estimates.items():
        means = np.clip(np.sum(weights.T * drawn, axis=0), -1, 1)
        intervals[metric] = metrics.percentile_interval(value.mean(), means, comparisons)
    return intervals


def score_variants(
    table: pd.DataFrame, variants: Mapping[str, Sequence[str]], baseline: str, subset: str = "test"
) -> dict[str, Any]:
    """Evaluate all training variants, and the difference of each to the baseline.

    Each model is calibrated on the validation images, where its threshold (Youden) is chosen too. ``table``
    has one row per image: ``split`` (val and ``subset``), ``label``, ``group``, and the raw logits of each
    model. ``variants`` lists the columns of logits of each variant, one per seed, in the same order of seeds.
    Returns ``{variant: {"seeds": {metric: [values]}, "mean": {…}, "sd": {…}, "difference": {…}}}`` for
    :data:`VARIANT_METRICS`. sd is None for one seed; the baseline has no :func:`variant_difference`.
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
        pair = models[variant], models[baseline]
        scored[variant]["difference"] = variant_difference(labels, rows["group"], *pair, len(variants) - 1)
    return scored


def variant_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Mean ± standard deviation over the seeds as text, one row per variant."""
    rows = []
    for variant, entry in scored.items():
        rows.append({"variant": variant})
        for metric in VARIANT_METRICS:
            sd = "" if entry["sd"][metric] is None else f" ± {entry['sd'][metric]:.4f}"
            rows[-1][metric] = f"{entry['mean'][metric]:.4f}{sd}"
    return pd.DataFrame(rows)


def conclude(scored: Mapping[str, Any], baseline: str) -> str:
    """Describe in words how the AUROC of each variant differs from that of the baseline."""
    seeds = len(scored[baseline]["seeds"]["auroc"])
    sentences = [f"{seeds} seeds, {len(scored) - 1} comparisons, 95 % intervals adjusted for their number:"]
    for variant, entry in scored.items():
        if "difference" in entry:
            value, low, high = (entry["difference"]["auroc"][name] for name in ("value", "low", "high"))
            verdict = "better than" if low > 0 else "not shown to differ from" if high >= 0 else "worse than"
            interval = f"AUROC {value:+.4f} ({low:+.4f} to {high:+.4f})"
            sentences.append(f"'{variant}' is {verdict} '{baseline}': {interval}.")
    return "\n".join(sentences)
