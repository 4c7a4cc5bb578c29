"""Data set for training: catalog, split and pixels, read by tf.data."""

import hashlib
import itertools
import json
import os
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
from chestxray.data.images import PIXELS_VERSION, ImageSettings, decode_image, fit, preprocess
from chestxray.data.lungs import MODEL_HASH, WHOLE, crop_window, lung_boxes, window_between
from chestxray.data.splits import make_split, overlap, split_hash
from chestxray.files import cached_folder, read_json, remove_folder, write_json
from chestxray.parallel import in_processes
from chestxray.schema import CLASSES, PREDICTED, SUBTYPES

if TYPE_CHECKING:
    import tensorflow as tf


def pass_order(count: int, shuffle: bool, seed: int, epoch: int) -> np.ndarray:
    """Positions of ``count`` items in a pass, ``int64``: shuffled by seed and epoch, or in order."""
    return np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)


def pass_batches(
    begin: Callable[[], Sequence[np.ndarray]],
    signature: "Sequence[tf.TensorSpec]",
    count: int,
    batch_size: int,
) -> "tf.data.Dataset":
    """tf.data pipeline over arrays that are made anew for every pass: tuples, one tensor an array.

    ``begin`` is called when a pass begins. It gives arrays of ``count`` rows, in the order of the pass, with
    the types and shapes of ``signature``. A batch holds ``batch_size`` rows; the last one may be smaller.

    ``tf.data.Dataset.from_generator`` is not used: with Python 3.11 or newer it makes the C library return
    all freed memory to the system. Each training step then pays for new pages, which takes as long as the
    computation of a small network (``benchmarks/training.py``). Autotuning is off: nothing here can be tuned,
    and the end of a pass could wait up to half a minute for the tuner.
    """
    import tensorflow as tf

    def typed() -> list[np.ndarray]:
        columns = zip(begin(), signature, strict=True)
        return [np.asarray(array, spec.dtype.as_numpy_dtype) for array, spec in columns]

    def rows(_: "tf.Tensor") -> "tf.data.Dataset":
        arrays = tf.numpy_function(typed, [], [spec.dtype for spec in signature])
        arrays = [tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, signature, strict=True)]
        return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)

    dataset = tf.data.Dataset.range(1).flat_map(rows)
    options = tf.data.Options()
    options.autotune.enabled = False
    cardinality = tf.data.experimental.assert_cardinality(-(-count // batch_size))
    return dataset.apply(cardinality).with_options(options)


class PixelStore:
    """Model-ready pixels of all images of a catalog.

    ``pixels`` is a read-only ``uint8`` memory map of shape (N, size, size), one row a content. ``failed``
    gives the reason for each content (sha256) that could not be decoded. ``settings`` says how the files
    became pixels. ``key`` is a hash of the contents and the settings.
    """

    def __init__(self, folder: Path):
        index = read_json(folder / "index.json")
        self.settings, self.key = ImageSettings(**index["settings"]), folder.name
        self.failed: dict[str, str] = index["failed"]
        self.versions: list | None = index.get("versions")  # of decoding and OpenCV
        self.pixels = np.load(folder / "pixels.npy", mmap_mode="r")
        self._contents = pd.Index(index["contents"])

    @classmethod
    def build(cls, catalog: pd.DataFrame, root: Path, settings: ImageSettings) -> "PixelStore":
        """Open the store of a catalog, and decode the images first if that was never finished.

        The catalog needs ``sha256``, and ``path`` relative to the data folder ``root``. Raises OSError if a
        file has vanished or cannot be reached; nothing is stored then. Images of other stores are copied from
        there. Stores that hold nothing else are removed.
        """
        first = catalog.drop_duplicates("sha256").sort_values("sha256")
        contents, paths = list(first["sha256"]), [str(root / path) for path in first["path"]]
        versions, superseded = [PIXELS_VERSION, cv2.__version__], []
        versions += [MODEL_HASH] if settings.resize == "lung_box" else []
        key = json.dumps([*versions, asdict(settings), contents], sort_keys=True)

        def fill(folder: Path) -> None:
            target, failed = folder / "pixels.npy", {}
            pixels = create_array(target, np.uint8, (len(paths), settings.size, settings.size))
            missing = {content: row for row, content in enumerate(contents)}
            for stored in folder.parent.glob("[!.]*"):
                try:
                    other = cls(stored)
                except (FileNotFoundError, ValueError, TypeError, KeyError):
                    continue  # removed meanwhile by another process, damaged, or of another version
                if (other.settings, other.versions) != (settings, versions):
                    continue
                for row, content in enumerate(other._contents):
                    if content in missing and content not in other.failed:
                        pixels[missing.pop(content)] = other.pixels[row]
                if set(other._contents) <= set(contents):
                    superseded.append(stored)
            items = [(row, paths[row]) for row in missing.values()]
            decode = partial(_decode, target, settings)
            for failures in in_processes(decode, items, "reading images"):
                failed |= {contents[row]: reason for row, reason in failures.items()}
            index = {"settings": asdict(settings), "contents": contents, "failed": failed}
            write_json(folder / "index.json", index | {"versions": versions})

        store = cls(cached_folder("pixels", hashlib.sha256(key.encode()).hexdigest()[:24], fill))
        for folder in superseded:
            remove_folder(folder)
        return store

    def readable(self, catalog: pd.DataFrame) -> pd.DataFrame:
        """Leave out the images that could not be decoded, and name them in a warning."""
        bad = catalog["sha256"].isin(self.failed)
        if bad.any():
            rows = catalog.loc[bad, ["path", "sha256"]].head().itertuples(index=False)
            named = "; ".join(f"{path}: {self.failed[content]}" for path, content in rows)
            warnings.warn(f"{bad.sum()} of {len(catalog)} images left out: {named}", stacklevel=2)
        return catalog[~bad].reset_index(drop=True)

    def images(self, table: pd.DataFrame) -> np.ndarray:
        """Pixels of some rows of the catalog (``path, sha256``), ``uint8`` (len(table), size, size, 1).

        Raises ValueError if an image is not in the store.
        """
        return self.pixels[self._rows(table)][..., np.newaxis]

    def _rows(self, table: pd.DataFrame) -> np.ndarray:
        rows = self._contents.get_indexer(table["sha256"])
        missing = table["path"][(rows < 0) | table["sha256"].isin(self.failed)]
        if len(missing):
            raise ValueError(
                f"{len(missing)} images are not in the pixel store. Received: path={missing.iloc[0]!r}"
            )
        return rows

    def dataset(
        self,
        table: pd.DataFrame,
        batch_size: int = 32,
        shuffle: bool = False,
        augment: Augmentation | None = None,
        seed: int = 0,
        epoch: Callable[[], int] | None = None,
        views: int = 0,
    ) -> "tf.data.Dataset":
        """tf.data pipeline over some rows of the catalog (``path``, ``label``, ``sha256``).

        It gives ``(images, labels)``: ``float32`` (B, size, size, 1) in 0–255 and ``float32`` (B,). It reads
        whole batches from the map; see :func:`pass_batches`.

        ``shuffle`` gives a new order on every pass (of indices: nothing is buffered), ``augment`` random
        views, for training only. ``seed`` decides both, together with the number of the pass. ``epoch`` gives
        this number when a pass begins; by default passes are counted. ``views`` is the number of different
        views, which the passes take in turn; 0: new ones on every pass.
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

        def read(rows: "tf.Tensor", labels: "tf.Tensor", *drawn: "tf.Tensor") -> tuple:
            images = tf.numpy_function(lambda batch: self.pixels[batch][..., np.newaxis], [rows], tf.uint8)
            images = tf.ensure_shape(images, (None, size, size, 1))
            return layer(images, *drawn) if drawn else tf.cast(images, tf.float32), labels

        return pass_batches(begin, signature, len(rows), batch_size).map(read).prefetch(2)


def create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """Create a ``.npy`` file and map it. A full disk is an OSError now, not a crash while writing."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def _decode(target: Path, settings: ImageSettings, rows: list[tuple[int, str]]) -> dict[int, str]:
    """Decode files into rows of the memory map, and return the reason for each row that failed."""
    pixels = np.load(target, mmap_mode="r+")
    failed = {}
    for row, path in rows:
        try:
            pixels[row] = preprocess(path, settings)
        except ValueError as error:
            failed[row] = str(error).split(". Received:")[0]
    pixels.flush()
    return failed


def _boxes(paths: list[Path]) -> np.ndarray:
    return lung_boxes(decode_image(path.read_bytes()) for path in paths)


def _warp(settings: ImageSettings, items: list[tuple[Path, np.ndarray]]) -> np.ndarray:
    images = (crop_window(decode_image(p.read_bytes(), settings.size), window) for p, window in items)
    return np.stack([fit(image, settings) for image in images])


@dataclass(frozen=True)
class XrayData:
    """All images of one experiment: a catalog with the column ``split``, and the pixels of its images.

    The argument ``subset`` of the methods is train, val or test. ``train_seed`` is the seed of order and
    augmentation in training. ``name`` is "synthetic" or the folder's name. ``classes`` are the names of the
    (negative, positive) class. ``root`` is the folder that the paths are relative to. Rule and seed of the
    split: see :func:`chestxray.data.splits.make_split`.
    """

    table: pd.DataFrame
    store: PixelStore
    split_rule: str
    split_seed: int
    train_seed: int
    name: str
    classes: tuple[str, str] = CLASSES
    root: Path = Path()

    @property
    def synthetic(self) -> bool:
        return self.name == "synthetic"

    @property
    def split_hash(self) -> str:
        return split_hash(self.table)

    @property
    def has_subtypes(self) -> bool:
        """Whether every image is known to be normal, bacterial or viral."""
        return bool(self.table["subtype"].isin(SUBTYPES).all())

    def subset(self, subset: str) -> pd.DataFrame:
        """Rows of one subset. Raises ValueError if there is no such subset."""
        rows = self.table[self.table["split"] == subset]
        if rows.empty:
            subsets = sorted(set(self.table["split"]))
            raise ValueError(f"subset must be one of {subsets}. Received: subset={subset!r}")
        return rows

    def images(self, subset: str) -> np.ndarray:
        """Pixels of one subset, ``uint8`` (N, size, size, 1), in the table's order."""
        return self.store.images(self.subset(subset))

    def reframed(
        self,
        subset: str,
        draw: int = 0,
        donors: str = "other",
        zoom_only: bool = True,
        boxes: np.ndarray | None = None,
    ) -> np.ndarray:
        """Pixels of one subset as another collimation would show them, ``uint8`` (N, size, size, 1).

        Every image is cut so that its lungs come as close as possible to the lung box of a random image
        (``draw`` is the seed) of the other class or, as a control, of the ``same`` class. Without
        ``zoom_only`` the lungs get that very box, and what lies outside repeats the edge: images that no
        detector gave. An image without a lung box stays as it is. ``boxes``, (N, 4), are NaN where there is
        none; by default the network estimates them.

        Raises ValueError for other donors, or if a class has no lung box at all.
        """
        if donors not in ("other", "same"):
            raise ValueError(f"donors must be 'other' or 'same'. Received: donors={donors!r}")
        rows = self.subset(subset)
        paths = [self.root / path for path in rows["path"]]
        if boxes is None:
            boxes = np.concatenate(list(in_processes(_boxes, paths, "finding lungs")))
        labels = rows["label"].to_numpy()
        known = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0.1  # not NaN, and wide enough for a window
        if len(set(labels[known])) < 2:
            message = "both classes need an image with a plausible lung box"
            raise ValueError(f"{message}. Received: subset={subset!r}, {known.sum()} of {len(rows)} images")
        rng = np.random.default_rng([draw, donors == "same"])
        wanted = labels if donors == "same" else 1 - labels
        chosen = [rng.choice(np.flatnonzero(known & (labels == label))) for label in wanted]
        windows = [window_between(*pair, zoom_only) for pair in zip(boxes, boxes[chosen])]
        warp = partial(_warp, self.store.settings)
        done = in_processes(warp, list(zip(paths, np.where(known[:, None], windows, WHOLE))), "re-framing")
        return np.concatenate(list(done))[..., np.newaxis]

    def targets(self, subset: str, outputs: int = 1) -> np.ndarray:
        """Targets of one subset for a network, ``float32`` (N,), in the table's order.

        With one output they are the label, with three 0 normal, 1 bacteria, 2 virus. With three, an image of
        another subtype raises ValueError.
        """
        rows = self.subset(subset)
        if outputs == 1:
            return rows["label"].to_numpy(np.float32)
        codes = rows["subtype"].map({name: code for code, name in enumerate(SUBTYPES)})
        if codes.isna().any():
            raise ValueError(
                f"three classes need a subtype ({', '.join(SUBTYPES)}) for every image. "
                f"Received: path={rows.loc[codes.isna(), 'path'].iloc[0]!r}"
            )
        return codes.to_numpy(np.float32)

    def dataset(
        self,
        subset: str,
        batch_size: int = 32,
        augment: Augmentation | None = None,
        shuffle: bool = False,
        epoch: Callable[[], int] | None = None,
        views: int = 0,
        outputs: int = 1,
    ) -> "tf.data.Dataset":
        """tf.data pipeline over one subset; see :meth:`PixelStore.dataset` and :meth:`targets`.

        Raises ValueError if another subset than train is augmented or shuffled, and as :meth:`targets` does.
        """
        if subset != "train" and (augment or shuffle):
            raise ValueError(f"only train may be augmented or shuffled. Received: subset={subset!r}")
        rows = self.subset(subset).assign(label=self.targets(subset, outputs))
        seed = self.train_seed
        return self.store.dataset(rows, batch_size, shuffle, augment, seed=seed, epoch=epoch, views=views)


def load_data(
    data_dir: str | Path | None = None,
    split: str = "",
    split_seed: int = 0,
    image: ImageSettings = ImageSettings(),
    classes: tuple[str, str] | None = None,
    catalog: pd.DataFrame | None = None,
    train_seed: int = 0,
) -> XrayData:
    """Scan a folder, decode every image once, and split.

    Args:
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        split, split_seed: Rule and seed of the split; see :func:`chestxray.data.splits.make_split`. The
            default is ``patient``, and ``given`` for a MedMNIST file, which names no patients.
        image: How files become pixels.
        classes: Names of the (negative, positive) class folders; by default the catalog's.
        catalog: The folder's catalog, for example from :func:`chestxray.data.catalog.from_table`; by default
            the folder is scanned. A warning says so if the split rule does not use the catalog's subsets.
        train_seed: Seed of order and augmentation in training.

    Raises FileNotFoundError if there is no such folder, and ValueError if the folder or the split cannot be
    used or a catalog comes without its folder.
    """
    if catalog is None:
        root = find_data(data_dir)
        split = split or ("given" if root.parent.parent.name == "medmnist" else "patient")
        catalog = scan(root, classes)
    elif data_dir is None:
        raise ValueError("a catalog's paths are relative to a folder: name it. Received: data_dir=None")
    else:
        root = Path(data_dir).resolve()  # not find_data: the paths are relative to this folder
        classes, split = classes or catalog.attrs.get("classes"), split or "patient"
        if split not in ("given", "official") and (catalog["official_split"] != "").any():
            message = f"split '{split}' draws a new split: the subsets that the list names are not used"
            warnings.warn(f"{message}. split='given' keeps them", stacklevel=2)
    if taken := [name for name in PREDICTED if name in catalog]:
        warnings.warn(f"columns with the names of predictions are left out: {', '.join(taken)}", stacklevel=2)
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
    seeds = {"split_seed": split_seed, "train_seed": train_seed}
    names = {"name": data_name(root), "classes": tuple(classes or CLASSES), "root": root}
    return XrayData(table=table, store=store, split_rule=split, **seeds, **names)


def data_name(root: Path) -> str:
    """Name of a data folder for figures and results: "synthetic" for phantoms."""
    note = root.parent / "README.txt"
    synthetic = note.is_file() and "SYNTHETIC" in note.read_text(encoding="utf-8", errors="replace")
    return "synthetic" if synthetic else root.name
