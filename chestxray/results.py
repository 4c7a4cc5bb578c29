"""The result files of a run: what is written to them, and how they are read."""

from __future__ import annotations

import csv
import datetime
import glob
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chestxray import __version__
from chestxray.data.catalog import parse_name
from chestxray.deployment.outliers import image_statistics
from chestxray.evaluation.calibration import apply_platt, calibrate, calibration_metrics, log_odds
from chestxray.evaluation.metrics import evaluate
from chestxray.evaluation.thresholds import choose_thresholds, choose_triage
from chestxray.files import project_path, read_json, read_table, whole_file, whole_folder, write_json
from chestxray.schema import SUBTYPES

if TYPE_CHECKING:
    import keras

    from chestxray.data.dataset import XrayData


RESULT_SCHEMA = "chestxray.result/1"
VARIANTS_SCHEMA = "chestxray.variants/1"
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


def result_name(model: str, split_rule: str, split_seed: int, train_seed: int | None = None) -> str:
    """Name of a result and its files: ``<model>-<split_rule>-s<split seed>-t<training seed>``.

    Without a training seed it names what is not one model, such as a comparison.
    """
    name = f"{model}-{split_rule}-s{split_seed}"
    return name if train_seed is None else f"{name}-t{train_seed}"


def parse_result_name(name: str) -> tuple[str, str, int, int]:
    """Split the name of a model's result: model, split rule, split seed, training seed."""
    model, split_rule, split_seed, train_seed = name.rsplit("-", 3)
    return model, split_rule, int(split_seed.removeprefix("s")), int(train_seed.removeprefix("t"))


def find_classifier(
    name: str, output_dir: str | Path, split_rule: str, split_seed: int, train_seed: int = 0
) -> Path:
    """Return the folder of a saved classifier.

    Args:
        name: Name of a model of this run (without split rule and seeds), or a
            path with a slash; relative ones start at the checkout.
        output_dir: Folder of the run.
        split_rule, split_seed, train_seed: See :func:`result_name`.
    """
    if "/" in name:
        return project_path(name)
    return Path(output_dir) / "saved_models" / result_name(name, split_rule, split_seed, train_seed)


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


def comparison_table(
    results: list[dict[str, Any]], subset: str = "test", threshold_rule: str = "youden"
) -> pd.DataFrame:
    """Put the metrics of several models side by side.

    Args:
        results: From :func:`read_results`.
        subset: val or test; models without it are left out.
        threshold_rule: Rule of the threshold.

    Returns:
        One row a model: name (and its parts: model, split_seed, train_seed), data, split_rule,
        split_hash, record, weights, parameter_count, and for each metric its
        value, ``_low`` and ``_high``.
    """
    rows = []
    for result in results:
        if subset not in result["metrics"]:
            continue
        metrics = result["metrics"][subset]
        row = {
            key: result[key]
            for key in ("name", "data", "split_rule", "split_hash", "record", "weights", "parameter_count")
        }
        model, _, split_seed, train_seed = parse_result_name(result["name"])
        row |= {"model": model, "split_seed": split_seed, "train_seed": train_seed}
        for metric, entry in {**metrics, **metrics[threshold_rule]}.items():
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


_LOG_COLUMNS = ("time", "name", "split_hash", "images", "configuration")


