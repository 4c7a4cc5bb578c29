"""What a model's folder says of it: ``card.json``, and the model card for people written from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from chestxray.files import read_json

CARD_SCHEMA = "chestxray.card/1"
_KEYS = {
    "calibration",
    "classes",
    "image",
    "limits",
    "metrics",
    "name",
    "self_test",
    "threshold_reasons",
    "thresholds",
    "training_data",
    "triage",
}

_USERS = (
    "For research and teaching: students and researchers who study classifiers and their faults, engineers "
    "who test a pipeline. Not for anybody's care: it was never tested where it would be used, nor by those "
    "who would use it. A clinician who looks at its answers sees what such models do, not what is the matter "
    "with a patient."
)

_CHECKLIST = (
    (
        "Source of the data, eligibility",
        "the images of the folder named above, retrospective; inclusion as published, not verifiable here",
    ),
    ("Reference standard", "the labels of the data set, taken as they are"),
    ("Data partitions", "above; overlap of patient groups is printed by notebook 01"),
    ("Preprocessing, missing data", "input above; unreadable files are left out and named"),
    ("Model, training, software", "`card.json`: parameters, weights, versions"),
    (
        "Choice of model and threshold",
        "on validation images alone; looks at test are logged in `results/test_log.csv`",
    ),
    ("Performance with uncertainty", "above, 95 % intervals over patient groups"),
    ("Calibration, clinical usefulness", "above, and the decision curve in notebook 06"),
    (
        "Subgroups, fairness",
        "kind of pneumonia and series of films in notebook 06; others by `chestxray "
        "evaluate --by`, where they are known",
    ),
    ("Failure analysis", "worst mistakes by name in notebook 06"),
    ("External testing", "none"),
)


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read ``card.json`` of a model's folder.

    Raises:
        FileNotFoundError: There is none.
        ValueError: It is none, or a part is missing.
    """
    path = Path(folder) / "card.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"card.json is missing from the model folder. Received: folder={str(folder)!r}"
        )
    card = read_json(path)
    if not isinstance(card, dict) or card.get("schema") != CARD_SCHEMA:
        raise ValueError(f"card.json is not of schema {CARD_SCHEMA}. Received: folder={str(folder)!r}")
    if missing := _KEYS - set(card):
        raise ValueError(f"card.json does not say {sorted(missing)[0]}. Received: folder={str(folder)!r}")
    return card


