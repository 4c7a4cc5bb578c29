"""The plan of a run, with tiny notebooks made here."""

import functools
import re
import shutil
from dataclasses import fields
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from chestxray import TrainSettings, cli, results, run
from chestxray.files import read_json, write_json
from chestxray.phantoms import write_phantoms

RESULTS = Path(__file__).parent.parent / "results"
PARAMETERS = (
    'data_dir: str = "phantoms"\nsplit: str = "patient"\noutput_dir: str = "x"\n'
    'split_seed: int = 0\nlevel: int = 1  # how high\nstep_key: str = ""'
)


WRITE = """
import json, pathlib
pathlib.Path(output_dir, "log.txt").open("a").write("{name} ")
pathlib.Path(output_dir, "results", "{name}.json").write_text(
    json.dumps({{"name": "{name}", "level": level, "step_key": step_key}})
)
"""


def write_notebook(folder, name, body, parameters=PARAMETERS):
    cell = new_code_cell(parameters)
    cell.metadata["tags"] = ["parameters"]
    notebook = new_notebook(cells=[cell, new_code_cell(body)])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, folder / f"{name}.ipynb")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory):
    folder = tmp_path_factory.mktemp("phantoms")
    write_phantoms(folder, 60, 32, 0)
    return str(folder / "chest_xray")


@pytest.fixture
def house(tmp_path, monkeypatch):
    """A plan of three notebooks; the second one fails unless level is 2."""
    notebooks = tmp_path / "notebooks"
    (notebooks / "recipes").mkdir(parents=True)
    write_notebook(notebooks, "01_first", WRITE.format(name="first"))
    write_notebook(
        notebooks,
        "02_second",
        'if level != 2:\n    raise OSError("level is too low")\n' + WRITE.format(name="second"),
    )
    write_notebook(notebooks, "03_third", WRITE.format(name="third"))
    (notebooks / "recipes" / "high.yaml").write_text("level: 5\n")
    monkeypatch.setattr(run, "NOTEBOOKS", notebooks)
    monkeypatch.setattr(
        run, "PLANS", {"demo": [("01_first", None), ("02_second", None), ("03_third", "high")]}
    )
    return tmp_path


def log(house):
    return (house / "out" / "log.txt").read_text().split()


def test_a_failing_step_is_named_and_the_others_go_on(house, phantoms, capsys):
    code = run.run_plan("demo", phantoms, output_dir=house / "out")
    assert code == 1
    assert log(house) == ["first", "third"]
    out = capsys.readouterr().out
    assert out.count("FAILED in cell [3]: OSError: level is too low") == out.count("level is too low") == 1
    assert "1 of 3 steps failed: 02_second-patient" in out
    assert read_json(house / "out" / "results" / "third.json")["level"] == 5


def test_finished_steps_are_skipped_and_changed_ones_run_again(house, phantoms):
    run_again = functools.partial(run.run_plan, "demo", phantoms, output_dir=house / "out")
    assert run_again(overrides={"level": 2}) == 0
    assert run_again(overrides={"level": 2}) == 0
    assert log(house) == ["first", "second", "third"]
    write_notebook(house / "notebooks", "01_first", WRITE.format(name="changed"))
    assert run_again(overrides={"level": 2}) == 0
    assert log(house) == ["first", "second", "third", "changed"]
    assert run_again(overrides={"level": 2}, split_rules=["image"], only="03") == 0
    assert log(house)[4:] == ["third"]
    assert run_again(overrides={"level": 2}, only="02", force=True) == 0
    assert log(house)[5:] == ["second"]


def test_the_key_depends_on_split_and_parameters(house, phantoms):
    def keys(**overrides):
        steps = run.make_plan("demo", phantoms, ["patient"], house / "out", overrides)
        return [step.key() for step in steps]

    first = keys()
    assert first == keys()
    assert all(a != b for a, b in zip(first, keys(split_seed=1)))
    assert all(a != b for a, b in zip(first, keys(level=7)))


