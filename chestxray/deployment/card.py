"""The card of a model: ``card.json``, and the model card ``README.md`` made from it."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from chestxray.files import read_json

CARD_SCHEMA = "chestxray.card/2"
_KEYS = {"calibration", "classes", "image", "limits", "metrics", "name", "self_test", "threshold_reasons"}
_KEYS |= {"thresholds", "training_data", "triage"}


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read ``card.json`` of a model folder.

    Raises FileNotFoundError if it is missing, and ValueError if it is not a card or lacks a key.
    """
    path, received = Path(folder) / "card.json", f"Received: folder={str(folder)!r}"
    if not path.parent.is_dir():
        known = [card.parent.name for card in path.parent.parent.glob("*/card.json")]
        near = difflib.get_close_matches(path.parent.name, known, 1) or sorted(known)
        hint = f"; did you mean {' or '.join(near)}?" if near else ""
        raise FileNotFoundError(f"no such folder{hint} {received}" if hint else f"no such folder. {received}")
    if not path.is_file():
        raise FileNotFoundError(f"card.json is missing from the model folder. {received}")
    card = read_json(path)
    if not isinstance(card, dict) or card.get("schema") != CARD_SCHEMA:
        raise ValueError(f"card.json is not of schema {CARD_SCHEMA}. {received}")
    if missing := sorted(_KEYS - set(card)):
        raise ValueError(f"card.json has no key {missing[0]}. {received}")
    return card


def model_card(card: Mapping[str, Any]) -> str:
    """Return the model card as Markdown, from the contents of ``card.json``."""
    return render("README.md.j2", **{"baseline": None, "export": None, **card})


def render(template: str, **values: Any) -> str:
    """Fill a template of the folder ``templates``; values are escaped in templates for HTML."""
    return _ENVIRONMENT.get_template(template).render(values)


_BLANKS = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
_STRICT = {"autoescape": select_autoescape(["html.j2"]), "undefined": StrictUndefined}
_ENVIRONMENT = Environment(loader=PackageLoader("chestxray.deployment"), **_STRICT, **_BLANKS)
