"""Mixup: a network learns from mixtures of two pictures."""

from __future__ import annotations

from typing import Any

import keras
import tensorflow as tf
from keras import ops


class Mixup(keras.Model):
    """Trains a network on ``λ · x + (1 − λ) · x'`` with ``λ · loss(y) + (1 − λ) · loss(y')``.

    Zhang, Cissé, Dauphin and Lopez-Paz 2018 (arXiv:1710.09412), with one λ a
    batch, drawn from Beta(α, α). The partner of an image is the one that
    stands as far from the end of its (shuffled) batch as it from the
    beginning. λ follows from the seed and the number of the step, so that a
    training that was interrupted goes on with the same mixtures. Where the
    network begins with stored activations, these are mixed ("manifold mixup",
    Verma 2019, arXiv:1806.05236, at one layer).

    Sample and class weights go with the labels that they belong to.
    ``evaluate`` and ``predict`` mix nothing; accuracy and the like of the
    training images are those of the label with the greater share.

    Save ``network``, which shares its weights with this model.
    """

    def __init__(self, network: keras.Model, alpha: float, seed: int):
        """Wrap a network.

        Args:
            network: What is trained.
            alpha: α, above 0; the smaller, the nearer is λ to 0 or 1.
            seed: Of the mixtures, not negative.
        """
        super().__init__(name=f"{network.name}_mixup", dtype=network.dtype_policy)
        self.network, self.alpha, self.seed = network, alpha, seed
        self.built = True

    @property
    def output_shape(self) -> tuple[int | None, ...]:
        return self.network.output_shape

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.network(inputs, training=training)

    def share(self, step: Any) -> Any:
        """Return λ of a step, a scalar in 0–1: X / (X + Y) of two gamma variables is a beta variable."""
        first, second = tf.unstack(
            tf.random.stateless_gamma([2], [self.seed, step], self.alpha, dtype="float64")
        )
        return ops.cast(first / (first + second), "float32")

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        share = self.share(ops.cast(self.optimizer.iterations, "int32"))
        wide = ops.cast(x, "float32")
        mixed = ops.cast(share * wide + (1 - share) * wide[::-1], x.dtype)
        partners = y[::-1], None if weight is None else weight[::-1]
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.network(mixed, training=True)
            loss = share * self.compute_loss(y=y, y_pred=logits, sample_weight=weight)
            loss += (1 - share) * self.compute_loss(y=partners[0], y_pred=logits, sample_weight=partners[1])
            scaled = self.optimizer.scale_loss(loss)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables))
        self._loss_tracker.update_state(loss, sample_weight=ops.shape(logits)[0])
        greater = share >= 0.5
        return self.compute_metrics(
            None,
            ops.where(greater, y, partners[0]),
            logits,
            sample_weight=None if weight is None else ops.where(greater, weight, partners[1]),
        )
