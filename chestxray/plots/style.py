"""The one style of all figures: colours, panels, and checks of what is drawn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.figure import Figure

CLASSES = ("NORMAL", "PNEUMONIA")  # negative, positive: default of every `classes`
# Okabe and Ito's palette for colour-blind readers; blue and vermillion mean the classes, always.
COLOURS = {
    "NORMAL": "#0072B2",
    "PNEUMONIA": "#D55E00",
    "PNEUMONIA, bacterial": "#E58A4E",
    "PNEUMONIA, viral": "#F6C7A5",
    "train": "#8C8C8C",
    "validation": "#009E73",
}
MODELS = ("#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GUIDE = {"color": "#8C8C8C", "lw": 1, "ls": (0, (1, 2)), "zorder": 0}
STYLE = {
    "figure.constrained_layout.use": True,
    "figure.facecolor": "white",
    "font.size": 9,
    "figure.titlesize": 11,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.edgecolor": "white",
}
Images = Sequence[np.ndarray]


def check(valid: bool, message: str, **received: object) -> None:
    """Raise ValueError with the message and what was received, unless valid."""
    if not valid:
        values = ", ".join(f"{name}={value}" for name, value in received.items())
        raise ValueError(f"{message}. Received: {values}")


def check_table(table: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError unless the table has rows and these columns."""
    check(
        len(table) and set(columns) <= set(table),
        f"rows are needed, and columns {columns}",
        rows=len(table),
        columns=list(table),
    )


def check_scores(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays (N,), or raise ValueError."""
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=float)
    check(
        y.ndim == 1 and y.shape == p.shape and set(y) == {0, 1} and ((p >= 0) & (p <= 1)).all(),
        "labels 0 and 1 are needed, and 0-1 for each",
        labels=y.shape,
        probabilities=p.shape,
    )
    return y, p


def check_images(images: Images, titles: Sequence[str], most: int) -> list[np.ndarray]:
    """Return the images as (H, W), values 0-255, or raise ValueError."""
    check(
        1 <= len(images) <= most and len(titles) == len(images),
        f"1 to {most} images are shown, one title each",
        titles=len(titles),
        images=len(images),
    )
    grey = [p[..., 0] if p.ndim == 3 and p.shape[-1] == 1 else p for p in map(np.asarray, images)]
    for p in grey:
        check(
            p.ndim == 2 and (p.dtype.kind != "f" or p.max() > 1),
            "an image is (H, W) or (H, W, 1), 0-255, not 0-1",
            maximum=p.max(),
            images=p.shape,
        )
    return grey


def panels(
    number: int,
    columns: int,
    width: float,
    height: float,
    title: str = "",
    synthetic: bool = False,
    **options: object,
) -> tuple[Figure, np.ndarray]:
    """Make a titled figure with ``number`` panels in rows, each width x height inches."""
    rows, columns = -(-number // columns), min(number, columns)
    size = (width * columns, height * rows)
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False, **options)
    for spare in axes.flat[number:]:
        spare.remove()
    if title or synthetic:
        mark = " (synthetic data)" if synthetic else ""
        figure.suptitle(f"{title}{mark}".strip(), x=0.01, ha="left")
    return figure, axes.flat[:number]
