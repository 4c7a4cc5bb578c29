"""Saved classifiers: a network with its card and its out-of-distribution check, in one folder.

The network is ``model.keras`` or an exported file, which runs without TensorFlow. For the other files see
contract 7 in ``CONTRIBUTING.md``.
"""

import functools
import hashlib
import io
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestxray.data.images import ImageSettings, as_batch, fit
from chestxray.deployment.card import model_card, read_card, render
from chestxray.deployment.outliers import OutlierCheck, fit_outlier_check
from chestxray.deployment.seen import SeenImages
from chestxray.evaluation.calibration import apply_platt, log_odds
from chestxray.evaluation.drift import describe_reference
from chestxray.files import whole_file, write_json
from chestxray.parallel import native_messages_to, without_native_messages
from chestxray.schema import check, mistake

if TYPE_CHECKING:
    import keras
    import pandas as pd
    import tensorflow as tf

    from chestxray.data.dataset import XrayData

LIMITS = (
    "Research software, not a medical device: not for diagnosis.",
    "Trained on children of one to five years from one hospital. Published models trained on this data "
    "fell from AUROC 0.95 to 0.54 on children in the United States (Xin 2021) and from 0.93 to 0.65 in "
    "Nigeria (Togunwa 2025).",
    "In this data much of the label can be predicted without looking at the lungs: a high score does not "
    "prove that the model recognises pneumonia.",
)
"""Limits of a model of the children's data set. The first one applies to every model."""

SYNTHETIC_LIMITS = (LIMITS[0], "Trained on synthetic images: for tests of the software, not for patients.")

POPULATIONS = {"kermany": {"ages": [1, 6], "views": ["AP"]}}
"""Populations by name: range of ages in years, without the second, and views as named in DICOM files."""

# Names of exported files, by format.
MODEL_FILES = {"litert": "model.tflite", "onnx": "model.onnx", "web": "model.onnx"}
_LOGIT_TOLERANCE = 0.01  # of the self-test
_MOST_FULL_PRECISION = 5_000_000  # parameters; larger networks are stored in half precision


class Scores(NamedTuple):
    """Output of a classifier for N images."""

    logits: NDArray  # raw log-odds of the positive class, float64 (N,)
    distances: NDArray  # Mahalanobis distances from the training images, (N,)
    maps: NDArray | None  # HiResCAM, (N, h, w), 0 or more, in units of the logit; None if not computed


@dataclass(frozen=True)
class Classifier:
    """A loaded model and the contents of its folder.

    ``model`` maps grey images in 0–255, (N, size, size, 1), to logits, (N, 1), or (N, 3) for three classes.
    """

    model: "keras.Model | Runtime"
    card: dict[str, Any]
    outlier_check: OutlierCheck
    seen: SeenImages | None = None  # None without the file seen.npz

    @property
    def image_settings(self) -> ImageSettings:
        return ImageSettings(**self.card["image"])

    def logits(self, images: NDArray) -> NDArray:
        """Return the raw log-odds of the positive class, ``float64`` (N,); see :meth:`score`."""
        return self.score(images).logits

    def score(self, images: NDArray, with_maps: bool = False) -> Scores:
        """Score preprocessed grey images in 0–255, (N, size, size) or (N, size, size, 1), N > 0.

        ``with_maps`` adds heatmaps; some exported models have none. Raises ValueError for no image, another
        size or a wrong range of values.
        """
        batch, size = as_batch(images), self.card["image"]["size"]
        fitting = len(batch) and batch.shape[1:3] == (size, size)
        check(fitting, f"images need the model's size, {size}", shape=np.shape(images))
        if isinstance(self.model, Runtime):
            outputs = self.model.predict(batch)
            maps = np.maximum(outputs["map"], 0) if with_maps and "map" in outputs else None
            return Scores(log_odds(outputs["logit"]), outputs["distance"], maps)
        batches = (batch[first : first + 32].astype(np.float32) for first in range(0, len(batch), 32))
        logits, features = map(np.concatenate, zip(*map(self._graph, batches)))
        maps = None
        if with_maps:
            from chestxray.gradcam import gradcam

            # Grad-CAM is the same at the last layer, and worse before (results/explain-custom_cnn-*.json).
            shapes, peaks = gradcam(self.model, batch.astype(np.float32), method="hirescam")
            maps = shapes * (peaks * shapes[0].size)[:, np.newaxis, np.newaxis]
        return Scores(log_odds(logits), self.outlier_check.distances(features), maps)

    def predict(
        self, images: "str | Path | NDArray | Sequence[str | Path]", threshold_rule: str = "youden"
    ) -> "dict[str, Any] | list[dict[str, Any]]":
        """Decode and preprocess images as in training, and classify them.

        Args:
            images: One image: a file, or grey pixels of any size, ``uint8`` (H, W). Several images: a folder,
                a list of files, or pixels (N, H, W).
            threshold_rule: Rule of the stored threshold that decides.

        Returns a row, or a list of rows, of :func:`chestxray.deployment.predict.predict_files`. Raises
        ValueError if the rule has no threshold, or the pixels are not grey ``uint8`` images.
        """
        from chestxray.deployment.predict import judge, predict_files

        if isinstance(images, np.ndarray):
            valid = images.dtype == np.uint8 and images.ndim in (2, 3) and images.size
            message = "pixels must be grey, uint8 (H, W) or (N, H, W)"
            check(valid, message, dtype=images.dtype, shape=images.shape)
            rows = judge(self, list(images if images.ndim == 3 else images[np.newaxis]), threshold_rule)
            return rows if images.ndim == 3 else rows[0]
        if isinstance(images, (str, Path)) and not Path(images).is_dir():
            return judge(self, [Path(images)], threshold_rule)[0]
        return list(predict_files(self, images, threshold_rule))

    @functools.cached_property
    def _graph(self) -> "Callable[[NDArray], list[tf.Tensor]]":
        """Compiled graph for batches of any size; ``Model.predict`` is slower for a few images."""
        import tensorflow as tf

        size = self.card["image"]["size"]
        scorer, images = with_features(self.model), tf.TensorSpec((None, size, size, 1), tf.float32)
        return tf.function(functools.partial(scorer, training=False), input_signature=[images])

    def probabilities(self, logits: NDArray) -> NDArray:
        """Return calibrated probabilities of the positive class, (N,), from raw logits, (N,)."""
        return apply_platt(logits, **self.card["calibration"])

    def threshold(self, threshold_rule: str) -> float:
        """Return the threshold of a rule on the calibrated probability; ValueError if there is none."""
        usable = {name: value for name, value in self.card["thresholds"].items() if value is not None}
        reason = self.card["threshold_reasons"].get(threshold_rule, "no such rule")
        message = f"no threshold ({reason}); usable rules: {sorted(usable)}"
        check(threshold_rule in usable, message, threshold_rule=threshold_rule)
        return usable[threshold_rule]


