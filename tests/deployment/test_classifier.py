"""A bundle is loaded elsewhere and says the same, or it is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import cv2
import keras
import numpy as np
import pytest

from chestxray import load_classifier, predict_files, read_predictions
from chestxray.deployment.classifier import load_model, run_self_test, save_model, self_test_pattern
from chestxray.files import read_json, write_json


def edited(folder, tmp_path, **changes):
    """A copy of the bundle with other entries in its card."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    write_json(copy / "card.json", read_json(copy / "card.json") | changes)
    return copy


ELSEWHERE = """
import json, sys
from chestxray import load_classifier, predict_files
rows = predict_files(load_classifier(sys.argv[1]), sys.argv[2:], accept_all=True)
print(json.dumps([[row["path"], row["probability"], row["decision"]] for row in rows]))
"""


def test_fresh_process_says_what_is_on_record(bundle, tiny_folder, data):
    folder, run = bundle
    predictions = read_predictions(run / "results", folder.name)
    assert set(predictions["split"]) == {"val", "test"} and len(predictions) > 15
    paths = [str(tiny_folder / path) for path in predictions["path"]]
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(folder), *paths],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert [row[0] for row in rows] == paths
    probabilities = np.array([row[1] for row in rows])
    assert len(np.unique(probabilities)) > 10  # a constant would agree with anything
    np.testing.assert_allclose(probabilities, predictions["probability"], rtol=0, atol=1e-5)
    card = read_json(folder / "card.json")
    threshold = card["thresholds"]["youden"]
    clear = np.abs(probabilities - threshold) > 1e-4
    expected = np.where(predictions["probability"] >= threshold, "PNEUMONIA", "NORMAL")
    assert list(np.array([row[2] for row in rows])[clear]) == list(expected[clear])
    assert set(expected) == {"NORMAL", "PNEUMONIA"}


def test_loaded_classifier_describes_itself(bundle, data):
    classifier = load_classifier(bundle[0])
    assert classifier.card["classes"] == ["NORMAL", "PNEUMONIA"]  # negative first: index = label
    assert classifier.image_settings == data.store.settings
    assert getattr(classifier.model, "optimizer", None) is None
    assert {layer.dtype_policy.name for layer in classifier.model.layers} == {"float32"}
    assert classifier.threshold("half") == 0.5
    text = (bundle[0] / "README.md").read_text(encoding="utf-8")
    for words in ("not a medical device", data.split_hash, "NORMAL (0) against PNEUMONIA (1)"):
        assert words in text


def test_probability_by_hand(bundle):
    classifier = load_classifier(bundle[0])
    classifier.card["calibration"] = {"slope": 2.0, "intercept": -1.0}
    np.testing.assert_allclose(classifier.probabilities(np.array([0.5, 1.0])), [0.5, 1 / (1 + np.exp(-1))])


def test_images_divided_by_255_are_refused(bundle):
    classifier = load_classifier(bundle[0])
    size = classifier.image_settings.size
    grey = np.random.default_rng(0).integers(0, 256, (2, size, size))
    logits = classifier.logits(grey)
    assert logits.dtype == np.float64 and logits.shape == (2,)
    np.testing.assert_allclose(classifier.logits(grey[..., None].astype(np.uint8)), logits)
    with pytest.raises(ValueError, match="divided by 255"):
        classifier.logits(grey / 255)


def test_files_folders_and_pixels_get_the_rows_of_a_prediction(bundle, data, tmp_path):
    classifier = load_classifier(bundle[0])
    files = [data.root / path for path in data.subset("val")["path"][:3]]
    rows = list(predict_files(classifier, files))

    def near(row):
        return {key: pytest.approx(v, rel=1e-4) if isinstance(v, float) else v for key, v in row.items()}

    assert classifier.predict(files) == list(map(near, rows))
    assert classifier.predict(str(files[0])) == near(rows[0])
    pixels = cv2.imread(str(files[1]), cv2.IMREAD_GRAYSCALE)
    of_pixels = near(rows[1] | {"path": ""})
    assert classifier.predict(pixels) == of_pixels
    assert classifier.predict(np.stack([pixels, pixels])) == [of_pixels] * 2
    (tmp_path / "one.png").write_bytes(files[2].read_bytes())
    (row,) = classifier.predict(tmp_path)
    assert row["logit"] == pytest.approx(rows[2]["logit"], rel=1e-4)
    assert classifier.predict(tmp_path / "none.png")["problem"] == "no such image file"
    for wrong in (pixels / 255.0, np.zeros((4, 4, 3, 3), np.uint8), np.zeros((0, 4), np.uint8)):
        with pytest.raises(ValueError, match="pixels must be grey"):
            classifier.predict(wrong)


