"""Grad-CAM and HiResCAM: heatmaps of the regions of an image that raise a model's score.

A heatmap shows what contributed to the score. It does not show where the disease is.
"""

import contextlib
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike, NDArray

from chestxray.models.backbones import BACKBONES, refresh_normalisation
from chestxray.models.builders import as_float32, flat_layers, last_activation, last_layer
from chestxray.schema import check

METHODS = ("gradcam", "hirescam")
TARGETS = ("pneumonia", "normal")


def gradcam(
    model: keras.Model,
    images: ArrayLike,
    layer: str | None = None,
    target: str | int = "pneumonia",
    method: str = "gradcam",
    batch_size: int = 32,
) -> tuple[NDArray, NDArray]:
    """Compute the heatmaps of images from the feature maps of one layer.

    Grad-CAM (Selvaraju 2017, arXiv:1610.02391) weights each channel by the mean of its gradient. HiResCAM
    (Draelos and Carin 2020, arXiv:2011.08891) weights each location by its own gradient. Of the two, only
    HiResCAM is exact for a network that ends in one dense layer. Negative values become zero. The gradient is
    that of the logit, because the gradient of a probability vanishes where the model is certain. Departure:
    heatmaps keep the size of the feature maps, so that they do not look more precise than they are. Use
    :func:`enlarge` to resize them.

    Args:
        model: Any Keras model with one image as input and an output of shape (N, 1) (logit or probability of
            pneumonia), (N, 3) (logits of normal, bacteria, virus) or (N, C). It is not changed. A model in
            mixed precision is computed in float32.
        images: Input of the model, (N, H, W, C).
        layer: Name of a layer with feature maps (N, h, w, channels), also inside nested models. By default
            that of the backbone; else the last one larger than one pixel or, if several dense layers follow,
            the last one with at least 7 × 7 pixels.
        target: ``"pneumonia"``, ``"normal"`` (the negative score), or the index of a class of other models.
        method: ``"gradcam"`` or ``"hirescam"``.

    Returns:
        Heatmaps ``float32`` (N, h, w), each divided by its maximum (zeros if no value is positive), and these
        maxima, (N,), in logits per (mean over) pixel. A small maximum means that no region raises the score.

    Raises:
        ValueError: Unknown layer, target or method, no image, a layer that is called more than once, or a
            model that does not end in logits or in the activation of a layer.
    """
    check(method in METHODS, f"method must be one of {METHODS}", method=method)
    check(len(images), "images must contain at least one image", shape=np.shape(images))
    if any(inner.compute_dtype != "float32" for inner in flat_layers(model)):
        model = as_float32(model)
    cam_layer = find_layer(model, layer)
    _check_target(model, target)
    images, heatmaps, call_counts = np.asarray(images), [], []
    _check_end(model, images[:batch_size])

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)])
    def explain(batch: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape, _record_calls(cam_layer, tape) as calls:
            score = _score(model, batch, target)
        _, features = calls[-1]
        call_counts.append(len(calls))
        gradient = tape.gradient(score, features, unconnected_gradients="zero")
        if method == "gradcam":
            gradient = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(gradient * features, axis=-1))

    for start in range(0, len(images), batch_size):
        batch = tf.convert_to_tensor(images[start : start + batch_size], tf.float32)
        heatmaps.append(explain(batch).numpy())
        times = f"{call_counts[-1]} times (for example on a mirrored image)"
        message = f"the layer must be called once, but is called {times}. Explain the inner model instead"
        check(call_counts[-1] <= 1, message, layer=cam_layer.name)
    heatmaps = np.concatenate(heatmaps)
    maxima = heatmaps.max(axis=(1, 2))
    return heatmaps / np.where(maxima > 0, maxima, 1)[:, None, None], maxima


def enlarge(maps: NDArray, size: tuple[int, int]) -> NDArray:
    """Resize heatmaps (N, h, w) to the size (H, W) by linear interpolation, ``float32`` (N, H, W)."""
    return tf.image.resize(np.asarray(maps, np.float32)[..., None], size).numpy()[..., 0]


