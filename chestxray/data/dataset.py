"""A folder of X-rays made ready for training: table, split and pixels in one."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from chestxray.data.augmentation import Augmentation
from chestxray.data.catalog import CLASSES, SUBTYPES, scan
from chestxray.data.images import ImageSettings
from chestxray.data.location import find_data
from chestxray.data.pixels import PixelStore
from chestxray.data.splits import make_split, overlap, split_hash

if TYPE_CHECKING:
    import tensorflow as tf

PREDICTED = ("sharpness", "logit", "probability", *(f"logit_{name}" for name in SUBTYPES))
"""Columns of predictions that no list can bring along."""


@dataclass(frozen=True)
class XrayData:
    """All images of one experiment.

    Attributes:
        table: Catalog with the column ``split``.
        store: Pixels of the table's images.
        rule: Split rule.
        seed: Seed of the split.
        name: "synthetic", or the folder's name.
        classes: Names of the (negative, positive) class.
    """

    table: pd.DataFrame
    store: PixelStore
    rule: str
    seed: int
    name: str
    classes: tuple[str, str] = CLASSES

    @property
    def synthetic(self) -> bool:
        return self.name == "synthetic"

    @property
    def split_hash(self) -> str:
        return split_hash(self.table)

    def part(self, split: str) -> pd.DataFrame:
        """Rows of one part: train, val or test.

        Raises:
            ValueError: There is no such part.
        """
        rows = self.table[self.table["split"] == split]
        if rows.empty:
            raise ValueError(
                f"split must be one of {sorted(set(self.table['split']))}. Received: split={split!r}"
            )
        return rows

    @property
    def has_subtypes(self) -> bool:
        """Whether every image is known to be normal, bacterial or viral."""
        return bool(self.table["subtype"].isin(SUBTYPES).all())

    def targets(self, split: str, outputs: int = 1) -> np.ndarray:
        """What a network with so many logits learns to say about one part.

        Args:
            split: train, val or test.
            outputs: 1: the label; 3: 0 normal, 1 bacteria, 2 virus.

        Returns:
            ``float32`` (N,), in the table's order.

        Raises:
            ValueError: An image has none of the three subtypes.
        """
        rows = self.part(split)
        if outputs == 1:
            return rows["label"].to_numpy(np.float32)
        number = rows["subtype"].map({name: number for number, name in enumerate(SUBTYPES)})
        if number.isna().any():
            raise ValueError(
                f"three classes need a subtype ({', '.join(SUBTYPES)}) for every image. "
                f"Received: path={rows.loc[number.isna(), 'path'].iloc[0]!r}"
            )
        return number.to_numpy(np.float32)

    def dataset(
        self,
        split: str,
        batch_size: int = 32,
        augment: Augmentation | None = None,
        shuffle: bool = False,
        epoch: Callable[[], int] | None = None,
        views: int = 0,
        outputs: int = 1,
    ) -> tf.data.Dataset:
        """tf.data pipeline over one part; see :meth:`PixelStore.dataset`.

        Args:
            outputs: See :meth:`targets`.

        Raises:
            ValueError: ``augment`` or ``shuffle`` was asked for a part that
                scores are computed on, or see :meth:`targets`.
        """
        if split != "train" and (augment or shuffle):
            raise ValueError(f"only train may be augmented or shuffled. Received: split={split!r}")
        rows = self.part(split).assign(label=self.targets(split, outputs))
        return self.store.dataset(rows, batch_size, shuffle, augment, self.seed, epoch, views)

    def images(self, split: str) -> np.ndarray:
        """Pixels of one part, ``uint8`` (N, size, size, 1), in the table's order."""
        return self.store.images(self.part(split))


def data_name(root: Path) -> str:
    """Name of a data folder for figures and results: "synthetic" for phantoms."""
    note = root.parent / "README.txt"
    synthetic = note.is_file() and "SYNTHETIC" in note.read_text(encoding="utf-8", errors="replace")
    return "synthetic" if synthetic else root.name


def load_data(
    data_dir: str | Path | None = None,
    split: str = "patient",
    seed: int = 0,
    image: ImageSettings = ImageSettings(),
    classes: tuple[str, str] | None = None,
    catalog: pd.DataFrame | None = None,
) -> XrayData:
    """Scan a folder, decode every image once, and split.

    Args:
        data_dir: See :func:`chestxray.data.location.find_data`.
        split: Rule; see :func:`chestxray.data.splits.make_split`.
        seed: Seed of the split, and of order and augmentation in training.
        image: How files become pixels.
        classes: Names of the (negative, positive) class folders; by default
            those of the catalog.
        catalog: The folder's catalog, for example from
            :func:`chestxray.data.catalog.from_table`; by default the folder is
            scanned. That its parts are not used by this rule gives a warning.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: The folder or the split cannot be used, or a catalog comes
            without its folder.
    """
    if catalog is None:
        root = find_data(data_dir)
        catalog = scan(root, classes)
    elif data_dir is None:
        raise ValueError("a catalog's paths are relative to a folder: name it. Received: data_dir=None")
    else:
        root = Path(data_dir).resolve()  # the paths are relative to it, whatever lies below
        classes = classes or catalog.attrs.get("classes")
        if split not in ("given", "official") and (catalog["official_split"] != "").any():
            warnings.warn(
                f"split '{split}' cuts anew: the parts that the list names are not used. "
                "split='given' keeps them",
                stacklevel=2,
            )
    if taken := [name for name in PREDICTED if name in catalog]:
        warnings.warn(
            f"columns that predictions have themselves are left out: {', '.join(taken)}", stacklevel=2
        )
        catalog = catalog.drop(columns=taken)
    store = PixelStore.build(catalog, root, image)
    table = make_split(store.readable(catalog), split, seed)
    if split != "patient":
        shared = overlap(table).set_index("key")["test_images_affected"]
        print(
            f"split '{split}': {shared['group']} of {(table['split'] == 'test').sum()} test images share "
            f"a strict patient group with training or validation, {shared['group_conservative']} a "
            "conservative one"
        )
    return XrayData(table, store, split, seed, data_name(root), tuple(classes or CLASSES))
