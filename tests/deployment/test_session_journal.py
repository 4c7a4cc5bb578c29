"""A table is whole or not there, and nothing is predicted twice."""

import csv
import errno
import json
import os
from pathlib import Path

import filelock
import pytest

from chestxray.deployment.session import journaled

PATHS = [Path(f"{number}.png") for number in range(6)]


class Predictor:
    """Counts its predictions, and can be interrupted."""

    def __init__(self, stop_before=None):
        self.predicted, self.stop_before = [], stop_before

    def __call__(self, paths):
        for path in paths:
            if path == self.stop_before:
                raise KeyboardInterrupt
            self.predicted.append(path)
            yield {"path": str(path), "value": path.stem * 2}


def run(output, predictor, paths=PATHS, identity="youden"):
    return list(journaled(output, identity, paths, predictor, finish=lambda: None))


def table(output):
    if output.suffix == ".jsonl":
        return [json.loads(line) for line in output.read_text().splitlines()]
    with open(output, newline="") as file:
        return list(csv.DictReader(file))


EXPECTED = [{"path": f"{number}.png", "value": f"{number}{number}"} for number in range(6)]


@pytest.mark.parametrize("name", ["out.csv", "out.jsonl"])
def test_undisturbed(tmp_path, name):
    rows = run(tmp_path / name, Predictor())
    assert table(tmp_path / name) == EXPECTED
    assert [row["value"] for row in rows] == [row["value"] for row in EXPECTED]
    assert [path.name for path in tmp_path.iterdir()] == [name]  # no journal is left


@pytest.mark.parametrize("stop", range(6))
def test_goes_on_where_it_was_interrupted(tmp_path, stop):
    output, first, second = tmp_path / "out.csv", Predictor(PATHS[stop]), Predictor()
    with pytest.raises(KeyboardInterrupt):
        run(output, first)
    assert not output.exists()
    rows = run(output, second)
    assert first.predicted + second.predicted == PATHS
    assert table(output) == EXPECTED and len(rows) == 6


@pytest.mark.parametrize("cut", range(1, 31))
def test_a_line_that_was_cut_short_is_predicted_again(tmp_path, cut):
    output = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(output, Predictor(PATHS[3]))
    (journal,) = tmp_path.glob("*.jsonl")
    journal.write_bytes(journal.read_bytes()[:-cut])
    second = Predictor()
    run(output, second)
    assert second.predicted[0] == PATHS[2] and table(output) == EXPECTED


def test_another_model_begins_anew(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.csv", Predictor(PATHS[3]))
    second = Predictor()
    run(tmp_path / "out.csv", second, identity="half")
    assert second.predicted == PATHS


def test_files_that_came_or_went_since(tmp_path):
    output = tmp_path / "out.csv"
    with pytest.raises(KeyboardInterrupt):
        run(output, Predictor(PATHS[4]))
    second = Predictor()
    run(output, second, [*PATHS[:2], *PATHS[3:]])
    assert second.predicted == PATHS[3:] and [row["path"] for row in table(output)] == [
        "0.png",
        "1.png",
        "3.png",
        "4.png",
        "5.png",
    ]
    with pytest.raises(KeyboardInterrupt):
        run(output, Predictor(PATHS[4]))
    run(output, third := Predictor(), PATHS[:2])
    assert third.predicted == [] and len(table(output)) == 2


def test_other_files_of_the_same_name_are_predicted(tmp_path, monkeypatch):
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        monkeypatch.chdir(tmp_path / folder)
        for path in PATHS:
            path.write_text(folder)
    monkeypatch.chdir(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.csv", Predictor(PATHS[4]))
    monkeypatch.chdir(tmp_path / "b")
    second = Predictor()
    run(tmp_path / "out.csv", second)
    assert second.predicted == PATHS and table(tmp_path / "out.csv") == EXPECTED


@pytest.mark.parametrize(
    "change",
    [lambda path: path.write_text("longer than before"), Path.unlink, lambda path: os.utime(path, ns=(0, 1))],
)
def test_a_file_that_has_changed_since_is_predicted_again(tmp_path, change):
    paths = [tmp_path / path for path in PATHS]
    for path in paths:
        path.write_text("half")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.csv", Predictor(paths[4]), paths)
    change(paths[2])
    second = Predictor()
    run(tmp_path / "out.csv", second, paths)
    assert second.predicted == paths[2:] and len(table(tmp_path / "out.csv")) == 6


def test_the_former_table_stays_until_the_new_one_is_whole(tmp_path):
    run(tmp_path / "out.csv", Predictor())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "out.csv", Predictor(PATHS[3]))
    assert table(tmp_path / "out.csv") == EXPECTED


def test_paths_that_are_no_text_survive(tmp_path):
    strange = [Path("line\nend.png"), Path("bad\udcff.png"), Path("quote\"'.png")]
    run(tmp_path / "out.csv", Predictor(), strange)
    with open(tmp_path / "out.csv", newline="", errors="surrogateescape", encoding="utf-8") as file:
        assert [row["path"] for row in csv.DictReader(file)] == [str(path) for path in strange]


def test_unknown_format(tmp_path):
    with pytest.raises(ValueError, match="must end in .csv or .jsonl"):
        run(tmp_path / "out.xlsx", Predictor())


def test_a_file_system_without_locks_has_tables(tmp_path, monkeypatch):
    def acquire(*_, **__):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(filelock.FileLock, "acquire", acquire)
    run(tmp_path / "out.csv", Predictor())
    assert table(tmp_path / "out.csv") == EXPECTED


def test_two_processes_do_not_write_one_table(tmp_path):
    rows = journaled(tmp_path / "out.csv", "", PATHS, Predictor(), finish=lambda: None)
    next(rows)
    with pytest.raises(ValueError, match="another process writes this table"):
        run(tmp_path / "out.csv", Predictor())
    list(rows)
    assert table(tmp_path / "out.csv") == EXPECTED
