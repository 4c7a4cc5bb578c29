"""Files or folders in, one row an image out."""

from __future__ import annotations

import csv
import functools
import glob
import hashlib
import itertools
import os
import stat
import threading
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from chestxray.data.dicom import NotAFrontalFilm, decode_dicom
from chestxray.data.formats import is_dicom, read_header
from chestxray.data.images import decode_image, fit
from chestxray.deployment.classifier import Classifier, load_classifier
from chestxray.deployment.outliers import is_colour
from chestxray.parallel import workers

BATCH = 32

MOST_BYTES = 200_000_000
"""Of a file that is read at all; an uncompressed film of 64 million pixels has 128 MB."""

_LOADING = threading.Lock()
COLUMNS = (
    "path",
    "status",
    "probability",
    "decision",
    "problem",
    "outside",
    "logit",
    "brightness",
    "contrast",
    "sharpness",
    "likeness",
    "distance",
)


def list_images(sources: Iterable[str | Path]) -> Iterator[Path]:
    """List images one after the other; at most the names of one folder or pattern are held.

    Args:
        sources: Files; folders (every file below that is not hidden, in the
            order of their names; links to folders are not followed);
            patterns such as ``films/**/*.png``; CSV files with a column
            ``path``, relative to the CSV's folder.

    Yields:
        Paths. One that does not exist, or a pattern that nothing fits, is
        listed too, so that it is reported by name.

    Raises:
        ValueError: A CSV file without a column ``path``, or a damaged one.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from _files_below(source)
        elif source.suffix.lower() == ".csv":
            yield from _paths_of_table(source)
        elif not os.path.lexists(source) and glob.has_magic(str(source)):
            yield from _files_like(source) or [source]
        else:
            yield source


def _files_like(pattern: Path) -> list[Path]:
    """Files, not hidden ones, that a pattern fits, in order; ``**`` does not follow links to folders."""
    plain = list(itertools.takewhile(lambda subset: not glob.has_magic(subset), pattern.parts))
    return sorted(
        path
        for path in Path(*plain).glob(str(Path(*pattern.parts[len(plain) :])))
        if not path.is_dir() and not path.name.startswith(".")
    )


def _files_below(folder: Path) -> Iterator[Path]:
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        yield folder  # cannot be opened, and is reported by name
        return
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
            raise ValueError(
                f"a table of images needs a column path. Received: path={str(source)!r}, "
                f"columns={reader.fieldnames}"
            )
        try:
            for row in reader:
                yield source.parent / (row["path"] or "")
        except csv.Error as error:
            raise ValueError(f"a damaged table ({error}). Received: path={str(source)!r}") from None


def predict_files(
    classifier: Classifier,
    sources: str | Path | Iterable[str | Path],
    threshold_rule: str = "youden",
    accept_all: bool = False,
) -> Iterator[dict[str, Any]]:
    """Classify images, in batches; a file that cannot be read is reported, not fatal.

    Args:
        classifier: From :func:`chestxray.deployment.classifier.load_classifier`.
        sources: See :func:`list_images`, or one of them.
        threshold_rule: Which of the stored thresholds decides.
        accept_all: Classify images, too, that do not look like those of
            training; ``problem`` still says so.

    Yields:
        For each file :data:`COLUMNS`: ``path``; ``status`` (ok, refused or
        unreadable); ``probability`` (calibrated, 0–1) and ``decision`` (a
        class name), None unless ok; ``problem`` (empty, or the reason);
        ``outside`` (what a DICOM file says that lies outside the training
        population: age, view); the raw ``logit`` and what is measured on the
        image (:meth:`chestxray.deployment.outliers.Refusal.measure`), None
        when there are no pixels.

    Raises:
        ValueError: The rule has no threshold.
    """
    classifier.threshold(threshold_rule)
    if isinstance(sources, (str, Path)):
        sources = [sources]
    for paths in chunks(list_images(sources)):
        yield from judge(classifier, paths, threshold_rule, accept_all)


def predict_parallel(
    folder: str | Path,
    paths: Iterable[Path],
    threshold_rule: str = "youden",
    accept_all: bool = False,
    jobs: int = -1,
    backend: str | None = None,
) -> Iterator[dict[str, Any]]:
    """Classify images with several processes, or several machines; see :func:`predict_files`.

    Args:
        folder: Of the model; every process loads it once.
        paths: Of the images.
        threshold_rule: Which of the stored thresholds decides.
        accept_all: See :func:`predict_files`.
        jobs: Processes; -1 takes one a core.
        backend: See :func:`chestxray.parallel.workers`.

    Yields:
        Rows, in the order of the paths.

    Raises:
        ValueError: Unknown backend, or the rule has no threshold.
    """
    from joblib import Parallel, delayed

    card = hashlib.sha256((Path(folder) / "card.json").read_bytes()).hexdigest()
    place = (str(folder), card, Path.cwd())  # workers may live elsewhere, and longer than this call
    with workers(backend):
        parallel = Parallel(jobs, return_as="generator", pre_dispatch="2 * n_jobs")
        for rows in parallel(
            delayed(_judge_in_worker)(*place, paths, threshold_rule, accept_all) for paths in chunks(paths)
        ):
            yield from rows


def _judge_in_worker(
    folder: str, card: str, base: Path, paths: list[Path], threshold_rule: str, accept_all: bool
) -> list[dict[str, Any]]:
    with _LOADING:
        classifier = _loaded(folder, card)
    return judge(classifier, paths, threshold_rule, accept_all, base)


@functools.lru_cache(maxsize=1)
def _loaded(folder: str, card: str) -> Classifier:
    """The model of a worker; loaded anew when its card has changed."""
    import cv2

    cv2.setNumThreads(1)
    return load_classifier(folder)


def chunks(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Cut a stream of paths into lists of :data:`BATCH`."""
    paths = iter(paths)
    while chunk := list(itertools.islice(paths, BATCH)):
        yield chunk


