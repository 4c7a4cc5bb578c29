"""Figures of training and scores: curves, confusions, comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib as mpl
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
from sklearn import metrics as skm

from chestxray.plots.style import (
    CLASSES,
    COLOURS,
    GUIDE,
    MODELS,
    STYLE,
    check,
    check_scores,
    check_table,
    panels,
)


@mpl.rc_context(STYLE)
def learning_curves(history: pd.DataFrame, synthetic: bool = False) -> Figure:
    """Draw loss, accuracy and AUROC by epoch, for training and validation.

    A validation loss of more than five times the highest training loss, as an
    early epoch with batch normalisation may have, would flatten all others:
    the axis is then cut there, and its title says so.

    Args:
        history: One row an epoch: ``epoch`` (increasing through all phases), ``loss``,
            ``val_loss``; ``phase``, ``accuracy``, ``auroc`` and their ``val_`` may be missing.
        synthetic: Say that the data are.
    """
    check_table(history, "epoch", "loss", "val_loss")
    epoch, loss = history["epoch"].to_numpy(), history["val_loss"].to_numpy(float)
    check((np.diff(epoch) > 0).all(), "epochs must increase", epoch=epoch.tolist())
    shown = [key for key in ("loss", "accuracy", "auroc") if {key, f"val_{key}"} & set(history)]
    phase = list(history.get("phase", epoch * 0))
    changes = [row for row in range(1, len(epoch)) if phase[row] != phase[row - 1]]
    best = np.flatnonzero(loss == np.fmin.reduce(loss))[:1]  # empty when every loss is NaN
    figure, axes = panels(len(shown), 3, 3.3, 3.2, synthetic=synthetic)
    for axis, key in zip(axes, shown, strict=True):
        for name, column in (("train", key), ("validation", f"val_{key}")):
            if column in history:
                axis.plot(epoch, history[column], "-o", ms=3, color=COLOURS[name], label=name)
        for row in best if f"val_{key}" in history else ():
            axis.plot(
                epoch[row],
                history[f"val_{key}"].iloc[row],
                "ko",
                ms=9,
                mfc="none",
                label=f"lowest validation loss (epoch {epoch[row]})",
            )
        for row in changes:
            x = (epoch[row - 1] + epoch[row]) / 2
            axis.axvline(x, **GUIDE)
            axis.text(x, 1.02, phase[row], transform=axis.get_xaxis_transform(), fontsize=8)
        title = "AUROC" if key == "auroc" else key.capitalize()
        if key == "loss" and (highest := np.fmax.reduce(loss)) > (most := 5 * history["loss"].max()):
            axis.set_ylim(0, most)
            title += f" (cut; highest {highest:.3g})"
        axis.set_title(title, pad=16 if changes else 6)
        axis.set(xlabel="epoch", xlim=(epoch[0] - 0.5, epoch[-1] + 0.5))
        axis.locator_params(axis="x", nbins=8, integer=True, min_n_ticks=1)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure


@mpl.rc_context(STYLE)
def confusion_matrices(
    confusions: Sequence[Mapping[str, int] | Sequence],
    titles: Sequence[str],
    synthetic: bool = False,
    classes: Sequence[str] = CLASSES,
) -> Figure:
    """Draw confusion matrices: rows are the reference standard, columns the decision.

    Args:
        confusions: Each ``{"tp", "fp", "tn", "fn"}``, counts of images; PNEUMONIA is positive. Or
            rows of counts for more classes. A cell shows its count and the percentage of its row,
            which is also the colour.
        titles: One a matrix.
    """
    complete = all(not isinstance(one, Mapping) or {"tp", "fp", "tn", "fn"} <= set(one) for one in confusions)
    check(
        len(confusions) and complete and len(titles) == len(confusions),
        "each matrix needs tp, fp, tn, fn and a title",
        titles=titles,
        confusions=confusions,
    )
    figure, axes = panels(len(confusions), 4, 2.75, 2.75, synthetic=synthetic)
    for axis, one, title in zip(axes, confusions, titles, strict=True):
        counts = np.array(
            [[one["tn"], one["fp"]], [one["fn"], one["tp"]]] if isinstance(one, Mapping) else one
        )
        rows = counts.sum(axis=1, keepdims=True)
        percent = 100 * counts / np.maximum(rows, 1)
        sns.heatmap(
            percent,
            annot=np.vectorize("{:,}\n{:.1f} %".format)(counts, percent),
            fmt="",
            vmin=0,
            vmax=100,
            cmap=sns.light_palette("#4C5B73", as_cmap=True),
            cbar=False,
            square=True,
            linewidths=1.5,
            xticklabels=classes,
            ax=axis,
            yticklabels=[f"{c}\nn = {n:,}" for c, n in zip(classes, rows.flat)],
        )
        axis.set(title=title, xlabel="decision", ylabel="reference standard")
        axis.tick_params(length=0)
    return figure


@mpl.rc_context(STYLE)
def roc_pr(
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    points: Mapping[str, float] | None = None,
    synthetic: bool = False,
    band: Sequence[np.ndarray] | None = None,
    baseline: Mapping | None = None,
) -> Figure:
    """Draw ROC and precision-recall curves; the legends give AUROC and average precision.

    Where every AUROC is at least 0.98, all curves lie in one corner; it is then shown enlarged, too.

    Args:
        curves: Name to (labels, probabilities), both (N,).
        points: Name to the threshold (decision: probability >= threshold) to mark on its curves.
        band: Of the first curve's ROC: 1 − specificity, lower and upper bound of sensitivity.
        baseline: What can be had without lungs (``baseline`` of an audit): ``sees``, ``auroc`` and
            ``roc``, sensitivities at evenly spaced 1 − specificity from 0 to 1.
    """
    checked, points = {name: check_scores(*pair) for name, pair in curves.items()}, points or {}
    check(
        len(checked) and set(points) <= set(checked),
        "curves are needed, and points on them",
        points=list(points),
        curves=list(checked),
    )
    crowded = all(skm.roc_auc_score(*pair) >= 0.98 for pair in checked.values())
    lines = len(checked) + 2 * bool(baseline) + bool(band) + len(points) + 1  # of the legend
    below = 0.5 + 0.19 * lines if crowded else 0
    figure, (roc, pr) = panels(2, 2, 4.3, 4.2 + below, synthetic=synthetic)
    _draw_roc_pr(roc, pr, checked, points, band, baseline)
    roc.set(title="ROC", xlabel="1 − specificity", ylabel="sensitivity")
    pr.set(title="Precision–recall", xlabel="recall (sensitivity)", ylabel="precision")
    for axis, place in ((roc, "lower right"), (pr, "lower left")):
        axis.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal", anchor="N" if crowded else "C")
        axis.legend(**{"loc": "upper center", "bbox_to_anchor": (0.5, -0.13)} if crowded else {"loc": place})
    if crowded:
        corners = roc.inset_axes((0.38, 0.1, 0.56, 0.56)), pr.inset_axes((0.14, 0.1, 0.56, 0.56))
        _draw_roc_pr(*corners, checked, points, band, baseline)
        for axis, corner, recall in ((roc, corners[0], (-0.004, 0.2)), (pr, corners[1], (0.8, 1.004))):
            corner.set(xlim=recall, ylim=(0.8, 1.004), xticks=np.round(recall, 1), yticks=(0.8, 0.9, 1))
            corner.tick_params(labelsize=8)
            axis.indicate_inset_zoom(corner)
    return figure


def _draw_roc_pr(
    roc: Axes,
    pr: Axes,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    points: Mapping[str, float],
    band: Sequence[np.ndarray] | None,
    baseline: Mapping | None,
) -> None:
    """Draw what both panels, and the enlarged corner of each, have in common."""
    roc.plot([0, 1], [0, 1], label="chance, 0.500", **GUIDE)
    if baseline:
        roc.plot(
            np.linspace(0, 1, len(baseline["roc"])),
            baseline["roc"],
            color="#8C8C8C",
            lw=2.5,
            alpha=0.6,
            label=f"hardly any lung seen, {baseline['auroc']:.3f}\n({baseline['sees']})",
        )
    if band:
        roc.fill_between(*band, color=MODELS[0], alpha=0.15, lw=0, label="95 % of the first")
    for prevalence in sorted({f"{y.mean():.3f}" for y, _ in curves.values()}):
        pr.axhline(float(prevalence), label=f"prevalence, {prevalence}", **GUIDE)
    for number, (name, (y, p)) in enumerate(curves.items()):
        style = {"color": MODELS[number % 5], "ls": ("-", "--", "-.")[number // 5 % 3]}
        roc.plot(*skm.roc_curve(y, p)[:2], label=f"{name}, AUROC {skm.roc_auc_score(y, p):.3f}", **style)
        precision, recall, _ = skm.precision_recall_curve(y, p)
        pr.plot(
            recall,
            precision,
            drawstyle="steps-post",
            **style,
            label=f"{name}, AP {skm.average_precision_score(y, p):.3f}",
        )
        if name in points:
            called, dot = p >= points[name], {"c": style["color"], "mec": "white", "zorder": 3}
            roc.plot(
                called[y == 0].mean(),
                called[y == 1].mean(),
                "o",
                ms=8,
                **dot,
                label=f"at threshold {points[name]:.3f}",
            )
            precision = skm.precision_score(y, called, zero_division=np.nan)
            pr.plot(called[y == 1].mean(), precision, "o", ms=8, **dot)


@mpl.rc_context(STYLE)
def calibration(
    tables: Mapping[str, pd.DataFrame], decisions: Mapping[str, pd.DataFrame], synthetic: bool = False
) -> Figure:
    """Draw reliability diagrams beside decision curves.

    Args:
        tables: Name to the table of :func:`chestxray.evaluation.calibration.reliability_table`.
        decisions: Name to the table of :func:`chestxray.evaluation.calibration.decision_curve`.
    """
    check(
        len(tables) and set(tables) == set(decisions),
        "both are needed for each model",
        tables=list(tables),
        decisions=list(decisions),
    )
    below = 0.2 * -(-(3 + len(tables)) // 3)  # the legend's rows of three
    figure, (reliability, benefit) = panels(2, 2, 4.3, 4.2 + below, synthetic=synthetic)
    reliability.plot([0, 1], [0, 1], label="predicted = observed", **GUIDE)
    first = next(iter(decisions.values()))
    benefit.plot(first["threshold"], first["all"], label="treat all", color="#8C8C8C")
    benefit.axhline(0, label="treat none", **GUIDE)
    for number, (name, table) in enumerate(tables.items()):
        style = {"color": MODELS[number % 5], "ls": ("-", "--", "-.")[number // 5 % 3]}
        reliability.plot(
            table["predicted"], table["observed"], marker="os^"[number // 5 % 3], ms=4, label=name, **style
        )
        reliability.vlines(
            table["predicted"], table["low"], table["high"], color=style["color"], lw=1, alpha=0.6
        )
        benefit.plot(decisions[name]["threshold"], decisions[name]["model"], **style)
    top = max(float(table["model"].max()) for table in decisions.values())
    reliability.set(
        title="Calibration, bins of equally many images",
        xlabel="predicted probability",
        ylabel="share with pneumonia",
        xlim=(-0.02, 1.02),
        ylim=(-0.02, 1.02),
        aspect="equal",
    )
    benefit.set(
        title="Decision curve",
        xlabel="threshold probability",
        ylabel="net benefit",
        xlim=(0, 1),
        ylim=(-0.25 * top, 1.05 * top),
    )
    figure.legend(loc="outside lower center", ncols=3)
    return figure


@mpl.rc_context(STYLE)
def score_distribution(
    labels: np.ndarray,
    probabilities: np.ndarray,
    thresholds: Mapping[str, float | None],
    synthetic: bool = False,
    classes: Sequence[str] = CLASSES,
) -> Figure:
    """Draw the calibrated probability of pneumonia by class, with decision thresholds.

    Args:
        labels, probabilities: (N,), labels 0 and 1, both present; probabilities 0-1.
        thresholds: Rule to value; a rule without one (None) is left out.
    """
    y, p = check_scores(labels, probabilities)
    lines = sorted(
        ((v, threshold_rule) for threshold_rule, v in thresholds.items() if v is not None), reverse=True
    )
    figure, axes = panels(2, 1, 6.6, 1.9 + 0.08 * len(lines), "", synthetic, sharex=True, sharey=True)
    for axis, label in zip(axes, (1, 0), strict=True):
        mine, colour = y == label, COLOURS[CLASSES[label]]
        sns.histplot(
            x=p[mine],
            bins=np.linspace(0, 1, 26),
            stat="percent",
            color=colour,
            edgecolor="white",
            alpha=0.85,
            ax=axis,
        )
        axis.set_ylabel(f"{classes[label]} (n = {mine.sum():,})\nimages (%)", color=colour)
    for level, (value, threshold_rule) in enumerate(lines):  # a flag a threshold, each on its own level
        axes[0].axvline(value, ymax=1.08 + 0.1 * level, color="black", lw=1, clip_on=False)
        axes[1].axvline(value, color="black", lw=1)
        axes[0].text(
            value,
            1.01 + 0.1 * level,
            f" {threshold_rule}: {value:.3f}",
            fontsize=8.5,
            transform=axes[0].get_xaxis_transform(),
        )
    axes[1].set(xlabel=f"calibrated probability of {classes[1]}", xlim=(0, 1))
    return figure


@mpl.rc_context(STYLE)
def comparison(table: pd.DataFrame, metrics: Sequence[str], synthetic: bool = False) -> Figure:
    """Draw a forest plot: one row a model, one panel a metric, points with intervals.

    Args:
        table: One row a model, drawn in this order: ``name``, and for each metric ``<metric>``,
            ``<metric>_low``, ``<metric>_high``; NaN where there is no value or interval.
        metrics: Names of metrics, at least one.
    """
    check(len(metrics), "a metric is needed", metrics=metrics)
    check_table(table, "name", *(m + end for m in metrics for end in ("", "_low", "_high")))
    rows, short = np.arange(len(table)), {"auroc": "AUROC", "auprc": "AUPRC", "f1": "F1"}
    figure, axes = panels(
        len(metrics),
        len(metrics),
        2.5 + 1.5 / len(metrics),
        1.1 + 0.42 * len(table),
        "",
        synthetic,
        sharey=True,
    )
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


@mpl.rc_context(STYLE)
def variants(scored: Mapping[str, Mapping], synthetic: bool = False) -> Figure:
    """Draw several ways of training: a dot for each seed, a bar for their mean, one panel a metric.

    Args:
        scored: From :func:`chestxray.evaluation.comparison.score_variants`; the first variant's mean is drawn
            through all.
    """
    check(len(scored), "an variant is needed", scored=list(scored))
    metrics = list(next(iter(scored.values()))["mean"])
    figure, axes = panels(
        len(metrics),
        len(metrics),
        2.6,
        1.1 + 0.42 * len(scored),
        "Each way of training, by seed",
        synthetic,
        sharey=True,
    )
    for axis, metric in zip(axes, metrics, strict=True):
        axis.axvline(next(iter(scored.values()))["mean"][metric], **GUIDE)
        for row, entry in enumerate(scored.values()):
            axis.plot(
                entry["seeds"][metric],
                [row] * len(entry["seeds"][metric]),
                "o",
                ms=5,
                mfc="none",
                color=MODELS[0],
            )
            axis.plot(entry["mean"][metric], row, "|", ms=16, mew=2, color="black")
        axis.set_title(
            "AUROC"
            if metric == "auroc"
            else metric.capitalize() + (" (lower is better)" if metric == "brier" else "")
        )
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=4)
        axis.margins(x=0.12)
    axes[0].set(yticks=range(len(scored)), yticklabels=list(scored), ylim=(len(scored) - 0.5, -0.5))
    return figure


@mpl.rc_context(STYLE)
def latency(costs: pd.DataFrame) -> Figure:
    """Draw the time of one image, on a logarithmic scale: a row a model and runtime, a dot a number of cores.

    Args:
        costs: ``model``, ``runtime``, ``weights``, ``threads``,
            ``milliseconds`` (> 0) and ``megabytes`` of the file.
    """
    check_table(costs, "model", "runtime", "weights", "threads", "milliseconds", "megabytes")
    rows = costs.groupby(["model", "runtime", "weights", "megabytes"], sort=False)
    figure, (axis,) = panels(1, 1, 7.5, 1.2 + 0.32 * len(rows), "Time of one image in the warm network")
    for number, (_, group) in enumerate(rows):
        axis.plot(group["milliseconds"], [number] * len(group), color="#8C8C8C", lw=1, zorder=1)
        for colour, (cores, value) in zip(
            MODELS, zip(group["threads"], group["milliseconds"], strict=True), strict=False
        ):
            axis.plot(
                value,
                number,
                "o",
                ms=6,
                color=colour,
                label=f"{cores} core{'s' if cores > 1 else ''}" if number == 0 else None,
            )
    axis.set(
        xscale="log",
        xlabel="milliseconds",
        ylim=(len(rows) - 0.5, -0.5),
        yticks=range(len(rows)),
        yticklabels=[
            f"{model}, {runtime} {weights} ({size:.1f} MB)" for (model, runtime, weights, size), _ in rows
        ],
    )
    axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.grid(axis="x", color="#E5E5E5", lw=0.6)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3)
    return figure
