"""Activations of the frozen layers of a network, computed once and stored, to train the other layers."""

import contextlib
import hashlib
import itertools
import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf
from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import XrayData, create_array, pass_batches, pass_order
from chestxray.files import cache_dir, remove_debris, whole_folder
from chestxray.models.builders import as_float32
from chestxray.models.checkpoint import fingerprint, wiring

FEATURES_VERSION = 1
_BATCH = 32
_RESERVED = 2 * 10**9  # bytes of disk space that stay free
_ONEDNN_BF16 = "auto_mixed_precision_onednn_bfloat16"


def find_cut(model: keras.Model) -> keras.layers.Layer | None:
    """Find the last frozen layer of a model that is a single cut point: all paths go through it.

    It and all layers before it have the same output in each step, unlike Dropout. Returns None if no layer
    with weights but the preprocessing is frozen.
    """
    layers, sources = model.operations, wiring(model)
    usable = [not isinstance(x, keras.Model) and isinstance(x.output, keras.KerasTensor) for x in layers]
    first = next((number for number, layer in enumerate(layers) if _differs_in_training(layer)), 0)
    last_use = {source: number for number, group in enumerate(sources) for source in group}
    cut, live, weights, weights_at_cut = None, [], 0, 0
    for number, layer in enumerate(layers[:first]):
        weights += 0 if isinstance(layer, keras.layers.Normalization) else len(layer.weights)
        live = [source for source in live if last_use[source] > number] + [number]
        if len(live) == 1 and usable[number]:
            cut, weights_at_cut = layer, weights
    return cut if weights_at_cut else None


def _differs_in_training(layer: keras.layers.Layer) -> bool:
    if any(map(_differs_in_training, getattr(layer, "layers", ()))):  # layers of a nested model
        return True
    moving = isinstance(layer, keras.layers.BatchNormalization) and layer.trainable
    random = hasattr(layer, "seed_generator") and getattr(layer, "rate", 1) > 0
    return bool(layer.trainable_weights) or moving or random


def frozen_graph(model: keras.Model, bf16: bool = False) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """Convert a model to a fast function from images to a list of its outputs.

    The input is (N, H, W, 1) in 0–255. With ``bf16``, a float32 model is also computed in bfloat16 on a CPU:
    oneDNN converts a float32 copy of the model, with fewer conversions than the policy of Keras.
    """
    bf16 = bf16 or any(layer.compute_dtype == "bfloat16" for layer in model.layers)
    rewrite = bf16 and not tf.config.list_physical_devices("GPU")
    copy = as_float32(model) if rewrite else model
    traced = tf.function(lambda images: keras.tree.flatten(copy(images, training=False)))
    graph = traced.get_concrete_function(tf.TensorSpec(model.input.shape, tf.float32))
    # Constants fuse convolution and normalisation; without it they are slower (VGG16: 48, not 79 images/s).
    if any(isinstance(layer, keras.layers.BatchNormalization) for layer in model.layers):
        graph = convert_variables_to_constants_v2(graph)

    def compute(images: tf.Tensor) -> list[tf.Tensor]:
        previous = tf.config.optimizer.get_experimental_options().get(_ONEDNN_BF16, False)
        tf.config.optimizer.set_experimental_options({_ONEDNN_BF16: rewrite})
        try:
            return list(graph(images))
        finally:
            tf.config.optimizer.set_experimental_options({_ONEDNN_BF16: previous})

    compute.model = copy  # the graph has only weak references to its variables
    return compute


