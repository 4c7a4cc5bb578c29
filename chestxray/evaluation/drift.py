"""Have the images, or the scores, changed since validation? Needs no labels.

Drift is not yet loss of performance, and a fall in performance can come
without drift: only labels tell. This says where to look first.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import kstwobign

from chestxray.evaluation.comparison import holm

_QUANTILES = np.linspace(0, 1, 101)
_BINS = 10
PSI_LARGE = 0.25
"""From here on a population stability index is commonly called large; below 0.1 small."""


def describe_reference(values: Mapping[str, ArrayLike]) -> dict[str, Any]:
    """Sum up what was seen on validation, small enough for a model's card.

    Args:
        values: ``{name: (N,)}``, for example brightness, logit.

    Returns:
        ``images`` and ``quantiles``: ``{name: [101 values]}``.
    """
    arrays = {name: np.asarray(column, np.float64) for name, column in values.items()}
    return {
        "images": len(next(iter(arrays.values()))),
        "quantiles": {
            name: [float(f"{value:.6g}") for value in np.quantile(array, _QUANTILES)]
            for name, array in arrays.items()
        },
    }


def population_stability(reference: Sequence[float], values: ArrayLike) -> float:
    """Population stability index over ten bins of equal mass in the reference.

    Σ (p − q) ln(p / q); a bin without images counts half an image.

    Args:
        reference: 101 quantiles, from :func:`describe_reference`.
        values: (N,).
    """
    reference, values = np.asarray(reference[:-1]), np.asarray(values, np.float64)
    edges = np.unique(reference[10::10])
    edges = edges[edges > reference[0]]
    expected, found = (
        np.bincount(np.searchsorted(edges, some, side="right"), minlength=len(edges) + 1)
        for some in (reference, values)
    )
    expected, found = expected / len(reference), np.maximum(found, 0.5) / len(values)
    return float(np.sum((found - expected) * np.log(found / expected)))


def kolmogorov_smirnov(reference: Sequence[float], images: int, values: ArrayLike) -> tuple[float, float]:
    """Largest distance of the two distribution functions, and its p-value (large samples).

    Args:
        reference: 101 quantiles; between them the distribution is taken as even.
        images: How many images they sum up.
        values: (N,).
    """
    values = np.sort(np.asarray(values, np.float64))
    count = len(values)
    below, upto = (np.interp(values, *_steps(reference, side), left=0, right=1) for side in ("left", "right"))
    before, after = np.arange(count) / count, np.arange(1, count + 1) / count
    distance = max(0.0, np.max(after - upto), np.max(below - before))
    return float(distance), float(kstwobign.sf(distance * np.sqrt(images * count / (images + count))))


def _steps(reference: Sequence[float], side: str) -> tuple[NDArray, NDArray]:
    """Points of the reference's distribution function; where it jumps, its value on one side."""
    places = np.unique(reference)
    rank = np.searchsorted(reference, places, side=side) - (side == "right")
    return places, _QUANTILES[rank]


def drift_table(reference: Mapping[str, Any], values: Mapping[str, ArrayLike]) -> pd.DataFrame:
    """Compare images with those of validation.

    Args:
        reference: From :func:`describe_reference`.
        values: The same names, each (N,).

    Returns:
        One row a name: ``what``, ``before`` and ``now`` (medians), ``psi``,
        ``psi_by_chance`` (its mean when nothing changed: 9 (1/N + 1/M)),
        ``ks``, ``p``, and ``verdict`` in words; p-values are adjusted (Holm)
        for the number of rows.
    """
    rows = []
    for name, quantiles in reference["quantiles"].items():
        column = np.asarray(values[name], np.float64)
        rows.append(
            {
                "what": name,
                "before": quantiles[50],
                "now": float(np.median(column)),
                "psi": population_stability(quantiles, column),
                "psi_by_chance": (_BINS - 1) * (1 / len(column) + 1 / reference["images"]),
            }
        )
        rows[-1]["ks"], rows[-1]["p"] = kolmogorov_smirnov(quantiles, reference["images"], column)
    table = pd.DataFrame(rows)
    table["p"] = holm(table["p"])
    large = table["psi"] - table["psi_by_chance"] > PSI_LARGE
    table["verdict"] = np.select(
        [large & (table["p"] < 0.05), table["p"] < 0.05], ["large change", "changed"], "no change seen"
    )
    return table
