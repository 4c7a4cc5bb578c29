"""Maps worked out by hand, identities, and the same map however the model is built or loaded."""

import keras
import numpy as np
import pytest
from keras import layers

import chestxray as cx
from chestxray.gradcam import enlarge, find_layer, gradcam, randomised

X = np.array([[4.0, -1, 0], [0, 2, 0], [0, 0, -8]], np.float32).reshape(1, 3, 3, 1)


def two_channels(last_weights, bias=0.5, **dense):
    """The feature maps are the picture and its negative; then mean and one dense layer."""
    inputs = keras.Input((3, 3, 1))
    maps = layers.Conv2D(2, 1, use_bias=False, name="maps")(inputs)
    outputs = layers.Dense(1, name="logit", **dense)(layers.GlobalAveragePooling2D()(maps))
    model = keras.Model(inputs, outputs)
    model.get_layer("maps").set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2)])
    model.get_layer("logit").set_weights([np.reshape(last_weights, (2, 1)), np.array([bias])])
    return model


def test_map_by_hand():
    # Gradients are weight / 9: the map is (2 x + 1 (−x)) / 9 = x / 9 where positive.
    maps, largest = gradcam(two_channels([2.0, 1.0]), X)
    assert largest == pytest.approx([4 / 9])
    np.testing.assert_allclose(maps[0], [[1, 0, 0], [0, 0.5, 0], [0, 0, 0]], atol=1e-6)
    assert maps.dtype == np.float32


def test_normal_is_the_map_of_the_negative_logit():
    maps, largest = gradcam(two_channels([2.0, 1.0]), X, target="normal")
    assert largest == pytest.approx([8 / 9])
    np.testing.assert_allclose(maps[0], [[0, 0.125, 0], [0, 0, 0], [0, 0, 1]], atol=1e-6)


def test_nothing_positive_is_zeros():
    for weights in ([0.0, 0.0], [1.0, 1.0]):  # no weight at all; both channels cancel
        maps, largest = gradcam(two_channels(weights), X)
        assert largest == 0 and not maps.any()


def flat_head():
    """Feature maps, flattened, and a dense layer with a weight for each place."""
    inputs = keras.Input((3, 3, 1))
    maps = layers.Conv2D(2, 1, use_bias=False, name="maps")(inputs)
    model = keras.Model(inputs, layers.Dense(1, name="logit")(layers.Flatten()(maps)))
    keras.utils.set_random_seed(0)
    model.set_weights([np.random.default_rng(0).normal(size=weight.shape) for weight in model.get_weights()])
    return model


def test_hirescam_adds_up_to_the_logit_and_gradcam_does_not():
    model = flat_head()
    bias = float(model.get_layer("logit").bias.numpy()[0])

    def total(method):
        """Positive part minus that of the negative score: the sum of the whole signed map."""
        subsets = [gradcam(model, X, "maps", target, method) for target in ("pneumonia", "normal")]
        (positive, up), (negative, down) = subsets
        return float(positive.sum() * up[0] - negative.sum() * down[0])

    logit = float(model.predict(X, verbose=0)[0, 0])
    assert total("hirescam") == pytest.approx(logit - bias, abs=1e-5)
    assert abs(total("gradcam") - (logit - bias)) > 0.1


@pytest.fixture(scope="module")
def compact():
    """The compact student, its weights drawn, and pictures for it."""
    generator = np.random.default_rng(0)
    keras.utils.set_random_seed(3)
    model = cx.build_compact_cnn(64)
    model.get_layer("logit").set_weights([generator.normal(0, 1000, (160, 1)), np.array([0.3])])
    return model, generator.integers(0, 256, (5, 64, 64, 1)).astype(np.uint8)


def test_identities_on_pooling_and_one_dense_layer(compact):
    model, images = compact
    cut = find_layer(model)
    features = keras.Model(model.input, cut.output).predict(images, verbose=0)
    kernel, bias = model.get_layer("logit").get_weights()
    cam = (features * kernel[:, 0]).sum(axis=-1)
    assert cam.min() < -0.1 and cam.max() > 0.1
    logits = model.predict(images, verbose=0)[:, 0]
    np.testing.assert_allclose(cam.mean(axis=(1, 2)) + bias, logits, atol=1e-4)
    for method in ("gradcam", "hirescam"):
        maps, largest = gradcam(model, images, method=method)
        height, width = maps.shape[1:]
        np.testing.assert_allclose(
            maps * largest[:, None, None] * height * width, np.maximum(cam, 0), atol=1e-4
        )


