"""Calibration by hand, identities, and what a decision is worth."""

import numpy as np
import pytest
from scipy.special import expit, logit
from scipy.stats import binomtest
from sklearn.linear_model import LogisticRegression

from chestxray.evaluation import calibration as reliability
from chestxray.evaluation.calibration import (
    calibration_metrics,
    decision_curve,
    reliability_table,
    shift_prevalence,
)
from chestxray.evaluation.metrics import roc_band


def drawn(count=4000, slope=1.0, shift=0.0, seed=0):
    """Labels drawn from true log-odds, and probabilities that are off by slope and shift."""
    generator = np.random.default_rng(seed)
    odds = generator.normal(0.5, 1.5, count)
    labels = (generator.random(count) < expit(odds)).astype(int)
    return labels, expit((odds - shift) / slope)


def test_bins_by_hand():
    labels = [0, 0, 1, 0, 1, 1, 1, 1]
    p = [0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.9]
    table = reliability_table(labels, p, bins=2)
    assert table["images"].tolist() == [4, 4]
    assert table["predicted"].tolist() == pytest.approx([0.25, 0.75])
    assert table["observed"].tolist() == [0.25, 1.0]
    wanted = binomtest(1, 4).proportion_ci(method="wilson")
    assert (table["low"][0], table["high"][0]) == pytest.approx((wanted.low, wanted.high))
    # Eight bins of one image each: the calibration error is the mean distance of probability and label.
    ece = calibration_metrics(labels, p, np.arange(8), draws=1)["ece"]["value"]
    assert ece == pytest.approx((0.1 + 0.2 + 0.7 + 0.4 + 0.4 + 0.3 + 0.2 + 0.1) / 8)


def test_ties_leave_fewer_bins():
    table = reliability_table([0, 1, 0, 1], [0.5] * 4)
    assert len(table) == 1 and table["observed"][0] == 0.5


def test_a_calibrated_model_has_slope_1_and_intercept_0():
    labels, p = drawn()
    found = calibration_metrics(labels, p, np.arange(len(labels)), draws=200)
    assert found["slope"]["low"] < 1 < found["slope"]["high"]
    assert found["intercept"]["low"] < 0 < found["intercept"]["high"]
    assert found["ece"]["value"] < 0.03


def test_over_confidence_and_a_shift_are_measured():
    labels, p = drawn(slope=0.5)  # log-odds twice as large as they should be
    found = calibration_metrics(labels, p, np.arange(len(labels)), draws=20)
    assert found["slope"]["value"] == pytest.approx(0.5, abs=0.05)
    labels, p = drawn(shift=0.7)
    found = calibration_metrics(labels, p, np.arange(len(labels)), draws=20)
    assert found["intercept"]["value"] == pytest.approx(0.7, abs=0.1)


def test_brier_and_skill_by_hand():
    labels, p = np.array([0, 1, 1, 1]), np.array([0.5, 0.5, 1.0, 1.0])
    found = calibration_metrics(labels, np.clip(p, 0, 1), np.arange(4), draws=20)
    assert found["brier"]["value"] == pytest.approx(0.125)
    assert found["brier_skill"]["value"] == pytest.approx(1 - 0.125 / 0.1875)


def test_interval_of_a_mean_is_as_wide_as_it_must_be():
    # The Brier score is a mean over films: ± 1.96 standard errors, of each class apart (stratified draws).
    labels, p = drawn(400)
    errors = (p - labels) ** 2
    share = labels.mean()
    wanted = 1.96 * np.sqrt(
        sum(
            subset**2 * errors[labels == label].var() / (labels == label).sum()
            for label, subset in ((1, share), (0, 1 - share))
        )
    )
    found = calibration_metrics(labels, p, np.arange(400), draws=1500)["brier"]
    assert found["high"] - found["value"] == pytest.approx(wanted, rel=0.12)
    assert found["value"] - found["low"] == pytest.approx(wanted, rel=0.12)


def test_saying_the_prevalence_has_no_skill():
    labels = np.repeat([0, 1], [30, 70])
    p = np.full(100, 0.7) + np.linspace(0, 1e-6, 100)
    assert calibration_metrics(labels, p, np.arange(100), draws=20)["brier_skill"]["value"] == pytest.approx(
        0, abs=1e-4
    )


def test_net_benefit_by_hand():
    labels, p = [1, 1, 0, 0, 0], [0.9, 0.3, 0.6, 0.2, 0.1]
    table = decision_curve(labels, p).set_index("threshold").loc[[0.25, 0.5]]
    # At 0.25 two hits and one false alarm at odds 1/3; at 0.5 one of each at odds 1.
    assert table["model"].tolist() == pytest.approx([2 / 5 - 1 / 15, 0.0])
    assert table["all"].tolist() == pytest.approx([2 / 5 - 3 / 15, 2 / 5 - 3 / 5])


