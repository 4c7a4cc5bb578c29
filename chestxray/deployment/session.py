"""One call of ``chestxray predict``: resumable table, report and summary."""

import collections
import contextlib
import csv
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

from chestxray.deployment.classifier import load_classifier
from chestxray.deployment.predict import BATCH, COLUMNS, chunks, judge, list_images, predict_parallel
from chestxray.deployment.report import MOST_IMAGES, report_page, triage_group
from chestxray.deployment.runtime import Runtime
from chestxray.deployment.seen import seen_text
from chestxray.files import locked, whole_file

MOST_PROBLEMS = 200  # refused and unreadable files that the report lists
FORMATS = (".csv", ".jsonl")
FEW_FOR_CHECK = 100  # validation images, below which the out-of-distribution check is called uncertain


@dataclass
class Session:
    """Prediction of a stream of images; keeps what summary and report need, in bounded memory.

    ``model`` is the folder of the model. For ``sources``, ``threshold_rule`` and ``accept_all`` see
    :func:`chestxray.deployment.predict.predict_files`. ``jobs`` is the number of processes; None for one a
    core with an exported model, and for this process with a Keras model, which uses all cores by itself.
    Without a ``backend`` of joblib a few images are predicted in this process.

    Raises FileNotFoundError, ValueError: The model cannot be loaded, or the rule has no threshold.
    """

    model: str | Path
    sources: Iterable[str | Path]
    threshold_rule: str = "youden"
    accept_all: bool = False
    jobs: int | None = None
    backend: str | None = None

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
        """Predict, and write a table (``.csv``, ``.jsonl``) and the page of a report at the end.

        Yields rows as :func:`chestxray.deployment.predict.predict_files` does. Raises ValueError for no
        image, an unknown backend, or an output that is one of the sources or a folder.
        """
        written = {os.path.abspath(path) for path in (output, report) if path}  # now or by an earlier call
        paths = (path for path in list_images(self.sources) if os.path.abspath(path) not in written)
        first = list(islice(paths, BATCH + 1))
        if not first:
            raise ValueError(f"no image found. Received: sources={list(map(str, self.sources))}")
        if output and Path(output).resolve() in {source.resolve() for source in self.sources}:
            message = "the table would replace what it is made from"
            raise ValueError(f"{message}. Received: output={str(output)!r}")
        paths, in_process = chain(first, paths), self.jobs == 1 or len(first) <= BATCH

        def predict(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
            decision = self.threshold_rule, self.accept_all
            if in_process and self.backend is None:
                judged = (judge(self.classifier, batch, *decision) for batch in chunks(paths))
                return chain.from_iterable(judged)
            return predict_parallel(self.model.absolute(), paths, *decision, self.jobs, self.backend)

        def write_report() -> None:
            if report:
                kept = chain.from_iterable(self._highest.values())
                ranked = sorted(kept, key=lambda entry: entry[:2], reverse=True)
                options = {"count": self.count, "threshold_rule": self.threshold_rule}
                page = report_page(self.classifier, [row for *_, row in ranked], self._problems, **options)
                with whole_file(report) as partial:
                    partial.write_text(page, encoding="utf-8")

        if output:
            card = (self.model / "card.json").read_bytes()
            identity = f"{hashlib.sha256(card).hexdigest()} {self.threshold_rule} {self.accept_all}"
            rows = journaled(output, identity, paths, predict, finish=write_report)
            rows = tqdm(rows, unit=" images", disable=None)
        else:
            rows = predict(paths)
        for row in rows:
            self._remember(row)
            yield row
        if not output:
            write_report()

    def _remember(self, row: dict[str, Any]) -> None:
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
        parts = [f"{self.count['images']} images"]
        parts += [f"{self.count[status]} {status}" for status in ("refused", "unreadable")]
        for name in ("age", "view"):
            if number := self.count[f"outside {name}"]:
                parts.append(
                    f"{number} with {'an age' if name == 'age' else 'a view'} outside the training population"
                )
        decided = f"decided at {self.threshold:.3f} ({self.threshold_rule})"
        seen = seen_text(self.count["seen train"], self.count["seen val"], self.count["images"])
        images = self.classifier.card["training_data"]["val"]
        few = f"What is refused rests on only {images} validation images." if images < FEW_FOR_CHECK else ""
        sentences = [f"{', '.join(parts)}; {decided}.", seen, few, self.classifier.card["limits"][0]]
        return " ".join(filter(None, sentences))


def journaled(
    output: str | Path,
    identity: str,
    paths: Iterable[Path],
    predict: Callable[[Iterator[Path]], Iterable[dict[str, Any]]],
    finish: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """Predict images into a table; continue what an interrupted call with the same output has begun.

    Rows are appended to a journal, ``.partial-<name>.jsonl`` beside the output. The next call keeps its first
    rows as long as identity, path, size and time of change of each image agree. After the last row the output
    is written whole and the journal is removed. All rows are given, also those of the journal.

    Args:
        output: ``.csv`` or ``.jsonl`` (JSON Lines).
        identity: Text that names what the rows depend on: model, threshold rule, ….
        paths: Paths of all images, in an order that stays the same.
        predict: Turns paths into rows, in order.
        finish: Called when the table is written, before the journal is removed.

    Raises ValueError: Unknown format, a folder, or another process writes this table.
    """
    output, paths = Path(output), iter(paths)
    received = f"Received: path={str(output)!r}"
    if output.suffix.lower() not in FORMATS:
        raise ValueError(f"the table's name must end in {' or '.join(FORMATS)}. {received}")
    if output.is_dir():
        raise ValueError(f"the table cannot be written: there is a folder. {received}")
    output.parent.mkdir(parents=True, exist_ok=True)
    journal = output.with_name(f".partial-{output.name}.jsonl")
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(locked(journal, wait=False))
        except Timeout:
            raise ValueError(f"another process writes this table. {received}") from None
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

            def noted() -> Iterator[Path]:
                for path in rest:
                    keys.append(_key(path, identity))  # before the image is read
                    yield path

            for row in predict(noted()):
                file.write(json.dumps([keys.popleft(), row]).encode() + b"\n")
                file.flush()
                yield row
            file.seek(0)
            with whole_file(output) as partial:
                _write_table(partial, (_entry(line)[1] for line in file))
        finish()
        journal.unlink()


def _key(path: Path, identity: str) -> list:
    """Return what a row must agree with to be kept; without size and time of change if there is no file."""
    key = [identity, str(path), os.path.abspath(path)]
    with contextlib.suppress(OSError):
        status = path.stat()
        key += [status.st_size, status.st_mtime_ns]
    return key


def _entry(line: bytes) -> list:
    """Return key and row of a line of the journal; None twice for one that was cut short or is none."""
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