def test_flat_nested_sequential_reloaded_and_mixed_precision_say_the_same(compact, tmp_path):
    model, images = compact
    wanted, height = gradcam(model, images)
    inputs = keras.Input((64, 64, 1))
    nested = keras.Model(inputs, keras.Model(model.input, model.output, name="inner")(inputs))
    sequential = keras.Sequential([keras.Input((64, 64, 1)), model])
    model.save(tmp_path / "model.keras")
    half = cx.build_compact_cnn(64, precision="mixed_bfloat16")
    half.set_weights(model.get_weights())
    for name, other in (
        ("nested", nested),
        ("sequential", sequential),
        ("half", half),
        ("reloaded", keras.models.load_model(tmp_path / "model.keras")),
    ):
        maps, largest = gradcam(other, images)
        np.testing.assert_allclose(maps, wanted, atol=2e-4, err_msg=name)
        np.testing.assert_allclose(largest, height, rtol=1e-3, err_msg=name)


def test_a_probability_is_explained_by_its_logit():
    """At a logit of 200 the gradient of the probability is exactly zero."""
    wanted = gradcam(two_channels([2.0, 1.0], bias=200.0), X)
    inner = two_channels([2.0, 1.0], bias=200.0)
    sure = two_channels([2.0, 1.0], bias=200.0, activation="sigmoid")
    for model in (
        sure,
        keras.Model(inner.input, layers.Activation("sigmoid")(inner.output)),
        keras.Model(sure.input, layers.Activation("linear", dtype="float32")(sure.output)),
    ):
        assert model.predict(X, verbose=0) == 1
        found = gradcam(model, X)
        np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
        assert found[1] == pytest.approx(wanted[1])


def test_a_sigmoid_that_is_no_layer_is_an_error():
    inner = two_channels([2.0, 1.0])
    with pytest.raises(ValueError, match="must end in a layer.*Received: operation='sigmoid"):
        gradcam(keras.Model(inner.input, keras.ops.sigmoid(inner.output)), X)


def test_an_early_layer_with_a_backbones_name_is_not_the_default():
    inputs = keras.Input((8, 8, 1))
    x = layers.ReLU(name="relu")(inputs)  # as DenseNet121's last one is called
    x = layers.Conv2D(2, 3, name="late")(x)
    model = keras.Model(inputs, layers.Dense(1)(layers.GlobalAveragePooling2D()(x)))
    assert find_layer(model).name == "late"


def test_three_logits_are_explained_by_their_log_odds():
    """Bacteria and virus alike: the log-odds are their logit minus that of normal, plus ln 2."""
    inputs = keras.Input((3, 3, 1))
    maps = layers.Conv2D(2, 1, use_bias=False, name="maps")(inputs)
    model = keras.Model(
        inputs, layers.Dense(3, use_bias=False, name="logit")(layers.GlobalAveragePooling2D()(maps))
    )
    model.get_layer("maps").set_weights([np.array([1.0, -1.0]).reshape(1, 1, 1, 2)])
    model.get_layer("logit").set_weights([np.array([[0.5, 2.5, 2.5], [0.25, 1.25, 1.25]])])
    found, wanted = gradcam(model, X), gradcam(two_channels([2.0, 1.0]), X)
    np.testing.assert_allclose(found[0], wanted[0], atol=1e-6)
    np.testing.assert_allclose(found[1], wanted[1], rtol=1e-5)
    one = gradcam(model, X, target=1)[1]  # the logit of bacteria alone: 2.5 − 1.25
    assert one == pytest.approx([4 * 1.25 / 9])


@pytest.mark.slow
def test_every_backbone_has_its_layer():
    for name, row in cx.BACKBONES.items():
        model, _ = cx.build_transfer_model(name, 96, [8], 0.0, None)
        assert find_layer(model).name == row.gradcam_layer


@pytest.mark.slow
def test_a_model_of_keras_applications_and_a_layer_beside_a_shortcut():
    model = keras.applications.ResNet50(weights=None, input_shape=(64, 64, 3), classes=7)
    images = np.random.default_rng(0).uniform(0, 255, (2, 64, 64, 3)).astype(np.float32)
    maps, largest = gradcam(model, images, "conv4_block5_1_conv", target=4)  # a skip goes round it
    assert maps.shape == (2, 4, 4) and np.isfinite(largest).all()
    inner = keras.Model(model.input, [model.get_layer("conv4_block5_1_conv").output, model.output])
    before = inner.predict(images, verbose=0)[1]
    assert gradcam(model, images, target=4)[0].shape == (2, 2, 2)
    np.testing.assert_array_equal(inner.predict(images, verbose=0)[1], before)


def test_model_and_images_are_left_as_they_were(compact):
    model, images = compact
    weights, pixels, answers = model.get_weights(), images.copy(), model.predict(images, verbose=0)
    gradcam(model, images, batch_size=2)
    with pytest.raises(ValueError):
        gradcam(model, np.zeros((1, 64, 64, 7)))
    assert all(np.array_equal(one, other) for one, other in zip(weights, model.get_weights(), strict=True))
    np.testing.assert_array_equal(images, pixels)
    np.testing.assert_array_equal(model.predict(images, verbose=0), answers)
    assert not any("call" in vars(layer) for layer in model.layers)


def test_batches_do_not_matter(compact):
    model, images = compact
    whole, subsets = gradcam(model, images), gradcam(model, images, batch_size=2)
    np.testing.assert_allclose(subsets[0], whole[0], atol=1e-5)
    np.testing.assert_allclose(subsets[1], whole[1], rtol=1e-5)


