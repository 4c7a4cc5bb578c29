"""The plan of a run, and its execution with papermill.

A step is one notebook with one recipe. It is done when a result in the run's folder carries its key. Finished
steps are skipped, changed steps run again, and interrupted steps continue from their checkpoint.
"""

import ast
import contextlib
import difflib
import hashlib
import io
import itertools
import json
import logging
import os
import re
import shlex
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pandas as pd
import papermill
import yaml
from joblib import Parallel, delayed

import chestxray
from chestxray import results as records
from chestxray.data.catalog import find_data, scan
from chestxray.data.splits import make_split, split_hash
from chestxray.deployment.card import render
from chestxray.deployment.report import with_html, with_intervals
from chestxray.files import find_weights, read_json, write_text
from chestxray.parallel import native_messages_to, workers
from chestxray.schema import SUBTYPES, check

PACKAGE = Path(__file__).resolve().parent
NOTEBOOKS = PACKAGE.parent / "notebooks"

_EXPLORE, _CNN, _TRANSFER = "01_explore_data", "02_custom_cnn", "03_transfer_learning"
_DISTIL, _EXPLAIN, _COMPARE, _DEPLOY = "04_distillation", "05_explain", "06_compare", "07_deploy"
_CLINICAL = "08_text_and_clinical_data"
Plan = list[tuple[str, str | None]]  # pairs of notebook and recipe
_TRAINED: Plan = [
    (_EXPLORE, None), (_CNN, "custom_cnn"),
    (_TRANSFER, "vgg16"), (_TRANSFER, "resnet50"), (_TRANSFER, "inceptionv3"),
    (_EXPLAIN, "explain_custom_cnn"), (_EXPLAIN, "explain_vgg16"), (_COMPARE, None),
]  # fmt: skip
PLANS: dict[str, Plan] = {
    "demo": [
        (_EXPLORE, None), (_CNN, None), (_TRANSFER, None), (_DISTIL, None),
        (_EXPLAIN, "explain_custom_cnn"), (_COMPARE, None), (_DEPLOY, "deploy_custom_cnn"),
        (_CLINICAL, None),
    ],
    "standard": [*_TRAINED, (_DEPLOY, "deploy_custom_cnn")],
    "full": [
        *_TRAINED, (_TRANSFER, "vgg16_three"), (_DISTIL, "compact_student"),
        (_EXPLAIN, "explain_compact_student"), (_DEPLOY, "deploy_student"),
    ],
}  # fmt: skip
MODELS: dict[str, tuple[str, str]] = {
    name: (_CNN if name.endswith("_cnn") else _TRANSFER, name)
    for name in ("compact_cnn", "custom_cnn", "vgg16", "resnet50", "inceptionv3")
}
"""Notebook and recipe of each model that ``chestxray train`` knows."""

_WAVES = {"01": 0, "02": 1, "03": 1, "04": 2, "05": 3, "06": 4, "07": 4, "08": 4}  # reads earlier ones
_RUN_WIDE = ("data_dir", "split", "output_dir", "results", "step_key")  # set by the run, not by -p
_COMPARED = (records.RESULT_SCHEMA, "chestxray.audit/1", "chestxray.explanation/1")  # read by notebook 06


