"""Run in a process of its own: mutates an encoded image and reads it, thousands of times.

    python mutate.py FILE FIRST COUNT

Prints the seed before each try, so that a crash names it; ends with a line of
JSON: what became of the tries, and the largest memory in MB.
"""

import collections
import json
import re
import signal
import sys
import warnings
from pathlib import Path

import numpy as np

from chestxray.data.images import ImageSettings, fit
from chestxray.deployment.predict import decode_file

SECONDS = 10


def mutate(data: bytes, rng: np.random.Generator) -> bytes:
    """Flip some bytes, cut, or splice: repeat, drop or exchange a piece."""
    mutated, kind = bytearray(data), rng.integers(5)
    if kind <= 1:
        reach = len(mutated) if kind else min(len(mutated), 700)  # headers more often than pixels
        for place in rng.integers(0, reach, rng.integers(1, 12)):
            mutated[place] = rng.integers(256)
        return bytes(mutated)
    start, end = sorted(int(place) for place in rng.integers(0, len(mutated) + 1, 2))
    if kind == 2:
        return bytes(mutated[:end])
    if kind == 3:
        return bytes(mutated[:start] + mutated[end:])
    place = int(rng.integers(0, len(mutated)))
    return bytes(mutated[:place] + mutated[start:end] + mutated[place:])


def main(path: str, first: int, count: int) -> None:
    data, outcomes = Path(path).read_bytes(), collections.Counter(read=0, named=0)
    image = Path(f"{path}-mutated")
    warnings.simplefilter("error")  # a warning would reach the user's terminal
    for seed in range(first, first + count):
        print(seed, flush=True)
        signal.alarm(SECONDS)  # ends the process
        try:
            image.write_bytes(mutate(data, np.random.default_rng(seed)))
            pixels = fit(decode_file(image, {"ages": [1, 6]}).pixels, ImageSettings(32))
            assert pixels.shape == (32, 32) and pixels.dtype == np.uint8
            outcomes["read"] += 1
        except ValueError as error:
            assert str(error) and "\n" not in str(error) and len(str(error)) < 300, repr(error)
            outcomes["named"] += 1
    signal.alarm(0)
    peak = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1]
    print(json.dumps(outcomes | {"megabytes": int(peak) / 1024}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
