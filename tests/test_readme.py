"""README.md: its commands, its example and its numbers."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chestxray.files import read_json

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_the_recorded_ones():
    done = subprocess.run([sys.executable, ROOT / "tools" / "tables.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run: python tools/tables.py"


def test_rows_of_the_table_follow_from_the_committed_predictions():
    table = re.search(r"<!-- results -->\n(.*?)\n<!--", TEXT, re.S).group(1).splitlines()
    assert table[0] == "| model | tested on | auroc | accuracy | sensitivity | specificity |"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:] if "|" in line]
    assert len(rows) >= 6
    for model, tested_on, *values in rows:
        split_rule = {"other patients": "patient", "published test set": "official"}[tested_on]
        name = f"{model.strip('`')}-{split_rule}-s0-t0"
        threshold = read_json(ROOT / "results" / f"{name}.json")["thresholds"]["youden"]
        scored = pd.read_csv(ROOT / "results" / f"{name}.predictions.csv").query("split == 'test'")
        correct = (scored["probability"] >= threshold) == (scored["label"] == 1)
        expected = [
            roc_auc_score(scored["label"], scored["probability"]),
            correct.mean(),
            correct[scored["label"] == 1].mean(),
            correct[scored["label"] == 0].mean(),
        ]
        assert [cell.split()[0] for cell in values] == [f"{value:.3f}" for value in expected], name


def test_the_recommended_model_is_the_best_on_validation_beside_its_weakest_rate():
    sentence = next(line for line in TEXT.splitlines() if line.startswith("Recommended by"))
    table = re.search(r"<!-- results -->\n(.*?)\n<!--", TEXT, re.S).group(1)
    names = set(re.findall(r"^\| `(\w+)` \| other patients", table, re.M))
    val = {name: read_json(ROOT / f"results/{name}-patient-s0-t0.json")["metrics"]["val"] for name in names}
    worse = {name: min(val[name][key]["value"] for key in ("auroc", "auroc_reframed")) for name in names}
    best = max(worse, key=worse.get)
    assert f"({worse[best]:.3f}): `{best}`" in sentence
    rows = [line.split("|") for line in table.splitlines() if f"`{best}`" in line and "|" in line]
    rates = [cell.strip() for row in rows for cell in row[5:7]]
    assert min(rates) in sentence


def test_a_claim_follows_from_the_committed_predictions():
    table = re.search(r"<!-- claims -->\n(.*?)\n<!--", TEXT, re.S).group(1).splitlines()
    row = next(line for line in table if "network of 2 convolutions (000)" in line)
    claimed, _, by_patient, _ = (cell.strip() for cell in row.strip("| ").split("|")[2:])
    assert claimed == "0.721 / – / – / – / –"
    scored = pd.read_csv(ROOT / "results/claims/project000_cnn-patient-s0-t0.predictions.csv")
    scored = scored.query("split == 'test'")
    positive, sick = scored["logit"] >= 0, scored["label"] == 1
    precision, recall = sick[positive].mean(), positive[sick].mean()
    values = [(positive == sick).mean(), precision, recall, 2 / (1 / precision + 1 / recall)]
    values.append(roc_auc_score(sick, scored["logit"]))
    assert by_patient == " / ".join(f"{value:.3f}" for value in values)


def test_readme_is_short():
    assert len(TEXT.splitlines()) <= 200


def test_requirements_are_the_union_of_the_extras():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    parts = [project["dependencies"], *(extras[name] for name in ("train", "export", "dicom", "dask", "dev"))]
    wanted = {line for part in parts for line in part if not line.startswith("chestxray[")}
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert {line for line in lines if not line.startswith("#")} == wanted


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md", "results/README.md"]
)
def test_every_linked_file_and_heading_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links or page == "CONTRIBUTING.md"
    for link in links:
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.slow
def test_the_library_example_runs_as_printed_in_twelve_lines(tmp_path, plain_folder):
    code = next(block for block in re.findall(r"```python\n(.*?)```", TEXT, re.S) if "load_data" in block)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    plain_folder(tmp_path, 60).rename(tmp_path / "my_xrays")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no patient group is known for 60 of 60 images" in done.stderr
    assert (tmp_path / "runs/keras/saved_models/keras-patient-s0-t0/card.json").is_file()
    assert done.stdout.count("'decision'") == 44  # the images of my_xrays/sick
