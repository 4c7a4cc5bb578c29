"""Reports of `chestxray evaluate` on a user's predictions: with labels, and drift without labels.

``card`` is the model's card. Reports raise ValueError for a missing column, when no image was classified, and
when another model made the predictions.
"""

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from chestxray.deployment.seen import seen_text
from chestxray.evaluation.calibration import apply_platt, calibration_metrics, fit_platt, shift_prevalence
from chestxray.evaluation.drift import drift_table
from chestxray.evaluation.metrics import FEW, evaluate, subgroup_table, wilson_interval
from chestxray.evaluation.thresholds import PREVALENCES, operating_points, threshold_elsewhere, triage_table

_FOLDS = 5
_TO_LABEL = 10  # images nearest to the threshold, and as many random ones

Section = tuple[str, str, pd.DataFrame | None]
"""Title, text and table of a part of a report."""


def report(
    table: pd.DataFrame, card: Mapping[str, Any], by: Sequence[str] = (), prevalence: float | None = None
) -> list[Section]:
    """Score labelled predictions of one model; ValueError also if a class is missing.

    Args:
        table: One row an image: ``probability`` (calibrated by the model's card; missing where the image was
            refused), ``logit``, ``path``, ``label``, ``group``, and the columns of ``by``.
        by: Columns whose values are scored separately.
        prevalence: Share of pneumonia at the place of use; None gives predictive values at 10, 25 and 50 %.
    """
    _check_predictions(table, card, ("label", "group"))
    scored = table[table["probability"].notna()]
    refused = len(table) - len(scored)
    if scored.empty:
        raise ValueError(f"no labelled image was classified. Received: rows={len(table)}")
    labels, probabilities, groups = (scored[name] for name in ("label", "probability", "group"))
    positives, patients = int(labels.sum()), groups.nunique()
    negatives = len(scored) - positives
    negative, positive = card["classes"]
    counts = f"{len(scored):,} images of {patients:,} patients: {positives:,} {positive}, "
    counts += f"{negatives:,} {negative}."
    if refused:
        counts += f" {refused:,} more were refused or could not be read, and are not scored."
    if patients == len(scored):
        counts += " Every image is taken for another patient: if that is wrong, intervals are too narrow."
    seen = scored.get("seen", pd.Series("", scored.index))
    if text := seen_text(int((seen == "train").sum()), int((seen == "val").sum()), len(scored)):
        counts += f" {text}"
    if min(positives, negatives) < FEW:
        counts += f" A class has fewer than {FEW} images: read the intervals, not the values."

    metrics, _ = evaluate(labels, probabilities, groups, card["thresholds"])
    ranking = pd.DataFrame([{"metric": name, **metrics[name]} for name in ("auroc", "auprc")])
    prevalences = PREVALENCES if prevalence is None else (prevalence,)
    points = operating_points(labels, probabilities, card["thresholds"], prevalences)
    points = points.astype(dict.fromkeys(("tp", "fp", "tn", "fn"), int))
    points = points.set_index("threshold_rule").astype(object).T.reset_index(names="")  # counts stay whole
    text = "Chosen on the model's own validation images. Wilson intervals. "
    text += "PPV and NPV at the prevalence given in percent."
    sections: list[Section] = [
        ("Images", counts, None),
        ("Discrimination", "95 % intervals by bootstrap over patients.", ranking),
        ("Decisions at the stored thresholds", text, points),
        _local_threshold(scored),
        _calibration(scored, prevalence),
    ]
    if "triage" in card:
        triage = triage_table(labels, probabilities, **card["triage"]).rename(columns={"pneumonia": positive})
        sections.append(("Triage", "Rule out / refer / rule in, at two stored thresholds.", triage))
    text = "At the threshold youden. Differences between groups that lie within the intervals are no finding."
    for column in by:
        subgroups = subgroup_table(scored, column, card["thresholds"]["youden"])
        sections.append((f"By {column}", text, subgroups.rename(columns={"pneumonia": positive})))
    return sections


