"""A step of a plan, and the key by which it is known to be done."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat

from chestxray import __version__
from chestxray.files import read_json
from chestxray.models.weights import find_weights
from chestxray.results import RESULT_SCHEMA, find_classifier

RUN_WIDE = ("data_dir", "split", "output_dir", "results")
"""Parameters that are set by options of the run, not by -p."""

_COMPARED = (RESULT_SCHEMA, "chestxray.audit/1", "chestxray.explanation/1")
"""What a comparison reads."""


@dataclass(frozen=True)
class Step:
    """One notebook with its parameters.

    Attributes:
        name: Name of the executed notebook.
        notebook: The source.
        parameters: What papermill injects.
        data_key: Identifies the data and their split.
    """

    name: str
    notebook: Path
    parameters: dict[str, Any]
    data_key: str

    def key(self) -> str:
        """Identify the step by everything that its result depends on."""
        source = [cell.source for cell in nbformat.read(self.notebook, as_version=4).cells]
        parts = {
            "parameters": {
                name: value for name, value in self.parameters.items() if name not in (*RUN_WIDE, "weights")
            },
            "data": self.data_key,
            "source": source,
            "version": __version__,
        }
        if "weights" in self.parameters and "backbone" in self.parameters:
            parts["weights"] = _weights_key(self.parameters["weights"], self.parameters["backbone"])
        models = [self.parameters.get(role) for role in ("model", "other")]
        for role in ("models", "teachers", "teachers_three"):
            models += self.parameters.get(role, [])
        for name in filter(None, models):
            parts[f"model {name}"] = _model_key(name, self.parameters)
        if "results" in self.parameters:
            parts["results"] = _results_key(Path(self.parameters["results"]))
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def _weights_key(weights: str, backbone: str) -> str:
    try:
        source, recorded = find_weights(weights or None, backbone)
    except FileNotFoundError:
        return "missing"  # the notebook says so in its own words
    if source is None or not Path(source).is_file():
        return recorded
    with open(source, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _model_key(name: str, parameters: dict[str, Any]) -> str:
    """Contents of the card of a model that a notebook loads."""
    card = (
        find_classifier(name, Path(parameters["output_dir"]), parameters["split"], parameters.get("seed", 0))
        / "card.json"
    )
    return hashlib.sha256(card.read_bytes()).hexdigest() if card.is_file() else "missing"


def _results_key(folder: Path) -> list[str]:
    """Contents of the files that a comparison reads."""
    found = [(path, read_json(path)) for path in sorted(folder.glob("*.json"))]
    return [
        f"{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}"
        for path, content in found
        if isinstance(content, dict) and content.get("schema") in _COMPARED
    ]
