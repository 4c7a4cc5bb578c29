"""The committed notebooks: executed, parameterised, small, and really checked by nbval."""

import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import pandas as pd
import papermill
import pytest
from header import set_header

from chestxray.data.catalog import scan
from chestxray.files import read_json, write_json
from chestxray.phantoms import phantom_dataset
from chestxray.run import NOTEBOOKS

ALL = sorted(NOTEBOOKS.glob("*.ipynb"))


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_notebook_is_executed_top_to_bottom_and_within_its_limits(path):
    cells = nbformat.read(path, as_version=4).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert cells[0].source.startswith("# ")
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in code) == 1
    outputs = [output for cell in code for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert sum("NBVAL_CHECK_OUTPUT" in cell.source for cell in code) >= 3
    assert path.stat().st_size < 1_000_000
    text = json.dumps(outputs)
    assert not [place for place in (str(NOTEBOOKS.parent), "/home/", "/Users/", "/tmp/") if place in text]


@pytest.mark.parametrize("path", ALL, ids=lambda path: path.stem)
def test_notebook_has_the_common_header_and_reads_well(path):
    notebook = nbformat.read(path, as_version=4)
    before = [cell.source for cell in notebook.cells[:2]]
    set_header(notebook, path.stem)
    assert [cell.source for cell in notebook.cells[:2]] == before, "python tools/refresh_notebooks.py FILE"
    markdown = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#:]+?)(?:#[^)]*)?\)", markdown):  # relative links
        assert (path.parent / target).exists(), target
    exercises = markdown.split("## Exercises")[1]
    assert exercises.count("<details>") == exercises.count("</details>") == 3
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for cell in code:
        lines = cell.source.splitlines()
        long = 25 if "parameters" in cell.metadata.get("tags", []) else 20
        assert len(lines) <= long and max(map(len, lines), default=0) <= 110, cell.source
        for output in cell.outputs:
            for kind in {"image/png", "image/jpeg"} & set(output.get("data", {})):
                assert output.metadata[kind]["alt"], cell.source  # made by plots.show


def colab_cell(folder, path=ALL[0]):
    """Run the first code cell of a notebook as Colab would, in a folder; where it ends, or the error."""
    source = next(cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code")
    code = f"{source}\nprint(os.getcwd(), os.path.abspath(sys.path[0]))"
    code = "import subprocess as s\ns.run = lambda command, check: print('would run', *command[:4])\n" + code
    environment = os.environ | {"COLAB_RELEASE_TAG": "1"}
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=environment
    )


@pytest.mark.parametrize("place", ["chestxray.zip", "drive/MyDrive/chestxray", "nothing"])
def test_in_colab_the_first_cell_finds_an_uploaded_zip_or_a_folder_on_drive(tmp_path, place):
    (tmp_path / "repository/chestxray/notebooks").mkdir(parents=True)
    shutil.copy(NOTEBOOKS / "colab.py", tmp_path / "repository/chestxray/notebooks")
    if place.endswith(".zip"):
        shutil.make_archive(tmp_path / "chestxray", "zip", tmp_path / "repository")
    elif place != "nothing":
        shutil.copytree(tmp_path / "repository/chestxray", tmp_path / place)
    done = colab_cell(tmp_path)
    if place == "nothing":
        assert "upload the repository as chestxray.zip" in done.stderr
        assert "would run" not in done.stdout
        return
    home = tmp_path / place.removesuffix(".zip")
    assert done.stdout.splitlines()[-1] == f"{home / 'notebooks'} {home}"
    assert "would run" in done.stdout and "git" not in done.stdout


@pytest.mark.slow
def test_06_compares_what_can_be_compared(tmp_path):
    """A run holds teachers that were never scored on test, and a model of an older state of the data."""
    results, names = tmp_path / "results", ("vgg16-official-s0-t0", "compact_student-official-s0-t0")
    results.mkdir()
    for name in names:
        for end in (".json", ".predictions.csv"):
            shutil.copy(NOTEBOOKS.parent / "results" / f"{name}{end}", results)
    teacher = read_json(results / f"{names[0]}.json") | {"name": "teacher-official-s0-t0"}
    del teacher["metrics"]["test"], teacher["confusion"]["test"]
    write_json(results / "teacher-official-s0-t0.json", teacher)
    predictions = pd.read_csv(results / f"{names[0]}.predictions.csv").query("split == 'val'")
    predictions.to_csv(results / "teacher-official-s0-t0.predictions.csv", index=False)
    older = read_json(results / f"{names[1]}.json") | {"name": "older-official-s0-t0", "split_hash": "0" * 16}
    write_json(results / "older-official-s0-t0.json", older)
    shutil.copy(results / f"{names[1]}.predictions.csv", results / "older-official-s0-t0.predictions.csv")
    papermill.execute_notebook(
        str(NOTEBOOKS / "06_compare.ipynb"),
        None,
        cwd=str(NOTEBOOKS),
        progress_bar=False,
        kernel_name="python3",
        parameters={"results": str(results), "output_dir": str(tmp_path / "out")},
    )
    found = read_json(tmp_path / "out" / "results" / "comparison-all.json")
    assert found["subset"] == "test"
    assert {row["name"] for row in found["models"]} == {*names, "older-official-s0-t0"}
    figures = {path.name for path in (tmp_path / "out" / "images").glob("comparison-*.png")}
    assert figures == {"comparison-official-s0.png", "comparison-official-s0-000000.png"}


@pytest.mark.slow
def test_04_compares_ways_none_of_which_has_a_teacher(tmp_path, tiny_folder):
    papermill.execute_notebook(
        str(NOTEBOOKS / "04_distillation.ipynb"),
        None,
        cwd=str(NOTEBOOKS),
        progress_bar=False,
        kernel_name="python3",
        parameters={
            "data_dir": str(tiny_folder),
            "output_dir": str(tmp_path),
            "image_size": 32,
            "epochs": 1,
            "views": 1,
            "train_seeds": [0],
            "candidates": {"alone": [{}], "smooth": [{"label_smoothing": 0.1}]},
        },
    )
    found = read_json(tmp_path / "results" / "student_variants-patient-s0-t0.json")
    assert list(found["variants"]["test"]) == ["alone", "smooth"] and found["teachers"] == []


@pytest.mark.slow
def test_08_takes_a_table_of_ones_own_and_keeps_its_notes_to_itself(tmp_path):
    folder = phantom_dataset(images=60, size=64) / "train"
    catalog = scan(folder)
    sick = catalog["label"] == 1
    table = catalog[["path"]].assign(who=catalog["group"], outcome=sick.map({True: "sick", False: "well"}))
    table["report"] = sick.map({True: "Seen today, is sick", False: "Seen today, lungs clear"})
    table.loc[0, "report"] += " Zacharias"
    table["degrees"] = [None if row % 3 == 0 else 37 + label for row, label in enumerate(sick)]
    table.loc[len(table)] = [table["path"][0].replace("-0001", "-9"), "nobody", "unknown", "", None]
    table.to_csv(tmp_path / "mine.csv", index=False)
    notebook = papermill.execute_notebook(
        str(NOTEBOOKS / "08_text_and_clinical_data.ipynb"),
        None,
        cwd=str(NOTEBOOKS),
        progress_bar=False,
        kernel_name="python3",
        parameters={
            "data_dir": str(folder),
            "table": str(tmp_path / "mine.csv"),
            "label_column": "outcome",
            "positive": ["sick"],
            "negative": ["well"],
            "patient_column": "who",
            "note_columns": ["report"],
            "number_columns": ["degrees"],
            "folds": 3,
            "output_dir": str(tmp_path),
            "name": "mine",
        },
    )
    text = (tmp_path / "results" / "mine.json").read_text(encoding="utf-8")
    found = json.loads(text)
    assert found["images"] == len(catalog) and found["data"] == "train" and len(found["scores"]) == 7
    assert "sick" in {row["word"] for row in found["label_words"]}
    assert "zacharias" not in (text + json.dumps(notebook.cells)).lower()
    assert [path.name for path in tmp_path.rglob("*") if path.suffix in (".keras", ".pkl", ".joblib")] == []


@pytest.mark.slow
def test_a_planted_change_in_a_checked_cell_fails(tmp_path):
    """Somebody edits the data without running the notebook again: nbval must notice."""
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(NOTEBOOKS / "conftest.py", folder)
    source = NOTEBOOKS / "06_compare.ipynb"
    text = source.read_text(encoding="utf-8").replace(
        'results: str = \\"results\\"', f'results: str = \\"{NOTEBOOKS.parent / "results"}\\"'
    )
    (folder / "as_committed.ipynb").write_text(text, encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    checked = next(
        cell for cell in notebook.cells if cell.cell_type == "code" and "NBVAL_CHECK_OUTPUT" in cell.source
    )
    checked.outputs[0].text = checked.outputs[0].text.replace("data", "date")
    nbformat.write(notebook, folder / "changed.ipynb")

    def check(name):
        return subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "--nbval-lax",
                "--nbval-current-env",
                "-p",
                "no:cacheprovider",
                "--rootdir",
                str(folder),
                "-c",
                "/dev/null",
                str(folder / name),
            ],
            capture_output=True,
            text=True,
            cwd=folder,
        )

    assert check("as_committed.ipynb").returncode == 0
    failed = check("changed.ipynb")
    assert failed.returncode == 1 and "1 failed" in failed.stdout
