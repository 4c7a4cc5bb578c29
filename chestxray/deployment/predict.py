"""Files or folders in, one row an image out."""

from __future__ import annotations

import csv
import functools
import glob
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chestxray.data.dicom import NotAFrontalFilm, decode_dicom
from chestxray.data.images import decode_image, fit, is_dicom, read_header
from chestxray.deployment.bundle import Classifier, load_classifier
from chestxray.deployment.refusal import is_colour
from chestxray.deployment.workers import workers

BATCH = 32
COLUMNS = ("path", "status", "probability", "decision", "problem", "outside", "logit", "brightness",
           "contrast", "sharpness", "likeness", "distance")


def list_images(sources: Iterable[str | Path]) -> Iterator[Path]:
    """List images one after the other, without holding the list.

    Args:
        sources: Files; folders (every file below that is not hidden, in the
            order of their names; links to folders are not followed);
            patterns such as ``films/**/*.png``; CSV files with a column
            ``path``, relative to the CSV's folder.

    Yields:
        Paths. One that does not exist is listed too, so that it is reported by name.

    Raises:
        ValueError: A CSV file without a column ``path``.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from _files_below(source)
        elif source.suffix.lower() == ".csv":
            yield from _paths_of_table(source)
        elif not os.path.lexists(source) and glob.has_magic(str(source)):
            yield from _files_like(source)
        else:
            yield source


def _files_like(pattern: Path) -> list[Path]:
    """Files that a pattern fits, in order; ``**`` does not follow links to folders."""
    plain = list(itertools.takewhile(lambda part: not glob.has_magic(part), pattern.parts))
    return sorted(path for path in Path(*plain).glob(str(Path(*pattern.parts[len(plain):])))
                  if not path.is_dir())


def _files_below(folder: Path) -> Iterator[Path]:
    with os.scandir(folder) as entries:
        found = sorted(entries, key=lambda entry: entry.name)
    for entry in found:
        if entry.name.startswith((".", "__MACOSX")):
            continue
        if entry.is_dir(follow_symlinks=False):
            yield from _files_below(Path(entry.path))
        elif not (entry.is_symlink() and os.path.isdir(entry.path)):
            yield Path(entry.path)


def _paths_of_table(source: Path) -> Iterator[Path]:
    with open(source, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        if "path" not in (reader.fieldnames or ()):
            raise ValueError(f"a table of images needs a column path. Received: path={str(source)!r}, "
                             f"columns={reader.fieldnames}")
        for row in reader:
            yield source.parent / row["path"]


def predict_files(classifier: Classifier, sources: str | Path | Iterable[str | Path], rule: str = "youden",
                  accept_all: bool = False) -> Iterator[dict[str, Any]]:
    """Classify images, in batches; a file that cannot be read is reported, not fatal.

    Args:
        classifier: From :func:`chestxray.deployment.bundle.load_classifier`.
        sources: See :func:`list_images`, or one of them.
        rule: Which of the stored thresholds decides.
        accept_all: Classify images, too, that do not look like those of
            training; ``problem`` still says so.

    Yields:
        For each file :data:`COLUMNS`: ``path``; ``status`` (ok, refused or
        unreadable); ``probability`` (calibrated, 0–1) and ``decision`` (a
        class name), None unless ok; ``problem`` (empty, or the reason);
        ``outside`` (what a DICOM file says that lies outside the training
        population: age, view); the raw ``logit`` and what is measured on the
        image (:meth:`chestxray.deployment.refusal.Refusal.measure`), None
        when there are no pixels.

    Raises:
        ValueError: The rule has no threshold.
    """
    classifier.threshold(rule)
    if isinstance(sources, (str, Path)):
        sources = [sources]
    for paths in chunks(list_images(sources)):
        yield from judge(classifier, paths, rule, accept_all)


def predict_parallel(folder: str | Path, paths: Iterable[Path], rule: str = "youden",
                     accept_all: bool = False, jobs: int = -1, backend: str | None = None
                     ) -> Iterator[dict[str, Any]]:
    """Classify images with several processes, or several machines; see :func:`predict_files`.

    Args:
        folder: Of the model; every process loads it once.
        paths: Of the images.
        rule: Which of the stored thresholds decides.
        accept_all: See :func:`predict_files`.
        jobs: Processes; -1 takes one a core.
        backend: See :func:`chestxray.deployment.workers.workers`.

    Yields:
        Rows, in the order of the paths.

    Raises:
        ValueError: Unknown backend, or the rule has no threshold.
    """
    from joblib import Parallel, delayed
    with workers(backend):
        parallel = Parallel(jobs, return_as="generator", pre_dispatch="2 * n_jobs")
        for rows in parallel(delayed(_judge_in_worker)(str(folder), paths, rule, accept_all)
                             for paths in chunks(paths)):
            yield from rows


def _judge_in_worker(folder: str, paths: list[Path], rule: str, accept_all: bool) -> list[dict[str, Any]]:
    return judge(_loaded(folder), paths, rule, accept_all)


@functools.lru_cache(maxsize=1)
def _loaded(folder: str) -> Classifier:
    import cv2
    cv2.setNumThreads(1)
    return load_classifier(folder)


def chunks(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Cut a stream of paths into lists of :data:`BATCH`."""
    paths = iter(paths)
    while chunk := list(itertools.islice(paths, BATCH)):
        yield chunk


def judge(classifier: Classifier, paths: list[Path], rule: str, accept_all: bool) -> list[dict[str, Any]]:
    """Classify some files; see :func:`predict_files`."""
    threshold, settings = classifier.threshold(rule), classifier.image_settings
    rows, films, coloured = [], [], []
    for path in paths:
        row = dict.fromkeys(COLUMNS) | {"path": str(path), "status": "ok", "problem": "", "outside": ""}
        rows.append(row)
        try:
            pixels, colours, row["outside"] = read_film(path.read_bytes())
            films.append(fit(pixels, settings))
            coloured.append(colours)
        except NotAFrontalFilm as error:
            row |= {"status": "refused", "problem": str(error)}
        except (ValueError, OSError) as error:
            row |= {"status": "unreadable", "problem": _reason(error)}
    if films:
        images = np.stack(films)
        logits, distances, _ = classifier.score(images)
        measured = {"logit": logits} | classifier.refusal.measure(images, distances)
        reasons = classifier.refusal.reasons(images, distances)
        for number, row in enumerate(row for row in rows if row["status"] == "ok"):
            row |= {name: float(column[number]) for name, column in measured.items()}
            row["problem"] = "a colour picture" if coloured[number] else reasons[number]
            if row["problem"] and not accept_all:
                row["status"] = "refused"
            else:
                row["probability"] = float(classifier.probabilities(row["logit"]))
                row["decision"] = classifier.card["classes"][int(row["probability"] >= threshold)]
    return rows


def read_film(data: bytes) -> tuple[np.ndarray, bool, str]:
    """Decode a file: grey pixels, whether it is a colour picture, and what lies outside.

    Raises:
        ValueError: The file cannot be used.
    """
    if is_dicom(data):
        film = decode_dicom(data)
        return film.pixels, False, " ".join(film.outside)
    pixels = decode_image(data)
    return pixels, read_header(data)[2] not in ("L", "LA", "L;16", "LA;16") and is_colour(data), ""


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such image file"
    if isinstance(error, OSError):
        return f"cannot be opened ({error.strerror or type(error).__name__})"
    return str(error).split(". Received:")[0]
