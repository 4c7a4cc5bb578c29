"""Training, validation and test: the rules, and what crosses them.

``official``
    Test is the published test folder; validation is 12 % of train + val, cut
    by patient group. The published val folder (16 images) is far too small to
    choose anything by and is never a validation set of its own.
``patient``
    70/15/15 by patient group over all images, stratified by class and subtype.
``image``
    70/15/15 by image over all images, stratified by class. Images of one
    patient fall on both sides: only for comparison with published work that
    split this way.
``given``
    The parts that a list or the folders train, val and test name, as they are.

Every cut that this module makes itself goes by the conservative group. The
published test set cannot be cut anew; it is checked by the strict group, and
:func:`overlap` reports both.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path

import numpy as np
import pandas as pd

from chestxray.files import read_table, whole_file
from chestxray.schema import SPLITS

RULES = ("official", "image", "patient", "given")
FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}
"""Shares of the images under the rules ``image`` and ``patient``."""

_OFFICIAL_VALIDATION = 0.12
_TEXT = ("path", "subtype", "group", "group_conservative", "official_split", "split")


def make_split(catalog: pd.DataFrame, split_rule: str = "patient", seed: int = 0) -> pd.DataFrame:
    """Add the column ``split`` to a catalog.

    Args:
        catalog: See :mod:`chestxray.data.catalog`.
        split_rule: ``official``, ``image``, ``patient`` or ``given``.
        seed: Decides who goes where.

    Returns:
        A copy of the catalog with ``split`` = train, val or test.

    Raises:
        ValueError: Unknown rule, no such seed, ``official`` without a published test set, a
            patient group on both sides of a split, or a subset without both
            classes.
    """
    if split_rule not in RULES:
        raise ValueError(f"rule must be one of {RULES}. Received: split_rule={split_rule!r}")
    if not isinstance(seed, (int, np.integer)) or seed < 0:
        raise ValueError(f"seed must be a whole number, at least 0. Received: seed={seed!r}")
    table = catalog.copy()
    rng = np.random.default_rng(seed)
    if split_rule == "image":
        table["split"] = _cut_images(table["label"].to_numpy(), rng)
    elif split_rule == "patient":
        table["split"] = _cut_groups(table, FRACTIONS, rng)
    elif split_rule == "given":
        table["split"] = table["official_split"]
    else:
        if not (table["official_split"] == "test").any():
            raise ValueError(
                "the folder has no published test set (no test folder). Received: split_rule='official'"
            )
        rest = table["official_split"] != "test"
        table["split"] = "test"
        fractions = {"train": 1 - _OFFICIAL_VALIDATION, "val": _OFFICIAL_VALIDATION}
        table.loc[rest, "split"] = _cut_groups(table[rest], fractions, rng)
    check_split(table, split_rule)
    return table


def _cut_images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    split = np.full(len(labels), "test", dtype=object)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        train = round(FRACTIONS["train"] * len(rows))
        val = (len(rows) - train) // 2
        split[rows[:train]] = "train"
        split[rows[train : train + val]] = "val"
    return split


def _cut_groups(table: pd.DataFrame, fractions: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Give whole groups to the subset that lacks most, large groups first.

    A group that holds several subtypes (``person12`` with bacterial and viral
    films) counts for each of them.
    """
    subsets = list(fractions)
    strata = table["label"].astype(str) + table["subtype"]
    counts = pd.crosstab(table["group_conservative"], strata)
    counts = counts.iloc[rng.permutation(len(counts))]
    counts = counts.iloc[np.argsort(-counts.sum(axis=1).to_numpy(), kind="stable")]
    lacking = np.outer([fractions[subset] for subset in subsets], counts.sum().to_numpy())
    wanted = lacking.copy()
    chosen = {}
    for group, row in zip(counts.index, counts.to_numpy(), strict=True):
        subset = int(np.argmax((lacking / wanted) @ row))
        lacking[subset] -= row
        chosen[group] = subsets[subset]
    return table["group_conservative"].map(chosen).to_numpy()


