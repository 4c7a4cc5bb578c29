"""A model on record: what is written, in which order, and that it can be recomputed."""

import csv
import dataclasses

import cv2
import keras
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chestxray import results
from chestxray.deployment.card import render
from chestxray.files import project_path, read_json, write_json


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """An untrained network on 60 phantoms, put on results."""
    import chestxray as cx
    from chestxray.phantoms import write_phantoms

    folder = tmp_path_factory.mktemp("recorded")
    write_phantoms(folder, 60, 48, 1)
    data = cx.load_data(folder / "chest_xray", "patient", 0, cx.ImageSettings(32))
    keras.utils.set_random_seed(3)
    model = cx.build_student_cnn(32, precision="mixed_bfloat16")
    model.get_layer("logit").set_weights([np.random.default_rng(0).normal(size=(64, 1)), np.zeros(1)])
    found = results.record_model(
        model, data, "tiny", folder, parameters={"a": 1}, weights="random", training={"epochs": {}}
    )
    return folder, data, found


def test_record_holds_contract_six(recorded):
    folder, data, found = recorded
    stored = read_json(folder / "results" / "tiny-patient-s0-t0.json")
    assert stored == found | {"step_key": None}
    assert stored["data"] == "synthetic" and stored["split_hash"] == data.split_hash
    for key in (
        "schema",
        "record",
        "classes",
        "split_rule",
        "parameters",
        "weights",
        "training",
        "thresholds",
        "metrics",
        "confusion",
        "versions",
    ):
        assert key in stored
    counts = stored["confusion"]["test"]["youden"]
    assert sum(counts.values()) == len(data.subset("test"))


def test_every_metric_can_be_recomputed_from_the_predictions(recorded):
    folder, data, found = recorded
    predictions = results.read_predictions(folder / "results", "tiny-patient-s0-t0")
    assert list(predictions) == [
        "path",
        "group",
        "subtype",
        "label",
        "split",
        "width",
        "height",
        "sharpness",
        "logit",
        "probability",
    ]
    first = data.images("val")[0, ..., 0]
    assert predictions["sharpness"][0] == pytest.approx(cv2.Laplacian(first, cv2.CV_32F).std(), abs=1e-3)
    slope, intercept = found["calibration"]["slope"], found["calibration"]["intercept"]
    assert predictions["probability"].to_numpy() == pytest.approx(
        1 / (1 + np.exp(-(slope * predictions["logit"] + intercept))), abs=1e-12
    )
    for subset in ("val", "test"):
        rows = predictions[predictions["split"] == subset]
        assert list(rows["path"]) == list(data.subset(subset)["path"])
        assert roc_auc_score(rows["label"], rows["probability"]) == pytest.approx(
            found["metrics"][subset]["auroc"]["value"], abs=1e-12
        )
        cut = found["thresholds"]["youden"]
        called = rows["probability"] >= cut
        assert int((called & (rows["label"] == 1)).sum()) == found["confusion"][subset]["youden"]["tp"]


def test_training_images_are_scored_too(recorded):
    folder, data, found = recorded
    model = keras.models.load_model(folder / "saved_models" / "tiny-patient-s0-t0" / "model.keras")
    rows = data.subset("train")
    logits = model.predict(data.store.images(rows), verbose=0)[:, 0]
    entry = found["metrics"]["train"]["auroc"]
    assert entry["value"] == pytest.approx(roc_auc_score(rows["label"], logits), abs=1e-12)
    probabilities = 1 / (
        1 + np.exp(-(found["calibration"]["slope"] * logits + found["calibration"]["intercept"]))
    )
    correct = (probabilities >= found["thresholds"]["youden"]) == (rows["label"] == 1)
    assert found["metrics"]["train"]["youden"]["accuracy"]["value"] == pytest.approx(
        correct.mean(), abs=1e-12
    )


