"""Passes over a table: an order and whatever belongs to its rows, laid out anew when a pass begins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import tensorflow as tf


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
