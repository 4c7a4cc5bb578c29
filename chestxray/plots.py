"""Every figure of the notebooks, one function each, in one style.

The functions take arrays and tables and return the Figure, never show it; wrong input raises
ValueError before there is a figure. Label 0 is NORMAL, label 1 is PNEUMONIA, the positive class.
``synthetic=True`` writes "synthetic data" into the figure.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from sklearn import metrics as skm

_CLASSES = ("NORMAL", "PNEUMONIA")  # negative, positive: default of every `classes`
# Okabe and Ito's palette for colour-blind readers; blue and vermillion mean the classes, always.
_COLOURS = {"NORMAL": "#0072B2", "PNEUMONIA": "#D55E00", "PNEUMONIA, bacterial": "#E58A4E",
            "PNEUMONIA, viral": "#F6C7A5", "train": "#8C8C8C", "validation": "#009E73"}
_MODELS = ("#000000", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
_GUIDE = {"color": "#8C8C8C", "lw": 1, "ls": (0, (1, 2)), "zorder": 0}
_STYLE = {"figure.constrained_layout.use": True, "figure.facecolor": "white", "font.size": 9,
          "figure.titlesize": 11, "axes.titlesize": 10, "axes.titlelocation": "left",
          "axes.spines.top": False, "axes.spines.right": False, "legend.edgecolor": "white"}
_Images = Sequence[np.ndarray]


def _check(valid: bool, message: str, **received: object) -> None:
    if not valid:
        values = ", ".join(f"{name}={value}" for name, value in received.items())
        raise ValueError(f"{message}. Received: {values}")


def _check_table(table: pd.DataFrame, *columns: str) -> None:
    _check(len(table) and set(columns) <= set(table), f"rows are needed, and columns {columns}",
           rows=len(table), columns=list(table))


def _check_scores(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=float)
    _check(y.ndim == 1 and y.shape == p.shape and set(y) == {0, 1} and ((p >= 0) & (p <= 1)).all(),
           "labels 0 and 1 are needed, and 0-1 for each", labels=y.shape, probabilities=p.shape)
    return y, p


def _check_images(images: _Images, titles: Sequence[str], most: int) -> list[np.ndarray]:
    _check(1 <= len(images) <= most and len(titles) == len(images),
           f"1 to {most} images are shown, one title each", titles=len(titles), images=len(images))
    grey = [p[..., 0] if p.ndim == 3 and p.shape[-1] == 1 else p for p in map(np.asarray, images)]
    for p in grey:
        _check(p.ndim == 2 and (p.dtype.kind != "f" or p.max() > 1),
               "an image is (H, W) or (H, W, 1), 0-255, not 0-1", maximum=p.max(), images=p.shape)
    return grey


def _panels(number: int, columns: int, width: float, height: float, title: str = "",
            synthetic: bool = False, **options: object) -> tuple[Figure, np.ndarray]:
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


@mpl.rc_context(_STYLE)
def class_balance(table: pd.DataFrame, synthetic: bool = False,
                  classes: Sequence[str] = _CLASSES) -> Figure:
    """Draw images per split and class, with counts and percentages of the split.

    Args:
        table: One row an image: ``split`` (train, val, test), ``label`` (0, 1), ``subtype``
            (normal, bacteria, virus or empty; pneumonias are shaded by it).
    """
    _check_table(table, "split", "label", "subtype")
    splits = [name for name in ("train", "val", "test") if name in set(table["split"])]
    split, subtype = table["split"].to_numpy(), table["subtype"]
    _check(set(split) <= set(splits), "a split is train, val or test", split=list(set(split)))
    names = ["NORMAL", "PNEUMONIA, bacterial", "PNEUMONIA, viral", "PNEUMONIA"]
    kinds = [table["label"] == 0, subtype == "bacteria", subtype == "virus"]
    counts = pd.crosstab(split, np.select(kinds, names[:3], names[3])).reindex(splits)
    x, tops = np.arange(len(splits)) + np.array([[-0.2], [0.2]]), np.zeros((2, len(splits)), int)
    room, total = 0.04 * counts.to_numpy().max(), counts.sum(axis=1).to_numpy()
    figure, (axis,) = _panels(1, 1, 2.8 + 1.4 * len(splits), 3.4, "Images per split and class",
                              synthetic)
    for name in [name for name in names if name in counts]:
        row, number = int(name != "NORMAL"), counts[name].to_numpy()
        bars = axis.bar(x[row], number, 0.37, tops[row], color=_COLOURS[name],
                        label=name.replace(_CLASSES[row], classes[row]))
        tops[row] += number
        if "," in name:  # a number inside its shade where there is room for it
            axis.bar_label(bars, [f"{n:,}" if n > room else "" for n in number],
                           label_type="center", fontsize=8)
    for place, n, of in zip(x.flat, tops.flat, [*total, *total], strict=True):
        axis.text(place, n, f"{n:,}\n{100 * n / of:.0f} %", ha="center", va="bottom")
    axis.set_xticks(range(len(splits)), [f"{s}\n{n:,} images" for s, n in zip(splits, total)])
    axis.set(ylabel="images", ylim=(0, 1.15 * tops.max()))
    figure.legend(loc="outside right center")
    return figure


@mpl.rc_context(_STYLE)
def image_sizes(table: pd.DataFrame, synthetic: bool = False,
                classes: Sequence[str] = _CLASSES) -> Figure:
    """Draw width against height, and the aspect ratio, by class: the shortcut by geometry.

    Args:
        table: One row an image: ``width`` and ``height`` in pixels (> 0), ``label`` (0, 1).
    """
    _check_table(table, "width", "height", "label")
    sizes, labels = table[["width", "height"]].to_numpy(float), table["label"].to_numpy()
    aspects, middle = sizes[:, 0] / sizes[:, 1], np.sqrt(sizes.min() * sizes.max())
    reach = max(1.15 * sizes.max() / middle, 2)  # sizes may be all alike: keep room for ticks
    ticks = [t for t in (50, 100, 200, 500, 1000, 2000, 5000) if 1 / reach < t / middle < reach]
    edges = max(np.ptp(aspects) / 1.99, 0.15) * np.linspace(-1, 1, 32)
    edges += (aspects.min() + aspects.max()) / 2
    same = ", all {:.0f} × {:.0f}".format(*sizes[0]) if (sizes == sizes[0]).all() else ""
    figure, (scatter, histogram) = _panels(
        2, 2, 4.1, 3.7, "Does the size of a file give its class away?", synthetic)
    for label in sorted({*labels}, key=lambda one: -(labels == one).sum()):  # the rarer on top
        mine, name, colour = labels == label, classes[label], _COLOURS[_CLASSES[label]]
        name = f"{name} (n = {mine.sum():,}, median {np.median(aspects[mine]):.2f})"
        scatter.scatter(*sizes[mine].T, s=8, marker="o^"[label], color=colour, alpha=0.4, lw=0)
        sns.histplot(x=aspects[mine], bins=edges, stat="percent", element="step", alpha=0.3,
                     color=colour, label=name, ax=histogram)
    for side in "xy":
        scatter.set(**{f"{side}scale": "log", f"{side}ticks": ticks, f"{side}ticklabels": ticks,
                       f"{side}lim": (middle / reach, middle * reach)})
    scatter.set(title=f"Size{same}", xlabel="width (pixels)", ylabel="height (pixels)", aspect=1)
    scatter.minorticks_off()
    histogram.set(title="Aspect ratio", xlabel="width / height", ylabel="images of the class (%)")
    histogram.margins(y=0.25)
    histogram.legend(loc="upper left")
    return figure


@mpl.rc_context(_STYLE)
def sample_grid(images: _Images, titles: Sequence[str], columns: int = 6, synthetic: bool = False,
                suptitle: str = "") -> Figure:
    """Show 1 to 12 images (N, H, W) or (N, H, W, 1), values 0-255, with N titles."""
    pictures = _check_images(images, titles, 12)
    height = 1.9 + 0.16 * max(str(title).count("\n") for title in titles)
    figure, axes = _panels(len(pictures), columns, 1.6, height, suptitle, synthetic, dpi=80)
    for axis, picture, title in zip(axes, pictures, titles, strict=True):
        axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
        axis.set_title(title, fontsize=9, loc="center")
        axis.axis("off")
    return figure


@mpl.rc_context(_STYLE)
def preprocessing_steps(images: _Images, titles: Sequence[str], synthetic: bool = False) -> Figure:
    """Show 1 to 6 variants (H, W) or (H, W, 1), 0-255, above their histograms of grey values.

    The histograms share one axis, cut above the tallest inner bar: black frames and saturated
    pixels would flatten the rest.
    """
    pictures, edges, count = _check_images(images, titles, 6), np.linspace(0, 256, 65), len(images)
    shares = [100 * np.histogram(p, edges)[0] / p.size for p in pictures]
    limit = 1.1 * max(share[1:-1].max() for share in shares) or 100
    figure, axes = _panels(2 * count, count, 2.1, 1.7, "One picture and its grey values, step "
                           "by step", synthetic, dpi=80, height_ratios=(2.3, 1))
    for top, below, picture, title, share in zip(axes, axes[count:], pictures, titles, shares):
        top.imshow(picture, cmap="gray", vmin=0, vmax=255)
        top.set_title(title, fontsize=9, loc="center")
        top.axis("off")
        below.stairs(share, edges, fill=True, color="#8C8C8C")
        below.set(xlim=(0, 256), ylim=(0, limit), xticks=(0, 128, 255), xlabel="grey value")
    axes[count].set_ylabel("pixels (%)")
    return figure


def augmentation_preview(original: np.ndarray, views: _Images, synthetic: bool = False) -> Figure:
    """Show an image beside 1 to 7 augmented views, each (H, W) or (H, W, 1), values 0-255."""
    _check(1 <= len(views) <= 7, "1 to 7 views are shown", views=len(views))
    titles = ["original", *(f"view {number + 1}" for number in range(len(views)))]
    return sample_grid([original, *views], titles, 4, synthetic, "What the network sees instead")


@mpl.rc_context(_STYLE)
def learning_curves(history: pd.DataFrame, synthetic: bool = False) -> Figure:
    """Draw loss, accuracy and AUROC by epoch, for training and validation.

    Args:
        history: One row an epoch: ``epoch`` (increasing through all phases), ``loss``,
            ``val_loss``; ``phase``, ``accuracy``, ``auroc`` and their ``val_`` may be missing.
        synthetic: Say that the data are.
    """
    _check_table(history, "epoch", "loss", "val_loss")
    epoch, loss = history["epoch"].to_numpy(), history["val_loss"].to_numpy(float)
    _check((np.diff(epoch) > 0).all(), "epochs must increase", epoch=epoch.tolist())
    shown = [key for key in ("loss", "accuracy", "auroc") if {key, f"val_{key}"} & set(history)]
    phase = list(history.get("phase", epoch * 0))
    changes = [row for row in range(1, len(epoch)) if phase[row] != phase[row - 1]]
    best = np.flatnonzero(loss == np.fmin.reduce(loss))[:1]  # empty when every loss is NaN
    figure, axes = _panels(len(shown), 3, 3.3, 3.2, synthetic=synthetic)
    for axis, key in zip(axes, shown, strict=True):
        for name, column in (("train", key), ("validation", f"val_{key}")):
            if column in history:
                axis.plot(epoch, history[column], "-o", ms=3, color=_COLOURS[name], label=name)
        for row in best if f"val_{key}" in history else ():
            axis.plot(epoch[row], history[f"val_{key}"].iloc[row], "ko", ms=9, mfc="none",
                      label=f"lowest validation loss (epoch {epoch[row]})")
        for row in changes:
            x = (epoch[row - 1] + epoch[row]) / 2
            axis.axvline(x, **_GUIDE)
            axis.text(x, 1.02, phase[row], transform=axis.get_xaxis_transform(), fontsize=8)
        axis.set_title("AUROC" if key == "auroc" else key.capitalize(), pad=16 if changes else 6)
        axis.set(xlabel="epoch", xlim=(epoch[0] - 0.5, epoch[-1] + 0.5))
        axis.locator_params(axis="x", nbins=8, integer=True, min_n_ticks=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@mpl.rc_context(_STYLE)
def confusion_matrices(confusions: Sequence[Mapping[str, int] | Sequence], titles: Sequence[str],
                       synthetic: bool = False, classes: Sequence[str] = _CLASSES) -> Figure:
    """Draw confusion matrices: rows are the reference standard, columns the decision.

    Args:
        confusions: Each ``{"tp", "fp", "tn", "fn"}``, counts of images; PNEUMONIA is positive. Or
            rows of counts for more classes. A cell shows its count and the percentage of its row,
            which is also the colour.
        titles: One a matrix.
    """
    complete = all(not isinstance(one, Mapping) or {"tp", "fp", "tn", "fn"} <= set(one) for one in confusions)
    _check(len(confusions) and complete and len(titles) == len(confusions),
           "each matrix needs tp, fp, tn, fn and a title", titles=titles, confusions=confusions)
    figure, axes = _panels(len(confusions), 4, 2.75, 2.75, synthetic=synthetic)
    for axis, one, title in zip(axes, confusions, titles, strict=True):
        counts = np.array([[one["tn"], one["fp"]], [one["fn"], one["tp"]]]
                          if isinstance(one, Mapping) else one)
        rows = counts.sum(axis=1, keepdims=True)
        percent = 100 * counts / np.maximum(rows, 1)
        sns.heatmap(percent, annot=np.vectorize("{:,}\n{:.1f} %".format)(counts, percent), fmt="",
                    vmin=0, vmax=100, cmap=sns.light_palette("#4C5B73", as_cmap=True), cbar=False,
                    square=True, linewidths=1.5, xticklabels=classes, ax=axis,
                    yticklabels=[f"{c}\nn = {n:,}" for c, n in zip(classes, rows.flat)])
        axis.set(title=title, xlabel="decision", ylabel="reference standard")
        axis.tick_params(length=0)
    return figure


@mpl.rc_context(_STYLE)
def roc_pr(curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
           points: Mapping[str, float] | None = None, synthetic: bool = False) -> Figure:
    """Draw ROC and precision-recall curves; the legends give AUROC and average precision.

    Args:
        curves: Name to (labels, probabilities), both (N,).
        points: Name to the threshold (decision: probability >= threshold) to mark on its curves.
    """
    checked, points = {name: _check_scores(*pair) for name, pair in curves.items()}, points or {}
    _check(len(checked) and set(points) <= set(checked), "curves are needed, and points on them",
           points=list(points), curves=list(checked))
    figure, (roc, pr) = _panels(2, 2, 4.3, 4.2, synthetic=synthetic)
    roc.plot([0, 1], [0, 1], label="chance, 0.500", **_GUIDE)
    for prevalence in sorted({f"{y.mean():.3f}" for y, _ in checked.values()}):
        pr.axhline(float(prevalence), label=f"prevalence, {prevalence}", **_GUIDE)
    for number, (name, (y, p)) in enumerate(checked.items()):
        style = {"color": _MODELS[number % 5], "ls": ("-", "--", "-.")[number // 5 % 3]}
        roc.plot(*skm.roc_curve(y, p)[:2], label=f"{name}, AUROC {skm.roc_auc_score(y, p):.3f}",
                 **style)
        precision, recall, _ = skm.precision_recall_curve(y, p)
        pr.plot(recall, precision, drawstyle="steps-post", **style,
                label=f"{name}, AP {skm.average_precision_score(y, p):.3f}")
        if name in points:
            called, dot = p >= points[name], {"c": style["color"], "mec": "white", "zorder": 3}
            roc.plot(called[y == 0].mean(), called[y == 1].mean(), "o", ms=8, **dot,
                     label=f"at threshold {points[name]:.3f}")
            precision = skm.precision_score(y, called, zero_division=np.nan)
            pr.plot(called[y == 1].mean(), precision, "o", ms=8, **dot)
    roc.set(title="ROC", xlabel="1 − specificity", ylabel="sensitivity")
    pr.set(title="Precision–recall", xlabel="recall (sensitivity)", ylabel="precision")
    for axis, place in ((roc, "lower right"), (pr, "lower left")):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
        axis.legend(loc=place)
    return figure


@mpl.rc_context(_STYLE)
def score_distribution(labels: np.ndarray, probabilities: np.ndarray,
                       thresholds: Mapping[str, float | None], synthetic: bool = False,
                       classes: Sequence[str] = _CLASSES) -> Figure:
    """Draw the calibrated probability of pneumonia by class, with decision thresholds.

    Args:
        labels, probabilities: (N,), labels 0 and 1, both present; probabilities 0-1.
        thresholds: Rule to value; a rule without one (None) is left out.
    """
    y, p = _check_scores(labels, probabilities)
    lines = sorted(((v, rule) for rule, v in thresholds.items() if v is not None), reverse=True)
    figure, axes = _panels(2, 1, 6.6, 1.9 + 0.08 * len(lines), "", synthetic,
                           sharex=True, sharey=True)
    for axis, label in zip(axes, (1, 0), strict=True):
        mine, colour = y == label, _COLOURS[_CLASSES[label]]
        sns.histplot(x=p[mine], bins=np.linspace(0, 1, 26), stat="percent", color=colour,
                     edgecolor="white", alpha=0.85, ax=axis)
        axis.set_ylabel(f"{classes[label]} (n = {mine.sum():,})\nimages (%)", color=colour)
    for level, (value, rule) in enumerate(lines):  # a flag a threshold, each on its own level
        axes[0].axvline(value, ymax=1.08 + 0.1 * level, color="black", lw=1, clip_on=False)
        axes[1].axvline(value, color="black", lw=1)
        axes[0].text(value, 1.01 + 0.1 * level, f" {rule}: {value:.3f}", fontsize=8.5,
                     transform=axes[0].get_xaxis_transform())
    axes[1].set(xlabel=f"calibrated probability of {classes[1]}", xlim=(0, 1))
    return figure


@mpl.rc_context(_STYLE)
def comparison(table: pd.DataFrame, metrics: Sequence[str], synthetic: bool = False) -> Figure:
    """Draw a forest plot: one row a model, one panel a metric, points with intervals.

    Args:
        table: One row a model, drawn in this order: ``name``, and for each metric ``<metric>``,
            ``<metric>_low``, ``<metric>_high``; NaN where there is no value or interval.
        metrics: Names of metrics, at least one.
    """
    _check(len(metrics), "a metric is needed", metrics=metrics)
    _check_table(table, "name", *(m + end for m in metrics for end in ("", "_low", "_high")))
    rows, short = np.arange(len(table)), {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
    figure, axes = _panels(len(metrics), len(metrics), 2.5 + 1.5 / len(metrics),
                           1.1 + 0.42 * len(table), "", synthetic, sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        value, low, high = table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy(float).T
        axis.hlines(rows, low, high, color="black")
        axis.plot(value, rows, "o", color="black")
        for row in np.flatnonzero(np.isfinite(value)):
            axis.text(value[row], row - 0.17, f"{value[row]:.3f}", ha="center", fontsize=8)
        direction = " (lower is better)" if metric in ("brier", "loss") else ""
        axis.set_title(short.get(metric, metric.replace("_", " ").capitalize()) + direction)
        axis.grid(axis="x", color="#E4E4E4")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.12)
    axes[0].set(yticks=rows, yticklabels=table["name"], ylim=(len(table) - 0.5, -0.7))
    return figure


@mpl.rc_context(_STYLE)
def arms(scored: Mapping[str, Mapping], synthetic: bool = False) -> Figure:
    """Draw several ways of training: a dot for each seed, a bar for their mean, one panel a metric.

    Args:
        scored: From :func:`chestxray.evaluation.arms.score_arms`; the first arm's mean is drawn
            through all.
    """
    _check(len(scored), "an arm is needed", scored=list(scored))
    metrics = list(next(iter(scored.values()))["mean"])
    figure, axes = _panels(len(metrics), len(metrics), 2.6, 1.1 + 0.42 * len(scored), "", synthetic,
                           sharey=True)
    for axis, metric in zip(axes, metrics, strict=True):
        axis.axvline(next(iter(scored.values()))["mean"][metric], **_GUIDE)
        for row, entry in enumerate(scored.values()):
            axis.plot(entry["seeds"][metric], [row] * len(entry["seeds"][metric]), "o", ms=5, mfc="none",
                      color=_MODELS[0])
            axis.plot(entry["mean"][metric], row, "|", ms=16, mew=2, color="black")
        axis.set_title("AUROC" if metric == "auroc" else metric.capitalize()
                       + (" (lower is better)" if metric == "brier" else ""))
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.12)
    axes[0].set(yticks=range(len(scored)), yticklabels=list(scored), ylim=(len(scored) - 0.5, -0.5))
    return figure
