"""Data set of an experiment: catalog, split, stored pixels, and tf.data pipelines."""

import hashlib
import itertools
import json
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestxray.data.augmentation import Augmentation, view_layer
from chestxray.data.catalog import find_data, scan
from chestxray.data.images import PIXELS_VERSION, ImageSettings, decode_image, fit, preprocess
from chestxray.data.lungs import MODEL_HASH, WHOLE, crop_window, lung_boxes, window_between
from chestxray.data.splits import make_split, overlap, split_hash
from chestxray.files import cached_folder, read_json, remove_folder, write_json
from chestxray.parallel import in_processes
from chestxray.schema import CLASSES, PREDICTED, SUBTYPES, check

if TYPE_CHECKING:
    import tensorflow as tf


def pass_order(count: int, shuffle: bool, seed: int, epoch: int) -> NDArray:
    """Return the order of ``count`` items in a pass, ``int64``: shuffled by seed and epoch, or 0, 1, …"""
    return np.random.default_rng([seed, epoch]).permutation(count) if shuffle else np.arange(count)


def pass_batches(
    begin: Callable[[], Sequence[NDArray]], signature: "Sequence[tf.TensorSpec]", count: int, batch_size: int
) -> "tf.data.Dataset":
    """Make a tf.data pipeline over arrays that are new in each pass; a batch is a tuple, a tensor per array.

    ``begin`` is called when a pass begins. It returns arrays of ``count`` rows, in the order of the pass,
    with the types and shapes of ``signature``. A batch has ``batch_size`` rows; the last one may be smaller.
    """
    # tf.data.Dataset.from_generator makes the C library return all freed memory (Python 3.11 or newer), which
    # takes as long as a training step of a small network: benchmarks/training.py.
    import tensorflow as tf

    def typed() -> list[NDArray]:
        columns = zip(begin(), signature, strict=True)
        return [np.asarray(array, spec.dtype.as_numpy_dtype) for array, spec in columns]

    def rows(_: "tf.Tensor") -> "tf.data.Dataset":
        arrays = tf.numpy_function(typed, [], [spec.dtype for spec in signature])
        arrays = [tf.ensure_shape(array, spec.shape) for array, spec in zip(arrays, signature, strict=True)]
        return tf.data.Dataset.from_tensor_slices(tuple(arrays)).batch(batch_size)

    dataset = tf.data.Dataset.range(1).flat_map(rows)
    options = tf.data.Options()
    options.autotune.enabled = False  # the end of a pass could wait half a minute
    cardinality = tf.data.experimental.assert_cardinality(-(-count // batch_size))
    return dataset.apply(cardinality).with_options(options)


class PixelStore:
    """Preprocessed pixels of all images of a catalog, in the cache.

    ``pixels`` is a read-only ``uint8`` memory map (N, size, size), a row per content (sha256). ``failed`` has
    the reason for each content that could not be decoded. ``key`` is a hash of contents and settings.
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
        """Open the store of a catalog (``sha256``, and ``path`` relative to ``root``), or create it.

        Images that are in other stores are copied, and stores that have only these images are removed. Raises
        OSError if a file no longer exists or cannot be read; then nothing is stored.
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
                    continue  # removed by another process, damaged, or of another version
                if (other.settings, other.versions) != (settings, versions):
                    continue
                for row, content in enumerate(other._contents):
                    if content in missing and content not in other.failed:
                        pixels[missing.pop(content)] = other.pixels[row]
                if set(other._contents) <= set(contents):
                    superseded.append(stored)
            items = [(row, paths[row]) for row in missing.values()]
            for failures in in_processes(partial(_decode, target, settings), items, "reading images"):
                failed |= {contents[row]: reason for row, reason in failures.items()}
            index = {"settings": asdict(settings), "contents": contents, "failed": failed}
            write_json(folder / "index.json", index | {"versions": versions})

        store = cls(cached_folder("pixels", hashlib.sha256(key.encode()).hexdigest()[:24], fill))
        for folder in superseded:
            remove_folder(folder)
        return store

    def readable(self, catalog: pd.DataFrame) -> pd.DataFrame:
        """Return the catalog without images that could not be decoded; a warning names them."""
        failed = catalog["sha256"].isin(self.failed)
        if failed.any():
            rows = catalog.loc[failed, ["path", "sha256"]].head().itertuples(index=False)
            examples = "; ".join(f"{path}: {self.failed[content]}" for path, content in rows)
            warnings.warn(f"{failed.sum()} of {len(catalog)} images left out: {examples}", stacklevel=2)
        return catalog[~failed].reset_index(drop=True)

    def images(self, table: pd.DataFrame) -> NDArray:
        """Return the pixels of rows of the catalog, ``uint8`` (N, size, size, 1). ValueError: not stored."""
        return self.pixels[self._rows(table)][..., np.newaxis]

    def _rows(self, table: pd.DataFrame) -> NDArray:
        rows = self._contents.get_indexer(table["sha256"])
        missing = table["path"][(rows < 0) | table["sha256"].isin(self.failed)]
        if len(missing):
            raise ValueError(f"{len(missing)} images are not stored. Received: path={missing.iloc[0]!r}")
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
        """Make a tf.data pipeline over rows of the catalog (``path``, ``label``, ``sha256``).

        Batches are ``(images, labels)``: ``float32`` (B, size, size, 1) in 0–255 and ``float32`` (B,).
        ``shuffle`` changes the order in each pass. ``augment`` gives random views, for training only. Both
        depend on ``seed`` and the number of the pass, which ``epoch`` returns when a pass begins; by default
        passes are counted. The passes use ``views`` different views in turn; 0 means new views in each pass.
        """
        import tensorflow as tf

        rows, size = self._rows(table), self.settings.size
        paths, labels = list(table["path"]), table["label"].to_numpy(np.float32)
        count = itertools.count()

        def begin() -> list[NDArray]:
            number = epoch() if epoch else next(count)
            view = number % views if views else number
            columns = [rows, labels, *([augment.draw(paths, size, view, seed)] if augment else [])]
            order = pass_order(len(rows), shuffle, seed, number)
            return [column[order] for column in columns]

        signature = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None,), tf.float32)]
        if augment:
            signature.append(tf.TensorSpec((None, 10), tf.float32))
            layer = view_layer()

        def read(rows: "tf.Tensor", labels: "tf.Tensor", *parameters: "tf.Tensor") -> tuple:
            images = tf.numpy_function(lambda batch: self.pixels[batch][..., np.newaxis], [rows], tf.uint8)
            images = tf.ensure_shape(images, (None, size, size, 1))
            return layer(images, *parameters) if parameters else tf.cast(images, tf.float32), labels

        return pass_batches(begin, signature, len(rows), batch_size).map(read).prefetch(2)


