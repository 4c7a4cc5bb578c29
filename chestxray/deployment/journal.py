"""A table that is written row by row, survives interruption, and is whole or not there."""

from __future__ import annotations

import csv
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from chestxray.files import whole_file

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
            _write(partial, map(json.loads, file), list(columns))
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


def _write(path: Path, rows: Iterable[dict[str, Any]], columns: list[str]) -> None:
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        if path.suffix.lower() == ".jsonl":
            file.writelines(json.dumps({name: row[name] for name in columns}) + "\n" for row in rows)
            return
        writer = csv.DictWriter(file, columns, extrasaction="ignore")  # facts of files
        writer.writeheader()
        writer.writerows(rows)
