"""HTML pages: report of a prediction, sections of tables, audit of a data set."""

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from chestxray.data.images import fit, model_window
from chestxray.deployment.card import render
from chestxray.deployment.classifier import Classifier
from chestxray.deployment.predict import BATCH, decode_file
from chestxray.deployment.seen import seen_text
from chestxray.files import printable

if TYPE_CHECKING:
    import pandas as pd

    Rows = Sequence[Mapping[str, Any]]
    Section = tuple[str, str, pd.DataFrame | None]  # title, text and table

MOST_IMAGES = 66  # of each group
GROUPS = {"rule_in": "suspicious", "refer": "to be looked at", "rule_out": "unsuspicious"}
_SIDE = 224


def report_page(
    classifier: Classifier, rows: "Rows", problems: "Rows", count: Mapping[str, int], threshold_rule: str
) -> str:
    """Return the report of a prediction: images with heatmaps, most suspicious first.

    ``rows`` are those that ``classifier`` made of classified images, most suspicious first; their files are
    read again. ``problems`` are the rows of refused and unreadable images. ``count`` has the numbers of
    ``images``, ``ok``, ``refused``, ``unreadable``, ``outside age``, ``outside view``.
    """
    card = classifier.card
    subset = "test" if "test" in card["metrics"] else "val"
    return render(
        "prediction.html.j2",
        title="Chest X-rays, most suspicious first",
        card=card,
        count={"ok": 0, "refused": 0, "unreadable": 0, "outside age": 0, "outside view": 0, **count},
        threshold=classifier.threshold(threshold_rule),
        threshold_rule=threshold_rule,
        seen=seen_text(count.get("seen train", 0), count.get("seen val", 0), count["images"]),
        subset="test" if subset == "test" else "validation",
        rates=card["metrics"][subset][threshold_rule],
        images=_images(classifier, rows),
        groups=GROUPS,
        problems=[{**row, "path": printable(row["path"])} for row in problems],
    )


def _images(classifier: Classifier, rows: "Rows") -> list[dict[str, Any]]:
    """Return what the page shows of each row: files are read and scored again, in batches."""
    settings, images, heatmaps, windows = classifier.image_settings, [], [], []
    for start in range(0, len(rows), BATCH):
        batch = [_read(row["path"], settings.size) for row in rows[start : start + BATCH]]
        pixels = np.stack([fit(image, settings) for image in batch])
        maps = classifier.score(pixels, with_maps=True).maps
        windows += [model_window(image, settings) for image in batch]
        images += [cv2.resize(image, _shown_size(image), interpolation=cv2.INTER_AREA) for image in batch]
        heatmaps += [] if maps is None else list(maps)
    strongest = max([1e-9, *(float(heatmap.max()) for heatmap in heatmaps)])
    entries = []
    for number, (row, image) in enumerate(zip(rows, images)):
        entry = {**row, "path": printable(row["path"]), "group": triage_group(row, classifier.card)}
        entry |= {"source": _data_url(image, ".jpg"), "overlay": None}
        if heatmaps:
            heatmap = heatmaps[number] / strongest
            placed = _place(heatmap, windows[number], image.shape)
            entry["overlay"] = _data_url(overlay(image, placed), ".jpg")
            entry |= {"strength": heatmap.max(), "fields": "{} × {}".format(*heatmap.shape)}
        entries.append(entry)
    return entries


def _read(path: str, size: int) -> np.ndarray:
    try:
        return decode_file(Path(path), size=size).pixels
    except (ValueError, OSError):  # removed or changed since it was classified
        return np.zeros((size, size), np.uint8)


def _shown_size(image: np.ndarray) -> tuple[int, int]:
    """Width and height of an image on the page: its own aspect ratio, unless it is very long."""
    height, width = image.shape
    return round(_SIDE * min(3.0, max(1 / 3, width / height))), _SIDE


