"""Formats of image files: size and mode from the header, and checks before an image is decoded."""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator

import numpy as np
from PIL import Image, ImageOps

MAX_PIXELS = 64_000_000  # of an image that is decoded (8,000 × 8,000)
MIN_SIDE = 16  # of an image, in pixels
PERCENTILES = (0.5, 99.5)  # black and white of an image without a known range: outliers have no influence
_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # F7: JPEG-LS, in DICOM
_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_UNSUPPORTED = {b"GIF8": "GIF", b"%PDF": "PDF", b"\x1f\x8b": "gzip"}
_UNSUPPORTED |= dict.fromkeys((b"\0\0\0\x0cjP", b"\xff\x4f\xff\x51"), "JPEG 2000")


def is_dicom(data: bytes) -> bool:
    """Whether a file begins like DICOM (PS3.10), or with a data element of DICOM's first two groups."""
    first = data[:4]
    little, big = (struct.unpack(order, first) if len(first) == 4 else (0, 0) for order in ("<HH", ">HH"))
    return data[128:132] == b"DICM" or any(group in (2, 8) and tag < 0x1000 for group, tag in (little, big))


def check_image(data: bytes) -> tuple[int, int, str]:
    """Read ``(width, height, mode)`` and check a file as far as possible without decoding it (ValueError)."""
    if _pillow_format(data):
        return read_with_pillow(data)[:3]
    width, height, mode = read_header(data)
    check_size(width, height)
    if not _is_whole(data):
        raise ValueError("truncated (the end of the image is missing)")
    return width, height, mode


def read_header(data: bytes) -> tuple[int, int, str]:
    """Read ``(width, height, mode)`` from the header of an image file, before EXIF orientation.

    Mode is ``L``, ``LA``, ``P``, ``RGB``, ``RGBA`` or ``CMYK``, with ``;16`` added for 16-bit files; for BMP,
    TIFF and WebP it is Pillow's mode. An unusable header raises ValueError.
    """
    if not data:
        raise ValueError("empty file")
    try:
        if data.startswith(_PNG_SIGNATURE):
            width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
            return width, height, _PNG_MODES[colour] + (";16" if depth == 16 else "")
        if data.startswith(b"\xff\xd8"):
            return _read_jpeg_header(data)[0]
    except (struct.error, IndexError, KeyError):
        raise ValueError("truncated or damaged header") from None
    if _pillow_format(data):
        return read_with_pillow(data, decode=False)[:3]
    if is_dicom(data):
        command = 'cv2.imwrite("image.png", decode_image(data)), from chestxray.data.images'
        raise ValueError(f"a DICOM file; convert it to PNG first: {command}")
    other = next((name for start, name in _UNSUPPORTED.items() if data.startswith(start)), None)
    if other or data[4:8] == b"ftyp":
        raise ValueError(f"a format that is not supported ({other or 'HEIC or AVIF'}); convert it to PNG")
    raise ValueError("not an image (JPEG, PNG, BMP, TIFF, WebP or DICOM)")


def _pillow_format(data: bytes) -> str | None:
    if data.startswith(b"BM"):
        return "BMP"
    webp = data.startswith(b"RIFF") and data[8:12] == b"WEBP"
    return "TIFF" if data.startswith(_TIFF) else "WEBP" if webp else None


