"""Every figure of the notebooks, one function each, in one style.

The functions take arrays and tables and return the Figure, never show it; wrong input raises
ValueError before there is a figure. Label 0 is NORMAL, label 1 is PNEUMONIA, the positive class.
``synthetic=True`` writes "synthetic data" into the figure.
"""

from chestxray.plots.data import (
    augmentation_preview,
    class_balance,
    image_sizes,
    preprocessing_steps,
    sample_grid,
)
from chestxray.plots.heatmaps import cascade, heatmaps, perturbation, spread
from chestxray.plots.overview import overview
from chestxray.plots.scores import (
    calibration,
    comparison,
    confusion_matrices,
    latency,
    learning_curves,
    roc_pr,
    score_distribution,
    variants,
)

__all__ = [
    "variants",
    "augmentation_preview",
    "calibration",
    "cascade",
    "class_balance",
    "comparison",
    "confusion_matrices",
    "heatmaps",
    "image_sizes",
    "latency",
    "learning_curves",
    "overview",
    "perturbation",
    "preprocessing_steps",
    "roc_pr",
    "sample_grid",
    "score_distribution",
    "spread",
]
