"""What may leave a run, and what may not."""

import cv2
import numpy as np
import pandas as pd
import pytest
from test_results import result

from chestxray.files import write_json
from chestxray.publish import publish
from chestxray.results import VARIANTS_SCHEMA

PNG = cv2.imencode(".png", np.full((2, 2, 3), 255, np.uint8))[1].tobytes()


def make_run(folder, *results, model_bytes=10):
    for one in results:
        name = one["name"]
        write_json(folder / "results" / f"{name}.json", one)
        (folder / "results" / f"{name}.predictions.csv").write_text("path\n")
        model = folder / "saved_models" / name
        model.mkdir(parents=True)
        (model / "model.keras").write_bytes(b"0" * model_bytes)
    (folder / "images").mkdir()
    for figure in (
        "roc_pr-a-patient-s0.png",
        "learning_curves-a-patient-s0.png",
        "samples-a.png",
        "class_means.png",
        "phantoms.png",
    ):
        (folder / "images" / figure).write_bytes(PNG)
    notebooks = folder / "results" / "notebooks"
    notebooks.mkdir()
    (notebooks / "01.ipynb").write_text("{}")
    (folder / "results" / "test_log.csv").write_text("time,name\n1,a\n")


PUBLISHED = [
    "images/learning_curves-a-patient-s0.png",
    "images/roc_pr-a-patient-s0.png",
    "results/a-patient-s0.json",
    "results/a-patient-s0.predictions.csv",
    "saved_models/a-patient-s0/model.keras",
]


