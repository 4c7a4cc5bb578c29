"""Probabilities that mean what they say: Platt scaling of raw logits."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Fit ``p = sigmoid(slope * logit + intercept)`` on the validation split.

    Maximum likelihood with the smoothed targets of Platt (1999): (P + 1)/(P + 2)
    for the P positive images and 1/(Q + 2) for the Q negative ones, so that the
    fit stays finite when the classes are perfectly separated. Departures: the
    loss is written in the form of Lin, Lin and Weng (2007), which neither
    overflows nor cancels; logits are standardised for the search, so that the
    result follows their scale; the sign of the slope is that of the logit.

    The fit is returned as it is. A slope of 0 or less says that the model
    ranks the validation images backwards (or not at all), and `apply_platt`
    then reverses (or levels) its scores: check the slope before use. When all
    logits are equal, only ``slope * logit + intercept`` is determined, and the
    slope is 1.

    Args:
        logits: Shape (N,), finite, raw.
        labels: Shape (N,), 0 or 1, both present.

    Returns:
        ``(slope, intercept)``.

    Raises:
        ValueError: Shapes differ, logits are not finite, labels are not 0 or
            1, or only one class.
    """
    from scipy.optimize import minimize  # here: applying a calibration needs NumPy alone
    from scipy.special import expit

    from chestxray.evaluation.metrics import check_labels, check_same_shape

    logits, labels = _check_logits(logits), check_labels(labels, both_classes=True)
    check_same_shape(labels, "logits", logits)
    positives = int(labels.sum())
    negatives = len(labels) - positives
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    if np.ptp(logits) == 0:
        mean = targets.mean()
        return 1.0, float(np.log(mean / (1 - mean)) - logits[0])

    center, scale = logits.mean(), logits.std()
    inputs = np.stack([(logits - center) / scale, np.ones_like(logits)], axis=1)

    def loss(parameters: np.ndarray) -> float:
        scores = inputs @ parameters
        return np.mean(np.logaddexp(0, scores) - targets * scores)

    def gradient(parameters: np.ndarray) -> np.ndarray:
        return inputs.T @ (expit(inputs @ parameters) - targets) / len(targets)

    def curvature(parameters: np.ndarray) -> np.ndarray:
        scores = inputs @ parameters
        return (inputs.T * (expit(scores) * expit(-scores))) @ inputs / len(targets)

    start = np.zeros(2)
    fit = minimize(loss, start, jac=gradient, hess=curvature, method="trust-exact", options={"gtol": 1e-8})
    slope = fit.x[0] / scale
    return float(slope), float(fit.x[1] - slope * center)


def calibrate(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Fit Platt scaling (:func:`fit_platt`), but leave a model alone that ranks backwards.

    Returns:
        ``(slope, intercept)``; (1, 0) where the fitted slope is 0 or less,
        which would turn the scores round in silence.
    """
    slope, intercept = fit_platt(logits, labels)
    return (slope, intercept) if slope > 0 else (1.0, 0.0)


def apply_platt(logits: ArrayLike, slope: float, intercept: float) -> np.ndarray:
    """Return calibrated probabilities, float64 in [0, 1], of the logits' shape.

    Raises:
        ValueError: Logits are not finite.
    """
    return np.exp(-np.logaddexp(0, -(slope * _check_logits(logits) + intercept)))


def log_odds(logits: ArrayLike) -> np.ndarray:
    """Return the log-odds of the positive class from a model's logits.

    Args:
        logits: Shape (..., 1): the log-odds themselves; or (..., C): of a
            negative class and the C − 1 positive ones, whose probabilities
            are summed.

    Returns:
        ``float64``, shape (...).
    """
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return np.logaddexp.reduce(logits[..., 1:], axis=-1) - logits[..., 0]


def _check_logits(logits: ArrayLike) -> np.ndarray:
    logits = np.asarray(logits, np.float64)
    wrong = logits[~np.isfinite(logits)]
    if wrong.size:
        raise ValueError(f"logits must be finite. Received: logits={wrong[:3].tolist()}")
    return logits
