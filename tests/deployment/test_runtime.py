"""The runtime without TensorFlow, installed as a user would."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chestxray import load_classifier, predict_files
from chestxray.deployment.predict import COLUMNS

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_a_clean_environment_with_the_extra_lite(compact, litert, data, tiny_folder, tmp_path):
    source = tmp_path / "source"  # a copy, so that nothing is built in the repository
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "runs", "saved_models", "results"))
    python = tmp_path / "lite" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "lite"], check=True)
    installed = subprocess.run(
        [python, "-m", "pip", "install", "-q", f"{source}[lite]"], capture_output=True, text=True
    )
    if "Could not find a version that satisfies" in installed.stderr:  # none at all: no index
        pytest.skip("needs a package index")
    assert installed.returncode == 0, installed.stderr
    assert subprocess.run([python, "-c", "import tensorflow"], capture_output=True).returncode != 0
    images = [tiny_folder / path for path in data.subset("test")["path"]]
    table = tmp_path / "out.jsonl"
    done = subprocess.run(
        [
            tmp_path / "lite" / "bin" / "chestxray",
            "predict",
            litert,
            *images,
            "--accept-all",
            "--output",
            table,
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    for written, row in zip(
        rows, predict_files(load_classifier(compact), images, accept_all=True), strict=True
    ):
        for name in set(COLUMNS) - {"logit", "probability", "distance"}:
            assert written[name] == row[name], name
        assert written["logit"] == pytest.approx(row["logit"], abs=1e-3)
        assert written["probability"] == pytest.approx(row["probability"], abs=1e-3)
