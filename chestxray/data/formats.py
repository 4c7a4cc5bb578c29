"""What an encoded image says of itself, before it is decoded."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np


def blocks(image: np.ndarray, rows: int = 256) -> Iterator[np.ndarray]:
    """Cut an image into views of some rows, so that what is computed of it stays small."""
    return (image[start : start + rows] for start in range(0, len(image), rows))


def look_up(table: np.ndarray, image: np.ndarray, least: int = 0) -> np.ndarray:
    """Exchange whole numbers from ``least`` on for the entries of a table, ``uint8`` of the same shape."""
    found = np.empty(image.shape, np.uint8)
    for target, source in zip(blocks(found), blocks(image), strict=True):
        target[...] = table[source.astype(np.intp) - least]
    return found


MAX_PIXELS = 64_000_000
"""Largest image that is decoded (a film scanned at 8,000 × 8,000)."""

MIN_SIDE = 16
"""Shortest side, in pixels, that can still be a radiograph."""

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_MODES = {0: "L", 2: "RGB", 3: "P", 4: "LA", 6: "RGBA"}
_JPEG_MODES = {1: "L", 3: "RGB", 4: "CMYK"}
_JPEG_FRAME_MARKERS = frozenset({*range(0xC0, 0xD0), 0xF7}) - {0xC4, 0xC8, 0xCC}  # F7: JPEG-LS, in DICOM


def is_dicom(data: bytes) -> bool:
    """Whether a file begins as DICOM files do (PS3.10)."""
    return data[128:132] == b"DICM"


def read_header(data: bytes) -> tuple[int, int, str]:
    """Read size and mode from the encoded bytes, without decoding.

    Args:
        data: The whole file.

    Returns:
        ``(width, height, mode)`` as stored (before EXIF orientation); mode is
        ``L``, ``LA``, ``P``, ``RGB``, ``RGBA`` or ``CMYK``, with ``;16`` added
        for 16-bit files.

    Raises:
        ValueError: The bytes are empty, neither JPEG nor PNG, or cut short
            within the header.
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


def check_image(data: bytes) -> tuple[int, int, str]:
    """Check everything that can be known of an encoded image without decoding it.

    Args:
        data: The whole file.

    Returns:
        ``(width, height, mode)``, see :func:`read_header`.

    Raises:
        ValueError: One line with the reason: empty, not an image, damaged
            header, too large, too small, or truncated.
    """
    width, height, mode = read_header(data)
    check_size(width, height)
    whole = _png_is_whole(data) if data.startswith(_PNG_SIGNATURE) else b"\xff\xd9" in data[-1024:]
    if not whole:
        raise ValueError("truncated (the end of the image is missing)")
    return width, height, mode


def _png_is_whole(data: bytes) -> bool:
    """Whether the chunks follow each other to the last one within the file.

    OpenCV reserves the memory that a chunk claims to need, up to 4 GB, before it looks.
    """
    position, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND" and position + 12 <= len(data):
        length, kind = struct.unpack(">I4s", data[position : position + 8])
        position += 12 + length
    return kind == b"IEND" and position <= len(data)


def check_size(width: int, height: int) -> None:
    """Check the size of an image before it is decoded.

    Raises:
        ValueError: Too large or too small.
    """
    if width * height > MAX_PIXELS:
        raise ValueError(f"too large ({width} × {height} pixels, at most {MAX_PIXELS:,} in all)")
    if min(width, height) < MIN_SIDE:
        raise ValueError(f"too small ({width} × {height} pixels, at least {MIN_SIDE} a side)")
