"""Figures of training and scores: curves, confusion matrices, comparisons."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn import metrics as skm

from chestxray.plots.style import COLOURS, GUIDE, MODELS, check_table, name_rows, panels, styled
from chestxray.schema import CLASSES, check

_LINES = [{"color": colour, "ls": dashes} for dashes in ("-", "--", "-.") for colour in MODELS]
_MODELS = "vgg16 custom_cnn compact_student vgg16_224 inceptionv3 vgg16_three compact_cnn student".split()
_MODELS += "resnet50_scratch inceptionv3_scratch vgg16_random resnet50".split()


def _line(name: str, number: int) -> dict[str, str]:
    """Style of a model's line: the models of the recipes have the same colour in each figure."""
    model = name.split("-")[0]
    return _LINES[_MODELS.index(model) if model in _MODELS else (12 + number) % 15]


@styled
def learning_curves(history: pd.DataFrame, synthetic: bool = False) -> Figure:
    """Draw loss, accuracy and AUROC by epoch, for training and validation.

    ``history`` has one row per epoch: ``epoch`` (increasing through all phases), ``loss``, ``val_loss``, and
    optionally ``phase``, ``accuracy``, ``val_accuracy``, ``auroc`` and ``val_auroc``.
    """
    check_table(history, "epoch", "loss", "val_loss")
    epoch, loss = history["epoch"].to_numpy(), history["val_loss"].to_numpy(float)
    check((np.diff(epoch) > 0).all(), "epochs must increase", epoch=epoch.tolist())
    metrics = [key for key in ("loss", "accuracy", "auroc") if {key, f"val_{key}"} & set(history)]
    phase = list(history.get("phase", epoch * 0))
    changes = [row for row in range(1, len(epoch)) if phase[row] != phase[row - 1]]
    best = np.flatnonzero(loss == np.fmin.reduce(loss))[:1]  # empty if every loss is NaN
    figure, axes = panels(len(metrics), columns=3, size=(3.3, 3.2), synthetic=synthetic)
    for axis, key in zip(axes, metrics, strict=True):
        for name, column in (("train", key), ("validation", f"val_{key}")):
            if column in history:
                axis.plot(epoch, history[column], "-o", ms=3, color=COLOURS[name], label=name)
        for row in best if f"val_{key}" in history else ():
            label = f"lowest validation loss (epoch {epoch[row]})"
            axis.plot(epoch[row], history[f"val_{key}"].iloc[row], "ko", ms=9, mfc="none", label=label)
        for row in changes:
            x = (epoch[row - 1] + epoch[row]) / 2
            axis.axvline(x, **GUIDE)
            axis.text(x, 1.02, phase[row], transform=axis.get_xaxis_transform(), fontsize=8)
        title = _metric_name(key)
        if key == "loss" and (highest := np.fmax.reduce(loss)) > (limit := 5 * history["loss"].max()):
            axis.set_ylim(0, limit)  # the validation loss of an early epoch may be much higher
            title += f" (cut; highest {highest:.3g})"
        axis.set_title(title, pad=16 if changes else 6)
        axis.set(xlabel="epoch", xlim=(epoch[0] - 0.5, epoch[-1] + 0.5))
        axis.locator_params(axis="x", nbins=8, integer=True, min_n_ticks=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@styled
def confusion_matrices(
    confusions: Sequence[Mapping[str, int] | Sequence],
    titles: Sequence[str],
    synthetic: bool = False,
    classes: Sequence[str] = CLASSES,
    title: str = "",
) -> Figure:
    """Draw confusion matrices: counts ``{"tp", "fp", "tn", "fn"}``, or rows of counts for more classes.

    Rows are the reference standard, columns are the decision. Colours are percentages of the row.
    """
    complete = all(not isinstance(c, Mapping) or {"tp", "fp", "tn", "fn"} <= set(c) for c in confusions)
    valid = len(confusions) and complete and len(titles) == len(confusions)
    check(valid, "each matrix must have tp, fp, tn, fn and a title", titles=titles, confusions=confusions)
    style = {"vmin": 0, "vmax": 100, "cmap": sns.light_palette("#4C5B73", as_cmap=True), "cbar": False}
    style |= {"fmt": "", "square": True, "linewidths": 1.5, "xticklabels": classes}
    figure, axes = panels(len(confusions), columns=4, size=(2.75, 2.75), title=title, synthetic=synthetic)
    for axis, counts, name in zip(axes, confusions, titles, strict=True):
        if isinstance(counts, Mapping):
            counts = [[counts["tn"], counts["fp"]], [counts["fn"], counts["tp"]]]
        counts = np.array(counts)
        total = counts.sum(axis=1, keepdims=True)
        percent = 100 * counts / np.maximum(total, 1)
        cells = np.vectorize("{:,}\n{:.1f} %".format)(counts, percent)
        rows = [f"{label}\nn = {n:,}" for label, n in zip(classes, total.flat)]
        sns.heatmap(percent, annot=cells, yticklabels=rows, ax=axis, **style)
        axis.set(title=name, xlabel="decision", ylabel="reference standard")
        axis.tick_params(length=0)
    return figure


@styled
def roc_pr(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    points: Mapping[str, float] | None = None,
    synthetic: bool = False,
    band: Sequence[np.ndarray] | None = None,
    baseline: Mapping | None = None,
    title: str = "",
) -> Figure:
    """Draw ROC and precision-recall curves.

    ``curves`` are ``{name: (labels (N,), probabilities (N,))}``; ``points`` are ``{name: threshold}``. The
    first ROC has a ``band``: 1 − specificity, lower and upper bound of sensitivity. ``baseline``, a linear
    model with hardly any lung, has ``sees``, ``auroc`` and ``roc``: sensitivities at equal steps of it.
    """
    curves, points = {name: _check_scores(*pair) for name, pair in curves.items()}, points or {}
    valid = len(curves) and set(points) <= set(curves)
    check(valid, "there must be curves, and points only on them", points=list(points), curves=list(curves))
    lines = len(curves) + 2 * bool(baseline) + bool(band) + len(points) + 1  # of the legend
    size = 4.3, 4.9 + 0.2 * lines
    figure, (roc, pr) = panels(2, columns=2, size=size, title=title, synthetic=synthetic)
    roc.plot([0, 1], [0, 1], label="chance, 0.500", **GUIDE)
    if baseline:
        grid = np.linspace(0, 1, len(baseline["roc"]))
        label = f"baseline with hardly any lung, {baseline['auroc']:.3f}\n({baseline['sees']})"
        roc.plot(grid, baseline["roc"], color=COLOURS["grey"], lw=2.5, alpha=0.6, label=label)
    if band:
        colour, label = _line(next(iter(curves)), 0)["color"], "95 % interval of the first"
        roc.fill_between(*band, color=colour, alpha=0.15, lw=0, label=label)
    for prevalence in sorted({f"{y.mean():.3f}" for y, _ in curves.values()}):
        pr.axhline(float(prevalence), label=f"prevalence, {prevalence}", **GUIDE)
    for number, (name, (y, p)) in enumerate(curves.items()):
        style = _line(name, number)
        roc.plot(*skm.roc_curve(y, p)[:2], label=f"{name}, AUROC {skm.roc_auc_score(y, p):.3f}", **style)
        precision, recall, _ = skm.precision_recall_curve(y, p)
        label = f"{name}, AP {skm.average_precision_score(y, p):.3f}"
        pr.plot(recall, precision, drawstyle="steps-post", label=label, **style)
        if name in points:
            positive, dot = p >= points[name], {"c": style["color"], "mec": "white", "ms": 8, "zorder": 3}
            false_positive_rate, recall = positive[y == 0].mean(), positive[y == 1].mean()
            roc.plot(false_positive_rate, recall, "o", label=f"at threshold {points[name]:.3f}", **dot)
            pr.plot(recall, skm.precision_score(y, positive, zero_division=np.nan), "o", **dot)
    roc.set(title="ROC", xlabel="1 − specificity", ylabel="sensitivity")
    pr.set(title="Precision–recall", xlabel="recall (sensitivity)", ylabel="precision")
    for axis in (roc, pr):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", anchor="N")
        axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.13))
    return figure


