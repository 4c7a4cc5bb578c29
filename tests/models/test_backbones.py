"""Backbones: preprocessing in numbers, layers by name, weights that are the right ones or an error."""

import keras
import numpy as np
import pytest

from chestxray.files import find_weights
from chestxray.models.backbones import BACKBONES, get_backbone
from chestxray.models.builders import as_float32, build_transfer_model
from chestxray.models.features import find_cut
from chestxray.models.training import set_trainable_from

MODULES = {
    "VGG16": keras.applications.vgg16,
    "ResNet50": keras.applications.resnet,
    "InceptionV3": keras.applications.inception_v3,
    "DenseNet121": keras.applications.densenet,
    "EfficientNetB0": keras.applications.efficientnet,
}
SMALL = {"VGG16": 32, "ResNet50": 32, "InceptionV3": 75, "DenseNet121": 32, "EfficientNetB0": 32}
NATIVE = {
    "VGG16": (224, 14),
    "ResNet50": (224, 7),
    "InceptionV3": (299, 8),
    "DenseNet121": (224, 7),
    "EfficientNetB0": (224, 7),
}  # sides: input, Grad-CAM layer


@pytest.fixture(
    scope="module",
    params=[
        name if name == "VGG16" else pytest.param(name, marks=pytest.mark.slow) for name in sorted(BACKBONES)
    ],
)
def row(request):
    return BACKBONES[request.param]


def scramble(model):
    """Give every weight other values, batch normalisation included, so that no swap goes unseen."""
    rng = np.random.default_rng(1)
    for layer in model.layers:
        layer.set_weights(
            [
                value * rng.uniform(0.8, 1.2, value.shape)
                + (rng.uniform(0, 0.1, value.shape) if value.ndim == 1 else 0)
                for value in layer.get_weights()
            ]
        )


@pytest.fixture(scope="module")
def pretrained(row, tmp_path_factory):
    """The bare backbone, as if pretrained, and the file with its weights."""
    bare = row.build(weights=None, include_top=False, input_shape=(None, None, 3))
    scramble(bare)
    path = tmp_path_factory.mktemp(row.name) / f"{row.name.lower()}_notop.weights.h5"
    bare.save_weights(path)
    if row.pretrained_variance:  # Keras adds a layer when the weights are called "imagenet"
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("keras.src.utils.file_utils.get_file", lambda *_, **__: str(path))
            bare = row.build(weights="imagenet", include_top=False, input_shape=(None, None, 3))
    return bare, path


@pytest.fixture(scope="module")
def built(row, pretrained):
    model, recorded = build_transfer_model(row.name, SMALL[row.name], (8,), weights=str(pretrained[1]))
    assert recorded == pretrained[1].name
    return model


def weighted(model):
    return [layer for layer in model.layers if layer.weights]


def has_weights_of(model, bare):
    """Whether the backbone's layers of ``model`` hold the weights of ``bare``, each in its place."""
    theirs = weighted(bare)
    ours = weighted(model)[: len(theirs)]
    return all(
        np.array_equal(a, b) or isinstance(one, keras.layers.Normalization)
        for one, other in zip(ours, theirs, strict=True)
        for a, b in zip(one.get_weights(), other.get_weights(), strict=True)
    )


def test_preprocessing_inside_equals_keras(row, built):
    size = SMALL[row.name]
    grey = (np.arange(2 * size * size, dtype=np.float32) % 256).reshape(2, size, size, 1)
    expected = MODULES[row.name].preprocess_input(np.repeat(grey, 3, axis=-1))
    names = {"InceptionV3": "scale", "EfficientNetB0": "three_channels"}
    name = names.get(row.name, "imagenet_means")
    inside = keras.Model(built.input, built.get_layer(name).output)
    np.testing.assert_allclose(inside(grey), expected, rtol=0, atol=1e-4)
    assert len(np.unique(expected[..., 0])) == 256


