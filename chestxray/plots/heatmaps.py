"""Figures of heatmaps: beside the picture, on one colour scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from chestxray.plots.style import GUIDE, MODELS, STYLE, Images, check, check_images, panels

_MOST = 12  # pictures side by side


@mpl.rc_context(STYLE)
def heatmaps(
    images: Images,
    maps: np.ndarray,
    strengths: np.ndarray,
    titles: Sequence[str],
    masks: np.ndarray | None = None,
    synthetic: bool = False,
) -> Figure:
    """Draw pictures, their maps, and both together, a column each.

    All maps share one colour scale, in units of the score: a map in which nothing was found looks
    empty. The map is drawn with the resolution it has, which the figure states.

    Args:
        images: (H, W) or (H, W, 1), values 0-255.
        maps: (N, h, w), each from 0 to 1.
        strengths: (N,), what 1 stands for in each map.
        titles: One a picture.
        masks: ``bool`` (N, H, W), outlined in the pictures.
    """
    grey, maps = check_images(images, titles, _MOST), np.asarray(maps, float)
    check(
        maps.ndim == 3 and len(maps) == len(grey) == len(strengths),
        "a map and a strength are needed for each picture",
        maps=maps.shape,
        strengths=len(strengths),
    )
    top = max(float(np.max(strengths)), 1e-12)
    figure, axes = panels(
        3 * len(grey), len(grey), 1.8, 1.95, f"Maps of {maps.shape[1]} × {maps.shape[2]} values", synthetic
    )
    for column, (image, one, strength, title) in enumerate(zip(grey, maps, strengths, titles, strict=True)):
        extent = (-0.5, image.shape[1] - 0.5, image.shape[0] - 0.5, -0.5)
        picture, alone, both = axes[column], axes[column + len(grey)], axes[column + 2 * len(grey)]
        for axis in (picture, both):
            axis.imshow(image, cmap="gray", vmin=0, vmax=255)
        for axis, smooth, alpha in (
            (alone, "nearest", None),
            (both, "bilinear", np.clip(_sized(one * strength / top, image.shape), 0.15, 0.75)),
        ):
            drawn = _sized(one * strength, image.shape) if alpha is not None else one * strength
            shown = axis.imshow(
                drawn, cmap="inferno", vmin=0, vmax=top, extent=extent, interpolation=smooth, alpha=alpha
            )
        if masks is not None and masks[column].any():
            picture.contour(masks[column], [0.5], colors="#56B4E9", linewidths=1)
        picture.set_title(title, fontsize=8.5)
        alone.set_title(f"strongest: {strength:.3g}", fontsize=8.5)
        for axis in (picture, alone, both):
            axis.set(xticks=[], yticks=[])
    figure.colorbar(shown, ax=list(axes), shrink=0.5, label="raises the log-odds by, per value of the map")
    return figure


def _sized(one: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    return cv2.resize(one, shape[::-1], interpolation=cv2.INTER_LINEAR)


@mpl.rc_context(STYLE)
def perturbation(curves: Mapping[str, Mapping[str, np.ndarray]], synthetic: bool = False) -> Figure:
    """Draw deletion and insertion curves.

    Args:
        curves: Game (deletion, insertion) to name of the map to scores (N, steps + 1).
    """
    check(len(curves), "a game is needed", curves=list(curves))
    figure, axes = panels(len(curves), 2, 4.3, 3.4, synthetic=synthetic)
    for axis, (game, scores) in zip(axes, curves.items(), strict=True):
        for number, (name, rows) in enumerate(scores.items()):
            mean = np.asarray(rows).mean(axis=0)
            share = np.linspace(0, 1, len(mean))
            axis.plot(share, mean, color=MODELS[number % 5], label=f"{name}, area {mean.mean():.3f}")
        good = "lower is better" if game == "deletion" else "higher is better"
        axis.set(
            title=f"{game.capitalize()} ({good})",
            xlabel="share of the pixels",
            xlim=(0, 1),
            ylabel="mean logit",
        )
        axis.legend()
    return figure


@mpl.rc_context(STYLE)
def cascade(table: pd.DataFrame, chance: float, synthetic: bool = False) -> Figure:
    """Draw how maps change while more and more layers forget.

    Args:
        table: ``layer`` (the first that forgets, from the last on), ``similarity`` to the original map.
        chance: Similarity of the maps of two different pictures.
    """
    check(len(table), "rows are needed", rows=len(table))
    figure, (axis,) = panels(1, 1, 6.4, 3.2, synthetic=synthetic)
    axis.plot(table["layer"], table["similarity"], "o-", color=MODELS[0], label="same picture")
    axis.axhline(chance, label="other pictures, original model", **GUIDE)
    axis.set(
        ylabel="rank correlation\nwith the original map",
        xlabel="new weights from this layer on",
        ylim=(min(-0.1, table["similarity"].min()), 1.02),
    )
    axis.set_xticks(range(len(table)), table["layer"], rotation=45, ha="right", rotation_mode="anchor")
    axis.legend()
    return figure


@mpl.rc_context(STYLE)
def spread(panels_shown: Mapping[str, Mapping[str, np.ndarray]], synthetic: bool = False) -> Figure:
    """Draw how a number is spread over films: one panel a number, a row of dots a group, a bar at its mean.

    Args:
        panels_shown: Title of the number to name of the group to values (N,); NaN is left out.
    """
    check(len(panels_shown), "a number is needed", panels_shown=list(panels_shown))
    figure, axes = panels(
        len(panels_shown), 2, 5.2, 0.9 + 0.4 * max(map(len, panels_shown.values())), synthetic=synthetic
    )
    for axis, (title, groups) in zip(axes, panels_shown.items(), strict=True):
        for row, values in enumerate(groups.values()):
            known = np.asarray(values)[np.isfinite(values)]
            axis.plot(known, np.full(len(known), row), "o", ms=4, alpha=0.25, color=MODELS[row % 5], mew=0)
            axis.plot(known.mean(), row, "|", ms=18, mew=2, color="black")
        axis.set(
            title=title, yticks=range(len(groups)), yticklabels=list(groups), ylim=(len(groups) - 0.5, -0.5)
        )
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
    return figure
