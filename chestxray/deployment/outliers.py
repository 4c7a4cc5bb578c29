"""Out-of-distribution check, which refuses images that differ from the training images."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chestxray.data.dicom import COLOUR_ABOVE
from chestxray.files import open_arrays

SIDE = 32  # of the mean training image, in pixels
FLAT_BELOW = 5.0  # standard deviation of grey values
ACCEPTED = 0.9967  # proportion of validation images that each of the three limits accepts: together 99 %

TURNS = {
    "": lambda images: images,
    "inverted (bright and dark exchanged)": lambda images: -images,
    "upside down": lambda images: np.rot90(images, 2, (1, 2)),
    "turned by 90° clockwise": lambda images: np.rot90(images, 1, (1, 2)),
    "turned by 90° counterclockwise": lambda images: np.rot90(images, 3, (1, 2)),
}


@dataclass(frozen=True)
class OutlierCheck:
    """Description of the training images, and limits for new images."""

    mean_image: NDArray  # standardised mean of the training images, (SIDE, SIDE)
    least_likeness: float  # smallest accepted correlation with mean_image
    least_margin: float  # 0 or less; smallest accepted difference to the correlation of the turned image
    center: NDArray  # mean pooled features of the training images, (F,)
    whitening: NDArray  # (F, F); whitening.T @ whitening is the inverse covariance of the features
    most_distance: float  # largest accepted Mahalanobis distance

    def distances(self, features: NDArray) -> NDArray:
        """Return the Mahalanobis distances, (N,), of pooled features, (N, F), from the training images."""
        return np.linalg.norm((features - self.center) @ self.whitening.T, axis=1)

    def measure(self, images: NDArray, distances: NDArray) -> dict[str, NDArray]:
        """Return :func:`image_statistics`, ``likeness`` and ``distance``, each ``float64`` (N,).

        ``images`` are preprocessed, ``uint8`` (N, H, W); ``distances``, (N,), are from :meth:`distances`.
        ``likeness`` is the correlation with the mean training image.
        """
        likeness = self._correlations(images)[0].astype(np.float64)
        return image_statistics(images) | {"likeness": likeness, "distance": np.float64(distances)}

    def reasons(self, images: NDArray, distances: NDArray) -> list[str]:
        """Return why each image is refused; empty if it is accepted. Arguments as in :meth:`measure`."""
        likeness, *turned = self._correlations(images)
        names = np.array(list(TURNS)[1:])[np.argmax(turned, axis=0)]
        columns = images, likeness, np.max(turned, axis=0), names, distances
        return [self._reason(*values) for values in zip(*columns)]

    def _reason(self, image: NDArray, likeness: float, turned: float, turn: str, distance: float) -> str:
        if image.std() < FLAT_BELOW:
            return "shows nothing: all pixels are nearly equal"
        if likeness - turned < self.least_margin and turned >= self.least_likeness:
            return f"looks {turn}"
        if likeness < self.least_likeness:
            limits = f"{likeness:.2f}, at least {self.least_likeness:.2f}"
            return f"does not look like a frontal chest image (correlation with the mean {limits})"
        if not distance <= self.most_distance:  # NaN is refused, too
            return f"unlike the training images (distance {distance:.1f}, at most {self.most_distance:.1f})"
        return ""

    def _correlations(self, images: NDArray) -> NDArray:
        """Return the correlations with the mean image after each of the turns, (turns, N)."""
        small = _standardised(images)
        return np.stack([(turn(small) * self.mean_image).mean(axis=(1, 2)) for turn in TURNS.values()])

    def save(self, path: Path) -> None:
        """Write the check to an ``.npz`` file."""
        arrays = {"film": self.mean_image, "center": self.center, "whitening": self.whitening}
        limits = np.array([self.least_likeness, self.least_margin, self.most_distance])
        np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()}, limits=limits)

    @classmethod
    def load(cls, path: Path) -> "OutlierCheck":
        """Read a file of :meth:`save`. Raises ValueError if it is damaged."""
        with open_arrays(path) as file:
            likeness, margin, distance = file["limits"].tolist()
            return cls(file["film"], likeness, margin, file["center"], file["whitening"], distance)


def fit_outlier_check(
    train_images: NDArray, train_features: NDArray, val_images: NDArray, val_features: NDArray
) -> OutlierCheck:
    """Fit the description to training images, and choose the limits on validation images.

    Images are preprocessed, ``uint8`` (N, H, W), with their pooled features, (N, F). Mahalanobis distance of
    Lee et al. 2018, with one class and the covariance of Ledoit and Wolf 2004; and correlation with the mean
    image, because pooled features contain no positions.
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(np.asarray(train_features, np.float64))
    variances, directions = np.linalg.eigh(fitted.covariance_)
    variances = np.maximum(variances, 1e-9 * variances.max() + 1e-12)  # of dead features, too
    mean_image = _standardised(_standardised(train_images).mean(axis=0, keepdims=True))[0]
    whitening = (directions / np.sqrt(variances)).T
    check = OutlierCheck(mean_image, -1.0, -1.0, fitted.location_, whitening, np.inf)
    likeness, *turned = check._correlations(val_images)
    margins = likeness - np.max(turned, axis=0)
    distances = check.distances(val_features)
    most = np.quantile(distances, ACCEPTED, method="higher")
    beyond = distances[distances > most]  # halfway to the next one, so that rounding refuses no image
    return replace(
        check,
        least_likeness=float(np.quantile(likeness, 1 - ACCEPTED, method="lower")),
        least_margin=min(0.0, float(np.quantile(margins, 1 - ACCEPTED, method="lower"))),
        most_distance=float((most + beyond.min()) / 2 if len(beyond) else most * 1.001),
    )


def is_colour(data: bytes) -> bool:
    """Return whether an encoded image has colours: three channels that differ."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    return pixels is not None and float(np.ptp(pixels.astype(np.float32), axis=-1).mean()) > COLOUR_ABOVE


def _standardised(images: NDArray) -> NDArray:
    """Return images at SIDE pixels with mean 0 and standard deviation 1, (N, SIDE, SIDE); 0 if flat."""
    floats = (np.asarray(image, np.float32) for image in images)
    small = np.stack([cv2.resize(image, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for image in floats])
    spread = small.std(axis=(1, 2), keepdims=True)
    return (small - small.mean(axis=(1, 2), keepdims=True)) / np.where(spread > 0, spread, np.inf)


def image_statistics(images: NDArray) -> dict[str, NDArray]:
    """Measure preprocessed images, ``uint8`` (N, H, W); each measure is (N,).

    ``brightness`` and ``contrast`` are mean and standard deviation of the grey values. ``sharpness`` is the
    standard deviation of the Laplacian: blur reduces it, noise increases it.
    """
    sharpness = np.array([cv2.Laplacian(image, cv2.CV_32F).std() for image in images], np.float64)
    brightness, contrast = images.mean(axis=(1, 2)), images.std(axis=(1, 2))
    return {"brightness": brightness, "contrast": contrast, "sharpness": sharpness}
