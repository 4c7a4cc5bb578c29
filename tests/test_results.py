"""Result files are written whole, and read in order."""

import numpy as np
import pytest

from chestxray import results
from chestxray.files import read_json, write_json


def result(model, auroc=0.9, rule="patient", data="chest_xray", subsets=("val", "test"), seed=0):
    entry = {"value": auroc, "low": auroc - 0.05, "high": auroc + 0.05}
    metrics = {subset: {"auroc": entry, "youden": {"accuracy": entry}} for subset in subsets}
    return {
        "schema": results.RESULT_SCHEMA,
        "name": results.result_name(model, rule, seed, seed),
        "data": data,
        "split_rule": rule,
        "split_hash": "abc",
        "record": False,
        "weights": "random",
        "parameter_count": 7,
        "metrics": metrics,
    }


def test_results_are_ordered_by_split_and_validation_and_others_are_ignored(tmp_path):
    for one in (result("b", 0.8), result("a", 0.7), result("c", 0.6, rule="image")):
        write_json(tmp_path / f"{one['name']}.json", one)
    write_json(tmp_path / "other.json", {"schema": "chestxray.dataset/1", "name": "other"})
    assert [one["name"] for one in results.read_results(tmp_path)] == [
        "c-image-s0-t0",
        "b-patient-s0-t0",
        "a-patient-s0-t0",
    ]


def test_the_worse_of_plain_and_reframed_validation_decides(tmp_path):
    tried = {"squash": (0.99, 0.7), "lungs": (0.95, 0.94), "older": (0.999, None)}
    for name, (plain, reframed) in tried.items():
        one = result(name, plain)
        one["metrics"]["val"] |= {"auroc_reframed": {"value": reframed}} if reframed else {}
        write_json(tmp_path / f"{name}.json", one)
    assert [one["name"].split("-")[0] for one in results.read_results(tmp_path)] == [
        "lungs",
        "squash",
        "older",
    ]


def test_no_result_is_an_error_that_names_the_folder(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: folder='.*nothing'"):
        results.read_results(tmp_path / "nothing")


def test_comparison_leaves_out_models_without_test_scores():
    table = results.comparison_table([result("a"), result("b", subsets=("val",))])
    assert table.loc[0, ["name", "model", "train_seed"]].tolist() == ["a-patient-s0-t0", "a", 0]
    assert len(table) == 1
    assert table.loc[0, ["auroc", "auroc_low", "accuracy_high"]].tolist() == pytest.approx([0.9, 0.85, 0.95])


def test_seeds_of_a_model_are_summed_up_by_hand():
    """Mean and standard deviation of .8, .9 and 1.0 are .9 and .1; one seed has no spread."""
    some = [result("a-b", auroc, seed=seed) for seed, auroc in enumerate((0.8, 0.9, 1.0))]
    others = [result("a-b", 0.7, rule="image"), result("c")]
    table = results.seed_table(results.comparison_table([*some, *others]))
    assert table[["model", "split_rule", "seeds"]].values.tolist() == [
        ["a-b", "patient", 3],
        ["a-b", "image", 1],
        ["c", "patient", 1],
    ]
    assert table.loc[0, ["auroc", "auroc_sd", "accuracy", "accuracy_sd"]].tolist() == pytest.approx(
        [0.9, 0.1, 0.9, 0.1]
    )
    assert np.isnan(table.loc[1, "auroc_sd"])


def test_a_metric_that_no_model_has_is_no_number():
    table = results.comparison_table([result("a"), result("a", seed=1)]).astype({"auroc": object})
    table["auroc"] = None
    summed = results.seed_table(table)
    assert np.isnan(summed.loc[0, "auroc"]) and summed.loc[0, "accuracy"] == pytest.approx(0.9)


def test_result_carries_the_key_of_the_step(tmp_path, capsys):
    path = results.write_result(tmp_path, {"name": "x"}, "0123")
    assert read_json(path) == {"name": "x", "step_key": "0123"}
    assert capsys.readouterr().out == "wrote results/x.json\n"


def test_nan_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(ValueError):
        results.write_result(tmp_path, {"name": "x", "value": float("nan")})
    assert not list(tmp_path.rglob("*.json"))


def test_a_classifier_is_found_by_name_or_folder(tmp_path):
    folder = results.find_classifier("vgg16", tmp_path, "image", split_seed=3, train_seed=5)
    assert folder == tmp_path / "saved_models/vgg16-image-s3-t5"
    assert results.find_classifier(f"{tmp_path}/mine", "x", "image", 3) == tmp_path / "mine"
    assert results.parse_result_name("a-b-image-s3-t5") == ("a-b", "image", 3, 5)
