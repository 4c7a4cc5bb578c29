"""How a film is taken of a phantom's body: rays, line integrals, detector.

A parallel beam runs along z; its path through each organ is computed in
closed form for every pixel, and Beer-Lambert's law turns the paths into
photons on a detector. Units and axes are those of
:mod:`chestxray.phantoms.anatomy`.

Whatever needs powers, exponentials or logarithms is computed in float64:
processors round these differently in the last place, which in float32 would
move a grey value now and then. So a film has the same pixels on all of them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from chestxray.phantoms.anatomy import Anatomy, Solid, Tube

FIELD = 22.5  # width and height of the film

# Linear attenuation at 50 keV in 1/cm: mass attenuation (NIST, X-Ray Mass
# Attenuation Coefficients, table 4, ICRU-44 muscle and cortical bone) times
# density in g/cm3.
SOFT = 0.2262 * 1.05
LUNG = 0.2262 * 0.26  # the same tissue, inflated
BONE = 0.4242 * 1.45  # a child's bone is less dense than the adult's 1.92


@dataclass(frozen=True)
class Pose:
    """How the patient lies on the film, and how deep the breath is.

    Attributes:
        rotation: In the plane of the film.
        scale: Magnification.
        shift: (x, y) on the film.
        oblique: Turn about the long axis: what is in front moves to +x.
        lordosis: Turn about the axis of the shoulders: what is in front moves down.
        breath: How far the diaphragm is lowered.
        lung: Linear attenuation of inflated lung in 1/cm.
    """

    rotation: float = 0.0
    scale: float = 1.0
    shift: tuple[float, float] = (0.0, 0.0)
    oblique: float = 0.0
    lordosis: float = 0.0
    breath: float = 0.0
    lung: float = LUNG


@dataclass(frozen=True)
class Rays:
    """One ray per pixel: where it meets the patient's own x-y plane.

    ``x`` and ``y`` have shape (size, size); ``pixel`` is the pitch in cm.
    """

    x: np.ndarray
    y: np.ndarray
    pixel: float
    pose: Pose

    @classmethod
    def through(cls, pose: Pose, size: int) -> Rays:
        film = ((np.arange(size) + 0.5) / size - 0.5) * FIELD
        dx, dy = np.meshgrid(film - pose.shift[0], film - pose.shift[1])
        cos, sin = math.cos(pose.rotation) / pose.scale, math.sin(pose.rotation) / pose.scale
        return cls(cos * dx + sin * dy, cos * dy - sin * dx, FIELD / size / pose.scale, pose)

    def turned(self, points: np.ndarray) -> np.ndarray:
        """Return points (..., 3) after the turn of the body towards the film.

        To first order in the angles, which are a few degrees: only x and y
        move, in proportion to depth.
        """
        x, y, z = np.moveaxis(np.asarray(points, dtype=float), -1, 0)
        return np.stack([x + z * self.pose.oblique, y + z * self.pose.lordosis, z], axis=-1)

    def interval(self, solid: Solid) -> tuple[np.ndarray, np.ndarray]:
        """Return where each ray enters and leaves the solid, as two z values."""
        turned = replace(solid, centre=tuple(self.turned(solid.centre).tolist()))
        half = turned.half_chord(self.x, self.y)
        return solid.centre[2] - half, solid.centre[2] + half

    def path(self, solid: Solid) -> np.ndarray:
        """Return the length of each ray inside the solid."""
        low, high = self.interval(solid)
        return high - low

    def through_tubes(self, tubes: Sequence[Tube]) -> np.ndarray:
        """Return the path length of each ray inside the union of the tubes.

        Each piece of curve is a cylinder with round ends, whose chord at the
        distance d from the axis is 2 sqrt(r^2 - d^2) / sin(angle to the beam).
        Tubes thinner than a pixel are widened with their cross-section kept,
        so that they fade with the pixel size instead of breaking up.
        """
        size, cos, sin = len(self.x), math.cos(self.pose.rotation), math.sin(self.pose.rotation)
        start = self.turned(np.concatenate([tube.points[:-1] for tube in tubes]))
        step = self.turned(np.concatenate([tube.points[1:] for tube in tubes])) - start
        radius = np.concatenate([(tube.radii[:-1] + tube.radii[1:]) / 2 for tube in tubes])
        hollow = np.repeat([tube.hollow for tube in tubes], [len(tube.radii) - 1 for tube in tubes])
        flat = np.hypot(step[:, 0], step[:, 1])
        # A curved tube never runs along the beam for long: hence the floor.
        sine = np.maximum(flat / np.linalg.norm(step, axis=1), 0.4)
        wide = np.maximum(radius, 0.7 * self.pixel)
        gain = 2 * (radius / wide) ** 2 / sine

        # To pixels of the film, the inverse of what `through` does.
        turn = np.array([[cos, sin], [-sin, cos]]) / self.pixel
        start = start[:, :2] @ turn + np.array(self.pose.shift) * size / FIELD + size / 2 - 0.5
        step = step[:, :2] @ turn
        reach = math.ceil((flat / 2 + wide).max() / self.pixel) + 1
        column, row = (
            np.rint(start + step / 2).T.astype(np.float32)[:, :, None, None]
            + np.stack(np.meshgrid(*[np.arange(-reach, reach + 1, dtype=np.float32)] * 2))[:, None]
        )
        ax, ay, sx, sy, gain, outer, core = (
            value.astype(np.float32)[:, None, None]
            for value in (*start.T, *step.T, gain, wide**2, (hollow * wide) ** 2)
        )
        dx, dy = column - ax, row - ay
        along = ((dx * sx + dy * sy) / np.maximum(sx * sx + sy * sy, 1e-6)).clip(0, 1)
        off = ((dx - along * sx) ** 2 + (dy - along * sy) ** 2) * self.pixel**2
        chord = gain * (np.sqrt(np.maximum(outer - off, 0)) - np.sqrt(np.maximum(core - off, 0)))
        seen = (chord > 0) & (column >= 0) & (column < size) & (row >= 0) & (row < size)
        path = np.zeros((size, size), np.float32)
        np.maximum.at(path, (row[seen].astype(int), column[seen].astype(int)), chord[seen])
        return path


def make_pose(rng: np.random.Generator) -> Pose:
    """Draw a pose: what varies between two films of the same child."""
    return Pose(
        rotation=rng.normal(0, 0.05),
        scale=rng.uniform(0.90, 1.14),
        shift=(rng.normal(0, 0.6), rng.normal(0.2, 0.7)),
        oblique=rng.normal(0, 0.08),
        lordosis=rng.normal(0, 0.08),
        breath=rng.normal(0, 0.5),
        lung=LUNG * rng.uniform(1.0, 2.1),
    )


def line_integrals(anatomy: Anatomy, rays: Rays, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Integrate the attenuation of a healthy patient along every ray.

    Args:
        anatomy: The patient.
        rays: The beam.
        rng: Source of the fine markings of the lung.

    Returns:
        The line integrals (dimensionless), shape (size, size), and the length
        of inflated lung on each ray in cm, shape (2, size, size): right, left.
    """
    # A smooth union: shoulders grow out of the trunk instead of crossing it.
    half = [solid.half_chord(rays.x, rays.y) for solid in anatomy.body]
    body = 2 * np.sqrt(np.sqrt(sum(h**4 for h in half)))

    # Organs on one ray touch, so that their union is the hull of their intervals.
    enter, leave = np.full_like(rays.x, np.inf), np.full_like(rays.x, -np.inf)
    for solid in (*anatomy.mediastinum, *(_lowered(d, rays.pose.breath) for d in anatomy.domes)):
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