def _check_scores(labels: np.ndarray, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    y, p = np.asarray(labels), np.asarray(probabilities, dtype=float)
    valid = y.ndim == 1 and y.shape == p.shape and set(y) == {0, 1} and ((p >= 0) & (p <= 1)).all()
    check(valid, "labels must be 0 and 1, with probabilities in 0-1", labels=y.shape, probabilities=p.shape)
    return y, p


@styled
def calibration(
    tables: Mapping[str, pd.DataFrame],
    decisions: Mapping[str, pd.DataFrame],
    synthetic: bool = False,
    title: str = "",
) -> Figure:
    """Draw the tables of `reliability_table` and of `decision_curve`, both by name of the model."""
    valid = len(tables) and set(tables) == set(decisions)
    check(valid, "each model must have both tables", tables=list(tables), decisions=list(decisions))
    below = 0.2 * -(-(3 + len(tables)) // 3)  # height of the legend with three entries per row
    size = 4.3, 4.2 + below
    figure, (reliability, benefit) = panels(2, columns=2, size=size, title=title, synthetic=synthetic)
    reliability.plot([0, 1], [0, 1], label="predicted = observed", **GUIDE)
    first = next(iter(decisions.values()))
    benefit.plot(first["threshold"], first["all"], label="treat all", color=COLOURS["grey"])
    benefit.axhline(0, label="treat none", **GUIDE)
    for number, (name, table) in enumerate(tables.items()):
        style, marker, predicted = _line(name, number), "os^"[number // 5 % 3], table["predicted"]
        reliability.plot(predicted, table["observed"], marker=marker, ms=4, label=name, **style)
        reliability.vlines(predicted, table["low"], table["high"], color=style["color"], lw=1, alpha=0.6)
        benefit.plot(decisions[name]["threshold"], decisions[name]["model"], **style)
    top = max(float(table["model"].max()) for table in decisions.values())
    reliability.set(title="Calibration, bins with equal numbers of images")
    reliability.set(xlabel="predicted probability", ylabel="fraction of positives")
    reliability.set(aspect="equal", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    benefit.set(title="Decision curve", xlabel="threshold probability", ylabel="net benefit")
    benefit.set(xlim=(0, 1), ylim=(-0.25 * top, 1.05 * top))
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@styled
def score_distribution(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: Mapping[str, float | None],
    synthetic: bool = False,
    classes: Sequence[str] = CLASSES,
) -> Figure:
    """Draw calibrated probabilities (N,) by class; labels (N,) must contain 0 and 1.

    ``thresholds`` maps a threshold rule to its value; a rule without a value (None) is left out.
    """
    y, p = _check_scores(labels, probabilities)
    lines = sorted(((v, rule) for rule, v in thresholds.items() if v is not None), reverse=True)
    size, shared = (6.6, 1.9 + 0.08 * len(lines)), {"sharex": True, "sharey": True}
    figure, axes = panels(2, columns=1, size=size, synthetic=synthetic, **shared)
    bars = {"bins": np.linspace(0, 1, 26), "stat": "percent", "edgecolor": "white", "alpha": 0.85}
    for axis, label in zip(axes, (1, 0), strict=True):
        of_class, colour = y == label, COLOURS[CLASSES[label]]
        sns.histplot(x=p[of_class], color=colour, ax=axis, **bars)
        axis.set_ylabel(f"{classes[label]} (n = {of_class.sum():,})\nimages (%)", color=colour)
    top, transform = axes[0], axes[0].get_xaxis_transform()
    for level, (value, rule) in enumerate(lines):  # each name at another height
        top.axvline(value, ymax=1.08 + 0.1 * level, color="black", lw=1, clip_on=False)
        axes[1].axvline(value, color="black", lw=1)
        top.text(value, 1.01 + 0.1 * level, f" {rule}: {value:.3f}", fontsize=8.5, transform=transform)
    axes[1].set(xlabel=f"calibrated probability of {classes[1]}", xlim=(0, 1))
    return figure


@styled
def comparison(
    table: pd.DataFrame, metrics: Sequence[str], synthetic: bool = False, title: str = ""
) -> Figure:
    """Draw ``<metric>`` with ``<metric>_low`` and ``<metric>_high`` (may be NaN) by ``name``, in panels.

    Models of the recipes have their colour; all other rows are black.
    """
    check(len(metrics), "there must be at least one metric", metrics=metrics)
    check_table(table, "name", *(m + end for m in metrics for end in ("", "_low", "_high")))
    rows, width = np.arange(len(table)), 2.5 + 1.5 / len(metrics)
    figure, axes = _metric_panels(metrics, table["name"], width, title=title, synthetic=synthetic)
    known = [name.split("-")[0] in _MODELS for name in table["name"]]
    colours = [_line(name, 0)["color"] if model else "black" for name, model in zip(table["name"], known)]
    for axis, metric in zip(axes, metrics, strict=True):
        value, low, high = table[[metric, f"{metric}_low", f"{metric}_high"]].to_numpy(float).T
        axis.hlines(rows, low, high, color=colours)
        axis.scatter(value, rows, color=colours)
        for row in np.flatnonzero(np.isfinite(value)):
            axis.text(value[row], row - 0.17, f"{value[row]:z.3f}", ha="center", fontsize=8)
        axis.grid(axis="x", color="#E4E4E4")
    axes[0].set_ylim(top=-0.7)
    return figure


def _metric_panels(
    metrics: Sequence[str], names: Sequence[str], width: float, **more: object
) -> tuple[Figure, np.ndarray]:
    """Make one panel per metric, side by side, with a row for each name."""
    size, columns = (width, 1.1 + 0.42 * len(names)), len(metrics)
    figure, axes = panels(columns, columns, size, sharey=True, **more)
    for axis, metric in zip(axes, metrics, strict=True):
        direction = " (lower is better)" if metric in ("brier", "loss") else ""
        axis.set_title(_metric_name(metric) + direction)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.12)
        name_rows(axis, names)
    return figure, axes


def _metric_name(metric: str) -> str:
    names = {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
    return names.get(metric, metric.replace("_", " ").capitalize())


@styled
def variants(scored: Mapping[str, Mapping], synthetic: bool = False) -> Figure:
    """Draw the seeds and means of :func:`chestxray.evaluation.comparison.score_variants`."""
    check(len(scored), "there must be at least one variant", scored=list(scored))
    first = next(iter(scored.values()))["mean"]
    title = "Training variants, by seed"
    figure, axes = _metric_panels(list(first), list(scored), 2.6, title=title, synthetic=synthetic)
    for axis, metric in zip(axes, first, strict=True):
        axis.axvline(first[metric], **GUIDE)
        for row, variant in enumerate(scored.values()):
            seeds = variant["seeds"][metric]
            axis.plot(seeds, [row] * len(seeds), "o", ms=5, mfc="none", color=MODELS[0])
            axis.plot(variant["mean"][metric], row, "|", ms=16, mew=2, color="black")
    return figure


@styled
def latency(costs: pd.DataFrame) -> Figure:
    """Draw the time of one image: one row per model and runtime, one dot per number of cores.

    Columns: ``model, runtime, weights, threads, milliseconds`` (> 0) and ``megabytes`` of the file.
    """
    check_table(costs, "model", "runtime", "weights", "threads", "milliseconds", "megabytes")
    rows = costs.groupby(["model", "runtime", "weights", "megabytes"], sort=False)
    size, title = (7.5, 1.2 + 0.32 * len(rows)), "Time of one image after warm-up"
    figure, (axis,) = panels(1, columns=1, size=size, title=title)
    for number, (_, group) in enumerate(rows):
        axis.plot(group["milliseconds"], [number] * len(group), color=COLOURS["grey"], lw=1, zorder=1)
        for colour, cores, value in zip(MODELS, group["threads"], group["milliseconds"], strict=False):
            label = f"{cores} core{'s' if cores > 1 else ''}" if number == 0 else None
            axis.plot(value, number, "o", ms=6, color=colour, label=label)
    names = ["{}, {} {} ({:.1f} MB)".format(*row) for row, _ in rows]
    axis.set(ylim=(len(rows) - 0.5, -0.5), yticks=range(len(rows)), yticklabels=names)
    axis.set(xscale="log", xlabel="milliseconds")
    axis.xaxis.set(major_locator=LogLocator(subs=(1, 2, 5)), major_formatter="{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", color="#E5E5E5", lw=0.6)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
