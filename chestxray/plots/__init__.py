"""Figures of the notebooks, one function each, in one style.

The functions take arrays and tables and return the Figure; they never show it. Wrong input raises ValueError
before a figure exists. Label 0 is the negative class, label 1 the positive one. Common arguments:

    synthetic: Write "synthetic data" into the figure. classes: Names of the classes, in the order of the
    labels.
"""

from chestxray.plots.data import (
    augmentation_preview,
    class_balance,
    image_sizes,
    model_summary,
    preprocessing_steps,
    sample_grid,
)
from chestxray.plots.heatmaps import cascade, heatmaps, perturbation, spread
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
