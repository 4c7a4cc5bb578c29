"""Operations counted by hand."""

import keras
import pytest
from keras import layers

from chestxray.deployment import costs
from chestxray.deployment.costs import layer_mflops


def test_operations_by_hand():
    inputs = keras.Input((32, 32, 1))
    x = layers.Conv2D(8, 3, 2, "same", name="conv")(inputs)  # 16·16 places, 9·1·8 weights
    x = layers.DepthwiseConv2D(3, padding="same", name="depthwise")(x)  # 16·16 places, 9·8 weights
    x = layers.GlobalAveragePooling2D()(layers.BatchNormalization()(x))
    model = keras.Model(inputs, layers.Dense(5, name="dense")(x))
    wanted = {"conv": 2e-6 * 256 * 72, "depthwise": 2e-6 * 256 * 72, "dense": 2e-6 * 40}
    assert layer_mflops(model) == pytest.approx(wanted)
    assert list(layer_mflops(model)) == list(wanted)


def test_time_is_the_median_of_one_image_without_the_warm_up(monkeypatch):
    # A clock by hand: five slow calls of 100 s, then 1, 2 and 9 s. The median is 2 s.
    shapes = []

    class Watched(layers.Layer):
        def call(self, images):
            shapes.append(images.shape)
            return images

    inputs = keras.Input((32, 32, 1))
    model = keras.Model(inputs, layers.Flatten()(Watched()(inputs)))
    shapes.clear()
    ticks = iter([tick for took in [100.0] * 5 + [9.0, 1.0, 2.0] for tick in (0.0, took)])
    monkeypatch.setattr(costs.time, "perf_counter", lambda: next(ticks))
    assert costs.time_per_image(model, 3) == 2000.0
    assert [tuple(shape) for shape in shapes] == [(1, 32, 32, 1)]
