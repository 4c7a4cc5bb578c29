"""Phantoms: synthetic chest radiographs of children, by simplified physics, with known lesions.

The organs (:mod:`chestxray.phantoms.anatomy`) are projected by the Beer-Lambert law
(:mod:`chestxray.phantoms.radiograph`). The images are for exercises and tests. They are not medical data.
"""

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from chestxray.files import cached_folder
from chestxray.parallel import in_processes
from chestxray.phantoms.radiograph import render_phantom
from chestxray.schema import SUBTYPES

PHANTOM_VERSION = 2  # part of the cache folder's name; increase it if the pixels change


def phantom_dataset(images: int = 300, size: int = 224, seed: int = 0, framing: float = 0.0) -> Path:
    """Return the ``chest_xray`` folder of a set of phantoms in the cache. The first call writes it.

    For arguments and errors see `write_phantoms`.
    """
    name = f"v{PHANTOM_VERSION}-{images}-images-{size}px-seed{seed}"
    name += f"-framing{framing}" if framing else ""
    write = partial(write_phantoms, images=images, size=size, seed=seed, framing=framing)
    return cached_folder("phantoms", name, write) / "chest_xray"


def write_phantoms(
    folder: str | Path, images: int = 300, size: int = 224, seed: int = 0, framing: float = 0.0
) -> None:
    """Write a set of phantoms with the folders and file names of the Kaggle data.

    27 % of the images are normal; 65 % of the others are bacterial. Each patient has one to four images, all
    in one of the folders train, val and test. test has 15 % of each subtype. val has 8 normal and 8 pneumonia
    images as in the Kaggle data, or fewer in proportion if there are less than 200 images.

    Args:
        folder: Folder for ``chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``, the lesions as
            ``masks/<same path>.png`` (0 or 255), and ``README.txt``.
        images, size: Number of images, at least 20, and their side in pixels, 32 to 2048.
        seed: At least 0. Each seed has other patients.
        framing: Deliberate shortcut: images of pneumonia lose this mean fraction of their height, 0 to 0.25,
            mostly below the lungs.

    Raises ValueError for a number outside its range.
    """
    if not 0 <= framing <= 0.25:
        raise ValueError(f"framing must lie in 0–0.25. Received: framing={framing!r}")
    limits = {"images": (images, 20, math.inf), "size": (size, 32, 2048), "seed": (seed, 0, math.inf)}
    for name, (value, low, high) in limits.items():
        if not isinstance(value, (int, np.integer)) or not low <= value <= high:
            raise ValueError(f"{name} must be a whole number, {low} to {high}. Received: {name}={value!r}")
    folder = Path(folder)
    write = partial(_write, folder, size, framing)
    list(in_processes(write, list(_plan(images, seed)), "making phantoms"))  # waits for all
    (folder / "README.txt").write_text(
        "These radiographs are SYNTHETIC: chestxray.phantoms rendered them. They show no patient.\n"
        "Do not use them as medical data, and do not mix them with medical data.\n"
        f"chest_xray: the images. masks: the lesion (255) of each image. images={images} size={size} "
        f"seed={seed} framing={framing} version={PHANTOM_VERSION}\n",
        encoding="utf-8",
    )


def _write(folder: Path, size: int, framing: float, planned: list[tuple[str, str, int, int]]) -> None:
    for path, subtype, patient, number in planned:
        image, mask = render_phantom(subtype, size, patient, number)
        if framing and subtype != SUBTYPES[0]:
            rng = np.random.default_rng([patient, number, 9])
            above, below = framing * rng.uniform((0.1, 0.5), (0.3, 1.1))
            rows = slice(round(above * size), size - round(below * size))
            image, mask = image[rows], mask[rows]
        image_path = folder / "chest_xray" / path
        mask_path = folder / "masks" / Path(path).with_suffix(".png")
        quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
        for target, pixels, options in ((image_path, image, quality), (mask_path, mask * np.uint8(255), [])):
            target.parent.mkdir(parents=True, exist_ok=True)
            encoded = cv2.imencode(target.suffix, pixels, options)[1]
            target.write_bytes(encoded)  # imwrite does not report a full disk


def _plan(images: int, seed: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield (path, subtype, patient seed, image seed) for each image of a set."""
    rng = np.random.default_rng([seed, images])
    normal = round(0.27 * images)
    bacteria = round(0.65 * (images - normal))
    totals = {"normal": normal, "bacteria": bacteria, "virus": images - normal - bacteria}
    val = max(1, min(8, round(images / 25)))
    vals = {"normal": val, "bacteria": round(0.65 * val), "virus": val - round(0.65 * val)}
    numbers = rng.permutation(images) + 1  # random, so that a patient's number does not depend on the class
    patient, written = 0, dict.fromkeys(SUBTYPES, 0)
    for subtype, total in totals.items():
        val, test = vals[subtype], round(0.15 * total)
        for split, left in (("train", total - val - test), ("val", val), ("test", test)):
            while left:
                number, prefix = numbers[patient], rng.choice(["", "NORMAL2-"])
                count = min(left, int(rng.integers(1, 5)))
                for image in range(count):
                    written[subtype] += 1
                    name = f"PNEUMONIA/person{number}_{subtype}_{written[subtype]}"
                    if subtype == "normal":
                        name = f"NORMAL/{prefix}IM-{number:04d}-{image + 1:04d}"
                    yield f"{split}/{name}.jpeg", subtype, 1_000_000 * seed + patient, image
                left, patient = left - count, patient + 1
