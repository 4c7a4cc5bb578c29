"""The result files of a run: what is written to them, and how they are read."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from chestxray import __version__
from chestxray.data.tables import read_table
from chestxray.files import project_path, read_json, write_json

RESULT_SCHEMA = "chestxray.result/1"
ARMS_SCHEMA = "chestxray.arms/1"
STEP_KEY = "CHESTXRAY_STEP_KEY"
"""Environment variable by which ``chestxray run`` tells a notebook which step it is."""


def versions() -> dict[str, str]:
    """Versions of everything that can change a number."""
    packages = ("tensorflow", "keras", "numpy", "opencv-python", "scikit-learn")
    return {
        "chestxray": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
    }


def write_result(output_dir: str | Path, content: dict[str, Any], final: bool = True) -> Path:
    """Write ``results/<name>.json``, with the key of the step that runs, and say where.

    Args:
        output_dir: Folder of the run.
        content: With ``name``.
        final: False for what a step records on its way: it is not done by that.
    """
    path = Path(output_dir) / "results" / f"{content['name']}.json"
    write_json(path, content | {"step_key": os.environ.get(STEP_KEY) if final else None})
    print(f"wrote results/{path.name}")
    return path


def find_classifier(name: str, output_dir: str | Path, rule: str, seed: int) -> Path:
    """Say where a saved classifier is.

    Args:
        name: Name of a model of this run (without split rule and seed), or a
            path with a slash; relative ones start at the checkout.
        output_dir: Folder of the run.
        rule, seed: Of the split.
    """
    if "/" in name:
        return project_path(name)
    return Path(output_dir) / "saved_models" / f"{name}-{rule}-s{seed}"


def read_results(folder: str | Path) -> list[dict[str, Any]]:
    """Read the results of all models in a folder, ordered by split rule and AUROC on validation.

    Raises:
        FileNotFoundError: There is no such folder, or no result in it.
    """
    folder = Path(folder)
    found = [read_json(path) for path in sorted(folder.glob("*.json"))] if folder.is_dir() else []
    results = [
        result for result in found if isinstance(result, dict) and result.get("schema") == RESULT_SCHEMA
    ]
    if not results:
        raise FileNotFoundError(f"no result of a model here. Received: folder={str(folder)!r}")
    return sorted(
        results,
        key=lambda result: (
            result["split_rule"],
            -result["metrics"]["val"]["auroc"]["value"],
            result["name"],
        ),
    )


def read_predictions(folder: str | Path, name: str) -> pd.DataFrame:
    """Read the predictions of one model (contract 5)."""
    table = read_table(Path(folder) / f"{name}.predictions.csv", ("path", "group", "subtype", "split"))
    return table.fillna({"subtype": ""})


def comparison_table(results: list[dict[str, Any]], part: str = "test", rule: str = "youden") -> pd.DataFrame:
    """Put the metrics of several models side by side.

    Args:
        results: From :func:`read_results`.
        part: val or test; models without it are left out.
        rule: Rule of the threshold.

    Returns:
        One row a model: name (and its parts: model, seed), data, split_rule,
        split_hash, record, weights, parameter_count, and for each metric its
        value, ``_low`` and ``_high``.
    """
    rows = []
    for result in results:
        if part not in result["metrics"]:
            continue
        metrics = result["metrics"][part]
        row = {
            key: result[key]
            for key in ("name", "data", "split_rule", "split_hash", "record", "weights", "parameter_count")
        }
        model, _, seed = result["name"].rsplit("-", 2)
        row |= {"model": model, "seed": int(seed.removeprefix("s"))}
        for metric, entry in {**metrics, **metrics[rule]}.items():
            if "value" in entry:
                row |= {
                    metric: entry["value"],
                    f"{metric}_low": entry["low"],
                    f"{metric}_high": entry["high"],
                }
        rows.append(row)
    return pd.DataFrame(rows)


def seed_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n − 1) over the seeds of the same model and split rule.

    A seed stands for another training and another split; under ``official``
    only the test images stay.

    Args:
        table: From :func:`comparison_table`.

    Returns:
        One row for each model and split rule, in the order of the table:
        model, split_rule, seeds, and for each metric its mean and ``_sd``
        (NaN for one seed).
    """
    metrics = [column for column in table if f"{column}_low" in table]
    table = table.astype(dict.fromkeys(metrics, float))  # None where a metric does not exist
    groups = table.groupby(["model", "split_rule"], sort=False)
    spread = groups[metrics].std().add_suffix("_sd")
    return pd.concat([groups.size().rename("seeds"), groups[metrics].mean(), spread], axis=1).reset_index()