@dataclass(frozen=True)
class Step:
    """One notebook and its parameters, without ``step_key``. ``data_key`` identifies data and split."""

    name: str
    notebook: Path
    parameters: dict[str, Any]
    data_key: str

    @property
    def wave(self) -> int:
        return _WAVES[self.notebook.name[:2]]

    def key(self) -> str:
        """Identify the step by parameters, data, weights, the models it loads, and code."""
        given = self.parameters
        kept = {name: value for name, value in given.items() if name not in (*_RUN_WIDE, "weights")}
        parts: dict[str, Any] = {"parameters": kept, "data": self.data_key, "code": code_key(self.notebook)}
        if "weights" in given and "backbone" in given:
            parts["weights"] = _weights_key(given["weights"], given["backbone"])
        for name, folder in _models_of(given):
            parts[f"model {name}"] = _digest_of(folder / "card.json")
        if given.get("masks"):
            masks = Path(given["masks"])
            files = sorted(masks.rglob("*.png")) if masks.is_dir() else [masks]
            parts["masks"] = [f"{file.name} {_digest_of(file)}" for file in files]
        if "results" in given:
            parts["results"] = [
                f"{path.name} {_digest_of(path)}"
                for path, content in records.read_objects(given["results"])
                if content.get("schema") in _COMPARED
                and content.get("split_rule", given["split"]) == given["split"]
            ]
        return _digest(json.dumps(parts, sort_keys=True))


def _models_of(given: Mapping[str, Any]) -> list[tuple[str, Path]]:
    """Names and folders of the models that a notebook with these parameters loads."""
    names = [given.get("model"), given.get("other")]
    for role in ("models", "teachers", "teachers_three"):
        names += given.get(role, [])
    place = given.get("output_dir", ""), given.get("split", "")
    seeds = given.get("split_seed", 0), given.get("train_seed", 0)
    return [(name, records.find_classifier(name, *place, *seeds)) for name in names if name]


def code_key(notebook: Path) -> str:
    """Hash the syntax trees, without docstrings, of a notebook's cells and the package modules they need."""
    cells = [cell.source for cell in nbformat.read(notebook, as_version=4).cells if cell.cell_type == "code"]
    source = re.sub(r"^([ \t]*)[%!](?=\w|%).*$", r"\1pass", "\n".join(cells), flags=re.MULTILINE)  # magics
    try:
        trees = {"": ast.parse(source)}
    except SyntaxError:  # the notebook will raise it
        return _digest(source)
    waiting = _imported_modules(trees[""])
    while waiting:
        module = waiting.pop()
        if module not in trees:
            trees[module] = ast.parse(_module_file(module).read_text(encoding="utf-8"))
            waiting |= _imported_modules(trees[module])
    code = {module: _statements(tree) for module, tree in sorted(trees.items())}
    if "chestxray.deployment.card" in code:
        code |= {path.name: path.read_text(encoding="utf-8") for path in sorted(PACKAGE.rglob("*.j2"))}
    return _digest(json.dumps(code))


def _module_file(module: str) -> Path | None:
    """File of a module of the package; None if there is no such module."""
    place = PACKAGE.joinpath(*module.split(".")[1:])
    files = (place.with_suffix(".py"), place / "__init__.py")
    return next((file for file in files if file.is_file()), None)


def _imported_modules(tree: ast.Module) -> set[str]:
    """Modules of the package that a syntax tree imports, also by ``cx.name``."""
    names, aliases = set(), set()
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.If)]
    typing = [block for block in blocks if "TYPE_CHECKING" in ast.unparse(block.test)]
    unused = {id(node) for block in typing for node in ast.walk(block)}
    for node in (node for node in ast.walk(tree) if id(node) not in unused):
        if isinstance(node, ast.Import):
            names |= {name.name for name in node.names}
            aliases |= {name.asname or name.name for name in node.names if name.name == "chestxray"}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{name.name}" for name in node.names} | {node.module}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            names.add(f"chestxray.{node.attr}")
    homes = {f"chestxray.{name}": module for name, module in chestxray.MODULE_OF.items()}
    names = {homes.get(name, name) for name in names if name.startswith("chestxray.")}
    return {name for name in names if _module_file(name)}


