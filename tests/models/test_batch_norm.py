"""The fused kernel gives what Keras gives: outputs, gradients, moving statistics."""

from contextlib import nullcontext

import keras
import numpy as np
import pytest
import tensorflow as tf

from chestxray.models.training import fused_batch_norm


def build(**options):
    keras.utils.set_random_seed(3)
    inputs = keras.Input((5, 4, 3))
    outputs = keras.layers.BatchNormalization(momentum=0.9, name="norm", **options)(inputs)
    model = keras.Model(inputs, outputs)
    generator = np.random.default_rng(1)
    for variable in model.variables:
        variable.assign(generator.uniform(0.5, 2, variable.shape))
    return model


def one_pass(model, images):
    """Output, gradients and variables of one training pass."""
    images = tf.constant(images)
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = model(images, training=True)
        loss = tf.reduce_sum(tf.cast(outputs, tf.float32) ** 3)
    gradients = tape.gradient(loss, [images, *(v.value for v in model.trainable_variables)])
    found = [outputs, *gradients, *(variable.value for variable in model.variables)]
    return [np.asarray(tf.cast(value, tf.float32)) for value in found]


@pytest.mark.parametrize("options", [{}, {"scale": False}, {"center": False}, {"axis": 3, "epsilon": 0.1}])
def test_equal_to_keras(options):
    images = np.random.default_rng(0).normal(2, 3, (6, 5, 4, 3)).astype(np.float32)
    expected = one_pass(build(**options), images)
    model = build(**options)
    with fused_batch_norm(model):
        found = one_pass(model, images)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-4, atol=2e-4)


def test_moving_statistics_worked_out_by_hand():
    model = build()
    layer = model.get_layer("norm")
    layer.moving_mean.assign(np.zeros(3))
    layer.moving_variance.assign(np.ones(3))
    images = np.zeros((1, 5, 4, 3), np.float32)
    images[0, :, :2, 0] = 4  # channel 0: half zeros, half fours: mean 2, variance 4
    with fused_batch_norm(model):
        model(images, training=True)
    np.testing.assert_allclose(layer.moving_mean.numpy(), [0.2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(layer.moving_variance.numpy(), [0.9 + 0.4, 0.9, 0.9], rtol=1e-5)


def test_training_runs_the_fused_kernel_and_keras_would_not():
    def kernels():
        model = build()
        with fused_batch_norm(model) if fused else nullcontext():
            step = tf.function(lambda images: model(images, training=True))
            graph = step.get_concrete_function(tf.TensorSpec((2, 5, 4, 3))).graph
        return [op.get_attr("is_training") for op in graph.get_operations() if op.type == "FusedBatchNormV3"]

    fused = True
    assert kernels() == [True]
    fused = False
    assert kernels() == []


def test_frozen_layers_and_prediction_are_untouched():
    images = np.random.default_rng(0).normal(2, 3, (6, 5, 4, 3)).astype(np.float32)
    model = build()
    expected = model(images, training=False).numpy()
    before = [variable.numpy() for variable in model.variables]
    model.get_layer("norm").trainable = False
    with fused_batch_norm(model):
        np.testing.assert_array_equal(model(images, training=False), expected)
        np.testing.assert_array_equal(model(images, training=True), expected)
    for variable, value in zip(model.variables, before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_layers_are_plain_afterwards_even_after_an_error(tmp_path):
    model = build()
    with pytest.raises(RuntimeError), fused_batch_norm(model):
        assert "call" in vars(model.get_layer("norm"))
        raise RuntimeError
    assert "call" not in vars(model.get_layer("norm"))
    model.save(tmp_path / "model.keras")
    assert (
        type(keras.models.load_model(tmp_path / "model.keras").get_layer("norm"))
        is keras.layers.BatchNormalization
    )