def test_the_saved_model_is_float32_and_gives_the_recorded_logits(recorded):
    from chestxray.deployment.classifier import load_classifier

    folder, data, _ = recorded
    classifier = load_classifier(folder / "saved_models" / "tiny-patient-s0-t0")
    assert {layer.compute_dtype for layer in classifier.model.layers} == {"float32"}
    predictions = results.read_predictions(folder / "results", "tiny-patient-s0-t0").query("split == 'test'")
    assert classifier.logits(data.images("test")) == pytest.approx(predictions["logit"].to_numpy(), abs=1e-5)


def test_the_ranking_of_reframed_images_is_recorded(recorded):
    folder, data, found = recorded
    model = keras.models.load_model(folder / "saved_models" / "tiny-patient-s0-t0" / "model.keras")
    for subset in ("val", "test"):
        logits = model.predict(data.reframed(subset), verbose=0)[:, 0]
        entry = found["metrics"][subset]["auroc_reframed"]
        assert entry["value"] == pytest.approx(roc_auc_score(data.targets(subset), logits), abs=1e-12)
        assert entry["low"] <= entry["value"] <= entry["high"]
    assert "auroc_reframed" in results.comparison_table([found])


def test_without_lungs_nothing_is_reframed(recorded, monkeypatch, capsys):
    _, data, _ = recorded
    monkeypatch.setattr("chestxray.data.dataset._boxes", lambda paths: np.full((len(paths), 4), np.nan))
    assert results._reframed_ranking(None, data, "val") == {}
    assert "not scored on re-framed images: both classes must have" in capsys.readouterr().out


def test_a_model_is_recorded_when_the_files_are_gone(recorded, tmp_path, capsys):
    _, data, _ = recorded
    moved = dataclasses.replace(data, root=tmp_path / "gone")
    assert results._reframed_ranking(None, moved, "val") == {}
    told = capsys.readouterr().out
    assert "not scored on re-framed images: " in told and "gone" in told


def test_each_test_evaluation_is_logged(recorded):
    folder, data, _ = recorded
    results.log_test_evaluation(folder, "again", data, {"b": 2, "a": "x"})
    rows = list(csv.DictReader(open(folder / "results" / "test_log.csv", encoding="utf-8")))
    assert [row["name"] for row in rows] == ["tiny-patient-s0-t0", "again"]
    assert rows[1]["configuration"] == "a=x;b=2" and rows[1]["images"] == str(len(data.subset("test")))


def test_a_model_that_ranks_backwards_is_recorded_as_that(recorded, tmp_path, capsys):
    """Platt scaling with a negative slope would turn it round and publish 1 - AUROC."""
    import chestxray as cx

    _, data, _ = recorded
    inputs = keras.Input((32, 32, 1))
    darkness = keras.layers.Dense(1, kernel_initializer=keras.initializers.Constant(1.0), name="logit")(
        keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 255)(inputs))
    )
    for sign in (1, -1):
        model = keras.Model(inputs, keras.layers.Rescaling(sign)(darkness))
        cx.record_model(model, data, f"sign{sign}", tmp_path, parameters={}, weights="", training={})
    found = [read_json(tmp_path / "results" / f"sign{sign}-patient-s0-t0.json") for sign in (1, -1)]
    scores = [one["metrics"]["val"]["auroc"]["value"] for one in found]
    assert sum(scores) == pytest.approx(1.0, abs=1e-9) and scores[0] != scores[1]
    assert "ranks the validation images backwards" in capsys.readouterr().out
    for sign, score in zip((1, -1), scores, strict=True):
        rows = results.read_predictions(tmp_path / "results", f"sign{sign}-patient-s0-t0")
        rows = rows[rows["split"] == "val"]
        assert roc_auc_score(rows["label"], rows["logit"]) == pytest.approx(score, abs=1e-9)


def layers_of_a_user():
    from keras import layers

    return [
        layers.Rescaling(1 / 255),
        layers.Conv2D(4, 3, activation="relu"),
        layers.GlobalAveragePooling2D(),
        layers.Dense(1),
    ]


