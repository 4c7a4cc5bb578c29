"""Batch normalisation in one fused kernel during training."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import keras
import tensorflow as tf


@contextmanager
def fused_batch_norm(model: keras.Model) -> Iterator[None]:
    """Train the batch normalisation of a flat model with TensorFlow's fused kernel.

    The kernel needs fewer passes over the memory than Keras 3 (``benchmarks/batch_norm.py``). Outputs,
    gradients and moving statistics are equal up to rounding. Frozen layers and prediction do not use it.
    """
    replaced = [layer for layer in model.layers if _can_be_fused(layer)]
    for layer in replaced:
        layer.call = _fused_call(layer, layer.call)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.call


def _can_be_fused(layer: keras.layers.Layer) -> bool:
    if type(layer) is not keras.layers.BatchNormalization or layer.input_spec.ndim != 4:
        return False
    renorm = getattr(layer, "renorm", False)  # since Keras 3.12
    return layer.axis in (-1, 3) and not layer.synchronized and not renorm


def _fused_call(
    layer: keras.layers.BatchNormalization, original: Callable[..., tf.Tensor]
) -> Callable[..., tf.Tensor]:
    def call(inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        if not (training and layer.trainable):
            return original(inputs, training=training, mask=mask)
        shape = layer.moving_mean.shape
        tensors = {"x": inputs, "mean": layer.moving_mean, "variance": layer.moving_variance}
        tensors["scale"] = layer.gamma if layer.scale else tf.ones(shape)
        tensors["offset"] = layer.beta if layer.center else tf.zeros(shape)
        options = {"epsilon": layer.epsilon, "is_training": True}
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(**tensors, **options)
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
        variance *= (count - 1) / count  # the kernel divides by n - 1, Keras by n
        for moving, batch_value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + batch_value * (1 - layer.momentum))
        return outputs

    return call
