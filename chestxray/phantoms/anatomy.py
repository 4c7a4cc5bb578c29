"""Anatomy of phantoms: the organs of a child's chest as solids and tubes.

Lengths are in centimetres, angles in radians. x points to the right of the image (the patient's left), y
down, z from back to front. The origin is the middle of the chest. The child is about three years old.
"""

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

SIDES = (-1, 1)  # signs of x: the patient's right and left


@dataclass(frozen=True)
class Solid:
    """A superellipsoid: an ellipsoid for ``power`` 2, more like a box for a higher power."""

    centre: Sequence[float]  # (x, y, z)
    radii: Sequence[float]  # half-axes along x, y and z
    tilt: float = 0.0  # rotation in the image plane, clockwise
    power: float = 2.0
    taper: float = 0.0  # fraction by which the lower end is wider than the middle

    def local(self, x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (x, y) relative to the centre, in units of the half-axes."""
        cos, sin = math.cos(self.tilt), math.sin(self.tilt)
        dx, dy = x - self.centre[0], y - self.centre[1]
        v = (cos * dy - sin * dx) / self.radii[1]
        width = self.radii[0] * (1 + self.taper * np.minimum(np.maximum(v, -1), 1))
        return (cos * dx + sin * dy) / width, v

    def half_chord(self, x: np.ndarray, y: np.ndarray) -> np.ndarray:
        """Return half the length of each ray inside the solid; 0 outside it."""
        half, reach = np.zeros(np.shape(x)), math.hypot(self.radii[0] * (1 + self.taper), self.radii[1])
        near = (np.abs(x - self.centre[0]) < reach) & (np.abs(y - self.centre[1]) < reach)
        u, v = self.local(x[near], y[near])
        if self.power == 2:
            half[near] = self.radii[2] * np.sqrt(np.maximum(1 - u * u - v * v, 0))
        else:
            rest = np.maximum(1 - np.abs(u) ** self.power - np.abs(v) ** self.power, 0)
            half[near] = self.radii[2] * rest ** (1 / self.power)
        return half


@dataclass(frozen=True)
class Tube:
    """A curve with a round cross-section."""

    points: np.ndarray  # (n, 3)
    radii: np.ndarray  # (n,)
    hollow: float = 0.0  # fraction of the radius that is marrow; marrow counts as soft tissue


@dataclass(frozen=True)
class Anatomy:
    """The organs of a patient in the neutral pose."""

    body: Sequence[Solid]
    lungs: Sequence[Solid]  # right, left; hila and domes have the same order
    mediastinum: Sequence[Solid]
    hila: Sequence[Solid]
    domes: Sequence[Solid]
    gas: Sequence[Solid]
    bones: Sequence[Tube]
    vessels: Sequence[Tube]
    airways: Sequence[Tube]
    spine: Solid


def _curve(*knots: Sequence[float], radii: Sequence[float], hollow: float = 0.0) -> Tube:
    """Return a tube along the polynomial through three or four points."""
    t, degree = np.linspace(0, 1, 12), len(knots) - 1
    fits = np.polyfit(np.linspace(0, 1, len(knots)), np.array(knots), degree).T
    points = np.stack([np.polyval(fit, t) for fit in fits], axis=1)
    return Tube(points, np.interp(t, np.linspace(0, 1, len(radii)), radii), hollow)


def _vessel_tree(rng: np.random.Generator, lung: Solid, side: int, calibre: float) -> Iterator[Tube]:
    """Yield the vessels of a lung from the hilum outwards: they bend, fork and become thinner."""
    hilum = (side * 2.2, -0.9 + 0.4 * side, 0.0)
    angles = np.linspace(-1.4, 1.5, 11)
    growing = [(hilum, a + rng.normal(0, 0.12), calibre * rng.uniform(0.25, 0.6), 0) for a in angles]
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


@functools.lru_cache(maxsize=8)  # the images of one patient are rendered one after another
def make_anatomy(patient_seed: int) -> Anatomy:
    """Draw a patient: the chest of a child of three years; most sizes vary by about ten per cent."""
    # Heart, thymus, hila and vessels vary most: a healthy chest can look like pneumonia.
    rng = np.random.default_rng([patient_seed, 0])

    def about(value: float, share: float = 0.08) -> float:
        return value * rng.uniform(1 - share, 1 + share)

    width, depth = about(7.9, 0.06), about(6.4)  # of the rib cage, halved
    trunk = Solid((0, 6, 0), (width + about(1.7, 0.4), about(16.5, 0.05), depth), power=3)
    neck = Solid((0, -13, 0), (about(2.6), 8, about(3.2)))
    raised = rng.uniform(-0.35, 0.9)
    body, lungs, hila = [trunk, neck], [], []
    for side in SIDES:
        body.append(Solid((side * about(8.4), -7.6, 0), (4.4, about(2.8), 3.2), side * 0.25))
        body.append(Solid((side * about(11.8, 0.05), -4.5, 0), (1.9, 6.5, 1.9), side * -raised))
        radii = (width * 0.47, about(8.3, 0.05), depth * 0.8)
        centre = (side * width * 0.53, about(-0.6, 0.3), -0.2)
        lungs.append(Solid(centre, radii, side * -0.07, power=2.5, taper=0.22))
        radii = (about(0.9, 0.5), about(1.5, 0.3), about(1.0, 0.5))
        hila.append(Solid((side * about(2.6), -0.4, 0), radii))
    heart, thymus = about(1.0, 0.17), rng.uniform(0.3, 1.0) ** 2
    mediastinum = (
        Solid((about(1.1, 0.4), 2.5, 0.8), (4.5 * heart, 3.7 * heart, depth * 0.68), tilt=0.5),  # ventricles
        Solid((-0.9, 1.4, 0.4), (2.5 * heart, 3.6, depth * 0.6), tilt=-0.1),  # right atrium
        Solid((0.1, -1, 0), (about(1.9, 0.15), 10, depth * 0.8), power=2.5, taper=0.2),
        Solid((about(1.0, 0.2), -2.9, -0.4), (about(1.2, 0.2), about(2.2), 2.6), -0.15),  # aorta
        Solid((rng.uniform(-1.2, 1.2), -3.6, 2.6), (1.4 + 2.4 * thymus, 2.9, 0.5 + 1.2 * thymus), power=2.5),
    )
    top = rng.uniform(4.2, 5.2)
    radii, heights = (width * 0.62, 6, depth), (top + 6, top + rng.uniform(0.2, 0.9) + 6)
    domes = [Solid((side * width * 0.55, y, 0), radii, power=2.2) for side, y in zip(SIDES, heights)]
    stomach = (about(1.7, 0.4), about(0.9, 0.4), 1.6)
    gas = [Solid((about(4.2), top + rng.uniform(2, 3), 0), stomach)]
    for _ in range(4):
        centre = (rng.uniform(-6, 6), rng.uniform(9.5, 12), 0)
        gas.append(Solid(centre, rng.uniform(0.5, 1.2, 3), rng.uniform(0, 3)))
    bend, carina = rng.normal(0, 0.15), (0.2, -3.0, -1)
    airways = (
        _curve((0, -13, 0), (0.15 + bend, -8, -0.5), carina, radii=(0.48, 0.42)),
        _curve(carina, (-1.0, -2.0, -1), (-2.0, -0.9, -1), radii=(0.36, 0.28)),
        _curve(carina, (1.4, -2.1, -1), (2.6, -1.4, -1), radii=(0.33, 0.25)),
    )
    vertebra = (about(1.0), about(0.62, 0.05), 0.9)
    calibre = about(1.0, 0.35)
    bones = [bone for side in SIDES for bone in _bones(rng, side, width, depth)]
    vessels = [v for side, lung in zip(SIDES, lungs) for v in _vessel_tree(rng, lung, side, calibre)]
    spine = Solid((bend, rng.uniform(-0.7, 0.7), -3.6), vertebra, power=3.5)
    return Anatomy(body, lungs, mediastinum, hila, domes, gas, bones, vessels, airways, spine)


def _bones(rng: np.random.Generator, side: int, width: float, depth: float) -> Iterator[Tube]:
    """Yield the ribs, clavicle, shoulder blade and upper arm of one side."""
    spacing, drop = rng.uniform(1.38, 1.52), rng.uniform(2.6, 4.2)
    first, thickness = rng.uniform(-8.8, -8.2), rng.uniform(0.30, 0.38)
    for rib in range(11):
        # Around the chest from the spine to the cartilage.
        angle = np.linspace(0.12, 2.35 - 0.06 * rib, 26)
        reach = (width + 0.15) * min(1.0, 0.52 + 0.16 * rib - 0.011 * rib**2)
        x, z = side * reach * np.sin(angle), -0.82 * depth * np.cos(angle)
        y = first + spacing * rib - 0.5 * np.sin(angle) ** 2
        y += drop * (0.75 + 0.05 * rib) * (1 - np.cos(angle)) / 2
        radii = thickness * np.interp(angle, (0, 1.7, 2.4), (1, 0.9, 0.5))
        yield Tube(np.stack([x, y, z], axis=1), radii, hollow=0.68)
    up, out = rng.uniform(-0.6, 1.0), rng.uniform(-0.5, 0.8)
    for radii, hollow, *knots in (  # clavicle, shoulder blade and its spine, upper arm
        ((0.42, 0.3, 0.34), 0.6, (1.0, -6.6, 4), (3.4, -7.3, 4), (5.6, -7.5 - up, 3), (7.8, -8.0 - up, 2)),
        ((0.4, 0.22), 0.5, (8.6 + out, -7.2, -3), (7.6 + out, -4.0, -4), (6.6 + out, -0.5, -4)),
        ((0.15, 0.35), 0.5, (5.0 + out, -7.4, -4), (7.0 + out, -8.2, -4), (9.2 + out, -8.3, -2)),
        ((0.95, 0.6, 0.55), 0.6, (9.4, -7.6, 0), (10.4, -5.2, 0), (11.6, 0.5, 0)),
    ):
        yield _curve(*((side * x, y, z) for x, y, z in knots), radii=radii, hollow=hollow)