def record_model(
    model: keras.Model,
    data: XrayData,
    name: str,
    output_dir: str | Path,
    *,
    parameters: dict[str, Any],
    weights: str,
    training: dict[str, Any],
    score_test: bool = True,
    final: bool = True,
    record: bool = False,
) -> dict[str, Any]:
    """Save a trained model, score its reloaded file, and put everything on record.

    Calibration and thresholds come from the validation images alone. Test is
    looked at once, and the look is logged before in ``results/test_log.csv``.
    A model that ranks the validation images backwards is not calibrated, which
    would turn its scores round in silence. When all is written, the
    checkpoints ``<output_dir>/checkpoints/<name>*.npz`` have done their
    service and are removed.

    Args:
        model: Trained; saved in float32 whatever it was trained in.
        data: What it was trained on.
        name: Name of the model, for example ``vgg16``; split rule and seed
            are added.
        output_dir: Folder of the run.
        parameters: What the notebook was run with.
        weights: ``imagenet``, ``random``, or a file's name.
        training: From :func:`chestxray.models.training.summarise`.
        score_test: False leaves test alone, for choosing on validation.
        final: False for a model that a step records on its way; its
            checkpoints stay.
        record: The configuration was fixed on validation: the one of its
            split and purpose.

    Returns:
        The result (contract 6), as written.

    Raises:
        ValueError: The model does not give one or three raw logits, or its
            last feature maps lie inside a nested model. Nothing was removed
            or looked at then.
    """
    from chestxray.deployment import classifier as bundle
    from chestxray.deployment.card import CARD_SCHEMA
    from chestxray.deployment.classifier import learn_reference
    from chestxray.models.builders import as_float32

    _check_logits(model)
    bundle.feature_maps(model)  # raises where there are none
    output_dir = Path(output_dir)
    full_name = result_name(name, data.split_rule, data.split_seed, data.train_seed)
    (output_dir / "results" / f"{full_name}.json").unlink(missing_ok=True)  # no longer true from here on
    subsets = ("val", "test") if score_test else ("val",)
    if score_test:
        settings = {"image": asdict(data.store.settings), "weights": weights, **parameters}
        log_test_look(output_dir, full_name, data, settings)
    with whole_folder(output_dir / "saved_models" / full_name) as folder:
        as_float32(model).save(folder / "model.keras")
        reloaded = bundle.load_model(folder / "model.keras")
        scorer, told = bundle.with_features(reloaded), {}
        for subset in subsets:
            told[subset] = scorer.predict(data.dataset(subset), verbose=0)
        predictions = pd.concat(
            [_prediction_table(data, subset, told[subset][0]) for subset in subsets], ignore_index=True
        )
        predictions.insert(
            predictions.columns.get_loc("height") + 1,
            "sharpness",
            np.concatenate([_sharpness(data, subset) for subset in subsets]),
        )
        val = predictions[predictions["split"] == "val"]
        slope, intercept = calibrate(val["logit"], val["label"])
        if (slope, intercept) == (1.0, 0.0):
            print(f"{full_name} ranks the validation images backwards: its scores stay uncalibrated")
        predictions["probability"] = apply_platt(predictions["logit"], slope, intercept)
        val = predictions[predictions["split"] == "val"]
        thresholds, reasons = choose_thresholds(val["label"], val["probability"])
        metrics, confusion = {}, {}
        for subset, rows in predictions.groupby("split", sort=False):
            metrics[subset], confusion[subset] = evaluate(
                rows["label"], rows["probability"], rows["group"], thresholds, rows["subtype"]
            )
            metrics[subset] |= calibration_metrics(
                rows["label"], rows["probability"], rows["group"], draws=200
            )
        shared = {
            "name": full_name,
            "classes": list(data.classes),
            "image": asdict(data.store.settings),
            "calibration": {"slope": slope, "intercept": intercept},
            "thresholds": thresholds,
            "threshold_reasons": reasons,
            "triage": choose_triage(val["label"], val["probability"]),
            "metrics": metrics,
            "baseline": _baseline(output_dir, data),
            "parameters": parameters,
            "weights": weights,
            "versions": versions(),
        }
        counts = data.table["split"].value_counts()
        named = [parse_name(Path(path).stem) is not None for path in data.table["path"]]
        known = np.mean(named) > 0.5  # file names of the children's data set
        limits = bundle.SYNTHETIC_LIMITS if data.synthetic else bundle.LIMITS if known else bundle.LIMITS[:1]
        population = {"population": bundle.POPULATION} if known and not data.synthetic else {}
        refusal, reference = learn_reference(scorer, data, *told["val"])
        bundle.write_card(
            folder,
            bundle.Classifier(
                reloaded,
                {
                    "schema": CARD_SCHEMA,
                    **shared,
                    **population,
                    "limits": list(limits),
                    "reference": reference,
                    "training_data": {
                        "name": data.name,
                        "split_rule": data.split_rule,
                        "split_hash": data.split_hash,
                        "split_seed": data.split_seed,
                        "train_seed": data.train_seed,
                        **{subset: int(counts[subset]) for subset in ("train", "val", "test")},
                    },
                },
                refusal,
            ),
        )
    with whole_file(output_dir / "results" / f"{full_name}.predictions.csv") as partial:
        predictions.to_csv(partial, index=False)
    result = {
        "schema": RESULT_SCHEMA,
        **shared,
        "record": record,
        "data": data.name,
        "split_rule": data.split_rule,
        "split_hash": data.split_hash,
        "training": training,
        "parameter_count": int(model.count_params()),
        "confusion": confusion,
    }
    if model.output_shape[-1] > 1:
        result["subtype_confusion"] = {
            subset: _subtype_confusion(rows) for subset, rows in predictions.groupby("split", sort=False)
        }
    write_result(output_dir, result, final)
    if final:
        _remove_checkpoints(output_dir, full_name)
    return result


def _check_logits(model: keras.Model) -> None:
    outputs, activation = model.output_shape[-1], getattr(model.layers[-1], "activation", None)
    name = getattr(activation, "__name__", "linear")
    if outputs not in (1, 3) or name != "linear":
        raise ValueError(
            "a model must end in raw logits, one (pneumonia) or three (normal, bacteria, "
            f"virus). Received: outputs={outputs}, activation={name!r}"
        )


