"""Augmentation: random views of an image by small geometric and grey-value changes.

Geometric changes are one affine map with one interpolation. The parameters of a view depend only on the
image's path, the number of the view and the seed.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from chestxray.schema import check

if TYPE_CHECKING:
    import keras
    import tensorflow as tf


@dataclass(frozen=True)
class Augmentation:
    """Largest change of each kind. Each view draws its changes uniformly from −value to +value.

    Attributes:
        rotation, shear: Degrees.
        shift, zoom: Fractions of the side, for each axis, and of the scale.
        brightness, contrast: Fractions of the grey value, and of its distance from the image's mean.
        flip: Mirror a view with probability 1/2. Off by default: the heart lies on the left.
        stretch: Natural logarithm of the factors by which height and width change independently.
        edges: Fraction of the side by which each edge moves in or out, as with another collimation.
    """

    rotation: float = 7.0
    shift: float = 0.05
    shear: float = 5.0
    zoom: float = 0.10
    brightness: float = 0.15
    contrast: float = 0.15
    flip: bool = False
    stretch: float = 0.0
    edges: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            limit = {"rotation": 180, "shear": 80, "flip": 1, "edges": 0.4}.get(name, 0.9)
            check(0 <= value <= limit, f"{name} must lie in 0–{limit}", **{name: value})

    def draw(self, paths: Sequence[str], size: int, view: int, seed: int) -> np.ndarray:
        """Draw the parameters of one view (usually the epoch) of N images of ``size`` × ``size`` pixels.

        Returns ``float32`` (N, 10): :func:`affine_coefficients`, brightness and contrast factors.
        """
        uniform = np.stack([_uniform(path, view, seed) for path in paths])
        angle, _, _, shear, zoom, brightness, contrast, flip = uniform.T[:8]
        shift, zoom = uniform[:, 1:3] * (self.shift * size), 1 + zoom * self.zoom
        angle, shear = angle * np.deg2rad(self.rotation), shear * np.deg2rad(self.shear)
        mirror = np.where(self.flip & (flip > 0), -1.0, 1.0)
        transforms = affine_coefficients(size, angle, shift, shear, zoom, mirror)
        edges = self.edges * size * uniform[:, 8:12]  # shifts of left, top, right, bottom
        scale = (1 + (edges[:, 2:] - edges[:, :2]) / size) * np.exp(self.stretch * uniform[:, 12:14])
        centre = (edges[:, :2] + edges[:, 2:] + size - 1) / 2  # of pixel centres, counted from 0
        for axis, columns in enumerate((slice(0, 3), slice(3, 6))):  # after the map of `affine_coefficients`
            transforms[:, columns] *= scale[:, axis, np.newaxis]
            transforms[:, 3 * axis + 2] += centre[:, axis] - (size - 1) / 2 * scale[:, axis]
        factors = 1 + brightness * self.brightness, 1 + contrast * self.contrast
        return np.column_stack([transforms, *factors]).astype(np.float32)


def _uniform(path: str, view: int, seed: int) -> np.ndarray:
    """Draw 14 numbers in [−1, 1) that depend only on the arguments."""
    key = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, view, seed]))
    return generator.uniform(-1, 1, size=14)


def affine_coefficients(
    size: int, angle: np.ndarray, shift: np.ndarray, shear: np.ndarray, zoom: np.ndarray, mirror: np.ndarray
) -> np.ndarray:
    """Compose mirroring, zoom, shear and rotation about the centre, then a shift, of N square images.

    ``size`` and shift (N, 2) (to the right, down) are in pixels, angle (counter-clockwise as seen) and shear
    in radians, (N,). A zoom above 1 enlarges. The mirror is −1 or 1. Returns (N, 8):
    ``a0 a1 a2 b0 b1 b2 0 0`` with input x = a0·x + a1·y + a2, input y = b0·x + b1·y + b2 for output (x, y).
    """
    cos, sin, tan = np.cos(angle), np.sin(angle), np.tan(shear)
    a0, a1 = mirror * cos / zoom, mirror * (tan * cos - sin) / zoom
    b0, b1 = sin / zoom, (tan * sin + cos) / zoom
    centre = (size - 1) / 2
    x, y = centre + shift.T
    a2, b2 = centre - a0 * x - a1 * y, centre - b0 * x - b1 * y
    zero = np.zeros_like(a0)
    return np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1)


def view_layer() -> "keras.Layer":
    """Make the Keras layer that turns images and parameters from :meth:`Augmentation.draw` into views.

    Images and views are (N, H, W, 1), 0–255. Views are ``float32``; outside the image the edge is repeated.
    """
    import keras

    class View(keras.layers.Layer):
        def call(self, images: "tf.Tensor", parameters: "tf.Tensor") -> "tf.Tensor":
            options = {"interpolation": "bilinear", "fill_mode": "nearest"}
            images = keras.ops.cast(images, "float32")
            images = keras.ops.image.affine_transform(images, parameters[:, :8], **options)
            mean = keras.ops.mean(images, axis=(1, 2, 3), keepdims=True)
            gain, contrast = parameters[:, 8:9, None, None], parameters[:, 9:10, None, None]
            return keras.ops.clip(gain * (mean + contrast * (images - mean)), 0.0, 255.0)

    return View(dtype="float32", name="view")
