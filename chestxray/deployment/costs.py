"""Costs of a network: parameters, operations, file size and prediction time."""

import json
import math
import os
import subprocess
import sys
import time
import timeit
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import keras  # not at run time: exported models are measured in a process without TensorFlow


def layer_mflops(model: "keras.Model") -> dict[str, float]:
    """Count multiplications and additions per image, in 10⁶, of each layer with a kernel of a flat model."""
    return {
        layer.name: 2e-6 * math.prod(layer.output.shape[1:-1]) * math.prod(layer.kernel.shape)
        for layer in model.layers
        if hasattr(layer, "kernel")
    }


def network_costs(model: "keras.Model", file: str | Path) -> dict[str, float]:
    """Return parameters, mflops, megabytes of the file, and milliseconds per image of a network."""
    costs = {"parameters": model.count_params(), "mflops": sum(layer_mflops(model).values())}
    return costs | {"megabytes": Path(file).stat().st_size / 1e6, "milliseconds": time_per_image(model)}


def time_per_image(model: "keras.Model", repeats: int = 50) -> float:
    """Return the median time per image of the compiled network, in milliseconds, after a warm-up."""
    import tensorflow as tf

    image = tf.zeros((1, *model.input_shape[1:]))
    compiled = tf.function(lambda pixels: model(pixels, training=False), autograph=False)
    return _median_milliseconds(lambda: compiled(image).numpy(), repeats)


def _median_milliseconds(run: Callable[[], Any], repeats: int) -> float:
    seconds = timeit.repeat(run, "import gc; gc.enable()", time.perf_counter, repeats + 5, number=1)
    return 1e3 * float(np.median(seconds[5:]))  # the first five warm up


def measure_latency(folder: str | Path, threads: int = 1, repeats: int = 100) -> Mapping[str, float]:
    """Measure the prediction time of a saved or exported classifier in a new process, without a GPU.

    Returns ``milliseconds``, the median of ``repeats`` preprocessed images on ``threads`` cores after a
    warm-up, and ``seconds_to_first``, from the start of Python to the first logit.
    """
    call = f"_main({str(folder)!r}, {threads}, {repeats}, {time.time()})"
    command = [sys.executable, "-c", f"from {__name__} import _main; {call}"]
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": "-1"}
    environment |= {"TF_NUM_INTRAOP_THREADS": str(threads), "TF_NUM_INTEROP_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _main(folder: str, threads: int, repeats: int, start: float) -> None:
    from chestxray.deployment.classifier import load_classifier

    classifier = load_classifier(folder, threads)  # its self-test computes the first logit
    seconds_to_first = time.time() - start
    if "export" in classifier.card:
        size = classifier.image_settings.size
        image = np.random.default_rng(0).integers(0, 256, (1, size, size, 1)).astype(np.float32)
        milliseconds = _median_milliseconds(lambda: classifier.model.predict(image), repeats)
    else:
        milliseconds = time_per_image(classifier.model, repeats)
    print(json.dumps({"milliseconds": milliseconds, "seconds_to_first": seconds_to_first}))
