"""Is the model equally good for everyone?"""

from __future__ import annotations

import numpy as np
import pandas as pd

from chestxray.evaluation.metrics import evaluate, wilson_interval

FEW = 30
"""Images of a class under which a rate is called uncertain: its interval is wider than ± 15 points."""

_MOST_VALUES = 6


def subgroup_table(table: pd.DataFrame, by: str, threshold: float, draws: int = 1000) -> pd.DataFrame:
    """Score each value of a column apart.

    Args:
        table: One row an image: ``label``, ``probability``, ``group`` and the
            column. Numbers of more than six different values are cut into
            thirds of equally many images; missing values are one more group.
        by: The column.
        threshold: For sensitivity and specificity.
        draws: Of the bootstrap over patient groups.

    Returns:
        One row a value: ``by, value, images, pneumonia``; ``auroc``,
        ``sensitivity`` and ``specificity`` with ``_low`` and ``_high``
        (bootstrap; Wilson for the rates; NaN where a class is missing);
        ``note``, which says when a class has few images.

    Raises:
        ValueError: There is no such column.
    """
    if by not in table:
        raise ValueError(f"no such column; there are {sorted(table)}. Received: by={by!r}")
    values = _values(table[by])
    rows = []
    for value in sorted(values.unique()):
        mine = table[values == value]
        labels, called = mine["label"].to_numpy(), (mine["probability"] >= threshold).to_numpy()
        row = {"by": by, "value": value, "images": len(mine), "pneumonia": int(labels.sum())}
        entry = {"value": np.nan, "low": np.nan, "high": np.nan}
        if 0 < labels.sum() < len(labels):
            entry = evaluate(labels, mine["probability"], mine["group"], {}, draws=draws)[0]["auroc"]
        row |= {"auroc": entry["value"], "auroc_low": entry["low"], "auroc_high": entry["high"]}
        for name, label in (("sensitivity", 1), ("specificity", 0)):
            right, total = int((called[labels == label] == label).sum()), int((labels == label).sum())
            low, high = wilson_interval(right, total) if total else (np.nan, np.nan)
            row |= {
                name: right / total if total else np.nan,
                f"{name}_low": float(low),
                f"{name}_high": float(high),
            }
        fewest = min(labels.sum(), len(labels) - labels.sum())
        rows.append(row | {"note": f"few images (under {FEW}) of a class" if fewest < FEW else ""})
    return pd.DataFrame(rows)


def _values(column: pd.Series) -> pd.Series:
    """Values as text, numbers in thirds."""
    numbers = pd.to_numeric(column, errors="coerce")
    known = column.notna() & (column.astype(str) != "")
    if numbers[known].notna().all() and numbers.nunique() > _MOST_VALUES:
        codes = pd.qcut(numbers, 3, labels=False, duplicates="drop")
        names = {
            code: f"{code + 1:.0f}: {numbers[codes == code].min():.10g} to "
            f"{numbers[codes == code].max():.10g}"
            for code in codes.dropna().unique()
        }
        return codes.map(names).fillna("unknown")
    return column.astype(str).where(known, "unknown")
