"""Model cards: ``card.json``, and texts and pages from templates."""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from chestxray.files import read_json
from chestxray.schema import check

CARD_SCHEMA = "chestxray.card/2"
_KEYS = {"calibration", "classes", "image", "limits", "metrics", "name", "self_test", "threshold_reasons"}
_KEYS |= {"thresholds", "training_data", "triage"}
_BLANKS = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
_STRICT = {"autoescape": select_autoescape(["html.j2"]), "undefined": StrictUndefined}
_TEMPLATES = Environment(loader=PackageLoader("chestxray.deployment"), **_STRICT, **_BLANKS)


def read_card(folder: str | Path) -> dict[str, Any]:
    """Read ``card.json`` of a model folder.

    Raises FileNotFoundError if it is missing, and ValueError if it is not a card or lacks a key.
    """
    path, received = Path(folder) / "card.json", {"folder": str(folder)}
    if not path.parent.is_dir():
        names = sorted(card.parent.name for card in path.parent.parent.glob("*/card.json"))
        names = difflib.get_close_matches(path.parent.name, names, 1) or names
        hint = f" (did you mean {' or '.join(names)}?)" if names else ""
        check(False, f"no such folder{hint}", FileNotFoundError, **received)
    check(path.is_file(), "card.json is missing from the model folder", FileNotFoundError, **received)
    card = read_json(path)
    known = isinstance(card, dict) and card.get("schema") == CARD_SCHEMA
    check(known, f"card.json is not of schema {CARD_SCHEMA}", **received)
    missing = sorted(_KEYS - set(card))
    check(not missing, f"card.json has no key {', '.join(missing)}", **received)
    return card


def model_card(card: Mapping[str, Any]) -> str:
    """Return the model card in Markdown, given the content of ``card.json``."""
    return render("README.md.j2", **{"baseline": None, "export": None, **card})


def render(template: str, **values: Any) -> str:
    """Fill a template of the folder ``templates``. Values are escaped in ``.html.j2`` templates."""
    return _TEMPLATES.get_template(template).render(values)
