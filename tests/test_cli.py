"""The command line: starts without TensorFlow, one line and exit code 2 for a user's mistake."""

import os
import shutil
import subprocess
import sys

import pytest
from click.testing import CliRunner

from chestxray.cli import main, parse_value
from chestxray.files import project_path, read_json


def test_help_and_the_package_itself_need_neither_tensorflow_nor_pandas():
    code = (
        "import sys, chestxray\nfrom chestxray.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "assert not {'tensorflow', 'keras', 'pandas', 'papermill'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in " ".join(done.stdout.split())


def test_a_terminal_that_is_not_utf8(tmp_path):
    code = "from chestxray.cli import main; main(['cache', '--only', 'files'])"
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=os.environ
        | {"PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0", "CHESTXRAY_CACHE": str(tmp_path / "\u03b1")},
    )
    assert done.returncode == 0 and "\\u03b1/files" in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--data-dir", "/nowhere"], "no such data folder. Received: data_dir='/nowhere'"),
        (["predict", "/nowhere", "x.png"], "no such folder. Received: folder='/nowhere'"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_two(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), ValueError("x"), TypeError("int + str")])
def test_an_error_of_the_program_is_not_dressed_as_a_mistake(error, monkeypatch):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("chestxray.data.catalog.find_data", fail)
    result = CliRunner().invoke(main, ["run", "--dry-run"])
    assert result.exit_code == 1 and result.exception is error


def test_debug_shows_the_traceback_of_a_mistake():
    result = CliRunner().invoke(main, ["run", "--data-dir", "/nowhere", "--debug"])
    assert result.exit_code == 1 and isinstance(result.exception, FileNotFoundError)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-4", 1e-4),
        ("0.5", 0.5),
        (".5e3", 500.0),
        ("1.2.3e5", "1.2.3e5"),
        ("true", True),
        ("[64, 32]", [64, 32]),
        ("null", None),
        ("VGG16", "VGG16"),
        ("{}", {}),
        ("nan", "nan"),
    ],
)
def test_parameters_are_read_as_what_they_mean(text, value):
    parsed = parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_every_exported_name_exists_and_a_wrong_one_does_not():
    import chestxray

    for name in chestxray.__all__:
        assert getattr(chestxray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        chestxray.nonsense  # noqa: B018


def test_cache_shows_and_clears(monkeypatch, tmp_path):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path))
    for folder in ("phantoms", "of_somebody_else"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a").write_bytes(b"0" * 1_500_000)
    assert "1.5 MB" not in CliRunner().invoke(main, ["cache", "--only", "features", "--clear"]).output
    assert (tmp_path / "phantoms" / "a").is_file()
    assert "1.5 MB" in CliRunner().invoke(main, ["cache", "--clear"]).output
    assert not (tmp_path / "phantoms").exists()
    assert (tmp_path / "of_somebody_else" / "a").is_file()


def test_saved_models_are_listed_with_purpose_and_scores(tmp_path):
    shutil.copytree(project_path("saved_models/phantom_cnn"), tmp_path / "phantom_cnn")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "card.json").write_text("{")
    output = CliRunner().invoke(main, ["models", str(tmp_path)]).output
    assert f"{tmp_path / 'damaged'}: not a JSON file" in output
    assert "for tests of the software, because it was trained on synthetic images" in output
    auroc = read_json(tmp_path / "phantom_cnn" / "card.json")["metrics"]["test"]["auroc"]["value"]
    assert f"test {auroc:.3f}" in output


def test_a_mistyped_data_variable_is_an_error_and_not_phantoms(monkeypatch):
    monkeypatch.setenv("CHESTXRAY_DATA", "/typo")
    result = CliRunner().invoke(main, ["run", "--dry-run"])
    assert result.exit_code == 2 and "data_dir='/typo'" in result.output


def test_a_broken_parameter_is_one_line():
    result = CliRunner().invoke(main, ["run", "--data-dir", "phantoms", "-p", "name", "[a"])
    assert result.exit_code == 2 and result.output.splitlines()[-1].endswith("Received: value='[a'")


def test_reading_and_calibrating_need_the_small_core_only():
    code = (
        "import sys\nfor name in ('scipy', 'sklearn', 'pandas', 'papermill', 'tensorflow', 'keras'):\n"
        "    sys.modules[name] = None\n"
        "import chestxray.deployment.predict, chestxray.deployment.classifier as b\n"
        "c = b.Classifier(None, {'calibration': {'slope': 2.0, 'intercept': -1.0}}, None)\n"
        "import numpy as np\n"
        "assert abs(c.probabilities(np.array([0.5]))[0] - 0.5) < 1e-15"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
