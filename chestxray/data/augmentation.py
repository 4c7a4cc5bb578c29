"""Random views of an image that a patient could have shown.

All geometric changes are composed into one affine map and applied with one
interpolation. The parameters of a view depend only on the image's path, the
number of the pass over the data and the seed, so that any view can be drawn
again, in any order, also after an interruption.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf

_TRANSFORM, _GAIN, _CONTRAST = slice(0, 8), slice(8, 9), slice(9, 10)


@dataclass(frozen=True)
class Augmentation:
    """Largest change of each kind; every view draws uniformly from −value to +value.

    Attributes:
        rotation: Degrees.
        shift: Fraction of the side, for each axis.
        shear: Degrees.
        zoom: Fraction of the scale.
        brightness: Fraction of the grey value (a factor of 1 ± brightness).
        contrast: Fraction of the distance from the image's mean.
        flip: Mirror every second view. Off by default: the heart has a side.
    """

    rotation: float = 7.0
    shift: float = 0.05
    shear: float = 5.0
    zoom: float = 0.10
    brightness: float = 0.15
    contrast: float = 0.15
    flip: bool = False

    def __post_init__(self) -> None:
        for name in ("rotation", "shift", "shear", "zoom", "brightness", "contrast"):
            value, most = getattr(self, name), 180 if name == "rotation" else 80 if name == "shear" else 0.9
            if not 0 <= value <= most:
                raise ValueError(f"{name} must lie in 0–{most}. Received: {name}={value!r}")

    def draw(self, paths: Sequence[str], size: int, view: int, seed: int) -> np.ndarray:
        """Draw the parameters of one view of every image.

        Args:
            paths: Names of the images, N of them.
            size: Side of the images in pixels.
            view: Number of the view, usually the epoch.
            seed: Seed of the run.

        Returns:
            ``float32`` (N, 10): the eight coefficients of the projective map
            from output to input pixels, brightness factor, contrast factor.
        """
        uniform = np.stack([_uniform(path, view, seed) for path in paths])
        limits = np.array(
            [
                np.deg2rad(self.rotation),
                self.shift * size,
                self.shift * size,
                np.deg2rad(self.shear),
                self.zoom,
                self.brightness,
                self.contrast,
            ]
        )
        angle, shift_x, shift_y, shear, zoom, brightness, contrast = (uniform[:, :7] * limits).T
        mirror = np.where(self.flip & (uniform[:, 7] > 0), -1.0, 1.0)
        transforms = affine_coefficients(size, angle, shift_x, shift_y, shear, 1 + zoom, mirror)
        return np.column_stack([transforms, 1 + brightness, 1 + contrast]).astype(np.float32)


def _uniform(path: str, view: int, seed: int) -> np.ndarray:
    """Eight numbers in [−1, 1) that depend on nothing but the arguments."""
    key = int.from_bytes(hashlib.blake2b(path.encode(), digest_size=8).digest(), "little")
    generator = np.random.Generator(np.random.Philox(key=key, counter=[0, 0, view, seed]))
    return generator.uniform(-1, 1, size=8)


def affine_coefficients(
    size: int,
    angle: np.ndarray,
    shift_x: np.ndarray,
    shift_y: np.ndarray,
    shear: np.ndarray,
    zoom: np.ndarray,
    mirror: np.ndarray,
) -> np.ndarray:
    """Compose rotation, shear, zoom and mirroring about the centre, then a shift.

    Args:
        size: Side of the square image in pixels.
        angle: Rotation in radians, counter-clockwise as seen, shape (N,).
        shift_x: Shift to the right in pixels, (N,).
        shift_y: Shift down in pixels, (N,).
        shear: Shear angle in radians, (N,).
        zoom: Factor above 1 enlarges, (N,).
        mirror: −1 mirrors left and right, 1 does not, (N,).

    Returns:
        (N, 8): ``a0 a1 a2 b0 b1 b2 0 0`` with input x = a0·x + a1·y + a2 and
        input y = b0·x + b1·y + b2 for the output pixel (x, y).
    """
    cos, sin, tan = np.cos(angle), np.sin(angle), np.tan(shear)
    a0, a1 = mirror * cos / zoom, mirror * (tan * cos - sin) / zoom
    b0, b1 = sin / zoom, (tan * sin + cos) / zoom
    centre = (size - 1) / 2
    x, y = centre + shift_x, centre + shift_y
    a2, b2 = centre - a0 * x - a1 * y, centre - b0 * x - b1 * y
    zero = np.zeros_like(a0)
    return np.stack([a0, a1, a2, b0, b1, b2, zero, zero], axis=1)


def view_layer() -> Any:
    """Make the Keras layer that turns images and drawn parameters into views.

    Returns:
        A layer to be called with ``images`` (N, H, W, 1), any numeric dtype,
        0–255, and ``parameters`` (N, 10) from :meth:`Augmentation.draw`; gives
        ``float32`` (N, H, W, 1) in 0–255. Pixels from outside the image
        repeat its edge.
    """
    import keras

    class View(keras.layers.Layer):
        def call(self, images: tf.Tensor, parameters: tf.Tensor) -> tf.Tensor:
            images = keras.ops.cast(images, "float32")
            images = keras.ops.image.affine_transform(
                images, parameters[:, _TRANSFORM], interpolation="bilinear", fill_mode="nearest"
            )
            mean = keras.ops.mean(images, axis=(1, 2, 3), keepdims=True)
            gain = parameters[:, _GAIN, None, None]
            contrast = parameters[:, _CONTRAST, None, None]
            return keras.ops.clip(gain * (mean + contrast * (images - mean)), 0.0, 255.0)

    return View(dtype="float32", name="view")
