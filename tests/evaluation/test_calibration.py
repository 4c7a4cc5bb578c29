"""Tests of chestxray.evaluation.calibration: Platt scaling."""

import math

import numpy as np
import pytest
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from chestxray.evaluation.calibration import apply_platt, fit_platt


def simulate(seed, images, slope, intercept):
    """Return logits and labels with P(label = 1) = sigmoid(slope * logit + intercept)."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(1.0, 2.0, images)
    labels = (rng.random(images) < expit(slope * logits + intercept)).astype(int)
    return logits, labels


def smoothed(labels):
    positives, negatives = np.sum(labels == 1), np.sum(labels == 0)
    return np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))


@pytest.mark.parametrize(("slope", "intercept"), [(1.0, 0.0), (0.4, -1.2), (2.5, 0.7)])
def test_recovers_known_parameters(slope, intercept):
    logits, labels = simulate(0, 100_000, slope, intercept)
    # Standard errors from the Fisher information of logistic regression.
    variance = expit(slope * logits + intercept) * expit(-slope * logits - intercept)
    inputs = np.stack([logits, np.ones_like(logits)])
    errors = np.sqrt(np.diag(np.linalg.inv((inputs * variance) @ inputs.T)))
    assert (errors < 0.04).all()
    deviations = np.subtract(fit_platt(logits, labels), (slope, intercept)) / errors
    assert (np.abs(deviations) < 4).all()


def test_two_logits_worked_out_by_hand():
    # At each logit the fitted probability is the mean target. With 4 positives and 2 negatives
    # the targets are 5/6 and 1/4. At -1: 1 positive, 2 negatives, mean (5/6 + 2/4)/3 = 4/9; at
    # +1: 3 positives, mean 5/6. Log-odds log(4/5) and log(5): half difference and half sum.
    slope, intercept = fit_platt([-1, -1, -1, 1, 1, 1], [1, 0, 0, 1, 1, 1])
    assert slope == pytest.approx((math.log(5) - math.log(0.8)) / 2, abs=1e-6)
    assert intercept == pytest.approx((math.log(5) + math.log(0.8)) / 2, abs=1e-6)


def test_gradient_is_zero_at_the_fit():
    logits, labels = simulate(1, 500, 0.7, -0.5)
    residuals = apply_platt(logits, *fit_platt(logits, labels)) - smoothed(labels)
    assert abs(residuals.mean()) < 1e-7
    assert abs((residuals * logits).mean()) < 1e-7


@pytest.mark.parametrize(("scale", "shift"), [(10.0, 0.0), (1e-3, 0.0), (2.0, 30.0), (-1.0, 0.0)])
def test_fit_follows_scale_and_shift_of_the_logits(scale, shift):
    # slope/scale * (scale x + shift) + (intercept - slope shift/scale) = slope x + intercept
    logits, labels = simulate(2, 400, 0.7, -0.5)
    slope, intercept = fit_platt(logits, labels)
    other = fit_platt(scale * logits + shift, labels)
    expected = (slope / scale, intercept - slope * shift / scale)
    assert other == pytest.approx(expected, rel=1e-5)


def test_auroc_is_unchanged():
    logits, labels = simulate(3, 400, 0.7, -0.5)
    probabilities = apply_platt(logits, *fit_platt(logits, labels))
    assert roc_auc_score(labels, probabilities) == roc_auc_score(labels, logits)


def test_inverted_scores_keep_their_negative_slope():
    logits, labels = simulate(4, 400, -1.0, 0.0)
    slope, _ = fit_platt(logits, labels)
    assert -1.5 < slope < -0.6


@pytest.mark.parametrize("gap", [1e-3, 1.0, 1e4])
def test_perfect_separation_stays_finite(gap):
    # Two distinct logits: the fit gives each side its target, 9/10 for 8 and 1/6 for 4.
    logits, labels = np.repeat([gap, 0.0], [8, 4]), np.repeat([1, 0], [8, 4])
    slope, intercept = fit_platt(logits, labels)
    assert math.isfinite(slope) and math.isfinite(intercept)
    probabilities = apply_platt(logits, slope, intercept)
    np.testing.assert_allclose(probabilities, np.repeat([9 / 10, 1 / 6], [8, 4]), atol=1e-6)


def test_one_image_of_each_class():
    # Targets 2/3 and 1/3.
    probabilities = apply_platt([3.0, -5.0], *fit_platt([3.0, -5.0], [1, 0]))
    np.testing.assert_allclose(probabilities, [2 / 3, 1 / 3], atol=1e-6)


def test_equal_logits_get_the_mean_target():
    # Targets 4/5 three times and 1/3 once.
    slope, intercept = fit_platt([2.0] * 4, [1, 1, 1, 0])
    assert slope == 1
    expected = (3 * 4 / 5 + 1 / 3) / 4
    np.testing.assert_allclose(apply_platt([2.0], slope, intercept), [expected])


def test_apply_is_the_sigmoid_and_does_not_overflow():
    with np.errstate(all="raise", under="ignore"):
        probabilities = apply_platt(np.float32([-1e4, 0.0, 1.0, 1e4]), 2.0, -1.0)
    assert probabilities.dtype == np.float64
    expected = [0, 1 / (1 + math.e), 1 / (1 + math.exp(-1)), 1]
    np.testing.assert_allclose(probabilities, expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("logits", "labels", "end"),
    [
        ([0.1, math.nan], [0, 1], r"logits=\[nan\]"),
        ([0.1, math.inf], [0, 1], r"logits=\[inf\]"),
        ([0.1], [0, 1], r"logits\.shape=\(1,\)"),
        ([0.1, 0.2], [0, 2], r"labels=\[2\]"),
        ([0.1, 0.2], [1, 1], "labels=all 1"),
        ([], [], r"labels\.shape=\(0,\)"),
    ],
)
def test_mistakes_name_what_was_received(logits, labels, end):
    with pytest.raises(ValueError, match=f"Received: {end}$"):
        fit_platt(logits, labels)


def test_apply_refuses_logits_that_are_not_finite():
    with pytest.raises(ValueError, match=r"Received: logits=\[nan\]$"):
        apply_platt([math.nan], 1.0, 0.0)
