"""Decisions at frozen thresholds, by hand."""

import re

import numpy as np
import pytest
from scipy.stats import binomtest

from chestxray.evaluation import metrics
from chestxray.evaluation.thresholds import choose_thresholds, choose_triage, operating_points, triage_table

# Positives at .4, .8, .9, negatives at .1, .4, .6.
LABELS = [0, 0, 1, 1, 0, 1]
SCORES = [0.1, 0.4, 0.4, 0.8, 0.6, 0.9]
# 9 of 10 found, 18 of 20 cleared.
SICK_AND_WELL = np.repeat([1, 0], [10, 20])
CALLS = np.concatenate([[0.2] + [0.8] * 9, [0.9] * 2 + [0.1] * 18])


def random_scores(seed):
    """Labels and scores with many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, 300)
    return labels, np.round(np.clip(0.25 * labels + 0.75 * rng.random(300), 0, 1), 2)


def test_youden_cut_lies_between_scores():
    # J at .25: 1 + 1/3 - 1; at .5: 2/3 + 2/3 - 1; at .7: 2/3 + 1 - 1, the largest; at .85: 1/3.
    thresholds, _ = choose_thresholds(LABELS, SCORES)
    assert thresholds["youden"] == pytest.approx(0.7)
    assert thresholds["half"] == 0.5


def test_youden_ties_go_to_the_higher_sensitivity():
    # J is 1/2 at .2 (sensitivity 1, specificity 1/2) and at .6 (1/2 and 1), 0 at .4.
    thresholds, _ = choose_thresholds([0, 1, 0, 1], [0.1, 0.3, 0.5, 0.7])
    assert thresholds["youden"] == pytest.approx(0.2)


def test_youden_ties_are_exact():
    # J is 2/2 + 2/6 - 1 at .2 and 1/2 + 5/6 - 1 at .5: equal, but in floats the second is larger.
    assert 2 / 2 + 2 / 6 - 1 < 1 / 2 + 5 / 6 - 1
    labels, scores = [0, 0, 1, 0, 0, 0, 1, 0], [0.1, 0.1, 0.3, 0.4, 0.4, 0.4, 0.6, 0.7]
    thresholds, _ = choose_thresholds(labels, scores)
    assert thresholds["youden"] == pytest.approx(0.2)


def test_scores_that_are_all_equal_or_inverted_call_everything_positive():
    for scores in ([0.3, 0.3], [0.9, 0.1], [0.0, 0.0]):
        thresholds, _ = choose_thresholds([0, 1], scores)
        assert metrics.confusion([0, 1], scores, thresholds["youden"])["tp"] == 1
        assert thresholds["youden"] == 0


def test_youden_agrees_with_a_search_over_all_thresholds():
    for seed in range(20):
        labels, scores = random_scores(seed)
        thresholds, _ = choose_thresholds(labels, scores)

        def youden(cut, labels=labels, scores=scores):
            found = metrics.confusion(labels, scores, cut)
            return found["tp"] / (found["tp"] + found["fn"]) + found["tn"] / (found["tn"] + found["fp"]) - 1

        best = max(youden(cut) for cut in np.linspace(0, 1, 401))
        assert youden(thresholds["youden"]) == pytest.approx(best)


def test_sensitivity_95_needs_73_positives():
    # n / (n + z^2) >= .95 from n = 19 z^2 = 72.99 on.
    def choose(positives):
        labels = [0] * 5 + [1] * positives
        return choose_thresholds(labels, [0.2] * 5 + [0.8] * positives)

    thresholds, reasons = choose(73)
    assert thresholds["sensitivity_95"] == pytest.approx(0.5)
    assert reasons == {}
    thresholds, reasons = choose(72)
    assert thresholds["sensitivity_95"] is None
    assert list(reasons) == ["sensitivity_95"]
    assert re.findall(r"\b7\d\b", reasons["sensitivity_95"]) == ["72", "73"]


def test_sensitivity_95_is_the_highest_cut_that_suffices():
    # 200 positives at .600, .601, ...: scipy says how many may be missed.
    scores = np.concatenate([np.linspace(0, 0.5, 50), 0.6 + np.arange(200) / 1000])
    labels = np.repeat([0, 1], [50, 200])
    low = [binomtest(200 - k, 200).proportion_ci(method="wilson").low for k in range(10)]
    missed = max(k for k in range(10) if low[k] >= 0.95)
    assert 0 < missed < 9
    thresholds, _ = choose_thresholds(labels, scores)
    assert thresholds["sensitivity_95"] == pytest.approx(0.6 + (missed - 0.5) / 1000)


def test_decisions_survive_float_noise():
    rng = np.random.default_rng(0)
    labels, scores = random_scores(0)
    thresholds, _ = choose_thresholds(labels, scores)
    noisy = np.clip(scores + rng.uniform(-1e-6, 1e-6, scores.shape), 0, 1)
    for rule in ("youden", "sensitivity_95"):
        before = metrics.confusion(labels, scores, thresholds[rule])
        assert metrics.confusion(labels, noisy, thresholds[rule]) == before


# Bootstrap


def test_rates_and_predictive_values_by_hand():
    row = operating_points(SICK_AND_WELL, CALLS, {"half": 0.5, "none": None}).iloc[0]
    assert (row["tp"], row["fn"], row["tn"], row["fp"]) == (9, 1, 18, 2)
    assert (row["sensitivity"], row["specificity"]) == (0.9, 0.9)
    wanted = binomtest(9, 10).proportion_ci(method="wilson")
    assert (row["sensitivity_low"], row["sensitivity_high"]) == pytest.approx((wanted.low, wanted.high))
    wanted = binomtest(18, 20).proportion_ci(method="wilson")
    assert (row["specificity_low"], row["specificity_high"]) == pytest.approx((wanted.low, wanted.high))
    assert row["lr_positive"] == pytest.approx(9) and row["lr_negative"] == pytest.approx(1 / 9)
    assert row["ppv_10"] == pytest.approx(0.09 / (0.09 + 0.09))
    assert row["npv_25"] == pytest.approx(0.9 * 0.75 / (0.9 * 0.75 + 0.1 * 0.25))
    assert row["ppv_50"] == row["npv_50"] == pytest.approx(0.9)


def test_perfect_decisions_have_infinite_likelihood_ratio():
    row = operating_points([0, 1], [0.1, 0.9], {"half": 0.5}).iloc[0]
    assert row["lr_positive"] == np.inf and row["lr_negative"] == 0 and row["ppv_10"] == 1


def test_triage_thresholds_meet_their_targets():
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 2, 2000)
    scores = 1 / (1 + np.exp(-generator.normal(2 * labels - 1, 1.0)))
    out, into = choose_triage(labels, scores).values()
    assert 0 < out < into < 1
    assert (scores[labels == 1] >= out).mean() >= 0.98 > (scores[labels == 1] >= out + 0.02).mean()
    assert (scores[labels == 0] < into).mean() >= 0.98 > (scores[labels == 0] < into - 0.02).mean()


def test_a_perfect_model_refers_nobody():
    out, into = choose_triage([0, 0, 1, 1], [0.1, 0.2, 0.8, 0.9]).values()
    assert out == into and 0.2 < out < 0.8


def test_triage_by_hand():
    table = triage_table([0, 0, 1, 1, 1], [0.1, 0.5, 0.05, 0.6, 0.9], 0.2, 0.8).set_index("decision")
    assert table["images"].to_dict() == {"rule out": 2, "refer": 2, "rule in": 1}
    assert table["pneumonia"].to_dict() == {"rule out": 1, "refer": 1, "rule in": 1}
    assert table.loc["rule out", "error"] == 0.5 and table.loc["rule in", "error"] == 0
    assert np.isnan(table.loc["refer", "error"])
    assert table["share"].sum() == 1
    wanted = binomtest(1, 2).proportion_ci(method="wilson")
    assert (table.loc["rule out", "low"], table.loc["rule out", "high"]) == pytest.approx(
        (wanted.low, wanted.high)
    )


def test_scores_on_the_line_are_referred_and_ruled_in():
    table = triage_table([0, 1], [0.2, 0.8], 0.2, 0.8).set_index("decision")
    assert table["images"].to_dict() == {"rule out": 0, "refer": 1, "rule in": 1}


def test_thresholds_in_the_wrong_order():
    with pytest.raises(ValueError, match="Received: rule_out=0.8, rule_in=0.2"):
        triage_table([0, 1], [0.1, 0.9], 0.8, 0.2)


def test_a_single_class_has_no_threshold():
    with pytest.raises(ValueError, match="labels=all 1"):
        choose_thresholds([1, 1], [0.1, 0.2])


def test_negatives_that_are_certain_leave_no_cut_for_ruling_in():
    assert choose_triage([0, 0, 1, 1], [0.1, 1.0, 0.6, 1.0])["rule_in"] == 1


def test_predictive_values_at_rare_disease_by_hand():
    # Both pneumonias found, one of two normals cleared: PPV = p / (p + (1 - p) / 2).
    found = operating_points([1, 1, 0, 0], [0.9, 0.8, 0.7, 0.1], {"half": 0.5}, (0.005, 0.001)).iloc[0]
    assert found["ppv_0.5"] == pytest.approx(0.005 / 0.5025) and found["npv_0.5"] == 1
    assert found["ppv_0.1"] == pytest.approx(0.001 / 0.5005)
