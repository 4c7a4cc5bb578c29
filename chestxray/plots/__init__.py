"""Figures of the notebooks: functions of arrays and tables that return a figure and do not show it.

All functions raise ValueError for wrong input. Labels are 0 (negative) and 1 (positive). ``synthetic`` writes
"synthetic data" into the figure. ``classes`` are the names of the classes, in the order of the labels.
"""

from chestxray.plots.data import (
    augmentation_preview,
    class_balance,
    framing,
    image_sizes,
    model_summary,
    preprocessing_steps,
    sample_grid,
)
from chestxray.plots.heatmaps import cascade, heatmaps, perturbation
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
from chestxray.plots.style import show
