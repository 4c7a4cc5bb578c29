"""Operations counted by hand."""

import keras
import pytest
from keras import layers

from chestxray.models.costs import layer_mflops, time_per_image


def test_operations_by_hand():
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(8, 3, 2, "same", name="conv")(inputs)  # 16·16 places, 9·1·8 weights
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)  # 16·16 places, 9·8 weights
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(5, name="dense")(x))
    wanted = {"conv": 2e-6 * 256 * 72, "depthwise": 2e-6 * 256 * 72, "dense": 2e-6 * 40}
    assert layer_mflops(model) == pytest.approx(wanted)
    assert list(layer_mflops(model)) == list(wanted)


def test_time_is_that_of_one_image():
    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, layers.Dense(1)(layers.Flatten()(inputs)))
    assert 0 < time_per_image(model, 3) < 1000
