"""The frozen part of a network, computed once.

Layers that do not learn give the same activations for the same picture in
every epoch. They are computed once, kept on disk, and the rest of the network
is trained from there. The rest shares its layers with the whole network, so
that what is saved in the end is an ordinary Keras model.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import (
    convert_variables_to_constants_v2,
)

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import XrayData
from chestxray.data.pixels import batch_order
from chestxray.files import cache_dir, whole_folder
from chestxray.models.builders import as_float32
from chestxray.models.checkpoint import fingerprint

FEATURES_VERSION = 1
_BATCH = 32
_SPARE = 2 * 10**9  # bytes of the disk that are never taken
_ONEDNN_BF16 = "auto_mixed_precision_onednn_bfloat16"


def find_cut(model: keras.Model) -> keras.layers.Layer | None:
    """Find the last layer before the first one that learns through which everything passes.

    Dropout counts as learning, because it gives something else in every step.

    Args:
        model: A flat model.

    Returns:
        The layer, or None when neither it nor a layer in front of it has
        weights other than those of the preprocessing: nothing is saved then.
    """
    layers = model.operations
    first = next((number for number, layer in enumerate(layers) if _differs_in_training(layer)), 0)
    last_use = {id(tensor): number for number, layer in enumerate(layers) for tensor in _inputs(layer)}
    cut, live, weights, weights_at_cut = None, [], 0, 0
    for number, layer in enumerate(layers[:first]):
        weights += 0 if isinstance(layer, keras.layers.Normalization) else len(layer.weights)
        live = [tensor for tensor in live if last_use[id(tensor)] > number] + [layer.output]
        if len(live) == 1:
            cut, weights_at_cut = layer, weights
    return cut if weights_at_cut else None


def _differs_in_training(layer: keras.layers.Layer) -> bool:
    moving = isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    return bool(layer.trainable_weights) or moving or hasattr(layer, "seed_generator")


def _inputs(layer: keras.layers.Layer) -> list[keras.KerasTensor]:
    return [] if isinstance(layer, keras.layers.InputLayer) else keras.tree.flatten(layer.input)


def frozen_graph(model: keras.Model) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Turn a model into a function that computes it as fast as the processor can.

    On a processor a model that computes in bfloat16 is taken in float32 and
    left to oneDNN's own rewriting, which converts less back and forth than
    Keras' policy. With batch normalisation the weights become constants, so
    that convolution, normalisation and activation fuse; without it, constants
    only cost time (VGG16: 48 images/s instead of 79).

    Args:
        model: From images to one or several tensors; is not changed.

    Returns:
        A function from images, ``float32`` (N, H, W, 1) in 0–255, to a list
        of tensors, one an output.
    """
    rewrite = (any(layer.compute_dtype == "bfloat16" for layer in model.layers)
               and not tf.config.list_physical_devices("GPU"))
    copy = as_float32(model) if rewrite else model
    graph = tf.function(
        lambda images: keras.tree.flatten(copy(images, training=False)),
        input_signature=[tf.TensorSpec(model.input.shape, tf.float32)]).get_concrete_function()
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        graph = convert_variables_to_constants_v2(graph)

    def compute(images: tf.Tensor) -> list[tf.Tensor]:
        with _graph_option(_ONEDNN_BF16, rewrite):
            return list(graph(images))

    compute.model = copy  # the graph holds its variables only weakly
    return compute


@contextlib.contextmanager
def _graph_option(name: str, value: bool) -> Iterator[None]:
    former = tf.config.optimizer.get_experimental_options().get(name, False)
    tf.config.optimizer.set_experimental_options({name: value})
    try:
        yield
    finally:
        tf.config.optimizer.set_experimental_options({name: former})


