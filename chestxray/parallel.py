"""Parallel work in several processes, with joblib or Dask."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import current_process
from pathlib import Path

from joblib import cpu_count, parallel_config
from joblib.externals.loky import ProcessPoolExecutor
from tqdm import tqdm

from chestxray.schema import check, mistake

_SERIAL_ITEMS, _CHUNK_SIZE = 64, 16  # to start processes takes longer than the work on 64 items
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # because each core has a process


def in_processes(work: Callable, items: Sequence, description: str) -> Iterator:
    """Yield ``work(chunk)`` for chunks of the items, in order, from processes that end with this call.

    Few items are processed in this process, and all items if it may not start others. If this process is
    killed, the others end within a minute (those of joblib's generators do not).
    """
    if len(items) <= _SERIAL_ITEMS or current_process().daemon:
        yield work(items)
        return
    chunks = [items[start : start + _CHUNK_SIZE] for start in range(0, len(items), _CHUNK_SIZE)]
    pool = ProcessPoolExecutor(min(cpu_count(), len(chunks)), timeout=5, env=_ONE_THREAD)  # seconds idle
    with pool, tqdm(total=len(items), desc=description, unit="image", disable=None) as bar:
        for chunk, result in zip(chunks, pool.map(work, chunks)):
            bar.update(len(chunk))
            yield result


@contextlib.contextmanager
def workers(backend: str | None) -> Iterator[None]:
    """Run joblib's tasks on one of its backends, or on ``dask``; with None joblib chooses.

    Dask uses the scheduler at ``DASK_SCHEDULER_ADDRESS``, or starts workers on this machine. Raises
    ModuleNotFoundError without dask[distributed], and ValueError for an unknown backend or for Dask workers
    with several threads (a task changes settings of its whole process).
    """
    with contextlib.ExitStack() as stack:
        if backend == "dask":
            from dask import config
            from distributed import Client

            address = config.get("scheduler-address", None) or os.environ.get("DASK_SCHEDULER_ADDRESS")
            client = stack.enter_context(Client(address) if address else Client(threads_per_worker=1))
            single = all(threads == 1 for threads in client.nthreads().values())
            message = "Dask workers must have one thread each (dask worker --nthreads 1)"
            check(single, message, scheduler=client.scheduler.address)
        if backend is not None:
            with mistake("no such backend of joblib", ValueError, backend=backend):
                stack.enter_context(parallel_config(backend=backend))
        yield


@contextlib.contextmanager
def native_messages_to(path: str | Path) -> Iterator[None]:
    """Write the messages of this process and its kernels on file descriptor 2 to a log file."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(path, "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


@contextlib.contextmanager
def without_native_messages() -> Iterator[None]:
    """Import TensorFlow in this block without the lines that it writes when it starts."""
    if "tensorflow" in sys.modules:
        yield
        return
    with native_messages_to(os.devnull):
        yield
        if tensorflow := sys.modules.get("tensorflow"):
            tensorflow.config.list_physical_devices()  # it writes a line if there is no GPU
