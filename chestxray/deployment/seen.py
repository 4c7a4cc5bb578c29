"""Images that a model was trained or validated on, recognised by their perceptual hashes.

``seen.npz`` beside ``card.json`` holds 32 bytes an image and no pixels. Leave the file out where even hashes
are private; then nothing is recognised. A model that sees the lung box misses some copies of other quality:
the box moves a little, and the hashes are those of the cut image.
"""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestxray.data.images import MAX_DISTANCE, ImageSettings, perceptual_hashes
from chestxray.deployment.card import read_card

SEEN_FILE = "seen.npz"
SUBSETS = ("train", "val")


class SeenImages(NamedTuple):
    """Hashes of the training and validation images, ``uint8`` (N, 32), and the numbers of their subsets."""

    hashes: NDArray
    subsets: NDArray

    @classmethod
    def of(cls, images: dict[str, NDArray]) -> "SeenImages":
        """Describe ``{subset: pixels}``, each (N, size, size, 1) as the model takes them."""
        hashes = [perceptual_hashes(images[subset]) for subset in SUBSETS]
        numbers = np.repeat(np.arange(len(SUBSETS), dtype=np.uint8), [*map(len, hashes)])
        return cls(np.concatenate(hashes), numbers)

    def save(self, folder: Path) -> None:
        np.savez_compressed(folder / SEEN_FILE, **self._asdict())

    @classmethod
    def load(cls, folder: Path) -> "SeenImages | None":
        """Read the file of a model; None if there is none. A damaged one raises ValueError."""
        path = folder / SEEN_FILE
        if not path.is_file():
            return None
        try:
            with np.load(path, allow_pickle=False) as file:
                seen = cls(file["hashes"], file["subsets"])
            if not seen.hashes.dtype == seen.subsets.dtype == np.uint8 or seen.subsets.max() >= len(SUBSETS):
                raise ValueError("not the number of a subset")
            seen.hashes.reshape(*seen.subsets.shape, 32)  # raises for another shape
        except Exception:  # a damaged file can fail in any way
            raise ValueError(f"{SEEN_FILE} is damaged. Received: folder={str(folder)!r}") from None
        return seen

    def subsets_of(self, images: NDArray) -> list[str]:
        """For each of the images, as the model takes them: ``"train"``, ``"val"``, or empty if not seen."""
        known, found = np.ascontiguousarray(self.hashes.view(np.uint64).T), []
        for image, hashed in zip(images, perceptual_hashes(images).view(np.uint64)):
            distances = np.bitwise_count(known ^ hashed[:, np.newaxis]).sum(axis=0, dtype=np.uint16)
            nearest = int(distances.argmin()) if len(distances) else 0
            close = len(distances) and distances[nearest] <= MAX_DISTANCE and image.std() > 1  # not flat
            found.append(SUBSETS[self.subsets[nearest]] if close else "")
        return found


def seen_text(train: int, val: int, images: int) -> str:
    """One sentence on images that were seen in training; empty if none was."""
    if not train + val:
        return ""
    subsets = f"({train:,} for training, {val:,} for validation)"
    used = f"{train + val:,} of these {images:,} images were used to make the model {subsets}"
    return f"{used}: its scores on them are too good."


def seen_in_folder(
    model: Path, data_dir: str | Path, classes: tuple[str, str] | None
) -> tuple[dict[str, int], str]:
    """Count the images of a folder that a model was trained on; the counts by subset, and a sentence."""
    from chestxray.data.catalog import find_data, scan
    from chestxray.data.dataset import PixelStore

    card, seen, root = read_card(model), SeenImages.load(model), find_data(data_dir)
    if seen is None:
        return {}, f"The model {card['name']} has no {SEEN_FILE}: nothing is known."
    catalog = scan(root, classes)
    store = PixelStore.build(catalog, root, ImageSettings(**card["image"]))
    subsets = seen.subsets_of(store.images(store.readable(catalog)))
    counts = {subset: subsets.count(subset) for subset in SUBSETS}
    text = seen_text(**counts, images=len(subsets))
    return counts, text or f"None of these images was used to make the model {card['name']}."
