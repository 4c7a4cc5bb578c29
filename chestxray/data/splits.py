"""Splits into training, validation and test, and patients in more than one subset.

- ``official``: Test is the published test folder. Validation is 12 % of train + val, drawn by patient group,
  because the published val folder (16 images) is too small to be a validation set.
- ``patient``: 70/15/15 by patient group over all images, stratified by class and subtype.
- ``image``: 70/15/15 by image over all images, stratified by class. Images of one patient are in several
  subsets: only for comparison with published work that split this way.
- ``given``: The subsets of the user's table or of the folders train, val and test.

Patient groups are the conservative ones; the published test set is checked by the strict ones.
"""

import hashlib
import json
from pathlib import Path

import numpy as np
import pandas as pd

from chestxray.files import whole_file
from chestxray.schema import SPLITS, check

RULES = ("official", "image", "patient", "given")
FRACTIONS = {"train": 0.70, "val": 0.15, "test": 0.15}  # of the rules image and patient
_OFFICIAL_FRACTIONS = {"train": 0.88, "val": 0.12}


def make_split(catalog: pd.DataFrame, split_rule: str = "patient", seed: int = 0) -> pd.DataFrame:
    """Return a copy of a catalog with the column ``split``: train, val or test, drawn with ``seed``.

    Raises ValueError for an unknown rule, a missing published test set, and as :func:`check_split`.
    """
    check(split_rule in RULES, f"split_rule must be one of {RULES}", split_rule=split_rule)
    whole = isinstance(seed, (int, np.integer)) and seed >= 0
    check(whole, "seed must be a whole number, at least 0", seed=seed)
    table, rng = catalog.copy(), np.random.default_rng(seed)
    if split_rule == "image":
        table["split"] = _split_images(table["label"].to_numpy(), rng)
    elif split_rule == "patient":
        table["split"] = _split_groups(table, FRACTIONS, rng)
    elif split_rule == "given":
        table["split"] = table["official_split"]
    else:
        rest = table["official_split"] != "test"
        check(not rest.all(), "the folder must have a published test set", split_rule=split_rule)
        table["split"] = "test"
        table.loc[rest, "split"] = _split_groups(table[rest], _OFFICIAL_FRACTIONS, rng)
    check_split(table, split_rule)
    return table


def _split_images(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    split = np.full(len(labels), "test", dtype=object)
    for label in np.unique(labels):
        rows = rng.permutation(np.flatnonzero(labels == label))
        train = round(FRACTIONS["train"] * len(rows))
        split[rows[:train]] = "train"
        split[rows[train : train + (len(rows) - train) // 2]] = "val"
    return split


def _split_groups(table: pd.DataFrame, fractions: dict[str, float], rng: np.random.Generator) -> np.ndarray:
    """Assign each group to the subset that lacks most images of its subtypes; large groups first."""
    counts = pd.crosstab(table["group_conservative"], table["label"].astype(str) + table["subtype"])
    counts = counts.iloc[rng.permutation(len(counts))]
    counts = counts.iloc[np.argsort(-counts.sum(axis=1).to_numpy(), kind="stable")]
    target = np.outer(list(fractions.values()), counts.sum().to_numpy())
    lacking, subset_of = target.copy(), {}
    for group, images in zip(counts.index, counts.to_numpy()):
        subset = int(np.argmax((lacking / target) @ images))
        lacking[subset] -= images
        subset_of[group] = list(fractions)[subset]
    return table["group_conservative"].map(subset_of).to_numpy()


def check_split(table: pd.DataFrame, split_rule: str) -> None:
    """Raise ValueError if a subset is not train, val or test, lacks a class, or shares a patient group.

    The rule ``image`` may share groups. The others are checked by the conservative key, but ``official`` by
    the strict key between test and the rest.
    """
    if unknown := [name for name in table["split"].unique() if name not in SPLITS]:
        raise ValueError(f"a subset must be one of {SPLITS}. Received: split={unknown[0]!r}")
    for subset in SPLITS:
        labels = set(table.loc[table["split"] == subset, "label"])
        message = f"{subset} must hold images of both classes, but has only labels {sorted(labels)}"
        check(labels == {0, 1}, message, split_rule=split_rule)
    if split_rule == "image":
        return
    in_test, official = table["split"] == "test", split_rule == "official"
    crossing = _crossing(table[~in_test] if official else table, "group_conservative")
    if official:
        crossing += _crossing(table.assign(split=in_test), "group")
    if crossing:
        message = f"{len(crossing)} patient groups are in more than one subset, for example {crossing[0]}"
        raise ValueError(f"{message}. Received: split_rule={split_rule!r}")


def _crossing(table: pd.DataFrame, key: str) -> list[str]:
    subsets = table.groupby(key)["split"].nunique()
    return sorted(subsets.index[subsets > 1])


def overlap(table: pd.DataFrame) -> pd.DataFrame:
    """Count the patient groups that the test set of a catalog shares with training and validation.

    One row per group ``key``: ``groups``, ``groups_crossing``, and the test images of these groups,
    ``test_images_affected``, with their share ``test_share_affected``.
    """
    rows, in_test = [], table["split"] == "test"
    for key in ("group", "group_conservative"):
        crossing = _crossing(table.assign(split=in_test), key)
        affected = int(table.loc[in_test, key].isin(crossing).sum())
        rows.append((key, table[key].nunique(), len(crossing), affected, affected / max(1, in_test.sum())))
    columns = ["key", "groups", "groups_crossing", "test_images_affected", "test_share_affected"]
    return pd.DataFrame(rows, columns=columns)


def split_hash(table: pd.DataFrame) -> str:
    """Hash path, label and subset of all images, as text without pixels, to 16 hex digits."""
    rows = table[["path", "label", "split"]].itertuples(index=False)
    lines = sorted(f"{path}\t{label}\t{split}" for path, label, split in rows)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def write_split(table: pd.DataFrame, path: str | Path, split_rule: str, seed: int) -> None:
    """Write a split as CSV after a line with rule, seed and hash. The rule ``given`` reads it."""
    header = json.dumps({"rule": split_rule, "seed": seed, "hash": split_hash(table)})
    with whole_file(path) as partial:
        partial.write_text(f"# {header}\n" + table.to_csv(index=False), encoding="utf-8")
