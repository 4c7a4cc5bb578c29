"""Variants of training over several seeds: scores and conclusions."""

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chestxray.evaluation.calibration import apply_platt, fit_platt
from chestxray.evaluation.comparison import VARIANT_METRICS, conclude, score_variants, variant_table


def scores(seed=0, count=120, good=2.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3 > 0
    return labels.astype(int), generator.normal(0, 1, count) + good * labels


def table(variants):
    """Validation and test, each with the same 120 labels in groups of two images."""
    labels, _ = scores()
    rows = pd.DataFrame(
        {
            "split": np.repeat(["val", "test"], 120),
            "label": np.tile(labels, 2),
            "group": [f"p{number // 2}" for number in range(240)],
        }
    )
    return rows.assign(
        **{
            f"{variant}{seed}": np.concatenate(
                [scores(10 * seed + subset, good=good)[1] for subset in (1, 2)]
            )
            for variant, good in variants.items()
            for seed in (0, 1)
        }
    )


COLUMNS = {"alone": ["alone0", "alone1"], "taught": ["taught0", "taught1"]}


# Scores


def test_scores_of_each_seed():
    rows = table({"alone": 1.0, "taught": 2.0})
    found = score_variants(rows, COLUMNS, "alone")
    val, test = rows[rows["split"] == "val"], rows[rows["split"] == "test"]
    for variant, columns in COLUMNS.items():
        for seed, column in enumerate(columns):
            auroc = roc_auc_score(test["label"], test[column])
            assert found[variant]["seeds"]["auroc"][seed] == pytest.approx(auroc)
            p = apply_platt(test[column], *fit_platt(val[column], val["label"]))
            assert found[variant]["seeds"]["brier"][seed] == pytest.approx(np.mean((p - test["label"]) ** 2))
        assert found[variant]["mean"]["auroc"] == pytest.approx(np.mean(found[variant]["seeds"]["auroc"]))
        assert found[variant]["sd"]["auroc"] == pytest.approx(
            np.std(found[variant]["seeds"]["auroc"], ddof=1)
        )
    assert "difference" not in found["alone"]
    assert found["taught"]["difference"]["auroc"]["value"] == pytest.approx(
        found["taught"]["mean"]["auroc"] - found["alone"]["mean"]["auroc"]
    )


def test_thresholds_come_from_validation():
    # On test the classes are shifted together: a cut chosen there would move along.
    rows = table({"alone": 3.0, "taught": 3.0})
    rows.loc[rows["split"] == "test", "taught0"] += 5
    found = score_variants(rows, COLUMNS, "alone")["taught"]["seeds"]
    assert found["specificity"][0] < 0.1 and found["sensitivity"][0] == 1.0
    assert found["specificity"][1] > 0.7


def test_more_comparisons_give_wider_intervals():
    rows = table({"alone": 1.0, "taught": 2.0})
    one = score_variants(rows, COLUMNS, "alone")["taught"]["difference"]["auroc"]
    both = score_variants(rows, {**COLUMNS, "again": COLUMNS["taught"]}, "alone")["taught"]["difference"][
        "auroc"
    ]
    assert both["value"] == one["value"] and both["low"] < one["low"] and one["high"] < both["high"]


def test_one_seed_has_no_spread():
    found = score_variants(table({"alone": 1.0}), {"alone": ["alone0"]}, "alone", "val")
    assert found["alone"]["sd"] == dict.fromkeys(VARIANT_METRICS)
    assert "±" not in variant_table(found).to_string()


# Words


@pytest.mark.parametrize(
    ("low", "high", "words"),
    [(0.001, 0.02, "better than"), (-0.02, -0.001, "worse than"), (-0.01, 0.02, "not shown to differ from")],
)
def test_conclusion_follows_the_interval(low, high, words):
    entry = {"value": (low + high) / 2, "low": low, "high": high}
    scored = {
        "alone": {"seeds": {"auroc": [0.9, 0.91]}},
        "taught": {"difference": dict.fromkeys(VARIANT_METRICS, entry)},
    }
    said = conclude(scored, "alone")
    assert said.startswith("2 seeds, 1 comparisons")
    assert f"'taught' is {words} 'alone': AUROC {entry['value']:+.4f}" in said
