"""One registry row for each backbone: everything that differs between them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import keras

from chestxray.files import find_weights


def _caffe(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Three equal channels minus the ImageNet means in the order blue, green, red.

    ``keras.applications`` preprocesses VGG16 and ResNet50 this way, without
    division. All channels of a grey image are equal, so only the means show
    the order.
    """
    three = keras.layers.Concatenate(name="three_channels", dtype="float32")([grey] * 3)
    return keras.layers.Normalization(
        mean=[103.939, 116.779, 123.68], variance=[1.0, 1.0, 1.0], name="imagenet_means", dtype="float32"
    )(three)


def _minus_one_to_one(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Three equal channels scaled from 0–255 to [−1, 1], as InceptionV3 expects."""
    three = keras.layers.Concatenate(name="three_channels", dtype="float32")([grey] * 3)
    return keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale", dtype="float32")(three)


def _torch(grey: keras.KerasTensor) -> keras.KerasTensor:
    """Three equal channels in [0, 1], minus the ImageNet means, over their standard deviations."""
    three = keras.layers.Concatenate(name="three_channels", dtype="float32")([grey] * 3)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return keras.layers.Normalization(
        mean=[255 * value for value in mean],
        variance=[(255 * value) ** 2 for value in deviation],
        name="imagenet_means",
        dtype="float32",
    )(three)


@dataclass(frozen=True)
class Backbone:
    """A convolutional network pretrained on ImageNet.

    Attributes:
        name: Key in :data:`BACKBONES` and in file names.
        build: The builder in ``keras.applications``.
        image_size: Side in pixels on which it was trained.
        preprocess: Makes the layers from one grey channel in 0–255 to what
            the network expects.
        gradcam_layer: Last layer that keeps the picture's geometry.
        stages: First layer of each stage, from the input on; fine-tuning
            from a stage trains this layer and all that follow. InceptionV3
            numbers its convolutions anew in every instance, so its stages are
            named by the concatenation in front of them.
        bf16_pays: Whether bfloat16 is faster than float32 on a processor
            that has the units.
    """

    name: str
    build: Callable[..., keras.Model]
    image_size: int
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]
    gradcam_layer: str
    stages: tuple[str, ...]
    bf16_pays: bool


BACKBONES = {
    row.name: row
    for row in (
        Backbone(
            "VGG16",
            keras.applications.VGG16,
            224,
            _caffe,
            "block5_conv3",
            tuple(f"block{n}_conv1" for n in range(1, 6)),
            bf16_pays=True,
        ),
        Backbone(
            "ResNet50",
            keras.applications.ResNet50,
            224,
            _caffe,
            "conv5_block3_out",
            ("conv1_conv", *(f"conv{n}_block1_1_conv" for n in range(2, 6))),
            bf16_pays=True,
        ),
        Backbone(
            "InceptionV3",
            keras.applications.InceptionV3,
            299,
            _minus_one_to_one,
            "mixed10",
            tuple(f"mixed{n}" for n in (0, 2, 4, 7, 8)),
            bf16_pays=True,
        ),
        Backbone(
            "DenseNet121",
            keras.applications.DenseNet121,
            224,
            _torch,
            "relu",
            ("conv1_conv", *(f"conv{n}_block1_0_bn" for n in range(2, 6))),
            bf16_pays=True,
        ),
    )
}


def get_backbone(name: str) -> Backbone:
    """Look a backbone up by name.

    Raises:
        ValueError: Unknown name; lists the known ones.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone must be one of {sorted(BACKBONES)}. Received: backbone={name!r}")
    return BACKBONES[name]


def load_backbone_weights(model: keras.Model, weights: str | None, backbone: Backbone) -> str:
    """Put pretrained weights into the backbone's layers of a flat model.

    The weights are loaded into the bare backbone and copied layer by layer in
    order, because layer names of InceptionV3 differ between instances.

    Args:
        model: The backbone with its own preprocessing layers in front.
        weights: See :func:`chestxray.files.find_weights`.
        backbone: Registry row.

    Returns:
        The name to record.

    Raises:
        FileNotFoundError: The weights cannot be had; says both ways out.
    """
    source, recorded = find_weights(weights, backbone.name)
    if source is None:
        return recorded
    try:
        pretrained = backbone.build(weights=source, include_top=False, input_shape=(None, None, 3))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]  # may be empty, or many lines
        raise FileNotFoundError(
            f"the weights of {backbone.name} could not be loaded ({type(error).__name__}: "
            f"{reason}). Either connect to the internet, so that Keras can "
            f"download them, or give a file or folder with {backbone.name.lower()}_notop.weights.h5 as "
            f"weights or in CHESTXRAY_WEIGHTS. Received: weights={weights!r}"
        ) from error
    layers = [layer for layer in model.layers if layer.weights]
    for layer, trained in zip(layers, [layer for layer in pretrained.layers if layer.weights], strict=True):
        layer.set_weights(trained.get_weights())
    return recorded
