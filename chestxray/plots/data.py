"""Figures of data and networks: counts, sizes, images, parameters."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from chestxray.plots.style import COLOURS, MODELS, Images, check_table, grey_images, name_rows, panels, styled
from chestxray.schema import CLASSES, SPLITS, check


@styled
def class_balance(table: pd.DataFrame, synthetic: bool = False, classes: Sequence[str] = CLASSES) -> Figure:
    """Draw the number of images per split and class: columns ``split``, ``label`` and ``subtype``."""
    check_table(table, "split", "label", "subtype")
    split, subtype = table["split"].to_numpy(), table["subtype"]
    check(set(split) <= set(SPLITS), f"splits must be among {SPLITS}", split=list(set(split)))
    splits = [name for name in SPLITS if name in split]
    names = ["NORMAL", "PNEUMONIA, bacterial", "PNEUMONIA, viral", "PNEUMONIA"]
    kinds = [table["label"] == 0, subtype == "bacteria", subtype == "virus"]
    counts = pd.crosstab(split, np.select(kinds, names[:3], names[3])).reindex(splits)
    x, tops = np.arange(len(splits)) + np.array([[-0.2], [0.2]]), np.zeros((2, len(splits)), int)
    min_height, total = 0.04 * counts.to_numpy().max(), counts.sum(axis=1).to_numpy()
    title, size = "Images per split and class", (2.8 + 1.4 * len(splits), 3.4)
    figure, (axis,) = panels(1, columns=1, size=size, title=title, synthetic=synthetic)
    for name in [name for name in names if name in counts]:
        row, numbers = int(name != "NORMAL"), counts[name].to_numpy()
        label = name.replace(CLASSES[row], classes[row])
        bars = axis.bar(x[row], numbers, 0.37, tops[row], color=COLOURS[name], label=label)
        tops[row] += numbers
        if "," in name:  # the count inside the bar, if the bar is high enough
            texts = [f"{n:,}" if n > min_height else "" for n in numbers]
            axis.bar_label(bars, texts, label_type="center", fontsize=8)
    for centre, n, images in zip(x.flat, tops.flat, [*total, *total], strict=True):
        axis.text(centre, n, f"{n:,}\n{100 * n / images:.0f} %", ha="center", va="bottom")
    axis.set_xticks(range(len(splits)), [f"{s}\n{n:,} images" for s, n in zip(splits, total)])
    axis.set(ylabel="images", ylim=(0, 1.15 * tops.max()))
    figure.legend(loc="outside right center")
    return figure


@styled
def image_sizes(table: pd.DataFrame, synthetic: bool = False, classes: Sequence[str] = CLASSES) -> Figure:
    """Draw width, height and their ratio by class: columns ``width``, ``height`` (pixels, > 0), ``label``."""
    check_table(table, "width", "height", "label")
    sizes, labels = table[["width", "height"]].to_numpy(float), table["label"].to_numpy()
    aspects, middle = sizes[:, 0] / sizes[:, 1], np.sqrt(sizes.min() * sizes.max())
    reach = max(1.15 * sizes.max() / middle, 2)  # space for ticks if all sizes are equal
    limits = (middle / reach, middle * reach)
    ticks = [t for t in (50, 100, 200, 500, 1000, 2000, 5000) if limits[0] < t < limits[1]]
    edges = max(np.ptp(aspects) / 1.99, 0.15) * np.linspace(-1, 1, 32)
    edges += (aspects.min() + aspects.max()) / 2
    same = ", all {:.0f} × {:.0f}".format(*sizes[0]) if (sizes == sizes[0]).all() else ""
    title = "Image size and aspect ratio by class"
    figure, (scatter, histogram) = panels(2, 2, size=(4.1, 3.7), title=title, synthetic=synthetic)
    steps = {"bins": edges, "stat": "percent", "element": "step", "alpha": 0.3, "ax": histogram}
    for label in sorted({*labels}, key=lambda label: -(labels == label).sum()):  # the smaller class on top
        of_class, colour = labels == label, COLOURS[CLASSES[label]]
        name = f"{classes[label]} (n = {of_class.sum():,}, median {np.median(aspects[of_class]):.2f})"
        scatter.scatter(*sizes[of_class].T, s=8, marker="o^"[label], color=colour, alpha=0.4, lw=0)
        sns.histplot(x=aspects[of_class], color=colour, label=name, **steps)
    scatter.set(title=f"Size{same}", xlabel="width (pixels)", ylabel="height (pixels)")
    scatter.set(xscale="log", yscale="log", xlim=limits, ylim=limits, aspect=1)
    scatter.set(xticks=ticks, xticklabels=ticks, yticks=ticks, yticklabels=ticks)
    scatter.minorticks_off()
    histogram.set(title="Aspect ratio", xlabel="width / height", ylabel="images of the class (%)")
    histogram.margins(y=0.25)
    histogram.legend(loc="upper left")
    return figure


@styled
def framing(
    boxes: pd.DataFrame,
    doses: Mapping[str, Sequence[float]] | None = None,
    synthetic: bool = False,
    classes: Sequence[str] = CLASSES,
) -> Figure:
    """Draw mean lung boxes, and specificity by dose of re-framing.

    ``boxes`` is the table of :func:`chestxray.audit.shortcuts.framing_table`. ``doses`` are specificities at
    equally spaced doses from 0 to 1, by name of the line.
    """
    check_table(boxes, "official_split", "label", "left", "top", "right", "bottom", "aspect")
    title = "Mean lung boxes in the stretched image"
    figure, axes = panels(2 if doses else 1, 2, (4.0, 3.5), title=title, synthetic=synthetic)
    boxes = boxes[boxes["official_split"] != "val"]  # 16 images in the published data
    for row in boxes.itertuples():
        style = {"ec": COLOURS[CLASSES[row.label]], "ls": "--" if row.official_split == "test" else "-"}
        label = f"{classes[row.label]}, {row.official_split} (width / height {row.aspect:.2f})"
        corner, sides = (row.left, row.top), (row.right - row.left, row.bottom - row.top)
        axes[0].add_patch(Rectangle(corner, *sides, fill=False, lw=1.6, label=label, **style))
    axes[0].set(xlim=(0, 1), ylim=(1, 0), aspect=1, xticks=(0, 1), yticks=(0, 1))
    axes[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False, fontsize=8)
    if doses:
        for colour, (name, values) in zip(MODELS, doses.items()):
            axes[1].plot(np.linspace(0, 1, len(values)), values, "o-", ms=4, color=colour, label=name)
        axes[1].set(title="The same normal images, re-framed", ylim=(0, 1))
        axes[1].set(xlabel="dose of re-framing", ylabel="specificity")
        axes[1].legend(loc="upper center", bbox_to_anchor=(0.5, -0.22), frameon=False, fontsize=8)
    return figure


@styled
def sample_grid(
    images: Images, titles: Sequence[str], columns: int = 6, synthetic: bool = False, suptitle: str = ""
) -> Figure:
    """Draw 1 to 12 images (N, H, W) or (N, H, W, 1), values 0-255, with N titles."""
    images = grey_images(images, titles, 12)
    size = (1.6, 1.9 + 0.16 * max(str(title).count("\n") for title in titles))
    figure, axes = panels(len(images), columns, size, title=suptitle, synthetic=synthetic, dpi=80)
    for axis, image, title in zip(axes, images, titles, strict=True):
        _show_image(axis, image, title)
    return figure


def _show_image(axis: Axes, image: np.ndarray, title: str) -> None:
    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
    axis.set_title(title, fontsize=9, loc="center")
    axis.axis("off")


@styled
def preprocessing_steps(images: Images, titles: Sequence[str], synthetic: bool = False) -> Figure:
    """Draw 1 to 6 versions (H, W) or (H, W, 1), 0-255, above their histograms of grey values."""
    images, edges = grey_images(images, titles, 6), np.linspace(0, 256, 65)
    shares = [100 * np.histogram(image, edges)[0] / image.size for image in images]
    # Bars of black borders and saturated pixels may be higher than the axis.
    limit = 1.1 * max(share[1:-1].max() for share in shares) or 100
    count, title = len(images), "One image and its grey values, step by step"
    options = {"title": title, "synthetic": synthetic, "dpi": 80, "height_ratios": (2.3, 1)}
    figure, axes = panels(2 * count, count, (2.1, 1.7), **options)
    for top, below, image, title, share in zip(axes, axes[count:], images, titles, shares):
        _show_image(top, image, title)
        below.stairs(share, edges, fill=True, color=COLOURS["grey"])
        below.set(xlim=(0, 256), ylim=(0, limit), xticks=(0, 128, 255), xlabel="grey value")
    axes[count].set_ylabel("pixels (%)")
    return figure


def augmentation_preview(original: np.ndarray, views: Images, synthetic: bool = False) -> Figure:
    """Draw an image beside 1 to 7 augmented views, each (H, W) or (H, W, 1), values 0-255."""
    check(1 <= len(views) <= 7, "there must be 1 to 7 views", views=len(views))
    titles = ["original", *(f"view {number + 1}" for number in range(len(views)))]
    return sample_grid([original, *views], titles, 4, synthetic, suptitle="Augmented views of an image")


@styled
def model_summary(table: pd.DataFrame, phases: Sequence[str], synthetic: bool = False) -> Figure:
    """Draw parameters by part, one panel per phase: ``part``, ``parameters``, ``trainable <phase>``."""
    check_table(table, "part", "parameters", *(f"trainable {phase}" for phase in phases))
    size, title = (4.2, 1.2 + 0.28 * len(table)), "Parameters by part of the network"
    figure, axes = panels(len(phases), len(phases), size, title=title, synthetic=synthetic, sharey=True)
    for axis, phase in zip(axes, phases, strict=True):
        trainable, total = table[f"trainable {phase}"], table["parameters"]
        axis.barh(table["part"], trainable, color=COLOURS["trainable"], label="trainable")
        axis.barh(table["part"], total - trainable, left=trainable, color=COLOURS["frozen"], label="frozen")
        for row, (count, parameters) in enumerate(zip(trainable, total)):
            text = f" {parameters:,}" + (f", {count:,} trainable" if 0 < count < parameters else "")
            axis.text(parameters, row, text, va="center")
        title = f"{phase}: {trainable.sum():,} of {total.sum():,} trainable"
        axis.set(title=title, xticks=[], xlim=(0, 1.3 * total.max()))
        axis.spines["bottom"].set_visible(False)
    name_rows(axes[0], list(table["part"]))
    axes[-1].legend(loc="lower right")
    return figure
