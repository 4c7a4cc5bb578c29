"""Evaluate a model that was chosen on validation once on test, without a second training.

    python tools/score_on_test.py RUN RESULT_NAME --as NAME --data-dir FOLDER --output-dir FINAL_RUN

For models that were trained with ``-p score_test False``. The evaluation is logged.
"""

from pathlib import Path
from typing import Any

import click

from chestxray.data.dataset import load_data
from chestxray.data.images import ImageSettings
from chestxray.deployment.classifier import POPULATIONS, load_model
from chestxray.files import read_json
from chestxray.results import RESULT_SCHEMA, parse_result_name, record_model, result_name


def score_on_test(
    run: Path, chosen: str, name: str, data_dir: str | Path, output_dir: Path
) -> dict[str, Any]:
    """Put the model of result ``chosen`` on record as ``name``, with test scores, and return its result.

    ValueError: no model's result, test was already scored (also under that name), or the images differ.
    """
    result = read_json(run / "results" / f"{chosen}.json")
    if not isinstance(result, dict) or result.get("schema") != RESULT_SCHEMA:
        raise ValueError(f"not the result of a model. Received: name={chosen!r}")
    _, split_rule, split_seed, train_seed = parse_result_name(chosen)
    final = result_name(name, split_rule, split_seed, train_seed)
    if "test" in result["metrics"] or (output_dir / "results" / f"{final}.json").exists():
        message = "the test images were scored already; a second model would be chosen by them"
        raise ValueError(f"{message}. Received: name={chosen!r}, final={final!r}")
    image, classes = ImageSettings(**result["image"]), tuple(result["classes"])
    data = load_data(data_dir, split_rule, split_seed, image, classes, train_seed=train_seed)
    if data.split_hash != result["split_hash"]:
        received = f"split_hash={data.split_hash!r}, expected {result['split_hash']!r}"
        raise ValueError(f"these are not the images and the split it was trained on. Received: {received}")
    kept = {key: result[key] for key in ("parameters", "weights", "training")}
    known = read_json(run / "saved_models" / chosen / "card.json").get("population")
    kept["population"] = next((name for name, value in POPULATIONS.items() if value == known), "")
    model = load_model(run / "saved_models" / chosen / "model.keras")
    return record_model(model, data, name, output_dir, **kept, record=True)


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("chosen", metavar="RESULT_NAME")
@click.option("--as", "name", required=True, help="Final name, without split rule and seeds.")
@click.option("--data-dir", required=True, help="The images it was trained on.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True)
def main(**arguments: Any) -> None:
    """Evaluate the model RESULT_NAME of RUN once on test."""
    click.echo(f"AUROC {score_on_test(**arguments)['metrics']['test']['auroc']['value']:.3f}")


if __name__ == "__main__":
    main()
