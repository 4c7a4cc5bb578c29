"""Radiographs of phantoms by simplified physics: projection, lesion, exposure.

A parallel beam runs along z. For units and axes see :mod:`chestxray.phantoms.anatomy`. Powers and logarithms
are float64, so that differences in rounding between processors do not change the grey values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from chestxray.phantoms.anatomy import Anatomy, Solid, Tube, make_anatomy

FIELD = 22.5  # width and height of the image
VISIBLE = 0.06  # smallest line integral of a lesion

# Linear attenuation at 50 keV in 1/cm: mass attenuation (NIST, X-Ray Mass Attenuation Coefficients, table 4,
# ICRU-44 muscle and cortical bone) times density in g/cm3.
SOFT = 0.2262 * 1.05
LUNG = 0.2262 * 0.26  # the same tissue, inflated
BONE = 0.4242 * 1.45  # a child's bone is less dense than the adult's 1.92


@dataclass(frozen=True)
class Pose:
    """Position and breath of the patient."""

    rotation: float = 0.0  # in the image plane
    scale: float = 1.0  # magnification
    shift: tuple[float, float] = (0.0, 0.0)  # (x, y) in the image plane
    oblique: float = 0.0  # rotation about the long axis: the front moves to +x
    lordosis: float = 0.0  # rotation about the axis of the shoulders: the front moves down
    breath: float = 0.0  # how far the diaphragm is lowered
    lung: float = LUNG  # linear attenuation of inflated lung in 1/cm


@dataclass(frozen=True)
class Rays:
    """One ray per pixel."""

    x: NDArray  # where the rays meet the patient's x-y plane, (size, size)
    y: NDArray
    pixel: float  # pitch in cm
    pose: Pose

    @classmethod
    def through(cls, pose: Pose, size: int) -> "Rays":
        plane = ((np.arange(size) + 0.5) / size - 0.5) * FIELD
        dx, dy = np.meshgrid(plane - pose.shift[0], plane - pose.shift[1])
        cos, sin = math.cos(pose.rotation) / pose.scale, math.sin(pose.rotation) / pose.scale
        return cls(cos * dx + sin * dy, cos * dy - sin * dx, FIELD / size / pose.scale, pose)

    def turned(self, points: NDArray) -> NDArray:
        """Rotate points (..., 3) by ``oblique`` and ``lordosis``, to first order in the angles."""
        x, y, z = np.moveaxis(np.asarray(points, dtype=float), -1, 0)
        return np.stack([x + z * self.pose.oblique, y + z * self.pose.lordosis, z], axis=-1)

    def interval(self, solid: Solid) -> tuple[NDArray, NDArray]:
        """Return the z values at which each ray enters and leaves the solid, (size, size) each."""
        half = replace(solid, centre=self.turned(solid.centre)).half_chord(self.x, self.y)
        return solid.centre[2] - half, solid.centre[2] + half

    def path(self, solid: Solid) -> NDArray:
        """Return the length of each ray inside the solid."""
        low, high = self.interval(solid)
        return high - low

    def through_tubes(self, tubes: Sequence[Tube]) -> NDArray:
        """Return the length of each ray inside the union of the tubes.

        A piece of a tube is a cylinder with round ends. Its chord at distance d from the axis is 2 sqrt(r^2 -
        d^2) / sin(angle to the beam). Tubes thinner than a pixel are widened; their cross-section is kept.
        """
        size, cos, sin = len(self.x), math.cos(self.pose.rotation), math.sin(self.pose.rotation)
        start = self.turned(np.concatenate([tube.points[:-1] for tube in tubes]))
        step = self.turned(np.concatenate([tube.points[1:] for tube in tubes])) - start
        radius = np.concatenate([(tube.radii[:-1] + tube.radii[1:]) / 2 for tube in tubes])
        hollow = np.repeat([tube.hollow for tube in tubes], [len(tube.radii) - 1 for tube in tubes])
        flat = np.hypot(step[:, 0], step[:, 1])
        # The lower limit: a curved tube is parallel to the beam only in short pieces.
        sine = np.maximum(flat / np.linalg.norm(step, axis=1), 0.4)
        wide = np.maximum(radius, 0.7 * self.pixel)
        gain = 2 * (radius / wide) ** 2 / sine
        # Coordinates in pixels of the image: the inverse of `through`.
        turn = np.array([[cos, sin], [-sin, cos]]) / self.pixel
        start = start[:, :2] @ turn + np.array(self.pose.shift) * size / FIELD + size / 2 - 0.5
        step = step[:, :2] @ turn
        reach = math.ceil((flat / 2 + wide).max() / self.pixel) + 1
        square = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1, dtype=np.float32)] * 2))
        middle = np.rint(start + step / 2).T.astype(np.float32)
        column, row = middle[:, :, None, None] + square[:, None]
        values = (*start.T, *step.T, gain, wide**2, (hollow * wide) ** 2)
        ax, ay, sx, sy, gain, outer, core = (value.astype(np.float32)[:, None, None] for value in values)
        dx, dy = column - ax, row - ay
        along = ((dx * sx + dy * sy) / np.maximum(sx * sx + sy * sy, 1e-6)).clip(0, 1)
        off = ((dx - along * sx) ** 2 + (dy - along * sy) ** 2) * self.pixel**2
        chord = gain * (np.sqrt(np.maximum(outer - off, 0)) - np.sqrt(np.maximum(core - off, 0)))
        inside = (chord > 0) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
        path = np.zeros((size, size), np.float32)
        np.maximum.at(path, (row[inside].astype(int), column[inside].astype(int)), chord[inside])
        return path


def render_phantom(
    subtype: str, size: int = 224, patient_seed: int = 0, image_seed: int = 0
) -> tuple[NDArray, NDArray]:
    """Render a radiograph and the mask of its lesion.

    The anatomy depends on ``patient_seed``, all else on both seeds. Images of two subtypes (normal, bacteria,
    virus) with the same seeds differ only in the lesion. Returns the image, ``uint8`` (size, size), bone
    bright, and the mask, ``bool`` (size, size).
    """
    streams = [np.random.default_rng([patient_seed, 1 + image_seed, stream]) for stream in range(3)]
    pose_rng, lesion_rng, exposure_rng = streams
    anatomy = make_anatomy(patient_seed)
    rays = Rays.through(make_pose(pose_rng), size)
    path, air = line_integrals(anatomy, rays, pose_rng)
    added = np.zeros_like(path)
    if subtype != "normal":
        added = draw_lesion(subtype, anatomy, rays, air=air, rng=lesion_rng)
    return expose(path + added, rays, exposure_rng), added > 0


def make_pose(rng: Generator) -> Pose:
    """Draw a pose. It differs between the images of a patient."""
    rotation, scale = rng.normal(0, 0.05), rng.uniform(0.90, 1.14)
    shift = rng.normal(0, 0.6), rng.normal(0.2, 0.7)
    oblique, lordosis, breath = rng.normal(0, 0.08), rng.normal(0, 0.08), rng.normal(0, 0.5)
    return Pose(rotation, scale, shift, oblique, lordosis, breath, lung=LUNG * rng.uniform(1.0, 2.1))


def line_integrals(anatomy: Anatomy, rays: Rays, rng: Generator) -> tuple[NDArray, NDArray]:
    """Return line integrals of a healthy patient, (size, size), and cm of inflated lung, (2, size, size)."""
    # A smooth union: the shoulders merge with the trunk.
    body = 2 * np.sqrt(np.sqrt(sum(solid.half_chord(rays.x, rays.y) ** 4 for solid in anatomy.body)))
    # Organs on one ray touch: their union is one interval.
    enter, leave = np.full_like(rays.x, np.inf), np.full_like(rays.x, -np.inf)
    lowered = (0, rays.pose.breath, 0)
    domes = [replace(dome, centre=np.add(dome.centre, lowered)) for dome in anatomy.domes]
    for solid in (*anatomy.mediastinum, *domes):
        low, high = rays.interval(solid)
        enter = np.where(high > low, np.minimum(enter, low), enter)
        leave = np.where(high > low, np.maximum(leave, high), leave)
    air = []
    for lung in anatomy.lungs:
        low, high = rays.interval(lung)
        organs = np.minimum(high, leave) - np.maximum(low, enter)
        air.append(np.maximum(high - low - np.maximum(organs, 0), 0))
    air = np.stack(air)

    vessels = rays.through_tubes(anatomy.vessels) + sum(map(rays.path, anatomy.hila))
    air *= 1 - (vessels / np.maximum(air.sum(axis=0), 1e-3)).clip(0, 1)
    inflated = air.sum(axis=0)
    bone = sum(rays.through_tubes([tube]) for tube in anatomy.bones) + _spine(anatomy.spine, rays)
    gas = rays.through_tubes(anatomy.airways) + sum(map(rays.path, anatomy.gas))
    markings = 1 + rng.uniform(0, 0.09) * clouds(rng, rays, 1.2)
    path = SOFT * (body - inflated - gas) + rays.pose.lung * markings * inflated
    return np.maximum(path + (BONE - SOFT) * bone, 0), air


def _spine(vertebra: Solid, rays: Rays) -> NDArray:
    """Return the path through compact bone of a column of equal vertebrae."""
    # Computed for the nearest vertebra. Its body is spongy: a fifth counts as compact bone.
    x0, y0, z0 = rays.turned(vertebra.centre).tolist()
    pitch = 2.4 * vertebra.radii[1]
    x = rays.x - x0 * np.cos(rays.y / 9)
    y = (rays.y - y0 + pitch / 2) % pitch - pitch / 2
    path = 0.2 * 2 * replace(vertebra, centre=(0, 0, z0)).half_chord(x, y)
    for x_centre, radii in ((0.62, (0.2, 0.28, 0.3)), (0.0, (0.13, 0.4, 0.5))):  # pedicles, spinous process
        part = Solid((x_centre * vertebra.radii[0], 0.1, z0), radii)
        path += 2 * part.half_chord(np.abs(x - 0.6 * rays.pose.oblique), y)
    return path


def clouds(rng: Generator, rays: Rays, grain: float) -> NDArray:
    """Return smooth noise of mean 0 and deviation about 1, with structures of ``grain`` cm and finer."""
    knots = round(FIELD / grain)
    noise = np.zeros_like(rays.x)
    for octave in (1, 2, 4):
        coarse = rng.standard_normal((knots * octave, knots * octave)) / octave
        noise += 1.2 * cv2.resize(coarse, rays.x.shape, interpolation=cv2.INTER_CUBIC)
    return noise


def draw_lesion(subtype: str, anatomy: Anatomy, rays: Rays, air: NDArray, rng: Generator) -> NDArray:
    """Return the line integrals of a lesion: 0 outside it, at least ``VISIBLE`` inside.

    Fluid replaces part of the air (from `line_integrals`). Bacteria: one dense region with an irregular edge
    in one lung, sometimes limited by a fissure. Virus: faint patches with a fine pattern in each lung.
    """
    ragged, fine = clouds(rng, rays, 2.5), clouds(rng, rays, 0.7)
    share = np.zeros_like(air)
    if subtype == "bacteria":
        side = int(rng.random() < 0.4)  # pneumonia is more frequent in the right lung
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


def _smoothstep(low: float, high: float, value: NDArray) -> NDArray:
    t = np.clip((value - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def expose(path: NDArray, rays: Rays, rng: Generator) -> NDArray:
    """Convert line integrals (size, size) into an image, ``uint8`` of the same shape.

    The detector: Beer-Lambert law, scatter, blur, Gaussian noise with a Poisson variance. The processing:
    logarithm, unsharp mask, window, gamma, shutters of the collimator.
    """
    heel = 1 + rng.normal(0, 0.06) * (rays.x / FIELD) + rng.normal(0, 0.1) * (rays.y / FIELD)
    primary = np.exp(-path) * heel
    signal = primary + rng.uniform(0.03, 0.10) * _blurred(primary, 3.0)
    signal = cv2.GaussianBlur(signal, (0, 0), rng.uniform(0.05, 0.09) / rays.pixel)
    photons = np.exp(rng.uniform(8.2, 11.3)) * (rays.pixel / 0.1) ** 2
    counts = signal * photons
    counts = counts + np.sqrt(counts + 6.0**2) * rng.standard_normal(path.shape, dtype=np.float32)
    dense = -np.log(np.clip(counts / photons, 1e-4, 0.7))
    dense += rng.uniform(0.4, 1.0) * (dense - _blurred(dense, 0.9))
    low, high = np.percentile(dense[::3, ::3], (rng.uniform(1, 12), rng.uniform(98.5, 99.9)))
    grey = ((dense - low) / (high - low)).clip(0, 1)
    target, gamma = rng.uniform(0.42, 0.58), 1.0
    for _ in range(6):  # Newton's method on the mean
        sample = np.maximum(grey[::3, ::3], 1e-3)
        power = sample**gamma
        gamma = np.clip(gamma - (power.mean() - target) / (power * np.log(sample)).mean(), 0.3, 3)
    grey = grey**gamma
    for from_edge in (grey, grey[::-1], grey.T, grey.T[::-1]):  # shutters
        from_edge[: int(len(grey) * max(rng.uniform(-0.05, 0.035), 0))] = 0.0
    return np.rint(255 * grey).astype(np.uint8)


def _blurred(image: NDArray, sigma: float) -> NDArray:
    """Blur with a large ``sigma`` in cm, on a coarse copy, because no fine structure remains."""
    coarse = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(coarse, (0, 0), sigma * 48 / FIELD)
    return cv2.resize(coarse, image.shape, interpolation=cv2.INTER_LINEAR)