@pytest.mark.parametrize("count", [1, 33])
def test_logits_of_any_number_of_images_are_those_of_keras(bundle, count):
    classifier = load_classifier(bundle[0])
    images = np.random.default_rng(0).integers(0, 256, (count, 32, 32), np.uint8)
    wanted = classifier.model.predict(images[..., None].astype(np.float32), verbose=0)[:, 0]
    assert count == 1 or np.ptp(wanted) > 0.01
    np.testing.assert_allclose(classifier.logits(images), wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(classifier.score(images).logits, classifier.logits(images))
    assert classifier._graph.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("shape", [(1, 40, 41), (0, 32, 32)])
def test_images_of_another_size_or_none_are_refused(shape, bundle):
    classifier = load_classifier(bundle[0])
    for call in (classifier.logits, classifier.score):
        with pytest.raises(ValueError, match=rf"the model's size.*Received: shape={re.escape(str(shape))}"):
            call(np.full(shape, 128, np.uint8))


# Thresholds


def test_rule_that_validation_could_not_support_gives_its_reason(bundle):
    classifier = load_classifier(bundle[0])
    assert classifier.card["thresholds"]["sensitivity_95"] is None  # six ill children prove nothing
    with pytest.raises(
        ValueError,
        match=r"positive.*at least.*usable rules: \['half', 'youden'\]"
        r".*Received: threshold_rule='sensitivity_95'",
    ):
        classifier.threshold("sensitivity_95")
    with pytest.raises(ValueError, match="no such rule.*Received: threshold_rule='f1'"):
        classifier.threshold("f1")


def test_threshold_of_zero_is_a_threshold(bundle):
    classifier = load_classifier(bundle[0])
    classifier.card["thresholds"]["youden"] = 0.0
    assert classifier.threshold("youden") == 0.0


# The self-test


def with_weights(folder, tmp_path, change):
    copy = shutil.copytree(folder, tmp_path / "copy")
    model = load_model(copy / "model.keras")
    change(model.get_layer("logit"))
    model.save(copy / "model.keras")
    return copy


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: layer.bias.assign_add([0.1]),
        lambda layer: layer.kernel.assign(layer.kernel * -1),
        lambda layer: layer.kernel.assign(layer.kernel * np.nan),
    ],
    ids=["bias", "sign", "nan"],
)
def test_altered_weights_are_noticed(bundle, tmp_path, change):
    with pytest.raises(ValueError, match="self-test failed: logit .* instead of .*Received: folder="):
        load_classifier(with_weights(bundle[0], tmp_path, change))


def test_card_of_another_model_is_noticed(bundle, tmp_path):
    test = read_json(bundle[0] / "card.json")["self_test"]
    with pytest.raises(ValueError, match="self-test failed"):
        load_classifier(edited(bundle[0], tmp_path, self_test=test | {"logit": test["logit"] + 0.1}))


@pytest.mark.parametrize("change", [{"clahe": True}, {"resize": "letterbox"}])
def test_edited_preprocessing_is_noticed(bundle, tmp_path, change):
    image = read_json(bundle[0] / "card.json")["image"]
    with pytest.raises(ValueError, match="self-test failed"):
        load_classifier(edited(bundle[0], tmp_path, image=image | change))


@pytest.mark.parametrize(
    "changes",
    [
        {"image": {"size": 64, "resize": "stretch", "clahe": False}},
        {"image": {"size": 32, "sharpen": True}},
        {"self_test": {}},
        {"self_test": None},
        {"image": None},
        {"schema": "chestxray.card/9"},
    ],
)
def test_unusable_card_is_a_one_line_error(bundle, tmp_path, changes):
    with pytest.raises(ValueError, match="Received: folder="):
        load_classifier(edited(bundle[0], tmp_path, **changes))


def test_other_pixels_with_the_same_logit_are_a_warning(bundle, tmp_path):
    test = read_json(bundle[0] / "card.json")["self_test"]
    with pytest.warns(UserWarning, match="resizes slightly differently"):
        load_classifier(edited(bundle[0], tmp_path, self_test=test | {"pixels_sha256": "0" * 64}))


def test_untouched_bundle_loads_without_a_warning(bundle):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        load_classifier(bundle[0])


