"""Synthetic radiographs of children's chests, rendered by the physics.

Every organ is a solid or a tube with a known attenuation
(:mod:`chestxray.phantoms.anatomy`), and the film is taken along parallel rays by
Beer-Lambert's law (:mod:`chestxray.phantoms.radiograph`). The lesion is part of
the object, so its mask is exact.

The pictures serve exercise and tests. They are no medical data.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np

from chestxray.files import cached_folder
from chestxray.parallel import in_processes
from chestxray.phantoms.anatomy import Anatomy, make_anatomy
from chestxray.phantoms.radiograph import SOFT, Rays, clouds, expose, line_integrals, make_pose
from chestxray.schema import SUBTYPES

PHANTOM_VERSION = 2
"""Part of the cache folder's name: raise it whenever the pictures change."""

VISIBLE = 0.06  # what adds less than this to the line integral is no lesion


@dataclass(frozen=True)
class Phantom:
    """One picture and the truth about it.

    Attributes:
        image: ``uint8``, shape (size, size): bone bright, air dark.
        mask: ``bool``, shape (size, size): the lesion; all False for a normal.
        label: 0 = normal, 1 = pneumonia.
        subtype: ``"normal"``, ``"bacteria"`` or ``"virus"``.
    """

    image: np.ndarray
    mask: np.ndarray
    label: int
    subtype: str


