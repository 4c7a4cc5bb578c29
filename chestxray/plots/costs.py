"""What a model costs to run."""

from __future__ import annotations

import matplotlib as mpl
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from chestxray.plots.style import MODELS, STYLE, check_table, panels


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