def test_shift_of_prevalence_is_bayes_rule():
    # Likelihood ratio 6 at prevalence 0.5: p = 6/7; at 0.1: 6·0.1/(6·0.1 + 0.9) = 0.4
    assert shift_prevalence([6 / 7], 0.5, 0.1) == pytest.approx([0.4])
    p = np.array([0.01, 0.5, 0.999])
    assert shift_prevalence(shift_prevalence(p, 0.7, 0.1), 0.1, 0.7) == pytest.approx(p)
    assert logit(shift_prevalence([0.5], 0.7, 0.1))[0] == pytest.approx(logit(0.1) - logit(0.7))
    with pytest.raises(ValueError, match="Received: prevalence=0.5, new=1.0"):
        shift_prevalence(p, 0.5, 1.0)


def test_normals_in_mixed_patients_only():
    """Draws without a normal film have no skill and no slope; they are left out, and nothing is infinite."""
    groups = np.concatenate([np.arange(40), [0, 1, 2]])
    labels = np.repeat([1, 0], [40, 3])
    p = expit(np.random.default_rng(0).normal(1, 1, 43))
    found = calibration_metrics(labels, p, groups, draws=200)
    for name, entry in found.items():
        assert name == "ece" or np.isfinite(list(entry.values())).all(), name
    assert abs(found["intercept"]["high"]) < 10 and found["brier_skill"]["low"] > -20
    assert np.isfinite(roc_band(labels, p, groups)[1]).all()


def test_slope_is_that_of_scikit_learn():
    labels, p = drawn(300, slope=0.7)
    weights = np.random.default_rng(1).integers(0, 4, (20, 300)).astype(float)
    odds = logit(p)
    wanted = [
        LogisticRegression(C=np.inf, tol=1e-10, solver="newton-cholesky")
        .fit(odds[:, None], labels, sample_weight=row)
        .coef_[0, 0]
        for row in weights
    ]
    assert reliability._slopes(odds, labels, weights) == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize(
    ("positives", "p"),
    [
        (99, np.linspace(1e-7, 2e-7, 100)),  # a first step that is far too long
        (1, np.linspace(1 - 2e-7, 1 - 1e-7, 100)),
        (90, np.tile([0.0, 1.0], 50)),
        (50, np.full(100, 0.3)),
    ],
)
def test_shift_makes_the_mean_probability_the_share_of_positives(positives, p):
    labels = np.arange(100) < positives
    found = calibration_metrics(labels, p, np.arange(100), draws=20)["intercept"]["value"]
    odds = logit(np.clip(p, 1e-7, 1 - 1e-7))
    assert expit(odds + found).mean() == pytest.approx(positives / 100, abs=1e-8)


@pytest.mark.parametrize(
    ("labels", "moment"),
    [
        ([0, 0, 1, 1], None),
        ([1, 1, 0, 0], None),  # separated, also the wrong way round
        ([0, 1, 0, 1], 2),
        ([0, 1, 1, 0], 0),
    ],
)
def test_slope_has_an_end_where_the_classes_overlap(labels, moment):
    odds = np.array([-3.0, -1.0, 1.0, 3.0])
    slope = calibration_metrics(labels, expit(odds), np.arange(4), draws=20)["slope"]["value"]
    if moment is None:
        assert slope is None
    else:  # the sum of odds times p(odds) is that of odds times label; the intercept is 0 by symmetry
        assert 3 * np.tanh(1.5 * slope) + np.tanh(0.5 * slope) == pytest.approx(moment, abs=1e-6)


def test_a_draw_without_a_second_class_has_no_numbers():
    # The one draw takes the groups 2, 1, 0 and 0; the only normal image is in group 3.
    labels, p, groups = [1] * 6 + [0, 1], np.linspace(0.1, 0.9, 8), np.arange(8) // 2
    found = calibration_metrics(labels, p, groups, draws=1)
    assert found["intercept"]["low"] is None and np.isfinite(found["intercept"]["value"])


def test_weighted_slopes_by_hand():
    # At -1 one image of a + 1 is positive, at 1 all but one of a + 1: log-odds -log a and log a.
    odds, labels, most = np.array([-1, -1, 1, 1.0]), np.array([0, 1, 0, 1]), [1, 3, 999, 1e6]
    found = reliability._slopes(odds, labels, np.array([[a, 1, 1, a] for a in most]))
    assert found == pytest.approx(np.log(most), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("gap", [1e-9, 1e-3, 1.0])
def test_nearly_separated_classes_are_fitted(gap):
    odds = np.concatenate([np.linspace(-5, 0, 50), [-gap], np.linspace(0.5, 5, 50)])
    labels = np.repeat([0, 1], [50, 51])
    inputs = np.stack([odds, np.ones(101)], axis=1)
    point = reliability._fit(inputs, 0.0, labels, np.ones((1, 101)))[0]
    assert point[0] > 1  # and there the likelihood is level: as many positives as expected, in the same place
    assert (expit(inputs @ point) - labels) @ inputs == pytest.approx([0, 0], abs=1e-9)
