"""A model chosen on validation is scored on test once, without another training."""

import shutil

import numpy as np
import pytest
from click.testing import CliRunner

import chestxray as cx
from chestxray.cli import main
from chestxray.files import read_json


@pytest.fixture
def chosen(data, tmp_path):
    """Run with a network that nobody trained, scored on validation alone."""
    cx.set_seed(0)
    model = cx.build_student_cnn(32)
    model.get_layer("logit").set_weights([np.random.default_rng(0).normal(size=(64, 1)), np.zeros(1)])
    history = {"epoch": [1, 2], "loss": [0.7, 0.6], "val_loss": [0.7, 0.65]}
    cx.record_model(
        model,
        data,
        "try_3",
        tmp_path / "run",
        parameters={"a": 1},
        weights="random",
        training={"epochs": {"train": 2}, "history": history},
        score_test=False,
    )
    return tmp_path / "run"


def arguments(run, folder, tmp_path):
    return [
        "freeze",
        str(run),
        "try_3-patient-s0",
        "--as",
        "best",
        "--data-dir",
        str(folder),
        "--output-dir",
        str(tmp_path / "final"),
    ]


def test_the_frozen_model_says_what_the_chosen_one_said(chosen, data, tiny_folder, tmp_path):
    result = CliRunner().invoke(main, arguments(chosen, tiny_folder, tmp_path))
    assert result.exit_code == 0, result.output
    final = tmp_path / "final"
    before = read_json(chosen / "results" / "try_3-patient-s0.json")
    after = read_json(final / "results" / "best-patient-s0.json")
    for same in ("parameters", "weights", "training", "calibration", "thresholds", "split_hash"):
        assert after[same] == before[same]
    assert after["metrics"]["val"] == before["metrics"]["val"] and "test" in after["metrics"]
    assert (before["record"], after["record"]) == (False, True)
    rows = cx.read_predictions(final / "results", "best-patient-s0").query("split == 'test'")
    assert list(rows["path"]) == list(data.subset("test")["path"])
    assert {path.stem.split("-")[0] for path in (final / "images").glob("*-best-patient-s0.png")} == {
        "learning_curves",
        "confusion",
        "roc_pr",
        "scores",
    }
    log = (final / "results" / "test_log.csv").read_text(encoding="utf-8")
    assert log.count("best-patient-s0") == 1


def test_a_model_whose_test_was_seen_is_refused(chosen, tiny_folder, tmp_path):
    given = arguments(chosen, tiny_folder, tmp_path)
    assert CliRunner().invoke(main, given).exit_code == 0
    again = arguments(tmp_path / "final", tiny_folder, tmp_path)
    frozen = [*again[:2], "best-patient-s0", "--as", "other", *again[5:]]
    for arguments_of in (given, frozen):  # another candidate under the same name; the frozen one once more
        result = CliRunner().invoke(main, arguments_of)
        assert result.exit_code == 2 and "test images were scored already" in result.output


def test_broken_off_while_drawing_the_same_call_draws_the_rest(chosen, tiny_folder, tmp_path, monkeypatch):
    drawn = cx.plots.roc_pr

    def broken_off(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.setattr(cx.plots, "roc_pr", broken_off)
    given = arguments(chosen, tiny_folder, tmp_path)
    assert CliRunner().invoke(main, given).exit_code == 130
    monkeypatch.setattr(cx.plots, "roc_pr", drawn)
    again = CliRunner().invoke(main, given)
    assert again.exit_code == 0, again.output
    figures = list((tmp_path / "final" / "images").iterdir())
    assert len(figures) == 4 and not [path for path in figures if path.name.startswith(".")]
    assert (tmp_path / "final" / "results" / "test_log.csv").read_text(encoding="utf-8").count("best-") == 1


def test_other_images_are_refused(chosen, tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    next(other.rglob("*.png")).unlink()
    result = CliRunner().invoke(main, arguments(chosen, other, tmp_path))
    assert result.exit_code == 2 and "not the images" in result.output