def test_large_networks_are_stored_in_half_precision(tmp_path, monkeypatch):
    layers = [keras.layers.Input((8, 8, 1)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization()]
    model = keras.Sequential([*layers, keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(1)])
    model.layers[1].moving_variance.assign([1e6, 0.1, 0.2, 0.3])  # half precision ends at 65,504
    path = tmp_path / "model.keras"
    for most, form in ((10**6, np.float32), (1, np.float16)):
        monkeypatch.setattr("chestxray.deployment.classifier._MOST_FULL_PRECISION", most)
        save_model(model, path)
        loaded = load_model(path).get_weights()
        assert {values.dtype.name for values in loaded} == {"float32"}
        for values, trained in zip(loaded, model.get_weights()):
            stored = trained if np.abs(trained).max() > 65504 else trained.astype(form).astype(np.float32)
            np.testing.assert_array_equal(values, stored)


def test_pattern_is_the_same_for_ever():
    # Cards on disk hold hashes of it. Ring through (150, 120): cos 0 = 1, so 40 + 0.35 * 150 + 45 = 137.5.
    pattern = self_test_pattern()
    assert (pattern.shape, pattern.dtype) == ((300, 400), np.uint8)
    assert pattern[120, 150] == 137
    assert len(np.unique(pattern)) > 150


PUBLISHED = sorted((Path(__file__).parents[2] / "saved_models").glob("*/card.json"))


@pytest.mark.parametrize("card", PUBLISHED, ids=[path.parent.name for path in PUBLISHED])
def test_published_models_give_the_logit_of_their_card(card):
    test = run_self_test(load_classifier(card.parent))
    assert test["logit"] == pytest.approx(read_json(card)["self_test"]["logit"], rel=1e-5)


# Files that are not what they should be


def lambda_model():
    inputs = keras.Input((4, 4, 1))
    x = keras.layers.Lambda(lambda x: x * 2)(inputs)
    return keras.Model(inputs, keras.layers.Dense(1)(keras.layers.Flatten()(x)))


def test_model_with_code_inside_is_refused(bundle, tmp_path):
    copy = shutil.copytree(bundle[0], tmp_path / "copy")
    lambda_model().save(copy / "model.keras")
    with pytest.raises(ValueError, match="not a model that can be loaded safely.*Received: path="):
        load_classifier(copy)


def zipped(path, **members):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in members.items():
            file.writestr(name.replace("__", "."), content)


def without_weights(path):
    with zipfile.ZipFile(path) as file:
        config, metadata = file.read("config.json"), file.read("metadata.json")
    zipped(path, config__json=config, metadata__json=metadata)


def other_class(path):
    with zipfile.ZipFile(path) as file:
        config, weights = json.loads(file.read("config.json")), file.read("model.weights.h5")
    config["class_name"], config["module"] = "system", "os"
    zipped(path, config__json=json.dumps(config), metadata__json="{}", model__weights__h5=weights)


def broken_weights(path):
    with zipfile.ZipFile(path) as file:
        config, weights = file.read("config.json"), file.read("model.weights.h5")
    zipped(path, config__json=config, metadata__json="{}", model__weights__h5=weights[: len(weights) // 2])


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no model"),
        lambda path: path.write_bytes(path.read_bytes()[:-2000]),
        lambda path: zipped(path, a="b"),
        lambda path: zipped(path, config__json="[]", metadata__json="{}", model__weights__h5=""),
        lambda path: zipped(path, config__json="{}", metadata__json="{}", model__weights__h5=""),
        without_weights,
        broken_weights,
        other_class,
    ],
    ids=["empty", "text", "cut", "zip", "list", "object", "no weights", "half weights", "os.system"],
)
def test_garbage_for_a_model_is_a_one_line_error(bundle, tmp_path, spoil):
    copy = shutil.copytree(bundle[0], tmp_path / "copy")
    spoil(copy / "model.keras")
    with pytest.raises(ValueError, match=r"not a model that can be loaded safely.*Received: path=") as caught:
        load_classifier(copy)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["", "{", "[]", "3", "null", "\xff\xfe"])
def test_garbage_for_a_card_is_an_error(bundle, tmp_path, content):
    copy = shutil.copytree(bundle[0], tmp_path / "copy")
    (copy / "card.json").write_bytes(content.encode("latin1"))
    with pytest.raises(ValueError, match="Received: (path|folder)="):
        load_classifier(copy)


@pytest.mark.parametrize("name", ["model.keras", "card.json", "refusal.npz"])
def test_missing_file_is_named(bundle, tmp_path, name):
    copy = shutil.copytree(bundle[0], tmp_path / "copy")
    (copy / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"{name} is missing.*Received: folder="):
        load_classifier(copy)


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: folder="):
        load_classifier(tmp_path / "nothing")