def test_the_key_depends_on_code_and_not_on_words(house, monkeypatch):
    """Markdown, comments and docstrings may change; cells and imported modules may not."""
    package = shutil.copytree(run.PACKAGE, house / "chestxray")
    monkeypatch.setattr(run, "PACKAGE", package)
    notebook = house / "notebooks" / "02.ipynb"

    def key(body="import chestxray as cx\ncx.scan(data_dir)  # list", markdown="text"):
        cells = [new_code_cell("%matplotlib inline\n" + body), new_markdown_cell(markdown)]
        nbformat.write(new_notebook(cells=cells), notebook)
        return run.code_key(notebook)

    def change(module, former, new):
        path = package / module
        text = path.read_text(encoding="utf-8")
        assert former in text
        path.write_text(text.replace(former, new, 1), encoding="utf-8")

    first = key()
    assert key(markdown="other text") == first
    assert key("import chestxray as cx\n\ncx.scan( data_dir )") == first
    assert key("import chestxray as cx\ncx.scan(output_dir)") != first
    change("data/catalog.py", '"""', '"""Other words. ')
    change("models/training.py", "import", "import this\nimport")  # scan does not need it
    assert key() == first
    change("schema.py", "CLASSES = ", "CLASSES = tuple() or ")  # imported by data/catalog.py
    assert key() != first


def test_comparisons_wait_for_explanations():
    """Notebook 06 reads what 05 writes: they must not run at the same time."""
    waves = {name[:2]: run.Step(name, Path(f"{name}.ipynb"), {}, "").wave for name, _ in run.PLANS["full"]}
    assert waves["01"] < waves["02"] == waves["03"] < waves["04"] < waves["05"] < waves["06"]


def test_the_key_depends_on_the_bytes_of_every_file(house, phantoms, tmp_path):
    def key():
        return run.make_plan("demo", folder, ["image"], house / "out", {})[0].key()

    folder = shutil.copytree(phantoms, tmp_path / "copy" / "chest_xray")
    first = key()
    assert first == key()
    film = sorted(folder.rglob("*.jpeg"))[7]
    film.write_bytes(film.read_bytes() + b"\0")
    assert key() != first


def test_the_key_depends_on_the_weights_file_and_not_on_its_place(house, tmp_path):
    write_notebook(house / "notebooks", "04", "", 'backbone: str = "VGG16"\nweights: str = ""')

    def key(folder, content):
        (tmp_path / folder).mkdir(exist_ok=True)
        path = tmp_path / folder / "vgg16_notop.weights.h5"
        path.write_bytes(content)
        return run.Step(
            "04",
            house / "notebooks" / "04.ipynb",
            {"backbone": "VGG16", "weights": str(tmp_path / folder)},
            "d",
        ).key()

    assert key("a", b"1") != key("a", b"2")
    assert key("a", b"1") == key("b", b"1")


def test_the_key_depends_on_weights_also_where_the_backbone_is_the_notebooks_default(house, phantoms):
    parameters = 'backbone: str = "VGG16"\nweights: str = ""'
    write_notebook(house / "notebooks", "03_third", "", parameters=parameters)
    (house / "notebooks" / "recipes" / "high.yaml").write_text("{}")

    def key(**overrides):
        return run.make_plan("demo", phantoms, ["patient"], house / "out", overrides, only="03")[0].key()

    assert len({key(), key(weights="imagenet"), key(weights="")}) == 3


def test_a_half_written_result_does_not_finish_a_step(tmp_path):
    write_json(tmp_path / "results" / ".partial-0123abcd-x.json", {"step_key": "k"})
    assert run.results_of("k", tmp_path) == []
    write_json(tmp_path / "results" / "x.json", {"step_key": "k"})
    assert len(run.results_of("k", tmp_path)) == 1


def test_a_notebook_that_is_no_python_fails_by_name_and_the_others_run(house, phantoms, capsys):
    write_notebook(house / "notebooks", "01_first", "if:")
    assert run.run_plan("demo", phantoms, output_dir=house / "out", overrides={"level": 2}, only="01") == 1
    assert "steps failed: 01_first-patient" in capsys.readouterr().out


def test_the_key_depends_on_the_teachers_card(house, tmp_path):
    step = run.Step(
        "04",
        house / "notebooks" / "01_first.ipynb",
        {"teachers": ["big"], "output_dir": str(tmp_path), "split": "patient"},
        "data",
    )
    keys = [step.key()]
    card = tmp_path / "saved_models" / "big-patient-s0-t0" / "card.json"
    for logit in (1, 2):
        write_json(card, {"logit": logit})
        keys.append(step.key())
    assert len(set(keys)) == 3


