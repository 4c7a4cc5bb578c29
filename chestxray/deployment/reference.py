"""What a model has seen: which images it may judge, and how they looked."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from chestxray.deployment.refusal import Refusal, fit_refusal
from chestxray.evaluation.calibration import log_odds
from chestxray.evaluation.drift import describe_reference

if TYPE_CHECKING:
    import keras
    import numpy as np

    from chestxray.data.dataset import XrayData

MOST_TRAIN = 1000
"""Training images that the refusal is fitted on; more change little and cost a forward pass each."""


def learn_reference(
    scorer: keras.Model, data: XrayData, val_logits: np.ndarray, val_features: np.ndarray
) -> tuple[Refusal, dict[str, Any]]:
    """Fit the refusal, and sum up the validation images for comparison with later ones.

    Args:
        scorer: From :func:`chestxray.deployment.bundle.with_features`.
        data: What its model was trained on.
        val_logits: What it says of the validation images: (N, 1) or (N, 3).
        val_features: (N, F).

    Returns:
        The refusal, and what :func:`chestxray.evaluation.drift.drift_table`
        compares with: what :meth:`Refusal.measure` gives, and the raw logit.
    """
    train = data.part("train")
    train = train.sample(min(MOST_TRAIN, len(train)), random_state=data.seed)
    train_images, val_images = data.store.images(train), data.images("val")
    _, train_features = scorer.predict(train_images, batch_size=32, verbose=0)
    refusal = fit_refusal(train_images[..., 0], train_features, val_images[..., 0], val_features)
    measured = refusal.measure(val_images[..., 0], refusal.distances(val_features))
    return refusal, describe_reference(measured | {"logit": log_odds(val_logits)})
