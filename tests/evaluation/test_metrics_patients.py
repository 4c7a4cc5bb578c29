"""Intervals count patients: copies of images within their patient change no interval."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from chestxray.deployment.evaluate import report
from chestxray.evaluation.comparison import score_variants
from chestxray.evaluation.metrics import subgroup_table
from chestxray.evaluation.saliency import faithfulness_table, stress_table

COPIES = 3


@pytest.fixture(scope="module")
def rows():
    """160 images of 160 patients, half of them for validation, with the scores of two models."""
    rng, labels = np.random.default_rng(0), np.arange(160) % 2
    table = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(160)],
            "group": np.arange(160),
            "subtype": "",
            "label": labels,
            "split": np.repeat(["val", "test"], 80),
            "site": np.arange(160) // 2 % 2,
        }
    )
    logits = {name: 1.5 * labels - 0.7 + rng.normal(size=160) for name in ("first", "second")}
    return table.assign(**logits, logit=logits["first"], probability=expit(logits["first"]))


def copied(table):
    """Each image thrice, under names of its own, of the same patient."""
    many = table.loc[table.index.repeat(COPIES)].reset_index(drop=True)
    return many.assign(path=many["path"] + many.groupby("path").cumcount().astype(str))


def subgroups(table):
    return subgroup_table(table, "site", 0.5, draws=100)[["auroc", "auroc_low", "auroc_high"]]


def stress(table):
    images = np.zeros((len(table), 16, 16), np.uint8)
    found = stress_table(
        lambda given: table["probability"].to_numpy(),
        images,
        table["label"].to_numpy(),
        table["group"].to_numpy(),
        0.5,
    )
    assert (found["low"] < found["auroc"]).all() and (found["auroc"] < found["high"]).all()
    return found[["auroc", "low", "high"]][:1]  # this model answers all changes alike


def variants(table):
    found = score_variants(table, {"one": ["first"], "other": ["second"]}, "one")["other"]
    return [found["difference"]["auroc"]]


def faithfulness(table):
    curves = {
        "deletion": {
            "map": table[["first", "second"]].to_numpy(),
            "random": table[["second", "first"]].to_numpy() ** 2,
        }
    }
    return faithfulness_table(curves, "map", table["group"])[["gain", "low", "high"]]


def discrimination(table):
    return report(table, CARD)[1][2].set_index("metric")


def calibration(table):
    found = report(table, CARD)[3][2]
    return (
        found[found["calibration"] == "as stored"]
        .set_index("metric")[["value", "low", "high"]]
        .loc[["brier", "brier_skill", "slope", "intercept"]]
    )


CARD = {
    "name": "model",
    "classes": ["NORMAL", "PNEUMONIA"],
    "thresholds": {"youden": 0.5},
    "calibration": {"slope": 1.0, "intercept": 0.0},
}


@pytest.mark.parametrize("found", [subgroups, stress, variants, faithfulness, discrimination, calibration])
def test_copies_change_no_interval(rows, found):
    def numbers(table):
        return pd.DataFrame(found(table)).to_numpy(float).ravel()

    once = numbers(rows)
    assert len(set(once)) > len(once) / 2  # intervals have a width
    assert numbers(copied(rows)) == pytest.approx(once, rel=1e-6, abs=1e-6)
