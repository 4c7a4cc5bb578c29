"""Out-of-distribution check: which images a classifier must not answer for."""

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from chestxray.data.dicom import COLOUR_ABOVE

SIDE = 32  # of the mean training image, in pixels
FLAT_BELOW = 5.0  # standard deviation of grey values
ACCEPTED = 0.9967  # share of the validation images that each of three checks accepts: 99 % together

TURNS = {
    "inverted (bright and dark exchanged)": lambda images: -images,
    "upside down": lambda images: np.rot90(images, 2, (1, 2)),
    "turned by 90° clockwise": lambda images: np.rot90(images, 1, (1, 2)),
    "turned by 90° counterclockwise": lambda images: np.rot90(images, 3, (1, 2)),
}


@dataclass(frozen=True)
class OutlierCheck:
    """Description of the training images, and limits for new images.

    Attributes:
        mean_image: Mean training image, standardised, (SIDE, SIDE).
        least_likeness: Smallest accepted correlation with ``mean_image``.
        least_margin: Smallest accepted difference between this correlation and the one after inverting or
            turning the image; 0 or less.
        center: Mean pooled features of the training images, (F,).
        whitening: ``whitening.T @ whitening`` is the inverse of their covariance, (F, F).
        most_distance: Largest accepted Mahalanobis distance.
    """

    mean_image: NDArray
    least_likeness: float
    least_margin: float
    center: NDArray
    whitening: NDArray
    most_distance: float

    def distances(self, features: NDArray) -> NDArray:
        """Return the Mahalanobis distance, (N,), of pooled features, (N, F), from the training images."""
        return np.linalg.norm((features - self.center) @ self.whitening.T, axis=1)

    def measure(self, images: NDArray, distances: NDArray) -> dict[str, NDArray]:
        """Measure what can drift without labels, of preprocessed images, ``uint8`` (N, H, W).

        ``distances``, (N,), are those of the same images, see :meth:`distances`. Gives ``brightness``,
        ``contrast``, ``sharpness``, ``likeness`` (correlation with the mean training image) and ``distance``,
        each ``float64`` (N,).
        """
        likeness = self._correlate(_standardised(images)).astype(np.float64)
        return image_statistics(images) | {"likeness": likeness, "distance": np.float64(distances)}

    def reasons(self, images: NDArray, distances: NDArray) -> list[str]:
        """Return the reason why each image is refused; empty if it is accepted. Arguments as in `measure`."""
        small = _standardised(images)
        likeness, turned = self._correlate(small), self._correlate_turned(small)
        best, names = turned.max(axis=0), np.array(list(TURNS))[turned.argmax(axis=0)]
        reasons = []
        for number, image in enumerate(images):
            reason = ""
            if image.std() < FLAT_BELOW:
                reason = "shows nothing: all pixels are nearly equal"
            elif likeness[number] - best[number] < self.least_margin and best[number] >= self.least_likeness:
                reason = f"looks {names[number]}"
            elif likeness[number] < self.least_likeness:
                limits = f"{likeness[number]:.2f}, at least {self.least_likeness:.2f}"
                reason = f"does not look like a frontal chest image (correlation with the mean {limits})"
            elif not distances[number] <= self.most_distance:  # NaN is too far
                limits = f"{distances[number]:.1f}, at most {self.most_distance:.1f}"
                reason = f"unlike the training images (distance {limits})"
            reasons.append(reason)
        return reasons

    def _correlate(self, small: NDArray) -> NDArray:
        return (small * self.mean_image).mean(axis=(1, 2))

    def _correlate_turned(self, small: NDArray) -> NDArray:  # (turns, N)
        return np.stack([self._correlate(turn(small)) for turn in TURNS.values()])

    def save(self, path: Path) -> None:
        """Write everything to one ``.npz`` file."""
        arrays = {"film": self.mean_image, "center": self.center, "whitening": self.whitening}
        limits = np.array([self.least_likeness, self.least_margin, self.most_distance])
        np.savez(path, **{name: array.astype(np.float32) for name, array in arrays.items()}, limits=limits)

    @classmethod
    def load(cls, path: Path) -> "OutlierCheck":
        """Read what :meth:`save` wrote; nothing is unpickled. A damaged file raises ValueError."""
        try:
            with np.load(path, allow_pickle=False) as file:
                likeness, margin, distance = file["limits"].tolist()
                return cls(file["film"], likeness, margin, file["center"], file["whitening"], distance)
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"damaged ({type(error).__name__}). Received: path={str(path)!r}") from None


def fit_outlier_check(
    train_images: NDArray, train_features: NDArray, val_images: NDArray, val_features: NDArray
) -> OutlierCheck:
    """Learn the description from training images, and the limits from validation images.

    Mahalanobis distance of pooled features (Lee et al. 2018, with one class and the covariance of Ledoit and
    Wolf 2004), and the correlation with the mean image: pooled features do not hold positions. Images are
    ``uint8`` (N, H, W), preprocessed; features (N, F) are pooled ones of the same images.
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(np.asarray(train_features, np.float64))
    variances, directions = np.linalg.eigh(fitted.covariance_)
    variances = np.maximum(variances, 1e-9 * variances.max() + 1e-12)  # of dead features, too
    mean_image = _standardised(_standardised(train_images).mean(axis=0, keepdims=True))[0]
    whitening = (directions / np.sqrt(variances)).T
    check = OutlierCheck(mean_image, -1.0, -1.0, fitted.location_, whitening, np.inf)
    small = _standardised(val_images)
    likeness = check._correlate(small)
    margins = likeness - check._correlate_turned(small).max(axis=0)
    distances = check.distances(val_features)
    most = np.quantile(distances, ACCEPTED, method="higher")
    beyond = distances[distances > most]  # halfway to the next, so that rounding refuses no image
    return replace(
        check,
        least_likeness=float(np.quantile(likeness, 1 - ACCEPTED, method="lower")),
        least_margin=min(0.0, float(np.quantile(margins, 1 - ACCEPTED, method="lower"))),
        most_distance=float((most + beyond.min()) / 2 if len(beyond) else most * 1.001),
    )


def is_colour(data: bytes) -> bool:
    """Return whether an encoded image has colours, not only three equal channels."""
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

    ``brightness`` and ``contrast`` are mean and standard deviation of the grey values, ``sharpness`` is the
    standard deviation of the Laplacian, which falls with blur and rises with noise.
    """
    sharpness = np.array([cv2.Laplacian(image, cv2.CV_32F).std() for image in images], np.float64)
    brightness, contrast = images.mean(axis=(1, 2)), images.std(axis=(1, 2))
    return {"brightness": brightness, "contrast": contrast, "sharpness": sharpness}
