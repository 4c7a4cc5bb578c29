"""Figures of heatmaps and their evaluation."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from chestxray.plots.style import GUIDE, MODELS, Images, check, check_images, name_rows, panels, styled


@styled
def heatmaps(
    images: Images,
    maps: np.ndarray,
    strengths: np.ndarray,
    titles: Sequence[str],
    masks: np.ndarray | None = None,
    synthetic: bool = False,
) -> Figure:
    """Draw 1 to 12 images, their maps, and both together, one column each.

    All maps have the same colour scale, in units of the score, so that a weak map is dark. A map is drawn at
    its resolution. ``images`` are (H, W) or (H, W, 1), 0-255; ``maps`` (N, h, w), each from 0 to 1;
    ``strengths`` (N,) the score of a 1 in each map; ``masks`` ``bool`` (N, H, W), drawn as outlines.
    """
    images, maps = check_images(images, titles, 12), np.asarray(maps, float)
    valid = maps.ndim == 3 and len(maps) == len(images) == len(strengths)
    shapes = {"maps": maps.shape, "strengths": len(strengths)}
    check(valid, "each image must have a map and a strength", **shapes)
    top, count = max(float(np.max(strengths)), 1e-12), len(images)
    title = f"Maps of {maps.shape[1]} × {maps.shape[2]} values"
    figure, axes = panels(3 * count, count, (1.8, 1.95), title=title, synthetic=synthetic)
    colours = {"cmap": "inferno", "vmin": 0, "vmax": top}
    for column, (image, strength) in enumerate(zip(images, strengths, strict=True)):
        (height, width), scaled = image.shape, maps[column] * strength
        smooth = cv2.resize(scaled, (width, height), interpolation=cv2.INTER_LINEAR)
        original, alone, both = axes[column::count]
        for axis in (original, both):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        alone.imshow(scaled, extent=extent, interpolation="nearest", **colours)
        alpha = np.clip(smooth / top, 0.15, 0.75)
        drawn = both.imshow(smooth, alpha=alpha, interpolation="bilinear", **colours)
        if masks is not None and masks[column].any():
            original.contour(masks[column], [0.5], colors="#56B4E9", linewidths=1)
        original.set_title(titles[column], fontsize=8.5)
        alone.set_title(f"strongest: {strength:.3g}", fontsize=8.5)
    for axis in axes:
        axis.set(xticks=[], yticks=[])
    figure.colorbar(drawn, ax=list(axes), shrink=0.5, label="raises the log-odds by, per value of the map")
    return figure


@styled
def perturbation(curves: Mapping[str, Mapping[str, np.ndarray]], synthetic: bool = False) -> Figure:
    """Draw curves: ``{game (deletion, insertion): {name of the map: scores (N, steps + 1)}}``."""
    check(len(curves), "there must be at least one game", curves=list(curves))
    figure, axes = panels(len(curves), columns=2, size=(4.3, 3.4), synthetic=synthetic)
    for axis, (game, scores) in zip(axes, curves.items(), strict=True):
        for number, (name, rows) in enumerate(scores.items()):
            mean = np.asarray(rows).mean(axis=0)
            fraction = np.linspace(0, 1, len(mean))
            axis.plot(fraction, mean, color=MODELS[number % 5], label=f"{name}, area {mean.mean():.3f}")
        title = f"{game.capitalize()} ({'lower' if game == 'deletion' else 'higher'} is better)"
        axis.set(title=title, xlabel="fraction of the pixels", xlim=(0, 1), ylabel="mean logit")
        axis.legend()
    return figure


@styled
def cascade(table: pd.DataFrame, chance: float, synthetic: bool = False) -> Figure:
    """Draw ``similarity`` to the original map by the first ``layer`` with new weights, and ``chance``."""
    check(len(table), "the table must have rows", rows=len(table))
    figure, (axis,) = panels(1, columns=1, size=(6.4, 3.2), synthetic=synthetic)
    axis.plot(table["layer"], table["similarity"], "o-", color=MODELS[0], label="same image")
    axis.axhline(chance, label="other images, original model", **GUIDE)
    axis.set(ylabel="rank correlation\nwith the original map", xlabel="new weights from this layer on")
    axis.set_ylim(min(-0.1, table["similarity"].min()), 1.02)
    axis.set_xticks(range(len(table)), table["layer"], rotation=45, ha="right", rotation_mode="anchor")
    axis.legend()
    return figure


@styled
def spread(panels_shown: Mapping[str, Mapping[str, np.ndarray]], synthetic: bool = False) -> Figure:
    """Draw dots and mean of each group, ``{title of a panel: {group: values (N,)}}``; NaN is left out."""
    check(len(panels_shown), "there must be at least one panel", panels_shown=list(panels_shown))
    size = (5.2, 0.9 + 0.4 * max(map(len, panels_shown.values())))
    figure, axes = panels(len(panels_shown), columns=2, size=size, synthetic=synthetic)
    for axis, (title, groups) in zip(axes, panels_shown.items(), strict=True):
        for row, values in enumerate(groups.values()):
            known = np.asarray(values)[np.isfinite(values)]
            axis.plot(known, np.full(len(known), row), "o", ms=4, alpha=0.25, color=MODELS[row % 5], mew=0)
            axis.plot(known.mean(), row, "|", ms=18, mew=2, color="black")
        axis.set_title(title)
        name_rows(axis, list(groups))
    return figure
