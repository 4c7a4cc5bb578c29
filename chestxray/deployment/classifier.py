"""A classifier on disk: a model file, ``card.json``, ``refusal.npz`` and ``README.md`` in one folder.

The model file is ``model.keras``, or an exported one that runs without
TensorFlow (:mod:`chestxray.deployment.runtime`).

The card holds everything that prediction needs besides the weights: how files
become pixels, the calibration, the thresholds. It also holds a self-test: a
pattern drawn by code goes the whole way from image to logit whenever the
bundle is loaded, so that another library version that computes something else
is noticed before a patient's image meets it. ``refusal.npz`` tells which
images are no films of the trained kind.
"""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from chestxray.data.images import ImageSettings, as_batch, fit
from chestxray.deployment.card import model_card, read_card
from chestxray.deployment.outliers import Refusal, fit_refusal
from chestxray.deployment.runtime import MODEL_FILES, Runtime
from chestxray.evaluation.calibration import apply_platt, log_odds
from chestxray.evaluation.drift import describe_reference
from chestxray.files import write_json

if TYPE_CHECKING:
    import keras
    import numpy as np
    import tensorflow as tf

    from chestxray.data.dataset import XrayData


_LOGIT_TOLERANCE = 0.01

LIMITS = (
    "Research software, not a medical device: not for diagnosis.",
    "Trained on children of one to five years from one hospital. Published models trained on this data "
    "fell from AUROC 0.95 to 0.54 on children in the United States (Xin 2021) and from 0.93 to 0.65 in "
    "Nigeria (Togunwa 2025).",
    "In this data much of the label can be predicted without looking at the lungs; a high score is no "
    "proof that the model sees pneumonia.",
)
"""Of a model trained on the children's data set; the first holds for every model."""

POPULATION = {"ages": [1, 6], "views": ["AP"]}
"""Of that data set: years, the second not included, and views as DICOM names them."""

SYNTHETIC_LIMITS = (LIMITS[0], "Trained on synthetic pictures: it knows nothing about patients.")


class Scores(NamedTuple):
    """What a classifier says of N images.

    Attributes:
        logits: Raw log-odds of the positive class, (N,).
        distances: From the training images, for the refusal, (N,).
        maps: Where the score comes from, 0 or more, (N, h, w): Grad-CAM in
            such units that, for a network that ends in pooling and one dense
            layer, it is the positive part of the class activation map. None
            when nobody asked, or when an exported model cannot tell.
    """

    logits: np.ndarray
    distances: np.ndarray
    maps: np.ndarray | None


