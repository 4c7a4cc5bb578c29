"""Synthetic radiographs of children's chests, rendered by the physics.

Every organ is a solid or a tube with a known attenuation. A parallel beam runs
along z; its path through each organ is computed in closed form for every
pixel, and Beer-Lambert's law turns the paths into photons on a detector. The
lesion is part of the object, so its mask is exact.

Lengths are in centimetres, angles in radians. x points to the right of the
film (the patient's left side, as always), y down, z from the back of the
patient to the front. The origin is the middle of the chest of a child of
about three years.

The pictures serve exercise and tests. They are no medical data.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np

from chestxray.files import cache_dir, whole_folder

PHANTOM_VERSION = 1
"""Part of the cache folder's name: raise it whenever the pictures change."""

SUBTYPES = ("normal", "bacteria", "virus")
FIELD = 22.5  # width and height of the film
SIDES = (-1, 1)  # the sign of x: the patient's right, left

# Linear attenuation at 50 keV in 1/cm: mass attenuation (NIST, X-Ray Mass
# Attenuation Coefficients, table 4, ICRU-44 muscle and cortical bone) times
# density in g/cm3.
SOFT = 0.2262 * 1.05
LUNG = 0.2262 * 0.26  # the same tissue, inflated
BONE = 0.4242 * 1.45  # a child's bone is less dense than the adult's 1.92

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


