"""Pages for people: one HTML file that holds all it needs."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    import pandas as pd

_STYLE = """
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
        f"<title>{html.escape(title)}</title>\n<style>{_STYLE}{style}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{html.escape(title)}</h1>\n{body}\n</main>\n</body>\n</html>\n"
    )


def number_text(value: float) -> str:
    """Three decimals, but none for whole numbers from 2 on, which are counts."""
    return f"{value:.0f}" if value >= 2 and value == round(value) else f"{value:.3f}"


def section(title: str, text: str = "", table: pd.DataFrame | None = None) -> str:
    """Make a section of plain text and a table."""
    parts = [f"<h2>{html.escape(title)}</h2>"]
    if text:
        parts.append(f"<p>{html.escape(text)}</p>")
    if table is not None:
        shown = table.to_html(index=False, float_format=number_text, na_rep="–", border=0)
        parts.append(f'<div class="scroll">{shown}</div>')
    return "\n".join(parts)


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
        findings: From :func:`chestxray.data.audit.describe`.
        means: From :func:`chestxray.data.audit.audit`.
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
        "these data is worth what it adds to the floor below.</p>"
    )
    shown = section("Class means", "Differences outside the lungs are shortcuts made visible.")
    return page("Audit of chest X-rays", "\n".join([note, sections[-1], *sections[:-1], shown, *pictures]))
