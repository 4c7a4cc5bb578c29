"""Where parallel work runs: on this machine's cores, or on those of a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


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
        ValueError: Unknown backend.
    """
    from joblib import parallel_config
    with contextlib.ExitStack() as stack:
        if backend == "dask":
            from distributed import Client
            stack.enter_context(Client())
        if backend is not None:
            stack.enter_context(parallel_config(backend=backend))
        yield
