"""One call of ``chestxray predict``: what is predicted where, and what is said at the end."""

from __future__ import annotations

import collections
import csv
import hashlib
import heapq
import itertools
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from tqdm import tqdm

from chestxray.deployment.classifier import load_classifier
from chestxray.deployment.predict import BATCH, COLUMNS, chunks, judge, list_images, predict_parallel
from chestxray.deployment.report import MOST_FILMS, report_page
from chestxray.deployment.runtime import Runtime
from chestxray.files import whole_file

MOST_PROBLEMS = 200
"""Refused and unreadable files that the report names."""


class Session:
    """Predicts a stream of images and remembers what summary and report need, in bounded memory.

    Args:
        model: Folder of the model.
        sources: See :func:`chestxray.deployment.predict.list_images`.
        threshold_rule: Which of the stored thresholds decides.
        accept_all: Classify also what does not look like the training images.
        jobs: Processes; None takes one a core with an exported model and
            this one with a Keras model, which uses all cores by itself.
        backend: joblib backend; None runs a few images in this process.

    Raises:
        FileNotFoundError, ValueError: From loading; the rule has no threshold.
    """

    def __init__(
        self,
        model: str | Path,
        sources: Iterable[str | Path],
        threshold_rule: str = "youden",
        accept_all: bool = False,
        jobs: int | None = None,
        backend: str | None = None,
    ):
        self.model, self.sources = Path(model), list(sources)
        self.threshold_rule, self.accept_all, self.backend = threshold_rule, accept_all, backend
        self.classifier = load_classifier(model)
        self.threshold = self.classifier.threshold(threshold_rule)
        exported = isinstance(self.classifier.model, Runtime)
        self.jobs = jobs if jobs is not None else -1 if exported or backend else 1
        self.count: collections.Counter[str] = collections.Counter()
        self._urgent: list[tuple[float, int, dict[str, Any]]] = []
        self._problems: list[dict[str, Any]] = []

    def rows(
        self, output: str | Path | None = None, report: str | Path | None = None
    ) -> Iterator[dict[str, Any]]:
        """Predict, and write table and report when all is done; see :func:`predict_files` for the rows.

        Args:
            output: Of the table.
            report: Of the page for people (:mod:`chestxray.deployment.report`).

        Raises:
            ValueError: No image, an unknown backend, or an output that is
                one of the sources or a folder.
        """
        made = {os.path.abspath(path) for path in (output, report) if path}  # by this call, or the last one
        paths = (path for path in list_images(self.sources) if os.path.abspath(path) not in made)
        first = list(itertools.islice(paths, BATCH + 1))
        if not first:
            raise ValueError(f"no image found. Received: sources={[str(one) for one in self.sources]}")
        alone = self.backend is None and (self.jobs == 1 or len(first) <= BATCH)
        predict = self._alone if alone else self._spread
        paths = itertools.chain(first, paths)
        if output and Path(output).resolve() in {source.resolve() for source in map(Path, self.sources)}:
            raise ValueError(
                f"the table would replace what it is made from. Received: output={str(output)!r}"
            )

        def finish() -> None:
            if report:
                self._write_report(report)

        if output is None:
            found = predict(paths)
        else:
            card = (self.model / "card.json").read_bytes()
            identity = {
                "card": hashlib.sha256(card).hexdigest(),
                "rule": self.threshold_rule,
                "accept_all": self.accept_all,
            }
            found = journaled(output, identity, paths, predict, COLUMNS, finish)
            found = tqdm(found, unit=" images", disable=None)
        for row in found:
            self._remember(row)
            yield row
        if output is None:
            finish()

    def _alone(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        for some in chunks(paths):
            yield from judge(self.classifier, some, self.threshold_rule, self.accept_all)

    def _spread(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        return predict_parallel(
            self.model.absolute(), paths, self.threshold_rule, self.accept_all, self.jobs, self.backend
        )

    def _remember(self, row: dict[str, Any]) -> None:
        self.count["images"] += 1
        self.count[row["status"]] += 1
        self.count.update(f"outside {name}" for name in row["outside"].split())
        if row["status"] != "ok":
            self._problems += [row] if len(self._problems) < MOST_PROBLEMS else []
            return
        self.count[row["decision"]] += 1
        heapq.heappush(self._urgent, (row["probability"], -self.count["images"], row))
        if len(self._urgent) > MOST_FILMS:
            heapq.heappop(self._urgent)

    def _write_report(self, path: str | Path) -> None:
        rows = [row for _, _, row in sorted(self._urgent, key=lambda one: one[:2], reverse=True)]
        with whole_file(path) as partial:
            partial.write_text(
                report_page(self.classifier, rows, self._problems, self.count, self.threshold_rule),
                encoding="utf-8",
            )

    def summary(self) -> str:
        """One line: how many of what, and the first limit of the model."""
        outside = "".join(
            f", {self.count[f'outside {name}']} of an {name} outside the training population"
            for name in ("age", "view")
            if self.count[f"outside {name}"]
        )
        return (
            f"{self.count['images']} images, {self.count['refused']} refused, "
            f"{self.count['unreadable']} unreadable{outside}; decided at {self.threshold:.3f} "
            f"({self.threshold_rule}). {self.classifier.card['limits'][0]}"
        )


FORMATS = (".csv", ".jsonl")

_FILE = "file"  # key of a journal's line, beside the columns


def journaled(
    output: str | Path,
    identity: dict[str, Any],
    paths: Iterable[Path],
    predict: Callable[[Iterator[Path]], Iterable[dict[str, Any]]],
    columns: Iterable[str],
    finish: Callable[[], None] = lambda: None,
) -> Iterator[dict[str, Any]]:
    """Predict what an interrupted call with the same output has not predicted yet.

    Rows go to ``.partial-<name>.jsonl`` beside the output as they come. When
    the last one is there, the output is written whole, what else is made of
    the rows is finished, and the journal is removed.
    The next call reads the journal along with the paths: as long as both
    agree by name, place, size and time of change, nothing is predicted again.

    Args:
        output: ``.csv`` or ``.jsonl`` (JSON Lines).
        identity: What the rows depend on (model, rule, …); a journal of
            another identity is begun anew.
        paths: Of all images, in an order that stays the same.
        predict: Turns paths into rows with the key ``path``, in order.
        columns: Of the table.
        finish: Called after the last row, when the table is there.

    Yields:
        All rows, those of the journal too.

    Raises:
        ValueError: Unknown format, a folder, or another process writes this table.
    """
    output = Path(output)
    check_format(output)
    if output.is_dir():
        raise ValueError(f"the table cannot be written there: a folder. Received: output={str(output)!r}")
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = output.with_name(f".partial-{output.name}.jsonl")
    paths = iter(paths)
    head = (json.dumps(identity, sort_keys=True) + "\n").encode()
    with open(journal, "a+b") as file:
        _lock(file, output)
        file.seek(0)
        if file.readline() != head:
            file.truncate(0)
            file.write(head)
        file.seek(len(head))
        pending: list[Path] = []
        while not pending and (line := file.readline()):
            kept, row = file.tell(), _row(line)
            file_then = row.pop(_FILE, None)
            if not (path := next(paths, None)):
                file.truncate(kept - len(line))
                break
            if row.get("path") == str(path) and file_then == _facts(path):
                yield row
            else:  # cut short by the interruption, or there are other files now
                file.truncate(kept - len(line))
                pending = [path]
        file.seek(0, 2)
        facts: deque[list] = deque()
        for row in predict(_noting(chain(pending, paths), facts)):
            file.write((json.dumps(row | {_FILE: facts.popleft()}) + "\n").encode())
            file.flush()
            yield row
        file.seek(len(head))
        with whole_file(output) as partial:
            _write_table(partial, map(json.loads, file), list(columns))
        finish()
        journal.unlink(missing_ok=True)


def _facts(path: Path) -> list:
    """What tells a file from another that has its name: the place, and size and time of change if there."""
    try:
        found = path.stat()
    except OSError:
        return [os.path.abspath(path)]
    return [os.path.abspath(path), found.st_size, found.st_mtime_ns]


def _noting(paths: Iterable[Path], facts: deque[list]) -> Iterator[Path]:
    """Pass the paths on, and note the facts of each before it is read."""
    for path in paths:
        facts.append(_facts(path))
        yield path


def _lock(file: BinaryIO, output: Path) -> None:
    """Keep other processes out for as long as the file is open, where system and disk can (Windows: no)."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another process writes this table. Received: path={str(output)!r}") from None
    except (ModuleNotFoundError, OSError):
        pass


def check_format(output: Path) -> None:
    """Raise ValueError unless the name ends in one of :data:`FORMATS`."""
    if output.suffix.lower() not in FORMATS:
        raise ValueError(
            f"the table's name must end in {' or '.join(FORMATS)}. Received: path={str(output)!r}"
        )


def _row(line: bytes) -> dict[str, Any]:
    """A line of the journal; nothing for one that was cut short."""
    try:
        return json.loads(line) if line.endswith(b"\n") else {}
    except ValueError:
        return {}


def _write_table(path: Path, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps({name: row[name] for name in columns}) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, columns, extrasaction="ignore")  # facts of files
        writer.writeheader()
        writer.writerows(rows)
