"""Drift of images and scores since validation, measured without labels; ``values`` are (N,).

Drift does not prove a loss of performance. Performance can fall without drift. Only labels show it.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike

if TYPE_CHECKING:  # prediction needs no pandas
    import pandas as pd

_QUANTILES = np.linspace(0, 1, 101)
PSI_LARGE = 0.25  # by convention, a population stability index is large from here on, and small below 0.1


def describe_reference(values: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Summarise measures of the validation images: ``images`` and ``quantiles``, ``{name: [101 values]}``."""
    quantiles = {name: np.quantile(np.asarray(x, np.float64), _QUANTILES) for name, x in values.items()}
    rounded = {name: [float(f"{value:.6g}") for value in row] for name, row in quantiles.items()}
    return {"images": len(values[next(iter(values))]), "quantiles": rounded}


def population_stability(reference: Sequence[float], values: ArrayLike) -> float:
    """Population stability index Σ (p − q) ln(p / q) over deciles of the reference; 0 images count as 0.5."""
    reference, values = np.asarray(reference[:-1]), np.asarray(values, np.float64)
    edges = np.unique(reference[10::10])
    edges = edges[edges > reference[0]]
    bins = [np.searchsorted(edges, sample, side="right") for sample in (reference, values)]
    expected, observed = (np.bincount(numbers, minlength=len(edges) + 1) for numbers in bins)
    expected, observed = expected / len(reference), np.maximum(observed, 0.5) / len(values)
    return float(np.sum((observed - expected) * np.log(observed / expected)))


def kolmogorov_smirnov(reference: Sequence[float], images: int, values: ArrayLike) -> tuple[float, float]:
    """Kolmogorov-Smirnov distance and its p-value (large samples); the reference has so many ``images``.

    The reference is assumed to be uniform between its quantiles.
    """
    from scipy.stats import kstwobign

    values, points = np.sort(np.asarray(values, np.float64)), np.unique(reference)
    # Where the distribution function of the reference jumps, it has a value on each side.
    ranks = np.searchsorted(reference, points, side="left"), np.searchsorted(reference, points, "right") - 1
    below, upto = (np.interp(values, points, _QUANTILES[rank], left=0, right=1) for rank in ranks)
    count = len(values)
    before, after = np.arange(count) / count, np.arange(1, count + 1) / count
    distance = max(0.0, np.max(after - upto), np.max(below - before))
    return float(distance), float(kstwobign.sf(distance * np.sqrt(images * count / (images + count))))


def drift_table(reference: Mapping[str, Any], values: Mapping[str, ArrayLike]) -> "pd.DataFrame":
    """Compare measures with those of the same name in a reference (:func:`describe_reference`).

    One row per name: ``what``, medians ``before`` and ``now``, ``psi``, ``psi_by_chance`` (its mean without a
    change: 9 (1/N + 1/M)), ``ks``, ``p`` (adjusted for the number of rows, Holm 1979), and ``verdict``.
    """
    import pandas as pd
    from statsmodels.stats.multitest import multipletests

    rows = []
    for name, quantiles in reference["quantiles"].items():
        column = np.asarray(values[name], np.float64)
        row = {"what": name, "before": quantiles[50], "now": float(np.median(column))}
        row["psi"] = population_stability(quantiles, column)
        row["psi_by_chance"] = 9 * (1 / len(column) + 1 / reference["images"])
        row["ks"], row["p"] = kolmogorov_smirnov(quantiles, reference["images"], column)
        rows.append(row)
    table = pd.DataFrame(rows)
    table["p"] = multipletests(table["p"], method="holm")[1]
    changed = table["p"] < 0.05
    large = changed & (table["psi"] - table["psi_by_chance"] > PSI_LARGE)
    table["verdict"] = np.select([large, changed], ["large change", "changed"], "no change seen")
    return table
