"""PixelStore: every image decoded and preprocessed once, on disk.

The store is one ``uint8`` memory map in the user's cache. Its key is made of
the files' contents and the settings, so it can never serve other pixels than
the ones asked for; it appears under its name only when it is whole.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np

from chestxray.data.augmentation import Augmentation, view_layer
from chestxray.data.images import PIXELS_VERSION, ImageSettings, preprocess
from chestxray.data.passes import pass_batches, pass_order
from chestxray.files import cached_folder, read_json, write_json
from chestxray.processes import in_processes

if TYPE_CHECKING:
    import pandas as pd
    import tensorflow as tf


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
            :func:`chestxray.data.passes.pass_batches`.
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
