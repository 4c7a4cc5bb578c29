"""``chestxray predict`` and ``chestxray export`` as they are called."""

import csv
import json
import os
import shutil
import signal
import subprocess

import cv2
import distributed
import numpy as np
import pytest
from click.testing import CliRunner

from chestxray import load_classifier
from chestxray.cli import main
from chestxray.deployment import predict
from chestxray.deployment import session as session_module
from chestxray.deployment.report import triage_group
from chestxray.deployment.session import Session
from chestxray.files import read_json, write_json


@pytest.fixture
def images(tmp_path):
    """40 images, one of them damaged."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number in range(40):
        pixels = np.clip(rng.normal(rng.uniform(60, 140), 25, (48, 48)), 0, 255).astype(np.uint8)
        assert cv2.imwrite(str(folder / f"{number:02d}.png"), pixels)
    (folder / "07.png").write_bytes(b"bad")
    return folder


def call(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def with_table_and_report(model, images, folder):
    written = "--output", folder / "out.csv", "--report", folder / "page.html"
    return "predict", model, images, "--accept-all", "--jobs", 1, *written


def test_lines_summary_and_exit_code(litert, images):
    result = call("predict", litert, images, "--accept-all")
    assert result.exit_code == 1  # one could not be read
    lines = result.output.splitlines()
    assert len(lines) == 41 and "07.png  unreadable (not an image" in lines[7]
    assert lines[-1].startswith("40 images, 0 refused, 1 unreadable; decided at")
    assert "not a medical device" in lines[-1]
    (images / "07.png").unlink()
    assert call("predict", litert, images, "--accept-all").exit_code == 0


def test_table_and_report_at_once(litert, images, tmp_path):
    result = call(*with_table_and_report(litert, images, tmp_path))
    assert result.exit_code == 1
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 40 and rows[7]["status"] == "unreadable"
    page = (tmp_path / "page.html").read_text()
    best = max((row for row in rows if row["probability"]), key=lambda row: float(row["probability"]))
    assert f"1. {best['path']}" in page and "39 classified, 0 refused, 1 unreadable" in page
    again = call("predict", litert, images, "--accept-all", "--output", tmp_path / "out.jsonl", "--jobs", 1)
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert again.exit_code == 1 and [row["path"] for row in written] == [row["path"] for row in rows]


def test_table_and_page_are_not_among_the_images(litert, images):
    given = with_table_and_report(litert, images, images)
    summaries = [call(*given).output.splitlines()[-1] for _ in range(2)]
    assert summaries[0] == summaries[1] and summaries[0].startswith("40 images, 0 refused, 1 unreadable")


def test_broken_off_in_the_report_nothing_is_predicted_again(litert, images, tmp_path, monkeypatch):
    given = with_table_and_report(litert, images, tmp_path)
    page, judge = session_module.report_page, session_module.judge

    def broken_off(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(session_module, "report_page", broken_off)
    result = call(*given)
    assert result.exit_code == 130 and result.output.endswith(
        "interrupted; the same command continues from this point\n"
    )
    monkeypatch.setattr(session_module, "report_page", page)
    monkeypatch.setattr(session_module, "judge", broken_off)
    assert call(*given).exit_code == 1  # one image cannot be read
    assert "39 classified" in (tmp_path / "page.html").read_text()
    assert {path.name for path in tmp_path.iterdir()} == {"images", "out.csv", "page.html"}
    alone = call(*given[:4], "--jobs", 1)  # without a table there is nothing to go on from
    assert alone.exit_code == 130 and alone.output == "interrupted\n"
    monkeypatch.setattr(session_module, "judge", judge)
    assert len(call(*given[:4], "--jobs", 1, "--report", tmp_path / "page.html").output.splitlines()) == 42


def test_a_table_among_the_images_is_no_list_of_images(litert, images):
    (images / "labels.csv").write_text("image,label\n1,0\n")
    for jobs in (1, 2):
        result = call("predict", litert, images, "--accept-all", "--jobs", jobs)
        assert result.exit_code == 1 and "41 images, 0 refused, 2 unreadable" in result.output
        assert "labels.csv  unreadable (not an image" in result.output


def test_paths_relative_to_here_reach_the_workers(litert, images, monkeypatch):
    monkeypatch.chdir(images)
    result = call("predict", litert, ".", "--accept-all", "--jobs", 2)
    assert result.output.splitlines()[0].startswith("00.png  0.") and "1 unreadable" in result.output


def test_workers_notice_another_model_in_the_same_folder(compact, litert, images, tmp_path):
    folder = tmp_path / "model"
    for source, bias in ((litert, 0.0), (compact, 50.0)):
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        card = read_json(folder / "card.json")
        card["calibration"]["intercept"] += bias
        write_json(folder / "card.json", card)
        rows = list(
            predict.predict_parallel(
                folder, sorted(images.glob("*.png"))[:3], "youden", True, jobs=2, backend="threading"
            )
        )
        assert [row["probability"] > 0.999 for row in rows] == [bool(bias)] * 3


def test_the_report_holds_the_most_suspicious_of_each_group(litert, images, monkeypatch):
    monkeypatch.setattr(session_module, "MOST_IMAGES", 3)
    session = Session(litert, [images], accept_all=True, jobs=1)
    probabilities = [row["probability"] for row in session.rows() if row["probability"]]
    low, high = sorted(probabilities)[len(probabilities) // 3 :: len(probabilities) // 3][:2]
    session = Session(litert, [images], accept_all=True, jobs=1)
    session.classifier.card["triage"] = {"rule_out": low, "rule_in": high}
    rows = [row for row in session.rows() if row["status"] == "ok"]
    for group in ("rule_in", "refer", "rule_out"):
        own = [row["probability"] for row in rows if triage_group(row, session.classifier.card) == group]
        kept = [entry[0] for entry in session._highest[group]]
        assert sorted(kept) == sorted(own)[-3:] and session.count[group] == len(own) > 0


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["/nowhere", "x.png"], "no such folder"),
        (["MODEL", "EMPTY"], "no image found"),
        (["MODEL", "IMAGES", "--threshold-rule", "best"], "no threshold"),
        (["MODEL", "IMAGES", "--output", "out.xlsx"], "must end in .csv or .jsonl"),
        (["MODEL", "IMAGES", "--backend", "abacus"], "abacus"),
        (["MODEL", "IMAGES", "--report", "/nowhere/page.html"], "the report cannot be written there"),
        (["MODEL", "IMAGES", "--report", "out.png"], "the name must end in .html or .htm"),
    ],
)
def test_mistakes_are_told_in_one_line(litert, images, tmp_path, words, reason):
    (tmp_path / "empty").mkdir()
    places = {
        "MODEL": litert,
        "IMAGES": images,
        "EMPTY": tmp_path / "empty",
        "out.xlsx": tmp_path / "out.xlsx",
        "out.png": tmp_path / "out.png",
    }
    result = call("predict", *(places.get(word, word) for word in words))
    assert result.exit_code == 2 and reason in result.output and result.output.count("\n") == 1
    assert not any(path.name.startswith((".partial", "out")) for path in tmp_path.iterdir())


def test_a_list_is_not_replaced_by_its_predictions(litert, images):
    (images / "list.csv").write_text("path,age\n01.png,4\n")
    result = call("predict", litert, images / "list.csv", "--output", images / "list.csv")
    assert result.exit_code == 2 and "would replace what it is made from" in result.output
    assert (images / "list.csv").read_text() == "path,age\n01.png,4\n"
    (images / "table.csv").mkdir()
    result = call("predict", litert, images / "list.csv", "--output", images / "table.csv")
    assert result.exit_code == 2 and "a folder. Received" in result.output


@pytest.fixture
def mounted(tmp_path):
    """Mounts small disks, where that is allowed."""
    places = []

    def mount(options):
        place = tmp_path / "disk"
        place.mkdir()
        command = ["mount", "-t", "tmpfs", "-o", options, "none", place]
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
            pytest.skip("mounting a disk is not allowed here")
        places.append(place)
        return place

    yield mount
    for place in places:
        subprocess.run(["umount", place], check=True)


def test_a_disk_that_cannot_be_written(litert, images, mounted):
    place = mounted("ro,size=64k")
    result = call("predict", litert, images, "--output", place / "out.csv", "--jobs", 1)
    assert (
        result.exit_code == 2 and "Read-only file system" in result.output and result.output.count("\n") == 1
    )


def test_a_full_disk_loses_nothing(litert, images, mounted, tmp_path):
    place = mounted("size=8k")
    table = place / "out.jsonl"
    result = call("predict", litert, images, "--output", table, "--jobs", 1, "--accept-all")
    assert result.exit_code == 2 and "No space left on device" in result.output and not table.exists()
    assert [path.name for path in place.iterdir()] == [".partial-out.jsonl.jsonl"]
    subprocess.run(["mount", "-o", "remount,size=1m", place], check=True)
    assert call("predict", litert, images, "--output", table, "--jobs", 1, "--accept-all").exit_code == 1
    call("predict", litert, images, "--output", tmp_path / "out.jsonl", "--jobs", 1, "--accept-all")
    assert table.read_text() == (tmp_path / "out.jsonl").read_text()
    assert [path.name for path in place.iterdir()] == ["out.jsonl"]


def test_export_from_the_command_line(compact, few_images_are_enough, tiny_folder, tmp_path):
    result = call(
        "export", compact, "--format", "onnx", "--data-dir", tiny_folder, "--output", tmp_path / "onnx"
    )
    assert result.exit_code == 0 and "0.00% of the decisions" in result.output
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == [
        "NOTICE",
        "README.md",
        "card.json",
        "model.onnx",
        "refusal.npz",
        "seen.npz",
    ]


@pytest.mark.slow
def test_two_dask_workers_one_is_killed(litert, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(4):  # large, so that the work lasts some seconds
        pixels = rng.integers(0, 256, (2000, 2000), dtype=np.uint8)
        assert cv2.imwrite(str(tmp_path / f"{number}.jpeg"), pixels)
    paths = [tmp_path / f"{number % 4}.jpeg" for number in range(160)]
    alone = list(predict.judge(load_classifier(litert), paths[:4], "youden", accept_all=True))
    monkeypatch.setattr(predict, "BATCH", 4)  # 40 tasks
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", cluster.scheduler_address)
        pids = {name: nanny.pid for name, nanny in cluster.workers.items()}
        rows = predict.predict_parallel(litert, paths, "youden", True, jobs=-1, backend="dask")
        classified = [next(rows)]
        os.kill(pids[0], signal.SIGKILL)
        classified += rows
        assert cluster.workers[0].pid != pids[0]  # it died, and was started again
    assert classified == [alone[number % 4] for number in range(160)]


def test_both_formats_of_the_table_are_evaluated_alike(litert, images, tmp_path):
    (images / "07.png").unlink()
    (tmp_path / "labels.csv").write_text(
        "path,label\n"
        + "".join(f"{path},{number % 2}\n" for number, path in enumerate(sorted(images.iterdir())))
    )
    results = []
    for name in ("out.csv", "out.JSONL"):
        call("predict", litert, images, "--accept-all", "--output", tmp_path / name, "--jobs", 1)
        for labels in ([], ["--labels", tmp_path / "labels.csv"]):
            results.append(call("evaluate", tmp_path / name, "--model", litert, *labels))
            assert results[-1].exit_code == 0, results[-1].output
    assert [result.output for result in results[:2]] == [result.output for result in results[2:]]
