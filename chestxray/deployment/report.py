"""The report of a prediction: one page for people, most suspicious films first."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from chestxray.data.images import fit
from chestxray.deployment.classifier import Classifier
from chestxray.deployment.predict import read_film
from chestxray.files import printable

if TYPE_CHECKING:
    import pandas as pd


MOST_FILMS = 200
"""Films with pictures; the table of all is what ``--output`` writes."""

_SIDE = 224
_BATCH = 32

_STYLE = """
.films { list-style: none; padding: 0; }
.films li { display: flex; flex-wrap: wrap; gap: .8rem; border-bottom: 1px solid #ddd; padding: .8rem 0; }
.films img { width: 14rem; height: 14rem; background: #000; }
.films h3 { margin: 0; font-size: 1rem; overflow-wrap: anywhere; } .films p { margin: .2rem 0; }
.films div { flex: 1 1 14rem; } .p { font-size: 1.4rem; } button { font: inherit; padding: .3rem .8rem;
  margin-right: .3rem; border: 2px solid #1a1a1a; border-radius: .3rem; background: #fff; }
button[aria-pressed=true] { background: #1a1a1a; color: #fff; } :focus-visible { outline: 3px solid #0072b2; }
.names td { overflow-wrap: anywhere; } [hidden] { display: none !important; }
"""

_SCRIPT = """
const films = [...document.querySelectorAll('.films li')], said = document.getElementById('shown');
const groups = [...document.querySelectorAll('button[data-group]')], maps = document.getElementById('maps');
for (const button of groups) button.addEventListener('click', () => {
  for (const one of groups) one.setAttribute('aria-pressed', one === button);
  const group = button.dataset.group;
  for (const film of films) film.hidden = group !== 'all' && film.dataset.group !== group;
  said.textContent = films.filter(film => !film.hidden).length + ' of ' + films.length + ' films shown';
});
if (maps) maps.addEventListener('click', () => {
  const on = maps.getAttribute('aria-pressed') !== 'true';
  maps.setAttribute('aria-pressed', on);
  for (const one of document.querySelectorAll('.overlay')) one.hidden = !on;
});
"""

GROUPS = {"rule_in": "suspicious", "refer": "to be looked at", "rule_out": "unsuspicious"}
"""Triage in words; see :func:`_triage`."""


def report_page(
    classifier: Classifier,
    rows: Sequence[Mapping[str, Any]],
    problems: Sequence[Mapping[str, Any]],
    count: Mapping[str, int],
    threshold_rule: str,
) -> str:
    """Write the page.

    Args:
        classifier: That made the rows.
        rows: Classified images, most suspicious first, at most
            :data:`MOST_FILMS`; their files are read again.
        problems: Refused and unreadable images.
        count: ``images``, ``ok``, ``refused``, ``unreadable``, and ``outside
            age`` and ``outside view`` of all images.
        threshold_rule: The threshold that decided.
    """
    card = classifier.card
    films, with_maps = _films(classifier, rows)
    texts = [
        f'<p class="note"><strong>{html.escape(card["limits"][0])}</strong> '
        f"{html.escape(' '.join(card['limits'][1:]))}</p>",
        f"<p>{count['images']:,} images: {count.get('ok', 0):,} classified, {count.get('refused', 0):,} "
        f"refused, {count.get('unreadable', 0):,} unreadable. Model <code>{html.escape(card['name'])}"
        f"</code>. {_operating_point(classifier, threshold_rule)}</p>",
    ]
    for name, what in (
        ("age", "show people outside the age range of the training images"),
        ("view", "were taken in another view than the training images"),
    ):
        if number := count.get(f"outside {name}"):
            texts.append(
                f'<p class="note">{number:,} images {what}: nothing is known about how well the '
                "model does on them. Files that do not say were not counted.</p>"
            )
    texts.append("<h2>Films, most suspicious first</h2>")
    if count.get("ok", 0) > len(rows):
        texts.append(f"<p>The first {len(rows)} of {count['ok']:,} are shown.</p>")
    if films:
        texts.append(_controls(with_maps))
        texts.append(f'<ol class="films">{"".join(films)}</ol>')
    if problems:
        texts.append("<h2>Not classified</h2>" + _problem_table(problems, count))
    texts.append(f"<script>{_SCRIPT}</script>")
    return page("Chest films, most suspicious first", "\n".join(texts), _STYLE)


def _operating_point(classifier: Classifier, threshold_rule: str) -> str:
    card = classifier.card
    found = card["metrics"].get("test") or card["metrics"]["val"]
    where = "test" if "test" in card["metrics"] else "validation"
    rates = ", ".join(
        f"{name} {found[threshold_rule][name]['value']:.2f}" for name in ("sensitivity", "specificity")
    )
    return (
        f"{html.escape(card['classes'][1])} is said from a probability of "
        f"{classifier.threshold(threshold_rule):.3f} on (threshold <code>{html.escape(threshold_rule)}</code>: {rates} on "
        f"its own {where} images, of the same source as the training images). By the two triage "
        f"thresholds a film is unsuspicious below {card['triage']['rule_out']:.3f} and suspicious from "
        f"{card['triage']['rule_in']:.3f} on. Between them, and where they contradict what is said, it "
        "is to be looked at."
    )


def _controls(with_maps: bool) -> str:
    buttons = "".join(
        f'<button type="button" data-group="{group}" '
        f'aria-pressed="{"true" if group == "all" else "false"}">{words}</button>'
        for group, words in {"all": "all", **GROUPS}.items()
    )
    maps = '<button type="button" id="maps" aria-pressed="true">heatmaps</button>' if with_maps else ""
    note = (
        "A heatmap shows what raised the score (yellow: most, on one scale for all films), not where the "
        "disease is; it is coarse."
        if with_maps
        else "This exported model cannot say where its score comes from."
    )
    return (
        f'<div role="group" aria-label="Which films are shown">{buttons}{maps}</div>'
        f'<p id="shown" role="status"></p><p>{note}</p>'
    )


def _films(classifier: Classifier, rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], bool]:
    """An entry of each film, and whether there are maps."""
    pictures, maps = [], []
    for start in range(0, len(rows), _BATCH):
        found = []
        for row in rows[start : start + _BATCH]:
            try:
                found.append(fit(read_film(Path(row["path"])).pixels, classifier.image_settings))
            except (ValueError, OSError):  # gone since it was classified
                found.append(np.zeros((classifier.image_settings.size,) * 2, np.uint8))
        scores = classifier.score(np.stack(found), with_maps=True)
        pictures += found
        maps += [None] * len(found) if scores.maps is None else list(scores.maps)
    with_maps = bool(maps) and maps[0] is not None
    strongest = max((float(one.max()) for one in maps), default=0.0) if with_maps else 0.0
    entries = [
        _film(number, row, image, one, strongest, classifier)
        for number, (row, image, one) in enumerate(zip(rows, pictures, maps, strict=True), 1)
    ]
    return entries, with_maps


def _film(
    number: int,
    row: Mapping[str, Any],
    image: np.ndarray,
    heat: np.ndarray | None,
    strongest: float,
    classifier: Classifier,
) -> str:
    name, group = html.escape(printable(row["path"])), _triage(row, classifier.card)
    image = cv2.resize(image, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
    pictures = f'<img src="{image_data(image, ".jpg")}" alt="film {number}" loading="lazy">'
    strength = ""
    if heat is not None:
        heat = heat / max(strongest, 1e-9)
        strength = (
            f"<p>heatmap: {heat.max():.0%} of the strongest here, {len(heat)} × {heat.shape[1]} fields</p>"
        )
        pictures += (
            f'<img class="overlay" src="{image_data(overlay(image, heat), ".jpg")}" '
            f'alt="film {number} with heatmap" loading="lazy">'
        )
    problem = f"<p>accepted although: {html.escape(row['problem'])}</p>" if row["problem"] else ""
    return (
        f'<li data-group="{group}">{pictures}<div><h3>{number}. {name}</h3>'
        f'<p><span class="p">{row["probability"]:.3f}</span> {html.escape(row["decision"])}, '
        f"{GROUPS[group]}</p>{strength}{problem}</div></li>"
    )


def _triage(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Group of a film: by the two thresholds of the card, unless the decision contradicts them.

    The threshold that decides is chosen independently of the two and may lie
    outside them.
    """
    called = row["decision"] == card["classes"][1]
    if row["probability"] >= card["triage"]["rule_in"] and called:
        return "rule_in"
    if row["probability"] < card["triage"]["rule_out"] and not called:
        return "rule_out"
    return "refer"


def overlay(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """Lay a map over a film.

    Args:
        image: ``uint8`` (H, W).
        heat: (h, w) in 0–1; where it is 0, the film stays as it is.

    Returns:
        BGR, float (H, W, 3) in 0–255.
    """
    heat = np.clip(cv2.resize(heat.astype(np.float32), image.shape[::-1]), 0, 1)
    colours = cv2.applyColorMap(np.rint(255 * heat).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = 0.7 * np.sqrt(heat)[..., np.newaxis]
    return (1 - share) * image[..., np.newaxis] + share * colours


def _problem_table(problems: Sequence[Mapping[str, Any]], count: Mapping[str, int]) -> str:
    total = count.get("refused", 0) + count.get("unreadable", 0)
    more = f"<p>The first {len(problems)} of {total:,}.</p>" if total > len(problems) else ""
    rows = "".join(
        f"<tr><td>{html.escape(printable(row['path']))}</td><td>{row['status']}</td>"
        f"<td>{html.escape(row['problem'])}</td></tr>"
        for row in problems
    )
    return (
        f'{more}<div class="scroll"><table class="names"><thead><tr><th scope="col">file</th>'
        f'<th scope="col">status</th><th scope="col">reason</th></tr></thead><tbody>{rows}</tbody>'
        "</table></div>"
    )


_PAGE_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; margin: 0 auto;
       max-width: 60rem; padding: 1rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { text-align: left; padding: .25rem .6rem; border-bottom: 1px solid #ddd; vertical-align: top; }
.scroll { overflow-x: auto; } figure { display: inline-block; margin: 0 1rem 1rem 0; }
figcaption { font-size: .9rem; } .note { border-left: .3rem solid #d55e00; padding-left: .8rem; }
"""


def page(title: str, body: str, style: str = "") -> str:
    """Make a whole document; ``title`` is plain text, ``body`` is HTML, ``style`` more CSS."""
    return (
        f'<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>{_PAGE_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def number_text(value: float) -> str:
    """Three decimals, but none for whole numbers from 2 on, which are counts."""
    return f"{value:.0f}" if value >= 2 and value == round(value) else f"{value:.3f}"


def section(title: str, text: str = "", table: pd.DataFrame | None = None) -> str:
    """Make a section of plain text and a table."""
    subsets = [f"<h2>{html.escape(title)}</h2>"]
    if text:
        subsets.append(f"<p>{html.escape(text)}</p>")
    if table is not None:
        shown = table.to_html(index=False, float_format=number_text, na_rep="–", border=0)
        subsets.append(f'<div class="scroll">{shown}</div>')
    return "\n".join(subsets)


def picture(image: np.ndarray, caption: str) -> str:
    """Make a figure of an image, values 0–255, (H, W) or BGR (H, W, 3), with a caption in plain text."""
    said = html.escape(caption)
    return (
        f'<figure><img src="{image_data(image, ".png")}" alt="{said}">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def image_data(image: np.ndarray, suffix: str) -> str:
    """An image, see :func:`picture`, as a URL that holds it; ``suffix`` is ``.png`` or ``.jpg``."""
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    data = base64.b64encode(cv2.imencode(suffix, pixels)[1]).decode()
    return f"data:image/{suffix[1:].replace('jpg', 'jpeg')};base64,{data}"


def audit_page(findings: Sequence[tuple], means: Mapping[str, np.ndarray]) -> str:
    """Make the page of an audit.

    Args:
        findings: From :func:`chestxray.audit.describe`.
        means: From :func:`chestxray.audit.audit`.
    """
    sections = [section(*one) for one in findings]
    negative, positive = means.values()
    difference = positive - negative
    reach = max(1.0, np.abs(difference).max())
    pictures = [picture(image, f"mean of {name}") for name, image in means.items()]
    pictures.append(
        picture(
            127.5 * (1 + difference / reach),
            "{1} minus {0}: grey is equal, white ".format(*means) + f"{reach:.0f} brighter",
        )
    )
    note = (
        '<p class="note">What a linear model can do without lungs, a network can do too. A score on '
        "these data is worth what it adds to the baseline below.</p>"
    )
    shown = section("Class means", "Differences outside the lungs are shortcuts made visible.")
    return page("Audit of chest X-rays", "\n".join([note, sections[-1], *sections[:-1], shown, *pictures]))