def _lowered(solid: Solid, by: float) -> Solid:
    x, y, z = solid.centre
    return replace(solid, centre=(x, y + by, z))


def _spine(vertebra: Solid, rays: Rays) -> np.ndarray:
    """Return the path through compact bone of a column of equal vertebrae.

    One vertebra is evaluated at the distance to the nearest centre. Its body
    is spongy (a fifth counts); the pedicles and the spinous process are not.
    """
    x0, y0, z0 = rays.turned(vertebra.centre).tolist()
    pitch = 2.4 * vertebra.radii[1]
    x = rays.x - x0 * np.cos(rays.y / 9)
    y = (rays.y - y0 + pitch / 2) % pitch - pitch / 2
    path = 0.2 * 2 * replace(vertebra, centre=(0, 0, z0)).half_chord(x, y)
    for place, radii in ((0.62, (0.2, 0.28, 0.3)), (0.0, (0.13, 0.4, 0.5))):
        part = Solid((place * vertebra.radii[0], 0.1, z0), radii)
        path += 2 * part.half_chord(np.abs(x - 0.6 * rays.pose.oblique), y)
    return path


def clouds(rng: np.random.Generator, rays: Rays, grain: float) -> np.ndarray:
    """Return cloudy noise, mean 0 and deviation about 1, with lumps of ``grain`` cm and finer."""
    knots = round(FIELD / grain)
    noise = np.zeros_like(rays.x)
    for octave in (1, 2, 4):
        coarse = rng.standard_normal((knots * octave, knots * octave)) / octave
        noise += 1.2 * cv2.resize(coarse, rays.x.shape, interpolation=cv2.INTER_CUBIC)
    return noise


def _blurred(image: np.ndarray, sigma: float) -> np.ndarray:
    """Blur widely, ``sigma`` in cm: on a coarse copy, because nothing fine is left."""
    coarse = cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA)
    coarse = cv2.GaussianBlur(coarse, (0, 0), sigma * 48 / FIELD)
    return cv2.resize(coarse, image.shape, interpolation=cv2.INTER_LINEAR)


def expose(path: np.ndarray, rays: Rays, rng: np.random.Generator) -> np.ndarray:
    """Turn line integrals into a film.

    Beer-Lambert, scatter, detector blur, quantum and electronic noise, then
    what a workstation does: logarithm, unsharp mask, automatic window, gamma
    to a mean grey that is drawn at random and tells nothing of the patient,
    shutters.

    The quantum noise is Gaussian with the variance of a Poisson count, which
    is nearly the same at these counts (mostly hundreds and more), and gives
    two exposures with one seed the same noise in every pixel.

    Args:
        path: Line integrals, shape (size, size), float, >= 0.
        rays: The beam that they belong to.
        rng: Source of exposure, noise and display settings.

    Returns:
        ``uint8``, shape (size, size).
    """
    size = len(path)
    field = (rays.x / FIELD, rays.y / FIELD)
    heel = 1 + rng.normal(0, 0.06) * field[0] + rng.normal(0, 0.1) * field[1]
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
    for axis in (0, 1):  # the shutters of the collimator
        for end in (0, 1):
            blade = int(size * max(rng.uniform(-0.05, 0.035), 0))
            np.swapaxes(grey, 0, axis)[size - blade if end else 0 : size if end else blade] = 0.0
    return np.rint(255 * grey).astype(np.uint8)