def judge(
    classifier: Classifier, paths: list[Path], threshold_rule: str, accept_all: bool, base: Path = Path()
) -> list[dict[str, Any]]:
    """Classify some files, relative to ``base``; see :func:`predict_files`."""
    threshold, settings = classifier.threshold(threshold_rule), classifier.image_settings
    rows, films, coloured = [], [], []
    for path in paths:
        row = dict.fromkeys(COLUMNS) | {"path": str(path), "status": "ok", "problem": "", "outside": ""}
        rows.append(row)
        try:
            film = read_film(base / path, classifier.card.get("population"))
            films.append(fit(film.pixels, settings))
            coloured.append(film.coloured)
            row["outside"] = " ".join(film.outside)
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


class Film(NamedTuple):
    """A decoded file.

    Attributes:
        pixels: Grey, ``uint8`` (H, W).
        coloured: Whether it is a colour picture, not only three equal channels.
        outside: What is known to lie outside the training population: age, view.
    """

    pixels: np.ndarray
    coloured: bool
    outside: tuple[str, ...]


def read_film(path: Path, population: Mapping[str, Any] | None = None) -> Film:
    """Read and decode one file.

    Args:
        path: A regular file of at most :data:`MOST_BYTES`.
        population: Of the training images, from the card; see
            :func:`chestxray.data.dicom.decode_dicom`.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file cannot be used.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a file")
    if found.st_size > MOST_BYTES:
        raise ValueError(f"too large ({found.st_size / 1e6:,.0f} MB, at most {MOST_BYTES / 1e6:,.0f})")
    data = path.read_bytes()
    if is_dicom(data):
        film = decode_dicom(data, population)
        return Film(film.pixels, False, film.outside)
    pixels = decode_image(data)
    return Film(pixels, read_header(data)[2] not in ("L", "LA", "L;16", "LA;16") and is_colour(data), ())


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such image file"
    if isinstance(error, OSError):
        return f"cannot be opened ({error.strerror or type(error).__name__})"
    return str(error).split(". Received:")[0]
