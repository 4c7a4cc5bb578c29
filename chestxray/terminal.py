"""What reaches the terminal, and comes from it, while a notebook plays."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class EpochLines:
    """Passes a notebook's epoch lines on to the terminal, and Ctrl-C on to the run.

    A Ctrl-C that arrives inside the event loop of others may be swallowed
    there; it is then raised again with the next line, or at the end.
    """

    interrupted = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Notice Ctrl-C while a notebook plays."""
        if threading.current_thread() is not threading.main_thread():  # signals are no business of others
            yield
            return
        former = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)
        if self.interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def write(self, text: str) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        for line in text.splitlines():
            if re.match(r"epoch +\d+/|.*continued after epoch", line):
                print(f"    {line}", flush=True)

    def flush(self) -> None:
        """Nothing is buffered."""


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
