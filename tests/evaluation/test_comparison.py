import numpy as np
import pytest

from chestxray.evaluation.comparison import auroc_difference, variant_difference
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


def models(rows, *thresholds):
    """Probabilities and threshold of each seed."""
    return list(zip(map(np.asarray, rows), thresholds, strict=True))


def test_one_seed_is_the_paired_difference_of_two_models():
    labels, first = scores(1)
    _, second = scores(2, good=1.0)
    groups = np.arange(120) // 2
    first, second = (1 / (1 + np.exp(-logits)) for logits in (first, second))
    found = variant_difference(labels, groups, [(first, 0.5)], [(second, 0.5)])["auroc"]
    assert tuple(found.values()) == pytest.approx(auroc_difference(labels, groups, first, second))


def test_values_by_hand():
    labels, groups = [1, 1, 0, 0], [0, 1, 2, 3]
    first = [[0.9, 0.6, 0.4, 0.2], [0.9, 0.2, 0.6, 0.4]]
    second = [[0.9, 0.4, 0.6, 0.2], [0.5, 0.5, 0.5, 0.5]]
    found = variant_difference(labels, groups, models(first, 0.5, 0.5), models(second, 0.5, 0.7))
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


def test_a_variant_does_not_differ_from_itself():
    labels, logits = scores(1)
    rows = [1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-logits / 2))]
    found = variant_difference(labels, np.arange(120), models(rows, 0.5, 0.4), models(rows, 0.5, 0.4))
    assert all(entry == {"value": 0.0, "low": 0.0, "high": 0.0} for entry in found.values())


def test_disagreement_of_seeds_widens_the_interval():
    labels, good = scores(1, good=3.0)
    _, bad = scores(2, good=0.5)
    good, bad, middle = (1 / (1 + np.exp(-one)) for one in (good, bad, scores(3, good=1.5)[1]))
    groups = np.arange(120)
    baseline = models([middle] * 2, 0.5, 0.5)
    agreed = variant_difference(labels, groups, models([good, good], 0.5, 0.5), baseline)["auroc"]
    mixed = variant_difference(labels, groups, models([good, bad], 0.5, 0.5), baseline)["auroc"]
    assert mixed["high"] - mixed["low"] > 1.5 * (agreed["high"] - agreed["low"])


def test_interval_over_seeds_by_hand():
    # Scores that no draw of patients changes: AUROC differs by 0.5 with one seed and by 0 with the other.
    # A quarter of the draws holds one seed twice: 0.25 ± 0.25, widened by the root of 2 / (2 - 1).
    labels, groups = np.arange(40) % 2, np.arange(40)
    right, coin = np.where(labels, 0.9, 0.1), np.full(40, 0.5)
    first, second = models([right, coin], 0.5, 0.5), models([coin, coin], 0.5, 0.5)
    found = variant_difference(labels, groups, first, second)["auroc"]
    assert found == pytest.approx({"value": 0.25, "low": 0.25 - 0.25 * 2**0.5, "high": 0.25 + 0.25 * 2**0.5})


def test_other_seeds_cannot_be_paired():
    labels, logits = scores()
    p = 1 / (1 + np.exp(-logits))
    with pytest.raises(ValueError, match="same seeds. Received: first=2, second=1"):
        variant_difference(labels, np.arange(120), [(p, 0.5)] * 2, [(p, 0.5)])
