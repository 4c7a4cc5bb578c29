"""Lists that people keep as CSV."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

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
    written = pd.read_csv(path, dtype=str, keep_default_na=False, **options)
    for name in table:
        if (name in texts or not (is_numeric_dtype(table[name]) or is_bool_dtype(table[name]))
                or written[name].str.contains(_LEADING_ZERO).any()):
            table[name] = written[name].where(written[name] != "")
    return table
