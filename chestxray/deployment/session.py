"""Resumable prediction with table, report and summary, as in ``chestxray predict``."""

import collections
import contextlib
import csv
import functools
import hashlib
import heapq
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

from filelock import Timeout
from tqdm import tqdm

from chestxray.deployment.classifier import Runtime, load_classifier
from chestxray.deployment.predict import BATCH, COLUMNS, chunks, judge, list_images, predict_parallel
from chestxray.deployment.report import MOST_IMAGES, report_page, triage_group
from chestxray.deployment.seen import seen_text
from chestxray.files import locked, whole_file, write_text
from chestxray.schema import check, mistake

MOST_PROBLEMS = 200  # refused and unreadable files that the report lists
FORMATS = (".csv", ".jsonl")
FEW_FOR_CHECK = 100  # validation images; with fewer the summary calls the out-of-distribution check uncertain


@dataclass
class Session:
    """Prediction of a stream of images, in bounded memory.

    Raises the errors of :func:`chestxray.deployment.classifier.load_classifier`, and ValueError if the rule
    has no threshold.
    """

    model: str | Path  # folder of the model
    sources: Iterable[str | Path]  # this and the next two: see predict_files
    threshold_rule: str = "youden"
    accept_all: bool = False
    jobs: int | None = None  # processes; None: one per core, or 1 for a Keras model, which uses all cores
    backend: str | None = None  # of joblib; without it, a few images are predicted in this process

    def __post_init__(self) -> None:
        self.model, self.sources = Path(self.model), list(map(Path, self.sources))
        self.classifier = load_classifier(self.model)
        self.threshold = self.classifier.threshold(self.threshold_rule)
        if self.jobs is None:
            self.jobs = -1 if self.backend or isinstance(self.classifier.model, Runtime) else 1
        self.count: collections.Counter[str] = collections.Counter()
        self._highest: dict[str, list[tuple[float, int, dict[str, Any]]]] = collections.defaultdict(list)
        self._problems: list[dict[str, Any]] = []

    def rows(
        self, output: str | Path | None = None, report: str | Path | None = None
    ) -> Iterator[dict[str, Any]]:
        """Yield the rows of :func:`chestxray.deployment.predict.predict_files`, and write table and report.

        The table ends in ``.csv`` or ``.jsonl``. Raises ValueError if there is no image, the backend is
        unknown, or the output is a folder or one of the sources.
        """
        written = {os.path.abspath(path) for path in (output, report) if path}  # now or by an earlier call
        paths = (path for path in list_images(self.sources) if os.path.abspath(path) not in written)
        first = list(islice(paths, BATCH + 1))
        check(first, "no image found", sources=list(map(str, self.sources)))
        if output and Path(output).resolve() in {source.resolve() for source in self.sources}:
            raise ValueError(f"the table would replace one of the sources. Received: output={str(output)!r}")
        in_process = self.backend is None and (self.jobs == 1 or len(first) <= BATCH)
        predict = functools.partial(self._predict, in_process)
        finish = functools.partial(self._write_report, report)
        if output:
            card = hashlib.sha256((self.model / "card.json").read_bytes()).hexdigest()
            identity = f"{card} {self.threshold_rule} {self.accept_all}"
            rows = journaled(output, identity, chain(first, paths), predict, finish)
            rows = tqdm(rows, unit=" images", disable=None)
        else:
            rows = predict(chain(first, paths))
        for row in rows:
            self._remember(row)
            yield row
        if not output:
            finish()

    def _predict(self, in_process: bool, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        decision = self.threshold_rule, self.accept_all
        if in_process:
            return chain.from_iterable(judge(self.classifier, batch, *decision) for batch in chunks(paths))
        return predict_parallel(self.model.absolute(), paths, *decision, self.jobs, self.backend)

    def _write_report(self, path: str | Path | None) -> None:
        if path:
            kept = sorted(chain.from_iterable(self._highest.values()), key=lambda entry: entry[:2])
            rows = [row for *_, row in reversed(kept)]
            page = report_page(self.classifier, rows, self._problems, self.count, self.threshold_rule)
            write_text(path, page)

    def _remember(self, row: dict[str, Any]) -> None:
        """Count the row, and keep it if the report shows it."""
        self.count["images"] += 1
        self.count[row["status"]] += 1
        self.count.update(f"outside {name}" for name in row["outside"].split())
        self.count[f"seen {row['seen']}"] += 1
        if row["status"] == "ok":
            group = triage_group(row, self.classifier.card)
            self.count[group] += 1
            heapq.heappush(self._highest[group], (row["probability"], -self.count["images"], row))
            if len(self._highest[group]) > MOST_IMAGES:
                heapq.heappop(self._highest[group])
        elif len(self._problems) < MOST_PROBLEMS:
            self._problems.append(row)

    def summary(self) -> str:
        """Return one line: numbers of images, the threshold, and the first limit of the model."""
        count, card = self.count, self.classifier.card
        parts = [f"{count[name]} {name}" for name in ("images", "refused", "unreadable")]
        for name, what in (("age", "an age"), ("view", "a view")):
            if number := count[f"outside {name}"]:
                parts.append(f"{number} with {what} outside the training population")
        sentences = [f"{', '.join(parts)}; decided at {self.threshold:.3f} ({self.threshold_rule})."]
        if seen := seen_text(count["seen train"], count["seen val"], count["images"]):
            sentences.append(seen)
        if (images := card["training_data"]["val"]) < FEW_FOR_CHECK:
            sentences.append(f"The limits for refusals are based on only {images} validation images.")
        return " ".join([*sentences, card["limits"][0]])


def journaled(
    output: str | Path,
    identity: str,
    paths: Iterable[Path],
    predict: Callable[[Iterator[Path]], Iterable[dict[str, Any]]],
    finish: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """Predict images and write a table; continue after an interrupted call with the same output.

    Rows are appended to a journal, ``.partial-<name>.jsonl`` beside the output. The next call uses its rows
    up to the first one whose identity, path, size or modification time has changed. After the last row the
    output is written atomically, and the journal is removed. Yields all rows, also those of the journal.

    ``output`` ends in ``.csv`` or ``.jsonl``; ``identity`` changes with model and settings; ``paths`` have a
    fixed order; ``predict`` yields a row per path; ``finish`` is called before the journal is removed. Raises
    ValueError if the format is unknown, the output is a folder, or another process writes it.
    """
    output, paths = Path(output), iter(paths)
    known = output.suffix.lower() in FORMATS
    check(known, f"the table's name must end in {' or '.join(FORMATS)}", path=str(output))
    check(not output.is_dir(), "the table cannot be written: there is a folder", path=str(output))
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = output.with_name(f".partial-{output.name}.jsonl")
    with contextlib.ExitStack() as stack:
        with mistake("another process writes this table", Timeout, path=str(output)):
            stack.enter_context(locked(journal, wait=False))
        with open(journal, "a+b") as file:
            file.seek(0)
            end, rest, keys = 0, paths, collections.deque[list]()
            for line in iter(file.readline, b""):
                if (path := next(paths, None)) is None:
                    break
                key, row = _entry(line)
                if key != _key(path, identity):
                    rest = chain([path], paths)
                    break
                end = file.tell()
                yield row
            file.truncate(end)

            def with_keys() -> Iterator[Path]:
                for path in rest:
                    keys.append(_key(path, identity))  # before the image is read
                    yield path

            for row in predict(with_keys()):
                file.write(json.dumps([keys.popleft(), row]).encode() + b"\n")
                file.flush()
                yield row
            file.seek(0)
            with whole_file(output) as partial:
                _write_table(partial, (_entry(line)[1] for line in file))
        finish()
        journal.unlink()


def _key(path: Path, identity: str) -> list:
    """Return what must be unchanged for a row to be used again; without a file only identity and path."""
    key = [identity, str(path), os.path.abspath(path)]
    with contextlib.suppress(OSError):
        status = path.stat()
        key += [status.st_size, status.st_mtime_ns]
    return key


def _entry(line: bytes) -> list:
    """Return key and row of a line of the journal; None for both if the line is incomplete."""
    try:
        entry = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        entry = None
    return entry if isinstance(entry, list) and len(entry) == 2 else [None, None]


def _write_table(path: Path, rows: Iterator[dict[str, Any]]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in rows)
            return
        first = list(islice(rows, 1))
        writer = csv.DictWriter(file, list(first[0]) if first else COLUMNS)
        writer.writeheader()
        writer.writerows(chain(first, rows))