def test_the_key_of_a_comparison_depends_on_what_it_reads(house, tmp_path):
    folder = tmp_path / "results"
    step = run.Step(
        "06", house / "notebooks" / "01_first.ipynb", {"results": str(folder), "split": "patient"}, "data"
    )
    keys = [step.key()]
    for schema, auroc in (("result", 0.9), ("result", 0.8), ("audit", 0.6), ("explanation", 0.7)):
        version = 2 if schema == "result" else 1
        content = {"schema": f"chestxray.{schema}/{version}", "auroc": auroc}
        write_json(folder / f"{schema}.json", content)
        keys.append(step.key())
    assert len(set(keys)) == 5
    write_json(folder / "comparison-all.json", {"schema": "chestxray.comparison/1"})  # its own result
    write_json(folder / "deploy_x.json", {"schema": "chestxray.deployment/1"})
    write_json(folder / "other.json", {"schema": results.RESULT_SCHEMA, "split_rule": "image"})
    assert step.key() == keys[-1]


def put_on_record(folder, name, **changes):
    """Copy a result of the repository, with its predictions, under another name."""
    older = RESULTS / "squashed" / "custom_cnn-patient-s0-t0.json"
    write_json(folder / f"{name}.json", read_json(older) | {"name": name} | changes)
    shutil.copy(older.with_suffix(".predictions.csv"), folder / f"{name}.predictions.csv")


def test_models_of_another_state_of_the_data_are_told(tmp_path, capsys):
    results = tmp_path / "results"
    put_on_record(results, "a-patient-s0-t0")
    put_on_record(results, "a-patient-s1-t1", split_hash="1")
    run._print_summary(tmp_path)
    assert "another state" not in capsys.readouterr().out  # of two seeds, two splits are expected
    put_on_record(results, "older-patient-s0-t0", split_hash="0")
    run._print_summary(tmp_path)
    assert "some are from another state of the data" in capsys.readouterr().out


def test_a_run_ends_with_a_page_of_scores_errors_figures_and_notebooks(tmp_path, capsys):
    changes = {"parameters": {"backbone": "VGG16"}, "weights": "random", "data": "synthetic"}
    put_on_record(tmp_path / "results", "net-patient-s0-t0", **changes)
    put_on_record(tmp_path / "results", "real-patient-s0-t0", **changes | {"data": "chest_xray"})
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "curve.png").write_bytes(b"")
    (tmp_path / "results" / "notebooks").mkdir()
    write_notebook(tmp_path / "results" / "notebooks", "02_done", "print(1)")
    run._print_summary(tmp_path)
    out, page = capsys.readouterr().out, (tmp_path / "index.html").read_text(encoding="utf-8")
    rows = pd.read_csv(tmp_path / "results" / "net-patient-s0-t0.predictions.csv").query("split == 'test'")
    assert str(tmp_path / "index.html") in out
    for text in (out, page):
        assert "Test images (chest_xray, synthetic data)" in text
        assert "net-patient-s0-t0 (random weights; it tests the software and is no result)" in text
        assert "real-patient-s0-t0 (random weights)" in text
        assert re.search(r"0\.99 \(0\.9\d–(0\.9\d|1\.00)\)", text) and str(len(rows)) in text
    missed = rows[rows["label"] == 1].sort_values("probability").iloc[0]["path"]
    assert missed in page and page.index("false negative") < page.index("false positive")
    for link in ("images/curve.png", "results/notebooks/02_done.html"):
        assert f'"{link}"' in page and (tmp_path / link).is_file()


def test_an_unknown_parameter_stops_before_anything_runs(house, phantoms):
    for wrong, words in (("levle", "did you mean level[?]"), ("x", "there are classes, level, split_seed")):
        with pytest.raises(ValueError, match=rf"{words}.*Received: parameter='{wrong}'"):
            run.run_plan("demo", phantoms, output_dir=house / "out", overrides={wrong: 3})
    assert not (house / "out").exists()


@pytest.mark.parametrize("value", ["three", 1.5, True, None, [1]])
def test_a_parameter_of_another_type_stops_before_anything_runs(house, phantoms, value):
    with pytest.raises(ValueError, match="level must be of type int. Received: level="):
        run.run_plan("demo", phantoms, output_dir=house / "out", overrides={"level": value})
    assert not (house / "out").exists()


def test_class_names_are_for_the_folder_even_if_no_notebook_asks_for_them(house, phantoms):
    classes = {"classes": ["NORMAL", "PNEUMONIA"]}
    assert run.make_plan("demo", phantoms, ["patient"], house / "out", classes)


@pytest.mark.parametrize("name", ["data_dir", "split", "output_dir"])
def test_data_split_and_folders_are_no_parameters(house, phantoms, name):
    with pytest.raises(ValueError, match=f"options of the run. Received: parameter='{name}'"):
        run.run_plan("demo", phantoms, output_dir=house / "out", overrides={name: "x"})