def create_array(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """Create and map a ``.npy`` file. A full disk raises OSError here; later it would end the process."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, os.fstat(file.fileno()).st_size)
    return array


def _decode(target: Path, settings: ImageSettings, rows: list[tuple[int, str]]) -> dict[int, str]:
    """Decode files into rows of the memory map. Return the reason for each row that failed."""
    pixels = np.load(target, mmap_mode="r+")
    failed = {}
    for row, path in rows:
        try:
            pixels[row] = preprocess(path, settings)
        except ValueError as error:
            failed[row] = str(error).split(". Received:")[0]
    pixels.flush()
    return failed


def _boxes(paths: list[Path]) -> NDArray:
    return lung_boxes(decode_image(path.read_bytes()) for path in paths)


def _crop(settings: ImageSettings, items: list[tuple[Path, NDArray]]) -> NDArray:
    images = (crop_window(decode_image(path.read_bytes(), settings.size), window) for path, window in items)
    return np.stack([fit(image, settings) for image in images])


@dataclass(frozen=True)
class XrayData:
    """All images of an experiment: a catalog with the column ``split``, and the pixels of its images.

    The argument ``subset`` of the methods is train, val or test. ``name`` is "synthetic" or the folder's
    name, ``root`` the folder to which the paths are relative. For the others see :func:`load_data`.
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
        """Return the rows of a subset. Raises ValueError if there is no such subset."""
        subsets = sorted(set(self.table["split"]))
        check(subset in subsets, f"subset must be one of {subsets}", subset=subset)
        return self.table[self.table["split"] == subset]

    def images(self, subset: str) -> NDArray:
        """Return the pixels of a subset, ``uint8`` (N, size, size, 1), in the table's order."""
        return self.store.images(self.subset(subset))

    def reframed(
        self,
        subset: str,
        draw: int = 0,
        donors: str = "other",
        zoom_only: bool = True,
        boxes: NDArray | None = None,
    ) -> NDArray:
        """Return the pixels of a subset in the collimation of other images, ``uint8`` (N, size, size, 1).

        Each image is cropped so that its lung box comes as close as possible to that of a random image of the
        ``other`` class or, as a control, of the ``same`` class; ``draw`` is the seed. Without ``zoom_only``
        it becomes exactly that box, with repeated edges. ``boxes``, (N, 4), are NaN for an image without a
        lung box, which is not changed; by default the network estimates them. Raises ValueError for other
        donors, or if a class has no lung box.
        """
        check(donors in ("other", "same"), "donors must be 'other' or 'same'", donors=donors)
        rows = self.subset(subset)
        paths = [self.root / path for path in rows["path"]]
        if boxes is None:
            boxes = np.concatenate(list(in_processes(_boxes, paths, "finding lungs")))
        labels = rows["label"].to_numpy()
        usable = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) > 0.1  # not NaN, and large enough for a window
        if len(set(labels[usable])) < 2:
            message = "both classes must have an image with a plausible lung box"
            raise ValueError(f"{message}. Received: subset={subset!r}, {usable.sum()} of {len(rows)} images")
        rng = np.random.default_rng([draw, donors == "same"])
        donor_labels = labels if donors == "same" else 1 - labels
        donor_rows = [rng.choice(np.flatnonzero(usable & (labels == label))) for label in donor_labels]
        windows = [window_between(*pair, zoom_only) for pair in zip(boxes, boxes[donor_rows])]
        windows = np.where(usable[:, np.newaxis], windows, WHOLE)
        crop = partial(_crop, self.store.settings)
        images = in_processes(crop, list(zip(paths, windows)), "re-framing")
        return np.concatenate(list(images))[..., np.newaxis]

    def targets(self, subset: str, outputs: int = 1) -> NDArray:
        """Return the targets of a subset for a network, ``float32`` (N,), in the table's order.

        With one output: the labels. With three: 0 normal, 1 bacteria, 2 virus. ValueError: another subtype.
        """
        rows = self.subset(subset)
        if outputs == 1:
            return rows["label"].to_numpy(np.float32)
        codes = pd.Index(SUBTYPES).get_indexer(rows["subtype"])
        message = f"with three outputs every image must have a subtype ({', '.join(SUBTYPES)})"
        check((codes >= 0).all(), message, path=rows["path"].iloc[codes.argmin()])
        return codes.astype(np.float32)

    def dataset(
        self, subset: str, batch_size: int = 32, outputs: int = 1, **options: Any
    ) -> "tf.data.Dataset":
        """Make a pipeline over a subset: :meth:`PixelStore.dataset`. Shuffle or augment only train."""
        changed = options.get("augment") or options.get("shuffle")
        check(subset == "train" or not changed, "only train may be augmented or shuffled", subset=subset)
        rows = self.subset(subset).assign(label=self.targets(subset, outputs))
        return self.store.dataset(rows, batch_size, seed=self.train_seed, **options)


