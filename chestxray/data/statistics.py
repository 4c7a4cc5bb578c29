"""What can be said of an image in three numbers, to notice when images change."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray


def image_statistics(images: NDArray) -> dict[str, NDArray]:
    """Measure preprocessed images.

    Args:
        images: ``uint8`` (N, H, W).

    Returns:
        ``brightness, contrast, sharpness``, each (N,): mean and standard deviation of the grey
        values, and the standard deviation of the Laplacian, which falls with
        blur and rises with noise.
    """
    edges = [cv2.Laplacian(image, cv2.CV_32F).std() for image in images]
    return {
        "brightness": images.mean(axis=(1, 2)),
        "contrast": images.std(axis=(1, 2)),
        "sharpness": np.array(edges, np.float64),
    }
