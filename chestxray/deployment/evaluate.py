"""Somebody's own predictions: what they are worth there, with labels and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from chestxray.evaluation.calibration import apply_platt, calibration_metrics, fit_platt, shift_prevalence
from chestxray.evaluation.drift import drift_table
from chestxray.evaluation.metrics import FEW, evaluate, subgroup_table, wilson_interval
from chestxray.evaluation.thresholds import PREVALENCES, operating_points, threshold_elsewhere, triage_table

_FOLDS = 5
_NEXT = 20  # images to label next

Section = tuple[str, str, pd.DataFrame | None]


def locally_calibrated(table: pd.DataFrame, seed: int = 0) -> np.ndarray:
    """Refit Platt scaling on these images, each scored by a fit on other patients.

    Args:
        table: ``logit``, ``label``, ``group``.

    Returns:
        Probabilities (N,).

    Raises:
        ValueError: A class has fewer than two patient groups a fold, or the
            logits rank the images backwards.
    """
    if table.groupby("label")["group"].nunique().min() < 2 * _FOLDS:
        raise ValueError(f"too few patients (at least {2 * _FOLDS} of each class are needed)")
    found = np.empty(len(table))
    folds = StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=seed)
    for train, test in folds.split(table, table["label"], table["group"]):
        slope, intercept = fit_platt(table["logit"].iloc[train], table["label"].iloc[train])
        if slope <= 0:
            raise ValueError("the model ranks these images backwards: refitting would turn it round")
        found[test] = apply_platt(table["logit"].iloc[test], slope, intercept)
    return found


def report(
    table: pd.DataFrame, card: Mapping[str, Any], by: Sequence[str] = (), prevalence: float | None = None
) -> list[Section]:
    """Score labelled predictions of one model.

    Args:
        table: One row an image: ``probability`` (calibrated by the model's
            card; missing where the image was refused), ``logit``, ``label``,
            ``group``, and the columns of ``by``.
        card: Of the model: thresholds and triage, frozen on its validation images.
        by: Columns whose values are scored apart.
        prevalence: Share of pneumonia where the model is to be used; without
            it predictive values are given at 10, 25 and 50 %.

    Returns:
        Sections of title, text and table.

    Raises:
        ValueError: One class is missing, there is no such column, or another
            model made the predictions.
    """
    if missing := {"probability", "logit", "label", "group"} - set(table):
        raise ValueError(
            "predictions need the columns that chestxray predict writes; missing: "
            f"{sorted(missing)}. Received: columns={list(table)}"
        )
    _check_model(table, card)
    without = table["probability"].isna()
    table = table[~without]
    if table.empty:
        raise ValueError(f"no labelled image was classified. Received: rows={len(without)}")
    labels, probabilities, groups = (table[name] for name in ("label", "probability", "group"))
    positives, patients = int(labels.sum()), groups.nunique()
    counted = (
        f"{len(table):,} images of {patients:,} patients, {positives:,} with pneumonia, "
        f"{len(table) - positives:,} without."
    )
    if without.any():
        counted += f" {without.sum():,} more were refused or could not be read, and are not scored."
    if patients == len(table):
        counted += " Every image is taken for another patient: if that is wrong, intervals are too narrow."
    if min(positives, len(table) - positives) < FEW:
        counted += f" A class has fewer than {FEW} images: read the intervals, not the values."
    metrics, _ = evaluate(labels, probabilities, groups, card["thresholds"])
    ranking = pd.DataFrame([{"metric": name, **metrics[name]} for name in ("auroc", "auprc")])
    prevalences = PREVALENCES if prevalence is None else (prevalence,)
    points = operating_points(labels, probabilities, card["thresholds"], prevalences)
    sections: list[Section] = [
        ("Images", counted, None),
        ("Discrimination", "95 % intervals by bootstrap over patients.", ranking),
        (
            "Decisions at the stored thresholds",
            "Chosen on the model's own validation images. Wilson "
            "intervals. PPV and NPV at the prevalence given in percent.",
            points.set_index("rule").T.reset_index(names=""),
        ),
        _threshold(table),
        _calibration(table, prevalence),
    ]
    if "triage" in card:
        sections.append(
            (
                "Triage",
                "Rule out / refer / rule in, at two stored thresholds.",
                triage_table(labels, probabilities, **card["triage"]),
            )
        )
    threshold = card["thresholds"]["youden"]
    for column in by:
        sections.append(
            (
                f"By {column}",
                "At the threshold youden. Differences between groups that lie "
                "within the intervals are no finding.",
                subgroup_table(table, column, threshold),
            )
        )
    return sections


def _check_model(table: pd.DataFrame, card: Mapping[str, Any]) -> None:
    """Raise ValueError unless the card's calibration gives the table's probabilities."""
    rows = table.dropna(subset=["logit", "probability"])
    expected = apply_platt(rows["logit"], card["calibration"]["slope"], card["calibration"]["intercept"])
    wrong = rows[~((rows["probability"] - expected).abs() < 1e-4)]
    if len(wrong):
        raise ValueError(
            f"another model made {len(wrong)} of these {len(table)} predictions: the "
            "calibration of this one gives other probabilities. Received: "
            f"model={card['name']!r}, path={wrong['path'].iloc[0]!r}"
        )


def _threshold(table: pd.DataFrame) -> Section:
    """What a threshold chosen here would give."""
    title = "Decisions at a threshold chosen here"
    text = (
        "Some of these images are drawn by patient, and the Youden threshold of them decides about the "
        "others: mean and middle 95 % of up to 200 draws, which is the luck of the draw and no "
        "confidence interval. The stored threshold is not changed."
    )
    counts = [count for count in (25, 50, 100, 200) if 2 * count <= len(table)]
    found = threshold_elsewhere(table["label"], table["probability"], table["group"], counts)
    if found.empty:
        return title, "Not tried: that needs 50 images, and both classes among any 25 of them.", None
    return title, text, found.set_index("labelled").T.reset_index(names="from so many images")


def _calibration(table: pd.DataFrame, prevalence: float | None) -> Section:
    labels, groups = table["label"], table["group"]
    text = (
        "Slope 1 and intercept 0 are right; a slope below 1 is over-confident, an intercept below 0 says "
        "too much pneumonia."
    )
    versions, rows = {"as stored": table["probability"].to_numpy()}, []
    try:
        local = versions["refitted here (cross-validated)"] = locally_calibrated(table)
    except ValueError as error:
        text += f" Not refitted: {error}."
    else:
        if prevalence is not None:
            shifted = shift_prevalence(local, float(labels.mean()), prevalence)
            text += (
                f" At a prevalence of {100 * prevalence:.3g}% instead of {labels.mean():.0%} here, the "
                f"mean refitted probability {local.mean():.2f} becomes {shifted.mean():.2f} (Bayes)."
            )
    for name, probabilities in versions.items():
        found = calibration_metrics(labels, probabilities, groups)
        rows += [{"calibration": name, "metric": metric, **entry} for metric, entry in found.items()]
    return "Calibration", text, pd.DataFrame(rows)


def drift_report(table: pd.DataFrame, card: Mapping[str, Any], seed: int = 0) -> list[Section]:
    """Compare unlabelled predictions with what the model saw on validation.

    Args:
        table: From ``chestxray predict``: ``status``, ``probability``,
            ``decision``, the raw ``logit``, and the measures of each image.
        card: Of the model, with ``reference``.
        seed: Of the random choice of images to label.

    Returns:
        Sections of title, text and table.

    Raises:
        ValueError: A column is missing, nothing could be read, or another
            model made the predictions.
    """
    if "reference" not in card:
        raise ValueError(
            f"the model's card has no reference to compare with. Received: model={card['name']!r}"
        )
    names = list(card["reference"]["quantiles"])
    if missing := {"path", "status", "problem", "probability", "decision", *names} - set(table):
        raise ValueError(
            "predictions need the columns that chestxray predict writes; missing: "
            f"{sorted(missing)}. Received: columns={list(table)}"
        )
    _check_model(table, card)
    read, judged = table[table["status"] != "unreadable"], table[table["status"] == "ok"]
    if judged.empty:
        raise ValueError(f"no image was classified. Received: rows={len(table)}")
    shares, threshold = [], card["thresholds"]["youden"]
    for what, count, total in (
        ("unreadable", len(table) - len(read), len(table)),
        ("unlike a film of the trained kind", int(read["problem"].fillna("").ne("").sum()), len(read)),
        ("called pneumonia", int((judged["decision"] == card["classes"][1]).sum()), len(judged)),
    ):
        low, high = wilson_interval(count, total)
        shares.append(
            {
                "what": what,
                "images": count,
                "of": total,
                "share": count / total,
                "low": float(low),
                "high": float(high),
            }
        )
    nearest = (judged["probability"] - threshold).abs().nsmallest(_NEXT // 2).index
    others = judged.index.difference(nearest)
    drawn = np.random.default_rng(seed).permutation(others)[: _NEXT // 2]
    to_label = judged.loc[[*nearest, *drawn], ["path", "probability"]].assign(
        why=["nearest to the threshold"] * len(nearest) + ["drawn at random"] * len(drawn)
    )
    return [
        (
            "Shares",
            "Wilson intervals. About 1 % of the validation images are unlike the trained kind.",
            pd.DataFrame(shares),
        ),
        (
            "Drift",
            "Medians then and now, population stability index (what chance alone gives beside it), "
            "Kolmogorov-Smirnov distance. Drift is not yet loss of performance, and performance can be lost "
            "without drift: only labels tell.",
            drift_table(card["reference"], {name: read[name].dropna() for name in names}),
        ),  # refused unmeasured
        (
            "What to label next",
            "The images nearest to the threshold teach where the model is unsure. An "
            "honest estimate of its performance needs a random sample: begin with the ones drawn here, and go "
            "on until there are a hundred of each class.",
            to_label,
        ),
    ]


def join_labels(
    predictions: pd.DataFrame, labels: pd.DataFrame, classes: Sequence[str]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put somebody's labels to predictions.

    Args:
        predictions: With ``path``; of columns that both tables have, but for
            label and group, these count.
        labels: ``path`` (as in the predictions, or the end of it from a ``/``
            on, such as the file's name, where that is unambiguous), ``label``
            (0, 1, or a name of the classes; empty where it is not known yet)
            and any columns more; ``group`` is the patient, an image without
            one is taken for a patient of its own.
        classes: Names of the negative and the positive class.

    Returns:
        The labelled predictions with ``label`` 0 or 1 and ``group``, and the
        rows of ``labels`` for which there is no prediction.

    Raises:
        ValueError: A column is missing, a label unknown, a path twice or
            ambiguous, or nothing matches.
    """
    for name, table, needed in (
        ("predictions", predictions, {"path"}),
        ("labels", labels, {"path", "label"}),
    ):
        if missing := needed - set(table):
            raise ValueError(f"{name} need a column {sorted(missing)[0]}. Received: columns={list(table)}")
        twice = table["path"][table["path"].duplicated()]
        if len(twice):
            raise ValueError(f"{name} name a path twice. Received: path={twice.iloc[0]!r}")
    labels = labels[labels["label"].notna()]
    if labels.empty:
        raise ValueError(f"no label is given. Received: rows={len(predictions)}")
    known = {"0": 0, "1": 1, classes[0]: 0, classes[1]: 1}
    numbers = labels["label"].astype(str).str.replace(r"^([01])\.0$", r"\1", regex=True).map(known)
    if numbers.isna().any():
        wrong = labels["label"][numbers.isna()].iloc[0]
        raise ValueError(f"labels must be one of {sorted(known)}. Received: label={wrong!r}")
    predictions = predictions.assign(path=predictions["path"].astype(str))
    paths, by_name = set(predictions["path"]), dict[str, list[str]]()
    for path in predictions["path"]:
        by_name.setdefault(path.rsplit("/", 1)[-1], []).append(path)

    def place(path: str) -> str | None:
        if path in paths:
            return path
        same_name = by_name.get(path.rsplit("/", 1)[-1], [])
        ends = [one for one in same_name if f"/{one}".endswith(f"/{path}")]
        if len(ends) > 1:
            raise ValueError(f"several predictions end like this: give whole paths. Received: path={path!r}")
        return ends[0] if ends else None

    placed = labels.assign(label=numbers.astype(int), path=labels["path"].astype(str).map(place))
    found = placed.dropna(subset="path")
    if found.empty:
        raise ValueError(
            f"no path of the labels is among the predictions. Received: path={labels['path'].iloc[0]!r}"
        )
    if found["path"].duplicated().any():
        twice = found["path"][found["path"].duplicated()].iloc[0]
        raise ValueError(f"two labels meet the same prediction. Received: path={twice!r}")
    told = [column for column in predictions if column not in ("label", "group")]
    known_elsewhere = [column for column in found if column not in told or column == "path"]
    joined = predictions[told].merge(found[known_elsewhere], on="path", validate="one_to_one")
    patients = joined.get("group", pd.Series(index=joined.index, dtype=object))
    joined["group"] = patients.astype(str).where(patients.notna(), joined["path"])
    return joined, labels[placed["path"].isna()]