def test_models_of_the_user_are_recorded(recorded, tmp_path):
    _, data, _ = recorded
    inner = keras.Sequential([keras.Input((32, 32, 1)), *layers_of_a_user()[:2]])
    for name, layers in (("sequential", layers_of_a_user()), ("nested", [inner, *layers_of_a_user()[2:]])):
        model = keras.Sequential([keras.Input((32, 32, 1)), *layers])
        results.record_model(model, data, name, tmp_path, parameters={}, weights="random", training={})
        table = results.read_predictions(tmp_path / "results", f"{name}-patient-s0-t0").query(
            "split == 'val'"
        )
        assert table["logit"].to_numpy() == pytest.approx(model.predict(data.images("val"))[:, 0], abs=1e-4)


def test_a_model_whose_feature_maps_are_out_of_reach_looks_at_nothing(recorded, tmp_path):
    _, data, _ = recorded
    inner = keras.Sequential([keras.Input((32, 32, 1)), *layers_of_a_user()[:3]])
    model = keras.Sequential([keras.Input((32, 32, 1)), inner, keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="lie inside a nested model"):
        results.record_model(model, data, "pooled", tmp_path, parameters={}, weights="random", training={})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("units", "activation"), [(1, "sigmoid"), (2, None), (3, "softmax")])
def test_a_model_that_gives_no_logits_is_refused(recorded, tmp_path, units, activation):
    _, data, _ = recorded
    model = keras.Sequential(
        [keras.Input((32, 32, 1)), *layers_of_a_user()[:3], keras.layers.Dense(units, activation=activation)]
    )
    with pytest.raises(ValueError, match="raw logits|1 logit"):
        results.record_model(model, data, "other", tmp_path, parameters={}, weights="random", training={})
    assert not list(tmp_path.iterdir())


def test_a_card_claims_of_the_patients_what_was_given(tmp_path):
    import chestxray as cx
    from chestxray.phantoms import write_phantoms

    write_phantoms(tmp_path, 60, 48, 1)
    (tmp_path / "README.txt").unlink()  # taken for real films from here on; the names are those of Kaggle
    data = cx.load_data(tmp_path / "chest_xray", image=cx.ImageSettings(32))
    model = keras.Sequential([keras.Input((32, 32, 1)), *layers_of_a_user()])
    given = {"parameters": {}, "weights": "random", "training": {}}
    with pytest.raises(ValueError, match="population must be empty or one of .*Received: population='kids'"):
        results.record_model(model, data, "tiny", tmp_path, **given, population="kids")
    for population in ("", "kermany"):
        results.record_model(model, data, "tiny", tmp_path, **given, population=population)
        card = read_json(tmp_path / "saved_models" / "tiny-patient-s0-t0" / "card.json")
        notice = (tmp_path / "saved_models" / "tiny-patient-s0-t0" / "NOTICE").read_text(encoding="utf-8")
        assert ("10.17632/rscbjbr9sj" in notice) == bool(population) and "weights: random" in notice
        said = "children" in " ".join(card["limits"])
        assert said == ("population" in card) == bool(population)


def test_a_result_of_other_parameters_is_not_replaced_in_silence(recorded, tmp_path, capsys):
    _, data, _ = recorded
    model = keras.Sequential([keras.Input((32, 32, 1)), *layers_of_a_user()])
    given = {"weights": "random", "training": {}, "score_test": False}
    for epochs in (3, 3, 5):
        parameters = {"name": "a", "training": {"epochs": epochs, "rates": {}, "optimizer": "sgd"}}
        results.record_model(model, data, "tiny", tmp_path, parameters=parameters, **given)
    said = [line for line in capsys.readouterr().out.splitlines() if "replaced" in line]
    assert said == ["results/tiny-patient-s0-t0.json, made with another training.epochs, is replaced"]
    (tmp_path / "results" / "tiny-patient-s0-t0.json").write_text("damaged")
    results.record_model(model, data, "tiny", tmp_path, parameters=parameters, **given)
    assert read_json(tmp_path / "results" / "tiny-patient-s0-t0.json")["parameters"] == parameters


