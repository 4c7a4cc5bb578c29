"""Lung box of an image, and re-framing: cutting an image so that the lungs get another lung box.

A lung box is ``(left, top, right, bottom)`` in fractions of the image's width and height. :func:`mask_boxes`
computes boxes from lung masks. For images without masks the network ``lungs.onnx`` estimates them; its model
card is ``lungs.md``.
"""

import threading
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

MODEL = Path(__file__).with_name("lungs.onnx")
MODEL_HASH = "75c97fc6904b4158"  # start of its SHA-256; part of the keys of stored pixels and of steps
SIDE = 64  # input of the network in pixels
GRID = 256  # its outputs are whole numbers, in 1/256 of the image's side
MIN_BOX_SIDE, MAX_BOX_ASPECT = 0.3, 2.5  # of a plausible box; aspect: longer to shorter side
MARGIN = 0.02  # around the box, as a fraction of its sides
WHOLE = (0.0, 0.0, 1.0, 1.0)

_networks = threading.local()  # OpenCV's networks are not thread-safe


def lung_box(image: NDArray) -> NDArray | None:
    """Estimate the lung box of grey pixels, ``uint8`` (H, W), as ``float64`` (4,).

    Returns None if it is implausible. All sums are of whole numbers below 2²⁴, in units of a power of two,
    and exact in float32, so that every machine computes the same box.
    """
    if not hasattr(_networks, "network"):
        _networks.network = cv2.dnn.readNetFromONNX(np.frombuffer(MODEL.read_bytes(), np.uint8))
    small = cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    _networks.network.setInput(small[np.newaxis, np.newaxis].astype(np.float32))
    box = np.clip(_networks.network.forward()[0].astype(float) / GRID, 0, 1)
    width, height = box[2:] - box[:2]
    shorter, longer = sorted((width, height))
    plausible = shorter >= MIN_BOX_SIDE and longer <= MAX_BOX_ASPECT * shorter
    return box if plausible else None


def lung_boxes(images: Iterable[NDArray]) -> NDArray:
    """Estimate the lung boxes of images with :func:`lung_box`, ``float64`` (N, 4); NaN if implausible."""
    boxes = (lung_box(np.squeeze(image)) for image in images)
    return np.array([np.full(4, np.nan) if box is None else box for box in boxes]).reshape(-1, 4)


def mask_boxes(masks: NDArray) -> NDArray:
    """Compute the lung boxes of masks, ``bool`` (N, H, W), as ``float64`` (N, 4); NaN for an empty mask."""
    boxes = np.full((len(masks), 4), np.nan)
    for row, mask in enumerate(masks):
        if mask.any():
            x, y, width, height = cv2.boundingRect(mask.astype(np.uint8))
            boxes[row] = np.array([x, y, x + width, y + height]) / np.tile(mask.shape[::-1], 2)
    return boxes


def crop_window(image: NDArray, window: NDArray) -> NDArray:
    """Cut a window, ``(left, top, right, bottom)`` in fractions, out of an image (H, W) of any type.

    Outside the image the edge is repeated. The window must contain at least one pixel of the image.
    """
    sides = np.tile(image.shape[::-1], 2)
    left, top, right, bottom = (int(edge) for edge in np.rint(np.asarray(window) * sides))
    height, width = image.shape
    padding = max(0, -top), max(0, bottom - height), max(0, -left), max(0, right - width)
    image = image[max(0, top) : min(height, bottom), max(0, left) : min(width, right)]
    return cv2.copyMakeBorder(image, *padding, cv2.BORDER_REPLICATE) if any(padding) else image


def lung_window(image: NDArray) -> NDArray:
    """Compute the window of ``resize="lung_box"``: lung box with a margin; without a box, the whole image."""
    box = lung_box(image)
    if box is None:
        return np.array(WHOLE)
    return np.clip(box + MARGIN * np.tile(box[2:] - box[:2], 2) * (-1, -1, 1, 1), 0, 1)


def window_between(box: NDArray, target: NDArray, zoom_only: bool = False) -> NDArray:
    """Compute the window of an image with the lung box ``box`` in which the lungs get the box ``target``.

    ``zoom_only`` keeps the window inside the image; the lung box is then as near to ``target`` as possible.
    """
    box, target = np.asarray(box, float), np.asarray(target, float)
    size = (box[2:] - box[:2]) / (target[2:] - target[:2])
    start = box[:2] - target[:2] * size
    window = np.concatenate([start, start + size])
    return np.clip(window, 0, 1) if zoom_only else window
