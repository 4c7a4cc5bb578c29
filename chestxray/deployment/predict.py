"""Files or folders in, one row an image out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chestxray.data.images import preprocess
from chestxray.deployment.bundle import Classifier

_BATCH = 32


def list_images(sources: Iterable[str | Path]) -> Iterator[Path]:
    """List files, and for folders every file below that is not hidden.

    A path that does not exist is listed too, so that it is reported by name.
    """
    for source in map(Path, sources):
        if not source.is_dir():
            yield source
            continue
        for path in sorted(source.rglob("*")):
            inner = path.relative_to(source).parts
            if path.is_file() and not any(part.startswith((".", "__MACOSX")) for part in inner):
                yield path


def predict_files(classifier: Classifier, sources: str | Path | Iterable[str | Path],
                  rule: str = "youden") -> Iterator[dict[str, Any]]:
    """Classify images, in batches; a file that cannot be read is reported, not fatal.

    Args:
        classifier: From :func:`chestxray.deployment.bundle.load_classifier`.
        sources: Files and folders, or one of them.
        rule: Which of the stored thresholds decides.

    Yields:
        For each file ``path``; ``probability`` (calibrated, 0–1) and
        ``decision`` (a class name), or None for both; ``problem`` (empty, or
        the reason).

    Raises:
        ValueError: The rule has no threshold.
    """
    threshold, settings = classifier.threshold(rule), classifier.image_settings
    if isinstance(sources, (str, Path)):
        sources = [sources]
    for paths in _chunks(list_images(sources), _BATCH):
        pixels, problems = [], {}
        for path in paths:
            try:
                pixels.append(preprocess(path, settings))
            except (ValueError, OSError) as error:
                problems[path] = str(error).split(". Received:")[0]
        probabilities = iter(
            classifier.probabilities(classifier.logits(np.stack(pixels))) if pixels else ())
        for path in paths:
            if path in problems:
                yield {"path": str(path), "probability": None, "decision": None, "problem": problems[path]}
            else:
                probability = float(next(probabilities))
                yield {"path": str(path), "probability": probability,
                       "decision": classifier.card["classes"][int(probability >= threshold)], "problem": ""}


def _chunks(items: Iterable[Path], size: int) -> Iterator[list[Path]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