def test_validation_only_leaves_test_alone(recorded, tmp_path):
    import chestxray as cx

    _, data, _ = recorded
    found = results.record_model(
        cx.build_student_cnn(32),
        data,
        "val_only",
        tmp_path,
        parameters={},
        weights="random",
        training={},
        score_test=False,
    )
    predictions = pd.read_csv(tmp_path / "results" / "val_only-patient-s0-t0.predictions.csv")
    assert set(predictions["split"]) == {"val"} and set(found["metrics"]) == {"val", "train"}
    assert not (tmp_path / "results" / "test_log.csv").exists()


def test_notice_names_the_origin_of_weights_and_lungs():
    card = read_json(project_path("saved_models/phantom_cnn/card.json"))
    assert "synthetic images" in render("NOTICE.j2", **card) and "Oxford" not in render("NOTICE.j2", **card)
    card |= {"weights": "imagenet", "image": {"resize": "lung_box"}}
    for backbone, words in (
        ("VGG16", "Visual Geometry Group, University of Oxford, CC BY 4.0"),
        ("X", "https://keras.io"),
    ):
        notice = render("NOTICE.j2", **card | {"parameters": {"backbone": backbone, "teachers": ["a", "b"]}})
        assert words in notice and "Teachers: a, b." in notice and "lungs.onnx" in notice


# Three logits, and several ways of training


@pytest.fixture(scope="module")
def three(data, tmp_path_factory):
    """A network with three logits that nobody trained, on results."""
    import chestxray as cx

    folder = tmp_path_factory.mktemp("three")
    keras.utils.set_random_seed(0)
    model = cx.build_student_cnn(32, outputs=3)
    kernel = np.random.default_rng(5).normal(0, 30, (64, 3))
    model.get_layer("logit").set_weights([kernel, np.zeros(3)])
    mean = np.asarray(model(data.images("test").astype(np.float32))).mean(axis=0)
    model.get_layer("logit").set_weights([kernel, -mean])  # so that no class wins everywhere
    found = results.record_model(
        model, data, "three", folder, parameters={}, weights="random", training={"epochs": {}}
    )
    return model, folder, found


def test_three_logits_become_the_odds_of_pneumonia(three, data):
    from chestxray.deployment.classifier import load_classifier

    model, folder, _ = three
    rows = results.read_predictions(folder / "results", "three-patient-s0-t0").query("split == 'test'")
    logits = np.asarray(model(data.images("test").astype(np.float32)))
    for number, name in enumerate(("normal", "bacteria", "virus")):
        np.testing.assert_allclose(rows[f"logit_{name}"], logits[:, number], atol=1e-4)
    odds = np.log(np.exp(logits[:, 1]) + np.exp(logits[:, 2])) - logits[:, 0]
    np.testing.assert_allclose(rows["logit"], odds, atol=1e-4)
    loaded = load_classifier(folder / "saved_models" / "three-patient-s0-t0")
    np.testing.assert_allclose(loaded.logits(data.images("test")), odds, atol=1e-4)


def test_confusion_by_subtype_by_hand(three, data):
    model, _, found = three
    rows = data.subset("test")
    called = np.asarray(model(data.images("test").astype(np.float32))).argmax(axis=1)
    wanted = [
        [int(((rows["subtype"] == name).to_numpy() & (called == number)).sum()) for number in range(3)]
        for name in ("normal", "bacteria", "virus")
    ]
    assert found["subtype_confusion"]["test"] == wanted == results.subtype_confusion(model, data, "test")
    assert sum(map(sum, wanted)) == len(rows) and len({*called}) > 1


