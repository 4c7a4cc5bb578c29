"""Somebody's own labels, put to predictions."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd


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
