"""Is this a frontal chest film at all? A classifier answers anything; this decides whether it may."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

SIDE = 32
"""Of the mean film with which images are compared."""

FLAT_BELOW = 5.0
"""Standard deviation of grey values under which an image shows nothing."""

COLOUR_ABOVE = 8.0
"""Mean spread of the three channels, in grey values, from which a file is a colour picture."""

ACCEPTED = 0.9967
"""Share of the validation images that each of the three learned checks lets through: 99 % together."""

_TURNS = {
    "inverted (bright and dark exchanged)": lambda film: -film,
    "upside down": lambda film: np.rot90(film, 2, (1, 2)),
    "turned by 90° clockwise": lambda film: np.rot90(film, 1, (1, 2)),
    "turned by 90° counterclockwise": lambda film: np.rot90(film, 3, (1, 2)),
}


@dataclass(frozen=True)
class Refusal:
    """What the training images looked like, and how far from them is too far.

    Attributes:
        film: Mean training image, standardised, (SIDE, SIDE).
        least_likeness: Smallest accepted correlation with ``film``.
        least_margin: By how much it may be smaller than after inverting or
            turning the image; 0 or less.
        center: Mean pooled features of the training images, (F,).
        whitening: ``whitening.T @ whitening`` is the inverse of their
            covariance, (F, F).
        most_distance: Largest accepted Mahalanobis distance.
    """

    film: NDArray
    least_likeness: float
    least_margin: float
    center: NDArray
    whitening: NDArray
    most_distance: float

    def likenesses(self, images: NDArray) -> NDArray:
        """Correlation of each image, (N, H, W) in 0–255, with the mean training image, (N,)."""
        return self._compare(_standardised(images))

    def _compare(self, films: NDArray) -> NDArray:
        return (films * self.film).mean(axis=(1, 2))

    def _turned(self, films: NDArray) -> NDArray:
        """Correlation after each of the turns, (turns, N)."""
        return np.stack([self._compare(turn(films)) for turn in _TURNS.values()])

    def distances(self, features: NDArray) -> NDArray:
        """Mahalanobis distance of pooled features, (N, F), from those of the training images, (N,)."""
        return np.linalg.norm((features - self.center) @ self.whitening.T, axis=1)

    def measure(self, images: NDArray, distances: NDArray) -> dict[str, NDArray]:
        """Measure what can drift without labels: brightness, contrast, sharpness, likeness, distance.

        Args:
            images: ``uint8`` (N, H, W), preprocessed.
            distances: (N,), of the same images, see :meth:`distances`.

        Returns:
            Each ``float64`` (N,).
        """
        return image_statistics(images) | {
            "likeness": self.likenesses(images).astype(np.float64),
            "distance": np.asarray(distances, np.float64),
        }

    def reasons(self, images: NDArray, distances: NDArray) -> list[str]:
        """Say why each image is refused; empty for those that are accepted.

        Args:
            images: ``uint8`` (N, H, W), preprocessed.
            distances: (N,), of the same images, see :meth:`distances`.
        """
        films = _standardised(images)
        likeness, turned = self._compare(films), self._turned(films)
        reasons = []
        for number, image in enumerate(images):
            best = int(turned[:, number].argmax())
            if image.std() < FLAT_BELOW:
                reasons.append("shows nothing: all pixels are nearly equal")
            elif (
                likeness[number] - turned[best, number] < self.least_margin
                and turned[best, number] >= self.least_likeness
            ):
                reasons.append(f"looks {list(_TURNS)[best]}")
            elif likeness[number] < self.least_likeness:
                reasons.append(
                    f"does not look like a frontal chest film (correlation with the mean film "
                    f"{likeness[number]:.2f}, at least {self.least_likeness:.2f})"
                )
            elif not distances[number] <= self.most_distance:  # NaN is too far
                reasons.append(
                    f"unlike the training images (distance {distances[number]:.1f}, at most "
                    f"{self.most_distance:.1f})"
                )
            else:
                reasons.append("")
        return reasons

    def save(self, path: Path) -> None:
        """Write everything to one ``.npz`` file."""
        np.savez(
            path,
            film=self.film.astype(np.float32),
            center=self.center.astype(np.float32),
            whitening=self.whitening.astype(np.float32),
            limits=np.array([self.least_likeness, self.least_margin, self.most_distance]),
        )

    @classmethod
    def load(cls, path: Path) -> Refusal:
        """Read what :meth:`save` wrote; nothing is unpickled.

        Raises:
            ValueError: The file is no such.
        """
        try:
            with np.load(path, allow_pickle=False) as file:
                least_likeness, least_margin, most_distance = file["limits"].tolist()
                return cls(
                    file["film"],
                    least_likeness,
                    least_margin,
                    file["center"],
                    file["whitening"],
                    most_distance,
                )
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"damaged ({type(error).__name__}). Received: path={str(path)!r}") from None


def fit_refusal(
    train_images: NDArray, train_features: NDArray, val_images: NDArray, val_features: NDArray
) -> Refusal:
    """Learn from training images what a film looks like, and from validation how far is too far.

    Mahalanobis distance on pooled features (Lee et al. 2018, with one class
    and the covariance of Ledoit and Wolf 2004), and the correlation with the
    mean film, which sees what pooled features forget: where things are.

    Args:
        train_images: ``uint8`` (N, H, W), preprocessed.
        train_features: (N, F), pooled features of the same images.
        val_images: ``uint8`` (M, H, W).
        val_features: (M, F).
    """
    from sklearn.covariance import LedoitWolf

    fitted = LedoitWolf().fit(np.asarray(train_features, np.float64))
    variances, directions = np.linalg.eigh(fitted.covariance_)
    variances = np.maximum(variances, 1e-9 * variances.max() + 1e-12)  # of dead features, too
    film = _standardised(_standardised(train_images).mean(axis=0, keepdims=True))[0]
    refusal = Refusal(film, -1.0, -1.0, fitted.location_, (directions / np.sqrt(variances)).T, np.inf)
    films = _standardised(val_images)
    likeness = refusal._compare(films)
    least, margin = (
        np.quantile(values, 1 - ACCEPTED, method="lower")
        for values in (likeness, likeness - refusal._turned(films).max(axis=0))
    )
    distances = refusal.distances(val_features)
    most = np.quantile(distances, ACCEPTED, method="higher")
    beyond = distances[distances > most]  # halfway to the next, so that rounding refuses nobody
    return replace(
        refusal,
        least_likeness=float(least),
        least_margin=min(0.0, float(margin)),
        most_distance=float((most + beyond.min()) / 2 if len(beyond) else most * 1.001),
    )


def is_colour(data: bytes) -> bool:
    """Whether an encoded picture has colours, not only three equal channels."""
    pixels = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_REDUCED_COLOR_8)
    if pixels is None:
        return False
    return float(np.ptp(pixels.astype(np.float32), axis=-1).mean()) > COLOUR_ABOVE


def _standardised(images: NDArray) -> NDArray:
    """Images at SIDE pixels with mean 0 and standard deviation 1, (N, SIDE, SIDE); 0 where flat."""
    small = np.stack(
        [
            cv2.resize(np.asarray(image, np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
            for image in images
        ]
    )
    spread = small.std(axis=(1, 2), keepdims=True)
    return (small - small.mean(axis=(1, 2), keepdims=True)) / np.where(spread > 0, spread, np.inf)


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