def load_data(
    data_dir: str | Path | None = None,
    split: str = "",
    split_seed: int = 0,
    image: ImageSettings = ImageSettings(),
    classes: tuple[str, str] | None = None,
    catalog: pd.DataFrame | None = None,
    train_seed: int = 0,
) -> XrayData:
    """Scan a folder, decode and store its images, and split them.

    Args:
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        split, split_seed: Rule and seed of the split; see :func:`chestxray.data.splits.make_split`. The
            default is ``patient``, and ``given`` for a MedMNIST file, which has no patients.
        image: Settings of the preprocessing.
        classes: Names of the (negative, positive) class folders; by default those of the catalog.
        catalog: From :func:`chestxray.data.catalog.from_table`; by default the folder is scanned.
        train_seed: Seed of order and augmentation in training.

    Raises FileNotFoundError without the folder, and ValueError if folder, split or catalog cannot be used.
    """
    if catalog is None:
        root = find_data(data_dir)
        split = split or ("given" if root.parent.parent.name == "medmnist" else "patient")
        catalog = scan(root, classes)
    elif data_dir is None:
        raise ValueError("data_dir must be the folder of the catalog's paths. Received: data_dir=None")
    else:
        root = Path(data_dir).resolve()  # not find_data: the paths are relative to this folder
        classes, split = classes or catalog.attrs.get("classes"), split or "patient"
        if split not in ("given", "official") and (catalog["official_split"] != "").any():
            message = f"split '{split}' draws a new split and does not use the subsets of the table"
            warnings.warn(f"{message}; split='given' uses them", stacklevel=2)
    if reserved := [name for name in PREDICTED if name in catalog]:
        warnings.warn(f"columns named like predictions are left out: {', '.join(reserved)}", stacklevel=2)
        catalog = catalog.drop(columns=reserved)
    store = PixelStore.build(catalog, root, image)
    table = make_split(store.readable(catalog), split, split_seed)
    if split != "patient":
        affected = overlap(table).set_index("key")["test_images_affected"]
        print(
            f"split '{split}': {affected['group']} of {(table['split'] == 'test').sum()} test images share a "
            f"strict patient group with other subsets, {affected['group_conservative']} a conservative one"
        )
    name, classes = data_name(root), tuple(classes or CLASSES)
    return XrayData(table, store, split, split_seed, train_seed, name, classes, root)


def data_name(root: Path) -> str:
    """Return the name of a data folder for figures and results: "synthetic" for phantoms."""
    readme = root.parent / "README.txt"
    synthetic = readme.is_file() and "SYNTHETIC" in readme.read_text(encoding="utf-8", errors="replace")
    return "synthetic" if synthetic else root.name