@dataclass(frozen=True)
class Solid:
    """A superellipsoid: an ellipsoid for ``power`` 2, boxier above.

    Attributes:
        centre: (x, y, z).
        radii: Half-axes along x, y and z.
        tilt: Rotation in the plane of the film, clockwise.
        power: Exponent of the superellipsoid.
        taper: Share by which the lower end is wider than the middle.
    """

    centre: tuple[float, float, float]
    radii: tuple[float, float, float]
    tilt: float = 0.0
    power: float = 2.0
    taper: float = 0.0

    def local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (x, y) in half-axes from the centre, along the solid's own axes."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        dx, dy = x - self.centre[0], y - self.centre[1]
        v = (cos * dy - sin * dx) / self.radii[1]
        width = self.radii[0] * (1 + self.taper * np.clip(v, -1, 1))
        return (cos * dx + sin * dy) / width, v

    def half_chord(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return half the length of the ray inside the solid; 0 beside it."""
        u, v = self.local(x, y)
        if self.power == 2:
            return self.radii[2] * np.sqrt(np.maximum(1 - u * u - v * v, 0))
        rest = np.maximum(1 - np.abs(u) ** self.power - np.abs(v) ** self.power, 0)
        return self.radii[2] * rest ** (1 / self.power)


@dataclass(frozen=True)
class Tube:
    """A curve with a round cross-section.

    Attributes:
        points: Shape (n, 3).
        radii: Shape (n,).
        hollow: Share of the radius that is marrow, which counts as soft tissue.
    """

    points: np.ndarray
    radii: np.ndarray
    hollow: float = 0.0


@dataclass(frozen=True)
class Anatomy:
    """The organs of one patient who stands straight."""

    body: tuple[Solid, ...]
    lungs: tuple[Solid, Solid]
    mediastinum: tuple[Solid, ...]
    hila: tuple[Solid, Solid]
    domes: tuple[Solid, Solid]
    gas: tuple[Solid, ...]
    bones: tuple[Tube, ...]
    vessels: tuple[Tube, ...]
    airways: tuple[Tube, ...]
    spine: Solid


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
        film = ((np.arange(size, dtype=np.float32) + 0.5) / size - 0.5) * FIELD
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
        column, row = np.rint(start + step / 2).T.astype(np.float32)[:, :, None, None] + np.stack(
            np.meshgrid(*[np.arange(-reach, reach + 1, dtype=np.float32)] * 2)
        )[:, None]
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


def _curve(*knots: Sequence[float], radii: Sequence[float], hollow: float = 0.0) -> Tube:
    """Return a tube on the polynomial through three or four knots."""
    t, degree = np.linspace(0, 1, 12), len(knots) - 1
    fits = np.polyfit(np.linspace(0, 1, len(knots)), np.array(knots), degree).T
    points = np.stack([np.polyval(fit, t) for fit in fits], axis=1)
    return Tube(points, np.interp(t, np.linspace(0, 1, len(radii)), radii), hollow)


def _vessel_tree(
    rng: np.random.Generator, lung: Solid, side: int, calibre: float
) -> Iterator[Tube]:
    """Yield the vessels of a lung: they leave the hilum, bend, fork and thin out."""
    hilum = (side * 2.2, -0.9 + 0.4 * side, 0.0)
    growing = [
        (hilum, angle + rng.normal(0, 0.12), calibre * rng.uniform(0.25, 0.6), 0)
        for angle in np.linspace(-1.4, 1.5, 11)
    ]
    while growing:
        (x, y, z), angle, radius, order = growing.pop()
        points, radii = [(x, y, z)], [radius]
        for _ in range(rng.integers(3, 7)):
            angle += rng.normal(0, 0.16)
            x, y = x + side * 0.55 * math.cos(angle), y + 0.55 * math.sin(angle)
            z, radius = z + rng.normal(0, 0.25), radius * 0.88
            u, v = lung.local(x, y)
            if u * u + v * v > 0.9:
                break
            points.append((x, y, z))
            radii.append(radius)
        if len(points) > 1:
            yield Tube(np.array(points), np.array(radii))
            if radius > 0.03 and order < 5:
                for fork in (-rng.uniform(0.2, 0.6), rng.uniform(0.2, 0.6)):
                    growing.append((points[-1], angle + fork, radius * 0.8, order + 1))


@functools.lru_cache(maxsize=8)  # the films of one patient follow one another
def make_anatomy(patient_seed: int) -> Anatomy:
    """Draw a patient: a three-year-old's chest, most sizes varied by some ten per cent.

    The heart's width, the thymus, the hila and the calibre of the vessels vary
    most: they are what a healthy chest can be mistaken by.
    """
    rng = np.random.default_rng([patient_seed, 0])

    def about(value: float, share: float = 0.08) -> float:
        return value * rng.uniform(1 - share, 1 + share)

    width, depth = about(7.9, 0.06), about(6.4)  # of the rib cage, halved
    trunk = Solid((0, 6, 0), (width + about(1.7, 0.4), about(16.5, 0.05), depth), power=3)
    neck = Solid((0, -13, 0), (about(2.6), 8, about(3.2)))
    raised = rng.uniform(-0.35, 0.9)
    limbs, lungs, hila = [], [], []
    for side in SIDES:
        limbs.append(Solid((side * about(8.4), -7.6, 0), (4.4, about(2.8), 3.2), side * 0.25))
        limbs.append(Solid((side * about(11.8, 0.05), -4.5, 0), (1.9, 6.5, 1.9), side * -raised))
        radii = (width * 0.47, about(8.3, 0.05), depth * 0.8)
        centre = (side * width * 0.53, about(-0.6, 0.3), -0.2)
        lungs.append(Solid(centre, radii, side * -0.07, power=2.5, taper=0.22))
        radii = (about(0.9, 0.5), about(1.5, 0.3), about(1.0, 0.5))
        hila.append(Solid((side * about(2.6), -0.4, 0), radii))

    heart, thymus = about(1.0, 0.17), rng.uniform(0.3, 1.0) ** 2
    ventricles = (4.5 * heart, 3.7 * heart, depth * 0.68)
    mediastinum = (
        Solid((about(1.1, 0.4), 2.5, 0.8), ventricles, tilt=0.5),
        Solid((-0.9, 1.4, 0.4), (2.5 * heart, 3.6, depth * 0.6), tilt=-0.1),  # right atrium
        Solid((0.1, -1, 0), (about(1.9, 0.15), 10, depth * 0.8), power=2.5, taper=0.2),
        Solid((about(1.0, 0.2), -2.9, -0.4), (about(1.2, 0.2), about(2.2), 2.6), -0.15),  # aorta
        Solid(
            (rng.uniform(-1.2, 1.2), -3.6, 2.6),
            (1.4 + 2.4 * thymus, 2.9, 0.5 + 1.2 * thymus),
            power=2.5,
        ),
    )
    top = rng.uniform(4.2, 5.2)
    domes = tuple(
        Solid((side * width * 0.55, top + lower + 6, 0), (width * 0.62, 6, depth), power=2.2)
        for side, lower in zip(SIDES, (0, rng.uniform(0.2, 0.9)))
    )
    stomach = (about(1.7, 0.4), about(0.9, 0.4), 1.6)
    gas = [Solid((about(4.2), top + rng.uniform(2, 3), 0), stomach)]
    for _ in range(4):
        centre = (rng.uniform(-6, 6), rng.uniform(9.5, 12), 0)
        gas.append(Solid(centre, tuple(rng.uniform(0.5, 1.2, 3).tolist()), rng.uniform(0, 3)))

    bend, carina = rng.normal(0, 0.15), (0.2, -3.0, -1)
    airways = (
        _curve((0, -13, 0), (0.15 + bend, -8, -0.5), carina, radii=(0.48, 0.42)),
        _curve(carina, (-1.0, -2.0, -1), (-2.0, -0.9, -1), radii=(0.36, 0.28)),
        _curve(carina, (1.4, -2.1, -1), (2.6, -1.4, -1), radii=(0.33, 0.25)),
    )
    vertebra = (about(1.0), about(0.62, 0.05), 0.9)
    calibre = about(1.0, 0.35)
    return Anatomy(
        body=(trunk, neck, *limbs),
        lungs=tuple(lungs),
        mediastinum=mediastinum,
        hila=tuple(hila),
        domes=domes,
        gas=tuple(gas),
        bones=tuple(bone for side in SIDES for bone in _bones(rng, side, width, depth)),
        vessels=tuple(
            vessel
            for side, lung in zip(SIDES, lungs)
            for vessel in _vessel_tree(rng, lung, side, calibre)
        ),
        airways=airways,
        spine=Solid((bend, rng.uniform(-0.7, 0.7), -3.6), vertebra, power=3.5),
    )


def _bones(rng: np.random.Generator, side: int, width: float, depth: float) -> Iterator[Tube]:
    """Yield the ribs, clavicle, shoulder blade and upper arm of one side."""
    spacing, drop = rng.uniform(1.38, 1.52), rng.uniform(2.6, 4.2)
    first, thickness = rng.uniform(-8.8, -8.2), rng.uniform(0.30, 0.38)
    for rib in range(11):
        # Around the chest from the spine; beyond the end it is cartilage.
        angle = np.linspace(0.12, 2.35 - 0.06 * rib, 26)
        reach = (width + 0.15) * min(1.0, 0.52 + 0.16 * rib - 0.011 * rib**2)
        x, z = side * reach * np.sin(angle), -0.82 * depth * np.cos(angle)
        y = first + spacing * rib - 0.5 * np.sin(angle) ** 2
        y += drop * (0.75 + 0.05 * rib) * (1 - np.cos(angle)) / 2
        radii = thickness * np.interp(angle, (0, 1.7, 2.4), (1, 0.9, 0.5))
        yield Tube(np.stack([x, y, z], axis=1), radii, hollow=0.68)
    up, out = rng.uniform(-0.6, 1.0), rng.uniform(-0.5, 0.8)
    clavicle = ((1.0, -6.6, 4), (3.4, -7.3, 4), (5.6, -7.5 - up, 3), (7.8, -8.0 - up, 2))
    blade = ((8.6 + out, -7.2, -3), (7.6 + out, -4.0, -4), (6.6 + out, -0.5, -4))
    blade_spine = ((5.0 + out, -7.4, -4), (7.0 + out, -8.2, -4), (9.2 + out, -8.3, -2))
    humerus = ((9.4, -7.6, 0), (10.4, -5.2, 0), (11.6, 0.5, 0))
    for knots, radii, hollow in (
        (clavicle, (0.42, 0.3, 0.34), 0.6),
        (blade, (0.4, 0.22), 0.5),
        (blade_spine, (0.15, 0.35), 0.5),
        (humerus, (0.95, 0.6, 0.55), 0.6),
    ):
        yield _curve(*((side * x, y, z) for x, y, z in knots), radii=radii, hollow=hollow)


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


def line_integrals(
    anatomy: Anatomy, rays: Rays, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
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
    markings = 1 + rng.uniform(0, 0.09) * _texture(rng, rays, 1.2)
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


def _texture(rng: np.random.Generator, rays: Rays, grain: float) -> np.ndarray:
    """Return cloudy noise, mean 0 and deviation about 1, with lumps of ``grain`` cm and finer."""
    knots = round(FIELD / grain)
    noise = np.zeros_like(rays.x)
    for octave in (1, 2, 4):
        coarse = rng.standard_normal((knots * octave, knots * octave)).astype(np.float32) / octave
        noise += 1.2 * cv2.resize(coarse, rays.x.shape, interpolation=cv2.INTER_CUBIC)
    return noise


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
    ragged, fine = _texture(rng, rays, 2.5), _texture(rng, rays, 0.7)
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
    primary = (np.exp(-path) * heel).astype(np.float32)
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


def render_phantom(
    subtype: str, size: int = 224, patient_seed: int = 0, image_seed: int = 0
) -> Phantom:
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
    for path, subtype, patient, shot in _plan(images, seed):
        phantom = render_phantom(subtype, size, patient, shot)
        file = folder / "chest_xray" / path
        for target in (file, lesion_mask_path(file)):
            target.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(file), phantom.image, [cv2.IMWRITE_JPEG_QUALITY, 95])
        cv2.imwrite(str(lesion_mask_path(file)), phantom.mask * np.uint8(255))
    (folder / "README.txt").write_text(
        "These radiographs are SYNTHETIC: rendered by chestxray.data.phantom, from no patient.\n"
        "They must not be used as, or mixed with, medical data.\n"
        f"chest_xray: the images. masks: the lesions (255) of each. images={images} size={size} "
        f"seed={seed} version={PHANTOM_VERSION}\n",
        encoding="utf-8",
    )


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
    folder = cache_dir("phantoms") / f"v{PHANTOM_VERSION}-{images}-images-{size}px-seed{seed}"
    if not folder.exists():
        with whole_folder(folder) as partial:
            write_phantoms(partial, images, size, seed)
    return folder / "chest_xray"


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
