"""Where parallel work runs: on this machine's cores, or on those of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def workers(backend: str | None) -> Iterator[None]:
    """Connect to the workers of a joblib backend that needs it.

    Args:
        backend: Name of a joblib backend. ``"dask"`` connects to the
            scheduler that ``DASK_SCHEDULER_ADDRESS`` names, or starts workers
            on this machine; the others need nothing.

    Raises:
        ModuleNotFoundError: dask[distributed] is not installed.
    """
    if backend != "dask":
        yield
        return
    from distributed import Client
    with Client():
        yield
