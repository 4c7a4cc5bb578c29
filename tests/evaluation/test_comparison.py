import numpy as np
import pytest
from scipy.stats import norm

from chestxray.evaluation.comparison import (
    auroc_difference,
    delong,
    holm,
    mcnemar,
    pair_table,
    variant_difference,
)
from chestxray.evaluation.metrics import evaluate

LABELS = np.array([0, 0, 1, 1])
GROUPS = np.array(["a", "b", "c", "d"])


def test_value_by_hand():
    # First: 3 of the 4 pairs in order (.4 < .5 fails against .45). Second: all 4. Difference -1/4.
    value, low, high = auroc_difference(LABELS, GROUPS, [0.1, 0.45, 0.4, 0.9], [0.1, 0.2, 0.3, 0.4])
    assert value == -0.25
    assert low == -1.0 and high == 0.0  # drawing b twice and c twice turns the first model round


def test_equal_models_do_not_differ_at_all():
    scores = np.random.default_rng(0).random(100)
    labels = np.arange(100) % 2
    assert auroc_difference(labels, np.arange(100), scores, scores) == (0.0, 0.0, 0.0)


def test_exchanging_the_models_turns_the_interval_round():
    rng = np.random.default_rng(1)
    labels, groups = np.arange(200) % 2, np.arange(200) // 4
    first, second = (np.clip(labels * shift + rng.normal(0.3, 0.3, 200), 0, 1) for shift in (0.4, 0.2))
    value, low, high = auroc_difference(labels, groups, first, second)
    assert auroc_difference(labels, groups, second, first) == pytest.approx((-value, -high, -low))


def test_pairing_is_narrower_than_two_single_intervals():
    rng = np.random.default_rng(2)
    labels = np.arange(400) % 2
    first = np.clip(0.3 * labels + rng.normal(0.35, 0.2, 400), 0, 1)
    second = np.clip(first + rng.normal(0, 0.02, 400), 0, 1)
    _, low, high = auroc_difference(labels, np.arange(400), first, second)
    single = evaluate(labels, first, np.arange(400), {})[0]["auroc"]
    assert high - low < (single["high"] - single["low"]) / 3


def test_another_number_of_scores_is_an_error():
    with pytest.raises(ValueError, match="Received: "):
        auroc_difference(LABELS, GROUPS, [0.1, 0.2, 0.3, 0.4], [0.1, 0.2, 0.3])


# Several seeds


def scores(seed=0, count=120, good=2.0):
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % 3 > 0
    return labels.astype(int), generator.normal(0, 1, count) + good * labels


def test_one_seed_is_the_paired_difference_of_two_models():
    labels, first = scores(1)
    _, second = scores(2, good=1.0)
    groups = np.arange(120) // 2
    first, second = (1 / (1 + np.exp(-one)) for one in (first, second))
    found = variant_difference(labels, groups, [first], [second], [0.5], [0.5], draws=300)["auroc"]
    assert tuple(found.values()) == pytest.approx(auroc_difference(labels, groups, first, second, draws=300))


def test_values_by_hand():
    labels, groups = [1, 1, 0, 0], [0, 1, 2, 3]
    first = [[0.9, 0.6, 0.4, 0.2], [0.9, 0.2, 0.6, 0.4]]
    second = [[0.9, 0.4, 0.6, 0.2], [0.5, 0.5, 0.5, 0.5]]
    found = variant_difference(labels, groups, first, second, [0.5, 0.5], [0.5, 0.7], draws=50)
    # AUROC 1 and 0.5 against 0.75 and 0.5; at the cuts sensitivity 1, ½ against ½, 0 and
    # specificity 1, ½ against ½, 1
    assert found["auroc"]["value"] == pytest.approx((0.25 + 0.0) / 2)
    assert found["sensitivity"]["value"] == pytest.approx((0.5 + 0.5) / 2)
    assert found["specificity"]["value"] == pytest.approx((0.5 - 0.5) / 2)
    brier = [
        (0.01 + 0.16 + 0.16 + 0.04) / 4 - (0.01 + 0.36 + 0.36 + 0.04) / 4,
        (0.01 + 0.64 + 0.36 + 0.16) / 4 - 0.25,
    ]
    assert found["brier"]["value"] == pytest.approx(np.mean(brier))


def test_an_arm_does_not_differ_from_itself():
    labels, logits = scores(1)
    rows = [1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-logits / 2))]
    found = variant_difference(labels, np.arange(120), rows, rows, [0.5, 0.4], [0.5, 0.4], draws=100)
    assert all(entry == {"value": 0.0, "low": 0.0, "high": 0.0} for entry in found.values())


def test_disagreement_of_seeds_widens_the_interval():
    labels, good = scores(1, good=3.0)
    _, bad = scores(2, good=0.5)
    good, bad, middle = (1 / (1 + np.exp(-one)) for one in (good, bad, scores(3, good=1.5)[1]))
    groups = np.arange(120)
    agreed = variant_difference(labels, groups, [good, good], [middle] * 2, [0.5] * 2, [0.5] * 2, 300)[
        "auroc"
    ]
    mixed = variant_difference(labels, groups, [good, bad], [middle] * 2, [0.5] * 2, [0.5] * 2, 300)["auroc"]
    assert mixed["high"] - mixed["low"] > 1.5 * (agreed["high"] - agreed["low"])


