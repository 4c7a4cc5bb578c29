"""What may leave a run, and what may not."""

import pandas as pd
import pytest
from publish import publish
from test_results import result

from chestxray.files import write_json
from chestxray.results import VARIANTS_SCHEMA


def make_run(folder, *results, model_bytes=10):
    for content in results:
        name = content["name"]
        write_json(folder / "results" / f"{name}.json", content)
        (folder / "results" / f"{name}.predictions.csv").write_text("path\n")
        model = folder / "saved_models" / name
        model.mkdir(parents=True)
        (model / "model.keras").write_bytes(b"0" * model_bytes)
    (folder / "images").mkdir()
    for figure in ("roc_pr-a-patient-s0-t0.png", "heatmaps.png", "class_means.png", "phantoms.png"):
        (folder / "images" / figure).write_bytes(b"0")
    (folder / "results" / "notebooks").mkdir()
    (folder / "results" / "notebooks" / "01.ipynb").write_text("{}")
    (folder / "results" / "test_log.csv").write_text("time,name\n1,a\n")


PUBLISHED = [
    "results/a-patient-s0-t0.json",
    "results/a-patient-s0-t0.predictions.csv",
    "results/test_log.csv",
    "saved_models/a-patient-s0-t0/model.keras",
]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_of_real_data_only_results_and_models_are_copied(tmp_path):
    make_run(tmp_path / "run", result("a"))
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == PUBLISHED  # no figure: heatmaps.png holds X-rays here


def test_of_phantoms_only_figures_are_copied(tmp_path):
    make_run(tmp_path / "run", result("a", data="synthetic"))
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == ["images/heatmaps.png", "images/phantoms.png"]


def test_variants_are_copied_with_their_predictions(tmp_path):
    make_run(tmp_path / "run", result("a"))
    write_json(tmp_path / "run/results/b_variants.json", {"schema": VARIANTS_SCHEMA, "name": "b_variants"})
    (tmp_path / "run/results/b_variants.predictions.csv").write_text("path\n")
    publish(tmp_path / "run", tmp_path / "repo")
    copied = set(files(tmp_path / "repo"))
    assert {"results/b_variants.json", "results/b_variants.predictions.csv"} <= copied


def test_a_mixed_run_and_an_empty_one_are_refused(tmp_path):
    make_run(tmp_path / "run", result("a"), result("b", data="synthetic"))
    with pytest.raises(ValueError, match="mixes"):
        publish(tmp_path / "run", tmp_path / "repo")
    with pytest.raises(FileNotFoundError, match="no result"):
        publish(tmp_path / "empty", tmp_path / "repo")


def test_large_models_and_further_seeds_are_left_out_and_named(tmp_path):
    make_run(tmp_path / "run", result("a"), result("a", seed=1))
    make_run(tmp_path / "large", result("b"), model_bytes=21_000_000)
    report = publish(tmp_path / "run", tmp_path / "repo") + publish(tmp_path / "large", tmp_path / "repo")
    assert "left out saved_models/a-patient-s1-t1: a further seed" in report
    assert "left out saved_models/b-patient-s0-t0: 21 MB" in report
    assert files(tmp_path / "repo" / "saved_models") == ["a-patient-s0-t0/model.keras"]
    assert (tmp_path / "repo/results/a-patient-s1-t1.json").exists()


def test_a_large_model_is_copied_if_it_is_on_record_and_claims_go_to_their_folder_without_models(tmp_path):
    make_run(
        tmp_path / "run", result("a") | {"record": True}, result("project001_cnn"), model_bytes=21_000_000
    )
    publish(tmp_path / "run", tmp_path / "repo")
    claims = [f"results/claims/project001_cnn-patient-s0-t0{end}" for end in (".json", ".predictions.csv")]
    assert files(tmp_path / "repo") == sorted([*PUBLISHED, *claims])


def test_a_model_on_record_without_its_files_is_named_before_anything_is_copied(tmp_path):
    make_run(tmp_path / "run", result("a"))
    (tmp_path / "run/results/a-patient-s0-t0.predictions.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"a-patient-s0-t0\.predictions\.csv"):
        publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == []


def test_test_evaluations_accumulate_without_repetition(tmp_path):
    make_run(tmp_path / "run", result("a"))
    published = tmp_path / "repo" / "results" / "test_log.csv"
    published.parent.mkdir(parents=True)
    published.write_text("time,name\n0,older\n")
    for _ in range(2):
        publish(tmp_path / "run", tmp_path / "repo")
    assert published.read_text() == "time,name\n0,older\n1,a\n"


def only_tried(name, auroc):
    return result(name, auroc, subsets=("val",)) | {
        "training": {"epochs": {"head": 3}, "seconds": 9.0},
        "image": {"size": 64},
        "parameters": {"dropout": 0.5},
    }


def test_what_was_only_tried_on_validation_becomes_a_row(tmp_path):
    make_run(tmp_path / "run", result("a"), only_tried("b", 0.9), only_tried("c", 0.8))
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == sorted([*PUBLISHED, "results/tried.csv"])
    make_run(tmp_path / "later", only_tried("b", 0.7), only_tried("d", 0.6))
    publish(tmp_path / "later", tmp_path / "repo")
    table = pd.read_csv(tmp_path / "repo" / "results" / "tried.csv").set_index("name")
    assert table["auroc"].to_dict() == {
        "b-patient-s0-t0": 0.7,
        "c-patient-s0-t0": 0.8,
        "d-patient-s0-t0": 0.6,
    }
    assert not [column for column in table if column.endswith(("_low", "_high", "_seed"))]
    assert table.iloc[0][["epochs", "parameters"]].tolist() == ['{"head": 3}', '{"dropout": 0.5}']
