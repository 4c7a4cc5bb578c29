"""Recognition of training and validation images by their perceptual hashes.

``seen.npz`` has 32 bytes per image and no pixels. Remove it if even hashes are private. For a model that sees
the lung box, some copies of another quality are missed, because their lung box differs a little.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestxray.data.images import MAX_DISTANCE, perceptual_hashes
from chestxray.files import open_arrays

SEEN_FILE = "seen.npz"
SUBSETS = ("train", "val")


class SeenImages(NamedTuple):
    """Hashes of the training and validation images, ``uint8`` (N, 32), and indices into SUBSETS, (N,)."""

    hashes: NDArray
    subsets: NDArray

    @classmethod
    def of(cls, images: dict[str, NDArray]) -> "SeenImages":
        """Compute the hashes of ``{subset: images}``, preprocessed, each (N, size, size, 1)."""
        hashes = [perceptual_hashes(images[subset]) for subset in SUBSETS]
        numbers = np.repeat(np.arange(len(SUBSETS), dtype=np.uint8), [*map(len, hashes)])
        return cls(np.concatenate(hashes), numbers)

    def save(self, folder: Path) -> None:
        np.savez_compressed(folder / SEEN_FILE, **self._asdict())

    @classmethod
    def load(cls, folder: Path) -> "SeenImages | None":
        """Read the file of a model; None if there is none. Raises ValueError if it is damaged."""
        if not (folder / SEEN_FILE).is_file():
            return None
        with open_arrays(folder / SEEN_FILE) as file:
            seen = cls(file["hashes"], file["subsets"])
            if not seen.hashes.dtype == seen.subsets.dtype == np.uint8 or seen.subsets.max() >= len(SUBSETS):
                raise ValueError("not hashes and indices of subsets")
            seen.hashes.reshape(*seen.subsets.shape, 32)  # raises for another shape
        return seen

    def subsets_of(self, images: NDArray) -> list[str]:
        """Return ``"train"``, ``"val"`` or, if it is not recognised, ``""`` for each preprocessed image."""
        known, subsets = np.ascontiguousarray(self.hashes.view(np.uint64).T), []
        for image, hashed in zip(images, perceptual_hashes(images).view(np.uint64)):
            distances = np.bitwise_count(known ^ hashed[:, np.newaxis]).sum(axis=0, dtype=np.uint16)
            nearest = int(distances.argmin()) if len(distances) else 0
            close = len(distances) and distances[nearest] <= MAX_DISTANCE and image.std() > 1  # not flat
            subsets.append(SUBSETS[self.subsets[nearest]] if close else "")
        return subsets


def seen_text(train: int, val: int, images: int) -> str:
    """Return a sentence on the number of images that were used in training; empty if none was."""
    if not train + val:
        return ""
    subsets = f"({train:,} for training, {val:,} for validation)"
    used = f"{train + val:,} of these {images:,} images were used to make the model {subsets}"
    return f"{used}: its scores on them are too good."
