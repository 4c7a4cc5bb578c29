"""README.md: its commands, its example and its numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")


def test_numbers_are_the_recorded_ones():
    done = subprocess.run([sys.executable, ROOT / ".ci" / "readme_numbers.py", "--check"], cwd=ROOT)
    assert done.returncode == 0, "run: python .ci/readme_numbers.py"


@pytest.mark.parametrize("page", ["README.md", "benchmarks/README.md"])
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


def test_the_library_example_runs_as_printed_in_twelve_lines(tmp_path, plain_folder):
    code = re.search(r"```python\n(.*?)```", TEXT, re.S).group(1)
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    plain_folder(tmp_path, 60).rename(tmp_path / "my_xrays")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"})
    assert done.returncode == 0, done.stderr[-2000:]
    assert "no patient group is known for 60 of 60 images" in done.stderr
    assert (tmp_path / "my_model.keras").is_file()