def read_with_pillow(data: bytes, decode: bool = True) -> tuple[int, int, str, np.ndarray | None]:
    """Read a BMP, TIFF or WebP file: width, height and mode as stored, and the upright grey pixels.

    Pixels are ``uint8``, or numbers with more bits, (H, W); None without ``decode``. Errors: `check_image`.
    """
    try:
        with warnings.catch_warnings(action="ignore"):
            image = Image.open(io.BytesIO(data), formats=[_pillow_format(data)])
            size, mode, tags = image.size, image.mode, getattr(image, "tag_v2", {})
            check_size(*size)
            if (frames := getattr(image, "n_frames", 1)) != 1:
                raise ValueError(f"not one image ({frames} in the file)")
            if not decode:
                return *size, mode, None
            image.load()
            with contextlib.suppress(Exception):  # a damaged EXIF block does not make the image unusable
                image = ImageOps.exif_transpose(image)
            deep = mode[0] in "IF"
            if not deep and max(tags.get(258, (8,))) > 8:
                raise ValueError("not supported (TIFF of several channels with more than 8 bits)")
            pixels = np.asarray(image if deep else image.convert("L"))
            if not np.isfinite(pixels).all():
                raise ValueError("damaged (some pixels are no numbers)")
            if deep and tags.get(262) == 0:  # 0 is white; Pillow inverts only images of 8 bits
                pixels = pixels.max() - pixels
            return *size, mode, pixels
    except Image.DecompressionBombError:
        raise ValueError(f"too large (at most {MAX_PIXELS:,} pixels)") from None
    except Exception as error:  # a damaged file can fail in any way
        known = str(error).startswith(("too ", "not one image", "not supported", "damaged ("))
        reason = str(error) if known else "truncated, damaged, or of a kind that is not supported"
        raise ValueError(reason) from None


def _read_jpeg_header(data: bytes) -> tuple[tuple[int, int, str], int]:
    """Return width, height and mode, and the position of the first scan; -1 if there is none."""
    position, header = 2, None
    while (position := data.find(b"\xff", position)) >= 0:  # like libjpeg, skip bytes between segments
        marker = data[position + 1]
        if marker == 0xFF or marker < 0x02 or 0xD0 <= marker <= 0xD9:  # fill byte, or without a length
            position += 1 if marker == 0xFF else 2
            continue
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        if marker in _JPEG_FRAME_MARKERS and header is None:
            depth, height, width, components = struct.unpack(">BHHB", data[position + 4 : position + 10])
            header = width, height, _JPEG_MODES[components] + (";16" if depth > 8 else "")
        if marker == 0xDA:
            break
        position += 2 + length
    if header is None:
        raise KeyError("frame")
    return header, position


def _is_whole(data: bytes) -> bool:
    """Whether all chunks of a PNG file, or the first scan of a JPEG file and an end marker, are there."""
    if not data.startswith(_PNG_SIGNATURE):  # coded data and tables of JPEG never contain the end marker
        return 0 <= _read_jpeg_header(data)[1] < data.rfind(b"\xff\xd9")
    # OpenCV reserves memory for the length that a chunk states, up to 4 GB, before it reads the chunk.
    position, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND" and position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        position += 12 + length
    return kind == b"IEND" and position <= len(data)


def check_size(width: int, height: int) -> None:
    """Raise ValueError if an image is too large or too small."""
    if width * height > MAX_PIXELS:
        raise ValueError(f"too large ({width} × {height} pixels, at most {MAX_PIXELS:,} in all)")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"too small ({width} × {height} pixels, at least {MIN_SIDE} a side)")


def blocks(image: np.ndarray, rows: int = 256) -> Iterator[np.ndarray]:
    """Yield an image in blocks of rows (views), so that temporary arrays stay small."""
    return (image[start : start + rows] for start in range(0, len(image), rows))


def robust_range(values: np.ndarray) -> tuple[float, float]:
    """Return the values of black and white: :data:`PERCENTILES`, or the extremes if these are equal."""
    low, high = np.percentile(values, PERCENTILES)
    return (low, high) if low < high else (values.min(), values.max())


def to_grey(values: np.ndarray, low: float, high: float) -> np.ndarray:
    """Scale numbers to ``uint8`` of the same shape: ``low`` becomes 0 and ``high`` 255."""
    grey = np.empty(values.shape, np.uint8)
    for target, source in zip(blocks(grey), blocks(values)):
        scaled = (source.astype(np.float64) - low) / max(high - low, 1e-12)
        target[...] = np.rint(255 * np.clip(scaled, 0, 1))
    return grey
