"""What a score on this data can be worth, before any model: leaks, copies, shortcuts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestxray.audit.duplicates import find_copies
from chestxray.audit.shortcuts import SIDE, shortcut_table, test_set_shift
from chestxray.data.catalog import find_data, scan, verify
from chestxray.data.dataset import PixelStore, data_name
from chestxray.data.images import ImageSettings
from chestxray.data.splits import FRACTIONS, overlap
from chestxray.schema import CLASSES

AUDIT_SCHEMA = "chestxray.audit/1"

FLAG_FROM = 0.6
"""A shortcut is a red flag when the lower bound of its AUROC lies above this."""


def audit(data_dir: str | Path, classes: tuple[str, str] | None = None) -> tuple[dict[str, Any], dict]:
    """Look at a folder of X-rays for everything that makes scores better than they are.

    Args:
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        classes: See :func:`chestxray.data.catalog.scan`.

    Returns:
        The findings as plain JSON types: ``counts``, ``problems``,
        ``groups``, ``overlap`` (of the published test set), ``leak_by_image``,
        ``copies``, ``shortcuts``, ``shift``, ``baseline`` and ``flags`` (red
        flags, each with ``name`` and ``text``); and pictures (224, 224),
        values 0–255: the ``mean`` of each class.

    Raises:
        FileNotFoundError, ValueError: See :func:`chestxray.data.catalog.scan`.
    """
    root = find_data(data_dir)
    problems = verify(root, classes)
    catalog = scan(root, classes)
    store = PixelStore.build(catalog, root, ImageSettings(SIDE))
    table = store.readable(catalog)
    images = store.images(table)[..., 0]
    published = (table["official_split"] == "test").any()
    table = table.assign(split=np.where(table["official_split"] == "test", "test", "train"))
    copies = find_copies(table, images)
    shortcuts = shortcut_table(table, images, root)
    sizes = {key: table.groupby(key)["path"].transform("size") for key in ("group", "group_conservative")}
    baseline = shortcuts[~shortcuts["lungs"]].sort_values("auroc").iloc[-1]
    kinds = table["subtype"].where(table["subtype"] != "", "unknown")
    found = {
        "schema": AUDIT_SCHEMA,
        "data": data_name(root),
        "images": len(table),
        "classes": list(classes or CLASSES),
        "counts": {
            subset: {kind: int(count) for kind, count in rows.value_counts().items()}
            for subset, rows in kinds.groupby(table["official_split"].replace("", "all"))
        },
        "problems": {name: int(count) for name, count in problems["problem"].value_counts().items()},
        "groups": {key: int(table[key].nunique()) for key in ("group", "group_conservative")},
        "largest_group": int(sizes["group"].max()),
        "leak_by_image": {
            key: float(np.mean(1 - (1 - FRACTIONS["train"]) ** (size - 1))) for key, size in sizes.items()
        },
        "overlap": overlap(table).to_dict("records") if published else [],
        "copies": copies.to_dict("records"),
        "shortcuts": _records(shortcuts.drop(columns="roc")),
        "shift": _records(test_set_shift(table, images)),
        "baseline": {"sees": baseline["sees"], "auroc": float(baseline["auroc"]), "roc": baseline["roc"]},
    }
    found["flags"] = list(_flags(found))
    means = {
        name: images[(table["label"] == label).to_numpy()].mean(axis=0)
        for label, name in enumerate(found["classes"])
    }
    return found, means


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON types: NaN becomes None."""
    return [
        {name: None if value != value else value for name, value in row.items()}
        for row in table.to_dict("records")
    ]


def _flags(found: dict[str, Any]) -> list[dict[str, str]]:
    """Name what must be mended, or told beside every score."""
    for row in found["overlap"]:
        if row["key"] == "group" and row["groups_crossing"]:
            yield {
                "name": "patients",
                "text": f"{row['groups_crossing']} patient groups lie on both sides of the published "
                f"split ({row['test_images_affected']} test images)",
            }
    for name, differ, text in (
        ("copies across splits", "same_split", "on both sides of the published split"),
        ("copies of two labels", "same_label", "under both labels"),
    ):
        pairs = [pair for pair in found["copies"] if not pair[differ]]
        if pairs:
            yield {
                "name": name,
                "text": f"{len(pairs)} pairs of copies lie {text}, for example "
                f"{pairs[0]['first']} and {pairs[0]['second']}",
            }
    for row in found["shortcuts"]:
        if not row["lungs"] and row["low"] > FLAG_FROM:
            yield {
                "name": f"shortcut: {row['sees']}",
                "text": f"a linear model that sees only this reaches AUROC {row['auroc']:.2f} "
                f"({row['low']:.2f} to {row['high']:.2f}) on other patients",
            }
    for row in found["shift"]:
        if row["low"] > FLAG_FROM:
            yield {
                "name": f"test set: {found['classes'][row['label']]}",
                "text": "test and training images of this class can be told apart "
                f"(AUROC {row['auroc']:.2f}): the test set is another population",
            }


def describe(found: dict[str, Any]) -> list[tuple[str, str, pd.DataFrame | None]]:
    """Put the findings of :func:`audit` into sections, for the terminal and for a page.

    Returns:
        Title, text and table (or None) of each section.
    """
    counts = pd.DataFrame(found["counts"]).fillna(0).astype(int).rename_axis("").reset_index()
    problems = pd.DataFrame(found["problems"].items(), columns=["problem", "files"])
    exact = sum(pair["exact"] for pair in found["copies"])
    strict, coarse = found["groups"]["group"], found["groups"]["group_conservative"]
    leaks = found["leak_by_image"]
    by_image = (
        f"A split by image would put images of the same patient into training for "
        f"{leaks['group']:.0%} (strict) or {leaks['group_conservative']:.0%} (conservative) of its "
        "test images."
    )
    sections = [
        ("Images", f"{found['images']:,} images ({found['data']} data).", counts),
        (
            "Files",
            "With a problem, some left out:" if len(problems) else "None is broken or suspicious.",
            problems if len(problems) else None,
        ),
        (
            "Patients",
            f"{strict:,} patient groups by the strict key of the file names, {coarse:,} by the "
            f"conservative one; the largest holds {found['largest_group']} images. {by_image}",
            pd.DataFrame(found["overlap"]) if found["overlap"] else None,
        ),
        (
            "Copies",
            f"{exact} pairs of files are equal byte for byte, {len(found['copies']) - exact} more "
            "pairs show the same film.",
            pd.DataFrame(found["copies"]) if found["copies"] else None,
        ),
        (
            "Shortcuts",
            "AUROC of linear models, cross-validated by patient group on all but the published "
            "test set, with 95 % intervals, and on the published test set. The baseline under every score is the "
            f"best row that sees hardly any lung: {found['baseline']['sees']}, {found['baseline']['auroc']:.2f}.",
            pd.DataFrame(found["shortcuts"]),
        ),
    ]
    if found["shift"]:
        shift = pd.DataFrame(found["shift"])
        shift["label"] = shift["label"].map(dict(enumerate(found["classes"])))
        sections.append(
            (
                "The published test set",
                "AUROC of telling test from training images of one class: 0.5 means one population.",
                shift,
            )
        )
    flags = pd.DataFrame(found["flags"]) if found["flags"] else None
    return [*sections, ("Red flags", "None." if flags is None else "", flags)]
