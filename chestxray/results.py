"""Results of a run: one JSON and one predictions CSV per model, and the log of test evaluations.

``results/<name>.json`` is written last: if it exists, predictions, saved model and card are complete. Here
``output_dir`` is the folder of the run, and ``step_key`` the key of the step that the result completes.
"""

import contextlib
import datetime
import glob
import platform
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from chestxray import __version__
from chestxray.deployment.outliers import image_statistics
from chestxray.evaluation.calibration import apply_platt, calibration_metrics, log_odds
from chestxray.evaluation.metrics import evaluate, interval_columns
from chestxray.evaluation.thresholds import fit_decisions
from chestxray.files import project_path, read_json, read_table, whole_folder, write_json, write_text
from chestxray.schema import COLUMNS, SPLITS, SUBTYPES, check

if TYPE_CHECKING:
    import keras

    from chestxray.data.dataset import XrayData

Result = dict[str, Any]  # content of a JSON file, contract 6
RESULT_SCHEMA = "chestxray.result/2"
VARIANTS_SCHEMA = "chestxray.variants/1"
_MOST_TRAIN = 1000  # training images that are scored, also for the out-of-distribution check
_DESCRIPTION = ("name", "data", "split_rule", "split_hash", "record", "weights", "parameter_count")


def result_name(model: str, split_rule: str, split_seed: int, train_seed: int | None = None) -> str:
    """Name of a result: ``<model>-<split_rule>-s<split seed>``, and ``-t<training seed>`` for one model."""
    name = f"{model}-{split_rule}-s{split_seed}"
    return name if train_seed is None else f"{name}-t{train_seed}"


def parse_result_name(name: str) -> tuple[str, str, int, int]:
    """Split the name of a model's result: model, split rule, split seed, training seed."""
    model, split_rule, split_seed, train_seed = name.rsplit("-", 3)
    return model, split_rule, int(split_seed.removeprefix("s")), int(train_seed.removeprefix("t"))


