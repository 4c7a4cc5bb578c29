"""Platt scaling of logits, calibration metrics and net benefit. Arguments and errors: see `metrics.py`."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from chestxray.evaluation import metrics
from chestxray.schema import check

if TYPE_CHECKING:  # prediction needs no pandas
    import pandas as pd

_CLIP = 1e-7  # bound of probabilities, which keeps their log-odds finite


def fit_platt(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Fit ``p = sigmoid(slope * logit + intercept)`` on the validation split; return ``(slope, intercept)``.

    Maximum likelihood with the smoothed targets of Platt (1999): (P + 1)/(P + 2) for the P positive images
    and 1/(Q + 2) for the Q negative ones, which keep the fit finite when the classes are perfectly separated.
    Departure: Newton's method on standardised logits. Raw logits, shape (N,), must be finite (ValueError).
    A slope of 0 or less means that the ranking is reversed or random. For equal logits it is 1.
    """
    logits = _check_logits(logits)
    labels = metrics.check_labels(labels, both_classes=True, logits=logits)
    negatives, positives = np.bincount(labels)
    targets = np.where(labels == 1, (positives + 1) / (positives + 2), 1 / (negatives + 2))
    if np.ptp(logits) == 0:
        mean = targets.mean()
        return 1.0, float(np.log(mean / (1 - mean)) - logits[0])
    center, scale = logits.mean(), logits.std()
    inputs = np.stack([(logits - center) / scale, np.ones_like(logits)], axis=1)
    slope, intercept = _fit(inputs, 0.0, targets, np.ones((1, len(targets))))[0]
    return float(slope / scale), float(intercept - slope / scale * center)


def calibrate(logits: ArrayLike, labels: ArrayLike) -> tuple[float, float]:
    """Fit Platt scaling; return (1, 0) if the slope of :func:`fit_platt` is not positive."""
    slope, intercept = fit_platt(logits, labels)
    return (slope, intercept) if slope > 0 else (1.0, 0.0)


def apply_platt(logits: ArrayLike, slope: float, intercept: float) -> NDArray:
    """Return calibrated probabilities, float64 in [0, 1], of the same shape; logits must be finite."""
    return np.exp(-np.logaddexp(0, -(slope * _check_logits(logits) + intercept)))


def log_odds(logits: ArrayLike) -> NDArray:
    """Return the log-odds of class 1 and above, ``float64`` (...), from logits (..., 1) or (..., C)."""
    logits = np.asarray(logits, np.float64)
    if logits.shape[-1] == 1:
        return logits[..., 0]
    return np.logaddexp.reduce(logits[..., 1:], axis=-1) - logits[..., 0]


def _check_logits(logits: ArrayLike) -> NDArray:
    logits = np.asarray(logits, np.float64)
    invalid = logits[~np.isfinite(logits)]
    check(not invalid.size, "logits must be finite", logits=invalid[:3].tolist())
    return logits


def reliability_table(labels: ArrayLike, probabilities: ArrayLike, bins: int = 10) -> "pd.DataFrame":
    """Compare predicted and observed shares in bins of equally many images; ties can reduce the bins.

    One row per bin: mean ``predicted``; ``observed`` with Wilson bounds ``low, high``; ``images``.
    """
    import pandas as pd

    labels, probabilities = metrics.check_scores(labels, probabilities)
    edges = np.unique(np.quantile(probabilities, np.linspace(0, 1, bins + 1)[1:-1]))
    bin_of = np.searchsorted(edges, probabilities, side="right")
    rows = []
    for number in np.unique(bin_of):
        inside = bin_of == number
        share = metrics.wilson_interval(labels[inside].sum(), inside.sum())
        rows.append((probabilities[inside].mean(), *share, inside.sum()))
    return pd.DataFrame(rows, columns=["predicted", "observed", "low", "high", "images"])


def calibration_metrics(
    labels: ArrayLike, probabilities: ArrayLike, groups: ArrayLike, draws: int = 500
) -> dict[str, dict[str, float]]:
    """Measure calibration: ``{metric: {"value", "low", "high"}}``, with 95 % intervals over patients.

    - ``brier``; ``brier_skill``: 1 − brier / brier of a model that always predicts the prevalence.
    - ``slope`` of the logistic regression of the label on the log-odds: 1 when calibrated, below 1 when
      over-confident; None if the classes are perfectly separated.
    - ``intercept``, with the slope fixed at 1: 0 when calibrated, below 0 when probabilities are too high.
    - ``ece``, from :func:`reliability_table`: biased upwards on few images; it has no interval.
    """
    from scipy.special import logit

    labels, probabilities = metrics.check_scores(labels, probabilities, both_classes=True)
    odds = logit(np.clip(probabilities, _CLIP, 1 - _CLIP))

    def measures(weights: NDArray) -> dict[str, NDArray]:
        total = weights.sum(axis=1)
        prevalence = weights @ labels / total
        brier = weights @ (probabilities - labels) ** 2 / total
        both = (prevalence > 0) & (prevalence < 1)  # a draw can lack a class if patients have both
        values = {name: np.full(len(weights), np.nan) for name in ("brier_skill", "slope", "intercept")}
        values["brier_skill"][both] = 1 - brier[both] / (prevalence * (1 - prevalence))[both]
        values["slope"][both] = _slopes(odds, labels, weights[both])
        values["intercept"][both] = _fit(np.ones((len(labels), 1)), odds, labels, weights[both])[:, 0]
        return {"brier": brier} | values

    estimates = metrics.bootstrap(measures, labels, groups, draws)
    bins = reliability_table(labels, probabilities)
    ece = np.average((bins["predicted"] - bins["observed"]).abs(), weights=bins["images"])
    intervals = {name: metrics.percentile_interval(*estimate) for name, estimate in estimates.items()}
    return intervals | {"ece": {"value": float(ece), "low": None, "high": None}}


