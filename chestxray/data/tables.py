"""Lists that people keep as CSV."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype

_LEADING_ZERO = r"^\s*[+-]?0\d"


def read_table(path: str | Path, texts: Collection[str], **options: Any) -> pd.DataFrame:
    """Read a CSV file and keep names as they are written.

    pandas would make one patient of 007 and 7, and none of NA. Here a column
    holds numbers only if no value of it begins with a zero before another
    digit; in all others only an empty cell is missing.

    Args:
        path: The file.
        texts: Columns, where there are such, that hold names in any case.
        options: Of :func:`pandas.read_csv`.
    """
    table = pd.read_csv(path, **options)
    numbers = {name for name in table if name not in texts and is_numeric_dtype(table[name])}
    # Fractions are no names: in a large table of predictions they are most of the columns.
    names = [name for name in table if name not in numbers or not (table[name] % 1).any()]
    written = pd.read_csv(
        path,
        dtype=str,
        keep_default_na=False,
        **options,
        usecols=[table.columns.get_loc(name) for name in names],
    ).set_axis(names, axis=1)
    for name in names:
        if name not in numbers or written[name].str.contains(_LEADING_ZERO).any():
            table[name] = written[name].where(written[name] != "")
    return table
