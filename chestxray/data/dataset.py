"""A folder of X-rays made ready for training: table, split and pixels in one."""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pandas as pd

from chestxray.data.augmentation import Augmentation, view_layer
from chestxray.data.catalog import find_data, scan
from chestxray.data.images import PIXELS_VERSION, ImageSettings, preprocess
from chestxray.data.splits import make_split, overlap, split_hash
from chestxray.files import cached_folder, read_json, write_json
from chestxray.parallel import in_processes
from chestxray.schema import CLASSES, PREDICTED, SUBTYPES

if TYPE_CHECKING:
    import pandas as pd
    import tensorflow as tf


@dataclass(frozen=True)
class XrayData:
    """All images of one experiment.

    Attributes:
        table: Catalog with the column ``split``.
        store: Pixels of the table's images.
        split_rule: Split rule.
        split_seed: Seed of the split.
        train_seed: Seed of order and augmentation in training.
        name: "synthetic", or the folder's name.
        classes: Names of the (negative, positive) class.
    """

    table: pd.DataFrame
    store: PixelStore
    split_rule: str
    split_seed: int
    train_seed: int
    name: str
    classes: tuple[str, str] = CLASSES

    @property
    def synthetic(self) -> bool:
        return self.name == "synthetic"

    @property
    def split_hash(self) -> str:
        return split_hash(self.table)

    def subset(self, subset: str) -> pd.DataFrame:
        """Rows of one subset: train, val or test.

        Raises:
            ValueError: There is no such subset.
        """
        rows = self.table[self.table["split"] == subset]
        if rows.empty:
            raise ValueError(
                f"subset must be one of {sorted(set(self.table['split']))}. Received: subset={subset!r}"
            )
        return rows

    @property
    def has_subtypes(self) -> bool:
        """Whether every image is known to be normal, bacterial or viral."""
        return bool(self.table["subtype"].isin(SUBTYPES).all())

    def targets(self, subset: str, outputs: int = 1) -> np.ndarray:
        """What a network with so many logits learns to say about one subset.

        Args:
            subset: train, val or test.
            outputs: 1: the label; 3: 0 normal, 1 bacteria, 2 virus.

        Returns:
            ``float32`` (N,), in the table's order.

        Raises:
            ValueError: An image has none of the three subtypes.
        """
        rows = self.subset(subset)
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
        subset: str,
        batch_size: int = 32,
        augment: Augmentation | None = None,
        shuffle: bool = False,
        epoch: Callable[[], int] | None = None,
        views: int = 0,
        outputs: int = 1,
    ) -> tf.data.Dataset:
        """tf.data pipeline over one subset; see :meth:`PixelStore.dataset`.

        Args:
            outputs: See :meth:`targets`.

        Raises:
            ValueError: ``augment`` or ``shuffle`` was asked for a subset that
                scores are computed on, or see :meth:`targets`.
        """
        if subset != "train" and (augment or shuffle):
            raise ValueError(f"only train may be augmented or shuffled. Received: subset={subset!r}")
        rows = self.subset(subset).assign(label=self.targets(subset, outputs))
        return self.store.dataset(
            rows, batch_size, shuffle, augment, seed=self.train_seed, epoch=epoch, views=views
        )

    def images(self, subset: str) -> np.ndarray:
        """Pixels of one subset, ``uint8`` (N, size, size, 1), in the table's order."""
        return self.store.images(self.subset(subset))


def data_name(root: Path) -> str:
    """Name of a data folder for figures and results: "synthetic" for phantoms."""
    note = root.parent / "README.txt"
    synthetic = note.is_file() and "SYNTHETIC" in note.read_text(encoding="utf-8", errors="replace")
    return "synthetic" if synthetic else root.name


