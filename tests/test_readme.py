"""README.md: its commands, its example and its numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from chestxray.files import read_json

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_the_recorded_ones():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "readme_numbers.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run: python .ci/readme_numbers.py"


def test_rows_of_the_table_follow_from_the_committed_predictions():
    table = re.search(r"<!-- results -->\n(.*?)\n\n", TEXT, re.S).group(1).splitlines()
    assert table[0] == "| split | model | AUROC | accuracy | sensitivity | specificity |"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table[2:]]
    ours = [row for row in rows if row[1].startswith("**")]
    assert len(ours) >= 8
    for rule, model, *shown in ours:
        name = f"{model.strip('*')}-{rule}-s0"
        threshold = read_json(ROOT / "results" / f"{name}.json")["thresholds"]["youden"]
        scored = pd.read_csv(ROOT / "results" / f"{name}.predictions.csv").query("split == 'test'")
        said = (scored["probability"] >= threshold) == (scored["label"] == 1)
        values = [
            roc_auc_score(scored["label"], scored["probability"]),
            said.mean(),
            said[scored["label"] == 1].mean(),
            said[scored["label"] == 0].mean(),
        ]
        assert [cell.split()[0] for cell in shown] == [f"{value:.3f}" for value in values], name


def test_published_rows_are_those_of_the_list():
    published = pd.read_csv(ROOT / "results" / "published.csv", keep_default_na=False)
    for row in published.to_dict("records"):
        who = f"[{row['who']}]({row['source']})" if row["source"] else row["who"]
        start = f"| {row['split']} | {row['model']} ({who}"
        (line,) = [line for line in TEXT.splitlines() if line.startswith((start + ")", start + ";"))]
        values = [
            f"{float(row[metric]):.3f}" if row[metric] else "–"
            for metric in ("auroc", "accuracy", "sensitivity", "specificity")
        ]
        assert line.endswith(f"| {' | '.join(values)} |")


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md", "results/README.md"])
def test_every_linked_file_and_heading_exists(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)]+)\)", text) if not link.startswith("http")]
    assert links
    for link in links:
        file, _, heading = link.partition("#")
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        if heading:
            headings = re.findall(r"^#+ (.+)$", target.read_text(encoding="utf-8"), re.M)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", one.lower()).replace(" ", "-") for one in headings}


@pytest.mark.slow
def test_the_library_example_runs_as_printed_in_twelve_lines(tmp_path, plain_folder):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
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
    assert (tmp_path / "my_model.keras").is_file()
