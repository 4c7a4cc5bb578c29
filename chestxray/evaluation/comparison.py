"""Two models on the same images: what their difference is worth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from chestxray.evaluation.metrics import bootstrap_weights, check_same_shape, check_scores, weighted_ranking


def auroc_difference(labels: ArrayLike, groups: ArrayLike, first: ArrayLike, second: ArrayLike,
                     draws: int = 2000, seed: int = 0) -> tuple[float, float, float]:
    """AUROC of the first model minus that of the second, with a paired 95 % interval.

    Both are scored on the same draw of patient groups every time, so that what
    is hard for both cancels; the interval is much narrower than that of either.

    Args:
        labels: Shape (N,), 0 or 1, both present.
        groups: Shape (N,), the patient group of each image.
        first: Shape (N,), probabilities of the first model, in the same order.
        second: Shape (N,), probabilities of the second model.
        draws: Draws of the bootstrap.
        seed: Seed of the bootstrap.

    Returns:
        ``(value, low, high)``, the bounds being the 2.5 and 97.5 percentiles.

    Raises:
        ValueError: Shapes differ, or labels or probabilities are no such.
    """
    labels, first = check_scores(labels, first, both_classes=True)
    _, second = check_scores(labels, second)
    check_same_shape(labels, "second", second)

    def difference(weights: np.ndarray) -> np.ndarray:
        return weighted_ranking(labels, first, weights)[0] - weighted_ranking(labels, second, weights)[0]

    weights = bootstrap_weights(labels, groups, draws, seed)
    drawn = np.concatenate([difference(some) for some in weights])
    low, high = np.nanpercentile(drawn, [2.5, 97.5])
    return float(difference(np.ones((1, len(labels))))[0]), float(low), float(high)
