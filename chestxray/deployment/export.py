"""A saved model as one file that runs without TensorFlow, and the gate it must pass."""

from __future__ import annotations

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
from chestxray.evaluation.calibration import calibrate
from chestxray.evaluation.thresholds import choose_thresholds, choose_triage
from chestxray.files import read_json, whole_folder

LEAST_IMAGES = 200
"""Images that the gate needs: all of validation and, where these are fewer, some of training."""

MOST_LOGIT_DIFFERENCE = 1e-3
"""Of a float32 export."""

MOST_CHANGED = 0.005
"""Share of refusals that an export may change, and of decisions that a float16 one may; float32 none.

A validation image often lies on the limit of refusal itself."""


def export_model(
    folder: str | Path,
    output: str | Path,
    format: str,
    data: XrayData,
    float16: bool = False,
    force: bool = False,
) -> dict[str, Any]:
    """Write a saved classifier as a LiteRT or ONNX bundle, and compare the two.

    The file takes one grey picture, (1, size, size, 1) in 0–255, and gives
    ``logit``, ``distance`` (for the refusal) and, where the network ends in
    pooling and one dense layer with one logit, ``map``, the class activation
    map. Calibration and thresholds are fitted again on its own logits of the
    model's validation images.

    Args:
        folder: Bundle with ``model.keras``.
        output: Folder of the exported bundle; a former one is replaced.
        format: Key of :data:`chestxray.deployment.runtime.MODEL_FILES`.
        data: The images that the model was trained on; for a model of
            phantoms any phantoms, and then calibration and thresholds stay.
        float16: Store weights in half precision: half the size, other logits.
        force: Keep an export that fails the gate; its card says so.

    Returns:
        The gate's findings, see :func:`compare`.

    Raises:
        ValueError: Unknown format, other data or pixels than the model's, an output folder that holds
            something else, or an export that failed the gate (nothing is written).
    """
    if format not in _CONVERTERS:
        raise ValueError(f"format must be one of {list(_CONVERTERS)}. Received: format={format!r}")
    original = load_classifier(folder)
    if isinstance(original.model, Runtime):
        raise ValueError(f"already exported. Received: folder={str(folder)!r}")
    if os.path.lexists(output) and not is_exported(Path(output)):
        raise ValueError(
            "the output folder exists and is no exported model; it would be replaced. "
            f"Received: output={str(output)!r}"
        )
    trained_on = original.card["training_data"]
    own_split = data.split_hash == trained_on["split_hash"]
    if not own_split and not (data.synthetic and trained_on["name"] == data.name):
        raise ValueError(
            f"the model was trained on another split (hash {trained_on['split_hash']}). "
            f"Received: data={data.name!r}, hash {data.split_hash}"
        )
    if data.store.settings != original.image_settings:
        raise ValueError(
            f"the model sees other pixels: {original.image_settings}. "
            f"Received: data with {data.store.settings}"
        )
    compared = pd.concat([data.subset("val"), data.subset("train")])
    compared = compared[: max(LEAST_IMAGES, len(data.subset("val")))]
    with whole_folder(output) as partial:
        path = partial / MODEL_FILES[format]
        _CONVERTERS[format](deployable(original), path, float16)
        refusal = replace(original.refusal, center=np.zeros(0), whitening=np.zeros((0, 0)))  # in the graph
        exported = Classifier(Runtime(path, threads=os.cpu_count()), original.card, refusal)
        found, logits = compare(original, exported, data.store.images(compared), compared["label"].to_numpy())
        faults = gate(found, float16)
        if faults and not force:
            raise ValueError(
                f"the export was removed: {'; '.join(faults)} (--force keeps it). "
                f"Received: format={format!r}, float16={float16}"
            )
        labels = data.subset("val")["label"]
        refitted = _refitted(original, logits[: len(labels)], labels) if own_split else {}
        write_card(
            partial,
            replace(
                exported,
                card=original.card
                | refitted
                | {
                    "export": {
                        "format": format,
                        "float16": float16,
                        "bytes": path.stat().st_size,
                        "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                        "parity": found,
                        "faults": faults,
                    }
                },
            ),
        )
    return found


def is_exported(folder: Path) -> bool:
    """Whether a folder holds an exported bundle."""
    return (folder / "card.json").is_file() and "export" in read_json(folder / "card.json")


def deployable(classifier: Classifier) -> keras.Model:
    """The network with everything that prediction needs as named outputs.

    Returns:
        A model from grey (N, size, size, 1) in 0–255 to ``logit`` (N, K),
        ``distance`` (N, 1) and, where it is exact, ``map`` (N, h, w).
    """
    model, refusal = classifier.model, classifier.refusal
    maps = feature_maps(model)
    whitened = keras.layers.Dense(len(refusal.whitening), name="whitened")
    apart = whitened(keras.ops.mean(maps, axis=(1, 2)))
    outputs = {"logit": model.outputs[0], "distance": keras.ops.norm(apart, axis=-1, keepdims=True)}
    whitened.set_weights([refusal.whitening.T, -refusal.whitening @ refusal.center])
    if _ends_in_pooling_and_logit(model):
        weigh = keras.layers.Dense(1, use_bias=False, name="map")
        outputs["map"] = keras.ops.squeeze(weigh(maps), axis=-1)
        weigh.set_weights([model.layers[-1].get_weights()[0]])
    return keras.Model(model.inputs[0], outputs)


def _ends_in_pooling_and_logit(model: keras.Model) -> bool:
    """Whether the logit is a weighted mean of the last feature maps, plus a bias."""
    tail = [layer for layer in model.layers if not isinstance(layer, keras.layers.Dropout)][-2:]
    return (
        isinstance(tail[0], keras.layers.GlobalAveragePooling2D)
        and isinstance(tail[1], keras.layers.Dense)
        and tail[1].units == 1
    )