@dataclass(frozen=True)
class Classifier:
    """A loaded model with its card.

    Attributes:
        model: Takes grey (N, size, size, 1) in 0–255, gives logits (N, 1),
            or (N, 3): normal, bacteria, virus.
        card: Contents of ``card.json``.
        refusal: Contents of ``refusal.npz``.
    """

    model: keras.Model | Runtime
    card: dict[str, Any]
    refusal: Refusal

    @property
    def image_settings(self) -> ImageSettings:
        return ImageSettings(**self.card["image"])

    def logits(self, images: np.ndarray) -> np.ndarray:
        """Raw log-odds of the positive class.

        Args:
            images: Grey pixels in 0–255, (N, size, size) or (N, size, size, 1), N > 0.

        Returns:
            ``float64`` (N,).

        Raises:
            ValueError: No image, another size than the card's, or no such pixels.
        """
        if isinstance(self.model, Runtime):
            return self.score(images).logits
        return log_odds(self._run(self._batch(images))[0])

    def score(self, images: np.ndarray, with_maps: bool = False) -> Scores:
        """Log-odds, distances and, if asked for, maps of grey images, see :meth:`logits`."""
        images = self._batch(images)
        if isinstance(self.model, Runtime):
            found = self.model.predict(images)
            maps = np.maximum(found["map"], 0) if with_maps and "map" in found else None
            return Scores(log_odds(found["logit"]), found["distance"], maps)
        logits, features = self._run(images)
        maps = None
        if with_maps:
            from chestxray.gradcam import gradcam

            shapes, peaks = gradcam(self.model, images.astype(np.float32))
            maps = shapes * (peaks * shapes[0].size)[:, np.newaxis, np.newaxis]
        return Scores(log_odds(logits), self.refusal.distances(features), maps)

    def _batch(self, images: np.ndarray) -> np.ndarray:
        batch, size = as_batch(images), self.card["image"]["size"]
        if not len(batch) or batch.shape[1:3] != (size, size):
            raise ValueError(
                f"one image or more of the model's size, {size} × {size}, is needed. "
                f"Received: shape={np.shape(images)}"
            )
        return batch

    def _run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The Keras model's outputs and last features, (N, C) and (N, F), of a batch of any size."""
        batches = (images[first : first + 32].astype(np.float32) for first in range(0, len(images), 32))
        outputs, features = (
            np.concatenate(subsets) for subsets in zip(*map(self._graph, batches), strict=True)
        )
        return outputs, features

    @functools.cached_property
    def _graph(self) -> Callable[[np.ndarray], list[tf.Tensor]]:
        """One graph for all batches: Keras' predict prepares each call for longer than it computes."""
        import tensorflow as tf

        size = self.card["image"]["size"]
        return tf.function(
            functools.partial(with_features(self.model), training=False),
            input_signature=[tf.TensorSpec((None, size, size, 1), tf.float32)],
        )

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Calibrated probabilities of the positive class, (N,), from raw logits."""
        calibration = self.card["calibration"]
        return apply_platt(logits, calibration["slope"], calibration["intercept"])

    def threshold(self, threshold_rule: str) -> float:
        """Threshold on the calibrated probability, as chosen on validation data.

        Raises:
            ValueError: Unknown rule, or validation could not support it.
        """
        thresholds = self.card["thresholds"]
        if thresholds.get(threshold_rule) is None:
            usable = sorted(name for name, value in thresholds.items() if value is not None)
            reason = self.card["threshold_reasons"].get(threshold_rule, "no such rule")
            raise ValueError(
                f"no threshold ({reason}); usable rules: {usable}. Received: threshold_rule={threshold_rule!r}"
            )
        return thresholds[threshold_rule]


def self_test_pattern() -> np.ndarray:
    """Draw the self-test's picture: rings on a slope, ``uint8`` (300, 400)."""
    y, x = np.mgrid[0:300, 0:400].astype(np.float64)
    rings = np.cos(np.hypot(x - 150, y - 120) / 6.0)
    return np.clip(40 + 0.35 * x + 45 * rings, 0, 255).astype(np.uint8)


def run_self_test(classifier: Classifier) -> dict[str, Any]:
    """Take the pattern the whole way: hash of its pixels, and its logit."""
    pixels = fit(self_test_pattern(), classifier.image_settings)
    return {
        "pixels_sha256": hashlib.sha256(pixels.tobytes()).hexdigest(),
        "logit": float(classifier.logits(pixels)[0]),
    }


def load_model(path: str | Path) -> keras.Model:
    """Load a ``.keras`` file in safe mode, without compiling.

    Raises:
        ValueError: Not a Keras model file, or one that holds code.
    """
    import keras

    try:
        return keras.models.load_model(path, safe_mode=True, compile=False)
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(
            f"not a model that can be loaded safely ({_one_line(error)}). Received: path={str(path)!r}"
        ) from None


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"


def with_features(model: keras.Model) -> keras.Model:
    """The same network with a second output: its last feature maps, averaged over the image, (N, F)."""
    import keras

    pooled = keras.ops.mean(feature_maps(model), axis=(1, 2))
    return keras.Model(model.inputs[0], [model.outputs[0], pooled])


def feature_maps(model: keras.Model) -> keras.KerasTensor:
    """The last feature maps of a network, (N, h, w, F).

    Raises:
        ValueError: They lie inside a nested model.
    """
    import keras

    for layer in reversed(model.layers):
        if isinstance(layer, keras.Model):
            break
        if len(getattr(layer.input, "shape", ())) == 4:
            return layer.input
    raise ValueError(
        "the last feature maps, by which images of another kind are refused, lie inside a "
        "nested model: let it end in them, and pool outside. "
        f"Received: model with layers {[layer.name for layer in model.layers]}"
    )


