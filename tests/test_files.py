"""Files and folders are whole or not there; debris of killed processes goes, work of others stays."""

import os
import subprocess
import sys

import pytest

from chestxray.files import remove_debris, whole_file, whole_folder, write_json

KILLED = """
import os, signal, sys
from chestxray.files import whole_folder
with whole_folder(sys.argv[1]) as partial:
    (partial / "half").write_text("1")
    print(partial.name, flush=True)
    if sys.argv[2] == "wait":
        sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def start(path, what):
    return subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path), what],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def names(folder):
    return {path.name for path in folder.iterdir() if not path.name.endswith(".lock")}


def test_debris_of_a_killed_process_goes_and_work_of_a_living_one_stays(tmp_path):
    killed = start(tmp_path / "store", "die")
    killed.wait()
    left = killed.stdout.readline().strip()
    living = start(tmp_path / "store", "wait")
    busy = living.stdout.readline().strip()
    assert left not in names(tmp_path) and busy in names(tmp_path)  # the second call cleans up
    with whole_folder(tmp_path / "store") as partial:
        (partial / "whole").write_text("1")
        assert {busy, partial.name} == names(tmp_path)
    living.kill()
    living.wait()
    remove_debris(tmp_path)
    assert names(tmp_path) == {"store"} and names(tmp_path / "store") == {"whole"}
    assert not list(tmp_path.glob("*.lock")) + list(tmp_path.glob(".*.lock"))


def test_debris_of_a_longer_name_is_not_mine(tmp_path):
    """``.partial-…-explain-a`` once matched the pattern of ``a``."""
    for name in (".partial-0123abcd-explain-a.json", ".partial-0123abcd-a.json"):
        (tmp_path / name).write_text("{")
    write_json(tmp_path / "a.json", 1)
    assert names(tmp_path) == {".partial-0123abcd-explain-a.json", "a.json"}


@pytest.mark.parametrize("killed_after", ["first rename", "second rename"])
def test_nothing_is_lost_between_the_two_renames(killed_after, tmp_path):
    former = tmp_path / ".former-model"
    former.mkdir()
    (former / "card.json").write_text("old")
    if killed_after == "second rename":
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "card.json").write_text("new")
    with pytest.raises(RuntimeError), whole_folder(tmp_path / "model"):
        raise RuntimeError
    content = (tmp_path / "model" / "card.json").read_text()
    assert content == ("old" if killed_after == "first rename" else "new")
    with whole_folder(tmp_path / "model") as partial:
        (partial / "card.json").write_text("newest")
    assert (tmp_path / "model" / "card.json").read_text() == "newest"
    assert names(tmp_path) == {"model"}


def test_a_failed_write_leaves_what_was_there(tmp_path):
    target = tmp_path / "a.json"
    target.write_text("old")
    with pytest.raises(RuntimeError), whole_file(target) as partial:
        partial.write_text("{")
        assert partial.suffix == ".json"
        raise RuntimeError
    assert target.read_text() == "old" and os.listdir(tmp_path) == ["a.json"]


def test_a_second_writer_of_a_folder_does_not_break_the_first(tmp_path):
    """Both end, and the folder is one of theirs, whole."""
    with whole_folder(tmp_path / "store") as first:
        (first / "a").write_text("1")
        with whole_folder(tmp_path / "store") as second:
            (second / "b").write_text("1")
        assert names(tmp_path / "store") == {"b"}
    assert names(tmp_path / "store") == {"a"} and os.listdir(tmp_path) == ["store"]
