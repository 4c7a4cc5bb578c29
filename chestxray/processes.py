"""Work on many items, shared out to processes on all cores."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from multiprocessing import current_process
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
