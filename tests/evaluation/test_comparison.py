import numpy as np
import pytest

from chestxray.evaluation.comparison import auroc_difference
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
