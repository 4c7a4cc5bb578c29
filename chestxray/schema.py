"""Names that several rooms share: columns, splits, subtypes, classes."""

CLASSES = ("NORMAL", "PNEUMONIA")
SPLITS = ("train", "val", "test")
SUBTYPES = ("normal", "bacteria", "virus")

_KEYS = ("path", "label", "subtype", "group", "group_conservative", "official_split")
COLUMNS = (*_KEYS, "width", "height", "mode", "bytes", "sha256")
"""Columns of a catalog."""

PREDICTED = ("sharpness", "logit", "probability", *(f"logit_{name}" for name in SUBTYPES))
"""Columns of predictions that no list can bring along."""

SPLIT_HEADER = "# {"
"""Begins the first line of a split file, which says how the split was made."""
