"""Shortcuts: AUROC of linear models that predict the label without the lungs."""

from collections.abc import Callable
from functools import partial
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

from chestxray.data.images import ImageSettings, fit
from chestxray.data.lungs import lung_boxes
from chestxray.evaluation.metrics import evaluate
from chestxray.schema import check

SIDE = 224  # width and height of the images of which features are computed
FOLDS = 5


def thumbnail(images: np.ndarray, side: int) -> np.ndarray:
    """Average images over side × side fields, ``float32`` (N, side, side)."""
    small = [cv2.resize(np.squeeze(i), (side, side), interpolation=cv2.INTER_AREA) for i in images]
    return np.stack(small).astype(np.float32)


def intensity(images: np.ndarray) -> np.ndarray:
    """Compute mean and standard deviation of each image, (N, 2)."""
    return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)


def histogram(images: np.ndarray) -> np.ndarray:
    """Compute the fraction of the pixels in 32 ranges of grey, (N, 32)."""
    return np.stack([np.bincount(image.ravel() >> 3, minlength=32) for image in images]) / images[0].size


def frame(images: np.ndarray, width: int) -> np.ndarray:
    """Take the outer ``width`` fields on each side of a 28 × 28 thumbnail, (N, F)."""
    outside = np.ones((28, 28), bool)
    outside[width:-width, width:-width] = False
    return thumbnail(images, 28)[:, outside]


