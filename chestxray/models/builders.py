"""Builders of the networks: from scratch, teacher, student, and transfer from ImageNet.

Every builder gives a flat functional graph from grey images (N, size, size, 1) in 0–255, with the scaling
inside, to ``float32`` logits (N, outputs). The logit layer starts at zero, so that an untrained network finds
all classes equally likely: its loss is ln 2, or ln 3. Common arguments: ``image_size``, side of the input in
pixels; ``dropout``, rate between the dense layers, [0, 1); ``precision``, Keras dtype policy; ``outputs``, 1
logit, or 3 (normal, bacteria, virus); others raise ValueError.
"""

import contextlib
import json
import math
from collections.abc import Callable, Iterator, Sequence

import keras
import pandas as pd
from keras import layers

from chestxray.models.backbones import get_backbone, load_backbone_weights, refresh_normalisation


@contextlib.contextmanager
def _dtype_policy(name: str) -> Iterator[None]:
    """Build layers under a Keras dtype policy and restore the former one."""
    former = keras.config.dtype_policy()
    keras.config.set_dtype_policy(name)
    try:
        yield
    finally:
        keras.config.set_dtype_policy(former)


def _grey_input(size: int) -> tuple[keras.KerasTensor, keras.KerasTensor]:
    inputs = keras.Input((size, size, 1), name="image")
    return inputs, layers.Rescaling(1 / 127.5, offset=-1.0, name="scale", dtype="float32")(inputs)


def _logit(features: keras.KerasTensor, outputs: int) -> keras.KerasTensor:
    if outputs not in (1, 3):
        raise ValueError(f"outputs must be 1 or 3 (normal, bacteria, virus). Received: outputs={outputs!r}")
    return layers.Dense(outputs, kernel_initializer="zeros", dtype="float32", name="logit")(features)


def _dense_block(x: keras.KerasTensor, units: Sequence[int], dropout: float) -> keras.KerasTensor:
    for number, width in enumerate(units, 1):
        x = layers.Dense(width, activation="relu", name=f"dense{number}")(x)
        x = layers.Dropout(dropout, name=f"dropout{number}")(x)
    return x


def build_custom_cnn(
    image_size: int = 224, dropout: float = 0.3, precision: str = "float32", outputs: int = 1
) -> keras.Model:
    """Build the network from scratch: 11 convolutions and 5 dense layers; the side is at least 64.

    Five blocks of 3 × 3 convolutions have 16 to 128 filters, batch normalisation, and max pooling between the
    blocks. The first convolution has stride 2, which makes the network about ten times faster.
    """
    with _dtype_policy(precision):
        inputs, x = _grey_input(image_size)
        for block, (filters, depth) in enumerate([(16, 2), (32, 2), (64, 2), (96, 2), (128, 3)], 1):
            for number in range(1, depth + 1):
                stride = 2 if block == number == 1 else 1
                x = layers.Conv2D(
                    filters, 3, stride, "same", use_bias=False, name=f"block{block}_conv{number}"
                )(x)
                x = layers.BatchNormalization(momentum=0.9, name=f"block{block}_bn{number}")(x)
                x = layers.ReLU(name=f"block{block}_relu{number}")(x)
            if block < 5:
                x = layers.MaxPooling2D(name=f"block{block}_pool")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = _dense_block(x, (256, 128, 64, 32), dropout)
        return keras.Model(inputs, _logit(x, outputs), name="custom_cnn")


def _build_plain_cnn(
    name: str,
    filters: Sequence[int],
    units: Sequence[int],
    image_size: int,
    dropout: float,
    precision: str,
    outputs: int,
) -> keras.Model:
    with _dtype_policy(precision):
        inputs, x = _grey_input(image_size)
        for number, width in enumerate(filters, 1):
            x = layers.Conv2D(width, 3, padding="same", activation="relu", name=f"conv{number}")(x)
            x = layers.MaxPooling2D(name=f"pool{number}")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        return keras.Model(inputs, _logit(_dense_block(x, units, dropout), outputs), name=name)


