"""Work on many items, shared out to processes on all cores."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item, Result = TypeVar("Item"), TypeVar("Result")

_CHUNK = 64  # items a process takes at a time


def in_processes(work: Callable[[Sequence[Item]], Result], items: Sequence[Item],
                 saying: str) -> Iterator[Result]:
    """Give all items to a function, some at a time, and show how far it is.

    The processes import what ``work`` needs and nothing else. Few items are
    worked on in this process.

    Args:
        work: A function of a module, or a partial of one.
        items: What it is given, in pieces.
        saying: What stands before the progress bar, which only a terminal shows.

    Yields:
        Its results, in the order in which they are finished.
    """
    from joblib import Parallel, delayed
    from joblib.externals.loky import get_reusable_executor
    from tqdm import tqdm

    chunks = [items[start:start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    workers = min(os.cpu_count() or 1, len(chunks))
    with tqdm(total=len(items), desc=saying, unit="image", disable=None) as bar:
        parallel = Parallel(n_jobs=workers, return_as="generator_unordered")
        for count, result in parallel(delayed(_counted)(work, chunk) for chunk in chunks):
            bar.update(count)
            yield result
    if workers > 1:
        get_reusable_executor().shutdown()


def _counted(work: Callable[[Sequence[Item]], Result], items: Sequence[Item]) -> tuple[int, Result]:
    return len(items), work(items)
