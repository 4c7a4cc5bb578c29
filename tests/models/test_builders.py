"""The networks: their layers, their size, where they start, and that they can learn."""

import math

import keras
import numpy as np
import pytest
import tiny
from keras import layers

from chestxray.models.builders import (
    CNNS,
    as_float32,
    build_compact_cnn,
    build_custom_cnn,
    build_transfer_model,
    layer_table,
)
from chestxray.models.training import compile_model, set_trainable_from

LAYERS = {
    "custom_cnn": (11, 5),
    "teacher_cnn": (3, 3),
    "student_cnn": (2, 3),
    "compact_cnn": (10, 1),
}  # ordinary convolutions, dense

# weights + biases, layer by layer; the convolutions of custom_cnn have no bias, its 11 batch
# normalisations (800 channels in all) have four numbers a channel
PARAMETERS = {
    "student_cnn": (9 * 1 * 32 + 32) + (9 * 32 * 64 + 64) + (64 * 128 + 128) + (128 * 64 + 64) + (64 + 1),
    "teacher_cnn": (9 * 1 * 64 + 64)
    + (9 * 64 * 128 + 128)
    + (9 * 128 * 256 + 256)
    + (256 * 512 + 512)
    + (512 * 256 + 256)
    + (256 + 1),
    "custom_cnn": 9
    * (
        1 * 16
        + 16 * 16
        + 16 * 32
        + 32 * 32
        + 32 * 64
        + 64 * 64
        + 64 * 96
        + 96 * 96
        + 96 * 128
        + 128 * 128
        + 128 * 128
    )
    + 4 * 800
    + (128 * 256 + 256)
    + (256 * 128 + 128)
    + (128 * 64 + 64)
    + (64 * 32 + 32)
    + (32 + 1),
    # from a to b channels: depthwise 9a, pointwise ab, four numbers of each batch normalisation
    "compact_cnn": 9 * 1 * 16
    + 4 * 16
    + 9 * 16 * 32
    + 4 * 32
    + sum(
        9 * a + 4 * a + a * b + 4 * b
        for a, b in [(32, 64), (64, 64), (64, 96), (96, 96), (96, 96), (96, 160), (160, 160), (160, 160)]
    )
    + (160 + 1),
}


def count(model, kind):
    return sum(isinstance(layer, kind) for layer in model.layers)


def pictures(number=4, size=64, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (number, size, size, 1)).astype(np.float32)


@pytest.fixture(scope="module", params=sorted(LAYERS))
def cnn(request):
    return CNNS[request.param](64)


def test_layers_and_parameters_by_hand(cnn):
    assert (count(cnn, layers.Conv2D), count(cnn, layers.Dense)) == LAYERS[cnn.name]
    assert cnn.count_params() == PARAMETERS[cnn.name]
    assert not [layer for layer in cnn.layers if isinstance(layer, (keras.Model, layers.Flatten))]


def test_student_is_small():
    assert PARAMETERS["student_cnn"] == 35_457 < 100_000


def test_recommended_student_is_small_and_its_map_is_exact():
    model = build_compact_cnn(64)
    assert model.count_params() == PARAMETERS["compact_cnn"] < 150_000
    assert [layer.name for layer in model.layers[-3:]] == ["pool", "dropout", "logit"]
    last = model.get_layer("logit")
    last.set_weights([np.random.default_rng(0).normal(size=(160, 1)), np.array([0.3])])
    inner = keras.Model(model.input, model.get_layer("pool").input)
    maps = np.asarray(inner(pictures())) @ last.kernel.numpy()
    np.testing.assert_allclose(maps.mean(axis=(1, 2)) + 0.3, model(pictures()), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "build",
    [
        *CNNS.values(),
        lambda size, outputs: build_transfer_model("VGG16", size, (8,), weights=None, outputs=outputs)[0],
    ],
    ids=[*CNNS, "VGG16"],
)
def test_three_logits_start_equal(build):
    model = build(64, outputs=3)
    np.testing.assert_array_equal(model(pictures()), np.zeros((4, 3)))


def test_two_logits_are_refused():
    with pytest.raises(ValueError, match="outputs must be 1 or 3.*Received: outputs=2"):
        build_compact_cnn(64, outputs=2)