def _baseline(output_dir: Path, data: XrayData) -> dict[str, Any] | None:
    """What the run's audit of the same images reaches without lungs; None without an audit."""
    path = output_dir / "results" / "audit.json"
    found = read_json(path) if path.is_file() else {}
    if (found.get("data"), found.get("images")) != (data.name, len(data.table)):
        return None
    return {"sees": found["baseline"]["sees"], "auroc": found["baseline"]["auroc"]}


def _remove_checkpoints(output_dir: Path, full_name: str) -> None:
    for rest in (".npz", "-*.npz"):  # not those of seed 10 with those of seed 1
        for checkpoint in (output_dir / "checkpoints").glob(glob.escape(full_name) + rest):
            checkpoint.unlink()


def _logits(model: keras.Model, data: XrayData, subset: str) -> pd.DataFrame:
    return _prediction_table(data, subset, model.predict(data.dataset(subset), verbose=0))


def _prediction_table(data: XrayData, subset: str, logits: np.ndarray) -> pd.DataFrame:
    """Predictions of one subset, in the table's order (contract 5), without probability."""
    rows = data.subset(subset)
    own = [
        column
        for column in rows
        if column
        not in (
            "path",
            "group",
            "subtype",
            "label",
            "split",
            "group_conservative",
            "official_split",
            "width",
            "height",
            "mode",
            "bytes",
            "sha256",
        )
    ]
    table = rows[["path", "group", "subtype", "label", "split", "width", "height", *own]]
    table = table.reset_index(drop=True)
    if logits.shape[1] > 1:
        table[[f"logit_{name}" for name in SUBTYPES]] = logits.astype(np.float64)
    return table.assign(logit=log_odds(logits))


def _sharpness(data: XrayData, subset: str) -> np.ndarray:
    return image_statistics(data.images(subset)[..., 0])["sharpness"].round(3)


def subtype_confusion(model: keras.Model, data: XrayData, subset: str) -> list[list[int]]:
    """Count images by subtype (rows) and the likeliest class (columns) of a model with three logits.

    Both in the order normal, bacteria, virus.
    """
    return _subtype_confusion(_logits(model, data, subset))


def _subtype_confusion(rows: pd.DataFrame) -> list[list[int]]:
    likeliest = rows[[f"logit_{name}" for name in SUBTYPES]].to_numpy().argmax(axis=1)
    return [
        [int(((rows["subtype"] == name) & (likeliest == number)).sum()) for number in range(3)]
        for name in SUBTYPES
    ]


def record_variants(
    name: str,
    output_dir: str | Path,
    data: XrayData,
    table: pd.DataFrame,
    scored: dict[str, Any],
    content: dict[str, Any],
) -> dict[str, Any]:
    """Put several ways of training the same model on record, each with several seeds.

    Args:
        name: Name of the experiment; split rule and seed are added.
        output_dir: Folder of the run.
        data: What the models were trained on.
        table: From :func:`predict_variants`.
        scored: From :func:`chestxray.evaluation.comparison.score_variants`, for each subset.
        content: What else belongs into the result: parameters, teachers, costs.

    Returns:
        The result, as written to ``results/<name>.json``; the logits are
        beside it. The checkpoints of the name have done their service and
        are removed.
    """
    output_dir, full_name = Path(output_dir), result_name(name, data.split_rule, data.split_seed)
    (output_dir / "results" / f"{full_name}.json").unlink(missing_ok=True)  # no longer true from here on
    result = {
        "schema": VARIANTS_SCHEMA,
        "name": full_name,
        "record": False,
        "data": data.name,
        "split_rule": data.split_rule,
        "split_hash": data.split_hash,
        **content,
        "variants": scored,
        "versions": versions(),
    }
    with whole_file(output_dir / "results" / f"{full_name}.predictions.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    write_result(output_dir, result)
    _remove_checkpoints(output_dir, full_name)
    return result


def predict_variants(models: dict[str, keras.Model], data: XrayData, subsets: Sequence[str]) -> pd.DataFrame:
    """Score the images of some parts with several models.

    Returns:
        path, group, subtype, label, split, and the raw log-odds of each model
        under its name.
    """
    tables = []
    for subset in subsets:
        found = {name: _logits(model, data, subset) for name, model in models.items()}
        first = next(iter(found.values()))[["path", "group", "subtype", "label", "split"]]
        tables.append(first.assign(**{name: table["logit"] for name, table in found.items()}))
    return pd.concat(tables, ignore_index=True)


def log_test_look(output_dir: str | Path, name: str, data: XrayData, parameters: dict[str, Any]) -> None:
    """Append one line to ``results/test_log.csv``: when, which model, which configuration."""
    path = Path(output_dir) / "results" / "test_log.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    configuration = ";".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    with open(path, "a", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        if file.tell() == 0:
            writer.writerow(_LOG_COLUMNS)
        writer.writerow([now, name, data.split_hash, len(data.subset("test")), configuration])
