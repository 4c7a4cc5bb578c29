"""Audit of a data set before training: patient leakage, copies, shortcuts."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.sparse import triu
from sklearn.neighbors import radius_neighbors_graph

from chestxray.audit.shortcuts import SIDE, framing_table, shortcut_table, test_set_shift
from chestxray.data.catalog import find_data, scan, verify
from chestxray.data.dataset import PixelStore, data_name
from chestxray.data.images import MAX_DISTANCE, ImageSettings, perceptual_hashes
from chestxray.data.splits import FRACTIONS, overlap
from chestxray.schema import CLASSES

AUDIT_SCHEMA = "chestxray.audit/1"
FLAG_FROM = 0.6  # a red flag if the lower bound of the AUROC is above it
MIN_CORRELATION = 0.98  # of the pixels of two copies, if their hashes are also close


def audit_data(data_dir: str | Path, classes: tuple[str, str] | None = None) -> tuple[dict[str, Any], dict]:
    """Check a folder of X-rays for problems that make metrics too optimistic.

    For the arguments and errors see :func:`chestxray.data.catalog.scan`. Returns the findings as JSON types,
    of which ``flags`` are the red flags with ``name`` and ``text`` (:func:`describe` makes tables of them),
    and the mean image of each class, (224, 224), 0–255.
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


def find_copies(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """List pairs of copies among the images (N, H, W) or (N, H, W, 1) of a catalog with ``split``.

    One row per pair: ``first, second`` (paths), ``exact`` (byte-identical), ``distance`` (bits of 256 that
    differ), ``correlation`` (of the pixels), and ``same_label``, ``same_split`` and ``same_group``.
    """
    hashes = np.unpackbits(perceptual_hashes(images), axis=1)
    # The squared distance of two vectors of bits is the number of bits that differ.
    close = radius_neighbors_graph(hashes.astype(np.float32), np.sqrt(MAX_DISTANCE + 0.5))
    first, second = triu(close, 1).nonzero()
    order = np.lexsort((second, first))
    first, second = first[order], second[order]
    left, right = (table.iloc[rows].reset_index(drop=True) for rows in (first, second))
    pairs = pd.DataFrame({"first": left["path"], "second": right["path"]})
    pairs["exact"] = left["sha256"] == right["sha256"]
    pairs["distance"] = (hashes[first] != hashes[second]).sum(axis=1)
    pairs["correlation"] = [_correlation(images[a], images[b]) for a, b in zip(first, second)]
    for name in ("label", "split", "group"):
        pairs[f"same_{name}"] = left[name] == right[name]
    return pairs[pairs["exact"] | (pairs["correlation"] >= MIN_CORRELATION)].reset_index(drop=True)


def _correlation(image: np.ndarray, other: np.ndarray) -> float:
    """Return the correlation of two images to six digits; 1 if both are constant, 0 if only one is."""
    pixels = np.stack([image.ravel(), other.ravel()]).astype(np.float64)
    constant = pixels.std(axis=1) == 0
    return float(constant.all()) if constant.any() else round(float(np.corrcoef(pixels)[0, 1]), 6)


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the rows as JSON types: NaN becomes None."""
    return table.astype(object).where(table.notna(), None).to_dict("records")


def _flags(findings: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield name and text of each problem that must be repaired or reported with all metrics."""
    for row in findings["overlap"]:
        if row["key"] == "group" and row["groups_crossing"]:
            text = "patient groups are in the published test set and in other subsets"
            yield "patients", f"{row['groups_crossing']} {text} ({row['test_images_affected']} test images)"
    for name, same, text in (
        ("copies across splits", "same_split", "in the published test set and in other subsets"),
        ("copies of two labels", "same_label", "with different labels"),
    ):
        if pairs := [pair for pair in findings["copies"] if not pair[same]]:
            example = "{first} and {second}".format(**pairs[0])
            yield name, f"{len(pairs)} pairs of copies are {text}, for example {example}"
    for row in findings["shortcuts"]:
        if not row["lungs"] and row["low"] > FLAG_FROM:
            auroc = "AUROC {auroc:.2f} ({low:.2f} to {high:.2f})".format(**row)
            text = f"a linear model with only these features reaches {auroc} on other patients"
            if row["sees"] == "lung box":
                text += ". The framing of the classes differs; resize='lung_box' removes most of this"
            yield f"shortcut: {row['sees']}", text
    for row in findings["shift"]:
        if row["low"] > FLAG_FROM:
            aurocs = f"(AUROC {row['auroc']:.2f}, with the lung box alone {row['framing']:.2f})"
            text = f"another population: a linear model separates it from the training images {aurocs}"
            yield f"test set: {findings['classes'][row['label']]}", text


def describe(findings: dict[str, Any]) -> list[tuple[str, str, pd.DataFrame | None]]:
    """Convert the findings of `audit_data` into sections, each with title, text and table (or None)."""
    keys = ("overlap", "copies", "shortcuts", "framing", "shift", "flags")
    tables = {key: pd.DataFrame(findings[key]) if findings[key] else None for key in keys}
    counts = pd.DataFrame(findings["counts"]).fillna(0).astype(int).rename_axis("").reset_index()
    problems = pd.DataFrame(findings["problems"].items(), columns=["problem", "files"])
    files = "Files with a problem; some are left out:" if len(problems) else "No file has a problem."
    groups, leaks, baseline = findings["groups"], findings["leak_by_image"], findings["baseline"]
    patients = (
        f"{groups['group']:,} patient groups by the strict key of the file names, "
        f"{groups['group_conservative']:,} by the conservative key; the largest group has "
        f"{findings['largest_group']} images. After a split by image, {leaks['group']:.0%} (strict) or "
        f"{leaks['group_conservative']:.0%} (conservative) of the test images have a patient in training."
    )
    exact, n = sum(pair["exact"] for pair in findings["copies"]), len(findings["copies"])
    copies = f"{exact} pairs of files are equal byte for byte, {n - exact} more pairs show the same image."
    shortcuts = (
        "AUROC of linear models, cross-validated by patient group without the published test set, with 95 % "
        "intervals, and on the published test set. The baseline is the best row with hardly any lung: "
        f"{baseline['sees']}, {baseline['auroc']:.2f}. lungs_only is the AUROC if the lungs fill each image."
    )
    framing = (
        "Mean lung box in fractions of width and height, and its aspect ratio when the image is stretched to "
        "a square. Classes with different boxes can be distinguished without the content of the lungs."
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
        text = "AUROC between test and training images of one class: 0.5 means one population."
        sections.append(("The published test set", text, tables["shift"].replace({"label": names})))
    return [*sections, ("Red flags", "" if findings["flags"] else "None.", tables["flags"])]