def test_features_equal_those_of_the_bare_backbone(row, built, pretrained):
    # Only true if every layer has its own weights and the channels are in the right order.
    size = SMALL[row.name]
    grey = np.random.default_rng(0).integers(0, 256, (2, size, size, 1)).astype(np.float32)
    rgb = MODULES[row.name].preprocess_input(np.repeat(grey, 3, axis=-1))
    expected = np.mean(pretrained[0](rgb), axis=(1, 2))
    found = np.asarray(keras.Model(built.input, built.get_layer("pool").output)(grey))
    assert found.std() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_dropout_of_the_backbone_does_not_end_its_frozen_part(row, built):
    set_trainable_from(built, row.stages[-1])
    frozen = built.layers[: built.layers.index(find_cut(built))]
    later = [layer for layer in built.layers if layer.trainable_weights]
    between = set(built.layers[len(frozen) : built.layers.index(later[0])])
    assert not [layer.name for layer in between if isinstance(layer, keras.layers.Conv2D)]


def test_model_is_flat_and_its_named_layers_exist(row, built):
    assert not [layer for layer in built.layers if isinstance(layer, keras.Model)]
    names = {layer.name for layer in built.layers}
    assert {row.gradcam_layer, "pool", "dense1", "logit", *row.stages} <= names
    assert built.input_shape == (None, SMALL[row.name], SMALL[row.name], 1)


def test_gradcam_layer_is_the_last_picture_before_pooling(row, pretrained):
    (size, side), bare = NATIVE[row.name], pretrained[0]
    layer = bare.get_layer(row.gradcam_layer)
    shape = keras.Model(bare.input, layer.output).compute_output_shape((1, size, size, 3))
    assert (row.image_size, shape[1:3]) == (size, (side, side))
    followers = bare.layers[bare.layers.index(layer) + 1 :]
    assert not [other.name for other in followers if other.weights]


def trainable_convolutions(model):
    return {
        layer.name
        for layer in model.layers
        if isinstance(layer, keras.layers.Conv2D) and layer.trainable_weights
    }


def descendants(layer):
    found, todo = set(), [layer]
    while todo:
        for node in todo.pop()._outbound_nodes:
            if node.operation.name not in found:
                found.add(node.operation.name)
                todo.append(node.operation)
    return found


def test_fine_tuning_from_a_stage_trains_this_stage_and_all_later_ones(row, built):
    convolutions = {layer.name for layer in built.layers if isinstance(layer, keras.layers.Conv2D)}
    former = set()
    for stage in reversed(row.stages):
        set_trainable_from(built, stage)
        trained = trainable_convolutions(built)
        if row.name not in ("VGG16", "ResNet50"):  # pool4_conv belongs to the stage of conv4
            expected = convolutions & {stage, *descendants(built.get_layer(stage))}
        else:
            prefix = stage.split("_")[0]  # block5_conv1, conv5_block1_1_conv
            expected = {name for name in convolutions if name.split("_")[0] >= prefix}
        assert trained == expected
        assert trained > former
        former = trained
    set_trainable_from(built, "pool")
    assert not trainable_convolutions(built)
    assert built.get_layer("dense1").trainable and built.get_layer("logit").trainable


def test_float32_copy_of_a_mixed_model_keeps_each_weight_in_its_layer(row):
    mixed, _ = build_transfer_model(row.name, SMALL[row.name], (8,), weights=None, precision="mixed_bfloat16")
    scramble(mixed)
    copy = as_float32(mixed)
    for layer in weighted(mixed):
        for a, b in zip(layer.get_weights(), copy.get_layer(layer.name).get_weights(), strict=True):
            assert np.array_equal(a, b)
    assert {layer.dtype_policy.name for layer in copy.layers} == {"float32"}


# Where weights come from


def test_weights_from_a_file_and_from_folders(row, built, pretrained, monkeypatch):
    bare, path = pretrained
    assert has_weights_of(built, bare)
    # Both kinds of folder end at the same file, which the fixture has loaded.
    assert find_weights(str(path.parent), row.name) == (str(path), path.name)
    monkeypatch.setenv("CHESTXRAY_WEIGHTS", str(path.parent))
    assert find_weights("imagenet", row.name) == (str(path), path.name)
    monkeypatch.setenv("CHESTXRAY_WEIGHTS", str(path))
    assert find_weights("imagenet", row.name) == (str(path), path.name)


