"""Kill everything that takes long, at seeded moments, and compare with what was never disturbed.

    python tests/robustness/interrupt.py [--moments 8] [--only STEP]

Takes about half an hour; no part of the test suite. Every step (reading the
images into the store, feature cache and fine-tuning, ``run``, ``export``,
``predict``) is played once undisturbed, then killed (SIGKILL, with its
children) at MOMENTS random moments, each in folders of its own, and called
again. Predictions and weights must be equal and no debris may be left. Writes
results/interruptions.json; exit code 1 when something differs.
"""

import argparse
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import h5py
import numpy as np

from chestxray.files import project_path, write_json
from chestxray.phantoms import write_phantoms

CLI = "from chestxray.cli import main; main()"
STORE = """
import sys, numpy as np, chestxray as cx
data = cx.load_data(sys.argv[1], "patient", 0, cx.ImageSettings(200, clahe=True))
np.save(sys.argv[2] + "/pixels.npy", data.store.images(data.table))
"""
TRANSFER = """
import sys, keras, chestxray as cx
from chestxray.models.training import set_trainable_from
data = cx.load_data(sys.argv[1], "patient", 0, cx.ImageSettings(64))
keras.utils.set_random_seed(0)
model, _ = cx.build_transfer_model("VGG16", 64, [16], 0.2, None)
settings = cx.TrainSettings(epochs=3, learning_rate=1e-3, views=2, disk_gb=1.0,
                            augmentation=cx.Augmentation())
set_trainable_from(model, "block5_conv1")
cx.train(model, data, settings, sys.argv[2] + "/state.npz")
model.save(sys.argv[2] + "/model.keras")
"""
RUN = ["run", "--preset", "demo", "--only", "02", "-p", "image_size", "64", "-p", "epochs", "4"]


def command(step: str, data: Path, output: Path, trained: Path) -> list[str]:
    """What a user would call; ``trained`` is a bundle of the same data."""
    python = [sys.executable, "-c"]
    return {
        "store": [*python, STORE, data, output],
        "transfer": [*python, TRANSFER, data, output],
        "run": [*python, CLI, *RUN, "--data-dir", data, "--output-dir", output],
        "export": [
            *python,
            CLI,
            "export",
            trained,
            "--format",
            "litert",
            "--data-dir",
            data,
            "--output",
            output / "litert",
            "--force",
        ],
        "predict": [*python, CLI, "predict", trained, data, "--output", output / "out.csv", "--accept-all"],
    }[step]


def start(step: str, place: Path, data: Path, trained: Path) -> subprocess.Popen:
    (place / "out").mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"CHESTXRAY_CACHE": str(place / "cache"), "TF_CPP_MIN_LOG_LEVEL": "3"}
    return subprocess.Popen(
        [str(word) for word in command(step, data, place / "out", trained)],
        env=environment,
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit code {process.returncode}: {errors[-500:]}")


def digests(folder: Path) -> dict[str, str]:
    """Everything that must be equal: tables and arrays as they are, the weights inside ``.keras`` files."""
    hashes = {}
    for path in sorted(folder.rglob("*")):
        content = hashlib.sha256()
        if path.suffix == ".keras":
            with zipfile.ZipFile(path) as file:
                stored = io.BytesIO(file.read("model.weights.h5"))
            with h5py.File(stored) as weights:
                names: list[str] = []
                weights.visititems(lambda name, item: names.append(name) if hasattr(item, "shape") else None)
                for name in sorted(names):
                    content.update(np.asarray(weights[name]).tobytes())
        elif path.suffix in (".csv", ".npy", ".tflite") and path.name != "test_log.csv":
            content.update(path.read_bytes())
        else:
            continue
        hashes[str(path.relative_to(folder))] = content.hexdigest()
    return hashes


def debris(place: Path) -> list[str]:
    return sorted(path.name for path in place.rglob("*") if path.name.startswith(".partial"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--moments", type=int, default=8)
    parser.add_argument("--only", help="One step.")
    given, rows, generator = parser.parse_args(), [], np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_phantoms(root / "made", 300, 64, 0)
        data = root / "made" / "chest_xray"
        finish(start("run", root / "trained", data, root))
        trained = root / "trained" / "out" / "saved_models" / "custom_cnn-patient-s0-t0"
        for step in [given.only] if given.only else ["store", "transfer", "run", "export", "predict"]:
            began = time.monotonic()
            finish(start(step, root / step, data, trained))
            seconds = time.monotonic() - began
            expected = digests(root / step / "out")
            for number, moment in enumerate(sorted(generator.uniform(0.02, 1, given.moments) * seconds)):
                place = root / f"{step}-{number}"
                process = start(step, place, data, trained)
                try:
                    process.wait(timeout=moment)
                except subprocess.TimeoutExpired:
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                killed, left = process.returncode == -signal.SIGKILL, debris(place)
                finish(start(step, place, data, trained))
                row = {
                    "step": step,
                    "second": round(float(moment), 2),
                    "of": round(seconds, 2),
                    "killed": killed,
                    "debris_between": len(left),
                    "debris": debris(place),
                    "equal": digests(place / "out") == expected,
                }
                rows.append(row)
                print(json.dumps(row), flush=True)
    write_json(
        project_path("results/interruptions.json"), {"schema": "chestxray.interruptions/1", "rows": rows}
    )
    killed = sum(row["killed"] for row in rows)
    print(f"{killed} of {len(rows)} were killed in time")
    return 1 if killed < len(rows) / 2 or any(row["debris"] or not row["equal"] for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