def _statements(tree: ast.Module) -> str:
    """Source of a syntax tree, without docstrings and other statements that are only a text."""
    for node in ast.walk(tree):
        if isinstance(body := getattr(node, "body", None), list):
            texts = [s for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
            node.body = [statement for statement in body if statement not in texts] or [ast.Pass()]
    return ast.unparse(tree)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _digest_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"


def _weights_key(weights: str, backbone: str) -> str:
    try:
        source, recorded = find_weights(weights or None, backbone)
    except FileNotFoundError:
        return "missing"  # the notebook raises the same error
    return _digest_of(Path(source)) if source and Path(source).is_file() else recorded


def make_plan(
    preset: str | Plan,
    data_dir: str,
    split_rules: list[str],
    output_dir: Path,
    overrides: dict[str, Any],
    only: str | None = None,
) -> list[Step]:
    """Turn a preset into steps in the order in which they can run, and check all arguments.

    For the arguments see :func:`run_plan`. Raises ValueError for an unknown preset, no step left, an unknown
    parameter, a wrong type, or data that cannot be split; FileNotFoundError without data or notebooks.
    """
    known_preset = not isinstance(preset, str) or preset in PLANS
    check(known_preset, f"preset must be one of {list(PLANS)}", preset=preset)
    message = "the notebooks are not installed; clone https://github.com/OWNER/chestxray and run it there"
    check(NOTEBOOKS.is_dir(), message, FileNotFoundError, notebooks=str(NOTEBOOKS))
    if reserved := sorted(set(overrides) & set(_RUN_WIDE)):
        raise ValueError(f"this is set by options of the run. Received: parameter={reserved[0]!r}")
    root = find_data(data_dir)
    catalog = scan(root, tuple(overrides["classes"]) if overrides.get("classes") else None)
    content, split_seed = _digest("".join(catalog["sha256"])), overrides.get("split_seed", 0)
    hashes = {rule: split_hash(make_split(catalog, rule, split_seed)) for rule in split_rules}
    has_subtypes = catalog["subtype"].isin(SUBTYPES).all()
    run_wide = {"output_dir": str(output_dir), "results": str(output_dir / "results")}
    run_wide |= {"data_dir": "phantoms" if data_dir == "phantoms" else str(root)}
    steps, known = [], {"classes"}
    pairs = PLANS[preset] if isinstance(preset, str) else preset
    for split_rule, (notebook, recipe) in itertools.product(split_rules, pairs):
        name = "-".join(filter(None, (notebook, recipe, split_rule)))
        if only and not name.startswith(only):
            continue
        source = NOTEBOOKS / f"{notebook}.ipynb"
        defaults = papermill.inspect_notebook(str(source))
        known |= set(defaults)
        given = _read_recipe(recipe, split_rule) if recipe else {}
        if unknown := sorted(set(given) - set(defaults)):
            raise ValueError(f"{notebook} has no parameter {unknown}. Received: recipe={recipe!r}")
        for key in set(overrides) & set(defaults):
            _check_type(key, overrides[key], ast.literal_eval(defaults[key]["default"]))
        values = {**run_wide, "split": split_rule, **overrides}
        given |= {key: value for key, value in values.items() if key in defaults}
        if notebook == _CLINICAL and data_dir != "phantoms" and not given.get("table"):
            print(f"{name} is left out: it needs a table with notes and measurements (-p table FILE)")
            continue
        if given.get("outputs") == 3 and not has_subtypes:
            print(f"{name} is left out: not every image is known to be {', '.join(SUBTYPES)}")
            continue
        if "weights" in given:
            given.setdefault("backbone", ast.literal_eval(defaults["backbone"]["default"]))
            if given["weights"] and Path(given["weights"]).exists():
                given["weights"] = str(Path(given["weights"]).resolve())  # kernels run elsewhere
        steps.append(Step(name, source, given, f"{hashes[split_rule]} {content}"))
    check(steps, "no step has a name that begins like this", only=only)
    names = [step.parameters.get("name") for step in steps]
    for step in steps if only else ():
        for name, folder in _models_of(step.parameters):
            message = f"{step.notebook.stem} needs the model {name}; run its step first"
            check(name in names or folder.is_dir(), message, only=only)
    name = overrides.get("name")
    check(not name or names.count(name) < 2, "several steps would write this result; use --only", name=name)
    if unknown := sorted(set(overrides) - known):
        names = sorted(known - set(_RUN_WIDE))
        near = difflib.get_close_matches(unknown[0], names, 1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
        message = f"no notebook of this run has this parameter; {hint}"
        raise ValueError(f"{message}. Received: parameter={unknown[0]!r}")
    return sorted(steps, key=lambda step: step.wave)


def _check_type(name: str, value: Any, default: Any) -> None:
    """Raise ValueError unless a parameter has the type of its default; None and {} mean the default."""
    allowed = (int, float) if isinstance(default, float) else type(default)
    same = isinstance(value, allowed) and isinstance(value, bool) == isinstance(default, bool)
    empty = value is None and isinstance(default, dict)
    check(same or empty, f"{name} must be of type {type(default).__name__}", **{name: value})


def train_model(
    model: str,
    data_dir: str,
    name: str,
    output_dir: str | Path,
    split_rule: str = "patient",
    epochs: int | None = None,
    overrides: Mapping[str, Any] | None = None,
    force: bool = False,
) -> int:
    """Train one model by running its notebook; see :func:`run_plan`.

    ``model`` is a key of :data:`MODELS`, ``name`` the name of the result. ``epochs`` counts all phases, of
    which the head gets a quarter; None means the recipe's. ``force`` replaces a result with other settings.
    Raises ValueError for such a result without ``force``, and for a name that cannot be a folder's.
    """
    # It is also the name of a folder.
    check(re.fullmatch(r"\w[\w.-]*", name), "a name has letters, digits, _, - and . only", name=name)
    plan, given = [MODELS[model]], {"name": name, **(overrides or {})}
    recipe = _read_recipe(model, split_rule)
    if epochs and "fine" not in recipe:
        given["epochs"] = epochs
    elif epochs:
        head = max(1, epochs // 4)
        given["head"] = recipe["head"] | {"epochs": head}
        given["fine"] = recipe["fine"] | {"epochs": epochs - head} if epochs > head else None
        if epochs - head == 1:
            given["fine"]["warmup_epochs"] = 0
    output_dir = Path(output_dir).resolve()
    (step,) = make_plan(plan, data_dir, [split_rule], output_dir, given)
    seeds = given.get("split_seed", 0), given.get("train_seed", 0)
    result = output_dir / "results" / f"{records.result_name(name, split_rule, *seeds)}.json"
    if result.is_file() and not force and read_json(result).get("step_key") != step.key():
        message = f"{result.name} was made with other settings, data or code; use another name, or --force"
        raise ValueError(f"{message}. Received: name={name!r}")
    return run_plan(plan, data_dir, [split_rule], output_dir, given)


def _read_recipe(name: str, split_rule: str) -> dict[str, Any]:
    """Read a recipe; ``<name>_<split rule>`` takes its place where there is one."""
    special, common = (NOTEBOOKS / "recipes" / f"{stem}.yaml" for stem in (f"{name}_{split_rule}", name))
    return yaml.safe_load((special if special.is_file() else common).read_text(encoding="utf-8"))


def results_of(key: str, output_dir: Path) -> list[Path]:
    """Results of a run that carry a step key; the step is done if there is one."""
    contents = records.read_objects(output_dir / "results")
    return [path for path, content in contents if content.get("step_key") == key]


class _Progress(io.TextIOBase):
    """Output of a notebook: prints its epochs, with the time left, and its long computations.

    It also raises Ctrl-C in the run if an event loop suppressed it.
    """

    interrupted = False
    _last = (0, 0.0)  # number of the last epoch, and when it ended

    @contextlib.contextmanager
    def watch(self) -> Iterator[None]:
        """Notice Ctrl-C while a notebook runs."""
        if threading.current_thread() is not threading.main_thread():  # only this one gets signals
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
            if epoch := re.match(r"epoch +(\d+)/(\d+)", line):
                number, count = map(int, epoch.groups())
                (former, ended), self._last = self._last, (number, time.monotonic())
                left = (count - number) * (self._last[1] - ended)
                if left and number == former + 1 > 1:
                    line += f"  {left / 60:.0f} min left" if left > 90 else f"  {left:.0f} s left"
            elif not re.match(r"computing |stored activations|.*(continued after epoch|is replaced$)", line):
                continue
            print(f"    {line}", flush=True)


def _run_step(step: Step, title: str, output_dir: Path, dry_run: bool, force: bool) -> str | None:
    """Execute a notebook into ``results/notebooks`` unless its step is done; return the name if it failed."""
    key = step.key()
    done = results_of(key, output_dir)
    if done and not force:
        print(f"{title}: done earlier")
        return None
    print(f"{title}{': would run' if dry_run else ' …'}", flush=True)
    if dry_run:
        return None
    for path in done:
        path.unlink()  # it is written again
    logging.getLogger("papermill").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)  # it reports kernels that Ctrl-C ended
    target = output_dir / "results" / "notebooks" / f"{step.name}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    lines, paths = _Progress(), (str(step.notebook), str(target))
    kernel = {"kernel_name": "python3", "cwd": str(NOTEBOOKS), "extra_arguments": ["--log-level=40"]}
    output = {"stdout_file": lines, "progress_bar": False, "execution_timeout": 48 * 3600}
    try:
        with native_messages_to(target.with_suffix(".log")), lines.watch():
            papermill.execute_notebook(*paths, step.parameters | {"step_key": key}, **kernel, **output)
        if not results_of(key, output_dir):
            raise RuntimeError("the notebook ended without writing its result")
        return None
    except papermill.PapermillExecutionError as error:
        reason = f" in cell [{error.exec_count}]: {error.ename}: {error.evalue}"
    except RuntimeError as error:  # also if the kernel died
        reason = f": {error}"
    print(f"    FAILED{reason}", flush=True)
    return step.name


def run_plan(
    preset: str | Plan = "demo",
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
    """Run all steps of a plan. Return 0, or 1 if a step failed; the steps after a failed one still run.

    Args:
        preset: ``demo``, ``standard`` or ``full``, or a list of pairs of notebook and recipe.
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        split_rules: The plan runs for each of them. By default ``patient``, and all for ``full``.
        overrides: Parameters for every notebook that has them.
        only: Keep the steps whose name begins with this.
        dry_run: Only print the steps.
        force: Run finished steps again.
        jobs: Number of steps of one wave that run at the same time; -1 for one per worker.
        backend: See :func:`chestxray.parallel.workers`. It must use processes; several machines share the
            data and the run's folder, but not the cache.

    Raises as :func:`make_plan` does.
    """
    output_dir, overrides = Path(output_dir).resolve(), overrides or {}
    for name in ("CHESTXRAY_CACHE", "CHESTXRAY_WEIGHTS"):
        if os.environ.get(name):
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())  # kernels run elsewhere
    split_rules = split_rules or (["official", "image", "patient"] if preset == "full" else ["patient"])
    steps = make_plan(preset, data_dir, split_rules, output_dir, overrides, only)
    for name in overrides:
        notebooks = sorted({step.notebook.stem for step in steps if name in step.parameters})
        print(f"{name} is set in {', '.join(notebooks) or 'no notebook'}")
    titles = {step.name: f"[{number}/{len(steps)}] {step.name}" for number, step in enumerate(steps, 1)}
    failures: list[str] = []
    with workers(backend):
        for _, wave in itertools.groupby(steps, lambda step: step.wave):
            tasks = [delayed(_run_step)(step, titles[step.name], output_dir, dry_run, force) for step in wave]
            failures += filter(None, Parallel(jobs)(tasks))
    if not dry_run:
        _print_summary(output_dir, find_data(data_dir))
    if failures:
        print(f"{len(failures)} of {len(steps)} steps failed: {', '.join(failures)}")
    return 1 if failures else 0


def _print_summary(output_dir: Path, root: Path = Path()) -> None:
    """Print the scores on test, or on validation if no model was evaluated on test, and write the page."""
    try:
        results = records.read_results(output_dir / "results")
    except FileNotFoundError:
        print("no model on record yet")
        return
    subset = "test" if any("test" in result["metrics"] for result in results) else "val"
    scored = [result for result in results if subset in result["metrics"]]
    counts = [sum(result["confusion"][subset]["half"].values()) for result in scored]
    metrics = ("auroc", "accuracy", "sensitivity", "specificity", "f1")
    columns = [metric + ending for metric in metrics for ending in ("", "_low", "_high")]
    scores = records.comparison_table(scored, subset)[columns]
    names = []
    for result in scored:
        random = "backbone" in result["parameters"] and result["weights"] == "random"
        software = "; it tests the software and is no result" * (result["data"] == "synthetic")
        names.append(result["name"] + f" (random weights{software})" * random)
    table = with_intervals(pd.DataFrame({"name": names, "images": counts}).join(scores))
    data = ", ".join(sorted({result["data"] for result in results}))
    title = f"{'Test' if subset == 'test' else 'Validation'} images ({data} data)"
    text = "Threshold by Youden on validation, 95 % intervals over patients."
    text += "" if subset == "test" else " No model was evaluated on test."
    print(f"\n{title}\n{text}\n{table.to_string(index=False)}")
    hashes = {(r["split_rule"], r["name"].split("-")[-2], r["split_hash"]) for r in results}
    if len(hashes) > len({names[:2] for names in hashes}):
        print("Not all models were scored on the same images: some are from another state of the data.")
    best = scored[0]["name"]  # on validation
    image = root / records.read_predictions(output_dir / "results", best)["path"].iloc[-1]
    command = shlex.join(["chestxray", "predict", f"{output_dir}/saved_models/{best}", str(image)])
    print(f"\nclassify an image: {command}")
    print(f"open this page: {write_page(output_dir, scored, (title, text, table))}")


def write_page(output_dir: Path, results: list[records.Result], scores: tuple) -> Path:
    """Write ``index.html`` of a run: ``scores`` (title, text, table), worst errors, figures, notebooks."""
    from nbconvert import HTMLExporter

    notebooks = sorted((output_dir / "results" / "notebooks").glob("*.ipynb"))
    for notebook in notebooks:
        write_text(notebook.with_suffix(".html"), HTMLExporter().from_filename(str(notebook))[0])
    sections = [scores]
    for _, group in itertools.groupby(results, lambda result: result["split_rule"]):
        best = next(group)  # ordered by validation
        rows = records.read_predictions(output_dir / "results", best["name"])
        rows = rows[rows["split"] == rows["split"].iloc[-1]].sort_values("probability", kind="stable")
        is_called = rows["probability"] >= best["thresholds"]["youden"]
        missed = rows[~is_called & (rows["label"] == 1)].head(5).assign(error="false negative")
        alarms = rows[is_called & (rows["label"] == 0)].tail(5)[::-1].assign(error="false positive")
        title = f"Worst errors of {best['name']}, the best one on validation"
        sections.append((title, "", pd.concat([missed, alarms])[["error", "path", "probability"]]))
    figures = [(path.stem, f"images/{path.name}") for path in sorted((output_dir / "images").glob("*.png"))]
    links = {path.stem: path.with_suffix(".html").relative_to(output_dir).as_posix() for path in notebooks}
    values = {"sections": with_html(sections), "figures": figures, "links": links}
    page = output_dir / "index.html"
    write_text(page, render("run.html.j2", title="Chest X-rays: training run", **values))
    return page
