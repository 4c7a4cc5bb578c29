"""Files or folders in, one row an image out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chestxray.data.images import preprocess, read_header
from chestxray.deployment.bundle import Classifier
from chestxray.deployment.refusal import is_colour

_BATCH = 32
COLUMNS = ("path", "status", "probability", "decision", "problem", "logit", "brightness", "contrast",
           "sharpness", "likeness", "distance")


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


def predict_files(classifier: Classifier, sources: str | Path | Iterable[str | Path], rule: str = "youden",
                  accept_all: bool = False) -> Iterator[dict[str, Any]]:
    """Classify images, in batches; a file that cannot be read is reported, not fatal.

    Args:
        classifier: From :func:`chestxray.deployment.bundle.load_classifier`.
        sources: Files and folders, or one of them.
        rule: Which of the stored thresholds decides.
        accept_all: Classify images, too, that do not look like those of
            training; ``problem`` still says so.

    Yields:
        For each file :data:`COLUMNS`: ``path``; ``status`` (ok, refused or
        unreadable); ``probability`` (calibrated, 0–1) and ``decision`` (a
        class name), None unless ok; ``problem`` (empty, or the reason); the
        raw ``logit`` and what is measured on the image
        (:meth:`chestxray.deployment.refusal.Refusal.measure`), None when
        unreadable.

    Raises:
        ValueError: The rule has no threshold.
    """
    threshold, settings = classifier.threshold(rule), classifier.image_settings
    if isinstance(sources, (str, Path)):
        sources = [sources]
    nothing = dict.fromkeys(COLUMNS)
    for paths in _chunks(list_images(sources), _BATCH):
        pixels, problems, coloured = [], {}, set()
        for path in paths:
            try:
                film, colours = preprocess(path, settings), _has_colours(path)
                pixels.append(film)
                coloured.update([path] if colours else [])
            except (ValueError, OSError) as error:
                problems[path] = str(error).split(". Received:")[0]
        seen = iter(_judge(classifier, np.stack(pixels)) if pixels else ())
        for path in paths:
            if path in problems:
                yield nothing | {"path": str(path), "status": "unreadable", "problem": problems[path]}
                continue
            row = nothing | {"path": str(path)} | next(seen)
            if path in coloured:
                row["problem"] = "a colour picture"
            row["status"] = "refused" if row["problem"] and not accept_all else "ok"
            if row["status"] == "ok":
                row["probability"] = float(classifier.probabilities(row["logit"]))
                row["decision"] = classifier.card["classes"][int(row["probability"] >= threshold)]
            yield row


def _judge(classifier: Classifier, images: np.ndarray) -> Iterator[dict[str, Any]]:
    """Logit, measures and reason for refusal of each image, (N, size, size)."""
    logits, features = classifier.score(images)
    columns = {"logit": logits} | classifier.refusal.measure(images, features)
    for number, reason in enumerate(classifier.refusal.reasons(images, features)):
        yield {name: float(column[number]) for name, column in columns.items()} | {"problem": reason}


def _has_colours(path: Path) -> bool:
    data = path.read_bytes()
    return read_header(data)[2] not in ("L", "LA", "L;16", "LA;16") and is_colour(data)


def _chunks(items: Iterable[Path], size: int) -> Iterator[list[Path]]:
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
