"""Preprocessing: from an image file to grey ``uint8`` pixels; :func:`fit` serves training and prediction."""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from chestxray.data import formats
from chestxray.data.lungs import crop_window, lung_window
from chestxray.schema import check

PIXELS_VERSION = 3  # part of the key of stored pixels; increase it if `preprocess` gives other pixels
MAX_DISTANCE = 32  # largest number of different bits, of 256, between the hashes of two copies of an image
RESIZE_RULES = ("stretch", "letterbox", "lung_box")
_REDUCED = {2: cv2.IMREAD_REDUCED_GRAYSCALE_2, 4: cv2.IMREAD_REDUCED_GRAYSCALE_4}  # small to large


@dataclass(frozen=True)
class ImageSettings:
    """Settings of the preprocessing; stored in the model's card.

    Attributes:
        size: Side of the square output in pixels.
        resize: ``"stretch"`` ignores the aspect ratio; ``"letterbox"`` keeps it and repeats the edge;
            ``"lung_box"`` stretches the lung box with a small margin.
        clahe: Apply contrast-limited adaptive histogram equalisation after resizing, with ``clahe_tiles``
            along each side and ``clahe_clip_limit``, a multiple of the mean bin of a tile's histogram.
    """

    size: int = 224
    resize: str = "stretch"
    clahe: bool = False
    clahe_clip_limit: float = 2.0
    clahe_tiles: int = 8

    def __post_init__(self) -> None:
        limit, tiles = self.clahe_clip_limit, self.clahe_tiles
        valid = isinstance(self.size, int) and self.size >= formats.MIN_SIDE
        check(valid, f"size must be an integer >= {formats.MIN_SIDE}", size=self.size)
        check(self.resize in RESIZE_RULES, f"resize must be one of {RESIZE_RULES}", resize=self.resize)
        valid = isinstance(limit, (int, float)) and 0 < limit < float("inf")
        check(valid, "clahe_clip_limit must be above 0", clahe_clip_limit=limit)
        valid = isinstance(tiles, int) and 1 <= tiles <= self.size
        check(valid, "clahe_tiles must be an integer in 1–size", clahe_tiles=tiles)


def preprocess(path: str | Path, settings: ImageSettings) -> np.ndarray:
    """Read, resize and optionally equalise one file: the pixels that a model gets, ``uint8`` (size, size).

    Raises FileNotFoundError if there is no such file, and ValueError with the reason if it cannot be used.
    """
    path = Path(path)
    check(path.is_file(), "no such image file", FileNotFoundError, path=str(path))
    try:
        return fit(decode_image(path.read_bytes(), settings.size), settings)
    except ValueError as error:
        raise ValueError(f"{error}. Received: path={str(path)!r}") from None


def decode_image(data: bytes, size: int | None = None) -> np.ndarray:
    """Decode the content of a JPEG, PNG, BMP, TIFF, WebP or DICOM file to grey pixels, ``uint8`` (H, W).

    EXIF orientation is applied, colour is converted to luma and an alpha channel is dropped. Values with more
    than 8 bits are scaled from the range of their 0.5th to 99.5th percentile. ``size`` is the side to which
    the image will be resized: a JPEG file is then decoded at 1/2 or 1/4 of its size, in half the time, if its
    sides remain at least 2 · ``size`` and 256 pixels. A file that is not usable raises ValueError.
    """
    if formats.is_dicom(data):
        from chestxray.data.dicom import decode_dicom  # only DICOM files need pydicom

        return decode_dicom(data).pixels
    if not data.startswith((b"\xff\xd8", b"\x89PNG")):
        formats.read_header(data)  # raises ValueError if Pillow does not read the format
        image = formats.read_with_pillow(data)[3]
        return image if image.dtype == np.uint8 else formats.to_grey(image, *formats.robust_range(image))
    width, height, _ = formats.check_image(data)
    flags = cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    min_side = max(2 * size, 256) if size and data.startswith(b"\xff\xd8") else np.inf
    for scale, reduced in _REDUCED.items():
        flags = reduced if min(width, height) // scale >= min_side else flags
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"cannot be decoded ({error.err})") from None
    if image is None:
        raise ValueError("cannot be decoded (damaged image data)")
    return image if image.dtype == np.uint8 else formats.to_grey(image, *formats.robust_range(image))


