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
import pandas as pd

from chestxray.files import cached_folder
from chestxray.parallel import in_processes
from chestxray.phantoms.radiograph import render_phantom
from chestxray.schema import SUBTYPES, check

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
    check(0 <= framing <= 0.25, "framing must lie in 0–0.25", framing=framing)
    limits = {"images": (images, 20, math.inf), "size": (size, 32, 2048), "seed": (seed, 0, math.inf)}
    for name, (value, low, high) in limits.items():
        valid = isinstance(value, (int, np.integer)) and low <= value <= high
        check(valid, f"{name} must be a whole number, {low} to {high}", **{name: value})
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


_VALUES = {"temperature": ((37.8, 38.5), 0.8, (0.1, 0.1)), "white_cells": ((10.5, 14.0), 4.0, (0.6, 0.3))}
"""Means, standard deviation, and shares of missing values; pairs are without and with the disease."""
_SIGNS = {
    (0.45, 0.70): ("Cough. ", "Coughs at night. ", "Coughing. "),
    (0.30, 0.60): ("Fever. ", "Fevers for days. ", "Febrile. "),
    (0.25, 0.55): ("Crackles. ", "A crackle at the base. ", "Crackling. "),
    (0.45, 0.20): ("Runny nose. ", "The nose runs. ", "Nose was running. "),
    (0.50, 0.50): ("Vaccinations. ", "Vaccinated. ", "Has been vaccinated. "),
}
_NAMING = {(0.01, 0.40): ("This is pneumonia. ",), (0.01, 0.30): ("Amoxicillin was started. ",)}
"""What notes say, by its probabilities: signs, and what only those write who know the disease."""


def phantom_records(lesion: np.ndarray, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Draw a synthetic record for each phantom patient, and the most that each source can tell.

    ``lesion``, bool (P,), does not settle the disease: 90 % of the patients with a lesion have it, and 20 %
    of the others. Saturation depends on the lesion, age on nothing, all else on the disease. White cells are
    missing more often without the disease; what else is missing is so at random.

    Returns the records (``label``, 1 with the disease, ``age``, ``temperature``, ``white_cells``,
    ``saturation``, ``note``) and exact log-likelihood ratios: ``image`` (the lesion), ``measurements``, these
    ``beside the image`` (without saturation, which the lesion explains), ``missing values``, ``notes`` (their
    signs) and ``notes with label words``.
    """
    from scipy.stats import norm

    rng, lesion, disease = np.random.default_rng([seed, 17]), np.asarray(lesion, int), np.array([0.2, 0.9])
    label = (rng.random(len(lesion)) < disease[lesion]).astype(int)
    share = np.stack([1 - disease, disease]) * np.bincount(lesion, minlength=2)
    share /= share.sum(axis=1, keepdims=True)  # with a lesion (column 1), of those with the disease (row 1)

    def event(without: float, with_disease: float) -> tuple[np.ndarray, np.ndarray]:
        happens = rng.random(len(label)) < np.where(label, with_disease, without)
        return happens, np.log(np.where(happens, with_disease / without, (1 - with_disease) / (1 - without)))

    table = pd.DataFrame({"label": label, "age": rng.uniform(1, 6, len(label)).round(1)})
    missing, beside, signs, named = np.zeros((4, len(label)))
    for name, (means, spread, shares) in _VALUES.items():
        gone, told = event(*shares)
        table[name] = np.where(gone, np.nan, rng.normal(np.take(means, label), spread))
        low, high = (norm.logpdf(table[name], mean, spread) for mean in means)
        missing, beside = missing + told, beside + told + np.nan_to_num(high - low)
    table["saturation"] = np.where(event(0.15, 0.15)[0], np.nan, rng.normal(np.take((96, 92), lesion), 2))
    low, high = np.log(norm.pdf(table[["saturation"]], (96, 92), 2) @ share.T).T
    written = event(0.9, 0.9)[0]
    note = np.where(written, "Child seen today. ", "").astype(object)
    for shares, sayings in (_SIGNS | _NAMING).items():
        said, told = event(*shares)
        denied = ~said & (shares in _SIGNS) & (rng.random(len(label)) < 0.4)
        unsaid = np.where(denied, f"No {sayings[0].lower()}", "")
        note += np.where(said & written, rng.choice(sayings, len(label)), np.where(written, unsaid, ""))
        signs, named = signs + told * written * (shares in _SIGNS), named + told * written
    table["note"] = note
    best = {"image": np.log(share[1] / share[0])[lesion], "measurements": beside + np.nan_to_num(high - low)}
    best |= {"beside the image": beside, "missing values": missing}
    return table, pd.DataFrame(best | {"notes": signs, "notes with label words": named})
