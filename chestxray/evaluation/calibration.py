"""Probabilities that mean what they say: Platt scaling of raw logits."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit

from chestxray.evaluation.metrics import bootstrap_weights, check_scores, wilson_interval


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


_CLIP = 1e-7


def reliability_table(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> pd.DataFrame:
    """Compare predicted with observed shares in bins of equally many images.

    Args:
        labels, probabilities: Shape (N,).
        bins: Number of bins; ties may leave fewer.

    Returns:
        One row a bin, in order: ``predicted`` (mean probability), ``observed``
        (share of positives) with the 95 % Wilson interval ``low`` to
        ``high``, and ``images``.
    """
    labels, probabilities = check_scores(labels, probabilities)
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, probabilities, side="right")
    rows = []
    for number in np.unique(bin_of):
        mine = bin_of == number
        found, images = int(labels[mine].sum()), int(mine.sum())
        low, high = wilson_interval(found, images)
        rows.append((probabilities[mine].mean(), found / images, float(low), float(high), images))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "images"])


def expected_calibration_error(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> float:
    """Mean distance of predicted and observed shares over bins of equally many images.

    Biased upwards on few images, and blind to errors that cancel within a
    bin: never to be quoted alone.
    """
    table = reliability_table(labels, probabilities, bins)
    return float(np.average((table["predicted"] - table["observed"]).abs(), weights=table["images"]))


def calibration_metrics(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike, draws: int = 500, seed: int = 0
) -> dict[str, dict[str, float]]:
    """Sum up calibration, with 95 % bootstrap intervals over patient groups.

    Returns:
        ``{metric: {"value", "low", "high"}}``: ``brier``; ``brier_skill`` (1 −
        brier / that of always saying the prevalence); ``slope`` of the
        logistic regression of the label on the log-odds (1 when calibrated,
        below 1 when over-confident; None where the classes are perfectly
        separated) and ``intercept``, with the slope held at 1 (0 when
        calibrated, below 0 when too high); ``ece``
        (:func:`expected_calibration_error`, without interval).

    Raises:
        ValueError: Shapes differ, or labels or probabilities are no such, or
            one class is missing.
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    odds = logit(np.clip(probabilities, _CLIP, 1 - _CLIP))

    def metrics(weights: NDArray) -> NDArray:
        total = weights.sum(axis=1)
        prevalence = weights @ labels / total
        brier = weights @ (probabilities - labels) ** 2 / total
        both = (prevalence > 0) & (prevalence < 1)  # a class that lies in mixed groups only may be lost
        found = np.full((len(weights), 4), np.nan)
        found[:, 0] = brier
        found[both, 1] = 1 - brier[both] / (prevalence * (1 - prevalence))[both]
        found[both, 2] = _slopes(odds, labels, weights[both])
        found[both, 3] = _fit(np.ones((len(labels), 1)), odds, labels, weights[both])[:, 0]
        return found

    names = ("brier", "brier_skill", "slope", "intercept")
    values = metrics(np.ones((1, len(labels))))[0]
    drawn = np.concatenate([metrics(block) for block in bootstrap_weights(labels, groups, draws, seed)])
    found = {}
    for name, value, column in zip(names, values, drawn.T, strict=True):
        usable = column[~np.isnan(column)]
        low, high = np.percentile(usable, [2.5, 97.5]).tolist() if 2 * len(usable) >= draws else (None, None)
        found[name] = {"value": None if np.isnan(value) else float(value), "low": low, "high": high}
    ece = expected_calibration_error(labels, probabilities)
    return found | {"ece": {"value": ece, "low": None, "high": None}}


def _slopes(odds: NDArray, labels: NDArray, weights: NDArray) -> NDArray:
    """Slope of the label on the log-odds for each row of weights; NaN where it has no end."""
    (lowest, highest), (least, most) = (
        (np.where(drawn, odds, np.inf).min(axis=1), np.where(drawn, odds, -np.inf).max(axis=1))
        for drawn in ((weights > 0) & (labels == label) for label in (0, 1))
    )
    overlap = (highest > least) & (most > lowest)
    slopes = np.full(len(weights), np.nan)
    if overlap.any():
        scale = odds.std()
        inputs = np.stack([(odds - odds.mean()) / scale, np.ones_like(odds)], axis=1)
        slopes[overlap] = _fit(inputs, 0.0, labels, weights[overlap])[:, 0] / scale
    return slopes