def self_test_pattern() -> NDArray:
    """Draw the image of the self-test: rings on a gradient, ``uint8`` (300, 400)."""
    y, x = np.mgrid[0:300, 0:400].astype(np.float64)
    rings = np.cos(np.hypot(x - 150, y - 120) / 6.0)
    return np.clip(40 + 0.35 * x + 45 * rings, 0, 255).astype(np.uint8)


def run_self_test(classifier: Classifier) -> dict[str, Any]:
    """Return the hash of the pattern's preprocessed pixels, and its logit."""
    pixels = fit(self_test_pattern(), classifier.image_settings)
    sha256 = hashlib.sha256(pixels.tobytes()).hexdigest()
    return {"pixels_sha256": sha256, "logit": float(classifier.logits(pixels)[0])}


def load_model(path: str | Path) -> "keras.Model":
    """Load a ``.keras`` file in safe mode, not compiled; ValueError if it is damaged or contains code."""
    with without_native_messages():
        import keras

    with mistake("not a model that can be loaded safely", path=str(path)):
        return keras.models.load_model(path, safe_mode=True, compile=False)


def save_model(model: "keras.Model", path: str | Path) -> None:
    """Save a network for inference in float32, whatever precision it was trained in.

    Weights of networks with over 5 million parameters are stored in half precision, unless they exceed its
    range. Keras loads them as float32.
    """
    import h5py

    from chestxray.models.builders import as_float32

    as_float32(model).save(path)
    if model.count_params() <= _MOST_FULL_PRECISION:
        return
    with zipfile.ZipFile(path) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    stored = io.BytesIO()
    with h5py.File(io.BytesIO(parts["model.weights.h5"])) as full, h5py.File(stored, "w") as half:

        def copy(name: str, item: "h5py.Dataset | h5py.Group") -> None:
            if isinstance(item, h5py.Group):
                target = half.require_group(name)
            else:
                values = item[()]
                fits = np.abs(values).max(initial=0) <= np.finfo(np.float16).max
                target = half.create_dataset(name, data=values.astype(np.float16) if fits else values)
            target.attrs.update(item.attrs)

        full.visititems(copy)
    parts["model.weights.h5"] = stored.getvalue()
    with whole_file(path) as partial, zipfile.ZipFile(partial, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)


def with_features(model: "keras.Model") -> "keras.Model":
    """Add a second output to a network: its last feature maps, averaged over the image, (N, F)."""
    import keras

    pooled = keras.ops.mean(feature_maps(model), axis=(1, 2))
    return keras.Model(model.inputs[0], [model.outputs[0], pooled])


def feature_maps(model: "keras.Model") -> "keras.KerasTensor":
    """Return the last feature maps of a network, (N, h, w, F); ValueError if they lie in a nested model."""
    import keras

    for layer in reversed(model.layers):
        if isinstance(layer, keras.Model):
            break
        if len(getattr(layer.input, "shape", ())) == 4:
            return layer.input
    message = "the last feature maps lie inside a nested model: it must end in them, before the pooling"
    raise ValueError(f"{message}. Received: model with layers {[layer.name for layer in model.layers]}")


