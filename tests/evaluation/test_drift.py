"""Drift that is there is found, and none is found where none is."""

import numpy as np
import pandas as pd
import pytest
from scipy.stats import ks_2samp

from chestxray.evaluation.drift import (
    describe_reference,
    drift_table,
    kolmogorov_smirnov,
    population_stability,
)


def reference_of(values):
    return describe_reference({"x": values})["quantiles"]["x"]


def test_psi_by_hand():
    quantiles = reference_of(np.arange(101))  # deciles at 10, 20, …, 90
    # Half of the images in the lowest bin, half in the highest; the eight others count half an image.
    values = [5.0] * 50 + [95.0] * 50
    wanted = 2 * (0.5 - 0.1) * np.log(5) + 8 * (0.005 - 0.1) * np.log(0.05)
    assert population_stability(quantiles, values) == pytest.approx(wanted)
    assert population_stability(quantiles, np.repeat(np.arange(10) * 10 + 5.0, 7)) == pytest.approx(0)


def test_psi_of_a_reference_with_ties():
    quantiles = reference_of([0.0] * 50 + [1.0] * 51)
    assert population_stability(quantiles, [0.0] * 10 + [1.0] * 10) == pytest.approx(0, abs=0.01)
    assert population_stability(quantiles, [1.0] * 20) > 1


@pytest.mark.parametrize("shift", [0.0, 0.3])
def test_ks_is_scipys_up_to_the_summary_by_quantiles(shift):
    generator = np.random.default_rng(0)
    before, now = generator.normal(0, 1, 900), generator.normal(shift, 1, 400)
    distance, p = kolmogorov_smirnov(reference_of(before), 900, now)
    wanted = ks_2samp(before, now, method="asymp")
    assert distance == pytest.approx(wanted.statistic, abs=0.01)
    assert p == pytest.approx(wanted.pvalue, rel=0.35)


def test_ks_of_ties():
    quantiles = reference_of([0.0] * 30 + [1.0] * 70)
    assert kolmogorov_smirnov(quantiles, 100, [0.0] * 30 + [1.0] * 70)[0] == pytest.approx(0, abs=0.011)
    assert kolmogorov_smirnov(quantiles, 100, [0.0] * 100)[0] == pytest.approx(0.7, abs=0.011)
    assert kolmogorov_smirnov(quantiles, 100, [2.0] * 100)[0] == pytest.approx(1)


def test_nothing_changed_is_seldom_called_a_change(monkeypatch):
    monkeypatch.setattr("gc.collect", lambda: 0)  # statsmodels calls it for every table
    generator, alarms = np.random.default_rng(1), 0
    for _ in range(200):
        reference = describe_reference({name: generator.normal(size=500) for name in "abc"})
        alarms += (
            drift_table(reference, {name: generator.normal(size=300) for name in "abc"})["verdict"]
            != "no change seen"
        ).any()
    assert alarms <= 20  # 5 % of 200 are 10; binomial, 3 standard deviations


def test_a_planted_change_is_named():
    generator = np.random.default_rng(2)
    reference = describe_reference(
        {"brightness": generator.normal(100, 10, 800), "contrast": generator.normal(50, 5, 800)}
    )
    table = drift_table(
        reference, {"brightness": generator.normal(115, 10, 300), "contrast": generator.normal(50, 5, 300)}
    ).set_index("what")
    assert table["verdict"].to_dict() == {"brightness": "large change", "contrast": "no change seen"}
    assert table.loc["brightness", "now"] == pytest.approx(115, abs=2)
    assert table.loc["brightness", "before"] == pytest.approx(100, abs=1)


def test_what_chance_alone_gives_is_no_large_change():
    # 40 images in the upper seven bins of ten, none in the lower three: PSI is large, but with so few images
    # 9 (1/40 + 1/1000) = 0.23 of it is chance.
    reference = describe_reference({"x": np.arange(1000.0)})
    now = 50 + 100 * np.repeat([1, 2, 3, 4, 5, 6, 7, 8, 9], [2, 3, 3, 4, 5, 5, 6, 6, 6])
    row = drift_table(reference, {"x": now}).iloc[0]
    assert 0.25 < row["psi"] < 0.25 + row["psi_by_chance"] and row["p"] < 0.05
    assert row["verdict"] == "changed"


def test_psi_by_chance_is_what_chance_gives():
    generator = np.random.default_rng(3)
    psi = [
        population_stability(reference_of(generator.normal(size=400)), generator.normal(size=400))
        for _ in range(150)
    ]
    table = drift_table(describe_reference({"x": np.arange(400)}), {"x": np.arange(400)})
    assert np.mean(psi) == pytest.approx(table["psi_by_chance"][0], rel=0.2)


def test_a_table_is_described_as_a_dictionary_is():
    values = {"logit": [0.0, 1.0, 3.0], "sharpness": [5.0, 6.0, 7.0]}
    assert describe_reference(pd.DataFrame(values)) == describe_reference(values)
    assert describe_reference(values)["images"] == 3