def fit(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Crop, resize and equalise grey pixels, ``uint8`` (H, W), according to the settings."""
    if settings.resize == "lung_box":
        image = crop_window(image, lung_window(image))
    image = resize(image, settings)
    if settings.clahe:  # after resizing, so that the result does not depend on the resolution of the source
        image = apply_clahe(image, settings.clahe_clip_limit, settings.clahe_tiles)
    return image


def model_window(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Window of an image, ``uint8`` (H, W), that :func:`fit` shows: left, top, right, bottom in fractions."""
    if settings.resize == "lung_box":
        return lung_window(image)
    margins = (max(image.shape) / np.array(image.shape[::-1]) - 1) / 2 * (settings.resize == "letterbox")
    return np.concatenate([-margins, 1 + margins])


def resize(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Resize an image, ``uint8`` (H, W), to the square of the settings: area means, or cubic if it grows."""
    (height, width), size = image.shape, settings.size
    columns, rows = size, size
    if settings.resize == "letterbox":
        columns, rows = (max(1, round(side * size / max(height, width))) for side in (width, height))
    left, top = (size - columns) // 2, (size - rows) // 2
    image = cv2.resize(image, (min(width, columns), min(height, rows)), interpolation=cv2.INTER_AREA)
    image = cv2.resize(image, (columns, rows), interpolation=cv2.INTER_CUBIC)
    padding = top, size - rows - top, left, size - columns - left
    return cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE)


def apply_clahe(image: np.ndarray, clip_limit: float = 2.0, tiles: int = 8) -> np.ndarray:
    """Equalise the histogram of an image, ``uint8`` (H, W), locally (CLAHE); see :class:`ImageSettings`."""
    return cv2.createCLAHE(clip_limit, (tiles, tiles)).apply(image)


def perceptual_hashes(images: np.ndarray) -> np.ndarray:
    """Compute 256-bit hashes, ``uint8`` (N, 32), that re-encoding, resizing and exposure hardly change.

    Each bit says whether one of the 16 × 16 lowest frequencies of the cosine transform at 64 × 64 pixels is
    above their median (Zauner 2010, with 256 bits instead of 64: thousands of chest X-rays share 64 bits).
    ``images`` are grey pixels, (N, H, W) or (N, H, W, 1).
    """
    small = (cv2.resize(np.squeeze(image), (64, 64), interpolation=cv2.INTER_AREA) for image in images)
    lowest = np.array([cv2.dct(image.astype(np.float32))[:16, :16] for image in small]).reshape(-1, 256)
    return np.packbits(lowest > np.median(lowest, axis=1, keepdims=True), axis=1)


def as_batch(images: np.ndarray) -> np.ndarray:
    """Check that an array holds grey pixels in 0–255 and give it the shape (N, H, W, 1).

    The shape is (H, W), (N, H, W) or (N, H, W, 1). Raises ValueError for another shape, values outside 0–255,
    or a float image whose maximum is at most 1 (it was probably divided by 255).
    """
    images = np.asarray(images)
    if images.ndim == 2:
        images = images[np.newaxis]
    if images.ndim == 3:
        images = images[..., np.newaxis]
    grey = images.ndim == 4 and images.shape[-1] == 1
    check(grey, "images must be grey, of shape (N, H, W, 1)", shape=images.shape)
    if images.dtype != np.uint8 and images.size:
        low, high = float(images.min()), float(images.max())
        check(0 <= low and high <= 255, "pixels must lie in 0–255", range=(low, high))
        message = "pixels must lie in 0–255, not divided by 255 (the model scales them itself)"
        check(not 0 < high <= 1, message, range=(low, high))
    return images
