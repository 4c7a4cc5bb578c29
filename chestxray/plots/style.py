"""Style of the figures: colours, panels, checks of input."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

# Okabe and Ito's palette for colour-blind readers; blue and vermillion are always the classes.
COLOURS = {
    "NORMAL": "#0072B2",
    "PNEUMONIA": "#D55E00",
    "PNEUMONIA, bacterial": "#E58A4E",
    "PNEUMONIA, viral": "#F6C7A5",
    "grey": "#8C8C8C",
    "train": "#8C8C8C",
    "validation": "#009E73",
}
MODELS = ("#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GUIDE = {"color": COLOURS["grey"], "lw": 1, "ls": (0, (1, 2)), "zorder": 0}
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
    valid = len(table) and set(columns) <= set(table)
    check(valid, f"rows are needed, and columns {columns}", rows=len(table), columns=list(table))


def check_scores(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return both as arrays (N,), or raise ValueError."""
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=float)
    valid = y.ndim == 1 and y.shape == p.shape and set(y) == {0, 1} and ((p >= 0) & (p <= 1)).all()
    check(valid, "labels 0 and 1 are needed, and 0-1 for each", labels=y.shape, probabilities=p.shape)
    return y, p


def check_images(images: Images, titles: Sequence[str], most: int) -> list[np.ndarray]:
    """Return the images as (H, W), values 0-255, or raise ValueError."""
    valid = 1 <= len(images) <= most and len(titles) == len(images)
    check(valid, f"1 to {most} images are shown, one title each", titles=len(titles), images=len(images))
    grey = [p[..., 0] if p.ndim == 3 and p.shape[-1] == 1 else p for p in map(np.asarray, images)]
    for p in grey:
        valid = p.ndim == 2 and (p.dtype.kind != "f" or p.max() > 1)
        check(valid, "an image is (H, W) or (H, W, 1), 0-255, not 0-1", maximum=p.max(), images=p.shape)
    return grey


def panels(
    number: int,
    columns: int,
    size: tuple[float, float],
    title: str = "",
    synthetic: bool = False,
    **options: object,
) -> tuple[Figure, np.ndarray]:
    """Make a titled figure with ``number`` panels in rows, ``size`` (width, height) inches each."""
    rows, columns = -(-number // columns), min(number, columns)
    inches = (size[0] * columns, size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False, **options)
    for spare in axes.flat[number:]:
        spare.remove()
    if title or synthetic:
        mark = " (synthetic data)" if synthetic else ""
        figure.suptitle(f"{title}{mark}".strip(), x=0.01, ha="left")
    return figure, axes.flat[:number]


def metric_panels(
    metrics: Sequence[str], names: Sequence[str], width: float, **options: object
) -> tuple[Figure, np.ndarray]:
    """Make one panel a metric, side by side, with a row for each name."""
    size, columns = (width, 1.1 + 0.42 * len(names)), len(metrics)
    figure, axes = panels(columns, columns, size, sharey=True, **options)
    for axis, metric in zip(axes, metrics, strict=True):
        direction = " (lower is better)" if metric in ("brier", "loss") else ""
        axis.set_title(metric_name(metric) + direction)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.12)
        name_rows(axis, names)
    return figure, axes


def metric_name(metric: str) -> str:
    """Return the name of a metric as it is written in text."""
    names = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
    return names.get(metric, metric.replace("_", " ").capitalize())


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Name the rows of a panel, from the top down."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def line_style(number: int) -> dict[str, str]:
    """Return colour and dashes of a curve; they differ among 15."""
    return {"color": MODELS[number % 5], "ls": ("-", "--", "-.")[number // 5 % 3]}


def show_image(axis: Axes, image: np.ndarray, title: str = "") -> None:
    """Show a grey image, values 0-255, without an axis."""
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=9, loc="center")
    axis.axis("off")