def test_a_relative_data_folder_is_found_by_the_kernels(house, phantoms, monkeypatch):
    monkeypatch.chdir(Path(phantoms).parent)
    (step, *_) = run.make_plan("demo", "chest_xray", ["patient"], house / "out", {})
    assert step.parameters["data_dir"] == phantoms


def test_a_forced_step_that_writes_nothing_has_failed(house, phantoms):
    write_notebook(house / "notebooks", "01_first", "1 + 1")
    step = run.make_plan("demo", phantoms, ["patient"], house / "out", {}, "01")[0]
    write_json(house / "out" / "results" / "first.json", {"step_key": step.key()})  # of an earlier call
    again = functools.partial(run.run_plan, "demo", phantoms, output_dir=house / "out", only="01")
    assert again() == 0
    assert again(force=True) == 1


def test_a_recipe_with_an_unknown_parameter_stops_before_anything_runs(house, phantoms):
    (house / "notebooks" / "recipes" / "high.yaml").write_text("hight: 5\n")
    with pytest.raises(ValueError, match=r"\['hight'\]. Received: recipe='high'"):
        run.run_plan("demo", phantoms, output_dir=house / "out")
    assert not (house / "out").exists()


def test_a_split_rule_may_have_a_recipe_of_its_own(house, phantoms):
    (house / "notebooks" / "recipes" / "high_image.yaml").write_text("level: 7\n")
    levels = {
        step.name: step.parameters["level"]
        for step in run.make_plan("demo", phantoms, ["patient", "image"], house / "out", {}, only="03")
    }
    assert levels == {"03_third-high-patient": 5, "03_third-high-image": 7}


def test_three_classes_are_left_out_where_the_kind_of_pneumonia_is_not_known(
    plain_folder, phantoms, tmp_path, capsys
):
    def names(folder, **overrides):
        return [step.name for step in run.make_plan("full", folder, ["patient"], tmp_path, overrides)]

    three = "03_transfer_learning-vgg16_three-patient"
    assert three in names(phantoms) and not capsys.readouterr().out
    folder = str(plain_folder(tmp_path, 30))
    assert set(names(phantoms)) - set(names(folder, classes=["healthy", "sick"])) == {three}
    assert f"{three} is left out: not every image is known to be normal" in capsys.readouterr().out


def test_a_notebook_that_writes_no_result_has_failed(house, phantoms, capsys):
    write_notebook(house / "notebooks", "01_first", "1 + 1")
    assert run.run_plan("demo", phantoms, output_dir=house / "out", only="01") == 1
    assert "ended without writing its result" in capsys.readouterr().out


def test_a_run_says_which_notebooks_take_a_parameter(house, phantoms, capsys):
    write_notebook(house / "notebooks", "02_second", "other", parameters="other: int = 0")
    run.run_plan("demo", phantoms, output_dir=house / "out", overrides={"level": 2}, dry_run=True)
    assert "level is set in 01_first, 03_third\n" in capsys.readouterr().out


def test_dry_run_runs_nothing(house, phantoms, capsys):
    assert run.run_plan("demo", phantoms, output_dir=house / "out", dry_run=True) == 0
    assert capsys.readouterr().out.count("would run") == 3
    assert not (house / "out").exists()


def test_outside_a_checkout_it_says_where_the_notebooks_are(monkeypatch, tmp_path, phantoms):
    monkeypatch.setattr(run, "NOTEBOOKS", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="clone https://"):
        run.run_plan("demo", phantoms)


def test_every_recipe_fits_a_notebook_of_the_plan_it_names():
    """Each recipe says in its first line what it is, and holds only parameters of its notebook."""
    import papermill
    import yaml

    known = {
        name: set(papermill.inspect_notebook(str(run.NOTEBOOKS / f"{name}.ipynb")))
        for name in ("02_custom_cnn", "03_transfer_learning", "04_distillation", "05_explain", "07_deploy")
    }
    recipes = sorted((run.NOTEBOOKS / "recipes").glob("*.yaml"))
    assert {recipe for plan in run.PLANS.values() for _, recipe in plan if recipe} <= {
        path.stem for path in recipes
    }
    for path in recipes:
        text = path.read_text(encoding="utf-8")
        given = yaml.safe_load(text)
        notebook = (
            "03_transfer_learning"
            if "backbone" in given
            else "04_distillation"
            if "student" in given
            else "05_explain"
            if "model" in given
            else "07_deploy"
            if "models" in given
            else "02_custom_cnn"
        )
        assert text.startswith("# ")
        assert path.stem.removesuffix("_official") in (given.get("name"), f"explain_{given.get('model')}")
        assert set(given) <= known[notebook], path.name
        for phase in ("head", "fine"):
            assert set(given.get(phase) or {}) <= {field.name for field in fields(TrainSettings)}, path.name
        assert not [value for value in given.values() if isinstance(value, str) and value[:1].isdigit()]


