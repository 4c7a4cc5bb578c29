"""The plan of a run, and how papermill plays it.

A step is one notebook with one recipe. It is done when a result in the run's
folder carries its key, which is made of the parameters, the data and their
split, the weights, the notebook's source and the package's version: finished
steps are skipped, changed ones run again, interrupted ones go on from their
checkpoint.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import logging
import os
import re
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import papermill
import yaml
from joblib import Parallel, delayed

from chestxray import __version__
from chestxray.data.catalog import find_data, scan
from chestxray.data.splits import make_split, split_hash
from chestxray.files import find_weights, read_json
from chestxray.parallel import native_messages_to, workers
from chestxray.results import RESULT_SCHEMA, STEP_KEY, comparison_table, find_classifier, read_results
from chestxray.schema import SUBTYPES

NOTEBOOKS = Path(__file__).resolve().parent.parent / "notebooks"
_SOURCE_URL = "https://github.com/chestxray/chestxray"
_CELL_TIMEOUT = 48 * 3600  # seconds

_STANDARD = [
    ("01_explore_data", None),
    ("02_custom_cnn", "custom_cnn"),
    ("03_transfer_learning", "vgg16"),
    ("03_transfer_learning", "resnet50"),
    ("03_transfer_learning", "inceptionv3"),
    ("05_explain", "explain_custom_cnn"),
    ("05_explain", "explain_vgg16"),
    ("06_compare", None),
    ("07_deploy", "deploy_custom_cnn"),
]
PLANS: dict[str, list[tuple[str, str | None]]] = {
    "demo": [
        ("01_explore_data", None),
        ("02_custom_cnn", None),
        ("03_transfer_learning", None),
        ("04_distillation", None),
        ("05_explain", "explain_custom_cnn"),
        ("06_compare", None),
        ("07_deploy", "deploy_custom_cnn"),
    ],
    "standard": _STANDARD,
    "full": [
        *_STANDARD[:-2],
        ("03_transfer_learning", "vgg16_three"),
        ("04_distillation", "compact_student"),
        ("05_explain", "explain_compact_student"),
        ("06_compare", None),
        ("07_deploy", "deploy_student"),
    ],
}
"""Pairs of notebook and recipe (of which a split rule may have one of its own, see :func:`_read_recipe`);
``full`` plays them for every split rule, and distils students."""


_WAVES = {"01": 0, "02": 1, "03": 1, "04": 2, "05": 3, "06": 3, "07": 3}
"""By number of the notebook: those of a later wave use what earlier ones put on record."""


def make_plan(
    preset: str,
    data_dir: str,
    split_rules: list[str],
    output_dir: Path,
    overrides: dict[str, Any],
    only: str | None = None,
) -> list[Step]:
    """Turn a preset into steps, and check everything that can be checked before the first one runs.

    Args:
        preset: ``demo``, ``standard`` or ``full``.
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        split_rules: Split rules; the plan is played for each.
        output_dir: Folder of the run.
        overrides: Parameters for every notebook that has them.
        only: Keep the steps whose name begins with this.

    Raises:
        ValueError: Unknown preset, no step left, a parameter that no notebook
            has, or data that cannot be split.
        FileNotFoundError: No data, or not run from a checkout.
    """
    if preset not in PLANS:
        raise ValueError(f"preset must be one of {list(PLANS)}. Received: preset={preset!r}")
    if not NOTEBOOKS.is_dir():
        raise FileNotFoundError(
            "the notebooks are not part of the installed package; clone "
            f"{_SOURCE_URL} and run it there. Received: notebooks={str(NOTEBOOKS)!r}"
        )
    if set(overrides) & set(RUN_WIDE):
        raise ValueError(
            "data, split and folders are set by the options of the run. "
            f"Received: parameter={sorted(set(overrides) & set(RUN_WIDE))[0]!r}"
        )
    root = find_data(data_dir)
    catalog = scan(root, tuple(overrides["classes"]) if overrides.get("classes") else None)
    content = hashlib.sha256("".join(catalog["sha256"]).encode()).hexdigest()[:16]
    steps, known = [], set()
    for split_rule in split_rules:
        table = make_split(catalog, split_rule, overrides.get("split_seed", 0))
        for notebook, recipe in PLANS[preset]:
            name = "-".join(filter(None, (notebook, recipe, split_rule)))
            if only and not name.startswith(only):
                continue
            source = NOTEBOOKS / f"{notebook}.ipynb"
            defaults = papermill.inspect_notebook(str(source))
            if not defaults:
                raise ValueError(f"the notebook has no parameters cell. Received: notebook={str(source)!r}")
            given = _read_recipe(recipe, split_rule) if recipe else {}
            unknown = set(given) - set(defaults)
            if unknown:
                raise ValueError(
                    f"{notebook} has no parameter {sorted(unknown)}. Received: recipe={recipe!r}"
                )
            run_wide = {
                "data_dir": str(data_dir) if data_dir == "phantoms" else str(root),
                "split": split_rule,
                "output_dir": str(output_dir),
                "results": str(output_dir / "results"),
            }
            given |= {key: value for key, value in {**run_wide, **overrides}.items() if key in defaults}
            known |= set(defaults)
            if given.get("outputs") == 3 and not catalog["subtype"].isin(SUBTYPES).all():
                print(f"{name} is left out: not every image is known to be {', '.join(SUBTYPES)}")
                continue
            if given.get("weights") and Path(given["weights"]).exists():
                given["weights"] = str(Path(given["weights"]).resolve())  # kernels run elsewhere
            steps.append(Step(name, source, given, f"{split_hash(table)} {content}"))
    if not steps:
        raise ValueError(f"no step of the plan begins like this. Received: only={only!r}")
    names = [step.name for step in steps if step.parameters.get("name") == overrides.get("name", "")]
    if "name" in overrides and len(names) > 1:
        raise ValueError(
            f"{len(names)} steps would write the same result; choose one by --only. "
            f"Received: name={overrides['name']!r}"
        )
    if unknown := sorted(set(overrides) - known - {"classes"}):  # those have served to scan the folder
        raise ValueError(
            f"no notebook of this run has this parameter; there are {sorted(known)}. "
            f"Received: parameter={unknown[0]!r}"
        )
    return steps


def _read_recipe(name: str, split_rule: str) -> dict[str, Any]:
    """The recipe of this name; ``<name>_<rule>`` where the split rule has one of its own."""
    own, common = (NOTEBOOKS / "recipes" / f"{stem}.yaml" for stem in (f"{name}_{split_rule}", name))
    return yaml.safe_load((own if own.is_file() else common).read_text(encoding="utf-8"))


def is_done(key: str, output_dir: Path) -> bool:
    """Whether a result with this step key exists."""
    return bool(_results_of(key, output_dir))


def _results_of(key: str, output_dir: Path) -> list[Path]:
    found = {path: read_json(path) for path in (output_dir / "results").glob("*.json")}
    return [
        path
        for path, content in found.items()
        if isinstance(content, dict) and content.get("step_key") == key
    ]


def play(step: Step, output_dir: Path) -> None:
    """Execute one notebook into ``results/notebooks``; the kernel's native messages go to a log beside it.

    Raises:
        papermill.PapermillExecutionError: A cell raised.
        RuntimeError: The notebook ended without writing its result.
    """
    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # that Ctrl-C ends a kernel is no news
    target = output_dir / "results" / "notebooks" / f"{step.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    key = step.key()
    for path in _results_of(key, output_dir):
        path.unlink()  # it will be written anew
    os.environ[STEP_KEY] = key
    lines = EpochLines()
    try:
        with native_messages_to(target.with_suffix(".log")), lines.watch():
            papermill.execute_notebook(
                str(step.notebook),
                str(target),
                parameters=step.parameters,
                cwd=str(NOTEBOOKS),
                kernel_name="python3",
                progress_bar=False,
                stdout_file=lines,
                execution_timeout=_CELL_TIMEOUT,
                extra_arguments=["--log-level=40"],
            )
    finally:
        del os.environ[STEP_KEY]
    if not is_done(key, output_dir):
        raise RuntimeError("the notebook ended without writing its result")


def run_plan(
    preset: str = "demo",
    data_dir: str = "phantoms",
    split_rules: list[str] | None = None,
    output_dir: str | Path = "runs/demo",
    overrides: dict[str, Any] | None = None,
    only: str | None = None,
    dry_run: bool = False,
    force: bool = False,
    jobs: int = 1,
    backend: str | None = None,
) -> int:
    """Play a plan; a failing step is named and the others go on.

    Steps that do not need each other's models can be played at the same time,
    on several machines, too, if they share the data and the run's folder and
    each has a cache of its own.

    Args:
        preset, data_dir, output_dir, overrides, only: See :func:`make_plan`.
        split_rules: Split rules; by default ``patient``, and all for ``full``.
        dry_run: Only say what would run.
        force: Run finished steps again.
        jobs: Steps at a time; -1 takes one a worker.
        backend: Of joblib, see :func:`chestxray.parallel.workers`;
            one that works in processes, because a step needs its own.

    Returns:
        0, or 1 when a step failed.

    Raises:
        ValueError, FileNotFoundError: See :func:`make_plan`.
    """
    output_dir = Path(output_dir).resolve()
    for name in ("CHESTXRAY_CACHE", "CHESTXRAY_WEIGHTS"):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())  # kernels run elsewhere
    split_rules = split_rules or (["official", "image", "patient"] if preset == "full" else ["patient"])
    steps = sorted(make_plan(preset, data_dir, split_rules, output_dir, overrides or {}, only), key=_wave)
    titles = {step.name: f"[{number}/{len(steps)}] {step.name}" for number, step in enumerate(steps, 1)}
    for name in overrides or {}:
        takers = sorted({step.notebook.stem for step in steps if name in step.parameters})
        print(f"{name} is set in {', '.join(takers) or 'no notebook'}")
    failures = []
    with workers(backend):
        for _, wave in itertools.groupby(steps, _wave):
            tasks = [delayed(_attempt)(step, titles[step.name], output_dir, dry_run, force) for step in wave]
            failures += filter(None, Parallel(jobs)(tasks))
    if not dry_run:
        _print_summary(output_dir)
    for failure in failures:
        print(f"FAILED {failure}")
    return 1 if failures else 0


def _wave(step: Step) -> int:
    return _WAVES[step.notebook.name[:2]]


def _attempt(step: Step, title: str, output_dir: Path, dry_run: bool, force: bool) -> str | None:
    """Play a step unless it is done; what went wrong, in words."""
    if not force and is_done(step.key(), output_dir):
        print(f"{title}: done earlier")
        return None
    print(f"{title}{': would run' if dry_run else ' …'}", flush=True)
    if dry_run:
        return None
    try:
        play(step, output_dir)
    except papermill.PapermillExecutionError as error:
        print(f"    failed in cell [{error.exec_count}]: {error.ename}: {error.evalue}", flush=True)
        return f"{step.name}, cell [{error.exec_count}]: {error.ename}: {error.evalue}"
    except RuntimeError as error:
        print(f"    failed: {error}", flush=True)
        return f"{step.name}: {error}"
    return None


def _print_summary(output_dir: Path) -> None:
    try:
        results = read_results(output_dir / "results")
    except FileNotFoundError:
        print("no model on record yet")
        return
    table = comparison_table(results)
    if not table.empty:
        print(
            f"\nTest images ({', '.join(sorted(set(table['data'])))} data), threshold by Youden on "
            "validation:"
        )
        columns = ["name", "data", "weights", "auroc", "accuracy", "sensitivity", "specificity", "f1"]
        print(table[columns].to_string(index=False, float_format="{:.3f}".format))
        if (table.groupby(["split_rule", "split_seed"])["split_hash"].nunique() > 1).any():
            print("Not all were scored on the same images: some are left from another state of the data.")
    print(f"\nresults, figures, models: {output_dir}\nexecuted notebooks: {output_dir / 'results/notebooks'}")


RUN_WIDE = ("data_dir", "split", "output_dir", "results")
"""Parameters that are set by options of the run, not by -p."""

_COMPARED = (RESULT_SCHEMA, "chestxray.audit/1", "chestxray.explanation/1")
"""What a comparison reads."""


@dataclass(frozen=True)
class Step:
    """One notebook with its parameters.

    Attributes:
        name: Name of the executed notebook.
        notebook: The source.
        parameters: What papermill injects.
        data_key: Identifies the data and their split.
    """

    name: str
    notebook: Path
    parameters: dict[str, Any]
    data_key: str

    def key(self) -> str:
        """Identify the step by everything that its result depends on."""
        source = [cell.source for cell in nbformat.read(self.notebook, as_version=4).cells]
        parts = {
            "parameters": {
                name: value for name, value in self.parameters.items() if name not in (*RUN_WIDE, "weights")
            },
            "data": self.data_key,
            "source": source,
            "version": __version__,
        }
        if "weights" in self.parameters and "backbone" in self.parameters:
            parts["weights"] = _weights_key(self.parameters["weights"], self.parameters["backbone"])
        models = [self.parameters.get(role) for role in ("model", "other")]
        for role in ("models", "teachers", "teachers_three"):
            models += self.parameters.get(role, [])
        for name in filter(None, models):
            parts[f"model {name}"] = _model_key(name, self.parameters)
        if "results" in self.parameters:
            parts["results"] = _results_key(Path(self.parameters["results"]))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _weights_key(weights: str, backbone: str) -> str:
    try:
        source, recorded = find_weights(weights or None, backbone)
    except FileNotFoundError:
        return "missing"  # the notebook says so in its own words
    if source is None or not Path(source).is_file():
        return recorded
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_key(name: str, parameters: dict[str, Any]) -> str:
    """Contents of the card of a model that a notebook loads."""
    card = (
        find_classifier(name, Path(parameters["output_dir"]), parameters["split"], parameters.get("split_seed", 0), parameters.get("train_seed", 0))
        / "card.json"
    )
    return hashlib.sha256(card.read_bytes()).hexdigest() if card.is_file() else "missing"


def _results_key(folder: Path) -> list[str]:
    """Contents of the files that a comparison reads."""
    found = [(path, read_json(path)) for path in sorted(folder.glob("*.json"))]
    return [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path, content in found
        if isinstance(content, dict) and content.get("schema") in _COMPARED
    ]


class EpochLines:
    """Passes a notebook's epoch lines on to the terminal, and Ctrl-C on to the run.

    A Ctrl-C that arrives inside the event loop of others may be swallowed
    there; it is then raised again with the next line, or at the end.
    """

    interrupted = False

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Notice Ctrl-C while a notebook plays."""
        if threading.current_thread() is not threading.main_thread():  # signals are no business of others
            yield
            return
        former = signal.signal(signal.SIGINT, self._interrupt)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, former)
        if self.interrupted:
            raise KeyboardInterrupt

    def _interrupt(self, *_: Any) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def write(self, text: str) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
        for line in text.splitlines():
            if re.match(r"epoch +\d+/|.*continued after epoch", line):
                print(f"    {line}", flush=True)

    def flush(self) -> None:
        """Nothing is buffered."""