def test_variants_are_written_with_their_logits(three, data, tmp_path):
    from chestxray.evaluation.comparison import score_variants

    model, _, _ = three
    table = results.predict_variants({"a0": model, "b0": model}, data, ["val", "test"])
    assert list(table.columns) == ["path", "group", "subtype", "label", "split", "a0", "b0"]
    scored = {"test": score_variants(table, {"a": ["a0"], "b": ["b0"]}, "a")}
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "x_variants-patient-s0-t0-1-0.npz").write_bytes(b"")
    found = results.record_variants(
        "x_variants", tmp_path, data, table=table, scored=scored, content={"student": "x"}, step_key="0123"
    )
    stored = read_json(tmp_path / "results" / "x_variants-patient-s0-t0.json")
    assert stored == found | {"step_key": "0123"} and stored["schema"] == results.VARIANTS_SCHEMA
    assert stored["variants"]["test"]["b"]["difference"]["auroc"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    again = results.read_predictions(tmp_path / "results", "x_variants-patient-s0-t0")
    np.testing.assert_allclose(again["a0"], table["a0"], rtol=1e-5)
    assert not list((tmp_path / "checkpoints").iterdir())

    # Another training seed does not overwrite it.
    second = dataclasses.replace(data, train_seed=5)
    given = {"table": table, "scored": scored, "content": {"student": "y"}}
    assert (
        results.record_variants("x_variants", tmp_path, second, **given)["name"] == "x_variants-patient-s0-t5"
    )
    assert read_json(tmp_path / "results" / "x_variants-patient-s0-t0.json") == stored


def test_what_a_step_records_on_its_way_does_not_finish_it(three, data, tmp_path):
    model, _, _ = three
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "way-patient-s0-t0.npz").write_bytes(b"")
    (tmp_path / "checkpoints" / "way-patient-s0-t0-fine.npz").write_bytes(b"")
    (tmp_path / "checkpoints" / "way-patient-s0-t01-fine.npz").write_bytes(b"")  # of another seed
    for final in (False, True):
        results.record_model(
            model,
            data,
            "way",
            tmp_path,
            parameters={},
            weights="random",
            training={"epochs": {}},
            score_test=False,
            final=final,
            step_key="0123" if final else None,
        )
        stored = read_json(tmp_path / "results" / "way-patient-s0-t0.json")
        assert stored["step_key"] == ("0123" if final else None)
        assert len(list((tmp_path / "checkpoints").iterdir())) == (1 if final else 3)


def test_the_baseline_comes_from_the_audit_of_the_same_images(recorded, tmp_path):
    import chestxray as cx

    _, data, found = recorded
    assert found["baseline"] is None
    model = cx.build_student_cnn(32)
    for images, baseline in ((60, {"sees": "border", "auroc": 0.7}), (59, None)):
        write_json(
            tmp_path / "results" / "audit.json",
            {
                "data": "synthetic",
                "images": images,
                "baseline": {"sees": "border", "auroc": 0.7, "roc": [0, 1]},
            },
        )
        again = results.record_model(
            model,
            data,
            "baseline",
            tmp_path,
            parameters={},
            weights="random",
            training={"epochs": {}},
            score_test=False,
        )
        assert again["baseline"] == baseline
        text = (tmp_path / "saved_models" / "baseline-patient-s0-t0" / "README.md").read_text(
            encoding="utf-8"
        )
        assert ("(border) reaches AUROC 0.700" in text) == bool(baseline)


def test_the_card_tells_the_same_numbers(recorded):
    folder, _, found = recorded
    text = (folder / "saved_models" / "tiny-patient-s0-t0" / "README.md").read_text(encoding="utf-8")
    test = found["metrics"]["test"]
    for entry in (
        test["auroc"],
        test["auroc_reframed"],
        test["brier"],
        test["slope"],
        test["half"]["specificity"],
    ):
        assert f"{entry['value']:.3f}" in text
    for said in ("Intended use", "not a medical device", "Triage: rule out below"):
        assert said in text
    assert "TRIPOD" not in text  # synthetic


def test_cards_of_older_models_are_rendered():
    from chestxray.deployment.card import model_card

    card = read_json(project_path("saved_models/custom_cnn-patient-s0-t0/card.json"))
    card["metrics"] = {subset: card["metrics"][subset] for subset in ("val", "test")}
    for entries in card["metrics"].values():
        del entries["auroc_reframed"]
    value = card["metrics"]["test"]["auroc"]["value"]
    row = next(line for line in model_card(card).splitlines() if line.startswith("| test |"))
    assert f"{value:.3f}" in row and row.split("|")[3].strip() == "–"