def _signature(model: keras.Model) -> list[keras.InputSpec]:
    return [keras.InputSpec(shape=(1, *model.input_shape[1:]), dtype="float32", name="image")]


def _to_litert(model: keras.Model, path: Path, float16: bool) -> None:
    with tempfile.TemporaryDirectory() as saved:
        model.export(saved, format="tf_saved_model", verbose=False, input_signature=_signature(model))
        converter = tf.lite.TFLiteConverter.from_saved_model(saved)
        if float16:
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
            converter.target_spec.supported_types = [tf.float16]
        path.write_bytes(converter.convert())


def _without_held_tensors(layer: keras.layers.Layer) -> keras.layers.Layer:
    """The layer itself; for Normalization, which holds its statistics as tensors, a scale and an offset.

    tf2onnx makes inputs of such tensors. A copied model shares the layers that are returned as they are.
    """
    if not isinstance(layer, keras.layers.Normalization):
        return layer
    if layer.invert or np.size(layer.mean) not in (1, layer.mean.shape[-1]):
        raise ValueError(
            f"only a Normalization of the channels can be exported to ONNX. Received: layer={layer.name!r}"
        )
    scale = 1 / np.maximum(np.sqrt(np.ravel(layer.variance)), keras.config.epsilon())
    return keras.layers.Rescaling(list(scale), list(-np.ravel(layer.mean) * scale), name=layer.name)


def _to_onnx(model: keras.Model, path: Path, float16: bool) -> None:
    import onnx

    model = keras.models.clone_model(model, clone_function=_without_held_tensors)
    model.export(str(path), format="onnx", verbose=False, input_signature=_signature(model))
    if not float16:
        return
    proto = onnx.load(path)
    for weight in [one for one in proto.graph.initializer if one.data_type == onnx.TensorProto.FLOAT]:
        values = onnx.numpy_helper.to_array(weight)
        if values.size < 16 or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        half = onnx.numpy_helper.from_array(values.astype(np.float16), f"{weight.name}_half")
        proto.graph.initializer.remove(weight)
        proto.graph.initializer.append(half)
        proto.graph.node.insert(
            0, onnx.helper.make_node("Cast", [half.name], [weight.name], to=onnx.TensorProto.FLOAT)
        )
    onnx.save(proto, path)


_CONVERTERS = {"litert": _to_litert, "onnx": _to_onnx}


def compare(
    original: Classifier, exported: Classifier, images: np.ndarray, labels: np.ndarray
) -> tuple[dict[str, Any], np.ndarray]:
    """Score the same images with both.

    Args:
        original: With the Keras model.
        exported: With the exported one.
        images: Preprocessed, (N, size, size, 1).
        labels: (N,), 0 or 1.

    Returns:
        ``images``; ``logit_difference``, the largest; ``decisions_changed``
        (at the original's calibration and ``youden`` threshold) and
        ``refusals_changed``, shares; ``brier`` and ``distinct_scores``
        (different logits) of ``[original, exported]``. And the exported
        model's logits, (N,).
    """
    both = [classifier.score(images) for classifier in (original, exported)]
    threshold = original.threshold("youden")
    probabilities = [original.probabilities(scores.logits) for scores in both]
    called = [values >= threshold for values in probabilities]
    refused = [np.array(original.refusal.reasons(images[..., 0], scores.distances)) != "" for scores in both]
    return {
        "images": len(images),
        "logit_difference": float(np.abs(both[0].logits - both[1].logits).max()),
        "decisions_changed": float((called[0] != called[1]).mean()),
        "refusals_changed": float((refused[0] != refused[1]).mean()),
        "brier": [float(np.mean((values - labels) ** 2)) for values in probabilities],
        "distinct_scores": [len(np.unique(scores.logits.astype(np.float32))) for scores in both],
    }, both[1].logits


def gate(found: dict[str, Any], float16: bool) -> list[str]:
    """What is wrong with an export, in words; nothing for a good one.

    The AUROC is not asked: it moves by hundredths while a tenth of all
    decisions change.
    """
    most = {"decisions": MOST_CHANGED if float16 else 0.0, "refusals": MOST_CHANGED}
    faults = []
    if found["images"] < LEAST_IMAGES:
        faults.append(f"only {found['images']} images could be compared, {LEAST_IMAGES} are needed")
    if not float16 and not found["logit_difference"] <= MOST_LOGIT_DIFFERENCE:  # NaN is too much
        faults.append(
            f"logits differ by up to {found['logit_difference']:.2g}, "
            f"at most {MOST_LOGIT_DIFFERENCE:g} is allowed"
        )
    for name, share in most.items():
        if found[f"{name}_changed"] > share:
            faults.append(f"{found[f'{name}_changed']:.1%} of the {name} change, at most {share:.1%} may")
    before, after = found["brier"]
    if not after <= before + 0.002:
        faults.append(f"the Brier score grows from {before:.4f} to {after:.4f}")
    before, after = found["distinct_scores"]
    if after < 0.9 * before:
        faults.append(f"only {after} different scores are left of {before}")
    return faults


def _refitted(original: Classifier, logits: np.ndarray, labels: pd.Series) -> dict[str, Any]:
    """Calibration and thresholds for the card of the export, from its own logits on validation."""
    slope, intercept = calibrate(logits, labels)
    calibration = {"slope": slope, "intercept": intercept}
    probabilities = replace(original, card=original.card | {"calibration": calibration}).probabilities(logits)
    thresholds, reasons = choose_thresholds(labels, probabilities)
    return {
        "calibration": calibration,
        "thresholds": thresholds,
        "threshold_reasons": reasons,
        "triage": choose_triage(labels, probabilities),
    }
