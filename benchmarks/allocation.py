"""Training steps per second when freed memory stays with the process, against handing it back, as
TensorFlow has it once a pipeline was made with ``from_generator``.

    python benchmarks/allocation.py [--steps 20] [--rounds 3]

The same network, batch and optimiser, each time in a process of its own; the
better median of each counts. Prints one line a network and writes
results/benchmarks/allocation.json.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

NETWORKS = {"custom_cnn": 224, "compact_cnn": 128, "student_cnn": 64}
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    from chestxray.files import project_path, write_json
    from chestxray.results import versions

    rows = []
    for name, size in NETWORKS.items():
        found = {"returned": [], "kept": []}
        for _ in range(given.rounds):
            for kind, runs in found.items():
                command = [sys.executable, __file__, "--measure", kind, name, str(given.steps)]
                done = subprocess.run(command, check=True, capture_output=True, text=True)
                runs.append(json.loads(done.stdout.splitlines()[-1]))
        seconds = {kind: min(run["seconds"] for run in runs) for kind, runs in found.items()}
        rows.append({"network": name, "image_size": size,
                     **{f"{kind}_images_per_second": BATCH / value for kind, value in seconds.items()},
                     **{f"{kind}_peak_megabytes": statistics.median(run["megabytes"] for run in runs)
                        for kind, runs in found.items()},
                     "faster": seconds["returned"] / seconds["kept"]})
        print("{network}, {image_size} px: {kept_images_per_second:.0f} images/s, handed back "
              "{returned_images_per_second:.0f}, {faster:.2f} x; peak {kept_peak_megabytes:.0f} MB, "
              "handed back {returned_peak_megabytes:.0f}".format(**rows[-1]), flush=True)
    write_json(project_path("results/benchmarks/allocation.json"), {
        "schema": "chestxray.benchmark/1", "name": "allocation", "batch": BATCH, "rows": rows,
        "versions": versions()})


def measure(kind: str, name: str, steps: int) -> None:
    """Print the median seconds of a step and the peak memory, as one line of JSON."""
    import keras
    import numpy as np
    import tensorflow as tf

    import chestxray as cx
    from chestxray.models.allocation import keep_freed_memory
    from chestxray.models.batch_norm import fused_batch_norm

    signature = tf.TensorSpec((), tf.float32)
    list(tf.data.Dataset.from_generator(lambda: iter([0.0]), output_signature=signature))
    if kind == "kept" and not keep_freed_memory():
        raise SystemExit("not the C library of GNU: there is nothing to measure")
    generator, size = np.random.default_rng(0), NETWORKS[name]
    images = generator.uniform(0, 255, (BATCH, size, size, 1)).astype(np.float32)
    labels = generator.integers(0, 2, (BATCH, 1)).astype(np.float32)
    cx.set_seed(0)
    model, seconds = cx.CNNS[name](size), []
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    with fused_batch_norm(model):
        model.train_on_batch(images, labels)  # traced here, once
        for _ in range(steps):
            start = time.perf_counter()
            model.train_on_batch(images, labels)
            seconds.append(time.perf_counter() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
    print(json.dumps({"seconds": statistics.median(seconds), "megabytes": peak}))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--measure"]:
        measure(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