def _slopes(odds: NDArray, labels: NDArray, weights: NDArray) -> NDArray:
    """Slope of the label on the log-odds for each row of weights; NaN if the classes are separated."""
    drawn = [(weights > 0) & (labels == label) for label in (0, 1)]
    lowest = [np.where(mask, odds, np.inf).min(axis=1) for mask in drawn]
    highest = [np.where(mask, odds, -np.inf).max(axis=1) for mask in drawn]
    overlap = (highest[0] > lowest[1]) & (highest[1] > lowest[0])
    slopes = np.full(len(weights), np.nan)
    if overlap.any():
        scale = odds.std()
        inputs = np.stack([(odds - odds.mean()) / scale, np.ones_like(odds)], axis=1)
        slopes[overlap] = _fit(inputs, 0.0, labels, weights[overlap])[:, 0] / scale
    return slopes


def _fit(inputs: NDArray, offset: ArrayLike, labels: NDArray, weights: NDArray) -> NDArray:
    """Fit a logistic regression for each row of weights by Newton's method: (D, P), NaN if not converged.

    Labels are in [0, 1]. No row may separate the classes 0 and 1.
    """
    # All rows are fitted together, because a library needs seconds.
    from scipy.special import expit

    def losses(points: NDArray) -> NDArray:
        scores = points @ inputs.T + offset
        return (weights * (np.logaddexp(0, scores) - labels * scores)).sum(axis=1)

    products = (inputs[:, :, None] * inputs[:, None, :]).reshape(len(inputs), -1)
    points = np.zeros((len(weights), inputs.shape[1]))
    loss = losses(points)
    for _ in range(100):
        scores = points @ inputs.T + offset
        p = expit(scores)
        gradient = (weights * (p - labels)) @ inputs
        curvature = ((weights * p * (1 - p)) @ products).reshape(*points.shape, points.shape[1])
        step = (np.linalg.pinv(curvature, hermitian=True) @ gradient[..., None])[..., 0]
        change = np.abs(step @ inputs.T).max(axis=1)  # limited so that no p becomes exactly 0 or 1
        step *= np.minimum(1, (5 + np.abs(scores).max(axis=1)) / np.maximum(change, 1e-300))[:, None]
        while (worse := (after := losses(points - step)) > loss + 1e-12 * np.abs(loss)).any():
            step[worse] /= 2
        points, loss = points - step, after
        converged = (np.abs(step) <= 1e-5 * (1 + np.abs(points))).all(axis=1)  # the error is about its square
        if converged.all():
            break
    return np.where(converged[:, None], points, np.nan)


def decision_curve(labels: ArrayLike, probabilities: ArrayLike) -> "pd.DataFrame":
    """Net benefit, TP/N − FP/N · t/(1 − t), of the model and of treating all patients (Vickers 2006).

    One row per threshold t from 0.01 to 0.99: ``threshold, model, all``. Treating no patient has 0.
    """
    import pandas as pd

    labels, probabilities = metrics.check_scores(labels, probabilities, both_classes=True)
    thresholds = np.arange(1, 100) / 100
    decisions = probabilities[None, :] >= thresholds[:, None]
    odds = thresholds / (1 - thresholds)
    model = (decisions & (labels == 1)).mean(axis=1) - (decisions & (labels == 0)).mean(axis=1) * odds
    treat_all = labels.mean() - (1 - labels.mean()) * odds
    return pd.DataFrame({"threshold": thresholds, "model": model, "all": treat_all})


def shift_prevalence(probabilities: ArrayLike, prevalence: float, new: float) -> NDArray:
    """Adapt calibrated probabilities from one prevalence to a new one by Bayes' rule.

    It assumes that the images of each class stay the same. Prevalences outside (0, 1) raise ValueError.
    """
    from scipy.special import expit, logit

    inside = 0 < prevalence < 1 and 0 < new < 1
    check(inside, "prevalences must be in (0, 1)", prevalence=float(prevalence), new=float(new))
    odds = logit(np.clip(np.asarray(probabilities, np.float64), _CLIP, 1 - _CLIP))
    return expit(odds + logit(new) - logit(prevalence))
