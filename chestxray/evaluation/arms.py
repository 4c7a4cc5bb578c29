"""What several ways of training are worth, each tried with several seeds on the same images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.evaluation.comparison import arm_difference
from chestxray.evaluation.metrics import weighted_metrics
from chestxray.evaluation.operating import choose_thresholds

ARM_METRICS = ("auroc", "sensitivity", "specificity", "brier")


def score_arms(
    table: pd.DataFrame,
    arms: Mapping[str, Sequence[str]],
    baseline: str,
    part: str = "test",
    draws: int = 2000,
) -> dict[str, Any]:
    """Score all arms, and the difference of each to the baseline.

    Every model is calibrated and gets its threshold (Youden) on the
    validation images.

    Args:
        table: One row an image: ``split`` (val and ``part``), ``label``,
            ``group``, and the raw logits of each model.
        arms: Columns with the logits of each arm, one a seed, in the same
            order of seeds.
        baseline: Arm to compare with.
        part: Which images are scored.
        draws: Draws of the bootstrap.

    Returns:
        ``{arm: {"seeds": {metric: [values]}, "mean": {…}, "sd": {…},
        "difference": {metric: {"value", "low", "high"}}}}`` for
        :data:`ARM_METRICS`; the baseline has no difference, and sd is None for one seed.
    """
    val, rows = table[table["split"] == "val"], table[table["split"] == part]
    labels, everyone = rows["label"].to_numpy(), np.ones((1, len(rows)))
    scores, cuts, found = {}, {}, {}
    for arm, columns in arms.items():
        scores[arm], cuts[arm], seeds = [], [], []
        for column in columns:
            slope, intercept = calibrate(val[column], val["label"])
            thresholds, _ = choose_thresholds(val["label"], apply_platt(val[column], slope, intercept))
            scores[arm].append(apply_platt(rows[column], slope, intercept))
            cuts[arm].append(thresholds["youden"])
            values = weighted_metrics(labels, scores[arm][-1], {"cut": cuts[arm][-1]}, {}, everyone)
            seeds.append(
                {
                    metric: float(values["cut" if metric.endswith("ity") else None, metric][0])
                    for metric in ARM_METRICS
                }
            )
        seeds = pd.DataFrame(seeds)
        found[arm] = {
            "seeds": seeds.to_dict("list"),
            "mean": seeds.mean().to_dict(),
            "sd": seeds.std(ddof=1).to_dict() if len(seeds) > 1 else dict.fromkeys(ARM_METRICS),
        }
    for arm in found:
        if arm != baseline:
            found[arm]["difference"] = arm_difference(
                labels, rows["group"], scores[arm], scores[baseline], cuts[arm], cuts[baseline], draws
            )
    return found


def arm_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out mean ± standard deviation over the seeds, one row an arm, as text."""

    def cell(entry: Mapping[str, Any], metric: str) -> str:
        spread = entry["sd"][metric]
        return f"{entry['mean'][metric]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")

    return pd.DataFrame(
        [
            {"arm": arm, **{metric: cell(entry, metric) for metric in ARM_METRICS}}
            for arm, entry in scored.items()
        ]
    )


def difference_table(scored: Mapping[str, Any]) -> pd.DataFrame:
    """Lay out each arm's difference to the baseline, one row a metric: arm, metric, value, low, high."""
    return pd.DataFrame(
        [
            {"arm": arm, "metric": metric, **found}
            for arm, entry in scored.items()
            for metric, found in entry.get("difference", {}).items()
        ]
    )


def conclude(scored: Mapping[str, Any], baseline: str) -> str:
    """Say in words what each arm brought in AUROC over the baseline, whatever it is.

    The number of seeds and of comparisons is named: the intervals are not
    adjusted for the latter.
    """
    seeds = len(scored[baseline]["seeds"]["auroc"])
    sentences = [f"{seeds} seeds, {len(scored) - 1} comparisons, each with its own 95 % interval:"]
    for arm, entry in scored.items():
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
            f"'{arm}' is {verdict} '{baseline}': AUROC {found['value']:+.4f} "
            f"({found['low']:+.4f} to {found['high']:+.4f})."
        )
    return "\n".join(sentences)
