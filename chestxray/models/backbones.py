"""Registry of pretrained backbones and loading of their weights."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import keras
from keras import applications

from chestxray.files import find_weights
from chestxray.schema import check


def _three_channels(grey: keras.KerasTensor) -> keras.KerasTensor:
    return keras.layers.Concatenate(name="three_channels", dtype="float32")([grey] * 3)


def _normalise(grey: keras.KerasTensor, mean: tuple, deviation: tuple, white: float) -> keras.KerasTensor:
    statistics = {"mean": [white * m for m in mean], "variance": [(white * d) ** 2 for d in deviation]}
    layer = keras.layers.Normalization(**statistics, name="imagenet_means", dtype="float32")
    return layer(_three_channels(grey))


# Caffe: subtract the ImageNet means (blue, green, red). Torch: scale to [0, 1], standardise (red to blue).
_caffe = partial(_normalise, mean=(103.939, 116.779, 123.68), deviation=(1.0, 1.0, 1.0), white=1.0)
_torch = partial(_normalise, mean=(0.485, 0.456, 0.406), deviation=(0.229, 0.224, 0.225), white=255)


def _minus_one_to_one(grey: keras.KerasTensor) -> keras.KerasTensor:
    scale = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="scale", dtype="float32")
    return scale(_three_channels(grey))


@dataclass(frozen=True)
class Backbone:
    """A convolutional network pretrained on ImageNet.

    Attributes:
        name, build: Key in :data:`BACKBONES` and in file names; the builder in ``keras.applications``.
        image_size: Side in pixels of the images that it was trained on.
        preprocess: Adds the preprocessing layers between one grey channel in 0–255 and the backbone.
        gradcam_layer, channels: Last layer with spatial feature maps, and their number.
        stages: First layer of each stage, from input to output; fine-tuning trains one and all later stages.
            For InceptionV3, the concatenation before a stage, because its convolutions have no fixed names.
        bf16_pays: Whether bfloat16 was measured to be faster than float32 on a CPU with bfloat16 units.
        pretrained_variance: Factors on the variance of the builder's own normalisation layer with pretrained
            weights. Keras' EfficientNets divide by their square roots only for ``weights="imagenet"``.
    """

    name: str
    build: Callable[..., keras.Model]
    image_size: int
    preprocess: Callable[[keras.KerasTensor], keras.KerasTensor]
    gradcam_layer: str
    channels: int
    stages: tuple[str, ...]
    bf16_pays: bool = True
    pretrained_variance: tuple[float, ...] | None = None


_VGG16 = tuple(f"block{n}_conv1" for n in range(1, 6))
_RESNET = ("conv1_conv", *(f"conv{n}_block1_1_conv" for n in range(2, 6)))
_INCEPTION = tuple(f"mixed{n}" for n in (0, 2, 4, 7, 8))
_DENSENET = ("conv1_conv", *(f"conv{n}_block1_0_bn" for n in range(2, 6)))
_EFFICIENTNET = ("stem_conv", *(f"block{n}a_expand_conv" for n in (2, 3, 4, 6)))

BACKBONES = {
    row.name: row
    for row in (
        Backbone("VGG16", applications.VGG16, 224, _caffe, "block5_conv3", 512, _VGG16),
        Backbone("ResNet50", applications.ResNet50, 224, _caffe, "conv5_block3_out", 2048, _RESNET),
        Backbone("InceptionV3", applications.InceptionV3, 299, _minus_one_to_one, "mixed10", 2048,
                 _INCEPTION),
        Backbone("DenseNet121", applications.DenseNet121, 224, _torch, "relu", 1024, _DENSENET),
        Backbone("EfficientNetB0", applications.EfficientNetB0, 224, _three_channels, "top_activation",
                 1280, _EFFICIENTNET, bf16_pays=False, pretrained_variance=(0.229, 0.224, 0.225)),
    )
}  # fmt: skip


def get_backbone(name: str) -> Backbone:
    """Return a backbone by name; an unknown name raises ValueError."""
    check(name in BACKBONES, f"backbone must be one of {sorted(BACKBONES)}", backbone=name)
    return BACKBONES[name]


def load_backbone_weights(model: keras.Model, weights: str | None, backbone: Backbone) -> str:
    """Load pretrained weights into the backbone's layers of a flat model; return the name to record.

    For ``weights`` see :func:`chestxray.files.find_weights`; FileNotFoundError if they cannot be loaded. They
    are copied in the order of the layers, because layer names of InceptionV3 differ between instances.
    """
    source, recorded = find_weights(weights, backbone.name)
    if source is None:
        return recorded
    try:
        pretrained = backbone.build(weights=source, include_top=False, input_shape=(None, None, 3))
    except Exception as error:
        reason = " ".join(str(error).split())[:120]  # may be empty, or many lines
        raise FileNotFoundError(
            f"the weights of {backbone.name} could not be loaded ({type(error).__name__}: {reason}). Either "
            "connect to the internet, so that Keras can download them, or pass a file or folder with "
            f"{backbone.name.lower()}_notop.weights.h5 as weights or in CHESTXRAY_WEIGHTS. "
            f"Received: weights={weights!r}"
        ) from error
    layers, trained = ([layer for layer in m.layers if layer.weights] for m in (model, pretrained))
    for layer, source_layer in zip(layers, trained, strict=True):
        layer.set_weights(source_layer.get_weights())
        if backbone.pretrained_variance and isinstance(layer, keras.layers.Normalization):
            mean, variance, *count = layer.get_weights()
            layer.set_weights([mean, variance * backbone.pretrained_variance, *count])
    refresh_normalisation(model)
    return recorded


def refresh_normalisation(model: keras.Model) -> None:
    """Make ``Normalization`` layers use the weights that ``set_weights`` gave them."""
    # Keras computes with copies of mean and variance, and updates them only when it adapts or loads a layer.
    for layer in model.layers:
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
        elif isinstance(layer, keras.Model):
            refresh_normalisation(layer)
