"""One image file in, grey ``uint8`` pixels out.

The only way from a file to pixels in this package: whatever decodes it,
training, prediction and audit bring it to size by :func:`fit`, so they cannot
differ. DICOM files are for prediction; to train on some, convert them before.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from chestxray.data.formats import MIN_SIDE, check_image, is_dicom, look_up

PIXELS_VERSION = 1
"""Part of the key of stored pixels: raise it whenever :func:`preprocess` gives other pixels."""

RESIZE_RULES = ("stretch", "letterbox")


@dataclass(frozen=True)
class ImageSettings:
    """How a file becomes pixels; travels with the model in its card.

    Attributes:
        size: Side of the square output in pixels.
        resize: ``"stretch"`` ignores the aspect ratio; ``"letterbox"`` keeps
            it and pads with black.
        clahe: Apply contrast-limited adaptive histogram equalisation
            (clip limit 2.0, 8 × 8 tiles) after resizing.
    """

    size: int = 224
    resize: str = "stretch"
    clahe: bool = False

    def __post_init__(self) -> None:
        if not (isinstance(self.size, int) and self.size >= MIN_SIDE):
            raise ValueError(
                f"size must be an integer of at least {MIN_SIDE} pixels. Received: size={self.size!r}"
            )
        if self.resize not in RESIZE_RULES:
            raise ValueError(f"resize must be one of {RESIZE_RULES}. Received: resize={self.resize!r}")


def decode_image(data: bytes) -> np.ndarray:
    """Decode a JPEG, PNG or DICOM file to grey.

    EXIF orientation is applied, colour is converted to luma and an alpha
    channel is dropped. 16-bit values are scaled by the bits that are really
    used, so that a 12-bit film stored in 16 bits does not come out black. For
    DICOM see :func:`chestxray.data.dicom.decode_dicom`.

    Args:
        data: The whole file.

    Returns:
        ``uint8`` array of shape (H, W), values 0–255.

    Raises:
        ValueError: One line with the reason; see :func:`check_image`.
    """
    if is_dicom(data):
        from chestxray.data.dicom import decode_dicom  # only DICOM files need pydicom

        return decode_dicom(data).pixels
    check_image(data)
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({error.err})") from None
    if image is None:
        raise ValueError("cannot be decoded (damaged image data)")
    if image.dtype == np.uint8:
        return image
    levels = 2 ** max(8, int(image.max()).bit_length())
    return look_up(np.rint(np.arange(levels) * (255.0 / (levels - 1))).astype(np.uint8), image)


def read_image(path: str | Path) -> np.ndarray:
    """Read an image file as grey pixels.

    Args:
        path: A JPEG or PNG file: 8 or 16 bits; grey, RGB, RGBA, palette or
            CMYK. Or a DICOM radiograph.

    Returns:
        ``uint8`` array of shape (H, W), values 0–255.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be used; the message names it and says why.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file. Received: path={str(path)!r}")
    try:
        return decode_image(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{error}. Received: path={str(path)!r}") from None


def resize(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Bring an image to the square of the settings, antialiased.

    An axis that shrinks is averaged over areas, one that grows is
    interpolated cubically.

    Args:
        image: ``uint8`` array of shape (H, W).
        settings: Gives ``size`` and the rule ``resize``.

    Returns:
        ``uint8`` array of shape (size, size).
    """
    height, width = image.shape
    size = settings.size
    if settings.resize == "letterbox":
        scale = size / max(height, width)
        new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    else:
        new_height = new_width = size
    image = cv2.resize(image, (min(width, new_width), min(height, new_height)), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (new_width, new_height), interpolation=cv2.INTER_CUBIC)
    top, left = (size - new_height) // 2, (size - new_width) // 2
    return cv2.copyMakeBorder(
        image, top, size - new_height - top, left, size - new_width - left, cv2.BORDER_CONSTANT, value=0
    )


def apply_clahe(image: np.ndarray) -> np.ndarray:
    """Equalise the histogram locally: CLAHE with clip limit 2.0 on 8 × 8 tiles.

    Applied after resizing, so that the result does not depend on the
    resolution of the source. (Many published pipelines apply it to the
    original, where a tile covers another area of the body in every image.)

    Args:
        image: ``uint8`` array of shape (H, W).

    Returns:
        ``uint8`` array of shape (H, W).
    """
    return cv2.createCLAHE(clipLimit=2.0, tileGridSize=(8, 8)).apply(image)


def preprocess(path: str | Path, settings: ImageSettings) -> np.ndarray:
    """Turn one file into the pixels a model sees: read, resize, optionally CLAHE.

    Args:
        path: A JPEG, PNG or DICOM file.
        settings: See :class:`ImageSettings`.

    Returns:
        ``uint8`` array of shape (size, size), values 0–255.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file cannot be used; the message names it and says why.
    """
    return fit(read_image(path), settings)


def fit(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Bring grey pixels, ``uint8`` (H, W), to what a model sees: resize, optionally CLAHE."""
    image = resize(image, settings)
    return apply_clahe(image) if settings.clahe else image


def as_batch(images: np.ndarray) -> np.ndarray:
    """Check that an array holds grey pixels in 0–255 and give it its batch axes.

    Args:
        images: Shape (H, W), (N, H, W) or (N, H, W, 1); ``uint8`` or float.

    Returns:
        The same values with shape (N, H, W, 1).

    Raises:
        ValueError: Wrong shape, values outside 0–255, or a float image whose
            maximum is at most 1, which was most likely divided by 255.
    """
    images = np.asarray(images)
    if images.ndim == 2:
        images = images[np.newaxis]
    if images.ndim == 3:
        images = images[..., np.newaxis]
    if images.ndim != 4 or images.shape[-1] != 1:
        raise ValueError(f"images must be grey, of shape (N, H, W, 1). Received: shape={images.shape}")
    if images.dtype != np.uint8 and images.size:
        low, high = float(images.min()), float(images.max())
        if not (0 <= low and high <= 255):
            raise ValueError(f"pixels must lie in 0–255. Received: range=({low}, {high})")
        if 0 < high <= 1:
            raise ValueError(
                "pixels must lie in 0–255, and these look divided by 255 (the model does "
                f"its own scaling). Received: range=({low}, {high})"
            )
    return images
