"""Convert published results and cards to the new names, once: python tools/convert_names.py.

Result names get the seed of the training beside that of the split; until now one seed
was both. ``results/test_log.csv`` keeps the names under which test was evaluated.
"""

import json
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
KEYS = {"floor": "baseline", "arms": "variants", "arm": "variant", "part": "subset"}
NOT_MODELS = ("dataset", "deploy", "deploy_student", "comparison", "split")


def new_name(text: str) -> str:
    """Convert every result name in a text."""

    def convert(match: re.Match[str]) -> str:
        model, rule, seed = match.groups()
        model = model.replace("_arms", "_variants")
        single = not model.endswith("_variants") and model not in NOT_MODELS
        return f"{model}-{rule}-s{seed}" + (f"-t{seed}" if single else "")

    return re.sub(r"([A-Za-z0-9_.]+)-(patient|official|image)-s(\d+)(?!-t|\d)", convert, text)


def convert(content: Any) -> Any:
    """Convert keys and names of a JSON content."""
    if isinstance(content, dict):
        content = {KEYS.get(key, new_name(key)): convert(value) for key, value in content.items()}
        if "split_hash" in content and "seed" in content:
            seeds = {"split_seed": content["seed"], "train_seed": content["seed"]}
            content = {
                name: value
                for key, entry in content.items()
                for name, value in (seeds.items() if key == "seed" else [(key, entry)])
            }
        return content
    if isinstance(content, list):
        return [convert(value) for value in content]
    if isinstance(content, str):
        return new_name(content).replace("chestxray.arms/1", "chestxray.variants/1")
    return content


def main() -> None:
    for path in [*(ROOT / "results").rglob("*.json"), *(ROOT / "saved_models").glob("*/card.json")]:
        text = json.dumps(convert(json.loads(path.read_text())), indent=2, allow_nan=False)
        path.write_text(text + "\n")
    for path in [*(ROOT / "saved_models").glob("*/README.md"), ROOT / "results" / "tried.csv"]:
        path.write_text(new_name(path.read_text()).replace('""arm""', '""variant""'))
    for folder in ("results", "saved_models", "images", "results/benchmarks"):
        for path in sorted((ROOT / folder).iterdir()):
            if new_name(path.name) != path.name:
                path.rename(path.with_name(new_name(path.name)))


if __name__ == "__main__":
    main()