def build_teacher_cnn(
    image_size: int = 224, dropout: float = 0.3, precision: str = "float32", outputs: int = 1
) -> keras.Model:
    """Build a light teacher: 3 convolutions (64, 128, 256) and 3 dense layers (512, 256, outputs).

    Published versions flatten where it pools: at 224 px the first dense layer then has 100 million weights.
    """
    filters, units = (64, 128, 256), (512, 256)
    return _build_plain_cnn("teacher_cnn", filters, units, image_size, dropout, precision, outputs)


def build_student_cnn(
    image_size: int = 224, dropout: float = 0.2, precision: str = "float32", outputs: int = 1
) -> keras.Model:
    """Build a small student, below 100,000 parameters: 2 convolutions (32, 64), 3 dense layers."""
    return _build_plain_cnn("student_cnn", (32, 64), (128, 64), image_size, dropout, precision, outputs)


def build_compact_cnn(
    image_size: int = 128, dropout: float = 0.2, precision: str = "float32", outputs: int = 1
) -> keras.Model:
    """Build the recommended student: depthwise separable, 116,000 parameters; the side is at least 32.

    Two ordinary convolutions with stride 2, then depthwise separable ones (Howard 2017, arXiv:1704.04861) in
    three stages of 64, 96 and 160 channels, with residual connections within a stage. Global average pooling
    and one dense layer make the class activation map exact: the logit is the mean of the map plus the bias.
    """

    def normalised(x: keras.KerasTensor, name: str) -> keras.KerasTensor:
        return layers.BatchNormalization(momentum=0.9, name=f"{name}_bn")(x)

    with _dtype_policy(precision):
        inputs, x = _grey_input(image_size)
        for number, filters in enumerate((16, 32), 1):
            x = layers.Conv2D(filters, 3, 2, "same", use_bias=False, name=f"stem{number}")(x)
            x = layers.ReLU(name=f"stem{number}_relu")(normalised(x, f"stem{number}"))
        for stage, (filters, depth, stride) in enumerate([(64, 2, 1), (96, 3, 2), (160, 3, 2)], 1):
            for number in range(1, depth + 1):
                name, before, step = f"stage{stage}_block{number}", x, stride if number == 1 else 1
                x = layers.DepthwiseConv2D(3, step, "same", use_bias=False, name=f"{name}_depthwise")(x)
                x = layers.ReLU(name=f"{name}_depthwise_relu")(normalised(x, f"{name}_depthwise"))
                x = layers.Conv2D(filters, 1, use_bias=False, name=f"{name}_pointwise")(x)
                x = normalised(x, f"{name}_pointwise")
                x = layers.Add(name=f"{name}_add")([before, x]) if number > 1 else x
                x = layers.ReLU(name=f"{name}_relu")(x)
        x = layers.GlobalAveragePooling2D(name="pool")(x)
        x = layers.Dropout(dropout, name="dropout")(x)
        return keras.Model(inputs, _logit(x, outputs), name="compact_cnn")


CNNS: dict[str, Callable[..., keras.Model]] = {
    "custom_cnn": build_custom_cnn,
    "teacher_cnn": build_teacher_cnn,
    "student_cnn": build_student_cnn,
    "compact_cnn": build_compact_cnn,
}
"""The networks from scratch, by name."""


def build_transfer_model(
    backbone: str,
    image_size: int | None = None,
    head_units: Sequence[int] = (1024,),
    dropout: float = 0.5,
    weights: str | None = "imagenet",
    precision: str = "float32",
    outputs: int = 1,
) -> tuple[keras.Model, str]:
    """Build a backbone with a new head, as one flat graph.

    Gives the model, and where its weights come from: ``imagenet``, ``random`` or a file's name. An unknown
    backbone raises ValueError; weights that cannot be had raise FileNotFoundError, never random ones instead.

    Args:
        backbone: Key in the registry, for example VGG16.
        image_size: By default the backbone's own.
        head_units: Widths of the dense layers between pooling and logit.
        weights: ``"imagenet"``, a weights file or folder, or None for random.
    """
    row = get_backbone(backbone)
    size = image_size or row.image_size
    with _dtype_policy(precision):
        inputs = keras.Input((size, size, 1), name="image")
        base = row.build(weights=None, include_top=False, input_tensor=row.preprocess(inputs))
        recorded = load_backbone_weights(base, weights, row)
        for layer in base.layers:
            if isinstance(layer, layers.Dropout):
                layer.rate = 0.0  # a backbone's own dropout would end its frozen part
        x = layers.GlobalAveragePooling2D(name="pool")(base.output)
        x = _dense_block(x, head_units, dropout)
        return keras.Model(inputs, _logit(x, outputs), name=backbone.lower()), recorded


