"""Lists that people keep as CSV."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd


def read_table(path: str | Path, texts: Collection[str], **options: Any) -> pd.DataFrame:
    """Read a CSV file in which some columns hold names.

    pandas would make one patient of 007 and 7, and none of NA.

    Args:
        path: The file.
        texts: Columns, where there are such, that are kept letter by letter;
            only an empty cell is missing there.
        options: Of :func:`pandas.read_csv`.
    """
    table = pd.read_csv(path, **options)
    names = [name for name in table if name in texts]
    found = pd.read_csv(path, usecols=names, dtype=str, keep_default_na=False, **options)
    return table.assign(**{name: found[name].where(found[name] != "") for name in names})
