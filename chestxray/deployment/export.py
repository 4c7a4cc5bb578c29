"""Export of a saved classifier to one file that runs without TensorFlow, and its parity gate."""

import hashlib
import os
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from chestxray.data.dataset import XrayData
from chestxray.deployment.classifier import Classifier, feature_maps, load_classifier, write_card
from chestxray.deployment.runtime import MODEL_FILES, Runtime
from chestxray.deployment.web import page_network
from chestxray.evaluation.thresholds import fit_decisions
from chestxray.files import read_json, whole_folder

LEAST_IMAGES = 200  # for the gate: all of validation and, if these are fewer, some of training
MOST_LOGIT_DIFFERENCE = 1e-3  # of a float32 export
# Share of changed refusals (a validation image often lies on the limit itself), and of changed decisions of a
# float16 export; a float32 export may change no decision.
MOST_CHANGED = 0.005
_RESTING = tuple(
    getattr(keras.layers, name)
    for name in dir(keras.layers)
    if (name.startswith("Random") and name != "RandomCrop") or name.endswith(("Dropout", "GaussianNoise"))
)  # random layers that change nothing when a network predicts


def export_model(
    folder: str | Path,
    output: str | Path,
    format: str,
    data: XrayData,
    float16: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write a saved classifier as a LiteRT or ONNX file with its card, and compare the two.

    The file takes one grey image, (1, size, size, 1) in 0–255. See :func:`deployable` for its outputs.
    Calibration and thresholds are fitted again on its own logits of the model's validation images.

    Args:
        folder: Folder with ``model.keras``.
        output: Folder of the exported classifier; an earlier one is replaced.
        format: Key of :data:`chestxray.deployment.runtime.MODEL_FILES`; for ``web`` see
            :func:`chestxray.deployment.web.export_page`.
        data: The images that the model was trained on. For a model of phantoms any phantoms will do;
            calibration and thresholds then stay.
        float16: Store weights in half precision: half the size, slightly different logits.
        force: Keep an export that fails the gate; its card lists the faults.

    Returns the comparison, see :func:`compare`. Raises ValueError for an unknown format, other data or pixels
    than the model's, an output folder that holds something else, or an export that failed the gate (nothing
    is written).
    """
    if format not in _CONVERTERS:
        raise ValueError(f"format must be one of {list(_CONVERTERS)}. Received: format={format!r}")
    original = load_classifier(folder)
    if isinstance(original.model, Runtime):
        raise ValueError(f"already exported. Received: folder={str(folder)!r}")
    card = Path(output) / "card.json"
    if os.path.lexists(output) and not (card.is_file() and "export" in read_json(card)):
        message = "the output folder exists and is no exported model; it would be replaced"
        raise ValueError(f"{message}. Received: output={str(output)!r}")
    trained_on = original.card["training_data"]
    own_split = data.split_hash == trained_on["split_hash"]
    if not own_split and not (data.synthetic and (trained_on["name"] == data.name or format == "web")):
        message = f"the model was trained on another split (hash {trained_on['split_hash']})"
        raise ValueError(f"{message}. Received: data={data.name!r}, hash {data.split_hash}")
    if data.store.settings != original.image_settings:
        message = f"the model was trained on other pixels: {original.image_settings}"
        raise ValueError(f"{message}. Received: data with {data.store.settings}")
    val = data.subset("val")
    compared = pd.concat([val, data.subset("train")])[: max(LEAST_IMAGES, len(val))]
    with whole_folder(output) as partial:
        path = partial / MODEL_FILES[format]
        network = page_network(original) if format == "web" else deployable(original)
        _CONVERTERS[format](network, path, float16)
        # The file itself computes the distance.
        check = replace(original.outlier_check, center=np.zeros(0), whitening=np.zeros((0, 0)))
        runtime = Runtime(path, threads=os.cpu_count())
        exported = Classifier(runtime, original.card, check, original.seen)
        images, labels = data.store.images(compared), compared["label"].to_numpy()
        parity, logits = compare(original, exported, images, labels)
        faults = gate(parity, float16)
        if faults and not force:
            message = f"the export was removed: {'; '.join(faults)} (--force keeps it)"
            raise ValueError(f"{message}. Received: format={format!r}, float16={float16}")
        content = path.read_bytes()
        export = {"format": format, "float16": float16, "bytes": len(content)}
        export |= {"sha256": hashlib.sha256(content).hexdigest(), "parity": parity, "faults": faults}
        refitted = fit_decisions(logits[: len(val)], val["label"]) if own_split else {}
        write_card(partial, replace(exported, card=original.card | refitted | {"export": export}))
    return parity


def deployable(classifier: Classifier) -> keras.Model:
    """Return the network with everything that prediction needs as named outputs.

    They are ``logit`` (N, K), ``distance`` (N, 1) for the out-of-distribution check and, if the network ends
    in pooling and one dense layer with one logit, ``map`` (N, h, w), the class activation map.
    """
    model, check = classifier.model, classifier.outlier_check
    maps = feature_maps(model)
    # The difference first: W·x and W·c are large and nearly equal, and float32 would lose what is left.
    centred = keras.layers.Rescaling(1.0, list(-check.center), name="centred")
    whitened = keras.layers.Dense(len(check.whitening), use_bias=False, name="whitened")
    deviations = whitened(centred(keras.ops.mean(maps, axis=(1, 2))))
    outputs = {"logit": model.outputs[0], "distance": keras.ops.norm(deviations, axis=-1, keepdims=True)}
    whitened.set_weights([check.whitening.T])
    last = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dropout)][-2:]
    pooled = isinstance(last[0], keras.layers.GlobalAveragePooling2D)
    if pooled and isinstance(last[1], keras.layers.Dense) and last[1].units == 1:
        weighted_sum = keras.layers.Dense(1, use_bias=False, name="map")
        outputs["map"] = keras.ops.squeeze(weighted_sum(maps), axis=-1)
        weighted_sum.set_weights([last[1].get_weights()[0]])
    return keras.Model(model.inputs[0], outputs)


def _export(model: keras.Model, path: str, format: str) -> None:
    model = keras.models.clone_model(model, clone_function=_plain, recursive=True)
    image = keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32", name="image")
    model.export(path, format=format, verbose=False, input_signature=[image])


def _to_litert(model: keras.Model, path: Path, float16: bool) -> None:
    with tempfile.TemporaryDirectory() as saved:
        _export(model, saved, "tf_saved_model")
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())


def _plain(layer: keras.layers.Layer) -> keras.layers.Layer:
    """Replace random layers, which rest, and Normalization, whose statistics are tensors; keep the others.

    tf2onnx makes inputs of such tensors. A copied model shares the layers that are returned as they are.
    """
    if isinstance(layer, _RESTING):
        return keras.layers.Identity(name=layer.name)
    if not isinstance(layer, keras.layers.Normalization):
        return layer
    if layer.invert or np.size(layer.mean) not in (1, layer.mean.shape[-1]):
        message = "only a Normalization of the channels can be exported to ONNX"
        raise ValueError(f"{message}. Received: layer={layer.name!r}")
    scale = 1 / np.maximum(np.sqrt(np.ravel(layer.variance)), keras.config.epsilon())
    return keras.layers.Rescaling(list(scale), list(-np.ravel(layer.mean) * scale), name=layer.name)


def _to_onnx(model: keras.Model, path: Path, float16: bool) -> None:
    import onnx

    _export(model, str(path), "onnx")
    if not float16:
        return
    proto = onnx.load(path)
    graph = proto.graph
    for weight in [entry for entry in graph.initializer if entry.data_type == onnx.TensorProto.FLOAT]:
        values = onnx.numpy_helper.to_array(weight)
        if values.size < 16 or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{weight.name}_half")
        cast = onnx.helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT)
        graph.initializer.remove(weight)
        graph.initializer.append(half)
        graph.node.insert(0, cast)
    onnx.save(proto, path)


_CONVERTERS = {"litert": _to_litert, "onnx": _to_onnx, "web": _to_onnx}


def compare(
    original: Classifier, exported: Classifier, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Score the same images (N, H, W, 1), with labels (N,), by a classifier and its export.

    Gives ``images``; ``logit_difference``, the largest; the shares ``decisions_changed`` (at the original's
    calibration and ``youden`` threshold) and ``refusals_changed``; ``brier`` and ``distinct_scores`` of
    ``[original, exported]``. And the exported model's logits, (N,).
    """
    scores = [classifier.score(images) for classifier in (original, exported)]
    probabilities = [original.probabilities(score.logits) for score in scores]
    decisions = [values >= original.threshold("youden") for values in probabilities]
    reasons = [original.outlier_check.reasons(images[..., 0], score.distances) for score in scores]
    refused = [np.array(texts) != "" for texts in reasons]
    return {
        "images": len(images),
        "logit_difference": float(np.abs(scores[0].logits - scores[1].logits).max()),
        "decisions_changed": float((decisions[0] != decisions[1]).mean()),
        "refusals_changed": float((refused[0] != refused[1]).mean()),
        "brier": [float(np.mean((values - labels) ** 2)) for values in probabilities],
        "distinct_scores": [len(np.unique(score.logits.astype(np.float32))) for score in scores],
    }, scores[1].logits


def gate(parity: dict[str, Any], float16: bool) -> list[str]:
    """Return the faults of an export, given its comparison; an empty list for a good one.

    The AUROC is not used: it changes by hundredths while a tenth of all decisions change.
    """
    faults = []
    if parity["images"] < LEAST_IMAGES:
        faults.append(f"only {parity['images']} images could be compared, {LEAST_IMAGES} are needed")
    difference = parity["logit_difference"]
    if not float16 and not difference <= MOST_LOGIT_DIFFERENCE:  # NaN is too much
        allowed = f"at most {MOST_LOGIT_DIFFERENCE:g} is allowed"
        faults.append(f"logits differ by up to {difference:.2g}, {allowed}")
    for name, most in {"decisions": MOST_CHANGED if float16 else 0.0, "refusals": MOST_CHANGED}.items():
        if (share := parity[f"{name}_changed"]) > most:
            faults.append(f"{share:.1%} of the {name} change, at most {most:.1%} may")
    before, after = parity["brier"]
    if not after <= before + 0.002:
        faults.append(f"the Brier score grows from {before:.4f} to {after:.4f}")
    before, after = parity["distinct_scores"]
    if after < 0.9 * before:
        faults.append(f"only {after} different scores are left of {before}")
    return faults