def _check_predictions(table: pd.DataFrame, card: Mapping[str, Any], columns: Iterable[str]) -> None:
    """Raise ValueError if a column is missing, or the card's calibration gives other probabilities."""
    if missing := {"path", "probability", "logit", *columns} - set(table):
        message = f"predictions need the columns that chestxray predict writes; missing: {sorted(missing)}"
        raise ValueError(f"{message}. Received: columns={list(table)}")
    rows = table.dropna(subset=["logit", "probability"])
    expected = apply_platt(rows["logit"], card["calibration"]["slope"], card["calibration"]["intercept"])
    wrong = rows[~((rows["probability"] - expected).abs() < 1e-4)]
    if len(wrong):
        raise ValueError(
            f"another model made {len(wrong)} of these {len(table)} predictions: the calibration of this one "
            f"gives other probabilities. Received: model={card['name']!r}, path={wrong['path'].iloc[0]!r}"
        )


def _local_threshold(table: pd.DataFrame) -> Section:
    """Decisions at a threshold chosen on some of these images."""
    title = "Decisions at a threshold chosen here"
    counts = [count for count in (25, 50, 100, 200) if 2 * count <= len(table)]
    scores = threshold_elsewhere(table["label"], table["probability"], table["group"], counts)
    if scores.empty:
        return title, "Not tried: that needs 50 images, and both classes among any 25 of them.", None
    text = "Some of these images are drawn by patient, and the Youden threshold of them decides about the "
    text += "others: mean and middle 95 % of up to 200 draws. This is the variation of the choice and no "
    text += "confidence interval. The stored threshold is not changed."
    return (title, text, scores.set_index("labelled").T.reset_index(names="from so many images"))


def _calibration(table: pd.DataFrame, prevalence: float | None) -> Section:
    labels, versions = table["label"], {"as stored": table["probability"].to_numpy()}
    text = (
        "Slope 1 and intercept 0 are right. A slope below 1 is over-confident, and with an intercept below "
    )
    text += "0 the probabilities are too high."
    try:
        refitted = versions["refitted here (cross-validated)"] = locally_calibrated(table)
    except ValueError as error:
        text += f" Not refitted: {error}."
    else:
        if prevalence is not None:
            shifted = shift_prevalence(refitted, float(labels.mean()), prevalence)
            text += f" At a prevalence of {100 * prevalence:.3g}% instead of {labels.mean():.0%} here, the "
            text += f"mean refitted probability {refitted.mean():.2f} becomes {shifted.mean():.2f} (Bayes)."
    rows = []
    for name, probabilities in versions.items():
        metrics = calibration_metrics(labels, probabilities, table["group"])
        rows += [{"calibration": name, "metric": metric, **entry} for metric, entry in metrics.items()]
    return "Calibration", text, pd.DataFrame(rows)


