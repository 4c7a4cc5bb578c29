"""Passes: each lays its rows out anew, two at once stay apart, and freed memory stays with the process."""

import itertools
import os
import platform
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from chestxray.data.dataset import pass_batches, pass_order

SIGNATURE = [tf.TensorSpec((None,), tf.int64), tf.TensorSpec((None, 2), tf.float32)]


def counted(count=5, batch_size=2):
    """Pass n holds the numbers 10n, 10n + 1 … and pairs of them."""
    number = itertools.count()

    def begin():
        rows = 10 * next(number) + np.arange(count)
        return rows, np.stack([rows, -rows], axis=1).astype(np.float32)

    return pass_batches(begin, SIGNATURE, count, batch_size)


def test_order_is_the_items_own_or_that_of_seed_and_epoch():
    assert pass_order(4, False, 3, 8).tolist() == [0, 1, 2, 3]
    shuffled = pass_order(50, True, 3, 8)
    assert sorted(shuffled) == list(range(50))
    assert np.array_equal(shuffled, np.random.default_rng([3, 8]).permutation(50))
    assert not np.array_equal(shuffled, pass_order(50, True, 8, 3))


def test_each_pass_begins_anew():
    dataset = counted()
    assert int(dataset.cardinality()) == 3
    assert dataset.element_spec[1].shape.as_list() == [None, 2]
    for start in (0, 10):
        rows, pairs = (list(column) for column in zip(*dataset.as_numpy_iterator(), strict=True))
        assert [batch.tolist() for batch in rows] == [[start, start + 1], [start + 2, start + 3], [start + 4]]
        assert np.array_equal(np.concatenate(pairs)[:, 1], -np.concatenate(rows))


def test_arrays_take_the_types_of_the_signature():
    rows, pairs = next(
        iter(pass_batches(lambda: [np.arange(3, dtype=np.int32), np.ones((3, 2))], SIGNATURE, 3, 3))
    )
    assert (rows.dtype, pairs.dtype) == (tf.int64, tf.float32)


def test_tuning_stays_switched_off_in_what_is_derived():
    assert counted().map(lambda rows, pairs: pairs).prefetch(2).options().autotune.enabled is False


def test_two_passes_at_once_stay_apart():
    dataset = counted()
    first, second = iter(dataset), iter(dataset)
    seen = [next(batches)[0].numpy().tolist() for batches in (first, second, first, second)]
    assert seen == [[0, 1], [10, 11], [2, 3], [12, 13]]


def test_an_error_while_a_pass_is_laid_out_is_told():
    def begin():
        raise ValueError("no such view")

    with pytest.raises(tf.errors.InvalidArgumentError, match="ValueError: no such view"):
        list(pass_batches(begin, SIGNATURE, 5, 2))


# Eight times a block of 2 MB, which is 512 pages: taken, written to, freed.
COUNT = """
import resource, sys
import numpy as np
import tensorflow as tf
from chestxray.data.dataset import pass_batches

spec = tf.TensorSpec((None,), tf.float32)
if sys.argv[1] == "pass":
    list(pass_batches(lambda: [np.zeros(4, np.float32)], [spec], 4, 2))
else:
    list(tf.data.Dataset.from_generator(lambda: iter([np.zeros(2)]), output_signature=spec))
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(8):
    np.empty(2**21, np.uint8).fill(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc" or sys.version_info < (3, 11),
    reason="only with glibc and Python 3.11 or newer are freed pages handed back",
)
@pytest.mark.parametrize(("source", "low", "high"), [("pass", 0, 3 * 512), ("generator", 8 * 512, 9 * 512)])
def test_a_freed_block_is_used_again(source, low, high):
    # Dask, used by another test, leaves MALLOC_TRIM_THRESHOLD_ behind: the C library's own settings count.
    plain = {name: value for name, value in os.environ.items() if not name.startswith("MALLOC_")}
    run = subprocess.run(
        [sys.executable, "-c", COUNT, source], capture_output=True, text=True, check=True, env=plain
    )
    assert low <= int(run.stdout) <= high