def as_float32(model: keras.Model) -> keras.Model:
    """Rebuild a model that was trained in mixed precision, with the same weights in float32."""
    config = json.dumps(model.get_config())
    for policy in ("mixed_bfloat16", "mixed_float16"):
        config = config.replace(f'"{policy}"', '"float32"')
    rebuilt = model.__class__.from_config(json.loads(config))
    rebuilt.set_weights(model.get_weights())
    refresh_normalisation(rebuilt)
    return rebuilt


def layer_table(model: keras.Model) -> pd.DataFrame:
    """Summarise a flat model by the first word of its layers' names.

    One row a part, in order: ``part``, ``layers``, ``parameters``, ``trainable`` (parameters that learn).
    """
    layers_ = [layer for layer in model.layers if layer.count_params() or layer.name == "pool"]
    table = pd.DataFrame({"part": [layer.name.split("_")[0] for layer in layers_], "layers": 1})
    table["parameters"] = [layer.count_params() for layer in layers_]
    trained = [[math.prod(weight.shape) for weight in layer.trainable_weights] for layer in layers_]
    table["trainable"] = list(map(sum, trained))
    return table.groupby("part", sort=False).sum().reset_index()


def last_layer(model: keras.Model) -> keras.layers.Layer:
    """Find the last layer that changes more than the shape, also inside nested models.

    Raises ValueError: Something that is no layer follows it, perhaps a sigmoid.
    """
    for layer in reversed(getattr(model, "operations", model.layers)):
        if isinstance(layer, keras.Model):
            return last_layer(layer)
        if not isinstance(layer, keras.layers.Layer):
            if type(layer).__name__ in ("Reshape", "Squeeze", "ExpandDims"):
                continue
            message = "something that is no layer follows the last layer: end in a layer"
            raise ValueError(f"{message}. Received: operation={layer.name!r}")
        shaping = (keras.layers.Reshape, keras.layers.Flatten, keras.layers.Dropout, keras.layers.Identity)
        linear = getattr(layer, "activation", None) is keras.activations.linear
        if not isinstance(layer, shaping) and not (linear and isinstance(layer, keras.layers.Activation)):
            return layer
    raise ValueError(f"a model without layers. Received: model={model.name!r}")


def flat_layers(model: keras.Model) -> Iterator[keras.layers.Layer]:
    """All layers in order, those of inner models in their place."""
    for layer in model.layers:
        if isinstance(layer, keras.Model):
            yield from flat_layers(layer)
        else:
            yield layer


def last_activation(model: keras.Model) -> str:
    """Name of the last activation of a network, also inside nested models; ``linear`` without any."""
    for layer in reversed(list(flat_layers(model))):
        activation = layer if isinstance(layer, keras.layers.Softmax) else getattr(layer, "activation", None)
        name = getattr(activation, "__name__", type(activation).__name__.lower())
        if activation is not None and not (name == "linear" and isinstance(layer, keras.layers.Activation)):
            return name
    return "linear"


def check_logits(model: keras.Model, what: str = "a model") -> None:
    """Raise ValueError unless a model ends in raw logits: one (pneumonia), or several, one a class."""
    end = type(getattr(model, "operations", model.layers)[-1]).__name__.lower()
    name = end if end in ("sigmoid", "softmax") else last_activation(model)
    if name in ("sigmoid", "softmax"):
        raise ValueError(f"{what} must end in raw logits. Received: activation={name!r}")
