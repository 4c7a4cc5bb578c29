"""Where a network is cut, and that the frozen part as a graph equals its layers."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from chestxray.models.builders import build_custom_cnn, build_transfer_model
from chestxray.models.features import find_cut, frozen_graph
from chestxray.models.training import cpu_has_bf16, set_trainable_from


@pytest.fixture(
    scope="module",
    params=[
        ("VGG16", 32),
        *(
            pytest.param(pair, marks=pytest.mark.slow)
            for pair in (("ResNet50", 32), ("InceptionV3", 75), ("DenseNet121", 32))
        ),
    ],
    ids=lambda pair: pair[0],
)
def network(request):
    """A backbone with a head whose logits vary, batch normalisation with statistics of its own."""
    keras.utils.set_random_seed(3)
    model, _ = build_transfer_model(*request.param, (8,), weights=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([value * rng.uniform(0.8, 1.2, value.shape) for value in layer.get_weights()])
    model.get_layer("logit").set_weights([rng.normal(size=(8, 1)), np.zeros(1)])
    return model


# The cut


@functools.cache
def bare(backbone):
    return build_transfer_model(backbone, 75, (8,), weights=None)[0]


@pytest.mark.parametrize(
    ("backbone", "first", "cut"),
    [
        ("VGG16", "block5_conv1", "block4_pool"),
        ("VGG16", "block5_conv2", "block5_conv1"),
        ("ResNet50", "conv4_block5_1_conv", "conv4_block4_out"),
        ("ResNet50", "conv5_block1_1_conv", "conv4_block6_out"),
        (
            "ResNet50",
            "conv4_block5_2_conv",
            "conv4_block4_out",
        ),  # inside a block: the shortcut runs beside it
        ("InceptionV3", "mixed8", "mixed8"),
        ("InceptionV3", "mixed7", "mixed7"),
        ("DenseNet121", "conv5_block1_0_bn", "pool4_pool"),
        ("DenseNet121", "conv5_block2_1_conv", "conv5_block1_concat"),
    ],
)
def test_cut_by_hand(backbone, first, cut):
    model = bare(backbone)
    set_trainable_from(model, first)
    assert find_cut(model).name == cut
    set_trainable_from(model, "pool")
    assert find_cut(model).name == "pool"


def test_nothing_frozen_means_no_cut():
    model, _ = build_transfer_model("VGG16", 32, (8,), weights=None)
    assert find_cut(model) is None
    set_trainable_from(model, "block1_conv1")  # only the preprocessing, which has weights too, is frozen
    assert find_cut(model) is None
    assert find_cut(build_custom_cnn(64)) is None


def test_dropout_and_moving_statistics_are_never_stored():
    model = tiny.network()
    for layer in model.layers:
        layer.trainable = layer.name in ("dense1", "logit")
    after = model.layers[model.layers.index(model.get_layer("bn")) + 1]  # the ReLU; dropout follows
    assert find_cut(model) is after
    model.get_layer("bn").trainable = True
    assert find_cut(model).name == "conv"


# Exactness


def test_prefix_and_rest_equal_the_whole_network_in_float32(network):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, *network.input_shape[1:])) * np.linspace(0, 1, 40)[:, None, None, None]
    images = images.astype(np.float32)
    expected = network(images, training=False).numpy()
    assert np.ptp(expected) > 0.1 * np.abs(expected).max() > 0
    for cut in (network.get_layer("pool"), _stage_cut(network)):
        prefix = frozen_graph(keras.Model(network.input, cut.output))
        rest = keras.Model(cut.output, network.output)
        for size in (32, 8):  # a shorter last batch
            found = rest(prefix(tf.constant(images[:size]))[0], training=False)
            np.testing.assert_allclose(found, expected[:size], rtol=1e-5, atol=1e-5 * np.ptp(expected))


def _stage_cut(network):
    first = {
        "vgg16": "block5_conv1",
        "resnet50": "conv4_block5_1_conv",
        "inceptionv3": "mixed8",
        "densenet121": "conv5_block1_0_bn",
    }[network.name]
    set_trainable_from(network, first)
    return find_cut(network)


@pytest.mark.skipif(not cpu_has_bf16(), reason="the processor has no bfloat16 units")
def test_bf16_graph_leaves_float32_elsewhere(network):
    mixed, _ = build_transfer_model(
        {
            "vgg16": "VGG16",
            "resnet50": "ResNet50",
            "inceptionv3": "InceptionV3",
            "densenet121": "DenseNet121",
        }[network.name],
        network.input_shape[1],
        (8,),
        weights=None,
        precision="mixed_bfloat16",
    )
    mixed.set_weights(network.get_weights())
    images = tf.random.stateless_uniform((8, *network.input_shape[1:]), (0, 0), maxval=255.0)
    pool = keras.Model(network.input, network.get_layer("pool").output)
    expected = pool(images).numpy()
    found = frozen_graph(keras.Model(mixed.input, mixed.get_layer("pool").output))(images)[0]
    difference = np.abs(found - expected).max() / np.ptp(expected)
    assert 1e-5 < difference < 0.03  # it did compute in bfloat16, and no worse than that
    exact = tf.function(pool)(images).numpy()
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected))