def test_size_does_not_change_the_number_of_parameters(cnn):
    assert CNNS[cnn.name](128).count_params() == cnn.count_params()


def test_custom_cnn_has_stride_two_first_and_all_it_was_asked_for():
    model = build_custom_cnn(64, dropout=0.4)
    strides = [layer.strides for layer in model.layers if isinstance(layer, layers.Conv2D)]
    assert strides == [(2, 2)] + [(1, 1)] * 10
    assert count(model, layers.BatchNormalization) == 11
    assert count(model, layers.MaxPooling2D) == 4
    assert [layer.rate for layer in model.layers if isinstance(layer, layers.Dropout)] == [0.4] * 4


def test_scaling_of_grey_values_is_inside(cnn):
    assert cnn.input_shape == (None, 64, 64, 1)
    scaled = keras.Model(cnn.input, cnn.get_layer("scale").output)
    ramp = np.linspace(0, 255, 64 * 64, dtype=np.float32).reshape(1, 64, 64, 1)
    np.testing.assert_allclose(scaled(ramp), ramp / 127.5 - 1, atol=1e-6)
    assert cnn.layers[2].input is cnn.get_layer("scale").output  # nothing goes round it


@pytest.mark.parametrize(
    "build",
    [
        *CNNS.values(),
        lambda size, precision: build_transfer_model("VGG16", size, (8,), weights=None, precision=precision)[
            0
        ],
    ],
    ids=[*CNNS, "VGG16"],
)
def test_logit_is_float32_and_starts_at_ln_2_in_mixed_precision(build):
    former = keras.config.dtype_policy()
    model = build(64, precision="mixed_bfloat16")
    assert keras.config.dtype_policy() == former
    inner = [layer for layer in model.layers if isinstance(layer, (layers.Conv2D, layers.Dense))]
    assert {layer.compute_dtype for layer in inner if layer.name != "logit"} == {"bfloat16"}
    assert {weight.dtype for weight in model.weights} == {"float32"}
    logits = model(pictures())
    assert (model.layers[-1].name, logits.dtype, logits.shape) == ("logit", "float32", (4, 1))
    labels = np.array([[0.0], [1.0], [1.0], [1.0]])
    loss = keras.losses.BinaryCrossentropy(from_logits=True)(labels, logits)
    assert float(loss) == pytest.approx(math.log(2), abs=1e-6)
    last = model.get_layer("logit")
    last.set_weights([np.full_like(value, 0.37) for value in last.get_weights()])
    moved = np.asarray(model(pictures()))
    assert not np.array_equal(moved, as_bfloat16(moved))  # not half precision in float32's clothes


def as_bfloat16(values):
    return np.asarray(keras.ops.cast(keras.ops.cast(values, "bfloat16"), "float32"))


def test_policy_is_restored_after_an_error():
    with pytest.raises(ValueError):
        build_custom_cnn(64, dropout=7.0, precision="mixed_bfloat16")
    assert keras.config.dtype_policy().name == "float32"


@pytest.mark.slow
def test_one_batch_is_overfitted():
    keras.utils.set_random_seed(0)
    model = build_custom_cnn(64, dropout=0.0)
    compile_model(model, keras.optimizers.Adam(2e-3))
    model.optimizer.build(model.trainable_variables)  # the step would be traced twice
    images, labels = pictures(8), np.tile([0.0, 1.0, 1.0, 0.0], 2)
    history = model.fit(images, labels, batch_size=8, epochs=50, verbose=0).history
    assert history["loss"][0] == pytest.approx(math.log(2), abs=1e-5)
    assert history["loss"][-1] < 0.05
    logits = np.ravel(model(images, training=False))  # with moving statistics, as in use
    assert ((logits > 0) == labels).all()


# as_float32


@pytest.fixture(scope="module", params=["custom_cnn", "student_cnn"])
def mixed(request):
    model = CNNS[request.param](64, precision="mixed_bfloat16")
    rng = np.random.default_rng(2)
    for layer in model.layers:
        layer.set_weights(
            [
                value * rng.uniform(0.5, 1.5, value.shape) + rng.uniform(0, 0.05, value.shape)
                for value in layer.get_weights()
            ]
        )
    return model


