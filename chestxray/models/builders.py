"""Builders of the networks: CNNs from scratch, teacher, student, and transfer learning from ImageNet.

Each builder returns a flat functional model. Its inputs are grey images (N, size, size, 1) in 0–255, which it
scales. Its outputs are ``float32`` logits (N, outputs). The logit layer is initialised with zeros, so that an
untrained network predicts equal probabilities: its loss is ln 2, or ln 3. Common arguments: ``image_size``,
side of the input in pixels; ``dropout``, rate between the dense layers, [0, 1); ``precision``, Keras dtype
policy; ``outputs``, 1 logit, or 3 (normal, bacteria, virus); others raise ValueError.
"""

import contextlib
import functools
import json
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import pandas as pd
from keras import layers

from chestxray.models.backbones import get_backbone, load_backbone_weights, refresh_normalisation
from chestxray.schema import check


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Build layers with a Keras dtype policy and restore the previous one."""
    previous = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(previous)


def _grey_input(size: int) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    inputs = keras.Input((size, size, 1), name="image")
    return inputs, layers.Rescaling(1 / 127.5, offset=-1.0, name="scale", dtype="float32")(inputs)


def _logit(features: keras.KerasTensor, outputs: int) -> keras.KerasTensor:
    check(outputs in (1, 3), "outputs must be 1 or 3 (normal, bacteria, virus)", outputs=outputs)
    return layers.Dense(outputs, kernel_initializer="zeros", dtype="float32", name="logit")(features)


def _dense_block(x: keras.KerasTensor, units: Sequence[int], dropout: float) -> keras.KerasTensor:
    for number, width in enumerate(units, 1):
        x = layers.Dense(width, activation="relu", name=f"dense{number}")(x)
        x = layers.Dropout(dropout, name=f"dropout{number}")(x)
    return x


def build_custom_cnn(
    image_size: int = 224, dropout: float = 0.3, precision: str = "float32", outputs: int = 1
) -> keras.Model:
    """Build the custom CNN: 11 convolutions and 5 dense layers; the side is at least 64.

    Five blocks of 3 × 3 convolutions have 16 to 128 filters, batch normalisation, and max pooling between the
    blocks. The first convolution has stride 2, which makes the network about ten times faster.
    """
    with _dtype_policy(precision):
        inputs, x = _grey_input(image_size)
        for block, (filters, depth) in enumerate([(16, 2), (32, 2), (64, 2), (96, 2), (128, 3)], 1):
            for number in range(1, depth + 1):
                stride, name = 2 if block == number == 1 else 1, f"block{block}_conv{number}"
                x = layers.Conv2D(filters, 3, stride, "same", use_bias=False, name=name)(x)
                x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn{number}")(x)
                x = layers.ReLU(name=f"block{block}_relu{number}")(x)
            if block < 5:
                x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = _dense_block(x, (256, 128, 64, 32), dropout)
        return keras.Model(inputs, _logit(x, outputs), name="custom_cnn")


def _build_plain_cnn(
    name: str, widths: tuple, size: int, dropout: float, precision: str, outputs: int, flatten: bool
) -> keras.Model:
    filters, units = widths
    with _dtype_policy(precision):
        inputs, x = _grey_input(size)
        for number, width in enumerate(filters, 1):
            x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{number}")(x)
            x = layers.MaxPooling2D(name=f"pool{number}")(x)
        x = layers.Flatten(name="flat")(x) if flatten else layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(inputs, _logit(_dense_block(x, units, dropout), outputs), name=name)


def build_teacher_cnn(
    image_size: int = 224,
    dropout: float = 0.3,
    precision: str = "float32",
    outputs: int = 1,
    flatten: bool = False,
) -> keras.Model:
    """Build a light teacher: 3 convolutions (64, 128, 256) and 3 dense layers (512, 256, outputs).

    ``flatten`` keeps the positions of the last maps instead of averaging them, as published versions do: at
    224 px the first dense layer then has 100 million weights.
    """
    widths = (64, 128, 256), (512, 256)
    return _build_plain_cnn("teacher_cnn", widths, image_size, dropout, precision, outputs, flatten)


def build_student_cnn(
    image_size: int = 224,
    dropout: float = 0.2,
    precision: str = "float32",
    outputs: int = 1,
    flatten: bool = False,
) -> keras.Model:
    """Build a small student: 2 convolutions (32, 64), 3 dense layers; below 100,000 parameters.

    ``flatten``: see :func:`build_teacher_cnn`.
    """
    widths = (32, 64), (128, 64)
    return _build_plain_cnn("student_cnn", widths, image_size, dropout, precision, outputs, flatten)


def build_compact_cnn(
    image_size: int = 128, dropout: float = 0.2, precision: str = "float32", outputs: int = 1
) -> keras.Model:
    """Build the recommended student: depthwise separable, 116,000 parameters; the side is at least 32.

    Two ordinary convolutions with stride 2 are followed by depthwise separable convolutions (Howard 2017,
    arXiv:1704.04861) in three stages of 64, 96 and 160 channels, with residual connections within a stage.
    With global average pooling and one dense layer, the class activation map is exact: the logit is the mean
    of the map plus the bias.
    """

    def normalised(x: keras.KerasTensor, layer: keras.layers.Layer) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=0.9, name=f"{layer.name}_bn")(layer(x))

    with _dtype_policy(precision):
        inputs, x = _grey_input(image_size)
        for number, filters in enumerate((16, 32), 1):
            x = normalised(x, layers.Conv2D(filters, 3, 2, "same", use_bias=False, name=f"stem{number}"))
            x = layers.ReLU(name=f"stem{number}_relu")(x)
        for stage, (filters, depth, stride) in enumerate([(64, 2, 1), (96, 3, 2), (160, 3, 2)], 1):
            for number in range(1, depth + 1):
                name, residual, step = f"stage{stage}_block{number}", x, stride if number == 1 else 1
                depthwise = layers.DepthwiseConv2D(3, step, "same", use_bias=False, name=f"{name}_depthwise")
                x = layers.ReLU(name=f"{name}_depthwise_relu")(normalised(x, depthwise))
                x = normalised(x, layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pointwise"))
                x = layers.Add(name=f"{name}_add")([residual, x]) if number > 1 else x
                x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
        return keras.Model(inputs, _logit(x, outputs), name="compact_cnn")


CNNS: dict[str, Callable[..., keras.Model]] = {
    "custom_cnn": build_custom_cnn,
    "teacher_cnn": build_teacher_cnn,
    "student_cnn": build_student_cnn,
    "compact_cnn": build_compact_cnn,
    "teacher_flat": functools.partial(build_teacher_cnn, flatten=True),
    "student_flat": functools.partial(build_student_cnn, flatten=True),
}
"""The builders of networks that are trained from scratch, by name."""


def build_transfer_model(
    backbone: str,
    image_size: int | None = None,
    head_units: Sequence[int] = (1024,),
    dropout: float = 0.5,
    weights: str | None = "imagenet",
    precision: str = "float32",
    outputs: int = 1,
) -> tuple[keras.Model, str]:
    """Build a backbone with a new head, as one flat model.

    Returns the model and the source of its weights: ``imagenet``, ``random`` or the name of a file. An
    unknown backbone raises ValueError. Weights that cannot be loaded raise FileNotFoundError and are not
    replaced by random ones.

    Args:
        backbone: Key in the registry, for example VGG16.
        image_size: By default that of the backbone.
        head_units: Widths of the dense layers between pooling and logit.
        weights: ``"imagenet"``, a weights file or folder, or None for random weights.
    """
    row = get_backbone(backbone)
    size = image_size or row.image_size
    with _dtype_policy(precision):
        inputs = keras.Input((size, size, 1), name="image")
        base = row.build(weights=None, include_top=False, input_tensor=row.preprocess(inputs))
        recorded = load_backbone_weights(base, weights, row)
        for layer in base.layers:
            if isinstance(layer, layers.Dropout):
                layer.rate = 0.0  # with dropout, frozen layers could not be computed once
        x = layers.GlobalAveragePooling2D(name="pool")(base.output)
        x = _dense_block(x, head_units, dropout)
        return keras.Model(inputs, _logit(x, outputs), name=backbone.lower()), recorded


def as_float32(model: keras.Model) -> keras.Model:
    """Copy a model that was trained in mixed precision to one in float32 with the same weights."""
    config = json.dumps(model.get_config())
    for policy in ("mixed_bfloat16", "mixed_float16"):
        config = config.replace(f'"{policy}"', '"float32"')
    rebuilt = model.__class__.from_config(json.loads(config))
    rebuilt.set_weights(model.get_weights())
    refresh_normalisation(rebuilt)
    return rebuilt


def layer_table(model: keras.Model) -> pd.DataFrame:
    """Summarise a flat model by the first word of its layers' names.

    One row per part, in order: ``part``, ``layers``, ``parameters``, ``trainable`` (trainable parameters).
    """
    rows = []
    for layer in model.layers:
        if layer.count_params() or layer.name == "pool":
            trainable = sum(math.prod(weight.shape) for weight in layer.trainable_weights)
            rows.append((layer.name.split("_")[0], 1, layer.count_params(), trainable))
    table = pd.DataFrame(rows, columns=["part", "layers", "parameters", "trainable"])
    return table.groupby("part", sort=False).sum().reset_index()


def last_layer(model: keras.Model) -> keras.layers.Layer:
    """Find the last layer that changes more than the shape, also inside nested models.

    An operation after it that is not a layer, for example a sigmoid, raises ValueError.
    """
    for layer in reversed(getattr(model, "operations", model.layers)):
        if isinstance(layer, keras.Model):
            return last_layer(layer)
        if not isinstance(layer, keras.layers.Layer):
            if type(layer).__name__ in ("Reshape", "Squeeze", "ExpandDims"):
                continue
            raise ValueError(f"the model must end in a layer. Received: operation={layer.name!r}")
        shaping = (keras.layers.Reshape, keras.layers.Flatten, keras.layers.Dropout, keras.layers.Identity)
        linear = getattr(layer, "activation", None) is keras.activations.linear
        if not isinstance(layer, shaping) and not (linear and isinstance(layer, keras.layers.Activation)):
            return layer
    raise ValueError(f"the model must have layers. Received: model={model.name!r}")


def flat_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """Yield all layers in order, including those of nested models."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from flat_layers(layer)
        else:
            yield layer


def last_activation(model: keras.Model) -> str:
    """Name of the last activation, also inside nested models; ``linear`` if there is none."""
    for layer in reversed(list(flat_layers(model))):
        activation = layer if isinstance(layer, keras.layers.Softmax) else getattr(layer, "activation", None)
        name = getattr(activation, "__name__", type(activation).__name__.lower())
        if activation is not None and not (name == "linear" and isinstance(layer, keras.layers.Activation)):
            return name
    return "linear"


def check_logits(model: keras.Model, what: str = "a model") -> None:
    """Raise ValueError unless a model ends in raw logits: one (pneumonia), or one per class."""
    end = type(getattr(model, "operations", model.layers)[-1]).__name__.lower()
    name = end if end in ("sigmoid", "softmax") else last_activation(model)
    check(name not in ("sigmoid", "softmax"), f"{what} must end in raw logits", activation=name)