class Features:
    """Stored activations of all training and validation images.

    An entry on disk is one view of all images of one subset, computed when it is first needed: a ``float16``
    memory map. ``rest`` is the model from the first cut to the logit; it shares its layers with the whole
    model. ``bytes`` is the size of all views on disk, ``entries`` are their folders, which may not exist yet.
    """

    def __init__(
        self,
        model: keras.Model,
        data: XrayData,
        cuts: Sequence[keras.layers.Layer],
        augmentation: Augmentation | None,
        views: int,
    ):
        """Plan the activations at the layers ``cuts``: that of this phase of training, then later ones."""
        self.data, self.cuts, self.augmentation = data, list(cuts), augmentation
        self.views = views if augmentation else 1
        self.rest = keras.Model(cuts[0].output, model.output, name=model.name)
        self.rest.dtype_policy = model.dtype_policy  # decides whether compile() scales the loss
        self._model = model
        self._maps: dict[tuple[str, int | None], np.ndarray] = {}
        self._graphs: dict[tuple[int, ...], Callable] = {}
        devices = len(tf.config.list_physical_devices())
        versions = {"keras": keras.__version__, "tensorflow": tf.__version__, "devices": devices}
        identities = [fingerprint(keras.Model(model.input, cut.output), versions) for cut in cuts]
        root, self._folders = cache_dir("features"), {}
        for subset in ("train", "val"):
            rows = data.subset(subset)
            contents = [data.store.key, list(rows["path"]), list(rows["sha256"])]
            views_ = range(self.views) if subset == "train" and augmentation else [None]
            for number, view in itertools.product(range(len(cuts)), views_):
                augmented = None if view is None else [asdict(augmentation), view, data.train_seed]
                key = json.dumps([FEATURES_VERSION, identities[number], *contents, augmented])
                self._folders[subset, number, view] = root / hashlib.sha256(key.encode()).hexdigest()[:24]
        self.entries = list(self._folders.values())
        images = self.views * len(data.subset("train")) + len(data.subset("val"))
        self.bytes = sum(2 * images * math.prod(cut.output.shape[1:]) for cut in cuts)

    def _view(self, subset: str, epoch: int) -> int | None:
        return epoch % self.views if subset == "train" and self.augmentation else None

    def prepare(self, subset: str, epoch: int = 0) -> None:
        """Compute the view of an epoch, ``epoch % views``, for train or val, if it is not on disk."""
        view = self._view(subset, epoch)
        folders = [self._folders[subset, number, view] for number in range(len(self.cuts))]
        missing = tuple(number for number, folder in enumerate(folders) if _open(folder) is None)
        if missing:
            self._compute(subset, view, missing)
        # An open file stays readable if another process clears the cache.
        self._maps[subset, view] = _open(folders[0])

    def _compute(self, subset: str, view: int | None, missing: tuple[int, ...]) -> None:
        """Compute the ``missing`` entries of one view in one pass."""
        outputs = [self.cuts[number].output for number in missing]
        if missing not in self._graphs:
            self._graphs[missing] = frozen_graph(keras.Model(self._model.input, outputs))
        rows, name = self.data.subset(subset), subset if view is None else f"view {view + 1} of {self.views}"
        print(f"computing the frozen layers for {len(rows)} images ({name})", flush=True)
        augment, seed = None if view is None else self.augmentation, self.data.train_seed
        images = self.data.store.dataset(rows, _BATCH, augment=augment, seed=seed, epoch=lambda: view)
        with contextlib.ExitStack() as stack:
            maps = []
            for number, output in zip(missing, outputs):
                folder = stack.enter_context(whole_folder(self._folders[subset, number, view]))
                maps.append(create_array(folder / "features.npy", np.float16, (len(rows), *output.shape[1:])))
            for batch, (pixels, _) in enumerate(images):
                for target, activations in zip(maps, self._graphs[missing](pixels), strict=True):
                    half = tf.cast(activations, tf.float16)  # several times faster than NumPy
                    if not tf.reduce_all(tf.math.is_finite(half)):
                        message = "activations must fit into float16, otherwise train with disk_gb=0"
                        raise ValueError(f"{message}. Received: largest={np.abs(activations).max()}")
                    target[batch * _BATCH : batch * _BATCH + len(half)] = half
            for target in maps:
                target.flush()

    def dataset(
        self, subset: str, batch_size: int = 32, shuffle: bool = False, epoch: Callable[[], int] = lambda: 0
    ) -> tf.data.Dataset:
        """Pipeline of ``(activations, labels)``; ``epoch`` returns the epoch, whose view is prepared."""
        labels = self.data.targets(subset, self.rest.output.shape[-1])
        tensor = self.cuts[0].output

        def begin() -> tuple[np.ndarray, ...]:
            number = epoch()
            order = pass_order(len(labels), shuffle, self.data.train_seed, number)
            return order, labels[order], np.full(len(order), number)

        def activations(rows: np.ndarray, number: np.ndarray) -> np.ndarray:
            return self._maps[subset, self._view(subset, int(number[0]))][rows]

        def read(rows: tf.Tensor, labels: tf.Tensor, number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            half = tf.numpy_function(activations, [rows, number], tf.float16)
            return tf.cast(tf.ensure_shape(half, tensor.shape), tensor.dtype), labels

        signature = [tf.TensorSpec((None,), kind) for kind in (tf.int64, tf.float32, tf.int64)]
        return pass_batches(begin, signature, len(labels), batch_size).map(read).prefetch(2)

    def make_room(self, disk_gb: float) -> None:
        """Remove the least recently used other entries until all views fit into ``disk_gb``."""
        remove_debris(cache_dir("features"))
        limit, others = self._limit(disk_gb)
        taken = sum(size for _, size in others)
        for folder, size in others:
            if self.bytes + taken > limit:
                taken -= size
                shutil.rmtree(folder, ignore_errors=True)

    def _limit(self, disk_gb: float) -> tuple[float, list[tuple[Path, int]]]:
        """Maximum size in bytes, and the other entries with their sizes, the least recently used first."""
        entries = []
        for folder in cache_dir("features").glob("[!.]*"):
            with contextlib.suppress(FileNotFoundError):  # another process may remove it
                size = sum(path.stat().st_size for path in folder.rglob("*"))
                entries.append((folder.stat().st_mtime, folder, size))
        room = shutil.disk_usage(cache_dir("features")).free + sum(size for *_, size in entries) - _RESERVED
        others = [(folder, size) for _, folder, size in sorted(entries) if folder not in self.entries]
        return min(1e9 * disk_gb, room), others


def plan_features(
    model: keras.Model,
    data: XrayData,
    cuts: Sequence[keras.layers.Layer | None],
    augmentation: Augmentation | None,
    views: int,
    disk_gb: float,
) -> Features | None:
    """Decide whether a phase is trained on stored activations, and print their size.

    ``cuts`` are results of :func:`find_cut`: first that of this phase, then those of later phases. Only later
    ones before the first are stored, because the layers after it still change. ``views`` and ``disk_gb``: see
    :class:`TrainSettings`. Returns None if no layer is frozen, ``views`` is 0 with augmentation, or the disk
    is too small.
    """
    if cuts[0] is None or (augmentation and not views):
        return None
    order = model.operations
    cuts = list(dict.fromkeys(cut for cut in cuts if cut and order.index(cut) <= order.index(cuts[0])))
    features = Features(model, data, cuts, augmentation, views)
    limit, _ = features._limit(disk_gb)
    names, size = ", ".join(cut.name for cut in cuts), features.bytes / 1e9
    text = f"stored activations at {names}: {size:.2f} GB, {features.views} views of the training images"
    if features.bytes <= limit:
        print(text)
        return features
    text += f": too much for {limit / 1e9:.2f} GB"
    if len(cuts) > 1:
        print(f"{text}; the later phase has to compute its own")
        return plan_features(model, data, cuts[:1], augmentation, views, disk_gb)
    print(f"{text}; the whole network is computed in every epoch")
    return None


def _open(folder: Path) -> np.ndarray | None:
    """Open an entry and update its time of use; None if it is missing or damaged."""
    with contextlib.suppress(FileNotFoundError, ValueError, EOFError):
        features = np.load(folder / "features.npy", mmap_mode="r")
        os.utime(folder)
        return features
    return None
