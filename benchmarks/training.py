"""Training images per second of networks from scratch, compared with a common notebook.

    python benchmarks/training.py [--images 320] [--epochs 3] [--rounds 2]

The common notebook trains with ImageDataGenerator and model.fit. It decodes and rotates the files in each
epoch. This package reads them from the PixelStore, and trains batch normalisation with the fused kernel.
Files (phantoms enlarged to 1,300 px), network, batch, optimiser and kinds of augmentation are the same. Each
runs in its own process, in turns, and the faster round counts. The first epoch is not counted, nor is the
decoding of the PixelStore, whose seconds are reported separately. Pages are memory pages that the system
provides during a step. Prints one line per network and writes results/benchmarks/training.json.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import keras
from input_path import make_files
from keras.src.legacy.preprocessing.image import ImageDataGenerator

import chestxray as cx
from chestxray.data.catalog import scan
from chestxray.data.dataset import PixelStore
from chestxray.files import project_path, write_json
from chestxray.models.training import fused_batch_norm
from chestxray.results import versions

NETWORKS = {"custom_cnn": 224, "compact_cnn": 128, "student_cnn": 64}
BATCH = 32


class Steps(keras.callbacks.Callback):
    """Seconds, images and fresh pages of all steps but those of the first epoch."""

    def __init__(self):
        super().__init__()
        self.seconds, self.pages, self.steps = 0.0, 0, 0

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.counted = epoch > 0

    def on_train_batch_begin(self, batch: int, logs: dict | None = None) -> None:
        if batch == 0:  # later steps begin where the one before ended: waiting for images counts
            self.start = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt

    def on_train_batch_end(self, batch: int, logs: dict | None = None) -> None:
        now = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        if self.counted:
            self.seconds += now[0] - self.start[0]
            self.pages += now[1] - self.start[1]
            self.steps += 1
        self.start = now


def measure(kind: str, name: str, folder: Path, epochs: int) -> dict[str, float]:
    """Train one network one way; what :class:`Steps` found, seconds before the training, peak memory."""
    size = NETWORKS[name]
    keras.utils.set_random_seed(0)
    model, found = cx.CNNS[name](size), Steps()
    model.compile("adam", keras.losses.BinaryCrossentropy(from_logits=True), jit_compile=False)
    start = time.perf_counter()
    if kind == "common":
        generator = ImageDataGenerator(
            rotation_range=7,
            width_shift_range=0.05,
            height_shift_range=0.05,
            shear_range=5,
            zoom_range=0.1,
            brightness_range=(0.85, 1.15),
        )
        images = generator.flow_from_directory(
            folder, (size, size), "grayscale", class_mode="binary", batch_size=BATCH
        )
    else:
        catalog = scan(folder)
        store = PixelStore.build(catalog, folder, cx.ImageSettings(size))
        images = store.dataset(catalog, BATCH, shuffle=True, augment=cx.Augmentation())
    before = time.perf_counter() - start
    with fused_batch_norm(model) if kind == "chestxray" else nullcontext():
        model.fit(images, epochs=epochs, verbose=0, shuffle=False, callbacks=[found])
    return {
        "images_per_second": BATCH * found.steps / found.seconds,
        "pages": found.pages / found.steps,
        "seconds_before": before,
        "megabytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=320, help="a multiple of the batch, 32")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--measure", nargs=3, metavar=("KIND", "NETWORK", "FOLDER"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.images % BATCH or given.epochs < 2:
        parser.error(f"whole batches of {BATCH} and at least two epochs are needed")
    if given.measure:
        kind, name, folder = given.measure
        print(json.dumps(measure(kind, name, Path(folder), given.epochs)))
        return
    rows = []
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "files"
        make_files(folder, cx.phantom_dataset(120), given.images)
        for name, size in NETWORKS.items():
            found = {"common": [], "chestxray": []}
            for number in range(given.rounds):
                cache = os.environ | {"CHESTXRAY_CACHE": str(Path(place) / f"cache-{name}-{number}")}
                for kind, runs in found.items():
                    done = subprocess.run(
                        [
                            sys.executable,
                            __file__,
                            "--epochs",
                            str(given.epochs),
                            "--measure",
                            kind,
                            name,
                            str(folder),
                        ],
                        check=True,
                        stdout=subprocess.PIPE,
                        text=True,
                        env=cache,
                    )
                    runs.append(json.loads(done.stdout.splitlines()[-1]))
            best = {kind: max(runs, key=lambda run: run["images_per_second"]) for kind, runs in found.items()}
            rows.append(
                {
                    "network": name,
                    "image_size": size,
                    **best,
                    "faster": best["chestxray"]["images_per_second"] / best["common"]["images_per_second"],
                }
            )
            print(
                f"{name}, {size} px: {rows[-1]['faster']:.2f} x; "
                + "; ".join(
                    f"{kind}: {run['images_per_second']:.0f} images/s, {run['pages']:,.0f} pages a step, "
                    f"{run['megabytes']:,.0f} MB"
                    for kind, run in best.items()
                ),
                flush=True,
            )
    write_json(
        project_path("results/benchmarks/training.json"),
        {
            "schema": "chestxray.benchmark/1",
            "name": "training",
            "batch": BATCH,
            "images": given.images,
            "epochs": given.epochs,
            "rows": rows,
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
