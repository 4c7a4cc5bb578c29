"""Preprocessing: from an image file to grey ``uint8`` pixels.

Training, prediction and audit use the same function, :func:`fit`. DICOM files are only for prediction:
convert them before training.
"""

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from chestxray.data import formats
from chestxray.data.lungs import crop_window, lung_window

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
        clahe: Apply contrast-limited adaptive histogram equalisation after resizing.
        clahe_clip_limit: Limit of the bins of a tile's histogram, as a multiple of the mean bin.
        clahe_tiles: Number of tiles along each side.
    """

    size: int = 224
    resize: str = "stretch"
    clahe: bool = False
    clahe_clip_limit: float = 2.0
    clahe_tiles: int = 8

    def __post_init__(self) -> None:
        limit, tiles = self.clahe_clip_limit, self.clahe_tiles
        if not (isinstance(self.size, int) and self.size >= formats.MIN_SIDE):
            raise ValueError(f"size must be an integer >= {formats.MIN_SIDE}. Received: size={self.size!r}")
        if self.resize not in RESIZE_RULES:
            raise ValueError(f"resize must be one of {RESIZE_RULES}. Received: resize={self.resize!r}")
        if not (isinstance(limit, (int, float)) and 0 < limit < float("inf")):
            raise ValueError(f"clahe_clip_limit must be above 0. Received: clahe_clip_limit={limit!r}")
        if not (isinstance(tiles, int) and 1 <= tiles <= self.size):
            raise ValueError(f"clahe_tiles must be an integer in 1–size. Received: clahe_tiles={tiles!r}")


def preprocess(path: str | Path, settings: ImageSettings) -> np.ndarray:
    """Read, resize and optionally equalise one file: the pixels that a model gets, ``uint8`` (size, size).

    :func:`decode_image` says which files can be read. Raises FileNotFoundError if there is no such file, and
    ValueError with path and reason if it cannot be used.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such image file. Received: path={str(path)!r}")
    try:
        return fit(decode_image(path.read_bytes(), settings.size), settings)
    except ValueError as error:
        raise ValueError(f"{error}. Received: path={str(path)!r}") from None


def decode_image(data: bytes, size: int | None = None) -> np.ndarray:
    """Decode the content of a JPEG, PNG, BMP, TIFF, WebP or DICOM file to grey pixels, ``uint8`` (H, W).

    EXIF orientation is applied, colour is converted to luma and an alpha channel is dropped. Values with more
    than 8 bits are scaled from the range of their 0.5th to 99.5th percentile, as in DICOM files without a
    window. Raises ValueError with one line; see :func:`chestxray.data.formats.check_image` and, for DICOM,
    :func:`chestxray.data.dicom.decode_dicom`.

    ``size`` is the side to which the image will be resized. A JPEG file is then decoded at 1/2 or 1/4 of its
    size if its sides remain at least 2 · ``size`` and 256 pixels. This takes half the time.
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
    if settings.clahe:
        image = apply_clahe(image, settings.clahe_clip_limit, settings.clahe_tiles)
    return image


def model_window(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Window of an image, ``uint8`` (H, W), that :func:`fit` shows: left, top, right, bottom in fractions."""
    if settings.resize == "lung_box":
        return lung_window(image)
    margins = (max(image.shape) / np.array(image.shape[::-1]) - 1) / 2 * (settings.resize == "letterbox")
    return np.concatenate([-margins, 1 + margins])


def resize(image: np.ndarray, settings: ImageSettings) -> np.ndarray:
    """Resize an image, ``uint8`` (H, W), to the square of the settings, with antialiasing.

    An axis that shrinks is averaged over areas. An axis that grows is interpolated cubically.
    """
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
    """Equalise the histogram of an image, ``uint8`` (H, W), locally (CLAHE); see :class:`ImageSettings`.

    It is applied after resizing, so that the result does not depend on the resolution of the source. Many
    published pipelines apply it before; then a tile covers another area of the body in every image.
    """
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

    The array is ``uint8`` or float, of shape (H, W), (N, H, W) or (N, H, W, 1); its values stay the same.
    Raises ValueError for another shape, values outside 0–255, or a float image whose maximum is at most 1
    (it was probably divided by 255).
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
            message = "pixels must lie in 0–255, not divided by 255 (the model scales them itself)"
            raise ValueError(f"{message}. Received: range=({low}, {high})")
    return images