def test_float32_copy_has_the_same_weights_and_nearly_the_same_logits(mixed):
    copy = as_float32(mixed)
    assert {layer.dtype_policy.name for layer in copy.layers} == {"float32"}
    assert copy.dtype_policy.name == "float32" or copy.compute_dtype == "float32"
    assert tiny.same(copy.get_weights(), mixed.get_weights())
    exact, rough = np.asarray(copy(pictures())), np.asarray(mixed(pictures()))
    assert not np.array_equal(exact, rough)
    np.testing.assert_allclose(rough, exact, rtol=0.05)
    assert mixed.get_layer("dense1").compute_dtype == "bfloat16"  # the trained model is left alone
    copy.get_layer("logit").set_weights([value + 1 for value in copy.get_layer("logit").get_weights()])
    assert not tiny.same(copy.get_weights(), mixed.get_weights())  # two models, not one


def test_float32_copy_is_float32_after_reload(mixed, tmp_path):
    copy = as_float32(mixed)
    copy.save(tmp_path / "model.keras")
    reloaded = keras.models.load_model(tmp_path / "model.keras", safe_mode=True, compile=False)
    assert {layer.dtype_policy.name for layer in reloaded.layers} == {"float32"}
    assert np.array_equal(reloaded(pictures()), copy(pictures()))


@pytest.mark.parametrize("nested", [False, True])
def test_float32_copy_normalises_with_the_weights_of_the_model(nested):
    # EfficientNet begins with such a layer. Keras computes with copies of its weights.
    inputs = keras.Input((2, 2, 1))
    norm = layers.Normalization(dtype="mixed_bfloat16")
    model = keras.Model(inputs, norm(inputs))
    if nested:
        outer = keras.Input((2, 2, 1))
        model = keras.Model(outer, model(outer))
    norm.set_weights([np.array([4.0]), np.array([0.25]), np.array(1)])
    norm.finalize_state()
    np.testing.assert_allclose(as_float32(model)(np.full((1, 2, 2, 1), 5.0)), 2)  # (5 − 4) / √0.25


# layer_table


def test_layer_table_adds_up(cnn):
    table = layer_table(cnn)
    assert table["parameters"].sum() == cnn.count_params()
    assert table["trainable"].sum() == sum(math.prod(w.shape) for w in cnn.trainable_weights)
    assert table["part"].is_unique and table["part"].iloc[-1] == "logit"


def test_layer_table_shows_what_unfreezing_changes():
    model, _ = build_transfer_model("VGG16", 32, (8,), weights=None)
    set_trainable_from(model, "pool")
    frozen = layer_table(model).set_index("part")
    set_trainable_from(model, "block5_conv1")
    thawed = layer_table(model).set_index("part")
    assert frozen["parameters"].equals(thawed["parameters"])
    changed = thawed["trainable"] - frozen["trainable"]
    block5 = 3 * (9 * 512 * 512 + 512)
    assert changed[changed != 0].to_dict() == {"block5": block5}
    assert thawed.loc["block5"].to_dict() == {"layers": 3, "parameters": block5, "trainable": block5}
    assert frozen["trainable"].sum() == (512 * 8 + 8) + (8 + 1)


def test_a_flattening_student_keeps_the_positions_of_the_last_maps():
    model = CNNS["student_flat"](32)  # maps of 8 x 8 x 64, then 128, 64 and 1 units
    by_hand = 32 * 10 + 64 * 289 + 128 * (8 * 8 * 64 + 1) + 64 * 129 + 65
    assert model.count_params() == by_hand == 551_553
    image = np.zeros((1, 32, 32, 1), np.float32)
    image[0, 12:16, 8:12] = 255.0
    moved = np.roll(image, 8, axis=2)  # by whole cells of the last maps: their mean is the same
    averaging = CNNS["student_cnn"](32)
    for network in (model, averaging):
        network.get_layer("logit").kernel.assign(np.full(network.get_layer("logit").kernel.shape, 0.1))
    assert abs(float(model(image)[0, 0] - model(moved)[0, 0])) > 1e-4
    assert abs(float(averaging(image)[0, 0] - averaging(moved)[0, 0])) < 1e-5
