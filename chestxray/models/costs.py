"""What a network costs: parameters, operations, bytes and time."""

from __future__ import annotations

import math
import time
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf


def layer_mflops(model: keras.Model) -> dict[str, float]:
    """Count multiplications and additions for one image, in 10⁶, of convolution and dense layers.

    Args:
        model: A flat model.

    Returns:
        ``{name of the layer: operations}`` in the model's order.
    """
    return {
        layer.name: 2e-6 * math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
        for layer in model.layers
        if hasattr(layer, "kernel")
    }


def network_costs(model: keras.Model, file: str | Path) -> dict[str, float]:
    """Sum up a network and its file: parameters, mflops, megabytes, milliseconds an image."""
    return {
        "parameters": model.count_params(),
        "mflops": sum(layer_mflops(model).values()),
        "megabytes": Path(file).stat().st_size / 1e6,
        "milliseconds": time_per_image(model),
    }


def time_per_image(model: keras.Model, repeats: int = 50) -> float:
    """Measure the median time of one image alone, in milliseconds, after a warm-up, as a traced function."""
    image = tf.zeros((1, *model.input_shape[1:]))
    compute = tf.function(lambda pixels: model(pixels, training=False))
    seconds = []
    for _ in range(repeats + 5):
        began = time.perf_counter()
        compute(image).numpy()
        seconds.append(time.perf_counter() - began)
    return 1e3 * float(np.median(seconds[5:]))
