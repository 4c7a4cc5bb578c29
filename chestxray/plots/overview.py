"""The figure on the front page: the same models under three ways of splitting, among published ones."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from chestxray.plots.style import STYLE, check, check_table, panels

PUBLISHED, FLOOR = "#0072B2", "#D55E00"


@mpl.rc_context(STYLE)
def overview(
    table: pd.DataFrame,
    published: pd.DataFrame,
    questions: Mapping[str, str],
    baselines: Mapping[str, float] | None = None,
) -> Figure:
    """Draw accuracy, specificity and AUROC of our models and of published ones, split by split.

    Args:
        table: One row a model and seed: ``model``, ``split_rule``, ``seed``, and for each metric its
            value, ``_low`` and ``_high``; the lowest seed is drawn with its interval, the others
            as open circles.
        published: One row a publication: ``model``, ``who``, ``split``, ``held_out`` (False where the
            images were also chosen on, which gets a star), and the metrics, NaN where it does not say.
        questions: ``{split rule: heading}``, in the order in which they are drawn; the others are
            left out.
        baselines: ``{split rule: AUROC}`` of the best linear model that sees hardly any lung.
    """
    metrics = {"accuracy": "Accuracy", "specificity": "Specificity", "auroc": "AUROC"}
    check_table(
        table, "model", "split_rule", "seed", *(m + end for m in metrics for end in ("", "_low", "_high"))
    )
    check(
        {"model", "who", "split", "held_out", *metrics} <= set(published),
        "published numbers need their columns",
        columns=list(published),
    )
    check(len(questions), "a split is needed", questions=questions)
    heads, labels, colours, row = [], {}, [], 0
    figure, axes = panels(3, 3, 3.2, 1, sharey=True)
    for threshold_rule, question in questions.items():
        heads.append((row, question))
        ours, theirs = (
            table[table["split_rule"] == threshold_rule],
            published[published["split"] == threshold_rule],
        )
        for model, seeds in ours.groupby("model", sort=False):
            row += 1
            labels[row] = model
            colours.append("black")
            first = seeds.loc[seeds["seed"].idxmin()]
            others = seeds.drop(first.name)
            for axis, metric in zip(axes, metrics, strict=True):
                axis.hlines(row, first[f"{metric}_low"], first[f"{metric}_high"], color="black", lw=2)
                axis.plot(first[metric], row, "o", color="black", ms=6)
                axis.plot(others[metric], np.full(len(others), row), "o", color="black", mfc="white", ms=5)
        for one in theirs.to_dict("records"):
            row += 1
            labels[row] = f"{one['model']} ({one['who']})" + ("" if one["held_out"] else " *")
            colours.append(PUBLISHED)
            for axis, metric in zip(axes, metrics, strict=True):
                axis.plot(one[metric], row, "D", color=PUBLISHED, mfc="white", ms=5)
        if threshold_rule in (baselines or {}):
            low = heads[-1][0] + 0.5
            axes[2].vlines(baselines[threshold_rule], low, row + 0.4, color=FLOOR, ls=":", lw=1.5)
            axes[2].text(
                baselines[threshold_rule],
                low - 0.1,
                "sees hardly any lung",
                color=FLOOR,
                fontsize=8,
                ha="center",
            )
        row += 1.4
    for axis, (metric, title) in zip(axes, metrics.items(), strict=True):
        axis.set_title(title)
        axis.grid(axis="x", color="#E4E4E4")
        axis.tick_params(axis="y", length=0)
        axis.spines["left"].set_visible(False)
        axis.locator_params(axis="x", nbins=5)
    axes[0].set(yticks=list(labels), yticklabels=list(labels.values()), ylim=(row - 1, -0.8))
    for tick, colour in zip(axes[0].get_yticklabels(), colours, strict=True):
        tick.set_color(colour)
    for at, question in heads:
        axes[0].text(
            -0.02,
            at,
            question,
            transform=axes[0].get_yaxis_transform(),
            ha="right",
            va="center",
            weight="bold",
        )
    figure.set_size_inches(10.5, 0.6 + 0.25 * row)
    return figure
