"""Several models together: averaged by hand, decided on validation."""

import numpy as np
import pandas as pd
import pytest
from scipy.special import expit

from chestxray.evaluation.comparison import score_ensemble


@pytest.fixture
def tables():
    """Two models that err independently, 200 images of validation and 200 of test."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 400)
    shared = pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(400)],
            "group": np.arange(400).astype(str),
            "subtype": "",
            "label": labels,
            "split": np.repeat(["val", "test"], 200),
        }
    )
    return [shared.assign(probability=expit(2 * labels - 1 + rng.normal(size=400))) for _ in range(2)]


def test_log_odds_are_averaged_by_path(tables):
    first, second = (table.copy() for table in tables)
    first.loc[0, "probability"], second.loc[0, "probability"] = 0.9, 0.6
    found, _ = score_ensemble([first, second[::-1]])
    assert found.loc[0, "logit"] == pytest.approx((np.log(9) + np.log(1.5)) / 2)
    assert list(found["path"]) == list(first["path"])


def test_two_that_err_independently_are_better_than_one(tables):
    alone, together = (
        score_ensemble(some)[1]["metrics"]["test"]["auroc"]["value"] for some in ([tables[0]] * 2, tables)
    )
    expected = [0.9214, 0.9772]  # normal deviates two apart, with variance 1 each and 1/2 of the mean
    assert [alone, together] == pytest.approx(expected, abs=0.03) and together > alone + 0.02


def test_test_labels_change_neither_threshold_nor_probability(tables):
    before, scored = score_ensemble(tables)
    turned = [
        table.assign(label=table["label"].where(table["split"] == "val", 1 - table["label"]))
        for table in tables
    ]
    after, other = score_ensemble(turned)
    assert scored["thresholds"] == other["thresholds"]
    assert before["probability"].tolist() == after["probability"].tolist()
    assert other["metrics"]["test"]["auroc"]["value"] == pytest.approx(
        1 - scored["metrics"]["test"]["auroc"]["value"]
    )


def test_a_certain_member_does_not_make_everything_infinite(tables):
    sure = tables[0].assign(probability=tables[0]["label"].astype(float))
    found, _ = score_ensemble([sure, tables[1]])
    assert np.isfinite(found["logit"]).all()


def test_one_member_or_other_images_are_refused(tables):
    with pytest.raises(ValueError, match="at least two members. Received: tables=1"):
        score_ensemble(tables[:1])
    for other in (
        tables[1][1:],
        tables[1].assign(path=tables[1]["path"].replace("3.png", "other.png")),
        tables[1].assign(split=tables[1]["split"][::-1].to_numpy()),
        tables[1].assign(label=1 - tables[1]["label"]),
    ):
        with pytest.raises(ValueError, match="different images, labels or splits"):
            score_ensemble([tables[0], other])
