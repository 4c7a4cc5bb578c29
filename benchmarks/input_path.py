"""Speed of reading original images as model inputs, compared with the readers of Keras.

    python benchmarks/input_path.py [--originals FOLDER]

Creates IMAGES JPEG files of original size (crops of the given originals, each shifted by a few pixels, or
phantoms enlarged to 1,300 px) and measures

- the limit of the machine: only reading, decoding, resizing and CLAHE, from memory, on all cores at once;
- PixelStore.build: the same for all files, with processes, memory map and index; then an epoch from the
  store, without and with augmentation;
- an epoch of image_dataset_from_directory (decode and resize, all cores) and of ImageDataGenerator (one
  core), which decode the files in each epoch.

Writes results/benchmarks/input_path.json.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import cv2
import keras
import numpy as np
from joblib import Parallel, delayed
from keras.src.legacy.preprocessing.image import ImageDataGenerator

import chestxray as cx
from chestxray.data.catalog import scan
from chestxray.data.dataset import PixelStore
from chestxray.data.images import apply_clahe, decode_image, resize
from chestxray.files import write_json

IMAGES, SIZE, BATCH = 960, 224, 32
SETTINGS = cx.ImageSettings(SIZE, clahe=True)
RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def make_files(folder: Path, originals: Path, count: int) -> None:
    """Write ``count`` files of other contents each."""
    paths = sorted(path for path in originals.rglob("*") if path.suffix in (".jpeg", ".jpg"))
    for number in range(count):
        path, shift = paths[number % len(paths)], number // len(paths)
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        if max(image.shape) < 500:  # phantoms
            image = cv2.resize(image, (1300, 1000), interpolation=cv2.INTER_CUBIC)
        kind = "NORMAL" if "NORMAL" in str(path) else "PNEUMONIA"
        target = folder / kind / f"{number:05d}.jpeg"
        target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(target), image[shift:], [cv2.IMWRITE_JPEG_QUALITY, 92])


def alone(paths: list[str], rounds: int = 3) -> dict[str, float]:
    """Seconds an image of each step on one core, while the others do the same, in the fastest round."""
    cv2.setNumThreads(1)
    files, found = [Path(path).read_bytes() for path in paths], []
    for _ in range(rounds):
        spent = {"decode": 0.0, "resize": 0.0, "CLAHE": 0.0}
        for data in files:
            times = [time.perf_counter()]
            image = decode_image(data)
            times.append(time.perf_counter())
            image = resize(image, SETTINGS)
            times.append(time.perf_counter())
            apply_clahe(image)
            times.append(time.perf_counter())
            for name, (begin, end) in zip(spent, pairwise(times), strict=True):
                spent[name] += (end - begin) / len(files)
        found.append(spent)
    return min(found, key=lambda spent: sum(spent.values()))


def timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--originals", type=Path, help="a folder of JPEG files of original size")
    given = parser.parse_args()
    cores = os.cpu_count()
    with tempfile.TemporaryDirectory() as place:
        os.environ["CHESTXRAY_CACHE"] = str(Path(place) / "cache")
        folder = Path(place) / "files"
        make_files(folder, given.originals or cx.phantom_dataset(120), IMAGES)
        catalog = scan(folder)
        paths = [str(folder / path) for path in catalog["path"]]
        steps = Parallel(n_jobs=cores)(delayed(alone)(paths[core::cores]) for core in range(cores))
        steps = {name: float(np.mean([core[name] for core in steps])) for name in steps[0]}
        limit = cores / sum(steps.values())
        build = timed(lambda: PixelStore.build(catalog, folder, SETTINGS))
        store = PixelStore.build(catalog, folder, SETTINGS)

        def epoch(augment: cx.Augmentation | None = None) -> None:
            for _ in store.dataset(catalog, BATCH, shuffle=True, augment=augment):
                pass

        epoch(cx.Augmentation())  # traces the views once
        keras_set = keras.utils.image_dataset_from_directory(
            folder, color_mode="grayscale", image_size=(SIZE, SIZE), batch_size=BATCH, verbose=False
        )
        generator = ImageDataGenerator(rescale=1 / 255, rotation_range=7, zoom_range=0.1).flow_from_directory(
            folder, (SIZE, SIZE), "grayscale", batch_size=BATCH
        )
        seconds = {
            "PixelStore, first reading": build,
            "PixelStore, every epoch": timed(epoch),
            "PixelStore, every epoch with augmentation": timed(lambda: epoch(cx.Augmentation())),
            "image_dataset_from_directory, every epoch": timed(lambda: [0 for _ in keras_set]),
            "ImageDataGenerator with augmentation, every epoch": timed(
                lambda: [generator[number] for number in range(len(generator))]
            ),
        }
    rates = {name: IMAGES / value for name, value in seconds.items()}
    share = rates["PixelStore, first reading"] / limit
    print(
        "alone, milliseconds an image on one core: "
        + ", ".join(f"{name} {1e3 * value:.2f}" for name, value in steps.items())
    )
    print(f"limit of {cores} cores: {limit:,.0f} images/s; first reading reaches {share:.0%} of it\n")
    slow = rates["ImageDataGenerator with augmentation, every epoch"]
    for name, rate in rates.items():
        print(f"{name:52s}{rate:>9,.0f} images/s{rate / slow:>8.1f}x")
    write_json(
        RESULTS / "input_path.json",
        {
            "schema": "chestxray.benchmark/1",
            "name": "input_path",
            "images": IMAGES,
            "cores": cores,
            "originals": "real" if given.originals else "phantoms",
            "milliseconds_alone": {name: 1e3 * value for name, value in steps.items()},
            "limit": limit,
            "share_of_limit": share,
            "images_per_second": rates,
        },
    )


if __name__ == "__main__":
    main()
