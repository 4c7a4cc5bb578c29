"""Figures of heatmaps and their evaluation."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from chestxray.plots.style import GUIDE, MODELS, Images, grey_images, panels, styled
from chestxray.schema import check


@styled
def heatmaps(
    images: Images,
    maps: Mapping[str, np.ndarray],
    titles: Sequence[str],
    masks: np.ndarray | None = None,
    synthetic: bool = False,
) -> Figure:
    """Draw 1 to 12 images, one column each, and below them rows of maps over the images.

    Each map is divided by its own maximum, so that a weak map is visible too: the figure compares places, not
    strengths. A map is drawn at its resolution; one without a value above 0 is left out. ``images`` are
    (H, W) or (H, W, 1), 0-255; ``maps`` ``{name of the row: (N, h, w)}``, not negative; ``masks`` ``bool``
    (N, H, W), drawn as outlines.
    """
    images, count = grey_images(images, titles, 12), len(titles)
    maps = {name: np.asarray(row, float) for name, row in maps.items()}
    shapes = {name: row.shape for name, row in maps.items()}
    valid = all(row.ndim == 3 and len(row) == count for row in maps.values())
    check(valid, "each image must have a map (h, w) in each row", maps=shapes)
    figure, axes = panels((1 + len(maps)) * count, count, (1.8, 1.95), synthetic=synthetic)
    for column, (image, title) in enumerate(zip(images, titles, strict=True)):
        (height, width), column_axes = image.shape, axes[column::count]
        for axis in column_axes:
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            axis.set(xticks=[], yticks=[])
            if masks is not None and masks[column].any():
                axis.contour(masks[column], [0.5], colors="#56B4E9", linewidths=1)
        column_axes[0].set_title(title, fontsize=8.5)
        for axis, row in zip(column_axes[1:], maps.values(), strict=True):
            relative = row[column] / (row[column].max() or 1)
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            style = {"cmap": "inferno", "vmin": 0, "vmax": 1, "alpha": 0.7 * np.sqrt(relative)}
            axis.imshow(relative, extent=extent, interpolation="nearest", **style)
    for axis, name in zip(axes[::count], ["image", *maps], strict=True):
        axis.set_ylabel(name)
    return figure


@styled
def perturbation(curves: Mapping[str, Mapping[str, np.ndarray]], synthetic: bool = False) -> Figure:
    """Draw curves: ``{game (deletion, insertion): {name of the map: scores (N, steps + 1)}}``."""
    check(len(curves), "there must be at least one game", curves=list(curves))
    figure, axes = panels(len(curves), columns=2, size=(4.3, 3.6), synthetic=synthetic)
    for axis, (game, scores) in zip(axes, curves.items(), strict=True):
        for number, (name, rows) in enumerate(scores.items()):
            mean = np.asarray(rows).mean(axis=0)
            fraction = np.linspace(0, 1, len(mean))
            axis.plot(fraction, mean, color=MODELS[number % 5], label=f"{name}, area {mean.mean():.2f}")
        title = f"{game.capitalize()} ({'lower' if game == 'deletion' else 'higher'} is better)"
        axis.set(title=title, xlabel="fraction of the pixels", xlim=(0, 1), ylabel="mean logit")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), frameon=False)
    return figure


@styled
def cascade(table: pd.DataFrame, chance: float, synthetic: bool = False) -> Figure:
    """Draw ``similarity`` to the original map by the first ``layer`` with new weights, and ``chance``.

    A layer without a similarity (NaN, no map is left) has a cross at 0.
    """
    check(len(table), "the table must have rows", rows=len(table))
    figure, (axis,) = panels(1, columns=1, size=(6.4, 3.4), synthetic=synthetic)
    empty, style = np.flatnonzero(table["similarity"].isna()), {"color": MODELS[0], "clip_on": False}
    axis.plot(table["layer"], table["similarity"], "o-", label="same image", **style)
    if len(empty):
        axis.plot(empty, np.zeros(len(empty)), "x", label="no map is left", **style)
    axis.axhline(chance, label="other images, original model", **GUIDE)
    axis.set(ylabel="rank correlation\nwith the original map", xlabel="new weights from this layer on")
    axis.set_ylim(min(-0.1, table["similarity"].min() - 0.05), 1.02)
    axis.set_xticks(range(len(table)), table["layer"], rotation=45, ha="right", rotation_mode="anchor")
    figure.legend(loc="outside upper right", ncols=3, frameon=False)
    return figure