def test_enlarging_keeps_place_and_range():
    maps = np.zeros((1, 4, 4), np.float32)
    maps[0, 3, 0] = 1
    large = enlarge(maps, (32, 32))
    assert large.shape == (1, 32, 32) and np.unravel_index(large[0].argmax(), (32, 32))[0] >= 28
    assert 0 <= large.min() and large.max() == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"layer": "mapz"}, r"must be one of \['maps'\]. Received: layer='mapz'"),
        ({"layer": "logit"}, "Received: layer='logit'"),
        ({"method": "cam"}, "Received: method='cam'"),
        ({"target": "virus"}, "Received: target='virus'"),
        ({"target": 1}, "Received: target=1"),
    ],
)
def test_mistakes_are_named(given, message):
    with pytest.raises(ValueError, match=message):
        gradcam(two_channels([1.0, 0.0]), X, **given)


def test_no_picture_is_a_mistake():
    with pytest.raises(ValueError, match="at least one image. Received: shape=\\(0,"):
        gradcam(two_channels([1.0, 0.0]), X[:0])


def test_randomised_layers_forget_and_the_others_do_not(compact):
    model, images = compact
    names = [layer.name for layer in model.layers if layer.weights]
    half = names[len(names) // 2]
    copy = randomised(model, half)
    for name in names:
        same = all(
            np.array_equal(one, other)
            for one, other in zip(
                model.get_layer(name).get_weights(), copy.get_layer(name).get_weights(), strict=True
            )
        )
        assert same == (names.index(name) < names.index(half) or name.endswith("bn")), name  # bn: all equal
    assert np.abs(copy.predict(images, verbose=0) - model.predict(images, verbose=0)).min() > 0
    again = randomised(model, half)
    np.testing.assert_array_equal(again.predict(images, verbose=0), copy.predict(images, verbose=0))
    with pytest.raises(ValueError, match="Received: first='x'"):
        randomised(model, "x")


def test_layers_before_the_randomised_ones_normalise_as_before():
    inputs = keras.Input((3, 3, 1))
    norm = layers.Normalization()
    model = keras.Model(inputs, layers.Dense(1, name="logit")(layers.Flatten()(norm(inputs))))
    norm.set_weights([np.array([4.0]), np.array([0.25]), np.array(1)])
    norm.finalize_state()
    copy = randomised(model, "logit")
    np.testing.assert_allclose(keras.Model(copy.input, copy.layers[1].output)(X), (X - 4) / 0.5)


# Layers called twice, and layers after the sigmoid


def test_a_layer_that_is_called_twice_is_named():
    inputs = keras.Input((3, 3, 1))
    model = two_channels([2.0, 1.0])
    mirrored = layers.Lambda(lambda x: x[:, :, ::-1])(inputs)
    ensemble = keras.Model(inputs, layers.Average()([model(inputs), model(mirrored)]))
    with pytest.raises(ValueError, match="called 2 times.*Received: layer='maps'"):
        gradcam(ensemble, X)


SURE = np.full((1, 3, 3, 1), 200.0, np.float32)  # a logit of 200: the sigmoid is exactly 1


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
@pytest.mark.parametrize("end", ["activation", "layer"])
def test_a_layer_that_keeps_the_values_may_follow_the_sigmoid(end, shape):
    plain = two_channels([2.0, 1.0])
    model = two_channels([2.0, 1.0], **({"activation": "sigmoid"} if end == "activation" else {}))
    x = layers.Activation("sigmoid")(model.output) if end == "layer" else model.output
    x = layers.Dropout(0.5)(layers.Flatten()(layers.Reshape(shape)(x)))
    for images in (X, SURE):
        for found, expected in zip(
            gradcam(keras.Model(model.input, x), images), gradcam(plain, images), strict=True
        ):
            np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert gradcam(plain, SURE)[1] > 0


def test_what_seems_to_give_probabilities_after_the_sigmoid_is_refused():
    model = two_channels([2.0, 1.0], activation="sigmoid")
    own = keras.Model(model.input, layers.Lambda(lambda p: 0.9 * p, name="own")(model.output))
    scaled = keras.Model(model.input, layers.Rescaling(100.0, name="own")(model.output))
    for each in (own, scaled):
        with pytest.raises(ValueError, match="seems to return probabilities.*Received: last layer='own'"):
            gradcam(each, SURE)
    linear = two_channels([2.0, 1.0])
    doubled = keras.Model(linear.input, layers.Lambda(lambda z: 2 * z)(linear.output))
    assert gradcam(doubled, X)[1] == pytest.approx(2 * gradcam(linear, X)[1])


def test_the_default_layer_of_the_custom_cnn_can_point_at_a_lesion():
    """Its last convolution has the name of VGG16's, and at 64 px only 2 × 2 pixels."""
    assert find_layer(cx.build_custom_cnn(64)).output.shape[1:3] == (8, 8)