def _smoothstep(low: float, high: float, value: np.ndarray) -> np.ndarray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def draw_lesion(
    subtype: str, anatomy: Anatomy, rays: Rays, air: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Fill a part of the lungs' air with fluid.

    Bacteria: one dense region with a soft, ragged edge in one lung, at the
    height of a lobe and sometimes cut off sharply by a fissure. Virus: several
    faint patches in each lung, broken up by a fine interstitial pattern.

    Args:
        subtype: ``"bacteria"`` or ``"virus"``.
        anatomy: The patient.
        rays: The beam.
        air: Length of inflated lung per ray, from `line_integrals`.
        rng: Source of the lesion's shape.

    Returns:
        What the lesion adds to the line integrals, shape (size, size). It is
        exactly 0 beside the lesion and at least ``VISIBLE`` inside.
    """
    ragged, fine = clouds(rng, rays, 2.5), clouds(rng, rays, 0.7)
    share = np.zeros_like(air)
    if subtype == "bacteria":
        side = int(rng.random() < 0.4)  # the right lung is the more frequent
        u, v = anatomy.lungs[side].local(rays.x, rays.y)
        height = float(rng.choice([-0.45, 0.0, 0.4])) + rng.uniform(-0.12, 0.12)
        centre = rng.uniform(-0.35, 0.35)
        radii = rng.uniform(0.65, 0.95), rng.uniform(0.3, 0.45)
        r = np.hypot((u - centre) / radii[0], (v - height) / radii[1])
        region = 1 - _smoothstep(0.6, 1.25, r + 0.16 * ragged)
        if rng.random() < 0.4:
            region *= _smoothstep(-0.04, 0.04, math.copysign(1, rng.normal()) * (v - height + 0.08 * u))
        share[side] = rng.uniform(0.5, 0.85) * region * (1 + 0.08 * fine)
    else:
        strength = rng.uniform(0.32, 0.5)
        for side, lung in enumerate(anatomy.lungs):
            u, v = lung.local(rays.x, rays.y)
            region = np.zeros_like(u)
            for _ in range(rng.integers(3, 6)):
                centre, height = rng.uniform(-0.6, 0.6), rng.uniform(-0.55, 0.55)
                r = np.hypot((u - centre) / 0.5, (v - height) / 0.28)
                patch = 1 - _smoothstep(0.2, 1.3, r + 0.2 * ragged)
                region = np.maximum(region, rng.uniform(0.6, 1) * patch)
            share[side] = strength * region * (0.9 + 0.22 * fine)
    added = (SOFT - rays.pose.lung) * (share.clip(0, 0.95) * air).sum(axis=0)
    return np.where(added >= VISIBLE, added, 0)


def render_phantom(subtype: str, size: int = 224, patient_seed: int = 0, image_seed: int = 0) -> Phantom:
    """Render one radiograph.

    The anatomy depends on ``patient_seed``; pose, exposure, noise and lesion
    depend on both seeds. The same arguments give the same pixels, and another
    ``subtype`` with the same seeds gives the same film but for the lesion.

    Args:
        subtype: ``"normal"``, ``"bacteria"`` or ``"virus"``.
        size: Width and height in pixels, 32 to 2048.
        patient_seed: Not negative.
        image_seed: Not negative.

    Returns:
        The picture with its lesion mask.

    Raises:
        ValueError: An argument is outside its range.
    """
    if subtype not in SUBTYPES:
        raise ValueError(f"subtype must be one of {SUBTYPES}. Received: subtype={subtype!r}")
    _check("size", size, 32, 2048)
    _check("patient_seed", patient_seed, 0)
    _check("image_seed", image_seed, 0)
    pose_rng, lesion_rng, film_rng = (
        np.random.default_rng([patient_seed, 1 + image_seed, stream]) for stream in range(3)
    )
    anatomy = make_anatomy(patient_seed)
    rays = Rays.through(make_pose(pose_rng), size)
    path, air = line_integrals(anatomy, rays, pose_rng)
    added = np.zeros_like(path)
    if subtype != "normal":
        added = draw_lesion(subtype, anatomy, rays, air, lesion_rng)
    image = expose(path + added, rays, film_rng)
    return Phantom(image, added > 0, int(subtype != "normal"), subtype)


def _check(name: str, value: int, least: int, most: int | None = None) -> None:
    whole = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not whole or value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be a whole number, {bounds}. Received: {name}={value!r}")


def write_phantoms(folder: str | Path, images: int = 300, size: int = 224, seed: int = 0) -> None:
    """Write a set of phantoms in the layout and with the file names of the Kaggle data.

    27 % are normal; of the rest 65 % are bacterial. Each patient has one to
    four images, all in one of the folders train, val and test. test holds 15 %
    of every kind; val holds 8 normal and 8 pneumonia images as in the
    original, or proportionally fewer when there are less than 200 images.

    Args:
        folder: Where to write ``chest_xray/{train,val,test}/{NORMAL,PNEUMONIA}/*.jpeg``,
            the lesions as ``masks/<same path>.png`` (0 or 255), and ``README.txt``.
        images: How many, at least 20.
        size: Width and height of each in pixels.
        seed: Another seed has other patients.

    Raises:
        ValueError: An argument is outside its range.
    """
    _check("images", images, 20)
    _check("seed", seed, 0)
    folder = Path(folder)
    for _ in in_processes(partial(_write, folder, size), list(_plan(images, seed)), "making phantoms"):
        pass
    (folder / "README.txt").write_text(
        "These radiographs are SYNTHETIC: rendered by chestxray.phantoms, from no patient.\n"
        "They must not be used as, or mixed with, medical data.\n"
        f"chest_xray: the images. masks: the lesions (255) of each. images={images} size={size} "
        f"seed={seed} version={PHANTOM_VERSION}\n",
        encoding="utf-8",
    )


def _write(folder: Path, size: int, planned: list[tuple[str, str, int, int]]) -> None:
    for path, subtype, patient, shot in planned:
        phantom = render_phantom(subtype, size, patient, shot)
        file = folder / "chest_xray" / path
        mask = phantom.mask * np.uint8(255)
        for target, pixels, options in (
            (file, phantom.image, [cv2.IMWRITE_JPEG_QUALITY, 95]),
            (lesion_mask_path(file), mask, []),
        ):
            target.parent.mkdir(parents=True, exist_ok=True)
            encoded = cv2.imencode(target.suffix, pixels, options)[1]
            target.write_bytes(encoded)  # imwrite says nothing of a full disk


def _plan(images: int, seed: int) -> Iterator[tuple[str, str, int, int]]:
    """Yield (path, subtype, patient seed, image seed) for each image of a set."""
    rng = np.random.default_rng([seed, images])
    normal = round(0.27 * images)
    bacteria = round(0.65 * (images - normal))
    totals = {"normal": normal, "bacteria": bacteria, "virus": images - normal - bacteria}
    val = 8 if images >= 200 else max(1, round(8 * images / 200))
    vals = {"normal": val, "bacteria": round(0.65 * val), "virus": val - round(0.65 * val)}
    numbers = rng.permutation(images) + 1  # so that a number tells nothing of the class
    patient, written = 0, dict.fromkeys(SUBTYPES, 0)
    for subtype, total in totals.items():
        val, test = vals[subtype], round(0.15 * total)
        for split, left in (("train", total - val - test), ("val", val), ("test", test)):
            while left:
                number, prefix = numbers[patient], rng.choice(["", "NORMAL2-"])
                shots = min(left, int(rng.integers(1, 5)))
                for shot in range(shots):
                    written[subtype] += 1
                    name = f"PNEUMONIA/person{number}_{subtype}_{written[subtype]}"
                    if subtype == "normal":
                        name = f"NORMAL/{prefix}IM-{number:04d}-{shot + 1:04d}"
                    yield f"{split}/{name}.jpeg", subtype, 1_000_000 * seed + patient, shot
                left, patient = left - shots, patient + 1


def phantom_dataset(images: int = 300, size: int = 224, seed: int = 0) -> Path:
    """Return the ``chest_xray`` folder of a set of phantoms, made on first use.

    The set lives in the cache, named by the arguments and `PHANTOM_VERSION`.
    See `write_phantoms` for the arguments and errors.
    """
    name = f"v{PHANTOM_VERSION}-{images}-images-{size}px-seed{seed}"
    write = partial(write_phantoms, images=images, size=size, seed=seed)
    return cached_folder("phantoms", name, write) / "chest_xray"


def lesion_mask_path(image_path: str | Path) -> Path:
    """Return where the lesion mask of a phantom's image is.

    Args:
        image_path: ``<set>/chest_xray/<split>/<class>/<name>.jpeg``.

    Returns:
        ``<set>/masks/<split>/<class>/<name>.png``.

    Raises:
        ValueError: The path is not inside a ``chest_xray`` folder of that depth.
    """
    path = Path(image_path)
    if len(path.parts) < 4 or path.parts[-4] != "chest_xray":
        raise ValueError(
            "image_path must end in chest_xray/<split>/<class>/<file>. "
            f"Received: image_path={str(image_path)!r}"
        )
    return path.parents[3] / "masks" / Path(*path.parts[-3:]).with_suffix(".png")
