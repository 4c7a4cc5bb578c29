"""The rule by which the framing experiment chooses a recipe, on numbers worked out by hand."""

import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from chestxray.files import project_path

LABELS = np.array([0, 0, 1, 1] * 10)
ROWS = pd.DataFrame({"label": LABELS, "group_conservative": [f"p{n}" for n in range(40)]})
DATA = SimpleNamespace(subset=lambda _: ROWS)
RIGHT = LABELS + np.tile([0.0, 0.1, 0.2, 0.3], 10)  # AUROC 1
TIED = np.zeros(40)  # AUROC 0.5


@pytest.fixture
def report(monkeypatch):
    monkeypatch.syspath_prepend(str(project_path("benchmarks")))
    import framing_report

    yield framing_report
    sys.modules.pop("framing_report"), sys.modules.pop("framing", None)


def run(val, *reframed):
    return {"val": val, "other": np.stack(reframed), "zoom": np.stack(reframed[::-1])}


def test_the_measure_is_the_worse_of_plain_and_the_mean_of_the_reframed(report):
    one = np.ones((1, 40))
    assert report.worse_of_two(LABELS, run(RIGHT, RIGHT, TIED), one, "other") == [0.75]
    assert report.worse_of_two(LABELS, run(RIGHT, RIGHT, -RIGHT), one, "other") == [0.5]
    assert report.worse_of_two(LABELS, run(TIED, RIGHT, RIGHT), one, "other") == [0.5]  # plain is worse


def test_the_simplest_that_is_not_shown_to_be_worse_is_chosen(report):
    good, framed = run(RIGHT, RIGHT, RIGHT), run(RIGHT, -RIGHT, -RIGHT)
    equal = report.choose(DATA, {"lung_box": [good] * 3, "scaling": [good] * 3, "squash": [framed] * 3})
    assert equal["chosen"] == "scaling"
    assert equal["measure"]["squash"]["mean"] == 0 and equal["measure"]["lung_box"]["mean"] == 1
    (squash,) = [row for row in equal["minus_best"] if row["cell"] == "squash"]
    assert squash["value"] == squash["low"] == squash["high"] == -1 and squash["p_holm"] < 0.05
    alone = report.choose(DATA, {"lung_box": [good] * 3, "squash": [framed] * 3})
    assert alone["best"] == alone["chosen"] == "lung_box"


def test_the_choice_for_all_networks_is_tied_in_each(report):
    small, large = {"tied": ["scaling", "lung_box"]}, {"tied": ["lung_box", "lung_box_style"]}
    assert report.choose_for_all([small, large]) == "lung_box"
    assert report.choose_for_all([small, {"tied": ["squash"]}]) is None
    assert report.choose_for_all([small, {}]) is None


def test_the_fall_of_specificity_by_hand(report):
    moved = np.where(LABELS == 0, RIGHT + np.tile([5.0, 0, 0, 0], 10), RIGHT)  # half of the normals
    fall = report.fall(DATA, [{"val": RIGHT, "zoom": np.stack([moved, RIGHT])}] * 3)
    assert fall["value"] == pytest.approx(-0.25)  # in one of two draws
    assert fall["low"] < -0.25 < fall["high"] < 0
