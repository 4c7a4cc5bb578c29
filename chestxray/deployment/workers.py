"""Where parallel work runs: on this machine's cores, or on those of a cluster."""

from __future__ import annotations

import contextlib
import os
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