def model_card(card: Mapping[str, Any]) -> str:
    """Write the model card as Markdown.

    Args:
        card: Contents of ``card.json``.
    """
    data, image = card["training_data"], card["image"]
    first, baseline = card["limits"][0], card["baseline"]
    lines = [
        f"# {card['name']}",
        "",
        f"Classifies frontal chest radiographs: {card['classes'][0]} (0) against {card['classes'][1]} (1).",
        "",
        f"**{first}**",
        "",
        "## Intended use",
        "",
        _USERS,
        "",
        "## Data",
        "",
        f"{data['name']}: {data['train']:,} training, {data['val']:,} validation and {data['test']:,} test "
        f"images; split rule `{data['split_rule']}`, split seed {data['split_seed']}, hash `{data['split_hash']}`. "
        f"Initial weights: {card['weights']}.",
        "",
        f"Input: {image['size']} × {image['size']} grey pixels in 0–255, {image['resize']}"
        f"{', CLAHE' if image['clahe'] else ''}.",
        "",
        *_export(card.get("export")),
        "## Results",
        "",
        "Calibration and the threshold (`youden`) were chosen on validation data. Intervals: 95 %, bootstrap "
        "over patient groups.",
        "",
    ]
    metrics = card["metrics"]
    lines += _table(
        ["data", "AUROC", "accuracy", "sensitivity", "specificity"],
        [
            [
                subset,
                _cell(found["auroc"]),
                *(_cell(found["youden"][name]) for name in ("accuracy", "sensitivity", "specificity")),
            ]
            for subset, found in metrics.items()
        ],
    )
    if baseline:
        lines += [
            "",
            f"The baseline: a linear model that sees hardly any lung ({baseline['sees']}) reaches AUROC "
            f"{baseline['auroc']:.3f} on other patients of these data.",
        ]
    lines += [
        "",
        "Calibration (slope 1 and intercept 0 are right; the skill is the gain in Brier score over "
        "saying the prevalence):",
        "",
    ]
    names = ("brier", "brier_skill", "slope", "intercept", "ece")
    lines += _table(
        ["data", "Brier", "skill", "slope", "intercept", "expected calibration error"],
        [[subset, *(_cell(found[name]) for name in names)] for subset, found in metrics.items()],
    )
    lines += [
        "",
        "## Operating points",
        "",
        "Thresholds on the calibrated probability, frozen on validation: `youden` has the largest "
        "sensitivity + specificity; `sensitivity_95` is the highest that is shown (Wilson interval) to "
        "find 95 % of the pneumonias; `half` is 0.5.",
        "",
    ]
    rows = []
    for threshold_rule, value in card["thresholds"].items():
        if value is None:
            rows.append(
                [f"`{threshold_rule}`", f"none: {card['threshold_reasons'][threshold_rule]}", "", "", ""]
            )
        else:
            rows += [
                [
                    f"`{threshold_rule}`",
                    f"{value:.4f}",
                    subset,
                    _cell(found[threshold_rule]["sensitivity"]),
                    _cell(found[threshold_rule]["specificity"]),
                ]
                for subset, found in metrics.items()
            ]
    lines += _table(["rule", "threshold", "data", "sensitivity", "specificity"], rows)
    out, into = card["triage"]["rule_out"], card["triage"]["rule_in"]
    between = "refer between" if into > out else "nobody is referred"
    lines += [
        "",
        f"Triage: rule out below {out:.4f}, rule in from {into:.4f}, {between}.",
        "",
        "## Limits",
        "",
        *(f"- {limit}" for limit in card["limits"]),
        "- Images further out than 99 % of the validation images are refused (`refusal.npz`); a "
        "mirrored film is not noticed, and what is refused was checked on few other kinds of pictures.",
    ]
    if data["name"] != "synthetic":
        lines += [
            "",
            "## Reporting items",
            "",
            "Those of [CLAIM 2024](https://doi.org/10.1148/ryai.240300) and "
            "[TRIPOD+AI](https://doi.org/10.1136/bmj-2023-078378) that apply, in short.",
            "",
            *_table(["item", "here"], _CHECKLIST),
        ]
    return "\n".join(lines) + "\n"


def _export(export: Mapping[str, Any] | None) -> list[str]:
    """What an exported bundle says of its file; nothing for a Keras model."""
    if export is None:
        return []
    parity = export["parity"]
    faults = f" **Kept although {'; '.join(export['faults'])}.**" if export["faults"] else ""
    weights = "float16" if export["float16"] else "float32"
    return [
        "## Export",
        "",
        f"{export['format']}, weights in {weights}, {export['bytes']:,} bytes; one picture, (1, size, "
        "size, 1), in; `logit`, `distance` (for the refusal) and, where it is exact, `map` (class "
        f"activation map) out. Against the Keras model, on {parity['images']:,} images of its data, "
        f"logits differ by up to {parity['logit_difference']:.2g}, {parity['decisions_changed']:.2%} of "
        f"the decisions and {parity['refusals_changed']:.2%} of the refusals change.{faults} Calibration "
        "and thresholds were fitted on its own logits; the metrics below are the Keras model's.",
        "",
    ]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def _cell(entry: Mapping[str, float | None]) -> str:
    if entry["value"] is None:
        return "–"
    interval = "" if entry["low"] is None else f" ({entry['low']:.3f} to {entry['high']:.3f})"
    return f"{entry['value']:.3f}{interval}"