def high_frequencies(images: np.ndarray) -> np.ndarray:
    """Compute mean log power in rings of 4 cycles, from a quarter of the side on; (N, 26) for 224 pixels."""
    # In float32 the rounding error of the mean grey is as large as the power of high frequencies.
    side = images.shape[1]
    radius = np.hypot(*(np.mgrid[:side, :side] - side // 2))
    high = radius >= side // 4
    ring = ((radius[high] - side // 4) // 4).astype(int)
    powers = (np.abs(fftshift(fft2(image.astype(np.float64)))) ** 2 for image in images)
    return np.array([np.bincount(ring, np.log(power[high] + 1)) / np.bincount(ring) for power in powers])


def file_facts(table: pd.DataFrame) -> np.ndarray:
    """Compute logarithms of width, height, aspect ratio, pixels and bits per pixel, (N, 5)."""
    width, height, size = (table[name].to_numpy(float) for name in ("width", "height", "bytes"))
    pixels = width * height
    return np.log(np.stack([width, height, width / height, pixels, 8 * size / pixels], axis=1))


def quantisation(root: Path, paths: list[str]) -> np.ndarray | None:
    """Read the first quantisation table of each JPEG file, (N, 64); None if a file is not JPEG."""
    tables = []
    for path in paths:
        data = (root / path).read_bytes()
        start = data.find(b"\xff\xdb")
        if not data.startswith(b"\xff\xd8") or start < 0 or data[start + 4] >> 4:  # 16-bit tables
            return None
        tables.append(np.frombuffer(data, np.uint8, 64, start + 5).astype(float))
    return np.array(tables)


def framing(images: np.ndarray) -> np.ndarray:
    """Estimate the lung box of each image, (N, 4); if it is implausible, take the mean of the others."""
    boxes = pd.DataFrame(lung_boxes(images))
    return boxes.fillna(boxes.mean()).fillna(0.0).to_numpy()


FEATURES: dict[str, tuple[Callable[[np.ndarray], np.ndarray], bool]] = {
    "lung box": (framing, False),
    "mean and spread of grey": (intensity, True),
    "histogram of grey": (histogram, True),
    "border of 8 pixels": (partial(frame, width=1), False),
    "28 × 28, centre blacked out": (partial(frame, width=4), False),
    "high frequencies": (high_frequencies, True),
    "8 × 8 thumbnail": (lambda images: thumbnail(images, 8).reshape(len(images), -1), True),
    "28 × 28 thumbnail": (lambda images: thumbnail(images, 28).reshape(len(images), -1), True),
}
"""Features of the pixels for the linear models, and whether they contain information on the lungs."""


def _linear() -> Pipeline:
    """Make a logistic regression (L2, C = 0.1) on standardised features."""
    # The low tolerance makes the result independent of the processor's rounding.
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, solver="newton-cg", tol=1e-8))


def cross_validated(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Predict each image, (N,), from features, (N, F), with a linear model of other patients."""
    number = fewest_groups(labels, groups)
    check(number >= FOLDS, f"each class must have at least {FOLDS} patient groups", groups=number)
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    options = {"groups": groups, "cv": folds, "method": "predict_proba"}
    return cross_val_predict(_linear(), features.astype(np.float64), labels, **options)[:, 1]


def fewest_groups(labels: np.ndarray, groups: np.ndarray) -> int:
    """Count the patient groups of the class that has fewer groups."""
    return min(len(np.unique(groups[labels == label])) for label in (0, 1))


def shortcut_table(table: pd.DataFrame, images: np.ndarray, root: Path) -> pd.DataFrame:
    """Evaluate linear models whose features contain little or no information on the lungs.

    ``table`` is a catalog with the pixels ``images``, ``uint8`` (N, 224, 224); paths start at ``root``.
    One row per model: ``sees`` (features), ``lungs`` (whether they have information on the lungs),
    ``features`` (their number); ``auroc, low, high``, cross-validated by patient group without the published
    test set; ``test_auroc`` on this set, trained on all other images; ``lungs_only``, AUROC if the lungs fill
    each image (NaN if the features are not pixels); ``roc``, sensitivities at 1 − specificity = 0, 0.02, …
    """
    labels, groups = table["label"].to_numpy(), table["group_conservative"].to_numpy()
    test = (table["official_split"] == "test").to_numpy()
    facts, jpeg = file_facts(table), quantisation(root, list(table["path"]))
    models = {}
    if jpeg is not None and np.ptp(jpeg, axis=0).any():
        models["JPEG quantisation tables"] = jpeg, False
    models["bits per pixel of the files"] = facts[:, 4:], False
    if np.ptp(facts, axis=0)[:2].any():  # if all sizes are equal, the files were resized
        models["size and aspect of the files"] = facts[:, :4], False
    models |= {name: (compute(images), lungs) for name, (compute, lungs) in FEATURES.items()}
    smaller = ImageSettings(SIDE // 2, "lung_box")  # enlarged pixels would show the size of the box
    lungs_alone = np.stack([fit(image, smaller) for image in images])
    rows = []
    for name, (features, lungs) in models.items():
        scores = cross_validated(features[~test], labels[~test], groups[~test])
        row = {"sees": name, "lungs": lungs, "features": features.shape[1]}
        row |= _interval(labels[~test], groups[~test], scores) | {"test_auroc": np.nan, "lungs_only": np.nan}
        if name in FEATURES:
            lung_features = FEATURES[name][0](lungs_alone[~test])
            lung_scores = cross_validated(lung_features, labels[~test], groups[~test])
            row["lungs_only"] = roc_auc_score(labels[~test], lung_scores)
        if test.any():
            features = features.astype(np.float64)
            model = _linear().fit(features[~test], labels[~test])
            row["test_auroc"] = roc_auc_score(labels[test], model.predict_proba(features[test])[:, 1])
        curve = np.interp(np.linspace(0, 1, 51), *roc_curve(labels[~test], scores)[:2])
        rows.append(row | {"roc": curve.round(4).tolist()})
    return pd.DataFrame(rows)


def _interval(labels: np.ndarray, groups: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Compute the AUROC with its 95 % bootstrap interval over patient groups."""
    interval = evaluate(labels, scores, groups, {}, draws=500)[0]["auroc"]
    return dict(zip(("auroc", "low", "high"), interval.values()))


def test_set_shift(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """Test for each class whether the published test set is another population than the other images.

    One row per ``label``: ``auroc, low, high`` of 28 × 28 thumbnails; ``framing``, that of the lung box.
    """
    pixels, boxes = thumbnail(images, 28).reshape(len(images), -1), framing(images)
    rows = []
    for label in (0, 1):
        rows_of_class = (table["label"] == label).to_numpy()
        groups = table["group_conservative"].to_numpy()[rows_of_class]
        test = (table["official_split"] == "test").to_numpy()[rows_of_class].astype(int)
        if fewest_groups(test, groups) >= FOLDS:
            scores, box_scores = (cross_validated(f[rows_of_class], test, groups) for f in (pixels, boxes))
            row = {"label": label} | _interval(test, groups, scores)
            rows.append(row | {"framing": roc_auc_score(test, box_scores)})
    return pd.DataFrame(rows)


def framing_table(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """Compute the mean lung box of each class and published subset, in fractions of width and height.

    One row per class and subset: ``official_split, label, images, left, top, right, bottom``, ``aspect``
    (width / height in the stretched image) and ``none``, the fraction without a plausible box.
    """
    boxes = pd.DataFrame(lung_boxes(images), columns=["left", "top", "right", "bottom"], index=table.index)
    boxes["aspect"] = (boxes["right"] - boxes["left"]) / (boxes["bottom"] - boxes["top"])
    boxes["none"] = boxes["left"].isna()
    grouped = boxes.groupby([table["official_split"].replace("", "all"), table["label"]])
    means = grouped.mean()
    means.insert(0, "images", grouped.size())
    return means.reset_index()
