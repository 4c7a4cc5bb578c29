"""Result files are written whole, and read in order."""

import pytest

from chestxray import results
from chestxray.files import read_json, write_json


def result(name, auroc=0.9, rule="patient", data="chest_xray", parts=("val", "test")):
    entry = {"value": auroc, "low": auroc - 0.05, "high": auroc + 0.05}
    metrics = {part: {"auroc": entry, "youden": {"accuracy": entry}} for part in parts}
    return {"schema": results.RESULT_SCHEMA, "name": name, "data": data, "split_rule": rule,
            "split_hash": "abc", "weights": "random", "parameter_count": 7, "metrics": metrics}


def test_results_are_ordered_by_split_and_validation_and_others_are_ignored(tmp_path):
    for one in (result("b", 0.8), result("a", 0.7), result("c", 0.6, rule="image")):
        write_json(tmp_path / f"{one['name']}.json", one)
    write_json(tmp_path / "other.json", {"schema": "chestxray.dataset/1", "name": "other"})
    assert [one["name"] for one in results.read_results(tmp_path)] == ["c", "b", "a"]


def test_no_result_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: folder='.*nothing'"):
        results.read_results(tmp_path / "nothing")


def test_comparison_leaves_out_models_without_test_scores():
    table = results.comparison_table([result("a"), result("b", parts=("val",))])
    assert list(table["name"]) == ["a"]
    assert table.loc[0, ["auroc", "auroc_low", "accuracy_high"]].tolist() == pytest.approx([0.9, 0.85, 0.95])


def test_result_carries_the_key_of_the_step(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(results.STEP_KEY, "0123")
    path = results.write_result(tmp_path, {"name": "x"})
    assert read_json(path) == {"name": "x", "step_key": "0123"}
    assert capsys.readouterr().out == "wrote results/x.json\n"


def test_nan_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        results.write_result(tmp_path, {"name": "x", "value": float("nan")})
    assert not list(tmp_path.rglob("*.json"))


def test_a_classifier_is_found_by_name_or_folder(tmp_path):
    assert results.find_classifier("vgg16", tmp_path, "image", 3) == tmp_path / "saved_models/vgg16-image-s3"
    assert results.find_classifier(f"{tmp_path}/mine", "x", "image", 3) == tmp_path / "mine"