def find_classifier(
    name: str, output_dir: str | Path, split_rule: str, split_seed: int, train_seed: int = 0
) -> Path:
    """Folder of a saved classifier: of a model of this run, or of a path with a slash (`project_path`)."""
    if "/" in name:
        return project_path(name)
    return Path(output_dir) / "saved_models" / result_name(name, split_rule, split_seed, train_seed)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that can change a number."""
    packages = ("tensorflow", "keras", "numpy", "opencv-python", "scikit-learn")
    first = {"chestxray": __version__, "python": platform.python_version()}
    return first | {name: version(name) for name in packages}


def write_result(output_dir: str | Path, content: Mapping[str, Any], step_key: str | None = None) -> Path:
    """Write ``content`` to ``results/<its name>.json``, print the name of the file, and return its path."""
    path = Path(output_dir) / "results" / f"{content['name']}.json"
    write_json(path, {**content, "step_key": step_key or None})
    print(f"wrote results/{path.name}")
    return path


def read_objects(folder: str | Path) -> Iterator[tuple[Path, Result]]:
    """Read the JSON files of a folder that hold an object, with their paths, by name."""
    contents = ((path, read_json(path)) for path in sorted(Path(folder).glob("[!.]*.json")))
    return ((path, content) for path, content in contents if isinstance(content, dict))


def read_results(folder: str | Path) -> list[Result]:
    """Read the results of all models in a folder, by split rule, the best on validation first.

    The lower AUROC of plain and re-framed images counts. Raises FileNotFoundError if there is no result.
    """
    results = [content for _, content in read_objects(folder) if content.get("schema") == RESULT_SCHEMA]
    check(results, "no result of a model here", FileNotFoundError, folder=str(folder))

    def order(result: Result) -> tuple:
        val = result["metrics"]["val"]
        known = [val[name]["value"] for name in ("auroc", "auroc_reframed") if name in val]
        return result["split_rule"], -len(known), -min(known), result["name"]

    return sorted(results, key=order)


def read_predictions(folder: str | Path, name: str) -> pd.DataFrame:
    """Read the predictions of one model (contract 5)."""
    table = read_table(Path(folder) / f"{name}.predictions.csv", ("path", "group", "subtype", "split"))
    return table.fillna({"subtype": ""})


def comparison_table(results: list[Result], subset: str = "test") -> pd.DataFrame:
    """Put the metrics of several models side by side, one row per model that has ``subset``.

    Columns: name and its parts (model, split_seed, train_seed), data, split_rule, split_hash, record,
    weights, parameter_count, and for each metric (threshold: youden) its value, ``_low`` and ``_high``.
    """
    rows = []
    for result in results:
        if subset not in result["metrics"]:
            continue
        metrics = result["metrics"][subset]
        model, _, split_seed, train_seed = parse_result_name(result["name"])
        row = {key: result[key] for key in _DESCRIPTION}
        row |= {"model": model, "split_seed": split_seed, "train_seed": train_seed}
        for metric, entry in {**metrics, **metrics["youden"]}.items():
            if "value" in entry:
                row |= interval_columns(metric, (entry["value"], entry["low"], entry["high"]))
        rows.append(row)
    return pd.DataFrame(rows)


def seed_table(table: pd.DataFrame) -> pd.DataFrame:
    """Mean and standard deviation (n − 1) over the seeds of the same model and split rule.

    From a :func:`comparison_table`: model, split_rule, seeds, and for each metric its mean and ``_sd``.
    """
    metrics = [column for column in table if f"{column}_low" in table]
    table = table.astype(dict.fromkeys(metrics, float))  # None where a metric does not exist
    groups = table.groupby(["model", "split_rule"], sort=False)
    spread = groups[metrics].std().add_suffix("_sd")
    return pd.concat([groups.size().rename("seeds"), groups[metrics].mean(), spread], axis=1).reset_index()


def record_model(
    model: "keras.Model",
    data: "XrayData",
    name: str,
    output_dir: str | Path,
    *,
    parameters: Mapping[str, Any] = {},
    weights: str = "not recorded",
    training: Mapping[str, Any] = {},
    score_test: bool = True,
    record: bool = False,
    final: bool = True,
    population: str = "",
    step_key: str | None = None,
) -> Result:
    """Save a trained model, evaluate the reloaded file, write its result (contract 6) and return it.

    Calibration and thresholds come from the validation images alone. A model that ranks them backwards is not
    calibrated, because this would reverse its scores. Test is evaluated once, after a line in
    ``results/test_log.csv``. AUROC is also measured on re-framed images, and all metrics on 1,000 random
    training images. At the end, ``<output_dir>/checkpoints/<name>*.npz`` are removed.

    Args:
        model: Trained; see :func:`chestxray.deployment.classifier.save_model`.
        data: What it was trained on.
        name: Name of the model, for example ``vgg16``; split rule and seeds are added.
        parameters: Architecture and training, for the card.
        weights: Initial weights: ``imagenet``, ``random``, or a file's name.
        training: From :func:`chestxray.models.training.summarise`.
        score_test: False evaluates on validation only.
        record: True for the one model per split and purpose that was fixed on validation.
        final: False if the step writes another result later; the checkpoints stay.
        population: Key of :data:`chestxray.deployment.classifier.POPULATIONS`; empty if it is not known.

    Raises ValueError, before anything is removed or evaluated: the model does not give one or three raw
    logits, its last feature maps lie inside a nested model, or the population is unknown.
    """
    from chestxray.deployment import classifier as deployed
    from chestxray.deployment.card import CARD_SCHEMA
    from chestxray.models.builders import check_logits

    check_logits(model)
    check((outputs := model.output_shape[-1]) in (1, 3), "a model must give 1 logit or 3", outputs=outputs)
    deployed.feature_maps(model)  # raises where there are none
    known = sorted(deployed.POPULATIONS)
    check(population in ("", *known), f"population must be empty or one of {known}", population=population)
    population = "" if data.synthetic else population  # phantoms are no children
    limits = deployed.LIMITS if population else deployed.LIMITS[:1]
    limits = deployed.SYNTHETIC_LIMITS if data.synthetic else limits
    output_dir = Path(output_dir)
    full_name = result_name(name, data.split_rule, data.split_seed, data.train_seed)
    _remove_former(output_dir / "results" / f"{full_name}.json", parameters)
    subsets = ("val", "test") if score_test else ("val",)
    image = asdict(data.store.settings)
    if score_test:
        log_test_evaluation(output_dir, full_name, data, {"image": image, "weights": weights, **parameters})
    with whole_folder(output_dir / "saved_models" / full_name) as folder:
        deployed.save_model(model, folder / "model.keras")
        reloaded = deployed.load_model(folder / "model.keras")
        scorer = deployed.with_features(reloaded)
        scores = {subset: scorer.predict(data.dataset(subset), verbose=0) for subset in subsets}
        tables = [_prediction_table(data, subset, scores[subset][0]) for subset in subsets]
        predictions = pd.concat(tables, ignore_index=True)
        pixels = [data.images(subset)[..., 0] for subset in subsets]
        sharpness = np.concatenate([image_statistics(images)["sharpness"] for images in pixels]).round(3)
        predictions.insert(predictions.columns.get_loc("height") + 1, "sharpness", sharpness)
        val = predictions[predictions["split"] == "val"]
        decisions = fit_decisions(val["logit"], val["label"])
        calibration, thresholds = decisions["calibration"], decisions["thresholds"]
        if calibration == {"slope": 1.0, "intercept": 0.0}:
            print(f"{full_name} ranks the validation images backwards: its scores stay uncalibrated")
        predictions["probability"] = apply_platt(predictions["logit"], **calibration)
        metrics, confusion = {}, {}
        for subset, rows in predictions.groupby("split", sort=False):
            metrics[subset], confusion[subset] = _all_metrics(rows, thresholds)
            metrics[subset] |= _reframed_ranking(reloaded, data, subset)
        train = data.subset("train")
        train = train.sample(min(_MOST_TRAIN, len(train)), random_state=data.split_seed)
        logits, train_features = scorer.predict(data.store.images(train), verbose=0)
        if train["label"].nunique() == 2:  # chance may leave out a rare class
            probability = apply_platt(log_odds(logits), **calibration)
            metrics["train"], _ = _all_metrics(train.assign(probability=probability), thresholds)
        shared = {"name": full_name, "classes": list(data.classes), "image": image, **decisions}
        shared |= {"metrics": metrics, "baseline": _baseline(output_dir, data), "parameters": parameters}
        shared |= {"weights": weights, "versions": versions()}
        outliers, reference = deployed.learn_reference(data, train, train_features, scores["val"])
        split = {"split_rule": data.split_rule, "split_hash": data.split_hash}
        seeds = {"split_seed": data.split_seed, "train_seed": data.train_seed}
        counts = {subset: int((data.table["split"] == subset).sum()) for subset in SPLITS}
        patients = {"population": deployed.POPULATIONS[population]} if population else {}
        card = {"schema": CARD_SCHEMA, **shared, **patients, "limits": list(limits), "reference": reference}
        card["training_data"] = {"name": data.name, **split, **seeds, **counts}
        seen = deployed.SeenImages.of({subset: data.images(subset) for subset in ("train", "val")})
        deployed.write_card(folder, deployed.Classifier(reloaded, card, outliers, seen))
    write_text(output_dir / "results" / f"{full_name}.predictions.csv", predictions.to_csv(index=False))
    result = {"schema": RESULT_SCHEMA, **shared, "record": record, "data": data.name, **split}
    result |= {"training": training, "parameter_count": int(model.count_params()), "confusion": confusion}
    if outputs > 1:
        by_subset = predictions.groupby("split", sort=False)
        result["subtype_confusion"] = {subset: _subtype_counts(rows) for subset, rows in by_subset}
    write_result(output_dir, result, step_key)
    if final:
        _remove_checkpoints(output_dir, full_name)
    return result


def _all_metrics(rows: pd.DataFrame, thresholds: dict[str, float | None]) -> tuple[dict, dict]:
    """Metrics, those of calibration included, and confusion matrices of a table of predictions."""
    scored = rows["label"], rows["probability"], rows["group"]
    metrics, confusion = evaluate(*scored, thresholds, rows["subtype"])
    return metrics | calibration_metrics(*scored, draws=200), confusion


def _reframed_ranking(model: "keras.Model", data: "XrayData", subset: str) -> dict[str, Any]:
    """AUROC on re-framed images, see :meth:`chestxray.data.dataset.XrayData.reframed`."""
    try:
        images = data.reframed(subset)
    except (OSError, ValueError) as error:  # the files may be gone: training needs only the stored pixels
        print(f"not scored on re-framed images: {error}")
        return {}
    logits = np.asarray(model.predict(images, verbose=0), np.float64)
    rows, probabilities = data.subset(subset), apply_platt(log_odds(logits), 1.0, 0.0)
    scores = evaluate(rows["label"], probabilities, rows["group"], {})[0]
    return {"auroc_reframed": scores["auroc"]}


def _remove_former(path: Path, parameters: Mapping[str, Any]) -> None:
    """Remove a result that is about to be replaced; print which of its parameters differ."""
    former = parameters
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file, or a damaged one
        former = read_json(path).get("parameters", {})
    old, new = (pd.json_normalize(dict(each)).to_dict("list") for each in (former, parameters))
    changed = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
    if changed:
        print(f"results/{path.name}, made with another {', '.join(changed)}, is replaced")
    path.unlink(missing_ok=True)


def _baseline(output_dir: Path, data: "XrayData") -> dict[str, Any] | None:
    """Best AUROC without the lungs, from the audit of the same images in this run; None without an audit."""
    path = output_dir / "results" / "audit.json"
    audit = read_json(path) if path.is_file() else {}
    same_images = (audit.get("data"), audit.get("images")) == (data.name, len(data.table))
    return {key: audit["baseline"][key] for key in ("sees", "auroc")} if same_images else None


def _remove_checkpoints(output_dir: Path, full_name: str) -> None:
    for ending in (".npz", "-*.npz"):  # not those of seed 10 with those of seed 1
        for checkpoint in (output_dir / "checkpoints").glob(glob.escape(full_name) + ending):
            checkpoint.unlink()


def _prediction_table(data: "XrayData", subset: str, logits: np.ndarray) -> pd.DataFrame:
    """Predictions of one subset, in the table's order (contract 5), without probability."""
    rows = data.subset(subset)
    first = ["path", "group", "subtype", "label", "split", "width", "height"]
    users = [column for column in rows if column not in {*first, *COLUMNS}]
    table = rows[[*first, *users]].reset_index(drop=True)
    if logits.shape[1] > 1:
        table[[f"logit_{name}" for name in SUBTYPES]] = logits.astype(np.float64)
    return table.assign(logit=log_odds(logits))


