"""Models on record: predictions, metrics, thresholds, bundle, and one result file.

``results/<name>.json`` is written last. Whoever finds it may trust that all
the rest is there.
"""

from __future__ import annotations

import csv
import datetime
import glob
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chestxray.data.catalog import SUBTYPES, parse_name
from chestxray.data.statistics import image_statistics
from chestxray.evaluation.calibration import apply_platt, calibrate, log_odds
from chestxray.evaluation.metrics import evaluate
from chestxray.evaluation.operating import choose_thresholds, choose_triage
from chestxray.evaluation.reliability import calibration_metrics
from chestxray.files import read_json, whole_file, whole_folder
from chestxray.results import ARMS_SCHEMA, RESULT_SCHEMA, versions, write_result

if TYPE_CHECKING:
    import keras

    from chestxray.data.dataset import XrayData

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
    from chestxray.deployment import bundle
    from chestxray.deployment.card import CARD_SCHEMA
    from chestxray.deployment.reference import learn_reference
    from chestxray.models.builders import as_float32

    _check_logits(model)
    bundle.feature_maps(model)  # raises where there are none
    output_dir = Path(output_dir)
    full_name = f"{name}-{data.rule}-s{data.seed}"
    (output_dir / "results" / f"{full_name}.json").unlink(missing_ok=True)  # no longer true from here on
    parts = ("val", "test") if score_test else ("val",)
    if score_test:
        settings = {"image": asdict(data.store.settings), "weights": weights, **parameters}
        log_test_look(output_dir, full_name, data, settings)
    with whole_folder(output_dir / "saved_models" / full_name) as folder:
        as_float32(model).save(folder / "model.keras")
        reloaded = bundle.load_model(folder / "model.keras")
        scorer, told = bundle.with_features(reloaded), {}
        for part in parts:
            told[part] = scorer.predict(data.dataset(part), verbose=0)
        predictions = pd.concat([_table(data, part, told[part][0]) for part in parts], ignore_index=True)
        predictions.insert(
            predictions.columns.get_loc("height") + 1,
            "sharpness",
            np.concatenate([_sharpness(data, part) for part in parts]),
        )
        val = predictions[predictions["split"] == "val"]
        slope, intercept = calibrate(val["logit"], val["label"])
        if (slope, intercept) == (1.0, 0.0):
            print(f"{full_name} ranks the validation images backwards: its scores stay uncalibrated")
        predictions["probability"] = apply_platt(predictions["logit"], slope, intercept)
        val = predictions[predictions["split"] == "val"]
        thresholds, reasons = choose_thresholds(val["label"], val["probability"])
        metrics, confusion = {}, {}
        for part, rows in predictions.groupby("split", sort=False):
            metrics[part], confusion[part] = evaluate(
                rows["label"], rows["probability"], rows["group"], thresholds, rows["subtype"]
            )
            metrics[part] |= calibration_metrics(rows["label"], rows["probability"], rows["group"], draws=200)
        shared = {
            "name": full_name,
            "classes": list(data.classes),
            "image": asdict(data.store.settings),
            "calibration": {"slope": slope, "intercept": intercept},
            "thresholds": thresholds,
            "threshold_reasons": reasons,
            "triage": choose_triage(val["label"], val["probability"]),
            "metrics": metrics,
            "floor": _floor(output_dir, data),
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
                        "split_rule": data.rule,
                        "split_hash": data.split_hash,
                        "seed": data.seed,
                        **{part: int(counts[part]) for part in ("train", "val", "test")},
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
        "split_rule": data.rule,
        "split_hash": data.split_hash,
        "training": training,
        "parameter_count": int(model.count_params()),
        "confusion": confusion,
    }
    if model.output_shape[-1] > 1:
        result["subtype_confusion"] = {
            part: _subtype_confusion(rows) for part, rows in predictions.groupby("split", sort=False)
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


def _floor(output_dir: Path, data: XrayData) -> dict[str, Any] | None:
    """What the run's audit of the same images reaches without lungs; None without an audit."""
    path = output_dir / "results" / "audit.json"
    found = read_json(path) if path.is_file() else {}
    if (found.get("data"), found.get("images")) != (data.name, len(data.table)):
        return None
    return {"sees": found["floor"]["sees"], "auroc": found["floor"]["auroc"]}


def _remove_checkpoints(output_dir: Path, full_name: str) -> None:
    for rest in (".npz", "-*.npz"):  # not those of seed 10 with those of seed 1
        for checkpoint in (output_dir / "checkpoints").glob(glob.escape(full_name) + rest):
            checkpoint.unlink()


def _logits(model: keras.Model, data: XrayData, part: str) -> pd.DataFrame:
    return _table(data, part, model.predict(data.dataset(part), verbose=0))


def _table(data: XrayData, part: str, logits: np.ndarray) -> pd.DataFrame:
    """Predictions of one part, in the table's order (contract 5), without probability."""
    rows = data.part(part)
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


def _sharpness(data: XrayData, part: str) -> np.ndarray:
    return image_statistics(data.images(part)[..., 0])["sharpness"].round(3)


def subtype_confusion(model: keras.Model, data: XrayData, part: str) -> list[list[int]]:
    """Count images by subtype (rows) and the likeliest class (columns) of a model with three logits.

    Both in the order normal, bacteria, virus.
    """
    return _subtype_confusion(_logits(model, data, part))


def _subtype_confusion(rows: pd.DataFrame) -> list[list[int]]:
    likeliest = rows[[f"logit_{name}" for name in SUBTYPES]].to_numpy().argmax(axis=1)
    return [
        [int(((rows["subtype"] == name) & (likeliest == number)).sum()) for number in range(3)]
        for name in SUBTYPES
    ]


def record_arms(
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
        table: From :func:`predict_arms`.
        scored: From :func:`chestxray.evaluation.arms.score_arms`, for each part.
        content: What else belongs into the result: parameters, teachers, costs.

    Returns:
        The result, as written to ``results/<name>.json``; the logits are
        beside it. The checkpoints of the name have done their service and
        are removed.
    """
    output_dir, full_name = Path(output_dir), f"{name}-{data.rule}-s{data.seed}"
    (output_dir / "results" / f"{full_name}.json").unlink(missing_ok=True)  # no longer true from here on
    result = {
        "schema": ARMS_SCHEMA,
        "name": full_name,
        "record": False,
        "data": data.name,
        "split_rule": data.rule,
        "split_hash": data.split_hash,
        **content,
        "arms": scored,
        "versions": versions(),
    }
    with whole_file(output_dir / "results" / f"{full_name}.predictions.csv") as partial:
        table.to_csv(partial, index=False, float_format="%.6g")
    write_result(output_dir, result)
    _remove_checkpoints(output_dir, full_name)
    return result


def predict_arms(models: dict[str, keras.Model], data: XrayData, parts: Sequence[str]) -> pd.DataFrame:
    """Score the images of some parts with several models.

    Returns:
        path, group, subtype, label, split, and the raw log-odds of each model
        under its name.
    """
    tables = []
    for part in parts:
        found = {name: _logits(model, data, part) for name, model in models.items()}
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
        writer.writerow([now, name, data.split_hash, len(data.part("test")), configuration])