def _fit(inputs: NDArray, offset: ArrayLike, labels: NDArray, weights: NDArray) -> NDArray:
    """Logistic regressions by Newton's method, one for each row of weights, all at once.

    Hundreds of such fits a model are needed, each so small that scikit-learn
    spends most of the time on its checks.

    Args:
        inputs: Shape (N, P).
        offset: Added to the log-odds, of shape (N,) or a number.
        labels: Shape (N,), 0 or 1.
        weights: Shape (D, N). No row may separate the classes.

    Returns:
        Coefficients, shape (D, P); NaN for a row that 100 steps were not
        enough for.
    """

    def losses(points: NDArray) -> NDArray:
        scores = points @ inputs.T + offset
        return (weights * (np.logaddexp(0, scores) - labels * scores)).sum(axis=1)

    products = (inputs[:, :, None] * inputs[:, None, :]).reshape(len(inputs), -1)
    found = np.zeros((len(weights), inputs.shape[1]))
    loss = losses(found)
    for _ in range(100):
        scores = found @ inputs.T + offset
        p = expit(scores)
        slope = (weights * (p - labels)) @ inputs
        curvature = ((weights * p * (1 - p)) @ products).reshape(*found.shape, found.shape[1])
        step = (np.linalg.pinv(curvature, hermitian=True) @ slope[..., None])[..., 0]
        reach = np.abs(step @ inputs.T).max(axis=1)  # so far that no p becomes exactly 0 or 1
        step *= np.minimum(1, (5 + np.abs(scores).max(axis=1)) / np.maximum(reach, 1e-300))[:, None]
        while (worse := (after := losses(found - step)) > loss + 1e-12 * np.abs(loss)).any():
            step[worse] /= 2
        found, loss = found - step, after
        ended = (np.abs(step) <= 1e-5 * (1 + np.abs(found))).all(axis=1)  # the error is about its square
        if ended.all():
            break
    return np.where(ended[:, None], found, np.nan)


def decision_curve(
    labels: ArrayLike, probabilities: ArrayLike, thresholds: ArrayLike | None = None
) -> pd.DataFrame:
    """Net benefit of treating by the model, treating all, and treating none (Vickers and Elkin 2006).

    Net benefit = TP/N − FP/N · t/(1 − t): a threshold of t says that one
    missed case weighs as much as (1 − t)/t false alarms.

    Args:
        labels, probabilities: Shape (N,).
        thresholds: Between 0 and 1; by default 0.01 to 0.99.

    Returns:
        One row a threshold: ``threshold, model, all`` (``none`` is 0).
    """
    labels, probabilities = check_scores(labels, probabilities, both_classes=True)
    cuts = np.arange(1, 100) / 100 if thresholds is None else np.asarray(thresholds, np.float64)
    if not ((cuts > 0) & (cuts < 1)).all():
        raise ValueError(f"thresholds must lie between 0 and 1. Received: thresholds={cuts.tolist()}")
    called = probabilities[None, :] >= cuts[:, None]
    harm = cuts / (1 - cuts)
    model = (called & (labels == 1)).mean(axis=1) - (called & (labels == 0)).mean(axis=1) * harm
    everybody = labels.mean() - (1 - labels.mean()) * harm
    return pd.DataFrame({"threshold": cuts, "model": model, "all": everybody})


def shift_prevalence(probabilities: ArrayLike, prevalence: float, new: float) -> NDArray:
    """Carry calibrated probabilities over to another prevalence, by Bayes' rule.

    Adds logit(new) − logit(prevalence) to the log-odds: right when the films
    of each class look the same there.

    Args:
        probabilities: Any shape, calibrated at ``prevalence``.
        prevalence, new: Between 0 and 1.
    """
    for name, value in (("prevalence", prevalence), ("new", new)):
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie between 0 and 1. Received: {name}={value!r}")
    odds = logit(np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP))
    return expit(odds + logit(new) - logit(prevalence))
