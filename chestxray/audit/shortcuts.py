"""How much of the label can be had without looking at the lungs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from scipy.fft import fft2, fftshift
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from chestxray.evaluation.metrics import bootstrap_weights, weighted_ranking

FOLDS, _DRAWS = 5, 500
SIDE = 224
"""Of the pixels that all features are taken from."""

_FRAME = 8  # pixels of the border
_CENTRE = slice(round(0.15 * 28), 28 - round(0.15 * 28))  # of the 28 × 28 thumbnail: 71 % of the side
_HIGH = 56  # cycles per image from which a frequency is high


def thumbnail(images: np.ndarray, side: int) -> np.ndarray:
    """Mean grey values of side × side fields, ``float32`` (N, side, side)."""
    return np.stack(
        [cv2.resize(np.squeeze(image), (side, side), interpolation=cv2.INTER_AREA) for image in images]
    ).astype(np.float32)


def intensity(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each image, (N, 2)."""
    return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)


def histogram(images: np.ndarray) -> np.ndarray:
    """Share of the pixels in 32 ranges of grey, (N, 32)."""
    return np.stack([np.bincount(image.ravel() >> 3, minlength=32) for image in images]) / images[0].size


def border(images: np.ndarray) -> np.ndarray:
    """The outer 8 pixels in fields of 8 × 8, (N, 108)."""
    fields = thumbnail(images, SIDE // _FRAME)
    frame = np.ones(fields.shape[1:], bool)
    frame[1:-1, 1:-1] = False
    return fields[:, frame]


def without_centre(images: np.ndarray) -> np.ndarray:
    """28 × 28 fields but for the central 70 % of each side, (N, 384)."""
    fields = thumbnail(images, 28)
    outside = np.ones(fields.shape[1:], bool)
    outside[_CENTRE, _CENTRE] = False
    return fields[:, outside]


def high_frequencies(images: np.ndarray) -> np.ndarray:
    """Mean logarithm of the power in rings of 4 from 56 cycles per image to the corner, (N, 26).

    In float64: in float32 the rounding of the mean grey is as large as what
    high frequencies hold, and differs from processor to processor.
    """
    side = images.shape[1]
    radius = np.hypot(*(np.mgrid[:side, :side] - side // 2))
    ring, high = ((radius - _HIGH) // 4).astype(int), radius >= _HIGH
    found = []
    for image in images:
        power = np.log(np.abs(fftshift(fft2(image.astype(np.float64)))) ** 2 + 1)
        found.append(np.bincount(ring[high], power[high]) / np.bincount(ring[high]))
    return np.array(found)


def file_facts(table: pd.DataFrame) -> np.ndarray:
    """Width, height, aspect, pixels and bits per pixel, as logarithms, (N, 5)."""
    width, height, size = (table[name].to_numpy(float) for name in ("width", "height", "bytes"))
    pixels = width * height
    return np.log(np.stack([width, height, width / height, pixels, 8 * size / pixels], axis=1))


def quantisation(root: Path, paths: list[str]) -> np.ndarray | None:
    """First quantisation table of each JPEG file, (N, 64); None when a file is no JPEG."""
    tables = []
    for path in paths:
        data = (root / path).read_bytes()
        place = data.find(b"\xff\xdb")
        if not data.startswith(b"\xff\xd8") or place < 0 or data[place + 4] >> 4:  # 16-bit tables
            return None
        tables.append(np.frombuffer(data, np.uint8, 64, place + 5).astype(float))
    return np.array(tables)


LOOKS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], bool]] = {
    "mean and spread of grey": (intensity, True),
    "histogram of grey": (histogram, True),
    "border of 8 pixels": (border, False),
    "28 × 28, centre blacked out": (without_centre, False),
    "high frequencies": (high_frequencies, True),
    "8 × 8 thumbnail": (lambda images: thumbnail(images, 8).reshape(len(images), -1), True),
    "28 × 28 thumbnail": (lambda images: thumbnail(images, 28).reshape(len(images), -1), True),
}
"""What a linear model is given, and whether it holds something of the lungs."""


def cross_validated(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Score each image by a linear model that was trained on other patients.

    Standardised features, logistic regression (L2, C = 0.1) brought to its
    minimum, FOLDS folds by patient group.

    Args:
        features: (N, F).
        labels: (N,), 0 or 1.
        groups: (N,), the patient group of each image.

    Returns:
        Probability of class 1, (N,).

    Raises:
        ValueError: A class has fewer than FOLDS patient groups.
    """
    if fewest_groups(labels, groups) < FOLDS:
        raise ValueError(
            f"at least {FOLDS} patient groups of each class are needed. "
            f"Received: groups={fewest_groups(labels, groups)}"
        )
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    return cross_val_predict(
        _linear(), features.astype(np.float64), labels, groups=groups, cv=folds, method="predict_proba"
    )[:, 1]


def fewest_groups(labels: np.ndarray, groups: np.ndarray) -> int:
    """Number of patient groups of the class that has fewer."""
    return min(len(np.unique(groups[labels == label])) for label in (0, 1))


def _linear() -> Pipeline:
    """Model whose scores no processor's rounding decides: Newton's method ends at the minimum, in float64.

    By conjugate gradients: equations for 784 pixels are not written out for a few hundred images.
    """
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, solver="newton-cg", tol=1e-8))


def shortcut_table(table: pd.DataFrame, images: np.ndarray, root: Path) -> pd.DataFrame:
    """Measure what linear models reach that see little or nothing of the lungs.

    Args:
        table: Catalog; ``official_split`` tells the published test set, if there is one.
        images: Its pixels at 224 px, ``uint8`` (N, 224, 224), in the same order.
        root: Folder to which the paths are relative.

    Returns:
        One row a model: ``sees``, ``lungs`` (whether it sees something of
        them), ``features`` (how many), ``auroc`` with ``low`` and ``high``
        (cross-validated by patient group on all but the published test set,
        95 % bootstrap interval over groups), ``test_auroc`` (trained on all
        of these, on the published test set; NaN without one), and ``roc``:
        sensitivities at 1 − specificity = 0, 0.02, …, 1, cross-validated.
    """
    labels, groups = table["label"].to_numpy(), table["group_conservative"].to_numpy()
    test = (table["official_split"] == "test").to_numpy()
    looks = {name: (make(images), lungs) for name, (make, lungs) in LOOKS.items()}
    facts = file_facts(table)
    if np.ptp(facts, axis=0)[:2].any():  # sizes differ: the files are originals
        looks = {"size and aspect of the files": (facts[:, :4], False)} | looks
    looks = {"bits per pixel of the files": (facts[:, 4:], False)} | looks
    tables = quantisation(root, list(table["path"]))
    if tables is not None and np.ptp(tables, axis=0).any():
        looks = {"JPEG quantisation tables": (tables, False)} | looks
    rows = []
    for name, (features, lungs) in looks.items():
        scores = cross_validated(features[~test], labels[~test], groups[~test])
        value, low, high = _interval(labels[~test], groups[~test], scores)
        curve = np.interp(np.linspace(0, 1, 51), *roc_curve(labels[~test], scores)[:2]).round(4).tolist()
        other = np.nan
        if test.any():
            features = features.astype(np.float64)
            model = _linear().fit(features[~test], labels[~test])
            other = roc_auc_score(labels[test], model.predict_proba(features[test])[:, 1])
        rows.append((name, lungs, features.shape[1], value, low, high, other, curve))
    return pd.DataFrame(
        rows, columns=["sees", "lungs", "features", "auroc", "low", "high", "test_auroc", "roc"]
    )


def _interval(labels: np.ndarray, groups: np.ndarray, scores: np.ndarray) -> tuple[float, float, float]:
    drawn = np.concatenate(
        [
            weighted_ranking(labels, scores, weights)[0]
            for weights in bootstrap_weights(labels, groups, _DRAWS)
        ]
    )
    return roc_auc_score(labels, scores), *np.nanpercentile(drawn, [2.5, 97.5])


def test_set_shift(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """Ask whether the published test set looks like another population than the rest, class by class.

    A linear model on 28 × 28 thumbnails tells test from training images of
    the same class; 0.5 means that it cannot.

    Returns:
        One row a label: ``label``, ``auroc``, ``low``, ``high``; none for a
        class with fewer than FOLDS patient groups in test or outside it.
    """
    test = (table["official_split"] == "test").to_numpy().astype(int)
    features, rows = thumbnail(images, 28).reshape(len(images), -1), []
    for label in (0, 1):
        mine = (table["label"] == label).to_numpy()
        groups = table["group_conservative"].to_numpy()[mine]
        if fewest_groups(test[mine], groups) >= FOLDS:
            rows.append(
                (label, *_interval(test[mine], groups, cross_validated(features[mine], test[mine], groups)))
            )
    return pd.DataFrame(rows, columns=["label", "auroc", "low", "high"])
