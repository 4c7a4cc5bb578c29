"""Evaluation of a user's predictions, with labels or, as drift, without.

``card`` is the model's card. Reports raise ValueError if a column is missing, no image was classified, or
another model made the predictions.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from chestxray.deployment.card import render
from chestxray.deployment.seen import seen_text
from chestxray.evaluation.calibration import apply_platt, calibration_metrics, fit_platt, shift_prevalence
from chestxray.evaluation.drift import drift_table
from chestxray.evaluation.metrics import FEW, evaluate, subgroup_table, wilson_interval
from chestxray.evaluation.thresholds import PREVALENCES, operating_points, triage_table
from chestxray.schema import check

_FOLDS = 5
_TO_LABEL = 10  # images nearest to the threshold, and as many random ones

Section = tuple[str, str, pd.DataFrame | None]  # title, text and table


def report(
    table: pd.DataFrame, card: Mapping[str, Any], by: Sequence[str] = (), prevalence: float | None = None
) -> list[Section]:
    """Evaluate labelled predictions of one model.

    Args:
        table: From :func:`join_labels`; ``probability`` is missing if the image was refused.
        by: Columns whose values are evaluated separately.
        prevalence: Proportion of pneumonia at the place of use; by default 10, 25 and 50 %.

    Also raises ValueError if a class is missing.
    """
    _check_predictions(table, card, ("label", "group"))
    scored = table[table["probability"].notna()]
    check(len(scored), "no labelled image was classified", rows=len(table))
    labels, probabilities, groups = (scored[name] for name in ("label", "probability", "group"))
    seen = scored.get("seen", pd.Series(dtype=object)).value_counts()
    counts = {"images": len(scored), "patients": groups.nunique(), "positives": int(labels.sum())}
    counts |= {"refused": len(table) - len(scored), "classes": card["classes"], "few": FEW}
    counts["seen"] = seen_text(seen.get("train", 0), seen.get("val", 0), len(scored))
    metrics, _ = evaluate(labels, probabilities, groups, card["thresholds"])
    ranking = pd.DataFrame([{"metric": name, **metrics[name]} for name in ("auroc", "auprc")])
    prevalences = PREVALENCES if prevalence is None else (prevalence,)
    points = operating_points(labels, probabilities, card["thresholds"], prevalences)
    points = points.astype(dict.fromkeys(("tp", "fp", "tn", "fn"), int)).set_index("threshold_rule")
    points = points.astype(object).T.reset_index(names="")  # object: counts stay whole numbers
    sections = [
        _section("Images", **counts),
        _section("Discrimination", ranking),
        _section("Decisions at the stored thresholds", points),
        _calibration(scored, prevalence),
    ]
    tables = {f"By {column}": subgroup_table(scored, column, card["thresholds"]["youden"]) for column in by}
    if "triage" in card:
        tables = {"Triage": triage_table(labels, probabilities, **card["triage"])} | tables
    names = {"pneumonia": card["classes"][1]}
    return sections + [_section(title, table.rename(columns=names)) for title, table in tables.items()]


def _section(title: str, table: pd.DataFrame | None = None, **values: Any) -> Section:
    """Return a section with the text that ``evaluation.txt.j2`` has for its title, as one line."""
    return title, " ".join(render("evaluation.txt.j2", title=title, **values).split()), table


def _check_predictions(table: pd.DataFrame, card: Mapping[str, Any], columns: Iterable[str]) -> None:
    """Raise ValueError if a column is missing, or the calibration of the card gives other probabilities."""
    if missing := {"path", "probability", "logit", *columns} - set(table):
        message = f"predictions need the columns that chestxray predict writes; missing: {sorted(missing)}"
        raise ValueError(f"{message}. Received: columns={list(table)}")
    rows = table.dropna(subset=["logit", "probability"])
    expected = apply_platt(rows["logit"], **card["calibration"])
    wrong = rows[~((rows["probability"] - expected).abs() < 1e-4)]
    message = f"another model made {len(wrong)} of these {len(table)} predictions: this one"
    received = {"model": card["name"], "path": next(iter(wrong["path"]), None)}
    check(wrong.empty, f"{message} has another calibration", **received)


def _calibration(table: pd.DataFrame, prevalence: float | None) -> Section:
    labels, versions = table["label"], {"as stored": table["probability"].to_numpy()}
    values = {"error": "", "shifted": None, "prevalence": prevalence, "observed": labels.mean()}
    try:
        refitted = versions["refitted here (cross-validated)"] = locally_calibrated(table)
    except ValueError as error:
        values["error"] = error
    else:
        if prevalence is not None:
            shifted = shift_prevalence(refitted, float(labels.mean()), prevalence)
            values |= {"refitted": refitted.mean(), "shifted": shifted.mean()}
    rows = []
    for name, probabilities in versions.items():
        metrics = calibration_metrics(labels, probabilities, table["group"])
        rows += [{"calibration": name, "metric": metric, **entry} for metric, entry in metrics.items()]
    return _section("Calibration", pd.DataFrame(rows), **values)


def locally_calibrated(table: pd.DataFrame) -> np.ndarray:
    """Refit Platt scaling by cross-validation: each image is scored by a fit on other patients.

    ``table`` has the columns ``logit, label, group``. Returns probabilities, (N,). Raises ValueError if a
    class has fewer than ten patient groups, or the logits rank the images backwards.
    """
    if table.groupby("label")["group"].nunique().min() < 2 * _FOLDS:
        raise ValueError(f"too few patients (at least {2 * _FOLDS} of each class are needed)")
    probabilities = np.empty(len(table))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    for train, test in folds.split(table, table["label"], table["group"]):
        slope, intercept = fit_platt(table["logit"].iloc[train], table["label"].iloc[train])
        if slope <= 0:
            raise ValueError("the model ranks these images backwards: refitting would reverse its scores")
        probabilities[test] = apply_platt(table["logit"].iloc[test], slope, intercept)
    return probabilities


def drift_report(table: pd.DataFrame, card: Mapping[str, Any]) -> list[Section]:
    """Compare unlabelled predictions with the ``reference`` of the card, the validation images of the model.

    ``table`` is from ``chestxray predict``, see :func:`chestxray.deployment.predict.predict_files`.
    """
    check("reference" in card, "the model's card has no reference for drift", model=card["name"])
    measures = list(card["reference"]["quantiles"])
    _check_predictions(table, card, ("status", "problem", "decision", *measures))
    readable, classified = table[table["status"] != "unreadable"], table[table["status"] == "ok"]
    check(len(classified), "no image was classified", rows=len(table))
    positive = card["classes"][1]
    counts = {
        "unreadable": (len(table) - len(readable), len(table)),
        "unlike the training images": (int(readable["problem"].fillna("").ne("").sum()), len(readable)),
        f"predicted {positive}": (int(classified["decision"].eq(positive).sum()), len(classified)),
    }
    rows = [(what, *count, *wilson_interval(*count)) for what, count in counts.items()]
    shares = pd.DataFrame(rows, columns=["what", "images", "of", "share", "low", "high"])
    distance = (classified["probability"] - card["thresholds"]["youden"]).abs()
    nearest = distance.nsmallest(_TO_LABEL).index
    others = np.random.default_rng(0).permutation(classified.index.difference(nearest))[:_TO_LABEL]
    to_label = classified.loc[[*nearest, *others], ["path", "probability"]]
    to_label["why"] = np.repeat(["nearest to the threshold", "drawn at random"], [len(nearest), len(others)])
    measured = {name: readable[name].dropna() for name in measures}  # some refused images are not measured
    drift = drift_table(card["reference"], measured)
    tables = {"Shares": shares, "Drift": drift, "What to label next": to_label}
    return [_section(title, table) for title, table in tables.items()]


def join_labels(
    predictions: pd.DataFrame, labels: pd.DataFrame, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join a user's labels to predictions, by ``path``.

    Args:
        predictions: From ``chestxray predict``. Their columns take precedence, except label and group.
        labels: ``path`` (as in the predictions, or an unambiguous end of it after a ``/``); ``label`` (0, 1,
            a class, or empty); ``group``, the patient (by default one per image); and any other columns.
        classes: The negative and the positive one.

    Returns the labelled predictions, with ``label`` 0 or 1 and ``group``, and the labels without a
    prediction. Raises ValueError if a column is missing, a label is unknown, a path is repeated or ambiguous,
    or no path matches.
    """
    check("label" in labels, "labels need a column label", columns=list(labels))
    for name, table in {"predictions": predictions, "labels": labels}.items():
        check("path" in table, f"{name} need a column path", columns=list(table))
        repeated = table["path"][table["path"].duplicated()]
        check(repeated.empty, f"{name} name a path twice", path=next(iter(repeated), None))
    labels = labels[labels["label"].notna()]
    check(len(labels), "no label is given", rows=len(predictions))
    numbers_of = {"0": 0, "1": 1, classes[0]: 0, classes[1]: 1}
    numbers = labels["label"].astype(str).str.replace(r"^([01])\.0$", r"\1", regex=True).map(numbers_of)
    unknown = labels["label"][numbers.isna()]
    check(unknown.empty, f"labels must be one of {sorted(numbers_of)}", label=next(iter(unknown), None))
    predictions = predictions.assign(path=predictions["path"].astype(str))
    paths, by_ending = set(predictions["path"]), defaultdict(list)
    for path in paths:
        folders = _plain(path).split("/")
        for start in range(len(folders)):
            by_ending["/".join(folders[start:])].append(path)

    def prediction_of(path: str) -> str | None:
        matches = [path] if path in paths else by_ending.get(_plain(path), [None])
        check(len(matches) == 1, "several predictions end like this: give whole paths", path=path)
        return matches[0]

    joined = labels.assign(label=numbers.astype(int), path=labels["path"].astype(str).map(prediction_of))
    matched = joined.dropna(subset="path")
    check(len(matched), "no path of the labels is among the predictions", path=labels["path"].iloc[0])
    repeated = matched["path"][matched["path"].duplicated()]
    check(repeated.empty, "two labels match the same prediction", path=next(iter(repeated), None))
    absent = labels[joined["path"].isna()]
    predictions = predictions.drop(columns=["label", "group"], errors="ignore")
    added = ["path", *matched.columns.difference(predictions.columns, sort=False)]
    joined = predictions.merge(matched[added], on="path", validate="one_to_one")
    patients = joined.get("group", pd.Series(index=joined.index, dtype=object))
    joined["group"] = patients.astype(str).where(patients.notna(), joined["path"])
    return joined, absent


def _plain(path: str) -> str:  # Windows and macOS may have written it differently
    return unicodedata.normalize("NFC", path.replace("\\", "/"))
