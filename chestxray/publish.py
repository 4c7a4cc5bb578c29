"""Copy what may be published from a run into the repository, by allow-list.

Never executed notebooks, and never a figure with the pixels of X-rays, class
means included.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from chestxray.audit import AUDIT_SCHEMA
from chestxray.files import read_json, whole_file, whole_folder
from chestxray.results import RESULT_SCHEMA, VARIANTS_SCHEMA, comparison_table

PUBLIC_FIGURES = (
    "class_balance",
    "learning_curves",
    "confusion",
    "roc_pr",
    "scores",
    "comparison",
    "calibration",
    "variants",
    "perturbation",
    "cascade",
    "latency",
    "overview",
)
"""First words of the figures that show curves and counts only."""

PHANTOM_FIGURES = ("phantoms", "heatmaps", "heatmaps_fine")
"""First words of the figures that are only ever made from phantoms."""

_LARGEST_MODEL = 20_000_000  # bytes
_PUBLIC_SCHEMAS = (
    RESULT_SCHEMA,
    VARIANTS_SCHEMA,
    AUDIT_SCHEMA,
    "chestxray.dataset/1",
    "chestxray.comparison/1",
    "chestxray.explanation/1",
    "chestxray.deployment/1",
)


def publish(run: str | Path, repository: str | Path) -> list[str]:
    """Copy results, curve figures and small models of a run.

    Of several seeds, the model of seed 0 stands for all: the others measure
    how much results vary.

    Of models that were only scored on validation (``score_test=False``),
    which is how a choice is made, ``results/tried.csv`` gets a row each and
    nothing else is copied. Of a run on phantoms only their pictures are
    copied: its results would stand beside real ones under the same names.

    Args:
        run: Output folder of ``chestxray run``.
        repository: Folder with ``results``, ``images`` and ``saved_models``.

    Returns:
        What was copied, and what was left out with the reason.

    Raises:
        FileNotFoundError: The run has no result, or a model on record lacks its files.
        ValueError: The run mixes real and synthetic data, or a figure is damaged.
    """
    run, repository = Path(run), Path(repository)
    contents = {path: read_json(path) for path in sorted((run / "results").glob("*.json"))}
    public = {
        path: content
        for path, content in contents.items()
        if isinstance(content, dict) and content.get("schema") in _PUBLIC_SCHEMAS
    }
    if not public:
        raise FileNotFoundError(f"the run has no result. Received: run={str(run)!r}")
    results = [content for content in public.values() if content["schema"] == RESULT_SCHEMA]
    synthetic = {content["data"] == "synthetic" for content in public.values() if "data" in content}
    if len(synthetic) > 1:
        raise ValueError(f"the run mixes real and synthetic data. Received: run={str(run)!r}")
    real = synthetic != {True}
    tried = [result for result in results if "test" not in result["metrics"]]
    tried_names = [result["name"] for result in tried]
    folders = {
        result["name"]: run / "saved_models" / result["name"]
        for result in results
        if real and result not in tried
    }
    tables = [run / "results" / f"{name}.predictions.csv" for name in folders]
    for path in (*tables, *folders.values()):
        if not path.exists():
            raise FileNotFoundError(f"the run lacks a file of a recorded model. Received: path={str(path)!r}")

    said: list[str] = []
    allowed = PUBLIC_FIGURES if real else PHANTOM_FIGURES
    for path in sorted((run / "images").glob("*.png")):
        kind, _, name = path.stem.partition("-")
        running = kind == "learning_curves" and name not in folders  # drawn before there is a result
        if kind in allowed and name not in tried_names and not running:
            copy = _copy_curves if real else _copy
            copy(path, repository / "images" / path.name, said)
        else:
            said.append(f"left out images/{path.name}")
    if not real:
        return [*said, "left out the results: synthetic"]
    for name, folder in folders.items():
        target = repository / "saved_models" / name
        size = sum(path.stat().st_size for path in folder.iterdir())
        reason = (
            "a further seed"
            if not name.endswith("-s0")
            else f"{size / 1e6:.0f} MB"
            if size > _LARGEST_MODEL
            else None
        )
        if reason:
            shutil.rmtree(target, ignore_errors=True)  # an older one would stand beside newer results
            said.append(f"left out saved_models/{name}: {reason}")
            continue
        with whole_folder(target) as partial:
            shutil.copytree(folder, partial, dirs_exist_ok=True)
        said.append(f"saved_models/{name}")
    for path in tables:
        _copy(path, repository / "results" / path.name, said)
    _join_logs(run / "results" / "test_log.csv", repository / "results" / "test_log.csv")
    if tried:
        _join_tried(tried, repository / "results" / "tried.csv")
        said.append(f"results/tried.csv: {', '.join(tried_names)}")
    for path, content in public.items():
        if path.stem not in tried_names:
            if content["schema"] == VARIANTS_SCHEMA:
                table = path.with_suffix(".predictions.csv")
                _copy(table, repository / "results" / table.name, said)
            _copy(path, repository / "results" / path.name, said)
    return said


def _copy(source: Path, target: Path, said: list[str]) -> None:
    with whole_file(target) as partial:
        shutil.copyfile(source, partial)
    said.append(f"{target.parent.name}/{target.name}")


def _copy_curves(source: Path, target: Path, said: list[str]) -> None:
    """Copy curves on white as a PNG of 256 colours, a third as large; only smoothed edges differ."""
    try:
        with Image.open(source) as figure:
            palette = figure.convert("RGB").quantize(256, dither=Image.Dither.NONE)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"the figure cannot be read ({error}). Received: path={str(source)!r}") from None
    with whole_file(target) as partial:
        palette.save(partial, format="PNG", optimize=True)
    said.append(f"{target.parent.name}/{target.name}")


def _join_tried(tried: list[dict[str, Any]], path: Path) -> None:
    """Add one row for each configuration; a former row of the same name is replaced."""
    rows = comparison_table(tried, "val")
    rows = rows[
        [
            column
            for column in rows
            if not column.endswith(("_low", "_high")) and column not in ("record", "model", "seed")
        ]
    ]
    rows = rows.assign(
        epochs=[json.dumps(result["training"]["epochs"]) for result in tried],
        seconds=[result["training"]["seconds"] for result in tried],
        image=[json.dumps(result["image"]) for result in tried],
        parameters=[json.dumps(result["parameters"]) for result in tried],
    )
    if path.is_file():
        former = pd.read_csv(path)
        rows = pd.concat([former[~former["name"].isin(rows["name"])], rows])
    with whole_file(path) as partial:
        rows.sort_values(["split_rule", "name"]).to_csv(partial, index=False, float_format="%.6g")


def _join_logs(new: Path, published: Path) -> None:
    """Add the looks at test that are not in the published log yet."""
    if not new.is_file():
        return
    lines = published.read_text(encoding="utf-8").splitlines() if published.is_file() else []
    lines += [line for line in new.read_text(encoding="utf-8").splitlines() if line not in lines]
    with whole_file(published) as partial:
        partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