def write_card(folder: Path, classifier: Classifier) -> None:
    """Run the self-test, and write all files of a classifier except the model itself."""
    card = classifier.card | {"self_test": run_self_test(classifier)}
    write_json(folder / "card.json", card)
    classifier.outlier_check.save(folder / "refusal.npz")
    if classifier.seen:
        classifier.seen.save(folder)
    (folder / "README.md").write_text(model_card(card), encoding="utf-8")
    (folder / "NOTICE").write_text(render("NOTICE.j2", **card), encoding="utf-8")


def load_classifier(folder: str | Path, threads: int = 1) -> Classifier:
    """Load a classifier from its folder and run its self-test.

    ``threads`` is the number of cores that an exported model uses for one image; Keras uses all cores.

    Raises FileNotFoundError for a missing file, ValueError if a file cannot be used or the self-test gives
    another logit, and ModuleNotFoundError if the runtime of the model is not installed.
    """
    folder = Path(folder)
    card = read_card(folder)
    exported, file, sha256 = "export" in card, "model.keras", None
    if exported:
        with mistake("card.json names no exported file", folder=str(folder)):
            file, sha256 = MODEL_FILES[card["export"]["format"]], str(card["export"]["sha256"])
    for name in (file, "refusal.npz"):
        message = f"{name} is missing from the model folder"
        check((folder / name).is_file(), message, FileNotFoundError, folder=str(folder))
    model = Runtime(folder / file, sha256, threads) if exported else load_model(folder / file)
    outlier_check = OutlierCheck.load(folder / "refusal.npz")
    classifier = Classifier(model, card, outlier_check, SeenImages.load(folder))
    with mistake("card.json does not fit the model", folder=str(folder)):
        result = run_self_test(classifier)
        pixels, logit = card["self_test"]["pixels_sha256"], float(card["self_test"]["logit"])
    equal = abs(result["logit"] - logit) <= _LOGIT_TOLERANCE * max(1.0, abs(logit))  # NaN is not
    message = f"self-test failed: logit {result['logit']:.4f} instead of {logit:.4f}"
    check(equal, message, folder=str(folder))
    if result["pixels_sha256"] != pixels:
        text = "OpenCV resizes slightly differently here than in training; the logit of the self-test agrees"
        warnings.warn(text, stacklevel=2)
    return classifier


def learn_reference(
    data: "XrayData", train: "pd.DataFrame", train_features: NDArray, val: Sequence[NDArray]
) -> tuple[OutlierCheck, dict[str, Any]]:
    """Fit the out-of-distribution check, and the reference of :func:`chestxray.evaluation.drift.drift_table`.

    ``train_features``, (T, F), are those of the rows ``train`` of the catalog; ``val`` are logits and
    features of the validation images; all from :func:`with_features`.
    """
    train_images, val_images = (images[..., 0] for images in (data.store.images(train), data.images("val")))
    outlier_check = fit_outlier_check(train_images, train_features, val_images, val[1])
    measured = outlier_check.measure(val_images, outlier_check.distances(val[1]))
    return outlier_check, describe_reference(measured | {"logit": log_odds(val[0])})


class Runtime:
    """An exported model, run without TensorFlow.

    ``path`` is one of :data:`MODEL_FILES`, ``sha256`` its expected hash (None: not checked), ``threads`` the
    number of cores for one image. Raises ValueError if the file has another hash or cannot be loaded, and
    ModuleNotFoundError if the runtime of the format is not installed.
    """

    def __init__(self, path: str | Path, sha256: str | None = None, threads: int = 1):
        content = Path(path).read_bytes()
        expected = sha256 in (None, hashlib.sha256(content).hexdigest())
        check(expected, "the file is not the one its card describes", path=str(path))
        load = _load_litert if Path(path).suffix == ".tflite" else _load_onnx
        with mistake("cannot be loaded", path=str(path)):
            self._run = load(content, threads)

    def predict(self, images: NDArray) -> dict[str, NDArray]:
        """Run the model, image by image, on grey pixels in 0–255, (N, size, size, 1), N > 0.

        Returns the outputs of :func:`chestxray.deployment.export.deployable`, ``distance`` with shape (N,).
        """
        outputs = [self._run(np.asarray(image, np.float32)[np.newaxis]) for image in images]
        columns = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        return columns | {"distance": columns["distance"][:, 0]}


def _load_litert(content: bytes, threads: int) -> Callable[[NDArray], dict[str, NDArray]]:
    from ai_edge_litert.interpreter import Interpreter

    with native_messages_to(os.devnull):  # it logs which kernels it uses
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    runner, lock = interpreter.get_signature_runner(), threading.Lock()

    def run(image: NDArray) -> dict[str, NDArray]:
        with lock:  # an interpreter has one set of tensors
            return runner(image=image)

    return run


def _load_onnx(content: bytes, threads: int) -> Callable[[NDArray], dict[str, NDArray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image})))
