"""Audit of a data set before any model: leaks, copies, shortcuts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from chestxray.audit.duplicates import find_copies
from chestxray.audit.shortcuts import SIDE, framing_table, shortcut_table, test_set_shift
from chestxray.data.catalog import find_data, scan, verify
from chestxray.data.dataset import PixelStore, data_name
from chestxray.data.images import ImageSettings
from chestxray.data.splits import FRACTIONS, overlap
from chestxray.schema import CLASSES

AUDIT_SCHEMA = "chestxray.audit/1"
FLAG_FROM = 0.6  # a lower bound of the AUROC above this is a red flag


def audit_data(data_dir: str | Path, classes: tuple[str, str] | None = None) -> tuple[dict[str, Any], dict]:
    """Check a folder of X-rays for everything that makes scores too good.

    For the arguments and errors see :func:`chestxray.data.catalog.scan`.

    Returns:
        The findings as plain JSON types: ``counts``, ``problems``, ``groups``, ``overlap`` (of the published
        test set), ``leak_by_image``, ``copies``, ``shortcuts``, ``framing``, ``shift``, ``baseline`` and
        ``flags`` (red flags, each with ``name`` and ``text``); and the mean image of each class, (224, 224),
        values 0–255.
    """
    root = find_data(data_dir)
    problems = verify(root, classes)
    catalog = scan(root, classes)
    store = PixelStore.build(catalog, root, ImageSettings(SIDE))
    table = store.readable(catalog)
    images = store.images(table)[..., 0]
    table = table.assign(split=np.where(table["official_split"] == "test", "test", "train"))
    subtypes = table["subtype"].replace("", "unknown").groupby(table["official_split"].replace("", "all"))
    sizes = {key: table.groupby(key)["path"].transform("size") for key in ("group", "group_conservative")}
    leaks = {key: 1 - (1 - FRACTIONS["train"]) ** (size - 1) for key, size in sizes.items()}
    shortcuts = shortcut_table(table, images, root)
    baseline = shortcuts[~shortcuts["lungs"]].sort_values("auroc").iloc[-1]
    findings = {
        "schema": AUDIT_SCHEMA,
        "data": data_name(root),
        "images": len(table),
        "classes": list(classes or CLASSES),
        "counts": {subset: rows.value_counts().to_dict() for subset, rows in subtypes},
        "problems": problems["problem"].value_counts().to_dict(),
        "groups": {key: table[key].nunique() for key in sizes},
        "largest_group": int(sizes["group"].max()),
        "leak_by_image": {key: float(leak.mean()) for key, leak in leaks.items()},
        "overlap": overlap(table).to_dict("records") if "test" in set(table["split"]) else [],
        "copies": find_copies(table, images).to_dict("records"),
        "shortcuts": _records(shortcuts.drop(columns="roc")),
        "framing": _records(framing_table(table, images)),
        "shift": _records(test_set_shift(table, images)),
        "baseline": {"sees": baseline["sees"], "auroc": float(baseline["auroc"]), "roc": baseline["roc"]},
    }
    findings["flags"] = [{"name": name, "text": text} for name, text in _flags(findings)]
    labels = table["label"].to_numpy()
    means = {name: images[labels == label].mean(axis=0) for label, name in enumerate(findings["classes"])}
    return findings, means


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain JSON types: NaN becomes None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _flags(findings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each problem to be repaired, or to be reported with every score."""
    for row in findings["overlap"]:
        if row["key"] == "group" and row["groups_crossing"]:
            images = f"({row['test_images_affected']} test images)"
            text = (
                f"{row['groups_crossing']} patient groups lie on both sides of the published split {images}"
            )
            yield "patients", text
    for name, same, place in (
        ("copies across splits", "same_split", "on both sides of the published split"),
        ("copies of two labels", "same_label", "under both labels"),
    ):
        pairs = [pair for pair in findings["copies"] if not pair[same]]
        if pairs:
            example = "{first} and {second}".format(**pairs[0])
            yield name, f"{len(pairs)} pairs of copies lie {place}, for example {example}"
    for row in findings["shortcuts"]:
        if not row["lungs"] and row["low"] > FLAG_FROM:
            auroc = "AUROC {auroc:.2f} ({low:.2f} to {high:.2f})".format(**row)
            text = f"a linear model that sees only this reaches {auroc} on other patients"
            if row["sees"] == "lung box":
                text += ". The classes are framed differently: resize='lung_box' takes most of that away"
            yield f"shortcut: {row['sees']}", text
    for row in findings["shift"]:
        if row["low"] > FLAG_FROM:
            text = f"test and training images of this class can be told apart (AUROC {row['auroc']:.2f})"
            name = f"test set: {findings['classes'][row['label']]}"
            framed = f" (by the lung box alone {row['framing']:.2f})"
            yield name, f"{text}{framed}: the test set is another population"


def describe(findings: dict[str, Any]) -> list[tuple[str, str, pd.DataFrame | None]]:
    """Put the findings of `audit_data` into sections: title, text and table (or None) of each."""
    keys = ("overlap", "copies", "shortcuts", "framing", "shift", "flags")
    tables = {key: pd.DataFrame(findings[key]) if findings[key] else None for key in keys}
    counts = pd.DataFrame(findings["counts"]).fillna(0).astype(int).rename_axis("").reset_index()
    problems = pd.DataFrame(findings["problems"].items(), columns=["problem", "files"])
    files = "With a problem, some left out:" if len(problems) else "None is broken or suspicious."
    groups, leaks, baseline = findings["groups"], findings["leak_by_image"], findings["baseline"]
    patients = (
        f"{groups['group']:,} patient groups by the strict key of the file names, "
        f"{groups['group_conservative']:,} by the conservative one; the largest holds "
        f"{findings['largest_group']} images. A split by image would put images of the same patient into "
        f"training for {leaks['group']:.0%} (strict) or {leaks['group_conservative']:.0%} (conservative) of "
        "its test images."
    )
    exact = sum(pair["exact"] for pair in findings["copies"])
    others = len(findings["copies"]) - exact
    copies = f"{exact} pairs of files are equal byte for byte, {others} more pairs show the same image."
    shortcuts = (
        "AUROC of linear models, cross-validated by patient group on all but the published test set, with "
        "95 % intervals, and on the published test set. The baseline under every score is the best row that "
        f"sees hardly any lung: {baseline['sees']}, {baseline['auroc']:.2f}. *lungs_only*: the same when "
        "the lungs fill every image."
    )
    framing = (
        "Mean lung box in fractions of width and height, and its width by its height, when the image is "
        "squashed to a square. Classes with different boxes can be told apart without looking at a lung."
    )
    names = dict(enumerate(findings["classes"]))
    sections = [
        ("Images", f"{findings['images']:,} images ({findings['data']} data).", counts),
        ("Files", files, problems if len(problems) else None),
        ("Patients", patients, tables["overlap"]),
        ("Copies", copies, tables["copies"]),
        ("Shortcuts", shortcuts, tables["shortcuts"]),
        ("Framing", framing, tables["framing"].replace({"label": names})),
    ]
    if findings["shift"]:
        text = "AUROC of telling test from training images of one class: 0.5 means one population."
        sections.append(("The published test set", text, tables["shift"].replace({"label": names})))
    return [*sections, ("Red flags", "" if findings["flags"] else "None.", tables["flags"])]