def _predict(model: "keras.Model", data: "XrayData", subset: str) -> pd.DataFrame:
    return _prediction_table(data, subset, model.predict(data.dataset(subset), verbose=0))


def subtype_confusion(model: "keras.Model", data: "XrayData", subset: str) -> list[list[int]]:
    """Count images by subtype (rows) and most probable class (columns): normal, bacteria, virus."""
    return _subtype_counts(_predict(model, data, subset))


def _subtype_counts(rows: pd.DataFrame) -> list[list[int]]:
    logits = rows[[f"logit_{name}" for name in SUBTYPES]].set_axis(SUBTYPES, axis=1)
    counts = pd.crosstab(rows["subtype"], logits.idxmax(axis=1))
    return counts.reindex(index=SUBTYPES, columns=SUBTYPES, fill_value=0).to_numpy().tolist()


def predict_variants(models: "dict[str, keras.Model]", data: "XrayData", subsets: list[str]) -> pd.DataFrame:
    """Score subsets with several models: path, group, subtype, label, split, raw log-odds of each model."""
    tables = []
    for subset in subsets:
        images = data.subset(subset)[["path", "group", "subtype", "label", "split"]].reset_index(drop=True)
        logits = {name: _predict(model, data, subset)["logit"] for name, model in models.items()}
        tables.append(images.assign(**logits))
    return pd.concat(tables, ignore_index=True)


