"""Training steps per second with TensorFlow's fused batch normalisation, compared with Keras.

    python benchmarks/batch_norm.py [--steps 40]

Network, batch and optimiser are the same. Both versions run in turns, and the fastest step of each counts.
Prints one line per network and writes results/benchmarks/batch_norm.json.
"""

import argparse
import time
from contextlib import nullcontext

import keras
import numpy as np

import chestxray as cx
from chestxray.files import project_path, write_json
from chestxray.models.training import fused_batch_norm
from chestxray.results import versions

NETWORKS = {"compact_cnn": 128, "custom_cnn": 128}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=40)
    given = parser.parse_args()
    generator, rows = np.random.default_rng(0), []
    for name, size in NETWORKS.items():
        images = generator.uniform(0, 255, (BATCH, size, size, 1)).astype(np.float32)
        labels = generator.integers(0, 2, (BATCH, 1)).astype(np.float32)
        models = {}
        for kind in ("keras", "fused"):
            keras.utils.set_random_seed(0)
            models[kind] = model = cx.CNNS[name](size)
            model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
            with fused_batch_norm(model) if kind == "fused" else nullcontext():
                model.train_on_batch(images, labels)  # traced here, once
        seconds = {kind: float("inf") for kind in models}
        for _ in range(given.steps):
            for kind, model in models.items():
                start = time.perf_counter()
                model.train_on_batch(images, labels)
                seconds[kind] = min(seconds[kind], time.perf_counter() - start)
        rows.append(
            {
                "network": name,
                "image_size": size,
                **{f"{kind}_images_per_second": BATCH / value for kind, value in seconds.items()},
                "faster": seconds["keras"] / seconds["fused"],
            }
        )
        print(
            "{network}, {image_size} px: {fused_images_per_second:.0f} images/s, Keras "
            "{keras_images_per_second:.0f}, {faster:.2f} x".format(**rows[-1]),
            flush=True,
        )
    write_json(
        project_path("results/benchmarks/batch_norm.json"),
        {
            "schema": "chestxray.benchmark/1",
            "name": "batch_norm",
            "batch": BATCH,
            "rows": rows,
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