@pytest.mark.parametrize(
    ("model", "epochs", "expected"),
    [
        ("custom_cnn", 9, {"epochs": 9}),
        ("vgg16", 8, {"head": 2, "fine": 6}),  # a quarter for the head
        ("vgg16", 2, {"head": 1, "fine": 1}),
        ("vgg16", 1, {"head": 1, "fine": None}),
        ("resnet50", None, {}),
    ],
)
def test_epochs_of_a_model_by_hand(phantoms, tmp_path, monkeypatch, model, epochs, expected):
    runs = []
    monkeypatch.setattr(run, "run_plan", lambda plan, *_: runs.append(_[-1]) or 0)
    assert run.train_model(model, phantoms, "mine", tmp_path, "patient", epochs, {"image_size": 64}) == 0
    given = {name: value for name, value in runs[0].items() if name in ("epochs", "head", "fine")}
    counts = {name: value["epochs"] if isinstance(value, dict) else value for name, value in given.items()}
    assert counts == expected and runs[0]["name"] == "mine" and runs[0]["image_size"] == 64
    for settings in (value for value in given.values() if isinstance(value, dict)):
        TrainSettings(**settings)  # raises where the warm-up is longer than the phase


def test_a_second_training_of_a_name_needs_the_same_settings(phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(run, "run_plan", lambda *_: 0)
    (step,) = run.make_plan(
        [run.MODELS["custom_cnn"]], phantoms, ["patient"], tmp_path, {"name": "mine", "epochs": 3}
    )
    write_json(tmp_path / "results" / "mine-patient-s0-t0.json", {"step_key": step.key()})
    arguments = "custom_cnn", phantoms, "mine", tmp_path, "patient"
    assert run.train_model(*arguments, 3) == 0
    with pytest.raises(ValueError, match="made with other settings.*Received: name='mine'"):
        run.train_model(*arguments, 4)
    assert run.train_model(*arguments, 4, force=True) == 0


def test_one_step_alone_says_which_model_it_needs(house, phantoms, monkeypatch):
    parameters = PARAMETERS.replace("level: int", 'results: str = ""\nmodel: str = ""\nlevel: int')
    write_notebook(house / "notebooks", "07_loads", WRITE.format(name="loads"), parameters)
    (house / "notebooks" / "recipes" / "loads.yaml").write_text("model: second\n")
    monkeypatch.setattr(run, "PLANS", {"demo": [*run.PLANS["demo"], ("07_loads", "loads")]})
    with pytest.raises(ValueError, match="07_loads needs the model second; run its step first"):
        run.run_plan("demo", phantoms, output_dir=house / "out", only="07")


def test_without_test_scores_a_run_ends_with_those_on_validation(tmp_path, capsys):
    older = read_json(RESULTS / "squashed" / "custom_cnn-patient-s0-t0.json")
    metrics, confusion = {"val": older["metrics"]["val"]}, {"val": older["confusion"]["val"]}
    put_on_record(tmp_path / "results", "net-patient-s0-t0", metrics=metrics, confusion=confusion)
    run._print_summary(tmp_path)
    out, page = capsys.readouterr().out, (tmp_path / "index.html").read_text(encoding="utf-8")
    score = "{value:.2f} ({low:.2f}–{high:.2f})".format(**metrics["val"]["auroc"])
    images = sum(confusion["val"]["half"].values())
    for text in (out, page):
        assert "Validation images (" in text and "No model was evaluated on test." in text
        assert score in text and str(images) in text and "Test images" not in text
    assert "Worst errors of net-patient-s0-t0" in page


def test_the_command_line_offers_the_models_that_can_be_trained():
    assert cli._MODELS == ("compact_cnn", "custom_cnn", "vgg16", "resnet50", "inceptionv3")
    assert set(cli._MODELS) == set(run.MODELS)


@pytest.mark.parametrize("name", ["../x", "a/b", "", ".hidden", "a b"])
def test_a_name_that_is_no_folder_is_refused(phantoms, tmp_path, name):
    with pytest.raises(ValueError, match="a name has letters"):
        run.train_model("compact_cnn", phantoms, name, tmp_path)
