"""Export of saved classifiers to LiteRT and ONNX, and comparison of both models."""

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
from chestxray.deployment.classifier import (
    MODEL_FILES,
    Classifier,
    Runtime,
    feature_maps,
    load_classifier,
    write_card,
)
from chestxray.deployment.web import page_network
from chestxray.evaluation.thresholds import fit_decisions
from chestxray.files import read_json, whole_folder
from chestxray.schema import check

LEAST_IMAGES = 200  # for the comparison: all validation images and, if these are fewer, training images
MOST_LOGIT_DIFFERENCE = 1e-3  # of a float32 export
MOST_CHANGED = 0.005  # proportion of refusals (some images are at the limits) and of float16 decisions
_RANDOM_LAYERS = tuple(
    getattr(keras.layers, name)
    for name in dir(keras.layers)
    if (name.startswith("Random") and name != "RandomCrop") or name.endswith(("Dropout", "GaussianNoise"))
)  # that do not change the input in prediction


def export_model(
    folder: str | Path,
    output: str | Path,
    format: str,
    data: XrayData,
    float16: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write a saved classifier as a LiteRT or ONNX file with its card, and compare both models.

    Args:
        folder: Folder with ``model.keras``.
        output: Folder of the exported classifier; an earlier export is replaced.
        format: ``litert``, ``onnx``, or ``web`` (:func:`chestxray.deployment.web.export_page`).
        data: Data of the training: calibration and thresholds are fitted again to the new logits. For a model
            of phantoms it may be other phantoms; then they stay.
        float16: Store weights in half precision: half the size, slightly different logits.
        force: Keep an export that fails :func:`gate`; its card lists the faults.

    Returns the result of :func:`compare`. Raises ValueError, and writes nothing, for an unknown format, other
    data or pixels, an output folder that is not an export, or an export that fails :func:`gate`.
    """
    check(format in _CONVERTERS, f"format must be one of {list(_CONVERTERS)}", format=format)
    original = load_classifier(folder)
    check(not isinstance(original.model, Runtime), "already exported", folder=str(folder))
    card = Path(output) / "card.json"
    if os.path.lexists(output) and not (card.is_file() and "export" in read_json(card)):
        raise ValueError(f"the output exists and is no exported model. Received: output={str(output)!r}")
    trained_on = original.card["training_data"]
    same_split = data.split_hash == trained_on["split_hash"]
    phantoms = data.synthetic and (trained_on["name"] == data.name or format == "web")
    message = f"the model was trained on another split (hash {trained_on['split_hash']})"
    check(same_split or phantoms, message, data=data.name, hash=data.split_hash)
    message = f"the model was trained on other pixels: {original.image_settings}"
    check(data.store.settings == original.image_settings, message, data=data.store.settings)
    val = data.subset("val")
    compared = pd.concat([val, data.subset("train")])[: max(LEAST_IMAGES, len(val))]
    with whole_folder(output) as partial:
        path = partial / MODEL_FILES[format]
        network = page_network(original) if format == "web" else deployable(original)
        _CONVERTERS[format](network, path, float16)
        # The exported file computes the distances.
        outlier_check = replace(original.outlier_check, center=np.zeros(0), whitening=np.zeros((0, 0)))
        runtime = Runtime(path, threads=os.cpu_count())
        exported = Classifier(runtime, original.card, outlier_check, original.seen)
        images, labels = data.store.images(compared), compared["label"].to_numpy()
        parity, logits = compare(original, exported, images, labels)
        faults = gate(parity, float16)
        message = f"the export was removed: {'; '.join(faults)} (--force keeps it)"
        check(force or not faults, message, format=format, float16=float16)
        content = path.read_bytes()
        export = {"format": format, "float16": float16, "bytes": len(content)}
        export |= {"sha256": hashlib.sha256(content).hexdigest(), "parity": parity, "faults": faults}
        refitted = fit_decisions(logits[: len(val)], val["label"]) if same_split else {}
        write_card(partial, replace(exported, card=original.card | refitted | {"export": export}))
    return parity


def deployable(classifier: Classifier) -> keras.Model:
    """Return the network with all outputs that prediction needs: ``logit`` (N, K), ``distance`` (N, 1).

    If it ends in pooling and one dense layer with one logit, it also has the output ``map`` (N, h, w), the
    class activation map. Its mean is the logit without the bias.
    """
    model, check = classifier.model, classifier.outlier_check
    maps = feature_maps(model)
    # x − c before W: W·x and W·c are large and nearly equal, so that their float32 difference is inexact.
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
    """Replace random layers by Identity, and Normalization, whose tensors tf2onnx makes inputs, by Rescaling.

    Other layers are returned unchanged, and the copied model shares them.
    """
    if isinstance(layer, _RANDOM_LAYERS):
        return keras.layers.Identity(name=layer.name)
    if not isinstance(layer, keras.layers.Normalization):
        return layer
    valid = not layer.invert and np.size(layer.mean) in (1, layer.mean.shape[-1])
    check(valid, "only a Normalization of channels can be exported", layer=layer.name)
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
    """Compare a classifier and its export on images, (N, H, W, 1), with labels, (N,).

    Returns ``images``, their number; ``logit_difference``, the largest; the proportions ``decisions_changed``
    (calibration and ``youden`` threshold of the original) and ``refusals_changed``; ``brier`` and
    ``distinct_scores`` of ``[original, exported]``; and, second, the logits of the export, (N,).
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
    """Return the faults of an export, given the result of :func:`compare`; an empty list if there is none.

    The AUROC is not used: it changes by hundredths when a tenth of all decisions change.
    """
    most_logits, most_decisions = (np.inf, MOST_CHANGED) if float16 else (MOST_LOGIT_DIFFERENCE, 0.0)
    images, logits = parity["images"], parity["logit_difference"]
    decisions, refusals = parity["decisions_changed"], parity["refusals_changed"]
    (brier, new_brier), (scores, new_scores) = parity["brier"], parity["distinct_scores"]
    checks = {  # a comparison with NaN is false: a fault
        f"only {images} images could be compared, {LEAST_IMAGES} are needed": images >= LEAST_IMAGES,
        f"logits differ by up to {logits:.2g}, more than {most_logits:g}": logits <= most_logits,
        f"{decisions:.1%} of decisions change, more than {most_decisions:.1%}": decisions <= most_decisions,
        f"{refusals:.1%} of refusals change, more than {MOST_CHANGED:.1%}": refusals <= MOST_CHANGED,
        f"the Brier score increases from {brier:.4f} to {new_brier:.4f}": new_brier <= brier + 0.002,
        f"only {new_scores} different scores remain of {scores}": new_scores >= 0.9 * scores,
    }
    return [fault for fault, passed in checks.items() if not passed]
