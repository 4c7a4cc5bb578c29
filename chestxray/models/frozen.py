"""Where a network can be cut, and the part before the cut as a fast graph."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import keras
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from chestxray.models.builders import as_float32
from chestxray.models.checkpoint import wiring

_ONEDNN_BF16 = "auto_mixed_precision_onednn_bfloat16"


def find_cut(model: keras.Model) -> keras.layers.Layer | None:
    """Find the last layer before the first one that learns through which everything passes.

    Dropout counts as learning, because it gives something else in every step.

    Args:
        model: A flat model.

    Returns:
        The layer, or None when neither it nor a layer in front of it has
        weights other than those of the preprocessing: nothing is saved then.
    """
    layers, sources = model.operations, wiring(model)
    first = next((number for number, layer in enumerate(layers) if _differs_in_training(layer)), 0)
    last_use = {source: number for number, group in enumerate(sources) for source in group}
    cut, live, weights, weights_at_cut = None, [], 0, 0
    for number, layer in enumerate(layers[:first]):
        weights += 0 if isinstance(layer, keras.layers.Normalization) else len(layer.weights)
        live = [source for source in live if last_use[source] > number] + [number]
        if len(live) == 1:
            cut, weights_at_cut = layer, weights
    return cut if weights_at_cut else None


def _differs_in_training(layer: keras.layers.Layer) -> bool:
    moving = isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    return bool(layer.trainable_weights) or moving or hasattr(layer, "seed_generator")


def frozen_graph(model: keras.Model, bf16: bool = False) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Turn a model into a function that computes it as fast as the processor can.

    On a processor a model that computes in bfloat16 is taken in float32 and
    left to oneDNN's own rewriting, which converts less back and forth than
    Keras' policy. With batch normalisation the weights become constants, so
    that convolution, normalisation and activation fuse; without it, constants
    only cost time (VGG16: 48 images/s instead of 79).

    Args:
        model: From images to one or several tensors; is not changed.
        bf16: Compute in bfloat16 on a processor also when the model itself
            computes in float32.

    Returns:
        A function from images, ``float32`` (N, H, W, 1) in 0–255, to a list
        of tensors, one an output.
    """
    rewrite = (
        bf16 or any(layer.compute_dtype == "bfloat16" for layer in model.layers)
    ) and not tf.config.list_physical_devices("GPU")
    copy = as_float32(model) if rewrite else model
    graph = tf.function(
        lambda images: keras.tree.flatten(copy(images, training=False)),
        input_signature=[tf.TensorSpec(model.input.shape, tf.float32)],
    ).get_concrete_function()
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        graph = convert_variables_to_constants_v2(graph)

    def compute(images: tf.Tensor) -> list[tf.Tensor]:
        with _graph_option(_ONEDNN_BF16, rewrite):
            return list(graph(images))

    compute.model = copy  # the graph holds its variables only weakly
    return compute


@contextlib.contextmanager
def _graph_option(name: str, value: bool) -> Iterator[None]:
    former = tf.config.optimizer.get_experimental_options().get(name, False)
    tf.config.optimizer.set_experimental_options({name: value})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: former})
