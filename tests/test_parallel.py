"""Chunks in processes: no item is lost or done twice, errors arrive, the caller's own work goes on."""

import multiprocessing
import os
import signal
import subprocess
import sys
from functools import partial

import psutil
import pytest
from joblib import Parallel, delayed

from chestxray.parallel import in_processes


def children():
    return [
        child
        for child in psutil.Process().children(recursive=True)
        if child.status() != psutil.STATUS_ZOMBIE and "resource_tracker" not in " ".join(child.cmdline())
    ]


@pytest.mark.parametrize(("count", "chunks"), [(0, 1), (64, 1), (65, 5), (200, 13)])
def test_every_item_is_worked_on_once(count, chunks):
    sums = list(in_processes(sum, list(range(count)), "adding"))
    assert len(sums) == chunks
    assert sum(sums) == count * (count - 1) // 2


def test_an_error_arrives_as_it_was_raised_and_leaves_no_process():
    before = children()
    with pytest.raises(ValueError, match="invalid literal for int.*'no number'"):
        list(in_processes(partial(map_to_list, int), ["1"] * 99 + ["no number"], "reading"))
    assert not [child for child in children() if child not in before]


def map_to_list(function, items):
    return [function(item) for item in items]


def test_a_caller_that_breaks_off_leaves_no_process():
    before = children()
    results = in_processes(sum, list(range(400)), "adding")
    assert next(results) > 0
    results.close()
    assert not [child for child in children() if child not in before]


def threads(items):
    return os.environ.get("OPENBLAS_NUM_THREADS"), os.environ.get("OMP_NUM_THREADS")


def test_each_process_keeps_to_one_core(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert set(in_processes(threads, list(range(100)), "asking")) == {("1", "1")}
    assert threads([]) == ("7", None)  # as it was here


def add(count):
    return sum(in_processes(sum, list(range(count)), "adding"))


def test_a_process_that_may_have_no_children_does_the_work_itself():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(add, (100,)) == 4950


KILLED = """
import os, signal
from chestxray.parallel import in_processes
for _ in in_processes(sum, list(range(400)), "adding"):
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_the_processes_of_a_killed_one_end():
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED], stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    killed.communicate(timeout=180)  # ends only when nobody holds the pipe any more
    assert killed.returncode == -signal.SIGKILL


def test_work_of_the_caller_goes_on():
    # A pool that is shared, or shut down for all, would leave the caller waiting.
    numbers = Parallel(n_jobs=2, return_as="generator")(delayed(abs)(-number) for number in range(40))
    assert next(numbers) == 0
    assert sum(in_processes(sum, list(range(100)), "adding")) == 4950
    assert list(numbers) == list(range(1, 40))
