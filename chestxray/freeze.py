"""From a model chosen on validation to the model of record: one look at test, no second training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from chestxray import plots
from chestxray.data.dataset import load_data
from chestxray.data.images import ImageSettings
from chestxray.deployment.card import read_card
from chestxray.deployment.classifier import load_model
from chestxray.files import read_json, whole_file
from chestxray.results import RESULT_SCHEMA, read_predictions, record_model


def freeze(
    run: str | Path, full_name: str, name: str, data_dir: str | Path, output_dir: str | Path
) -> dict[str, Any]:
    """Put a model of a run on record under its final name, now with test scores and its figures.

    Broken off while the figures are drawn, the same call draws those that are missing.

    Args:
        run: Folder of the run in which it was trained with ``score_test=False``.
        full_name: Its name there, with split rule and seed.
        name: Final name, without them.
        data_dir: The images it was trained on.
        output_dir: Folder for model, result and figures.

    Returns:
        The result (contract 6).

    Raises:
        FileNotFoundError: The run has no such model.
        ValueError: It is no model's result, test was already scored, by this
            model or by another one of that final name, or the images are others.
    """
    run, output_dir = Path(run), Path(output_dir)
    result = read_json(run / "results" / f"{full_name}.json")
    if not isinstance(result, dict) or result.get("schema") != RESULT_SCHEMA:
        raise ValueError(f"not the result of a model. Received: name={full_name!r}")
    final = f"{name}-{'-'.join(full_name.rsplit('-', 2)[1:])}"
    before = output_dir / "results" / f"{final}.json"
    if before.is_file() and (found := read_json(before))["training"] == result["training"]:
        if _draw(found, output_dir):
            return found
    if "test" in result["metrics"] or before.exists():
        raise ValueError(
            "the test images were scored already, and a second model under this name would be "
            f"chosen by them. Received: name={full_name!r}, final={final!r}"
        )
    folder = run / "saved_models" / full_name
    card = read_card(folder)
    data = load_data(
        data_dir,
        result["split_rule"],
        card["training_data"]["seed"],
        ImageSettings(**result["image"]),
        tuple(result["classes"]),
    )
    if data.split_hash != result["split_hash"]:
        raise ValueError(
            "these are not the images and the split it was trained on. "
            f"Received: split_hash={data.split_hash!r}, expected {result['split_hash']!r}"
        )
    found = record_model(
        load_model(folder / "model.keras"),
        data,
        name,
        output_dir,
        parameters=result["parameters"],
        weights=result["weights"],
        training=result["training"],
        record=True,
    )
    _draw(found, output_dir)
    return found


def _draw(result: dict[str, Any], output_dir: Path) -> list[Path]:
    """Draw the figures that notebooks 02 and 03 draw of one model, unless they are there; say which."""
    predictions = read_predictions(output_dir / "results", result["name"]).query("split == 'test'")
    synthetic = result["data"] == "synthetic"
    name, thresholds, classes = result["name"], result["thresholds"], result["classes"]
    labels, probabilities = predictions["label"], predictions["probability"]
    rules = [rule for rule, value in thresholds.items() if value is not None]
    history = pd.DataFrame(result["training"]["history"])
    figures = {
        "learning_curves": plots.learning_curves(history.assign(epoch=history.index + 1), synthetic),
        "confusion": plots.confusion_matrices(
            [result["confusion"]["test"][rule] for rule in rules],
            [f"test, {rule} ({thresholds[rule]:.3f})" for rule in rules],
            synthetic,
            classes,
        ),
        "roc_pr": plots.roc_pr({name: (labels, probabilities)}, {name: thresholds["youden"]}, synthetic),
        "scores": plots.score_distribution(labels, probabilities, thresholds, synthetic, classes),
    }
    drawn = []
    for kind, figure in figures.items():
        path = output_dir / "images" / f"{kind}-{name}.png"
        if not path.is_file():
            with whole_file(path) as partial:
                figure.savefig(partial, dpi=120)
            drawn.append(path)
    return drawn