class Features:
    """Activations of the frozen part of a network for all training and validation images.

    Each view of each image is computed when it is first asked for. An entry
    on disk is one view of all images of one part: a ``float16`` memory map,
    keyed by the frozen layers and weights, the pixels, the images' paths and
    the view, so that it can never serve anything else. bfloat16 activations
    fit into float16 without loss.

    Attributes:
        rest: The model from the first cut to the logit; shares its layers
            with the whole model.
        bytes: What all views take on disk.
        entries: The folders of all views, whether they exist or not.
    """

    def __init__(self, model: keras.Model, data: XrayData, cuts: Sequence[keras.layers.Layer],
                 augmentation: Augmentation | None, views: int):
        """Describe the features; nothing is computed yet.

        Args:
            model: A flat model.
            data: Its training and validation images.
            cuts: Layers whose output is kept. Training starts from the
                first; the others are kept for later phases, which saves a
                second pass over the frozen layers.
            augmentation: Random views of the training images, or None.
            views: Number of views of each training image.
        """
        self.data, self.cuts, self.augmentation = data, list(cuts), augmentation
        self.views = views if augmentation else 1
        self.rest = keras.Model(cuts[0].output, model.output, name=model.name)
        self._model = model
        self._graphs: dict[tuple[int, ...], Callable] = {}
        identities = [fingerprint(keras.Model(model.input, cut.output), {
            "tensorflow": tf.__version__, "devices": len(tf.config.list_physical_devices())}) for cut in cuts]
        root, self._folders = cache_dir("features"), {}
        for part in ("train", "val"):
            rows = data.part(part)
            views_ = range(self.views) if part == "train" and augmentation else [None]
            for number, view in itertools.product(range(len(cuts)), views_):
                drawn = None if view is None else [asdict(augmentation), view, data.seed]
                key = json.dumps([FEATURES_VERSION, identities[number], data.store.key, list(rows["path"]),
                                  list(rows["sha256"]), drawn])
                self._folders[part, number, view] = root / hashlib.sha256(key.encode()).hexdigest()[:24]
        self.entries = list(self._folders.values())
        images = self.views * len(data.part("train")) + len(data.part("val"))
        self.bytes = sum(2 * images * math.prod(cut.output.shape[1:]) for cut in cuts)

    def _view(self, part: str, epoch: int) -> int | None:
        return epoch % self.views if part == "train" and self.augmentation else None

    def prepare(self, part: str, epoch: int = 0) -> None:
        """Compute the view of an epoch, unless it is on disk.

        Args:
            part: train or val.
            epoch: Number of the epoch; its view is ``epoch % views``.
        """
        view = self._view(part, epoch)
        missing = tuple(number for number in range(len(self.cuts))
                        if _open(self._folders[part, number, view]) is None)
        if not missing:
            return
        if missing not in self._graphs:
            self._graphs[missing] = frozen_graph(
                keras.Model(self._model.input, [self.cuts[number].output for number in missing]))
        rows, what = self.data.part(part), part if view is None else f"view {view + 1} of {self.views}"
        print(f"computing the frozen layers for {len(rows)} images ({what})", flush=True)
        images = self.data.store.dataset(rows, _BATCH, epoch=lambda: view, seed=self.data.seed,
                                         augment=None if view is None else self.augmentation)
        with contextlib.ExitStack() as stack:
            folders = [stack.enter_context(whole_folder(self._folders[part, number, view]))
                       for number in missing]
            maps = [np.lib.format.open_memmap(
                        folder / "features.npy", "w+", np.float16,
                        (len(rows), *self.cuts[number].output.shape[1:]))
                    for folder, number in zip(folders, missing, strict=True)]
            for batch, (pixels, _) in enumerate(images):
                for target, found in zip(maps, self._graphs[missing](pixels), strict=True):
                    half = tf.cast(found, tf.float16)  # several times faster than NumPy
                    if not tf.reduce_all(tf.math.is_finite(half)):
                        raise ValueError("activations do not fit into float16; train with views=0. "
                                         f"Received: largest={np.abs(found).max()}")
                    target[batch * _BATCH:batch * _BATCH + len(half)] = half
            for target in maps:
                target.flush()

    def dataset(self, part: str, batch_size: int = 32, shuffle: bool = False,
                epoch: Callable[[], int] = lambda: 0) -> tf.data.Dataset:
        """tf.data pipeline from the first cut; see :meth:`chestxray.data.pixels.PixelStore.dataset`.

        Args:
            part: train or val.
            batch_size: Images a batch; the last batch may be smaller.
            shuffle: New order in every epoch, the same as that of the pixels.
            epoch: Tells the number of the epoch when one begins; its view
                must be prepared.

        Returns:
            Dataset of ``(activations, labels)``.
        """
        labels = self.data.part(part)["label"].to_numpy(np.float32)

        def batches() -> Iterator[tuple[np.ndarray, np.ndarray]]:
            number = epoch()
            features = _open(self._folders[part, 0, self._view(part, number)])
            for some in batch_order(len(labels), batch_size, shuffle, self.data.seed, number):
                yield features[some], labels[some]

        tensor = self.cuts[0].output
        signature = (tf.TensorSpec(tensor.shape, tf.float16), tf.TensorSpec((None,), tf.float32))
        dataset = tf.data.Dataset.from_generator(batches, output_signature=signature)
        dataset = dataset.apply(tf.data.experimental.assert_cardinality(-(-len(labels) // batch_size)))
        return dataset.map(lambda found, labels: (tf.cast(found, tensor.dtype), labels)).prefetch(2)


def plan_features(model: keras.Model, data: XrayData, cuts: Sequence[keras.layers.Layer | None],
                  augmentation: Augmentation | None, views: int, disk_gb: float) -> Features | None:
    """Decide whether a phase is trained from stored activations, and say what they take.

    Entries of the cache that have not been used for longest make room.

    Args:
        model, data, augmentation: See :class:`Features`.
        cuts: From :func:`find_cut`: the phase's own, then those of later ones.
        views: Stored views of each training image; 0 asks for fresh ones in
            every epoch, through the whole network.
        disk_gb: Most that the cache of features may take, in 10⁹ bytes.

    Returns:
        The features, or None when the whole network has to be computed: no
        layer is frozen, fresh views are wanted, or the disk is too small.
    """
    if cuts[0] is None or augmentation and not views:
        return None
    cuts = list(dict.fromkeys(cut for cut in cuts if cut is not None))
    features = Features(model, data, cuts, augmentation, views)
    root = cache_dir("features")
    others = sorted((folder for folder in root.glob("[!.]*") if folder not in features.entries),
                    key=lambda folder: folder.stat().st_mtime)
    taken = sum(map(_size, others))
    room = shutil.disk_usage(root).free + sum(map(_size, features.entries)) + taken - _SPARE
    limit = min(1e9 * disk_gb, room)
    text = (f"stored activations at {', '.join(cut.name for cut in cuts)}: {features.bytes / 1e9:.2f} GB, "
            f"{features.views} views of the training images")
    if features.bytes > limit:
        print(f"{text}: too much for {limit / 1e9:.2f} GB", end="")
        if len(cuts) > 1:
            print("; the later phase has to compute its own")
            return plan_features(model, data, cuts[:1], augmentation, views, disk_gb)
        print("; the whole network is computed in every epoch")
        return None
    print(text)
    for folder in others:
        if features.bytes + taken > limit:
            taken -= _size(folder)
            shutil.rmtree(folder, ignore_errors=True)
    return features


def _open(folder: Path) -> np.ndarray | None:
    """Open an entry and note its use; None when it is missing or damaged."""
    try:
        features = np.load(folder / "features.npy", mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):
        return None
    os.utime(folder)
    return features


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