def files(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_only_what_is_allowed_is_copied(tmp_path):
    make_run(tmp_path / "run", result("a"))
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == [*PUBLISHED[:4], "results/test_log.csv", PUBLISHED[4]]


def test_curves_of_a_training_without_result_stay(tmp_path):
    make_run(tmp_path / "run", result("a"))
    (tmp_path / "run/images/learning_curves-b-patient-s0.png").write_bytes(PNG)
    assert "left out images/learning_curves-b-patient-s0.png" in publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo/images") == ["learning_curves-a-patient-s0.png", "roc_pr-a-patient-s0.png"]


def test_ways_of_training_are_copied_with_their_logits(tmp_path):
    make_run(tmp_path / "run", result("a"))
    write_json(tmp_path / "run/results/b_variants.json", {"schema": VARIANTS_SCHEMA, "name": "b_variants"})
    (tmp_path / "run/results/b_variants.predictions.csv").write_text("path\n")
    (tmp_path / "run/images/variants-b_variants.png").write_bytes(PNG)
    publish(tmp_path / "run", tmp_path / "repo")
    assert {
        "images/variants-b_variants.png",
        "results/b_variants.json",
        "results/b_variants.predictions.csv",
    } <= set(files(tmp_path / "repo"))


def test_of_phantoms_only_pictures_are_published(tmp_path):
    make_run(tmp_path / "run", result("a", data="synthetic"))
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == ["images/phantoms.png"]
    assert (tmp_path / "repo/images/phantoms.png").read_bytes() == PNG  # grey pictures stay as they are


def test_figures_of_curves_become_smaller_and_look_the_same(tmp_path):
    make_run(tmp_path / "run", result("a"))
    figure = np.full((400, 600, 3), 255, np.uint8)
    for number, colour in enumerate([(0, 0, 0), (167, 121, 204), (115, 158, 0), (178, 114, 0), (0, 94, 213)]):
        curve = [[x, int(390 - 380 * (x / 600) ** (0.1 * number + 0.1))] for x in range(600)]
        cv2.polylines(figure, [np.array(curve)], False, colour, 2, cv2.LINE_AA)
    cv2.imwrite(str(tmp_path / "run/images/roc_pr-a-patient-s0.png"), figure)
    publish(tmp_path / "run", tmp_path / "repo")
    before, after = (tmp_path / folder / "images/roc_pr-a-patient-s0.png" for folder in ("run", "repo"))
    assert after.stat().st_size < before.stat().st_size / 2
    assert len(np.unique(figure.reshape(-1, 3), axis=0)) > 256
    difference = np.abs(cv2.imread(str(after)).astype(int) - figure)
    assert difference.mean() < 0.2 and difference.max() < 80


@pytest.mark.parametrize("share", [0, 0.01, 0.5])
def test_half_a_figure_is_named_and_replaces_nothing(share, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (60, 60, 3), np.uint8)
    whole = cv2.imencode(".png", noise)[1].tobytes()
    make_run(tmp_path / "run", result("a"))
    publish(tmp_path / "run", tmp_path / "repo")
    (tmp_path / "run/images/roc_pr-a-patient-s0.png").write_bytes(whole[: int(share * len(whole))])
    before = (tmp_path / "repo/images/roc_pr-a-patient-s0.png").read_bytes()
    with pytest.raises(ValueError, match=r"cannot be read .*Received: path='.*roc_pr-a-patient-s0\.png'"):
        publish(tmp_path / "run", tmp_path / "repo")
    assert (tmp_path / "repo/images/roc_pr-a-patient-s0.png").read_bytes() == before


def test_a_mixed_run_is_refused(tmp_path):
    make_run(tmp_path / "run", result("a"), result("b", data="synthetic"))
    with pytest.raises(ValueError, match="mixes"):
        publish(tmp_path / "run", tmp_path / "repo")


def test_large_models_are_left_out_and_named(tmp_path):
    make_run(tmp_path / "run", result("a"), model_bytes=21_000_000)
    said = publish(tmp_path / "run", tmp_path / "repo")
    assert "left out saved_models/a-patient-s0: 21 MB" in said
    assert not (tmp_path / "repo" / "saved_models").exists()


def test_one_model_stands_for_its_seeds(tmp_path):
    make_run(tmp_path / "run", result("a"), result("a") | {"name": "a-patient-s1"})
    said = publish(tmp_path / "run", tmp_path / "repo")
    assert "left out saved_models/a-patient-s1: a further seed" in said
    assert files(tmp_path / "repo" / "saved_models") == ["a-patient-s0/model.keras"]
    assert (tmp_path / "repo/results/a-patient-s1.json").exists()


def test_looks_at_test_accumulate_without_repetition(tmp_path):
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
    (tmp_path / "run" / "images" / "roc_pr-b-patient-s0.png").write_bytes(PNG)
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == [
        *PUBLISHED[:4],
        "results/test_log.csv",
        "results/tried.csv",
        PUBLISHED[4],
    ]
    make_run(tmp_path / "later", only_tried("b", 0.7), only_tried("d", 0.6))
    publish(tmp_path / "later", tmp_path / "repo")
    table = pd.read_csv(tmp_path / "repo" / "results" / "tried.csv")
    assert dict(zip(table["name"], table["auroc"], strict=True)) == {
        "b-patient-s0": 0.7,
        "c-patient-s0": 0.8,
        "d-patient-s0": 0.6,
    }
    assert not [column for column in table if column.endswith(("_low", "_high"))]
    assert not {"model", "seed", "record"} & set(table)
    assert table.loc[0, ["epochs", "parameters"]].tolist() == ['{"head": 3}', '{"dropout": 0.5}']


def test_a_run_that_only_explains_models_is_published(tmp_path):
    content = {"schema": "chestxray.explanation/1", "data": "films"}
    write_json(tmp_path / "run/results/explain-a.json", content)
    (tmp_path / "run/images").mkdir()
    (tmp_path / "run/images/perturbation-a.png").write_bytes(PNG)
    (tmp_path / "run/images/heatmaps.png").write_bytes(PNG)  # pixels of real films
    publish(tmp_path / "run", tmp_path / "repo")
    assert files(tmp_path / "repo") == ["images/perturbation-a.png", "results/explain-a.json"]
    with pytest.raises(FileNotFoundError, match="no result"):
        publish(tmp_path / "empty", tmp_path / "repo")