def _place(heatmap: np.ndarray, window: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Put a heatmap into the window of an image, (H, W), that the model has seen; 0 elsewhere."""
    placed = np.zeros(shape, np.float32)
    left, top, right, bottom = (round(edge) for edge in window * np.tile(shape[::-1], 2))
    heatmap = cv2.resize(heatmap.astype(np.float32), (max(1, right - left), max(1, bottom - top)))
    inside = slice(max(0, top), bottom), slice(max(0, left), right)
    target = placed[inside]
    target[:] = heatmap[max(0, -top) :, max(0, -left) :][: target.shape[0], : target.shape[1]]
    return placed


def triage_group(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Return the group of an image: by the two thresholds of the card, unless the decision contradicts them.

    The threshold that decides is chosen independently of the two and may lie outside them.
    """
    positive = row["decision"] == card["classes"][1]
    if row["probability"] >= card["triage"]["rule_in"] and positive:
        return "rule_in"
    if row["probability"] < card["triage"]["rule_out"] and not positive:
        return "rule_out"
    return "refer"


def overlay(image: np.ndarray, heatmap: np.ndarray) -> np.ndarray:
    """Lay a heatmap, (h, w) in 0–1, over an image, ``uint8`` (H, W), which is unchanged where it is 0.

    Gives BGR, float (H, W, 3) in 0–255.
    """
    heatmap = np.clip(cv2.resize(heatmap.astype(np.float32), image.shape[::-1]), 0, 1)
    colours = cv2.applyColorMap(np.rint(255 * heatmap).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = 0.7 * np.sqrt(heatmap)[..., np.newaxis]
    return (1 - share) * image[..., np.newaxis] + share * colours


def _data_url(image: np.ndarray, suffix: str) -> str:
    """Return an image, values 0–255, (H, W) or BGR (H, W, 3), as a URL that holds it."""
    pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    data = base64.b64encode(cv2.imencode(suffix, pixels)[1]).decode()
    return f"data:image/{suffix[1:].replace('jpg', 'jpeg')};base64,{data}"


def number_text(value: float) -> str:
    """Format a number with three decimals, but whole numbers from 2 on, which are counts, with none."""
    return f"{value:.0f}" if value >= 2 and value == round(value) else f"{value:.3f}"


def with_intervals(table: "pd.DataFrame") -> "pd.DataFrame":
    """Join a value and its bounds (columns ``x, x_low, x_high`` or ``value, low, high``) to one text."""
    if not len(table.columns):
        return table
    names = table.columns[0]
    if table[names].astype(str).str.endswith("_low").any():  # one row a number
        return with_intervals(table.set_index(names).T).T.reset_index(names=names).rename_axis(columns=None)
    table = table.rename_axis(columns=None)
    for low in [
        column for column in table if str(column).endswith("low") and column.replace("low", "high") in table
    ]:
        high, value = low.replace("low", "high"), low.removesuffix("_low")
        value = table.columns[list(table).index(low) - 1] if low == "low" else value
        numbers = zip(table[value], table[low], table[high])
        texts = ["–" if v != v or v is None else f"{v:.2f} ({a:.2f}–{b:.2f})" for v, a, b in numbers]
        table[value] = [text.replace(" (nan–nan)", "") for text in texts]
        table = table.drop(columns=[low, high])
    return table


def evaluation_figures(table: "pd.DataFrame", card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Draw ROC and precision-recall curve, decisions and reliability of labelled predictions.

    ``table`` is that of :func:`chestxray.deployment.evaluate.report`. Gives captions and images as URLs.
    """
    from chestxray import plots
    from chestxray.evaluation.calibration import decision_curve, reliability_table
    from chestxray.evaluation.metrics import confusion

    scored, threshold = table[table["probability"].notna()], card["thresholds"]["youden"]
    scores, name = (scored["label"].to_numpy(), scored["probability"].to_numpy()), card["name"]
    counts = confusion(*scores, threshold)
    drawn = {
        "Ranking, with the stored threshold": plots.roc_pr({name: scores}, {name: threshold}),
        "Decisions at the stored threshold": plots.confusion_matrices(
            [counts], [f"threshold {threshold:.2f}"], classes=card["classes"]
        ),
        "Reliability and net benefit": plots.calibration(
            {name: reliability_table(*scores)}, {name: decision_curve(*scores)}
        ),
    }
    figures = []
    for caption, figure in drawn.items():
        content = io.BytesIO()
        figure.savefig(content, dpi=100, format="png", bbox_inches="tight")
        figures.append((caption, f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"))
    return figures


def sections_page(title: str, sections: "Sequence[Section]", figures: Sequence[tuple[str, str]] = ()) -> str:
    """Return a page of sections, and figures with their captions."""
    return render("sections.html.j2", title=title, sections=with_html(sections), figures=figures)


def with_html(sections: "Sequence[Section]") -> list[tuple[str, str, str | None]]:
    """Turn the tables of sections into HTML."""
    options = {"index": False, "float_format": number_text, "na_rep": "–", "border": 0}
    return [
        (title, text, None if table is None else with_intervals(table).to_html(**options))
        for title, text, table in sections
    ]


def audit_page(sections: "Sequence[Section]", means: Mapping[str, np.ndarray]) -> str:
    """Return the page of an audit, from :func:`chestxray.audit.describe` and `audit_data`."""
    (negative, low), (positive, high) = means.items()
    reach = max(1.0, np.abs(high - low).max())
    images = {f"mean of {name}": image for name, image in means.items()}
    caption = f"{positive} minus {negative}: grey is equal, white {reach:.0f} brighter"
    images[caption] = 127.5 * (1 + (high - low) / reach)
    return render(
        "audit.html.j2",
        title="Audit of chest X-rays",
        sections=with_html([sections[-1], *sections[:-1]]),
        figures=[(caption, _data_url(image, ".png")) for caption, image in images.items()],
    )
