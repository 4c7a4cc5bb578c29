"""Grad-CAM and HiResCAM: maps of the parts of an image that raised a model's score.

A map shows what contributed to the score, not where the disease is.
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
    """Weigh the feature maps of a layer by how much they raise the score.

    Grad-CAM (Selvaraju 2017, arXiv:1610.02391) weighs each channel by the mean of its gradient. HiResCAM
    (Draelos and Carin 2020, arXiv:2011.08891) weighs each place by its own gradient. Of the two, only
    HiResCAM is exact for a network that ends in one dense layer. Both keep what is positive. The gradient is
    that of the logit: that of a probability vanishes where the model is sure. Departure: maps are not
    enlarged to the image's size (see :func:`enlarge`), so that their resolution is not mistaken for
    precision.

    Args:
        model: Any Keras model of one image with an output of shape (N, 1) (logit or probability of
            pneumonia), (N, 3) (logits of normal, bacteria, virus) or (N, C). It is not changed; mixed
            precision is computed in float32.
        images: As the model takes them, (N, H, W, C).
        layer: Name of a layer with feature maps (N, h, w, channels), also inside nested models. By default
            that of the backbone; else the last one larger than one pixel or, if several dense layers follow,
            the last one with at least 7 × 7 pixels.
        target: ``"pneumonia"``, ``"normal"`` (the map of the negative score), or, for other models, the
            number of a class.
        method: ``"gradcam"`` or ``"hirescam"``.

    Returns maps ``float32`` (N, h, w), each divided by its maximum (zeros where nothing is positive), and
    these maxima, (N,), in logits per (mean over) pixel. Where nothing was found, the maximum is small.

    Raises ValueError: Unknown layer, target or method, no image, a layer that is called more than once, or a
    model that ends in something else than logits or a layer's activation.
    """
    if method not in METHODS:
        raise ValueError(f"method must be one of {METHODS}. Received: method={method!r}")
    if not len(images):
        raise ValueError(f"one image or more is needed. Received: shape={np.shape(images)}")
    if any(each.compute_dtype != "float32" for each in flat_layers(model)):
        model = as_float32(model)
    cut = find_layer(model, layer)
    _check_target(model, target)
    images, maps, calls = np.asarray(images), [], []
    _check_end(model, images[:batch_size])

    @tf.function(input_signature=[tf.TensorSpec((None, *images.shape[1:]), tf.float32)])
    def explain(batch: tf.Tensor) -> tf.Tensor:
        with tf.GradientTape(watch_accessed_variables=False) as tape, _noted(cut, tape) as seen:
            score = _score(model, batch, target)
        _, features = seen[-1]
        calls.append(len(seen))
        gradient = tape.gradient(score, features, unconnected_gradients="zero")
        if method == "gradcam":
            gradient = tf.reduce_mean(gradient, axis=(1, 2), keepdims=True)
        return tf.nn.relu(tf.reduce_sum(gradient * features, axis=-1))

    for start in range(0, len(images), batch_size):
        batch = tf.convert_to_tensor(images[start : start + batch_size], tf.float32)
        maps.append(explain(batch).numpy())
        if calls[-1] > 1:
            times = f"{calls[-1]} times, perhaps on a mirrored image: their maps cannot be joined"
            message = f"the layer is called {times}. Explain the inner model alone"
            raise ValueError(f"{message}. Received: layer={cut.name!r}")
    heatmaps = np.concatenate(maps)
    largest = heatmaps.max(axis=(1, 2))
    return heatmaps / np.where(largest > 0, largest, 1)[:, None, None], largest


def enlarge(maps: NDArray, size: tuple[int, int]) -> NDArray:
    """Bring maps (N, h, w) to images of (H, W), linearly, ``float32`` (N, H, W)."""
    return tf.image.resize(np.asarray(maps, np.float32)[..., None], size).numpy()[..., 0]


def find_layer(model: keras.Model, name: str | None = None) -> keras.Layer:
    """Find the layer whose feature maps are weighed, also in nested models; default as in :func:`gradcam`.

    Raises a ValueError that lists the layers with feature maps, if the named layer is not one of them.
    """
    maps = [layer for layer in flat_layers(model) if len(_shape(layer)) == 4]
    usable = {layer.name: layer for layer in maps if not isinstance(layer, keras.layers.InputLayer)}
    if name is None:
        large = [layer for layer in usable.values() if max(_shape(layer)[1] or 2, _shape(layer)[2] or 2) > 1]
        convolutions = [layer for layer in large if any(len(weight.shape) == 4 for weight in layer.weights)]
        smallest = min((_shape(layer)[1] or 0 for layer in convolutions), default=0)
        for row in BACKBONES.values():
            usual = usable.get(row.gradcam_layer)
            if usual is not None and (_shape(usual)[1] or 0) <= smallest:
                return usual
        fine = [layer for layer in large if min(_shape(layer)[1] or 7, _shape(layer)[2] or 7) >= 7]
        if sum(isinstance(layer, keras.layers.Dense) for layer in flat_layers(model)) < 2:
            fine = []  # with one dense layer the last maps are exact
        if large:
            return (fine or large)[-1]
    if name not in usable:
        raise ValueError(f"no such layer with feature maps; there are {[*usable]}. Received: layer={name!r}")
    return usable[name]


def _shape(layer: keras.Layer) -> tuple:
    output = getattr(layer, "output", None)  # None where there is none yet
    return tuple(getattr(output, "shape", ()))  # several outputs have none


def _check_target(model: keras.Model, target: str | int) -> None:
    classes = model.output_shape[-1]
    named = target in TARGETS and classes in (1, 3)
    if not named and not (isinstance(target, Integral) and 0 <= target < classes and classes > 1):
        message = f"target must be one of {TARGETS} for models with 1 or 3 outputs, or the number of one of "
        raise ValueError(f"{message}{classes} classes. Received: target={target!r}")


def _score(model: keras.Model, batch: tf.Tensor, target: str | int) -> tf.Tensor:
    """What is explained, (N,): a log-odds, or the logit of one class."""
    logits = _logits(model, batch)
    if isinstance(target, Integral):
        return logits[:, target]
    odds = logits[:, 0]
    if logits.shape[-1] > 1:  # normal, bacteria, virus
        odds = tf.reduce_logsumexp(logits[:, 1:], axis=1) - odds
    return odds if target == "pneumonia" else -odds


def _logits(model: keras.Model, batch: tf.Tensor) -> tf.Tensor:
    """Output before its sigmoid or softmax, without changing the model."""
    last = last_layer(model)
    with _noted(last) as seen:
        outputs = model(batch, training=False)
    entering, logits = seen[-1]
    if isinstance(last, (keras.layers.Activation, keras.layers.Softmax)):
        logits = entering
    elif isinstance(last, keras.layers.Dense) and last.activation is not keras.activations.linear:
        logits = tf.matmul(entering, last.kernel) + (last.bias if last.use_bias else 0)
    return tf.reshape(logits, tf.shape(outputs))  # layers that follow change the shape alone


def _check_end(model: keras.Model, images: NDArray) -> None:
    """Raise ValueError if something else than the shape changes after a sigmoid or softmax."""
    last, known = last_layer(model), (keras.layers.Dense, keras.layers.Activation, keras.layers.Softmax)
    if isinstance(last, known):
        return
    outputs = model(tf.convert_to_tensor(images, tf.float32), training=False).numpy()
    sure = outputs.min() >= 0 and outputs.max() == 1
    if sure or last_activation(model) in ("sigmoid", "softmax"):
        raise ValueError(
            "the last layer seems to give probabilities, whose gradient vanishes where the model is sure: "
            f"end in logits, or in a layer with an activation. Received: last layer={last.name!r}"
        )


@contextlib.contextmanager
def _noted(layer: keras.Layer, tape: tf.GradientTape | None = None) -> Iterator[list[tuple]]:
    """Note what enters and leaves a layer; a tape differentiates only what comes after it."""
    seen: list[tuple] = []
    original = layer.call

    def call(*args: Any, **kwargs: Any) -> tf.Tensor:
        features = original(*args, **kwargs)
        if tape:
            tape.watch(features)
        seen.append((args[0] if args else None, features))
        return features

    object.__setattr__(layer, "call", call)
    try:
        yield seen
    finally:
        object.__delattr__(layer, "call")


def randomised(model: keras.Model, first: str, seed: int = 0) -> keras.Model:
    """Copy a flat model with shuffled weights in all layers from one on (Adebayo 2018, arXiv:1810.03292).

    A map that does not change when later layers lose what they learned shows the image, not the model.
    ``first`` names the first shuffled layer, and an unknown one raises ValueError. Departure: the values of
    each weight are shuffled, which keeps how large they are, where the paper draws new ones.
    """
    names = [layer.name for layer in model.layers]
    if first not in names:
        raise ValueError(f"no such layer. Received: first={first!r}")
    generator, copy = np.random.default_rng(seed), keras.models.clone_model(model)
    for number, (layer, layer_copy) in enumerate(zip(model.layers, copy.layers, strict=True)):
        weights = layer.get_weights()
        if number >= names.index(first):
            weights = [generator.permutation(weight.ravel()).reshape(weight.shape) for weight in weights]
        layer_copy.set_weights(weights)
    refresh_normalisation(copy)
    return copy
