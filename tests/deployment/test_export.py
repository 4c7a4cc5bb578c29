"""Exported models: the same answers without TensorFlow, and a gate that finds the others."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import cv2
import keras
import numpy as np
import pytest

import chestxray
from chestxray import load_classifier
from chestxray.deployment import export
from chestxray.deployment.classifier import MODEL_FILES, Runtime, with_features
from chestxray.deployment.export import export_model, gate
from chestxray.evaluation.calibration import calibrate
from chestxray.files import read_json
from chestxray.models.backbones import BACKBONES


@pytest.fixture(scope="module", params=["litert", "onnx"])
def exported(request, compact, data, tmp_path_factory, few_images_are_enough):
    folder = tmp_path_factory.mktemp(request.param) / "model"
    return folder, export_model(compact, folder, request.param, data)


def test_logits_distances_and_maps_are_those_of_keras(compact, exported, data):
    images = data.images("test")
    keras_scores = load_classifier(compact).score(images, with_maps=True)
    file_scores = load_classifier(exported[0]).score(images, with_maps=True)
    assert np.ptp(keras_scores.logits) > 0.1  # not all alike
    for expected, result in zip(keras_scores, file_scores, strict=True):
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)


def test_the_mean_of_the_map_is_the_logit_without_its_bias(compact, exported, data):
    outputs = load_classifier(exported[0]).model.predict(data.images("test"))
    assert outputs["map"].shape[1:] == (8, 8)
    bias = float(load_classifier(compact).model.get_layer("logit").bias[0])
    np.testing.assert_allclose(outputs["map"].mean(axis=(1, 2)) + bias, outputs["logit"][:, 0], atol=1e-4)


def test_the_gate_measures_all_validation_images(exported, data):
    parity = exported[1]
    assert parity["images"] == len(data.subset("val"))
    assert parity["logit_difference"] <= 1e-3
    assert parity["decisions_changed"] == parity["refusals_changed"] == 0
    assert parity["brier"][0] == pytest.approx(parity["brier"][1], abs=1e-4)
    card = read_json(exported[0] / "card.json")
    assert card["export"]["parity"] == parity and card["export"]["faults"] == []
    assert "## Export" in (exported[0] / "README.md").read_text()


def test_calibration_is_that_of_the_file(exported, data):
    classifier = load_classifier(exported[0])
    slope, intercept = calibrate(classifier.logits(data.images("val")), data.subset("val")["label"])
    assert classifier.card["calibration"] == pytest.approx({"slope": slope, "intercept": intercept})


def test_other_phantoms_than_the_models_own_leave_calibration_and_thresholds_alone(
    few_images_are_enough, compact, data, tmp_path
):
    shutil.copytree(compact, tmp_path / "model")
    card = read_json(compact / "card.json")
    card["training_data"] |= {"name": "synthetic", "split_hash": "another"}
    (tmp_path / "model" / "card.json").write_text(json.dumps(card))
    other = data.table.assign(label=1 - data.table["label"])  # fitted on these, the slope would be another
    export_model(
        tmp_path / "model", tmp_path / "out", "onnx", replace(data, name="synthetic", table=other), force=True
    )
    after = read_json(tmp_path / "out" / "card.json")
    assert {key for key in card if after[key] != card[key]} == {"self_test"}  # its logit, in the last digits


FRESH = """
import json, sys
sys.modules["tensorflow"] = sys.modules["keras"] = sys.modules["pandas"] = sys.modules["sklearn"] = None
sys.modules["scipy"] = sys.modules["matplotlib"] = None
from chestxray import load_classifier
from chestxray.deployment.predict import predict_files
rows = predict_files(load_classifier(sys.argv[1]), sys.argv[2], accept_all=True)
print(json.dumps([[row["logit"], row["probability"], row["decision"], row["distance"]] for row in rows]))
"""


def test_a_process_without_tensorflow_predicts_the_same(compact, exported, tmp_path):
    rng = np.random.default_rng(0)
    for number in range(4):
        assert cv2.imwrite(str(tmp_path / f"{number}.png"), rng.integers(0, 256, (70, 60), dtype=np.uint8))
    done = subprocess.run(
        [sys.executable, "-c", FRESH, exported[0], tmp_path], capture_output=True, text=True, check=True
    )
    rows = list(chestxray.predict_files(load_classifier(compact), tmp_path, accept_all=True))
    for (logit, probability, decision, distance), row in zip(json.loads(done.stdout), rows, strict=True):
        assert logit == pytest.approx(row["logit"], abs=1e-3)
        assert probability == pytest.approx(row["probability"], abs=1e-3)
        assert decision == row["decision"]
        assert distance == pytest.approx(row["distance"], rel=1e-3)
    assert done.stderr == ""


def test_half_precision_is_smaller_and_nearly_the_same(compact, exported, data, tmp_path):
    format_ = read_json(exported[0] / "card.json")["export"]["format"]
    parity = export_model(compact, tmp_path / "half", format_, data, float16=True, force=True)
    whole, half = (next(folder.glob("model.*")) for folder in (exported[0], tmp_path / "half"))
    assert half.name == whole.name and half.stat().st_size < 0.6 * whole.stat().st_size
    assert 0 < parity["logit_difference"] < 0.1


@pytest.mark.parametrize(
    ("backbone", "format_"),
    [("VGG16", "onnx"), ("InceptionV3", "onnx"), ("DenseNet121", "onnx"), ("DenseNet121", "litert")],
)
def test_the_preprocessing_of_every_backbone_is_in_the_file(backbone, format_, tmp_path):
    """Normalization became inputs of the ONNX file that nobody could feed."""
    rng = np.random.default_rng(0)
    inputs = keras.Input((8, 8, 1))
    colours = BACKBONES[backbone].preprocess(inputs)
    logit = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(colours))
    model = keras.Model(inputs, {"logit": logit, "distance": logit})
    model.layers[-1].set_weights([rng.normal(size=(3, 1)), np.zeros(1)])
    path = tmp_path / MODEL_FILES[format_]
    export._CONVERTERS[format_](model, path, False)
    images = rng.integers(0, 256, (3, 8, 8, 1)).astype(np.float32)
    expected = model.predict(images, verbose=0)["logit"]
    np.testing.assert_allclose(Runtime(path).predict(images)["logit"], expected, rtol=1e-4)


def damage(convert):
    """A converter that loses something on the way."""

    def damaged(model, path, float16):
        kernel = model.get_layer("logit").kernel
        kernel.assign(kernel * 0.5)
        convert(model, path, float16)
        kernel.assign(kernel * 2)  # the original has the same layer

    return damaged


def test_an_export_that_decides_otherwise_is_removed_and_explained(
    few_images_are_enough, compact, data, tmp_path, monkeypatch
):
    monkeypatch.setitem(export._CONVERTERS, "litert", damage(export._to_litert))
    with pytest.raises(ValueError, match="the export was removed: logits differ by up to"):
        export_model(compact, tmp_path / "model", "litert", data)
    assert list(tmp_path.iterdir()) == []
    parity = export_model(compact, tmp_path / "model", "litert", data, force=True)
    card = read_json(tmp_path / "model" / "card.json")
    assert parity["logit_difference"] > 0.01 and "logits differ" in card["export"]["faults"][0]


GOOD = {
    "images": 400,
    "logit_difference": 1e-4,
    "decisions_changed": 0.0,
    "refusals_changed": 0.0,
    "brier": [0.05, 0.05],
    "distinct_scores": [390, 390],
}


@pytest.mark.parametrize(
    ("change", "float16", "word"),
    [
        ({"logit_difference": 2e-3}, False, "logits differ"),
        ({"logit_difference": float("nan")}, False, "logits differ"),
        ({"decisions_changed": 1 / 400}, False, "decisions"),
        ({"decisions_changed": 3 / 400}, True, "decisions"),
        ({"refusals_changed": 3 / 400}, False, "refusals"),
        ({"brier": [0.05, 0.0521]}, True, "Brier"),
        ({"brier": [0.05, float("nan")]}, True, "Brier"),
        ({"distinct_scores": [390, 300]}, True, "300 different scores"),
    ],
)
def test_the_gate_names_each_fault(change, float16, word):
    assert gate(GOOD, float16) == []
    (fault,) = gate(GOOD | change, float16)
    assert word in fault


def test_half_precision_may_change_two_decisions_in_four_hundred():
    assert gate(GOOD | {"decisions_changed": 2 / 400, "logit_difference": 0.05}, True) == []


def test_other_data_and_too_few_images_are_refused(
    few_images_are_enough, compact, data, tiny_folder, tmp_path, monkeypatch
):
    other = replace(data, table=data.table[1:])
    with pytest.raises(ValueError, match="another split"):
        export_model(compact, tmp_path / "model", "onnx", other)
    pixels = data.store.build(data.table, tiny_folder, replace(data.store.settings, clahe=True))
    with pytest.raises(ValueError, match="other pixels.*clahe=False.*Received: data=.*clahe=True"):
        export_model(compact, tmp_path / "model", "onnx", replace(data, store=pixels))
    with pytest.raises(ValueError, match="format must be one of .*litert.*Received: format='tflite'"):
        export_model(compact, tmp_path / "model", "tflite", data)
    monkeypatch.setattr(export, "LEAST_IMAGES", 1000)
    with pytest.raises(ValueError, match="only .* images could be compared, 1000 are needed"):
        export_model(compact, tmp_path / "model", "onnx", data)


def test_an_exported_model_cannot_be_exported(exported, data, tmp_path):
    with pytest.raises(ValueError, match="already exported"):
        export_model(exported[0], tmp_path / "model", "onnx", data)


def test_a_changed_file_is_not_loaded(exported, tmp_path):
    folder = shutil.copytree(exported[0], tmp_path / "model")
    file = next(folder.glob("model.[to]*"))
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match="not the one its card describes"):
        load_classifier(folder)
    os.remove(file)
    with pytest.raises(FileNotFoundError, match="is missing from the model folder"):
        load_classifier(folder)


@pytest.mark.parametrize("name", ["model.tflite", "model.onnx"])
def test_a_file_that_is_no_model_is_named(name, tmp_path):
    (tmp_path / name).write_bytes(b"no model")
    with pytest.raises(ValueError, match=f"cannot be loaded.*{name}"):
        Runtime(tmp_path / name)


def test_a_folder_with_other_contents_is_not_replaced(compact, few_images_are_enough, data, tmp_path):
    (tmp_path / "thesis.txt").write_text("years of work")
    for output in (tmp_path, compact):
        with pytest.raises(ValueError, match="is no exported model"):
            export_model(compact, output, "onnx", data)
    assert (tmp_path / "thesis.txt").exists() and (compact / "model.keras").exists()
    for _ in range(2):
        export_model(compact, tmp_path / "model", "onnx", data)


def test_the_distance_keeps_its_digits(compact):
    """W·x − W·c is a small difference of large numbers."""
    classifier = load_classifier(compact)
    check, rng = classifier.outlier_check, np.random.default_rng(0)
    whitening = np.eye(64) * 1e4
    images = rng.integers(0, 256, (5, 32, 32, 1)).astype(np.float32)
    features = with_features(classifier.model).predict(images, verbose=0)[1].astype(np.float64)
    near = replace(check, center=features.mean(axis=0).astype(np.float32), whitening=whitening)
    model = export.deployable(replace(classifier, outlier_check=near))
    found = model.predict(images, verbose=0)["distance"][:, 0]
    np.testing.assert_allclose(found, near.distances(features), rtol=1e-4)


@pytest.mark.parametrize("format_", ["litert", "onnx"])
def test_random_layers_inside_a_model_rest_in_the_file(format_, tmp_path):
    layers = keras.layers
    inputs = keras.Input((32, 32, 1))
    x = layers.RandomFlip("horizontal")(layers.GaussianNoise(1.0)(layers.Rescaling(1 / 255)(inputs)))
    x = layers.GlobalAveragePooling2D()(layers.Conv2D(4, 5, kernel_initializer="random_normal")(x))
    logit = layers.Dense(1, kernel_initializer="random_normal")(layers.Dropout(0.9)(x))
    model = keras.Model(inputs, {"logit": logit, "distance": logit})
    path = tmp_path / MODEL_FILES[format_]
    export._CONVERTERS[format_](model, path, False)
    images = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 1)).astype(np.float32)
    expected = model(images, training=False)["logit"]
    for _ in range(2):
        np.testing.assert_allclose(Runtime(path).predict(images)["logit"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("format_", ["litert", "onnx"])
def test_a_nested_backbone_is_exported(format_, tmp_path):
    inputs = keras.Input((64, 64, 1))
    backbone = keras.applications.EfficientNetB0(include_top=False, weights=None, input_shape=(64, 64, 3))
    x = backbone(keras.layers.Concatenate()([inputs] * 3))
    logit = keras.layers.Dense(1)(keras.layers.GlobalAveragePooling2D()(x))
    model = keras.Model(inputs, {"logit": logit, "distance": logit})
    path = tmp_path / MODEL_FILES[format_]
    export._CONVERTERS[format_](model, path, False)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1)).astype(np.float32)
    expected = model(images, training=False)["logit"]
    np.testing.assert_allclose(Runtime(path).predict(images)["logit"], expected, rtol=1e-3, atol=1e-4)
