"""Imports run downwards only, and what takes arrays and tables knows nothing of the rest."""

import ast
from pathlib import Path

import pytest

import chestxray

# From the bottom to the top: a room may import those before it.
ROOMS = [
    "schema",
    "files",
    "parallel",
    "evaluation",
    "clinical",
    "plots",
    "phantoms",
    "data",
    "audit",
    "models",
    "gradcam",
    "deployment",
    "results",
    "run",
    "cli",
    "__main__",
]
ALONE = ("evaluation", "plots", "schema")


def imported(source):
    """Rooms of the package that a module imports, wherever in it; relative imports are not used here."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name.split(".")[1] for name in node.names if name.name.startswith("chestxray."))
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, ast.unparse(node)
            if node.module.split(".")[0] == "chestxray":
                yield from node.module.split(".")[1:2] or [name.name for name in node.names]


def test_every_form_of_import_is_seen():
    forms = {
        "import chestxray.cli": ["cli"],
        "import chestxray.data.images as i, os": ["data"],
        "from chestxray import plots, cli": ["plots", "cli"],
        "from chestxray.cli import main": ["cli"],
        "def f():\n    from chestxray.deployment.export import gate": ["deployment"],
        "import os": [],
    }
    for form, rooms in forms.items():
        assert list(imported(form)) == rooms, form
    with pytest.raises(AssertionError):
        list(imported("from ..deployment import bundle"))


def test_imports_run_downwards():
    root = Path(chestxray.__file__).parent
    seen = set()
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        below = ROOMS[: ROOMS.index(room)] if room not in ALONE else ["schema"]
        for other in imported(path.read_text(encoding="utf-8")):
            assert other in (room, "__version__", *below), f"{path.name} imports {other}"
            seen.add((room, other))
    assert {("gradcam", "models"), ("cli", "run"), ("results", "deployment"), ("data", "phantoms")} <= seen
