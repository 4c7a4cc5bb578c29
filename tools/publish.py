"""Copy what may be published from a run, never notebooks or pixels of X-rays: python tools/publish.py RUN."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pandas as pd

from chestxray.files import whole_file, whole_folder
from chestxray.results import RESULT_SCHEMA, VARIANTS_SCHEMA, comparison_table, read_objects

# Figures that README shows; the notebooks make them from phantoms.
FIGURES = "augmentation clinical confusion_matrix heatmaps model_summary phantoms prediction preprocessing"

_LARGEST_MODEL = 20_000_000  # bytes, unless it is the model of record
_OTHERS = ("audit", "dataset", "comparison", "explanation", "deployment", "clinical")
_PUBLIC_SCHEMAS = (RESULT_SCHEMA, VARIANTS_SCHEMA, *(f"chestxray.{name}/1" for name in _OTHERS))


def publish(run: Path, repository: Path) -> list[str]:
    """Copy results and small models of a run on real data, or the figures of a run on phantoms.

    Of several seeds only the model of seed 0 is copied. Results of recipes ``project…`` go to
    ``results/claims``, without models. Models that were only scored on validation (``score_test=False``)
    become a row of ``results/tried.csv``. Returns what was copied, and what was left out with the reason.

    FileNotFoundError: no result, or a model lacks its files. ValueError: real and synthetic data are mixed.
    """
    public = dict(read_objects(run / "results"))
    public = {path: content for path, content in public.items() if content.get("schema") in _PUBLIC_SCHEMAS}
    if not public:
        raise FileNotFoundError(f"the run has no result. Received: run={str(run)!r}")
    synthetic = {content["data"] == "synthetic" for content in public.values() if "data" in content}
    if len(synthetic) > 1:
        raise ValueError(f"the run mixes real and synthetic data. Received: run={str(run)!r}")
    if synthetic == {True}:
        figures = [run / "images" / f"{name}.png" for name in FIGURES.split()]
        copied = [_copy(path, repository / "images") for path in figures if path.is_file()]
        return [*copied, "left out the results: synthetic"]
    models = [content for content in public.values() if content["schema"] == RESULT_SCHEMA]
    tried = [model for model in models if "test" not in model["metrics"]]
    scored = {model["name"]: model["record"] for model in models if model not in tried}
    tried_names = [model["name"] for model in tried]
    for name in scored:
        for path in (run / "results" / f"{name}.predictions.csv", run / "saved_models" / name):
            if not path.exists():
                raise FileNotFoundError(f"the run lacks a file. Received: path={str(path)!r}")
    report, target = [], repository / "saved_models"
    for name in (name for name in scored if not name.startswith("project")):
        report.append(_copy_model(run / "saved_models" / name, target, scored[name]))
    for path, content in public.items():
        if content.get("name", path.stem) in tried_names:
            continue
        folder = repository / ("results/claims" if path.name.startswith("project") else "results")
        if content["schema"] in (RESULT_SCHEMA, VARIANTS_SCHEMA):
            report.append(_copy(path.with_suffix(".predictions.csv"), folder))
        report.append(_copy(path, folder))
    _append_log(run / "results" / "test_log.csv", repository / "results" / "test_log.csv")
    if tried:
        _add_tried(tried, repository / "results" / "tried.csv")
        report.append(f"results/tried.csv: {', '.join(tried_names)}")
    return report


def _copy(source: Path, folder: Path) -> str:
    with whole_file(folder / source.name) as partial:
        shutil.copyfile(source, partial)
    return f"{folder.name}/{source.name}"


def _copy_model(folder: Path, target: Path, record: bool) -> str:
    size = sum(path.stat().st_size for path in folder.iterdir())
    reason = f"{size / 1e6:.0f} MB" if size > _LARGEST_MODEL and not record else None
    if reason := reason if folder.name.endswith("-s0-t0") else "a further seed":
        shutil.rmtree(target / folder.name, ignore_errors=True)  # it would stand beside newer results
        return f"left out saved_models/{folder.name}: {reason}"
    with whole_folder(target / folder.name) as partial:
        shutil.copytree(folder, partial, dirs_exist_ok=True)
    return f"saved_models/{folder.name}"


def _add_tried(tried: list[dict[str, Any]], path: Path) -> None:
    """Add one row for each configuration; a former row of the same name is replaced."""
    rows = comparison_table(tried, "val")
    dropped = [column for column in rows if column.endswith(("_low", "_high", "_seed"))]
    rows = rows.drop(columns=[*dropped, "record", "model"]).assign(
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


def _append_log(new: Path, published: Path) -> None:
    """Append the test evaluations that are not in the published log yet."""
    if new.is_file():
        former = published.read_text(encoding="utf-8") if published.is_file() else ""
        lines = new.read_text(encoding="utf-8").splitlines(keepends=True)
        added = "".join(line for line in lines if line not in former)
        with whole_file(published) as partial:
            partial.write_text(former + added, encoding="utf-8")


if __name__ == "__main__":
    print(*publish(Path(sys.argv[1]), Path(__file__).resolve().parent.parent), sep="\n")
