"""What a network costs: parameters, operations, bytes and time."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Mapping
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


def measure_latency(folder: str | Path, threads: int = 1, repeats: int = 100) -> Mapping[str, float]:
    """Time a bundle, Keras or exported, in a fresh process.

    Args:
        folder: Of the bundle.
        threads: Cores that one image may use.
        repeats: Of the warm model; the median counts.

    Returns:
        ``milliseconds`` of one preprocessed image in the warm network (a
        compiled ``tf.function`` for Keras), ``seconds_to_first``: from the
        start of Python to the first answer.
    """
    began = time.time()
    command = [sys.executable, "-m", __name__, str(folder), str(threads), str(repeats), str(began)]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(told.stdout.splitlines()[-1])


def _main(folder: str, threads: int, repeats: int, began: float) -> None:
    import numpy as np

    from chestxray.deployment.classifier import load_classifier
    from chestxray.deployment.runtime import Runtime
    from chestxray.files import read_json

    if "export" not in read_json(Path(folder) / "card.json"):
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    classifier = load_classifier(folder, threads)  # its self-test is the first answer
    first = time.time() - began
    size = classifier.image_settings.size
    image = np.random.default_rng(0).integers(0, 256, (1, size, size, 1)).astype(np.float32)
    if isinstance(classifier.model, Runtime):
        run = classifier.model.predict
    else:
        import tensorflow as tf

        run = tf.function(lambda pixels: classifier.model(pixels, training=False), autograph=False)
        image = tf.constant(image)
    seconds = []
    for _ in range(repeats + 3):
        start = time.perf_counter()
        run(image)
        seconds.append(time.perf_counter() - start)
    print(json.dumps({"milliseconds": 1e3 * float(np.median(seconds[3:])), "seconds_to_first": first}))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
