"""Size and mode of encoded images, and checks before they are decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

MAX_PIXELS = 64_000_000
"""Largest image that is decoded (8,000 × 8,000)."""

MIN_SIDE = 16
"""Shortest side of an image in pixels."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # F7: JPEG-LS, in DICOM


def is_dicom(data: bytes) -> bool:
    """Whether a file begins as DICOM files do (PS3.10)."""
    return data[128:132] == b"DICM"


def check_image(data: bytes) -> tuple[int, int, str]:
    """Read the header of a whole file and check what can be known without decoding.

    Returns:
        ``(width, height, mode)``, see :func:`read_header`.

    Raises ValueError: One line with the reason: see :func:`read_header` and :func:`check_size`, or truncated.
    """
    width, height, mode = read_header(data)
    check_size(width, height)
    whole = _png_is_whole(data) if data.startswith(_PNG_SIGNATURE) else b"\xff\xd9" in data[-1024:]
    if not whole:
        raise ValueError("truncated (the end of the image is missing)")
    return width, height, mode


def read_header(data: bytes) -> tuple[int, int, str]:
    """Read ``(width, height, mode)`` from the header of a JPEG or PNG file, before EXIF orientation.

    Mode is ``L``, ``LA``, ``P``, ``RGB``, ``RGBA`` or ``CMYK``, with ``;16`` added for 16-bit files.

    Raises ValueError: The bytes are empty, neither JPEG nor PNG, or cut short within the header.
    """
    if not data:
        raise ValueError("empty file")
    try:
        if data.startswith(_PNG_SIGNATURE):
            width, height, depth, colour = struct.unpack(">IIBB", data[16:26])
            return width, height, _PNG_MODES[colour] + (";16" if depth == 16 else "")
        if data.startswith(b"\xff\xd8"):
            return _read_jpeg_header(data)
    except (struct.error, IndexError, KeyError):
        raise ValueError("truncated or damaged header") from None
    raise ValueError("not an image (neither JPEG nor PNG)")


def _read_jpeg_header(data: bytes) -> tuple[int, int, str]:
    position = 2
    while True:
        if data[position] != 0xFF:
            raise KeyError(position)
        marker = data[position + 1]
        if marker == 0xFF:  # fill byte
            position += 1
            continue
        if marker in _JPEG_FRAME_MARKERS:
            depth, height, width, components = struct.unpack(">BHHB", data[position + 4 : position + 10])
            return width, height, _JPEG_MODES[components] + (";16" if depth > 8 else "")
        (length,) = struct.unpack(">H", data[position + 2 : position + 4])
        position += 2 + length


def _png_is_whole(data: bytes) -> bool:
    """Whether all chunks up to the last one lie within the file.

    OpenCV reserves the memory that a chunk claims to need, up to 4 GB, before it looks.
    """
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
    """Cut an image into views of some rows, so that temporary arrays stay small."""
    return (image[start : start + rows] for start in range(0, len(image), rows))


def look_up(table: np.ndarray, image: np.ndarray, least: int = 0) -> np.ndarray:
    """Map whole numbers from ``least`` on by a table, to ``uint8`` of the same shape."""
    result = np.empty(image.shape, np.uint8)
    for target, source in zip(blocks(result), blocks(image)):
        target[...] = table[source.astype(np.intp) - least]
    return result
