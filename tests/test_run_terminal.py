"""What the terminal shows while a notebook runs, and Ctrl-C."""

import contextlib
import os
import signal
import time

import pytest

from chestxray.run import _Progress


@pytest.fixture
def interruptible():
    """Python's own handler, also where the tests run in the background and ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("later_line", [True, False])
def test_a_swallowed_interruption_is_raised_again(later_line, interruptible):
    lines = _Progress()
    reached = []
    with pytest.raises(KeyboardInterrupt), lines.watch():
        with contextlib.suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(5)
        reached.append("swallowed")
        if later_line:
            lines.write("epoch  1/9")
            reached.append("went on")
    assert reached == ["swallowed"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
