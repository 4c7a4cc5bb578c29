"""Subgroups by hand."""

import numpy as np
import pandas as pd
import pytest

from chestxray.evaluation.metrics import subgroup_table


def table_of(**columns):
    rows = pd.DataFrame({"label": [0, 0, 1, 1] * 3, "probability": [0.1, 0.6, 0.4, 0.9] * 3} | columns)
    return rows.assign(group=rows.index)


def test_each_value_is_scored_apart():
    found = subgroup_table(table_of(site=["a"] * 4 + ["b"] * 8), "site", 0.5, draws=20).set_index("value")
    assert found["images"].to_dict() == {"a": 4, "b": 8} and found["pneumonia"].to_dict() == {"a": 2, "b": 4}
    assert found["auroc"].tolist() == [0.75, 0.75]  # .1 < .4, .1 < .9, .6 < .9, but .6 > .4
    assert found["sensitivity"].tolist() == [0.5, 0.5] and found["specificity"].tolist() == [0.5, 0.5]
    assert found.loc["b", "sensitivity_low"] == pytest.approx(0.150039, abs=1e-6)  # Wilson, 2 of 4
    assert (found["note"] == "few images (under 30) of a class").all()


def test_a_planted_difference_is_seen():
    generator = np.random.default_rng(0)
    labels, site = generator.integers(0, 2, 800), np.repeat(["good", "poor"], 400)
    shift = np.where(site == "good", 3.0, 0.5) * labels
    p = 1 / (1 + np.exp(-(shift + generator.normal(0, 1, 800) - 1)))
    rows = pd.DataFrame({"label": labels, "probability": p, "group": np.arange(800), "site": site})
    found = subgroup_table(rows, "site", 0.5, draws=200).set_index("value")
    assert found.loc["good", "auroc_low"] > found.loc["poor", "auroc_high"]
    assert (found["note"] == "").all()


def test_many_numbers_are_cut_into_thirds_and_missing_ones_are_a_group():
    ages = [1, 2, 3, 4, 5, 6, 7, 8, 9, np.nan, np.nan, np.nan]
    found = subgroup_table(table_of(age=ages), "age", 0.5, draws=20)
    assert found["value"].tolist() == ["1: 1 to 3", "2: 4 to 6", "3: 7 to 9", "unknown"]
    assert found["images"].tolist() == [3, 3, 3, 3]


def test_few_different_numbers_stay_as_they_are():
    found = subgroup_table(table_of(age=[1, 2, 5, 6, 7, 9] * 2), "age", 0.5, draws=20)
    assert found["value"].tolist() == ["1", "2", "5", "6", "7", "9"]
    found = subgroup_table(table_of(age=[1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 4, 5]), "age", 0.5, draws=20)
    assert len(found) == 3


def test_many_images_of_one_class_do_not_make_up_for_few_of_the_other():
    rows = pd.DataFrame(
        {
            "label": [1] * 29 + [0] * 100,
            "probability": np.linspace(0.1, 0.9, 129),
            "group": np.arange(129),
            "site": "a",
        }
    )
    found = subgroup_table(rows, "site", 0.5, draws=20)
    assert found["note"].tolist() == ["few images (under 30) of a class"]


def test_a_group_of_one_class_has_no_auroc():
    found = subgroup_table(table_of(site=["n", "n", "p", "p"] * 3), "site", 0.5, draws=20).set_index("value")
    assert np.isnan(found["auroc"]).all()
    assert np.isnan(found.loc["n", "sensitivity"]) and found.loc["n", "specificity"] == 0.5


def test_an_unknown_column_names_the_ones_there_are():
    with pytest.raises(ValueError, match=r"\['group', 'label', 'probability'\]. Received: by='sex'"):
        subgroup_table(table_of(), "sex", 0.5)


def test_large_numbers_keep_their_thirds():
    found = subgroup_table(table_of(date=np.arange(20200101, 20200113)), "date", 0.5, draws=20)
    assert found["value"].tolist() == [
        "1: 20200101 to 20200104",
        "2: 20200105 to 20200108",
        "3: 20200109 to 20200112",
    ]
