"""Freed memory is used again: counted in pages that the system has to hand out."""

import json
import platform
import subprocess
import sys

import pytest
import tiny

from chestxray.models import allocation, training

# Eight times a block of 2 MB, which is 512 pages: taken, written to, freed. Before, the C library is told
# what TensorFlow tells it (M_MMAP_THRESHOLD, 128 kB).
COUNT = """
import ctypes, json, resource
import numpy as np
from chestxray.models.allocation import keep_freed_memory

ctypes.CDLL(None).mallopt(-3, 128 * 1024)

def fresh_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.empty(2**21, np.uint8).fill(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

found = [fresh_pages(), keep_freed_memory(), fresh_pages()]
ctypes.CDLL(None).mallopt(-3, 128 * 1024)  # a pipeline that is made later
print(json.dumps([*found, fresh_pages()]))
"""


def test_a_freed_block_is_used_again():
    if platform.libc_ver()[0] != "glibc":
        pytest.skip("not the C library of GNU")
    run = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True)
    returned, known, kept, still_kept = json.loads(run.stdout)
    assert known
    assert returned >= 8 * 512
    assert kept < 2 * 512
    assert still_kept < 2 * 512


def test_another_c_library_is_left_alone(monkeypatch):
    monkeypatch.setattr(allocation.ctypes, "CDLL", lambda name: object())
    assert not allocation.keep_freed_memory()


def test_training_asks_for_it(data, monkeypatch):
    class Asked(Exception):
        pass

    def ask():
        raise Asked
    monkeypatch.setattr(training, "keep_freed_memory", ask)
    with pytest.raises(Asked):
        training.train(tiny.network(), data, tiny.STILL)
