"""Prediction of files and folders, in batches, with one row per image."""

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
from typing import Any

import cv2
import numpy as np

from chestxray.data.dicom import DicomImage, NotAFrontalImage, decode_dicom
from chestxray.data.formats import is_dicom, read_header
from chestxray.data.images import decode_image, fit
from chestxray.deployment.classifier import Classifier, load_classifier
from chestxray.deployment.outliers import is_colour
from chestxray.files import files_below, spelled
from chestxray.parallel import workers
from chestxray.schema import check, mistake

BATCH = 32
MOST_BYTES = 200_000_000  # of a file; an uncompressed image of 64 million pixels has 128 MB
MEASURES = ("brightness", "contrast", "sharpness", "likeness", "distance")
COLUMNS = ("path", "status", "probability", "decision", "problem", "outside", "seen", "logit", *MEASURES)

_LOADING = threading.Lock()


def list_images(sources: Iterable[str | Path]) -> Iterator[Path]:
    """List images one by one; only the names of one folder or pattern are in memory.

    ``sources`` are files; folders (all files below that are not hidden, by name); patterns such as
    ``images/**/*.png``; CSV files with a column ``path``, relative to their folder. Missing files and
    patterns without a match are listed, too, so that they are reported. Raises FileNotFoundError or
    ValueError if a CSV file is missing, is damaged or has no column ``path``.
    """
    for source in map(Path, sources):
        if source.is_dir():
            yield from files_below(source)
        elif source.suffix.lower() == ".csv":
            yield from _paths_of_table(source)
        elif not os.path.lexists(source) and glob.has_magic(str(source)):
            matches = Path(source.anchor).glob(str(source.relative_to(source.anchor)))
            files = sorted(path for path in matches if not path.is_dir() and not path.name.startswith("."))
            yield from files or [source]
        else:
            yield source


