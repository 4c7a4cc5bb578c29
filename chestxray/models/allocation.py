"""Memory that TensorFlow frees on a processor stays with the process."""

from __future__ import annotations

import ctypes

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # numbers of the parameters in glibc's malloc.h


def keep_freed_memory() -> bool:
    """Ask the C library to reuse freed memory instead of handing it back to the system.

    On a processor TensorFlow takes the tensors of each step from ``malloc``
    and frees them again. With Python 3.11 or newer,
    ``tf.data.Dataset.from_generator`` tells glibc, for the whole process, to
    hand every block above 128 kB back at once: each step then pays for fresh
    pages, which can take as long as the computation of a small network
    (``benchmarks/allocation.py``). This undoes it, whether it is called
    before or after. No result changes.

    Returns:
        Whether the C library knows the settings; other ones than glibc are
        left as they are.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # macOS, Windows
        return False
    return bool(mallopt(_MMAP_MAX, 0) and mallopt(_TRIM_THRESHOLD, 2**31 - 1))
