"""Imports run downwards only, and what takes arrays and tables knows nothing of the rest."""

import ast
from pathlib import Path

import chestxray

# From the bottom to the top: a room may import those before it.
ROOMS = ["evaluation", "plots", "files", "processes", "terminal", "data", "models", "gradcam", "deployment",
         "results", "record", "steps", "publish", "freeze", "experiments", "console", "cli"]
ALONE = ("evaluation", "plots")


def imported(path):
    """Rooms of the package that a module imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "chestxray":
            parts = node.module.split(".")
            yield from parts[1:2] or [name.name for name in node.names]


def test_imports_run_downwards():
    root = Path(chestxray.__file__).parent
    seen = set()
    for path in root.rglob("*.py"):
        room = path.relative_to(root).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        below = ROOMS[:ROOMS.index(room)] if room not in ALONE else []
        for other in imported(path):
            assert other in (room, "__version__", *below), f"{path.name} imports {other}"
            seen.add((room, other))
    assert {("gradcam", "models"), ("cli", "experiments"), ("record", "deployment")} <= seen