def test_interval_over_seeds_by_hand():
    # Scores that no draw of patients changes: AUROC differs by 0.5 with one seed and by 0 with the other.
    # A quarter of the draws holds one seed twice: 0.25 ± 0.25, widened by the root of 2 / (2 - 1).
    labels, groups = np.arange(40) % 2, np.arange(40)
    right, coin = np.where(labels, 0.9, 0.1), np.full(40, 0.5)
    found = variant_difference(labels, groups, [right, coin], [coin, coin], [0.5] * 2, [0.5] * 2, 200)[
        "auroc"
    ]
    assert found == pytest.approx({"value": 0.25, "low": 0.25 - 0.25 * 2**0.5, "high": 0.25 + 0.25 * 2**0.5})


def test_other_seeds_cannot_be_paired():
    labels, logits = scores()
    p = 1 / (1 + np.exp(-logits))
    with pytest.raises(ValueError, match="same seeds. Received: first=2, second=1"):
        variant_difference(labels, np.arange(120), [p, p], [p], [0.5, 0.5], [0.5])


# Tests that give a p-value


def test_mcnemar_by_hand():
    labels = [1, 1, 1, 1, 0, 0]
    # Right alone: the first on 4 images, the second on 1. Two-sided, 5 coins: 2 (1 + 5) / 32.
    found = mcnemar(labels, [1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 0, 0])
    assert found == {"first_only": 4, "second_only": 1, "p": pytest.approx(12 / 32)}


def test_mcnemar_of_equal_decisions():
    assert mcnemar([0, 1], [1, 1], [1, 1])["p"] == 1.0


def test_delong_variance_is_that_of_the_placements():
    # One model against a constant one: its variance alone, by the placement values.
    positive, negative = np.array([0.9, 0.8, 0.3]), np.array([0.1, 0.4, 0.35, 0.2])
    above = (positive[:, None] > negative).astype(float)
    wanted = above.mean(axis=1).var(ddof=1) / 3 + above.mean(axis=0).var(ddof=1) / 4
    found = delong([1, 1, 1, 0, 0, 0, 0], np.concatenate([positive, negative]), [0.5] * 7)
    assert found["difference"] == pytest.approx(above.mean() - 0.5)
    assert found["standard_error"] == pytest.approx(np.sqrt(wanted))
    assert found["high"] - found["difference"] == pytest.approx(1.959964 * np.sqrt(wanted), rel=1e-6)
    assert found["difference"] - found["low"] == pytest.approx(1.959964 * np.sqrt(wanted), rel=1e-6)
    assert found["p"] == pytest.approx(2 * norm.sf(found["difference"] / np.sqrt(wanted)))


def test_delong_agrees_with_the_bootstrap_on_single_images():
    labels, first = scores(3, count=600)
    _, second = scores(4, count=600, good=1.6)
    first, second = (1 / (1 + np.exp(-one)) for one in (first, second))
    value, low, high = auroc_difference(labels, np.arange(600), first, second)
    found = delong(labels, first, second)
    assert found["difference"] == pytest.approx(value)
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=0.006)


def test_delong_is_quiet_when_nothing_differs():
    """Of 400 pairs of equally good models, about 5 in 100 get a p-value below .05."""
    generator, small = np.random.default_rng(5), 0
    labels = np.repeat([0, 1], 60)
    for _ in range(400):
        first, second = (1 / (1 + np.exp(-(labels + generator.normal(0, 1, 120)))) for _ in range(2))
        small += delong(labels, first, second)["p"] < 0.05
    assert 8 <= small <= 34  # binomial(400, .05): beyond 3 standard deviations


def test_holm_by_hand():
    # Sorted .01 .02 .03 .04 times 4 3 2 1: .04 .06 .06 .04, never falling: .04 .06 .06 .06.
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])


def test_pairs_are_adjusted_together():
    # c decides as a does, but for seven films on which a is right.
    labels, first = scores(6, count=200)
    a = 1 / (1 + np.exp(-first))
    right = np.flatnonzero((a >= 0.5) == labels)[:7]
    c = a.copy()
    c[right] = 1 - a[right]
    told = {"a": a, "b": a, "c": c}
    table = pair_table(labels, np.arange(200), told, dict.fromkeys(told, 0.5)).set_index(["first", "second"])
    assert list(table.index) == [("a", "b"), ("a", "c"), ("b", "c")]
    same, other = table.loc["a", "b"], table.loc["a", "c"]
    assert (same["difference"], same["agree"], same["p_delong"], same["p_mcnemar"]) == (0, 1, 1, 1)
    assert same["both_wrong"] == ((told["a"] >= 0.5) != labels).sum()
    assert other["agree"] == 193 / 200 and other["both_wrong"] == same["both_wrong"]
    # Seven coins, two-sided: 2 / 128. The smallest of three, times three; the next, as small, not below it.
    assert other["p_mcnemar"] == table.loc["b", "c"]["p_mcnemar"] == pytest.approx(6 / 128)
    assert other["p_delong"] == pytest.approx(3 * delong(labels, a, c)["p"]) and other["p_delong"] < 1
    assert pair_table(labels, np.arange(200), {"a": told["a"]}, {"a": 0.5}).empty


def test_delong_needs_two_images_of_each_class():
    with pytest.raises(ValueError, match="Received: positives=1, negatives=3"):
        delong([1, 0, 0, 0], [0.5, 0.1, 0.6, 0.2], [0.9, 0.1, 0.2, 0.3])
    few = pair_table(
        [1, 0, 0, 0],
        np.arange(4),
        {"a": [0.5, 0.1, 0.6, 0.2], "b": [0.9, 0.1, 0.2, 0.3]},
        {"a": 0.5, "b": 0.5},
    )
    assert np.isnan(few["p_delong"][0]) and few["p_mcnemar"][0] == 1
