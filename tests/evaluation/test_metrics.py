"""Tests of chestxray.evaluation.metrics: hand-worked numbers, scikit-learn, simulation."""

import json
import math

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import binomtest, norm
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from chestxray.evaluation import metrics

# The example worked out by hand below: positives at .4, .8, .9, negatives at .1, .4, .6.
LABELS = [0, 0, 1, 1, 0, 1]
SCORES = [0.1, 0.4, 0.4, 0.8, 0.6, 0.9]


RANKING_METRICS = ("auroc", "auprc", "loss", "brier")
THRESHOLD_METRICS = ("accuracy", "balanced_accuracy", "precision", "sensitivity", "specificity", "f1")


def random_split(seed, images=300, groups=120):
    """Return labels, scores with many ties, groups (some with both labels) and subtypes."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, images)
    scores = np.round(np.clip(0.25 * labels + 0.75 * rng.random(images), 0, 1), 2)
    kinds = np.where(labels == 0, "normal", rng.choice(["bacteria", "virus"], images))
    return labels, scores, rng.integers(0, groups, images), kinds


def value_of(metric, labels=LABELS, scores=SCORES):
    """A metric of the probabilities, or of the decisions at 0.5."""
    found, _ = metrics.evaluate(labels, scores, np.arange(len(labels)), {"half": 0.5}, draws=1)
    return (found | found["half"])[metric]["value"]


# Single numbers


def test_auroc_counts_ties_one_half():
    # Nine pairs: .4 beats .1, ties .4, loses to .6 (1.5); .8 and .9 beat all three (6).
    assert value_of("auroc") == pytest.approx(7.5 / 9)


def test_auprc_adds_precision_times_steps_in_recall():
    # Steps of 1/3 at .9 (precision 1/1), .8 (2/2) and .4 (3/5); none at .6.
    assert value_of("auprc") == pytest.approx((1 + 1 + 0.6) / 3)


def test_brier():
    # Squared errors .01 + .16 + .36 + .04 + .36 + .01.
    assert value_of("brier") == pytest.approx(0.94 / 6)


def test_loss():
    # What each label was given: .9, .6, .4, .8, .4, .9.
    product = 0.9 * 0.6 * 0.4 * 0.8 * 0.4 * 0.9
    assert value_of("loss") == pytest.approx(-math.log(product) / 6)


def test_loss_of_a_certain_mistake_is_clipped():
    assert value_of("loss", [1, 0], [0.0, 1.0]) == pytest.approx(-math.log(1e-7))


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.5, {"tp": 2, "fp": 1, "tn": 2, "fn": 1}),
        (0.4, {"tp": 3, "fp": 2, "tn": 1, "fn": 0}),  # a score on the threshold is positive
        (0.0, {"tp": 3, "fp": 3, "tn": 0, "fn": 0}),
        (1.0, {"tp": 0, "fp": 0, "tn": 3, "fn": 3}),
    ],
)
def test_confusion(threshold, expected):
    counts = metrics.confusion(LABELS, SCORES, threshold)
    assert counts == expected
    assert all(type(count) is int for count in counts.values())


def test_rates():
    # 6 of 8 pneumonias and 1 of 4 normals are called.
    labels, scores = [1] * 8 + [0] * 4, [0.9] * 6 + [0.1] * 2 + [0.9] + [0.1] * 3
    found, counts = metrics.evaluate(labels, scores, np.arange(12), {"half": 0.5}, draws=1)
    assert counts["half"] == {"tp": 6, "fp": 1, "tn": 3, "fn": 2}
    assert tuple(found["half"]) == THRESHOLD_METRICS
    assert {name: entry["value"] for name, entry in found["half"].items()} == {
        "accuracy": pytest.approx(9 / 12),
        "balanced_accuracy": pytest.approx((6 / 8 + 3 / 4) / 2),
        "precision": pytest.approx(6 / 7),
        "sensitivity": pytest.approx(6 / 8),
        "specificity": pytest.approx(3 / 4),
        "f1": pytest.approx(12 / 15),
    }


# Intervals


def test_wilson_bounds():
    # z^2 = 3.841459. All of 10 found: 10 / (10 + z^2). 2 of 4: center .5, half width
    # z sqrt(.25/4 + z^2/64) / (1 + z^2/4) = 1.959964 * .350033 / 1.960365 = .349961.
    assert metrics.wilson_interval(10, 10) == pytest.approx((1, 10 / 13.841459, 1), abs=1e-6)
    assert metrics.wilson_interval(2, 4) == pytest.approx((0.5, 0.150039, 0.849961), abs=1e-6)
    for found, total in [(0, 5), (7, 9), (95, 100)]:
        expected = binomtest(found, total).proportion_ci(method="wilson")
        assert metrics.wilson_interval(found, total)[1:] == pytest.approx(tuple(expected))
    assert np.isnan(metrics.wilson_interval(0, 0)).all()


def test_weighted_ranking_agrees_with_scikit_learn():
    labels, scores, groups, _ = random_split(1)
    drawn = np.concatenate(list(metrics.bootstrap_weights(labels, groups, draws=20)))
    other = np.random.default_rng(2).exponential(size=(20, len(labels)))
    weights = np.concatenate([np.ones((1, len(labels))), drawn, other])
    aurocs, auprcs = metrics.weighted_ranking(labels, scores, weights)
    for row, area, steps in zip(weights, aurocs, auprcs, strict=True):
        assert area == pytest.approx(roc_auc_score(labels, scores, sample_weight=row))
        assert steps == pytest.approx(average_precision_score(labels, scores, sample_weight=row))


def test_weighted_ranking_without_a_class_is_nan():
    weights = np.array([[1.0, 0.0], [0.0, 1.0]])  # only the negative, only the positive
    aurocs, auprcs = metrics.weighted_ranking(np.array([0, 1]), np.array([0.9, 0.1]), weights)
    assert np.isnan(aurocs).all()
    assert np.isnan(auprcs[0])
    assert auprcs[1] == 1


def test_weights_draw_whole_groups_within_strata():
    labels = np.array([0, 0, 0, 1, 1, 0, 1, 1])
    groups = np.array(["b", "b", "d", "a", "a", "a", "c", "e"])  # a has both labels, so is positive
    weights = np.concatenate(list(metrics.bootstrap_weights(labels, groups, draws=500)))
    assert weights.shape == (500, 8)
    for name in np.unique(groups):
        member = weights[:, groups == name]
        assert (member == member[:, :1]).all()
    first = weights[:, [0, 2, 3, 6, 7]]  # one image of b, d; a, c, e
    assert (first[:, :2].sum(axis=1) == 2).all()
    assert (first[:, 2:].sum(axis=1) == 3).all()
    # Binomial(2, 1/2) and Binomial(3, 1/3): means 1, variances 1/2 and 2/3.
    np.testing.assert_allclose(first.mean(axis=0), 1, atol=0.15)
    np.testing.assert_allclose(first.var(axis=0), [1 / 2] * 2 + [2 / 3] * 3, atol=0.12)


def test_weights_do_not_depend_on_the_chunks(monkeypatch):
    labels, _, groups, _ = random_split(3)
    whole = list(metrics.bootstrap_weights(labels, groups, draws=50))
    monkeypatch.setattr(metrics, "_CHUNK", 7 * len(labels))
    chunks = list(metrics.bootstrap_weights(labels, groups, draws=50))
    assert [len(chunk) for chunk in whole] == [50]
    assert [len(chunk) for chunk in chunks] == [7] * 7 + [1]
    np.testing.assert_array_equal(np.concatenate(chunks), whole[0])


def test_weights_are_the_same_in_every_call():
    labels, _, groups, _ = random_split(4)
    first, again = (next(metrics.bootstrap_weights(labels, groups, draws=5)) for _ in range(2))
    np.testing.assert_array_equal(first, again)


# Metrics with intervals


def test_evaluate_values_and_layout():
    labels, scores, groups, kinds = random_split(5)
    thresholds = {"youden": 0.61, "sensitivity_95": None, "half": 0.5}
    result, confusion = metrics.evaluate(labels, scores, groups, thresholds, kinds, draws=100)
    assert tuple(result) == (*RANKING_METRICS, "youden", "half")
    assert list(confusion) == ["youden", "half"]
    functions = {"auroc": roc_auc_score, "auprc": average_precision_score, "brier": brier_score_loss}
    for name, function in functions.items():
        assert result[name]["value"] == pytest.approx(function(labels, scores))
        assert result[name]["low"] < result[name]["value"] < result[name]["high"]
    subtypes = ("sensitivity_bacteria", "sensitivity_virus")
    for rule in confusion:
        assert tuple(result[rule]) == THRESHOLD_METRICS + subtypes
        assert confusion[rule] == metrics.confusion(labels, scores, thresholds[rule])
        decisions = scores >= thresholds[rule]
        rates = {
            "accuracy": accuracy_score,
            "balanced_accuracy": balanced_accuracy_score,
            "precision": precision_score,
            "sensitivity": recall_score,
            "f1": f1_score,
        }
        for name, rate in rates.items():
            entry = result[rule][name]
            assert entry["value"] == pytest.approx(rate(labels, decisions))
            assert entry["low"] < entry["value"] < entry["high"]
        for kind in ("bacteria", "virus"):
            share = np.mean(scores[kinds == kind] >= thresholds[rule])
            assert result[rule][f"sensitivity_{kind}"]["value"] == pytest.approx(share)
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_evaluate_bounds_are_percentiles_of_metrics_of_the_draws():
    labels, scores, groups, _ = random_split(6)
    result, _ = metrics.evaluate(labels, scores, groups, {"half": 0.5}, draws=60)
    rows = np.concatenate(list(metrics.bootstrap_weights(labels, groups, draws=60)))
    decisions = scores >= 0.5
    loss = -np.log(np.where(labels == 1, scores, 1 - scores).clip(1e-7, 1 - 1e-7))
    expected = {
        "auroc": [roc_auc_score(labels, scores, sample_weight=row) for row in rows],
        "loss": [np.average(loss, weights=row) for row in rows],
        "brier": [np.average((scores - labels) ** 2, weights=row) for row in rows],
        "precision": [precision_score(labels, decisions, sample_weight=row) for row in rows],
        "f1": [f1_score(labels, decisions, sample_weight=row) for row in rows],
    }
    for name, values in expected.items():
        interval = result[name] if name in RANKING_METRICS else result["half"][name]
        bounds = [interval["low"], interval["high"]]
        np.testing.assert_allclose(bounds, np.percentile(values, [2.5, 97.5]))


def test_subtypes_appear_only_when_there_are_positive_images_of_them():
    labels, scores, groups, _ = random_split(7)
    kinds = np.where(labels == 1, "virus", "bacteria")  # a negative image is no bacterial case
    result, _ = metrics.evaluate(labels, scores, groups, {"half": 0.5}, kinds, draws=10)
    assert tuple(result["half"]) == (*THRESHOLD_METRICS, "sensitivity_virus")
    assert result["half"]["sensitivity_virus"] == result["half"]["sensitivity"]
    result, _ = metrics.evaluate(labels, scores, groups, {"half": 0.5}, draws=10)
    assert tuple(result["half"]) == THRESHOLD_METRICS


def test_copies_within_a_group_change_nothing():
    labels, scores, groups, kinds = random_split(9)
    once = metrics.evaluate(labels, scores, groups, {"half": 0.5}, kinds, draws=200)[0]
    thrice = (np.repeat(column, 3) for column in (labels, scores, groups))
    copied = metrics.evaluate(*thrice, {"half": 0.5}, np.repeat(kinds, 3), draws=200)[0]
    for name in RANKING_METRICS:
        assert copied[name] == pytest.approx(once[name])
    for name in once["half"]:
        assert copied["half"][name] == pytest.approx(once["half"][name])


def test_copies_taken_for_patients_make_the_interval_too_narrow():
    # Four copies halve the standard error of an analysis that takes them for patients.
    labels, scores, _, _ = (np.repeat(column, 4) for column in random_split(10))

    def width(groups, metric):
        result, _ = metrics.evaluate(labels, scores, groups, {"half": 0.5}, draws=500)
        interval = result.get(metric) or result["half"][metric]
        return interval["high"] - interval["low"]

    for metric in ("auroc", "brier", "sensitivity"):
        grouped, alone = (width(g, metric) for g in (np.arange(1200) // 4, np.arange(1200)))
        assert 1.6 < grouped / alone < 2.5


def test_interval_covers_the_truth_about_as_often_as_it_says():
    # 60 patients a class, 3 images each, logit = +-0.5 + patient + image noise (variances 1, .25).
    # Truth: sensitivity at 0.5 = P(logit > 0), AUROC = P(difference of two logits > 0).
    truth = {"sensitivity": norm.cdf(0.5 / 1.25**0.5), "auroc": norm.cdf(1 / 2.5**0.5)}
    rng = np.random.default_rng(11)
    labels, groups, runs = np.repeat([0, 1], 180), np.arange(360) // 3, 250
    hits = {(metric, by): 0 for metric in truth for by in ("patient", "image")}
    for _ in range(runs):
        patient = np.repeat(rng.normal(size=120), 3)
        scores = expit(labels - 0.5 + patient + rng.normal(scale=0.5, size=360))
        for by, units in (("patient", groups), ("image", np.arange(360))):
            result, _ = metrics.evaluate(labels, scores, units, {"half": 0.5}, draws=200)
            result["sensitivity"] = result["half"]["sensitivity"]
            for metric, value in truth.items():
                hits[metric, by] += result[metric]["low"] <= value <= result[metric]["high"]
    for metric in truth:
        # 95 % less what the percentile bootstrap of 60 patients loses; one standard error is 1.5 %.
        assert 0.89 <= hits[metric, "patient"] / runs <= 0.985
        assert hits[metric, "image"] / runs < 0.86


def test_undefined_metrics_are_none():
    result, _ = metrics.evaluate([0, 1, 0, 1], [0.1, 0.2, 0.3, 0.4], [1, 2, 3, 4], {"half": 0.5})
    assert result["half"]["precision"] == {"value": None, "low": None, "high": None}
    assert result["half"]["specificity"]["value"] == result["half"]["specificity"]["high"] == 1


def test_draws_without_a_value_are_left_out():
    # Only one of ten negative groups is called positive, no positive one: precision is 0, or
    # undefined in the 0.9^10 = 35 % of draws without that group.
    labels, scores = [0] * 10 + [1] * 10, [0.9] + [0.1] * 19
    result, _ = metrics.evaluate(labels, scores, np.arange(20), {"half": 0.5})
    low, high = metrics.wilson_interval(0, 1)[1:]  # the draws with a value all give 0, by one patient
    assert result["half"]["precision"] == {"value": 0.0, "low": low, "high": high}


# Mistakes


@pytest.mark.parametrize(
    ("call", "end"),
    [
        (lambda: value_of("loss", [0, 1], [0.5]), r"probabilities\.shape=\(1,\)"),
        (lambda: value_of("brier", [], []), r"labels\.shape=\(0,\)"),
        (lambda: value_of("brier", [[0], [1]], [0.5, 0.5]), r"labels\.shape=\(2, 1\)"),
        (lambda: value_of("auroc", [0, 1, 2], [0.1, 0.2, 0.3]), r"labels=\[2\]"),
        (lambda: value_of("auroc", [0, math.nan], [0.1, 0.2]), r"labels=\[nan\]"),
        (lambda: value_of("auroc", [0, 0], [0.1, 0.2]), "labels=all 0"),
        (lambda: value_of("auprc", [1, 1], [0.1, 0.2]), "labels=all 1"),
        (lambda: value_of("loss", [0, 1], [0.1, math.nan]), r"probabilities=\[nan\]"),
        (lambda: value_of("loss", [0, 1], [-0.1, 1.5]), r"probabilities=\[-0\.1, 1\.5\]"),
        (lambda: metrics.confusion([0, 1], [0.1, 0.2], 1.5), r"threshold=1\.5"),
        (lambda: metrics.confusion([0, 1], [0.1, 0.2], math.nan), "threshold=nan"),
        (lambda: metrics.evaluate([0, 0], [0.1, 0.2], [1, 2], {}), "labels=all 0"),
        (lambda: metrics.evaluate([0, 1], [0.1, 0.2], [1], {}), r"groups\.shape=\(1,\)"),
        (lambda: metrics.evaluate([0, 1], [0.1, 0.2], ["a", None], {}), r"groups=\[None\]"),
        (lambda: metrics.evaluate([0, 1], [0.1, 0.2], [1, math.nan], {}), r"groups=\[nan\]"),
        (lambda: metrics.evaluate([0, 1], [0.1, 0.2], [1, 2], {}, draws=0), "draws=0"),
        (lambda: metrics.evaluate([0, 1], [0.1, 0.2], [1, 2], {"x": 2.0}), r"threshold=2\.0"),
        (lambda: metrics.evaluate([0, 1], [0.1, 0.2], [1, 2], {}, ["virus"]), r"subtypes\.shape=\(1,\)"),
    ],
)
def test_mistakes_name_what_was_received(call, end):
    with pytest.raises(ValueError, match=f"Received: {end}$"):
        call()


def test_roc_band_by_hand():
    # All normals score the same, half of 200 pneumonias above them: sensitivity is 0.5 at specificity 1, and
    # rises along a straight line to 1. There it is a binomial share: 0.5 ± 1.96 · sqrt(0.25 / 200).
    labels = np.repeat([0, 1], 200)
    scores = np.where(labels == 0, 0.5, np.where(np.arange(400) % 2, 0.9, 0.1))
    grid, low, high = metrics.roc_band(labels, scores, np.arange(400))
    half = 1.96 * (0.25 / 200) ** 0.5
    assert (low[1], high[1]) == pytest.approx((0.5 - half, 0.5 + half), abs=0.01)
    assert (low[-1], high[-1]) == (1, 1)


def test_bounds_need_half_of_the_draws():
    # The one call is made in some draws only; where it is not, there is no precision.
    labels, scores, groups = [0, 0, 1, 1], [0.1, 0.2, 0.3, 0.9], [0, 1, 2, 3]
    seen = set()
    for draws in range(1, 12):
        weights = np.concatenate(list(metrics.bootstrap_weights(labels, groups, draws)))
        undefined = 2 * (weights[:, 3] > 0).sum() < draws
        found, _ = metrics.evaluate(labels, scores, groups, {"chosen": 0.5}, draws=draws)
        precision = found["chosen"]["precision"]
        assert (precision["low"] is None) == undefined and precision["value"] == 1
        seen.add(bool(undefined))
    assert seen == {True, False}
    drawn = np.array([np.nan, np.nan, 0.5])
    assert metrics.percentile_interval(1.0, drawn) == {"value": 1.0, "low": None, "high": None}
    assert metrics.percentile_interval(1.0, drawn[1:]) == {"value": 1.0, "low": 0.5, "high": 0.5}


def test_interval_of_four_comparisons_leaves_a_quarter_of_the_tails():
    entry = metrics.percentile_interval(500.0, np.arange(1001.0), comparisons=4)
    assert entry == {"value": 500.0, "low": 6.25, "high": 993.75}  # 2.5 % / 4 on each side


def test_roc_band_holds_the_curve_and_narrows_with_more_patients():
    widths = []
    for count in (100, 1600):
        rng = np.random.default_rng(0)
        labels = np.arange(count) % 2
        scores = expit(labels + rng.normal(0, 1, count))
        grid, low, high = metrics.roc_band(labels, scores, np.arange(count))
        positives, negatives = scores[labels == 1], np.sort(scores[labels == 0])
        curve = [(positives > negatives[-1 - int(share * len(negatives))]).mean() for share in grid[1:-1]]
        assert (low[1:-1] - 0.03 <= curve).all() and (curve <= high[1:-1] + 0.03).all()
        widths.append((high - low).mean())
    assert widths[1] == pytest.approx(widths[0] / 4, rel=0.3)  # 16 times the patients


def test_a_value_without_errors_has_no_interval_of_width_zero():
    # Wilson for 10 of 10 patients: 1 / (1 + 1.96² / 10) = 0.7225; images of one patient count once.
    labels, groups = np.repeat([0, 1], 20), np.repeat(np.arange(20), 2)
    found, _ = metrics.evaluate(labels, np.where(labels == 1, 0.9, 0.1), groups, {"half": 0.5}, draws=50)
    for metric in ("sensitivity", "specificity", "precision"):
        assert found["half"][metric]["value"] == found["half"][metric]["high"] == 1
        assert found["half"][metric]["low"] == pytest.approx(0.7225, abs=1e-4)
    assert found["half"]["accuracy"]["low"] == pytest.approx(0.8389, abs=1e-4)  # 20 of 20
    for entry in (found["auroc"], found["half"]["f1"], found["half"]["balanced_accuracy"]):
        assert entry == {"value": 1, "low": pytest.approx(0.7225, abs=1e-4), "high": 1}
    none, _ = metrics.evaluate(labels, np.full(40, 0.1), groups, {"half": 0.5}, draws=50)
    assert none["half"]["sensitivity"]["value"] == 0
    assert none["half"]["sensitivity"]["high"] == pytest.approx(1 - 0.7225, abs=1e-4)
