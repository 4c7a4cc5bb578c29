"""kill -9 or Ctrl-C in the middle of a run: the second call ends as an undisturbed one does."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from chestxray.phantoms import write_phantoms

RUN = [
    sys.executable,
    "-c",
    "from chestxray.cli import main; main()",
    "run",
    "--preset",
    "demo",
    "--only",
    "02",
    "-p",
    "image_size",
    "64",
    "-p",
    "epochs",
    "8",
    "-p",
    "learning_rate",
    "0.001",
]


def start(data, output, cache):
    return subprocess.Popen(
        [*RUN, "--data-dir", str(data), "--output-dir", str(output)],
        start_new_session=True,
        env=os.environ | {"CHESTXRAY_CACHE": str(cache)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def epochs_done(checkpoint):
    if not checkpoint.is_file():
        return 0
    with np.load(checkpoint) as state:
        return len(json.loads(str(state["meta"]))["history"])


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_broken_off_run_ends_with_the_predictions_of_an_undisturbed_one(tmp_path, how):
    write_phantoms(tmp_path / "made", 120, 64, 0)
    data = tmp_path / "made" / "chest_xray"
    quiet = start(data, tmp_path / "quiet", tmp_path / "cache1")
    quiet.communicate(timeout=300)
    assert quiet.returncode == 0

    killed = start(data, tmp_path / "killed", tmp_path / "cache2")
    checkpoint = tmp_path / "killed" / "checkpoints" / "custom_cnn-patient-s0-t0.npz"
    deadline = time.monotonic() + 300
    while epochs_done(checkpoint) < 3:
        assert killed.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    if how == signal.SIGKILL:
        os.killpg(killed.pid, how)
        killed.wait()
    else:
        killed.send_signal(how)
        _, said = killed.communicate(timeout=60)
        assert killed.returncode == 130
        assert said == "interrupted; the same command continues from this point\n"
    results = tmp_path / "killed" / "results"
    assert not list(results.glob("*.json"))

    second = start(data, tmp_path / "killed", tmp_path / "cache2")
    said, _ = second.communicate(timeout=300)
    assert second.returncode == 0, said
    notebook = (results / "notebooks" / "02_custom_cnn-patient.ipynb").read_text(encoding="utf-8")
    assert "continued after epoch" in notebook
    name = "custom_cnn-patient-s0-t0.predictions.csv"
    assert (results / name).read_bytes() == (tmp_path / "quiet" / "results" / name).read_bytes()
    assert not list((tmp_path / "killed").rglob(".partial-*"))
    assert not list((tmp_path / "killed" / "checkpoints").iterdir())

    third = start(data, tmp_path / "killed", tmp_path / "cache2")
    said, _ = third.communicate(timeout=300)
    assert "done earlier" in said
