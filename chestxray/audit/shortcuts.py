"""Shortcuts: how well linear models predict the label without the lungs."""

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

SIDE = 224  # width and height of the images of which features are computed
FOLDS = 5


def thumbnail(images: np.ndarray, side: int) -> np.ndarray:
    """Mean grey values of side × side fields, ``float32`` (N, side, side)."""
    small = [cv2.resize(np.squeeze(i), (side, side), interpolation=cv2.INTER_AREA) for i in images]
    return np.stack(small).astype(np.float32)


def intensity(images: np.ndarray) -> np.ndarray:
    """Mean and standard deviation of each image, (N, 2)."""
    return np.stack([images.mean(axis=(1, 2)), images.std(axis=(1, 2))], axis=1)


def histogram(images: np.ndarray) -> np.ndarray:
    """Share of the pixels in 32 ranges of grey, (N, 32)."""
    return np.stack([np.bincount(image.ravel() >> 3, minlength=32) for image in images]) / images[0].size


def frame(images: np.ndarray, width: int) -> np.ndarray:
    """The outer ``width`` fields on each side of a 28 × 28 thumbnail, (N, F)."""
    outside = np.ones((28, 28), bool)
    outside[width:-width, width:-width] = False
    return thumbnail(images, 28)[:, outside]


def high_frequencies(images: np.ndarray) -> np.ndarray:
    """Mean logarithm of the power in rings of 4 cycles per image, from a quarter of the side to the corner.

    Gives (N, 26) for images of 224 pixels.
    """
    # In float32 the rounding error of the mean grey is as large as the power of high frequencies.
    side = images.shape[1]
    radius = np.hypot(*(np.mgrid[:side, :side] - side // 2))
    high = radius >= side // 4
    ring = ((radius[high] - side // 4) // 4).astype(int)
    powers = (np.abs(fftshift(fft2(image.astype(np.float64)))) ** 2 for image in images)
    return np.array([np.bincount(ring, np.log(power[high] + 1)) / np.bincount(ring) for power in powers])


def file_facts(table: pd.DataFrame) -> np.ndarray:
    """Width, height, aspect, pixels and bits per pixel, as logarithms, (N, 5)."""
    width, height, size = (table[name].to_numpy(float) for name in ("width", "height", "bytes"))
    pixels = width * height
    return np.log(np.stack([width, height, width / height, pixels, 8 * size / pixels], axis=1))


def quantisation(root: Path, paths: list[str]) -> np.ndarray | None:
    """First quantisation table of each JPEG file, (N, 64); None if a file is not JPEG."""
    tables = []
    for path in paths:
        data = (root / path).read_bytes()
        place = data.find(b"\xff\xdb")
        if not data.startswith(b"\xff\xd8") or place < 0 or data[place + 4] >> 4:  # 16-bit tables
            return None
        tables.append(np.frombuffer(data, np.uint8, 64, place + 5).astype(float))
    return np.array(tables)


def framing(images: np.ndarray) -> np.ndarray:
    """Lung box of each image, (N, 4): how it is framed. Without a plausible box the mean of the others."""
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
"""Features of the pixels for the linear models, and whether they show something of the lungs."""


def _linear() -> Pipeline:
    """Logistic regression (L2, C = 0.1) on standardised features."""
    # A fit that stops before the minimum depends on the rounding of the processor.
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.1, solver="newton-cg", tol=1e-8))


def cross_validated(features: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Score each image, (N,), by a linear model that was trained on other patients.

    Features are (N, F), labels 0 or 1, groups (N,). ValueError: A class has fewer than FOLDS patient groups.
    """
    if (fewest := fewest_groups(labels, groups)) < FOLDS:
        message = f"at least {FOLDS} patient groups of each class are needed"
        raise ValueError(f"{message}. Received: groups={fewest}")
    folds = StratifiedGroupKFold(FOLDS, shuffle=True, random_state=0)
    how = {"groups": groups, "cv": folds, "method": "predict_proba"}
    return cross_val_predict(_linear(), features.astype(np.float64), labels, **how)[:, 1]


def fewest_groups(labels: np.ndarray, groups: np.ndarray) -> int:
    """Number of patient groups of the class that has fewer."""
    return min(len(np.unique(groups[labels == label])) for label in (0, 1))


def shortcut_table(table: pd.DataFrame, images: np.ndarray, root: Path) -> pd.DataFrame:
    """Evaluate linear models that see little or nothing of the lungs.

    ``table`` is a catalog, ``images`` its pixels, ``uint8`` (N, 224, 224); paths are relative to ``root``.
    One row a model: ``sees``, ``lungs`` (whether it sees something of them), ``features`` (how many);
    ``auroc, low, high``, cross-validated by patient group without the published test set; ``test_auroc`` on
    this set, trained on all others (NaN without one); ``lungs_only``, the AUROC when the lungs fill every
    image (NaN for what is no pixel; the sharpness of cut-out lungs still tells how large the box was);
    ``roc``, sensitivities at 1 − specificity = 0, 0.02, …
    """
    labels, groups = table["label"].to_numpy(), table["group_conservative"].to_numpy()
    test = (table["official_split"] == "test").to_numpy()
    facts, jpeg = file_facts(table), quantisation(root, list(table["path"]))
    models = {}
    if jpeg is not None and np.ptp(jpeg, axis=0).any():
        models["JPEG quantisation tables"] = jpeg, False
    models["bits per pixel of the files"] = facts[:, 4:], False
    if np.ptp(facts, axis=0)[:2].any():  # sizes differ: the files are originals
        models["size and aspect of the files"] = facts[:, :4], False
    models |= {name: (compute(images), lungs) for name, (compute, lungs) in FEATURES.items()}
    smaller = ImageSettings(SIDE // 2, "lung_box")  # enlarged pixels would tell how large the box was
    lungs_alone = np.stack([fit(image, smaller) for image in images])
    rows = []
    for name, (features, lungs) in models.items():
        scores = cross_validated(features[~test], labels[~test], groups[~test])
        row = {"sees": name, "lungs": lungs, "features": features.shape[1]}
        row |= _interval(labels[~test], groups[~test], scores) | {"test_auroc": np.nan, "lungs_only": np.nan}
        if name in FEATURES:
            known = FEATURES[name][0](lungs_alone[~test])
            lungs_only = cross_validated(known, labels[~test], groups[~test])
            row["lungs_only"] = roc_auc_score(labels[~test], lungs_only)
        if test.any():
            features = features.astype(np.float64)
            model = _linear().fit(features[~test], labels[~test])
            row["test_auroc"] = roc_auc_score(labels[test], model.predict_proba(features[test])[:, 1])
        curve = np.interp(np.linspace(0, 1, 51), *roc_curve(labels[~test], scores)[:2])
        rows.append(row | {"roc": curve.round(4).tolist()})
    return pd.DataFrame(rows)


def _interval(labels: np.ndarray, groups: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """AUROC with the bounds of its 95 % bootstrap interval over patient groups."""
    interval = evaluate(labels, scores, groups, {}, draws=500)[0]["auroc"]
    return {"auroc": roc_auc_score(labels, scores), "low": interval["low"], "high": interval["high"]}


def test_set_shift(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """Test for each class whether the published test set is another population than the other images.

    One row a ``label`` with FOLDS patient groups in each: ``auroc, low, high`` of 28 × 28 thumbnails, and
    ``framing``, the AUROC of the lung box alone.
    """
    pixels, boxes = thumbnail(images, 28).reshape(len(images), -1), framing(images)
    rows = []
    for label in (0, 1):
        chosen = (table["label"] == label).to_numpy()
        groups = table["group_conservative"].to_numpy()[chosen]
        test = (table["official_split"] == "test").to_numpy()[chosen].astype(int)
        if fewest_groups(test, groups) >= FOLDS:
            row = {"label": label} | _interval(test, groups, cross_validated(pixels[chosen], test, groups))
            rows.append(row | {"framing": roc_auc_score(test, cross_validated(boxes[chosen], test, groups))})
    return pd.DataFrame(rows)


def framing_table(table: pd.DataFrame, images: np.ndarray) -> pd.DataFrame:
    """Mean lung box of each class and published subset, in fractions of the image's width and height.

    One row a class and subset: ``official_split, label, images, left, top, right, bottom``, ``aspect`` (width
    / height of the box in the squashed image) and ``none``, the share of images without a plausible box.
    """
    boxes = pd.DataFrame(lung_boxes(images), columns=["left", "top", "right", "bottom"], index=table.index)
    boxes["aspect"] = (boxes["right"] - boxes["left"]) / (boxes["bottom"] - boxes["top"])
    boxes["none"] = boxes["left"].isna()
    grouped = boxes.groupby([table["official_split"].replace("", "all"), table["label"]])
    means = grouped.mean()
    means.insert(0, "images", grouped.size())
    return means.reset_index()
