"""The command line: starts without TensorFlow, one line and exit code 2 for a user's mistake."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from chestxray.cli import _parse_value, main


def test_help_and_the_package_itself_need_neither_tensorflow_nor_pandas():
    code = ("import sys, chestxray\nfrom chestxray.cli import main\n"
            "main(['--help'], standalone_mode=False)\n"
            "assert not {'tensorflow', 'keras', 'pandas', 'papermill'} & set(sys.modules)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "not a medical device" in " ".join(done.stdout.split())


@pytest.mark.parametrize(("arguments", "message"), [
    (["run", "--data-dir", "/nowhere"], "no such data folder. Received: data_dir='/nowhere'"),
    (["predict", "/nowhere", "x.png"],
     "model.keras is missing from the model folder. Received: folder='/nowhere'"),
    (["publish", "/nowhere"], "no result of a model here. Received: folder='/nowhere/results'"),
])
def test_mistakes_are_one_line_and_exit_code_two(arguments, message):
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert result.output.strip().splitlines()[-1] == f"Error: {message}"


@pytest.mark.parametrize(("text", "value"), [
    ("3", 3), ("1e-4", 1e-4), ("0.5", 0.5), ("true", True), ("[64, 32]", [64, 32]), ("null", None),
    ("VGG16", "VGG16"), ("{}", {})])
def test_parameters_are_read_as_what_they_mean(text, value):
    parsed = _parse_value(text)
    assert parsed == value and type(parsed) is type(value)


def test_every_exported_name_exists_and_a_wrong_one_does_not():
    import chestxray
    for name in chestxray.__all__:
        assert getattr(chestxray, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        chestxray.nonsense  # noqa: B018


def test_cache_shows_and_clears(monkeypatch, tmp_path):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path))
    (tmp_path / "phantoms").mkdir()
    (tmp_path / "phantoms" / "a").write_bytes(b"0" * 1_500_000)
    assert "1.5 MB" in CliRunner().invoke(main, ["cache", "--clear"]).output
    assert not (tmp_path / "phantoms").exists()
