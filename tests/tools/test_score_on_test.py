"""A model chosen on validation is evaluated on test once, without another training."""

import shutil

import numpy as np
import pytest
from score_on_test import score_on_test

import chestxray as cx
from chestxray.files import read_json


@pytest.fixture
def chosen(data, tmp_path):
    """Run with an untrained network, evaluated on validation alone."""
    model = cx.build_student_cnn(32)
    model.get_layer("logit").set_weights([np.random.default_rng(0).normal(size=(64, 1)), np.zeros(1)])
    cx.record_model(
        model,
        data,
        "try_3",
        tmp_path / "run",
        parameters={"a": 1},
        weights="random",
        training={"epochs": {"train": 2}, "history": {"epoch": [1, 2]}},
        score_test=False,
    )
    return tmp_path / "run"


def test_the_recorded_model_is_the_chosen_one_and_test_is_evaluated_once(chosen, data, tiny_folder, tmp_path):
    final = tmp_path / "final"
    score_on_test(chosen, "try_3-patient-s0-t0", "best", tiny_folder, final)
    before = read_json(chosen / "results" / "try_3-patient-s0-t0.json")
    after = read_json(final / "results" / "best-patient-s0-t0.json")
    for same in ("parameters", "weights", "training", "calibration", "thresholds", "split_hash"):
        assert after[same] == before[same]
    assert after["metrics"]["val"] == before["metrics"]["val"] and "test" in after["metrics"]
    assert (before["record"], after["record"]) == (False, True)
    rows = cx.read_predictions(final / "results", "best-patient-s0-t0").query("split == 'test'")
    assert list(rows["path"]) == list(data.subset("test")["path"])
    log = (final / "results" / "test_log.csv").read_text(encoding="utf-8")
    assert log.count("best-patient-s0-t0") == 1
    for run, name, final_name in (
        (chosen, "try_3-patient-s0-t0", "best"),  # another candidate under the same name
        (final, "best-patient-s0-t0", "other"),  # the same model a second time
    ):
        with pytest.raises(ValueError, match="test images were scored already"):
            score_on_test(run, name, final_name, tiny_folder, final)
    assert (final / "results" / "test_log.csv").read_text(encoding="utf-8") == log


def test_other_images_are_refused(chosen, tiny_folder, tmp_path):
    other = shutil.copytree(tiny_folder, tmp_path / "other")
    next(other.rglob("*.png")).unlink()
    with pytest.raises(ValueError, match="not the images"):
        score_on_test(chosen, "try_3-patient-s0-t0", "best", other, tmp_path / "final")