def load_data(
    data_dir: str | Path | None = None,
    split: str = "patient",
    split_seed: int = 0,
    image: ImageSettings = ImageSettings(),
    classes: tuple[str, str] | None = None,
    catalog: pd.DataFrame | None = None,
    train_seed: int = 0,
) -> XrayData:
    """Scan a folder, decode every image once, and split.

    Args:
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        split: Rule; see :func:`chestxray.data.splits.make_split`.
        split_seed: Seed of the split.
        image: How files become pixels.
        classes: Names of the (negative, positive) class folders; by default
            those of the catalog.
        catalog: The folder's catalog, for example from
            :func:`chestxray.data.catalog.from_table`; by default the folder is
            scanned. That its subsets are not used by this rule gives a warning.
        train_seed: Seed of order and augmentation in training.

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
    table = make_split(store.readable(catalog), split, split_seed)
    if split != "patient":
        shared = overlap(table).set_index("key")["test_images_affected"]
        print(
            f"split '{split}': {shared['group']} of {(table['split'] == 'test').sum()} test images share "
            f"a strict patient group with training or validation, {shared['group_conservative']} a "
            "conservative one"
        )
    return XrayData(
        table=table,
        store=store,
        split_rule=split,
        split_seed=split_seed,
        train_seed=train_seed,
        name=data_name(root),
        classes=tuple(classes or CLASSES),
    )


class PixelStore:
    """Model-ready pixels of all images of a catalog.

    Attributes:
        settings: How the files became pixels.
        pixels: ``uint8`` memory map of shape (N, size, size), one row a
            content, read-only.
        failed: Contents (sha256) that could not be decoded, with the reason.
        key: Identifies the pixels: made of the files' contents and the settings.
    """

    def __init__(self, folder: Path, settings: ImageSettings):
        index = read_json(folder / "index.json")
        self.settings, self.key = settings, folder.name
        self.failed: dict[str, str] = index["failed"]
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        self._row = {content: row for row, content in enumerate(index["contents"])}

    @classmethod
    def build(cls, catalog: pd.DataFrame, root: Path, settings: ImageSettings) -> PixelStore:
        """Open the store of a catalog; decode the images first if that was never finished.

        Uses all cores, in processes that do not import TensorFlow.

        Args:
            catalog: Needs ``path`` and ``sha256``.
            root: Folder to which the paths are relative.
            settings: See :class:`ImageSettings`.

        Raises:
            OSError: A file has vanished or cannot be reached; that says nothing
                about its content, so nothing is kept.
        """
        first = catalog.drop_duplicates("sha256").sort_values("sha256")
        contents, paths = list(first["sha256"]), [str(root / path) for path in first["path"]]
        key = json.dumps([PIXELS_VERSION, cv2.__version__, asdict(settings), contents], sort_keys=True)

        def decode(unfinished: Path) -> None:
            failed = _decode_all(unfinished / "pixels.npy", paths, settings)
            write_json(
                unfinished / "index.json",
                {
                    "settings": asdict(settings),
                    "contents": contents,
                    "failed": {contents[row]: reason for row, reason in failed.items()},
                },
            )

        return cls(cached_folder("pixels", hashlib.sha256(key.encode()).hexdigest()[:24], decode), settings)

    def readable(self, catalog: pd.DataFrame) -> pd.DataFrame:
        """Leave out the images that could not be decoded, naming them in a warning."""
        bad = catalog["sha256"].isin(self.failed)
        if bad.any():
            named = "; ".join(
                f"{path}: {self.failed[content]}"
                for path, content in catalog.loc[bad, ["path", "sha256"]].head().itertuples(index=False)
            )
            warnings.warn(f"{bad.sum()} of {len(catalog)} images left out: {named}", stacklevel=2)
        return catalog[~bad].reset_index(drop=True)

    def images(self, table: pd.DataFrame) -> np.ndarray:
        """Read the pixels of the given rows.

        Args:
            table: Rows of the catalog; needs ``sha256``.

        Returns:
            ``uint8`` array of shape (len(table), size, size, 1), in the
            table's order.

        Raises:
            ValueError: An image is not in the store.
        """
        return self.pixels[self._rows(table)][..., np.newaxis]

    def _rows(self, table: pd.DataFrame) -> np.ndarray:
        missing = [
            path
            for path, content in zip(table["path"], table["sha256"], strict=True)
            if content not in self._row or content in self.failed
        ]
        if missing:
            raise ValueError(
                f"{len(missing)} images are not in the pixel store. Received: path={missing[0]!r}"
            )
        return np.array([self._row[content] for content in table["sha256"]], dtype=np.int64)

    def dataset(
        self,
        table: pd.DataFrame,
        batch_size: int = 32,
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        views: int = 0,
    ) -> tf.data.Dataset:
        """Give a tf.data pipeline over the given rows, reading whole batches from the map.

        Args:
            table: Rows of the catalog; needs ``path``, ``label``, ``sha256``.
            batch_size: Images a batch; the last batch may be smaller.
            shuffle: New order on every pass (of indices: nothing is buffered).
            augment: Random views; for training only.
            seed: Together with the number of the pass it decides order and views.
            epoch: Tells the number of the pass when one begins; by default
                passes are counted.
            views: Number of different views, which the passes take in turn;
                0: new ones on every pass.

        Returns:
            Dataset of ``(images, labels)``: ``float32`` (B, size, size, 1) in
            0–255 and ``float32`` (B,). Its option ``autotune`` is off, also
            in what is derived from it; see
            :func:`chestxray.data.dataset.pass_batches`.
        """
        import tensorflow as tf

        rows, size = self._rows(table), self.settings.size
        paths, labels = list(table["path"]), table["label"].to_numpy(np.float32)
        count = itertools.count()

        def begin() -> list[np.ndarray]:
            number = epoch() if epoch else next(count)
            view = number % views if views else number
            columns = [rows, labels, *([augment.draw(paths, size, view, seed)] if augment else [])]
            order = pass_order(len(rows), shuffle, seed, number)
            return [column[order] for column in columns]

        signature = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.float32)]
        if augment:
            signature.append(tf.TensorSpec((None, 10), tf.float32))
            layer = view_layer()

        def read(rows: tf.Tensor, labels: tf.Tensor, *drawn: tf.Tensor) -> tuple:
            images = tf.numpy_function(lambda some: self.pixels[some][..., np.newaxis], [rows], tf.uint8)
            images = tf.ensure_shape(images, (None, size, size, 1))
            return layer(images, *drawn) if drawn else tf.cast(images, tf.float32), labels

        return pass_batches(begin, signature, len(rows), batch_size).map(read).prefetch(2)


def _decode_all(target: Path, paths: list[str], settings: ImageSettings) -> dict[int, str]:
    """Fill a new memory map with the images; returns row → reason for what failed."""
    np.lib.format.open_memmap(
        target, mode="w+", dtype=np.uint8, shape=(len(paths), settings.size, settings.size)
    ).flush()
    failed: dict[int, str] = {}
    decode = partial(_decode, target, settings)
    for problems in in_processes(decode, list(enumerate(paths)), "reading images"):
        failed |= problems
    return failed


def _decode(target: Path, settings: ImageSettings, rows: list[tuple[int, str]]) -> dict[int, str]:
    pixels = np.load(target, mmap_mode="r+")
    failed = {}
    for row, path in rows:
        try:
            pixels[row] = preprocess(path, settings)
        except ValueError as error:
            failed[row] = str(error).split(". Received:")[0]
    pixels.flush()
    return failed


def pass_order(count: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """Say in which order a pass takes ``count`` items.

    Args:
        count: Number of items.
        shuffle: Order by ``seed`` and ``epoch`` instead of the items' own.

    Returns:
        ``int64`` (count,): position of each item.
    """
    return np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)


def pass_batches(
    begin: Callable[[], Sequence[np.ndarray]], signature: Sequence[tf.TensorSpec], count: int, batch_size: int
) -> tf.data.Dataset:
    """tf.data pipeline that lays its rows out anew on every pass.

    It does without ``tf.data.Dataset.from_generator``: with Python 3.11 or
    newer, that has the C library hand all freed memory back to the system,
    for the whole process, and each training step then pays for fresh pages,
    which takes as long as the computation of a small network
    (``benchmarks/training.py``). And nothing is tuned while it runs: here is
    nothing to tune, and the end of a pass would now and then wait for the
    sleeping tuner, up to half a minute.

    Args:
        begin: Called when a pass begins; gives arrays of ``count`` rows, in
            the order of the pass.
        signature: Type and shape of each array.
        batch_size: Rows a batch; the last batch may be smaller.

    Returns:
        Dataset of tuples, one tensor an array.
    """
    import tensorflow as tf

    def typed() -> list[np.ndarray]:
        return [
            np.asarray(array, spec.dtype.as_numpy_dtype)
            for array, spec in zip(begin(), signature, strict=True)
        ]

    def rows(_: tf.Tensor) -> tf.data.Dataset:
        arrays = tf.numpy_function(typed, [], [spec.dtype for spec in signature])
        arrays = [tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, signature, strict=True)]
        return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)

    dataset = tf.data.Dataset.range(1).flat_map(rows)
    plain = tf.data.Options()
    plain.autotune.enabled = False
    return dataset.apply(tf.data.experimental.assert_cardinality(-(-count // batch_size))).with_options(plain)