def _paths_of_table(source: Path) -> Iterator[Path]:
    check(source.is_file(), "no such table of images", FileNotFoundError, path=str(source))
    with open(source, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        columns = reader.fieldnames or []
        check("path" in columns, "a table of images needs a column path", path=str(source), columns=columns)
        with mistake("a damaged table", csv.Error, path=str(source)):
            for row in reader:
                yield source.parent / spelled(source.parent, row["path"] or "")


def predict_files(
    classifier: Classifier,
    sources: str | Path | Iterable[str | Path],
    threshold_rule: str = "youden",
    accept_all: bool = False,
) -> Iterator[dict[str, Any]]:
    """Classify images in batches. A file that cannot be read is reported, and the others are classified.

    Args:
        sources: One source, or several; see :func:`list_images`.
        threshold_rule: Rule of the stored threshold that decides.
        accept_all: Also classify images unlike the training images; ``problem`` still gives the reason.

    Yields one row per file, with :data:`COLUMNS`. ``status`` is ok, refused or unreadable; ``problem`` is the
    reason. ``probability`` (calibrated) and ``decision`` (a class name) are None unless ok. ``outside`` names
    DICOM tags outside the training population: age, view. ``seen`` is the subset of the training data that
    contains the image: train, val, or empty. The raw ``logit`` and :data:`MEASURES`, see
    :meth:`chestxray.deployment.outliers.OutlierCheck.measure`, are None if the image was not decoded.

    Raises ValueError if the rule has no threshold, and the errors of :func:`list_images`.
    """
    classifier.threshold(threshold_rule)
    paths = list_images([sources] if isinstance(sources, (str, Path)) else sources)
    for batch in chunks(paths):
        yield from judge(classifier, batch, threshold_rule, accept_all)


def predict_parallel(
    folder: Path, paths: Iterable[Path], threshold_rule: str, accept_all: bool, jobs: int, backend: str | None
) -> Iterator[dict[str, Any]]:
    """Classify images in several processes or on several machines; yields the rows of :func:`predict_files`.

    Each process loads the model of ``folder`` once. ``jobs`` is the number of processes; -1 starts one per
    core. For ``backend`` and its errors see :func:`chestxray.parallel.workers`.
    """
    from joblib import Parallel, delayed

    card = hashlib.sha256((folder / "card.json").read_bytes()).hexdigest()
    # Workers may have another working directory, and may exist longer than this call.
    task = delayed(functools.partial(_judge_in_worker, folder, card, Path.cwd()))
    with workers(backend):
        parallel = Parallel(jobs, return_as="generator", pre_dispatch="2 * n_jobs")
        for rows in parallel(task(batch, threshold_rule, accept_all) for batch in chunks(paths)):
            yield from rows


def _judge_in_worker(folder: Path, card: str, base: Path, *task: Any) -> list[dict[str, Any]]:
    with _LOADING:
        classifier = _loaded(folder, card)
    return judge(classifier, *task, base)


@functools.lru_cache(maxsize=1)
def _loaded(folder: Path, card: str) -> Classifier:
    """Load the model of a worker; it is loaded again if ``card``, the hash of its card, has changed."""
    cv2.setNumThreads(1)
    return load_classifier(folder)


def chunks(paths: Iterable[Path]) -> Iterator[list[Path]]:
    """Yield lists of :data:`BATCH` paths."""
    paths = iter(paths)
    while chunk := list(itertools.islice(paths, BATCH)):
        yield chunk


def judge(
    classifier: Classifier,
    images: list[Path] | list[np.ndarray],
    threshold_rule: str,
    accept_all: bool = False,
    base: Path = Path(),
) -> list[dict[str, Any]]:
    """Classify one batch of files, relative to ``base``, or of pixels; returns rows of `predict_files`."""
    threshold, outlier_check = classifier.threshold(threshold_rule), classifier.outlier_check
    settings = classifier.image_settings
    rows, decoded = [], []
    for source in images:
        row = dict.fromkeys(COLUMNS) | dict.fromkeys(("path", "problem", "outside", "seen"), "")
        row["status"] = "ok"
        rows.append(row)
        try:
            if isinstance(source, Path):
                row["path"] = str(source)
                image = decode_file(base / source, classifier.card.get("population"), settings.size)
            else:
                image = DicomImage(source, "", ())
            decoded.append(image._replace(pixels=fit(image.pixels, settings)))
            row["outside"] = " ".join(image.outside)
        except NotAFrontalImage as error:
            row |= {"status": "refused", "problem": str(error)}
        except (ValueError, OSError) as error:
            row |= {"status": "unreadable", "problem": _reason(error)}
    if not decoded:
        return rows
    pixels = np.stack([image.pixels for image in decoded])
    logits, distances, _ = classifier.score(pixels)
    measured = {"logit": logits} | outlier_check.measure(pixels, distances)
    reasons = outlier_check.reasons(pixels, distances)
    seen = classifier.seen.subsets_of(pixels) if classifier.seen else [""] * len(pixels)
    for number, row in enumerate(row for row in rows if row["status"] == "ok"):
        row |= {name: float(column[number]) for name, column in measured.items()}
        row["seen"] = seen[number]
        row["problem"] = decoded[number].problem or reasons[number]
        if row["problem"] and not accept_all:
            row["status"] = "refused"
        else:
            row["probability"] = float(classifier.probabilities(row["logit"]))
            row["decision"] = classifier.card["classes"][int(row["probability"] >= threshold)]
    return rows


def decode_file(
    path: Path, population: Mapping[str, Any] | None = None, size: int | None = None
) -> DicomImage:
    """Read and decode one regular file of at most :data:`MOST_BYTES`.

    ``population``, from the card: see :func:`chestxray.data.dicom.decode_dicom`; ``size``: see
    :func:`chestxray.data.images.decode_image`. Raises OSError or ValueError if the file cannot be used.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError("not a file")
    if status.st_size > MOST_BYTES:
        raise ValueError(f"too large ({status.st_size / 1e6:,.0f} MB, at most {MOST_BYTES / 1e6:,.0f})")
    data = path.read_bytes()
    if is_dicom(data):
        return decode_dicom(data, population)
    pixels = decode_image(data, size)
    grey = read_header(data)[2] in ("L", "LA", "L;16", "LA;16", "1", "I", "F", "I;16", "I;16B")
    coloured = not grey and is_colour(data)
    return DicomImage(pixels, "a colour image" if coloured else "", ())


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no such image file"
    if isinstance(error, OSError):
        return f"cannot be opened ({error.strerror})" if error.strerror else "cannot be opened"
    return str(error).split(". Received:")[0]