def locally_calibrated(table: pd.DataFrame) -> np.ndarray:
    """Refit Platt scaling on these images (``logit, label, group``), each scored by a fit on other patients.

    Returns probabilities (N,). ValueError: A class has fewer than ten patient groups, or logits rank
    backwards.
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
    """Compare unlabelled predictions with the model's validation images; the card needs a ``reference``.

    ``table`` is from ``chestxray predict``: ``path``, ``status``, ``problem``, ``probability``, ``decision``,
    the raw ``logit``, and the measures of each image.
    """
    if "reference" not in card:
        raise ValueError(f"the model's card has no reference for drift. Received: model={card['name']!r}")
    measures = list(card["reference"]["quantiles"])
    _check_predictions(table, card, ("status", "problem", "decision", *measures))
    read, classified = table[table["status"] != "unreadable"], table[table["status"] == "ok"]
    if classified.empty:
        raise ValueError(f"no image was classified. Received: rows={len(table)}")
    shares = []
    for what, count, total in (
        ("unreadable", len(table) - len(read), len(table)),
        ("unlike the training images", int(read["problem"].fillna("").ne("").sum()), len(read)),
        (
            f"called {card['classes'][1]}",
            int((classified["decision"] == card["classes"][1]).sum()),
            len(classified),
        ),
    ):
        interval = dict(zip(("share", "low", "high"), wilson_interval(count, total)))
        shares.append({"what": what, "images": count, "of": total, **interval})

    distance = (classified["probability"] - card["thresholds"]["youden"]).abs()
    nearest = distance.nsmallest(_TO_LABEL).index
    others = np.random.default_rng(0).permutation(classified.index.difference(nearest))[:_TO_LABEL]
    to_label = classified.loc[[*nearest, *others], ["path", "probability"]]
    to_label["why"] = np.repeat(["nearest to the threshold", "drawn at random"], [len(nearest), len(others)])
    shares_text = "Wilson intervals. About 1 % of the validation images are unlike the training images."
    drift_text = "Medians then and now, population stability index (what chance alone gives beside it), "
    drift_text += "Kolmogorov-Smirnov distance. Drift is not yet loss of performance, and performance can be "
    drift_text += "lost without drift: only labels tell."
    label_text = "The images nearest to the threshold teach where the model is unsure. An honest estimate of "
    label_text += "its performance needs a random sample: begin with the ones drawn here, and go on until "
    label_text += "there are a hundred of each class."
    measured = {name: read[name].dropna() for name in measures}  # some refused images are not measured
    return [
        ("Shares", shares_text, pd.DataFrame(shares)),
        ("Drift", drift_text, drift_table(card["reference"], measured)),
        ("What to label next", label_text, to_label),
    ]


def join_labels(
    predictions: pd.DataFrame, labels: pd.DataFrame, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Join a user's labels to predictions, by ``path``.

    Args:
        predictions: Of columns that both tables have, these count, except label and group.
        labels: ``path`` (as in the predictions, or an unambiguous end of it from a ``/`` on), ``label`` (0,
            1, or one of the (negative, positive) ``classes``; empty where it is not known) and any other
            columns; ``group`` is the patient.

    Returns the labelled predictions with ``label`` 0 or 1 and ``group`` (by default each image its own), and
    the rows of ``labels`` without a prediction.

    Raises ValueError: A column is missing, a label unknown, a path twice or ambiguous, or nothing matches.
    """
    tables = {"predictions": (predictions, ("path",)), "labels": (labels, ("path", "label"))}
    for name, (table, columns) in tables.items():
        for column in columns:
            if column not in table:
                raise ValueError(f"{name} need a column {column}. Received: columns={list(table)}")
        if (twice := table["path"].duplicated()).any():
            raise ValueError(f"{name} name a path twice. Received: path={table['path'][twice].iloc[0]!r}")
    labels = labels[labels["label"].notna()]
    if labels.empty:
        raise ValueError(f"no label is given. Received: rows={len(predictions)}")
    known = {"0": 0, "1": 1, classes[0]: 0, classes[1]: 1}
    numbers = labels["label"].astype(str).str.replace(r"^([01])\.0$", r"\1", regex=True).map(known)
    if (unknown := numbers.isna()).any():
        wrong = labels["label"][unknown].iloc[0]
        raise ValueError(f"labels must be one of {sorted(known)}. Received: label={wrong!r}")

    def plain(path: str) -> str:  # as Windows and macOS may have written it
        return unicodedata.normalize("NFC", path.replace("\\", "/"))

    predictions = predictions.assign(path=predictions["path"].astype(str))
    paths, by_ending = set(predictions["path"]), defaultdict(list)
    for path in paths:
        folders = plain(path).split("/")
        for start in range(len(folders)):
            by_ending["/".join(folders[start:])].append(path)

    def prediction_of(path: str) -> str | None:
        matches = [path] if path in paths else by_ending.get(plain(path), [None])
        if len(matches) > 1:
            raise ValueError(f"several predictions end like this: give whole paths. Received: path={path!r}")
        return matches[0]

    placed = labels.assign(label=numbers.astype(int), path=labels["path"].astype(str).map(prediction_of))
    matched = placed.dropna(subset="path")
    if matched.empty:
        first = labels["path"].iloc[0]
        raise ValueError(f"no path of the labels is among the predictions. Received: path={first!r}")
    if (twice := matched["path"].duplicated()).any():
        path = matched["path"][twice].iloc[0]
        raise ValueError(f"two labels match the same prediction. Received: path={path!r}")
    predictions = predictions.drop(columns=["label", "group"], errors="ignore")
    new = ["path", *matched.columns.difference(predictions.columns, sort=False)]
    joined = predictions.merge(matched[new], on="path", validate="one_to_one")
    patients = joined.get("group", pd.Series(index=joined.index, dtype=object))
    joined["group"] = patients.astype(str).where(patients.notna(), joined["path"])
    return joined, labels[placed["path"].isna()]
