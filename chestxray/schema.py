"""Names that several rooms share: columns, splits, subtypes, classes."""

from __future__ import annotations

CLASSES = ("NORMAL", "PNEUMONIA")


SUBTYPES = ("normal", "bacteria", "virus")


COLUMNS = (
    "path",
    "label",
    "subtype",
    "group",
    "group_conservative",
    "official_split",
    "width",
    "height",
    "mode",
    "bytes",
    "sha256",
)


SPLIT_HEADER = "# {"
"""Begins the first line of a split file, which says how the split was made."""


SPLITS = ("train", "val", "test")


PREDICTED = ("sharpness", "logit", "probability", *(f"logit_{name}" for name in SUBTYPES))
"""Columns of predictions that no list can bring along."""
