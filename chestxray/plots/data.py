"""Figures of the data: counts, sizes, pictures."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from chestxray.plots.style import CLASSES, COLOURS, STYLE, Images, check, check_images, check_table, panels


@mpl.rc_context(STYLE)
def class_balance(table: pd.DataFrame, synthetic: bool = False, classes: Sequence[str] = CLASSES) -> Figure:
    """Draw images per split and class, with counts and percentages of the split.

    Args:
        table: One row an image: ``split`` (train, val, test), ``label`` (0, 1), ``subtype``
            (normal, bacteria, virus or empty; pneumonias are shaded by it).
    """
    check_table(table, "split", "label", "subtype")
    splits = [name for name in ("train", "val", "test") if name in set(table["split"])]
    split, subtype = table["split"].to_numpy(), table["subtype"]
    check(set(split) <= set(splits), "a split is train, val or test", split=list(set(split)))
    names = ["NORMAL", "PNEUMONIA, bacterial", "PNEUMONIA, viral", "PNEUMONIA"]
    kinds = [table["label"] == 0, subtype == "bacteria", subtype == "virus"]
    counts = pd.crosstab(split, np.select(kinds, names[:3], names[3])).reindex(splits)
    x, tops = np.arange(len(splits)) + np.array([[-0.2], [0.2]]), np.zeros((2, len(splits)), int)
    room, total = 0.04 * counts.to_numpy().max(), counts.sum(axis=1).to_numpy()
    figure, (axis,) = panels(1, 1, 2.8 + 1.4 * len(splits), 3.4, "Images per split and class", synthetic)
    for name in [name for name in names if name in counts]:
        row, number = int(name != "NORMAL"), counts[name].to_numpy()
        bars = axis.bar(
            x[row],
            number,
            0.37,
            tops[row],
            color=COLOURS[name],
            label=name.replace(CLASSES[row], classes[row]),
        )
        tops[row] += number
        if "," in name:  # a number inside its shade where there is room for it
            axis.bar_label(
                bars, [f"{n:,}" if n > room else "" for n in number], label_type="center", fontsize=8
            )
    for place, n, of in zip(x.flat, tops.flat, [*total, *total], strict=True):
        axis.text(place, n, f"{n:,}\n{100 * n / of:.0f} %", ha="center", va="bottom")
    axis.set_xticks(range(len(splits)), [f"{s}\n{n:,} images" for s, n in zip(splits, total)])
    axis.set(ylabel="images", ylim=(0, 1.15 * tops.max()))
    figure.legend(loc="outside right center")
    return figure


@mpl.rc_context(STYLE)
def image_sizes(table: pd.DataFrame, synthetic: bool = False, classes: Sequence[str] = CLASSES) -> Figure:
    """Draw width against height, and the aspect ratio, by class: the shortcut by geometry.

    Args:
        table: One row an image: ``width`` and ``height`` in pixels (> 0), ``label`` (0, 1).
    """
    check_table(table, "width", "height", "label")
    sizes, labels = table[["width", "height"]].to_numpy(float), table["label"].to_numpy()
    aspects, middle = sizes[:, 0] / sizes[:, 1], np.sqrt(sizes.min() * sizes.max())
    reach = max(1.15 * sizes.max() / middle, 2)  # sizes may be all alike: keep room for ticks
    ticks = [t for t in (50, 100, 200, 500, 1000, 2000, 5000) if 1 / reach < t / middle < reach]
    edges = max(np.ptp(aspects) / 1.99, 0.15) * np.linspace(-1, 1, 32)
    edges += (aspects.min() + aspects.max()) / 2
    same = ", all {:.0f} × {:.0f}".format(*sizes[0]) if (sizes == sizes[0]).all() else ""
    figure, (scatter, histogram) = panels(
        2, 2, 4.1, 3.7, "Does the size of a file give its class away?", synthetic
    )
    for label in sorted({*labels}, key=lambda one: -(labels == one).sum()):  # the rarer on top
        mine, name, colour = labels == label, classes[label], COLOURS[CLASSES[label]]
        name = f"{name} (n = {mine.sum():,}, median {np.median(aspects[mine]):.2f})"
        scatter.scatter(*sizes[mine].T, s=8, marker="o^"[label], color=colour, alpha=0.4, lw=0)
        sns.histplot(
            x=aspects[mine],
            bins=edges,
            stat="percent",
            element="step",
            alpha=0.3,
            color=colour,
            label=name,
            ax=histogram,
        )
    for side in "xy":
        scatter.set(
            **{
                f"{side}scale": "log",
                f"{side}ticks": ticks,
                f"{side}ticklabels": ticks,
                f"{side}lim": (middle / reach, middle * reach),
            }
        )
    scatter.set(title=f"Size{same}", xlabel="width (pixels)", ylabel="height (pixels)", aspect=1)
    scatter.minorticks_off()
    histogram.set(title="Aspect ratio", xlabel="width / height", ylabel="images of the class (%)")
    histogram.margins(y=0.25)
    histogram.legend(loc="upper left")
    return figure


@mpl.rc_context(STYLE)
def sample_grid(
    images: Images, titles: Sequence[str], columns: int = 6, synthetic: bool = False, suptitle: str = ""
) -> Figure:
    """Show 1 to 12 images (N, H, W) or (N, H, W, 1), values 0-255, with N titles."""
    pictures = check_images(images, titles, 12)
    height = 1.9 + 0.16 * max(str(title).count("\n") for title in titles)
    figure, axes = panels(len(pictures), columns, 1.6, height, suptitle, synthetic, dpi=80)
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=9, loc="center")
        axis.axis("off")
    return figure


@mpl.rc_context(STYLE)
def preprocessing_steps(images: Images, titles: Sequence[str], synthetic: bool = False) -> Figure:
    """Show 1 to 6 variants (H, W) or (H, W, 1), 0-255, above their histograms of grey values.

    The histograms share one axis, cut above the tallest inner bar: black frames and saturated
    pixels would flatten the rest.
    """
    pictures, edges, count = check_images(images, titles, 6), np.linspace(0, 256, 65), len(images)
    shares = [100 * np.histogram(p, edges)[0] / p.size for p in pictures]
    limit = 1.1 * max(share[1:-1].max() for share in shares) or 100
    figure, axes = panels(
        2 * count,
        count,
        2.1,
        1.7,
        "One picture and its grey values, step by step",
        synthetic,
        dpi=80,
        height_ratios=(2.3, 1),
    )
    for top, below, picture, title, share in zip(axes, axes[count:], pictures, titles, shares):
        top.imshow(picture, cmap="gray", vmin=0, vmax=255)
        top.set_title(title, fontsize=9, loc="center")
        top.axis("off")
        below.stairs(share, edges, fill=True, color="#8C8C8C")
        below.set(xlim=(0, 256), ylim=(0, limit), xticks=(0, 128, 255), xlabel="grey value")
    axes[count].set_ylabel("pixels (%)")
    return figure


def augmentation_preview(original: np.ndarray, views: Images, synthetic: bool = False) -> Figure:
    """Show an image beside 1 to 7 augmented views, each (H, W) or (H, W, 1), values 0-255."""
    check(1 <= len(views) <= 7, "1 to 7 views are shown", views=len(views))
    titles = ["original", *(f"view {number + 1}" for number in range(len(views)))]
    return sample_grid([original, *views], titles, 4, synthetic, "What the network sees instead")