def record_variants(
    name: str,
    output_dir: str | Path,
    data: "XrayData",
    *,
    table: pd.DataFrame,
    scored: dict[str, Any],
    content: dict[str, Any],
    step_key: str | None = None,
) -> Result:
    """Write the result of an experiment: variants of training one model, with several seeds each.

    ``name`` gets split rule and seeds. ``table`` is from :func:`predict_variants`, ``scored`` from
    :func:`chestxray.evaluation.comparison.score_variants` for each subset. ``content`` has the other keys:
    parameters, teachers, costs. The checkpoints of the experiment are removed.
    """
    output_dir = Path(output_dir)
    full_name = result_name(name, data.split_rule, data.split_seed, data.train_seed)
    _remove_former(output_dir / "results" / f"{full_name}.json", content.get("parameters", {}))
    result = {"schema": VARIANTS_SCHEMA, "name": full_name, "record": False, "data": data.name}
    result |= {"split_rule": data.split_rule, "split_hash": data.split_hash, **content}
    result |= {"variants": scored, "versions": versions()}
    text = table.to_csv(index=False, float_format="%.6g")
    write_text(output_dir / "results" / f"{full_name}.predictions.csv", text)
    write_result(output_dir, result, step_key)
    _remove_checkpoints(output_dir, full_name)
    return result


def log_test_evaluation(output_dir: str | Path, name: str, data: "XrayData", parameters: dict) -> None:
    """Append one line to ``results/test_log.csv``: when, which model, which configuration."""
    path = Path(output_dir) / "results" / "test_log.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    configuration = ";".join(f"{key}={value}" for key, value in sorted(parameters.items()))
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    row = {"time": now, "name": name, "split_hash": data.split_hash, "images": len(data.subset("test"))}
    table = pd.DataFrame([row | {"configuration": configuration}])
    table.to_csv(path, mode="a", header=not path.exists(), index=False, lineterminator="\r\n")