def test_imagenet_goes_through_keras_download(row, pretrained, monkeypatch):
    monkeypatch.delenv("CHESTXRAY_WEIGHTS", raising=False)
    asked = []

    def get_file(name, *args, **kwargs):
        asked.append(name)
        return str(pretrained[1])

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    model, recorded = build_transfer_model(row.name, SMALL[row.name], (8,), weights="imagenet")
    assert recorded == "imagenet"
    assert len(asked) == 1 and "notop" in asked[0]
    assert has_weights_of(model, pretrained[0])


@pytest.mark.parametrize(
    "failure", [Exception("URL fetch failure on https://…: None -- no route"), TimeoutError(), OSError("\n")]
)
def test_failed_download_is_an_error_with_both_ways_out(failure, monkeypatch):
    monkeypatch.delenv("CHESTXRAY_WEIGHTS", raising=False)

    def get_file(*args, **kwargs):
        raise failure

    monkeypatch.setattr("keras.src.utils.file_utils.get_file", get_file)
    with pytest.raises(FileNotFoundError) as caught:
        build_transfer_model("VGG16", 32)
    for subset in (
        "connect to the internet",
        "CHESTXRAY_WEIGHTS",
        type(failure).__name__,
        "Received: weights='imagenet'",
    ):
        assert subset in str(caught.value)


def test_file_of_another_network_is_an_error(tmp_path, monkeypatch):
    other = tmp_path / "vgg16_notop.weights.h5"
    keras.applications.MobileNetV3Small(
        weights=None, include_top=False, input_shape=(32, 32, 3)
    ).save_weights(other)
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        build_transfer_model("VGG16", 32, weights=str(other))
    other.write_bytes(b"no weights at all")
    with pytest.raises(FileNotFoundError, match="could not be loaded"):
        build_transfer_model("VGG16", 32, weights=str(other))


@pytest.mark.parametrize("name", ["nothing.h5", "empty"])
def test_missing_file_or_empty_folder_is_an_error(name, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "resnet50_notop.h5").touch()  # another backbone's
    with pytest.raises(FileNotFoundError, match=f"Received: weights='.*{name}'"):
        build_transfer_model("VGG16", 32, weights=str(tmp_path / name))


@pytest.mark.parametrize(
    ("backbone", "file"),
    [
        ("VGG16", "vgg16_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("ResNet50", "resnet50_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("InceptionV3", "inception_v3_weights_tf_dim_ordering_tf_kernels_notop.h5"),
        ("DenseNet121", "densenet121_weights_tf_dim_ordering_tf_kernels_notop.h5"),
    ],
)
def test_files_as_keras_names_them_are_found(backbone, file, tmp_path):
    (tmp_path / file).touch()
    (tmp_path / file.replace("_notop", "")).touch()  # with the classifier on top: not usable
    assert find_weights(str(tmp_path), backbone) == (str(tmp_path / file), file)


def test_none_is_recorded_as_random():
    model, recorded = build_transfer_model("VGG16", 32, (8,), weights=None)
    assert recorded == "random"
    again, _ = build_transfer_model("VGG16", 32, (8,), weights=None)
    assert not np.array_equal(
        model.get_layer("block1_conv1").get_weights()[0], again.get_layer("block1_conv1").get_weights()[0]
    )


def test_unknown_backbone_names_the_known_ones():
    known = "DenseNet121.*InceptionV3.*ResNet50.*VGG16"
    with pytest.raises(ValueError, match=f"{known}.*Received: backbone='vgg16'"):
        get_backbone("vgg16")


def test_real_imagenet_weights_of_vgg16(real_weights):
    # First filter of the published file, as every VGG16 in Keras has it.
    model, recorded = build_transfer_model("VGG16", 32, (8,), weights=str(real_weights))
    kernel = model.get_layer("block1_conv1").get_weights()[0]
    assert recorded == "vgg16_notop.weights.h5"
    np.testing.assert_allclose(kernel[0, 0, 0, :3], [0.42947, 0.11727, 0.03401], atol=1e-5)