def check_split(table: pd.DataFrame, split_rule: str) -> None:
    """Refuse a split that leaks or that cannot be scored.

    Raises:
        ValueError: A patient group lies on both sides (strict key between
            test and the rest for ``official``, conservative key otherwise;
            not asked for ``image``), a subset has another name than train, val
            and test, or lacks a class.
    """
    unknown = ~table["split"].isin(SPLITS)
    if unknown.any():
        raise ValueError(
            f"a subset must be one of {SPLITS}. Received: split={table['split'][unknown].iloc[0]!r}"
        )
    for subset in SPLITS:
        labels = set(table.loc[table["split"] == subset, "label"])
        if labels != {0, 1}:
            raise ValueError(
                f"{subset} must hold images of both classes, it holds labels "
                f"{sorted(labels)}. Received: split_rule={split_rule!r}"
            )
    if split_rule == "image":
        return
    inner = table[table["split"] != "test"] if split_rule == "official" else table
    crossing = _crossing(inner, "group_conservative")
    if split_rule == "official":
        tested = table.assign(split=table["split"].where(table["split"] == "test", "train"))
        crossing += _crossing(tested, "group")
    if crossing:
        raise ValueError(
            f"{len(crossing)} patient groups lie on both sides of the split, for example "
            f"{crossing[0]}. Received: split_rule={split_rule!r}"
        )


def _crossing(table: pd.DataFrame, key: str) -> list[str]:
    sides = table.groupby(key)["split"].nunique()
    return sorted(sides.index[sides > 1])


def overlap(table: pd.DataFrame) -> pd.DataFrame:
    """Count what the test set shares with training and validation.

    Args:
        table: Catalog with ``split``.

    Returns:
        One row for each group key: ``groups`` in all, ``groups_crossing``
        (with images in test and elsewhere), ``test_images_affected`` and
        ``test_share_affected`` (0–1).
    """
    rows = []
    in_test = table["split"] == "test"
    for key in ("group", "group_conservative"):
        crossing = set(table.loc[in_test, key]) & set(table.loc[~in_test, key])
        affected = int(table.loc[in_test, key].isin(crossing).sum())
        rows.append((key, table[key].nunique(), len(crossing), affected, affected / max(1, in_test.sum())))
    return pd.DataFrame(
        rows, columns=["key", "groups", "groups_crossing", "test_images_affected", "test_share_affected"]
    )


def split_hash(table: pd.DataFrame) -> str:
    """Identify a split by path, label and subset, as text: no pixels, 16 hex digits."""
    lines = sorted(
        f"{path}\t{label}\t{split}"
        for path, label, split in table[["path", "label", "split"]].itertuples(index=False)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_split(table: pd.DataFrame, path: str | Path, split_rule: str, seed: int) -> None:
    """Write a split as CSV below one line with rule, seed and hash."""
    with whole_file(path) as partial:
        header = json.dumps({"rule": split_rule, "seed": seed, "hash": split_hash(table)})
        partial.write_text(f"# {header}\n" + table.to_csv(index=False), encoding="utf-8")


def read_split(path: str | Path) -> tuple[pd.DataFrame, dict]:
    """Read a split file and check it.

    Returns:
        The catalog with ``split``, and ``{"rule", "seed", "hash"}``. A file
        that was edited after writing gives a warning and its new hash.

    Raises:
        ValueError: The file is none of ours, or :func:`check_split` refuses it.
    """
    with open(path, encoding="utf-8") as file:
        first = file.readline()
    try:
        header = json.loads(first.removeprefix("# "))
        split_rule, expected = header["rule"], header["hash"]
        if split_rule not in RULES:
            raise KeyError(split_rule)
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"not a split file. Received: path={str(path)!r}") from None
    table = read_table(path, _TEXT, skiprows=1).fillna(dict.fromkeys(_TEXT, ""))
    if split_hash(table) != expected:
        warnings.warn(f"split file was edited after writing: {path}", stacklevel=2)
        header["hash"] = split_hash(table)
    check_split(table, split_rule)
    return table, header