def write_card(folder: Path, classifier: Classifier) -> None:
    """Run the self-test and write card, refusal and model card beside ``model.keras``."""
    card = classifier.card | {"self_test": run_self_test(classifier)}
    write_json(folder / "card.json", card)
    classifier.refusal.save(folder / "refusal.npz")
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")


def load_classifier(folder: str | Path, threads: int = 1) -> Classifier:
    """Load a bundle and check it with its own self-test.

    Args:
        folder: Folder with a model file, ``card.json`` and ``refusal.npz``.
        threads: Cores that an exported model may use for one image; Keras
            takes all.

    Raises:
        FileNotFoundError: A file is missing.
        ValueError: A file cannot be used, or the self-test gives another logit.
        ModuleNotFoundError: What runs the model is not installed.
    """
    folder = Path(folder)
    card = read_card(folder)
    _check_there(folder, "refusal.npz")
    classifier = Classifier(_load_file(folder, card, threads), card, Refusal.load(folder / "refusal.npz"))
    try:
        found = run_self_test(classifier)
        pixels, logit = card["self_test"]["pixels_sha256"], float(card["self_test"]["logit"])
    except Exception as error:  # of NumPy, OpenCV, Keras or a runtime
        raise ValueError(
            f"card.json does not fit the model ({_one_line(error)}). Received: folder={str(folder)!r}"
        ) from None
    if not abs(found["logit"] - logit) <= _LOGIT_TOLERANCE * max(1.0, abs(logit)):  # NaN fails too
        raise ValueError(
            f"self-test failed: logit {found['logit']:.4f} instead of {logit:.4f}. "
            f"Received: folder={str(folder)!r}"
        )
    if found["pixels_sha256"] != pixels:
        warnings.warn(
            "this OpenCV resizes slightly differently from the one in training; the self-test's "
            "logit still agrees",
            stacklevel=2,
        )
    return classifier


def _load_file(folder: Path, card: dict[str, Any], threads: int) -> keras.Model | Runtime:
    if "export" not in card:
        _check_there(folder, "model.keras")
        return load_model(folder / "model.keras")
    try:
        file, sha256 = MODEL_FILES[card["export"]["format"]], str(card["export"]["sha256"])
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"card.json does not say which file was exported ({_one_line(error)}). "
            f"Received: folder={str(folder)!r}"
        ) from None
    _check_there(folder, file)
    return Runtime(folder / file, sha256, threads)


def _check_there(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{name} is missing from the model folder. Received: folder={str(folder)!r}")


MOST_TRAIN = 1000
"""Training images that the refusal is fitted on; more change little and cost a forward pass each."""


def learn_reference(
    scorer: keras.Model, data: XrayData, val_logits: np.ndarray, val_features: np.ndarray
) -> tuple[Refusal, dict[str, Any]]:
    """Fit the refusal, and sum up the validation images for comparison with later ones.

    Args:
        scorer: From :func:`chestxray.deployment.classifier.with_features`.
        data: What its model was trained on.
        val_logits: What it says of the validation images: (N, 1) or (N, 3).
        val_features: (N, F).

    Returns:
        The refusal, and what :func:`chestxray.evaluation.drift.drift_table`
        compares with: what :meth:`Refusal.measure` gives, and the raw logit.
    """
    train = data.subset("train")
    train = train.sample(min(MOST_TRAIN, len(train)), random_state=data.seed)
    train_images, val_images = data.store.images(train), data.images("val")
    _, train_features = scorer.predict(train_images, batch_size=32, verbose=0)
    refusal = fit_refusal(train_images[..., 0], train_features, val_images[..., 0], val_features)
    measured = refusal.measure(val_images[..., 0], refusal.distances(val_features))
    return refusal, describe_reference(measured | {"logit": log_odds(val_logits)})
