"""One call of ``chestxray predict``: what is predicted where, and what is said at the end."""

from __future__ import annotations

import collections
import hashlib
import heapq
import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chestxray.deployment.bundle import load_classifier
from chestxray.deployment.journal import journaled
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
        rule: Which of the stored thresholds decides.
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
        rule: str = "youden",
        accept_all: bool = False,
        jobs: int | None = None,
        backend: str | None = None,
    ):
        self.model, self.sources = Path(model), list(sources)
        self.rule, self.accept_all, self.backend = rule, accept_all, backend
        self.classifier = load_classifier(model)
        self.threshold = self.classifier.threshold(rule)
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
                "rule": self.rule,
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
            yield from judge(self.classifier, some, self.rule, self.accept_all)

    def _spread(self, paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
        return predict_parallel(
            self.model.absolute(), paths, self.rule, self.accept_all, self.jobs, self.backend
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
                report_page(self.classifier, rows, self._problems, self.count, self.rule), encoding="utf-8"
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
            f"({self.rule}). {self.classifier.card['limits'][0]}"
        )
