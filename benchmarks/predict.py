"""Prediction speed from file to decision, in images per second and core, compared with decoding and resizing.

    python benchmarks/predict.py MODEL [MODEL …] [--originals FOLDER] [--small FOLDER] [--images 200]

Each MODEL is a saved classifier, Keras or exported. It runs on one core in its own process, in turns with the
upper limit of the speed: reading, decoding and resizing the same files without a model. The folders contain
files of original size (by default phantoms enlarged to 1,300 px) and of 224 px. Prints one line per model and
size and writes results/benchmarks/predict.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from chestxray.files import project_path, write_json

ROUNDS = 3


def measure(model: str, paths: list[str]) -> dict[str, float]:
    """Images per second of one core: whole, and reading alone; the fastest of the rounds. Runs in a child."""
    os.sched_setaffinity(0, {0})
    import time

    import cv2

    from chestxray.data.images import fit
    from chestxray.deployment.classifier import load_classifier
    from chestxray.deployment.predict import decode_file, predict_files

    cv2.setNumThreads(1)
    classifier = load_classifier(model)
    settings, best = classifier.image_settings, {"decision": float("inf"), "reading": float("inf")}
    for _ in range(ROUNDS):
        start = time.perf_counter()
        rows = list(predict_files(classifier, paths, accept_all=True))
        best["decision"] = min(best["decision"], time.perf_counter() - start)
        assert all(row["status"] == "ok" for row in rows), rows[0]
        start = time.perf_counter()
        for path in paths:
            fit(decode_file(Path(path), size=settings.size).pixels, settings)
        best["reading"] = min(best["reading"], time.perf_counter() - start)
    return {name: len(paths) / seconds for name, seconds in best.items()}


def make_files(folder: Path, side: int, count: int) -> list[str]:
    """Phantoms as JPEG files of one size."""
    import cv2

    from chestxray.data.catalog import scan
    from chestxray.phantoms import write_phantoms

    write_phantoms(folder / "made", 24, 224, 0)
    root = folder / "made" / "chest_xray"
    paths = []
    for number, path in enumerate(scan(root)["path"].tolist() * (count // 24 + 1)):
        image = cv2.imread(str(root / path), cv2.IMREAD_GRAYSCALE)
        paths.append(str(folder / f"{side}-{number}.jpeg"))
        cv2.imwrite(
            paths[-1],
            cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC),
            [cv2.IMWRITE_JPEG_QUALITY, 92],
        )
    return paths[:count]


def files_of(folder: Path, count: int) -> list[str]:
    found = sorted(str(path) for path in folder.rglob("*") if path.suffix.lower() in (".jpeg", ".png"))
    return (found * (count // max(1, len(found)) + 1))[:count]


def main() -> None:
    from chestxray.results import versions

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--originals", type=Path)
    parser.add_argument("--small", type=Path)
    parser.add_argument("--images", type=int, default=200)
    given, rows = parser.parse_args(), []
    with tempfile.TemporaryDirectory() as folder:
        sizes = {
            "originals": files_of(given.originals, given.images)
            if given.originals
            else make_files(Path(folder), 1300, given.images),
            "224 px": files_of(given.small, given.images)
            if given.small
            else make_files(Path(folder), 224, given.images),
        }
        for model in given.models:
            for size, paths in sizes.items():
                told = subprocess.run(
                    [sys.executable, __file__, "--child", model, json.dumps(paths)],
                    capture_output=True,
                    text=True,
                    check=True,
                )
                speeds = json.loads(told.stdout.splitlines()[-1])
                rows.append({"model": Path(model).name, "files": size, **speeds})
                print(
                    f"{rows[-1]['model']}, {size}: {speeds['decision']:.0f} images/s and core "
                    f"({1e3 / speeds['decision']:.2f} ms), {speeds['decision'] / speeds['reading']:.0%} of "
                    f"reading and resizing alone ({speeds['reading']:.0f})",
                    flush=True,
                )
    write_json(
        project_path("results/benchmarks/predict.json"),
        {
            "schema": "chestxray.benchmark/1",
            "name": "predict",
            "images": given.images,
            "rows": rows,
            "files": {
                "originals": "given" if given.originals else "phantoms, 1,300 px",
                "224 px": "given" if given.small else "phantoms",
            },
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    if sys.argv[1] == "--child":
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        print(json.dumps(measure(sys.argv[2], json.loads(sys.argv[3]))))
    else:
        main()
