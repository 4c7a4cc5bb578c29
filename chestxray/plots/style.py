"""Style of the figures, their panels, and checks of their input."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from chestxray.schema import check

# Okabe and Ito's palette for colour-blind readers; blue and vermillion are only for the classes.
COLOURS = {"NORMAL": "#0072B2", "PNEUMONIA": "#D55E00"}
COLOURS |= {"PNEUMONIA, bacterial": "#E58A4E", "PNEUMONIA, viral": "#F6C7A5"}
COLOURS |= {"grey": "#8C8C8C", "train": "#8C8C8C", "validation": "#009E73"}
COLOURS |= {"trainable": "#009E73", "frozen": "#D0D0D0"}
MODELS = ("#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GUIDE = {"color": COLOURS["grey"], "lw": 1, "ls": (0, (1, 2)), "zorder": 0}
STYLE = {"figure.constrained_layout.use": True, "figure.facecolor": "white", "legend.edgecolor": "white"}
STYLE |= {"font.size": 9, "figure.titlesize": 11, "axes.titlesize": 10, "axes.titlelocation": "left"}
STYLE |= {"axes.spines.top": False, "axes.spines.right": False}
styled = plt.rc_context(STYLE)  # decorator of all figures
Images = Sequence[np.ndarray]


def check_table(table: pd.DataFrame, *columns: str) -> None:
    """Raise ValueError unless the table has rows and these columns."""
    valid = len(table) and set(columns) <= set(table)
    check(valid, f"the table must have rows and the columns {columns}", rows=len(table), columns=list(table))


def grey_images(images: Images, titles: Sequence[str], most: int) -> list[np.ndarray]:
    """Return the images as (H, W). Raise ValueError unless there are 1 to ``most`` with values 0-255."""
    valid = 1 <= len(images) <= most and len(titles) == len(images)
    message = f"there must be 1 to {most} images, with one title each"
    check(valid, message, titles=len(titles), images=len(images))
    grey = [p[..., 0] if p.ndim == 3 and p.shape[-1] == 1 else p for p in map(np.asarray, images)]
    for p in grey:
        valid = p.ndim == 2 and (p.dtype.kind != "f" or p.max() > 1)
        message = "images must be (H, W) or (H, W, 1), 0-255, not 0-1"
        check(valid, message, maximum=float(p.max()), images=p.shape)
    return grey


def panels(
    number: int, columns: int, size: Sequence[float], title: str = "", synthetic: bool = False, **more: object
) -> tuple[Figure, np.ndarray]:
    """Make a figure with a title and ``number`` panels, each of ``size`` (width, height) inches."""
    rows, columns = -(-number // columns), min(number, columns)
    inches = (size[0] * columns, size[1] * rows)
    figure, axes = plt.subplots(rows, columns, figsize=inches, squeeze=False, **more)
    for unused in axes.flat[number:]:
        unused.remove()
    if title or synthetic:
        note = " (synthetic data)" if synthetic else ""
        figure.suptitle(f"{title}{note}".strip(), x=0.01, ha="left")
    return figure, axes.flat[:number]


def name_rows(axis: Axes, names: Sequence[str]) -> None:
    """Label the rows of a panel from top to bottom."""
    axis.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.5, -0.5))
    axis.tick_params(axis="y", length=0)
    axis.spines["left"].set_visible(False)


def show(figure: Figure, alt: str, path: str | Path | None = None, jpeg: bool = False) -> None:
    """Show a figure in a notebook and close it; with ``path`` also save it.

    ``alt`` describes the figure for screen readers. ``jpeg`` is for grids of images, whose PNG is large.
    """
    from IPython.display import Image, display  # only notebooks need it

    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    content, kind = io.BytesIO(), "jpeg" if jpeg else "png"
    figure.savefig(content, format=kind, dpi=100 if jpeg else 150)
    display(Image(content.getvalue(), format=kind, width=round(96 * figure.get_figwidth()), alt=alt))
    plt.close(figure)
