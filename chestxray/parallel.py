"""Work on many items in several processes: joblib's, or Dask's on several machines."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import current_process
from pathlib import Path
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

_FEW = 64  # so many items are done before processes have started
_PIECE = 16  # items a process takes at a time
_IDLE = 5  # seconds without work after which a process ends: nobody ends it when this one is killed
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}  # each: they are as many as the cores


def in_processes(
    work: Callable[[Sequence[Item]], Result], items: Sequence[Item], saying: str
) -> Iterator[Result]:
    """Give all items to a function, some at a time, and show how far it is.

    Up to 64 items are worked on in this process, and all where it may start no
    others (in a pool of multiprocessing). The others are started for this call
    alone, import what ``work`` needs and nothing else, and are gone when it
    ends; when this process is killed, within a minute.

    Args:
        work: A function of a module, or a partial of one.
        items: What it is given, in pieces.
        saying: What stands before the progress bar, which only a terminal shows.

    Yields:
        Its results, in the order in which they are finished.
    """
    from joblib import cpu_count
    from joblib.externals.loky import ProcessPoolExecutor, as_completed
    from tqdm import tqdm

    if len(items) <= _FEW or current_process().daemon:
        yield work(items)
        return
    pieces = [items[start : start + _PIECE] for start in range(0, len(items), _PIECE)]
    with ProcessPoolExecutor(min(cpu_count(), len(pieces)), timeout=_IDLE, env=_ONE_THREAD) as pool:
        sizes = {pool.submit(work, piece): len(piece) for piece in pieces}
        try:
            with tqdm(total=len(items), desc=saying, unit="image", disable=None) as bar:
                for done in as_completed(sizes):
                    bar.update(sizes[done])
                    yield done.result()
        finally:
            for one in sizes:
                one.cancel()


@contextlib.contextmanager
def workers(backend: str | None) -> Iterator[None]:
    """Let joblib run its tasks somewhere else.

    Args:
        backend: Name of a joblib backend: ``loky``, ``threading``, one that
            was registered, or ``dask``, which connects to the scheduler that
            ``DASK_SCHEDULER_ADDRESS`` names, or starts workers on this
            machine. None leaves the choice to joblib.

    Raises:
        ModuleNotFoundError: dask[distributed] is not installed.
        ValueError: Unknown backend, or Dask workers with several threads: a
            task changes what belongs to its whole process.
    """
    from joblib import parallel_config

    with contextlib.ExitStack() as stack:
        if backend == "dask":
            from dask import config
            from distributed import Client

            elsewhere = config.get("scheduler-address", None) or os.environ.get("DASK_SCHEDULER_ADDRESS")
            client = stack.enter_context(Client(elsewhere) if elsewhere else Client(threads_per_worker=1))
            if any(worker["nthreads"] > 1 for worker in client.scheduler_info()["workers"].values()):
                raise ValueError(
                    "the workers must have one thread each (dask worker --nthreads 1). "
                    f"Received: scheduler={client.scheduler.address!r}"
                )
        if backend is not None:
            stack.enter_context(parallel_config(backend=backend))
        yield


@contextlib.contextmanager
def native_messages_to(path: str | Path) -> Iterator[None]:
    """Send what this process and its kernels write to file descriptor 2 to a log instead."""
    sys.stderr.flush()
    terminal = os.dup(2)
    with open(path, "w", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