def find_layer(model: keras.Model, name: str | None = None) -> keras.Layer:
    """Find a layer with feature maps by name, also in nested models; for the default see :func:`gradcam`.

    If the layer has no feature maps, a ValueError lists those that have.
    """
    layers = [layer for layer in flat_layers(model) if len(_shape(layer)) == 4]
    usable = {layer.name: layer for layer in layers if not isinstance(layer, keras.layers.InputLayer)}
    if name is None:
        large = [layer for layer in usable.values() if max(_shape(layer)[1] or 2, _shape(layer)[2] or 2) > 1]
        fine = [layer for layer in large if min(_shape(layer)[1] or 7, _shape(layer)[2] or 7) >= 7]
        if sum(isinstance(layer, keras.layers.Dense) for layer in flat_layers(model)) < 2:
            fine = []  # with one dense layer the last maps are exact
        for backbone in BACKBONES.values():  # other networks use the same names
            layer = usable.get(backbone.gradcam_layer)
            if layer is not None and _shape(layer)[3] == backbone.channels:
                return layer
        if large:
            return (fine or large)[-1]
    check(name in usable, f"layer must be one of {[*usable]}", layer=name)
    return usable[name]


def _shape(layer: keras.Layer) -> tuple:
    output = getattr(layer, "output", None)  # a layer that was never called has none
    return tuple(getattr(output, "shape", ()))  # a list of outputs has no shape


def _check_target(model: keras.Model, target: str | int) -> None:
    classes = model.output_shape[-1]
    is_name = target in TARGETS and classes in (1, 3)
    is_class = isinstance(target, Integral) and 0 <= target < classes and classes > 1
    message = f"target must be one of {TARGETS} (1 or 3 outputs) or a class index below {classes}"
    check(is_name or is_class, message, target=target)


def _score(model: keras.Model, batch: tf.Tensor, target: str | int) -> tf.Tensor:
    """Score that is explained, (N,): the log-odds of pneumonia or normal, or the logit of one class."""
    logits = _logits(model, batch)
    if isinstance(target, Integral):
        return logits[:, target]
    odds = logits[:, 0]
    if logits.shape[-1] > 1:  # normal, bacteria, virus
        odds = tf.reduce_logsumexp(logits[:, 1:], axis=1) - odds
    return odds if target == "pneumonia" else -odds


def _logits(model: keras.Model, batch: tf.Tensor) -> tf.Tensor:
    """Output of the model before its sigmoid or softmax; the model is not changed."""
    last = last_layer(model)
    with _record_calls(last) as calls:
        outputs = model(batch, training=False)
    inputs, logits = calls[-1]
    if isinstance(last, (keras.layers.Activation, keras.layers.Softmax)):
        logits = inputs
    elif isinstance(last, keras.layers.Dense) and last.activation is not keras.activations.linear:
        logits = tf.matmul(inputs, last.kernel) + (last.bias if last.use_bias else 0)
    return tf.reshape(logits, tf.shape(outputs))  # the layers after `last` only change the shape


def _check_end(model: keras.Model, images: NDArray) -> None:
    """Raise ValueError if a layer after the sigmoid or softmax changes the probabilities."""
    last = last_layer(model)
    if isinstance(last, (keras.layers.Dense, keras.layers.Activation, keras.layers.Softmax)):
        return
    outputs = model(tf.convert_to_tensor(images, tf.float32), training=False).numpy()
    saturated = outputs.min() >= 0 and outputs.max() == 1  # as probabilities are, where the gradient vanishes
    message = "the last layer must return logits or have an activation, but seems to return probabilities"
    valid = not saturated and last_activation(model) not in ("sigmoid", "softmax")
    check(valid, message, **{"last layer": last.name})


@contextlib.contextmanager
def _record_calls(layer: keras.Layer, tape: tf.GradientTape | None = None) -> Iterator[list[tuple]]:
    """Record input and output of each call of a layer; a tape differentiates with respect to the output."""
    calls: list[tuple] = []
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> tf.Tensor:
        features = original(*args, **kwargs)
        if tape:
            tape.watch(features)
        calls.append((args[0] if args else None, features))
        return features

    object.__setattr__(layer, "call", call)
    try:
        yield calls
    finally:
        object.__delattr__(layer, "call")


def randomised(model: keras.Model, first: str, seed: int = 0) -> keras.Model:
    """Copy a flat model and shuffle the weights of all layers from the layer ``first`` on.

    A heatmap that does not change with them shows the image, not the model (Adebayo 2018, arXiv:1810.03292).
    An unknown name raises ValueError. Departure: the paper draws new weights. Here the values of each weight
    are shuffled, so that their distribution stays the same.
    """
    names = [layer.name for layer in model.layers]
    check(first in names, "first must be the name of a layer", first=first)
    generator, copy = np.random.default_rng(seed), keras.models.clone_model(model)
    for number, (layer, layer_copy) in enumerate(zip(model.layers, copy.layers, strict=True)):
        weights = layer.get_weights()
        if number >= names.index(first):
            weights = [generator.permutation(weight.ravel()).reshape(weight.shape) for weight in weights]
        layer_copy.set_weights(weights)
    refresh_normalisation(copy)
    return copy
