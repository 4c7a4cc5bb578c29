"""The whole plan on a user's folder: other class names, no patients, broken files."""

import os
import signal
import subprocess
import sys
import threading
import time

import cv2
import distributed
import numpy as np
import pandas as pd
import psutil
import pytest

from chestxray.files import read_json
from chestxray.phantoms import write_phantoms
from chestxray.run import run_plan


@pytest.mark.slow
def test_all_notebooks_on_a_plain_folder_with_broken_files(tmp_path, plain_folder):
    sick = plain_folder(tmp_path, 120) / "sick"
    whole = (sick / "000.jpeg").read_bytes()
    (sick / "cut.jpeg").write_bytes(whole[: len(whole) // 2])
    (sick / "empty.jpeg").write_bytes(b"")
    (sick / "text.jpeg").write_text("a letter")
    deep = cv2.imread(str(sick / "001.jpeg"), cv2.IMREAD_GRAYSCALE).astype(np.uint16) * 16  # 12 bits in 16
    cv2.imwrite(str(sick / "deep.png"), deep)

    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from chestxray.cli import main; main()",
            "run",
            "--data-dir",
            "mine",
            "--classes",
            "healthy",
            "sick",
            "--preset",
            "demo",
            "--output-dir",
            "out",
            "-p",
            "image_size",
            "64",
            "-p",
            "epochs",
            "2",
            "-p",
            "score_test",
            "false",
            "-p",
            "force",
            "true",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    results = tmp_path / "out" / "results"
    counts = read_json(results / "dataset-patient-s0.json")
    assert counts["problems"] == {"empty file": 1, "not an image": 1, "truncated": 1, "unknown name": 121}
    model = read_json(results / "custom_cnn-patient-s0-t0.json")
    assert model["classes"] == ["healthy", "sick"] and model["data"] == "mine"
    assert set(model["metrics"]) == {"val", "train"} and not (results / "test_log.csv").exists()
    assert "Validation images (mine data)" in done.stdout and "Test images" not in done.stdout
    assert {model["name"] for model in read_json(results / "comparison-patient.json")["models"]} == {
        f"{name}-patient-s0-t0" for name in ("custom_cnn", "vgg16", "student", "student_teacher1")
    }
    variants = read_json(results / "student_variants-patient-s0-t0.json")["variants"]["val"]
    assert set(variants) == {"alone", "distilled"}  # no subtype is known
    card = (tmp_path / "out" / "saved_models" / "custom_cnn-patient-s0-t0" / "README.md").read_text()
    assert "healthy (0) against sick (1)" in card and "one hospital" not in card


@pytest.mark.slow
def test_two_dask_workers_run_a_plan_and_one_is_killed(tmp_path, monkeypatch):
    """Both split rules at once; the step of the killed worker continues from its checkpoint."""
    write_phantoms(tmp_path / "made", 120, 64, 0)
    data, settings = str(tmp_path / "made" / "chest_xray"), {"image_size": 64, "epochs": 6}
    assert run_plan("demo", data, ["image", "patient"], tmp_path / "alone", settings, "02") == 0
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        pid, checkpoint = cluster.workers[0].pid, tmp_path / "spread" / "checkpoints"

        def kill():
            deadline = time.monotonic() + 300
            while len(list(checkpoint.glob("*.npz"))) < 2 and time.monotonic() < deadline:  # both train
                time.sleep(0.1)
            for child in psutil.Process(pid).children(recursive=True):
                child.kill()
            os.kill(pid, signal.SIGKILL)

        killer = threading.Thread(target=kill, daemon=True)
        killer.start()
        assert (
            run_plan(
                "demo",
                data,
                ["image", "patient"],
                tmp_path / "spread",
                settings,
                "02",
                jobs=-1,
                backend="dask",
            )
            == 0
        )
        killer.join()
        assert cluster.workers[0].pid != pid
    for rule in ("image", "patient"):
        name = f"results/custom_cnn-{rule}-s0-t0.predictions.csv"
        found = pd.read_csv(tmp_path / "spread" / name)
        pd.testing.assert_frame_equal(found, pd.read_csv(tmp_path / "alone" / name), atol=1e-3)
    log = pd.read_csv(tmp_path / "spread" / "results" / "test_log.csv")
    assert sorted(log["name"]) == ["custom_cnn-image-s0-t0", "custom_cnn-patient-s0-t0"]
