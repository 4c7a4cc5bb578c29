"""HTML pages: report of a prediction, evaluation, and audit of a data set."""

import base64
import collections
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
from numpy.typing import NDArray

from chestxray.data.images import fit, model_window
from chestxray.deployment.card import render
from chestxray.deployment.classifier import Classifier
from chestxray.deployment.predict import BATCH, decode_file
from chestxray.deployment.seen import seen_text
from chestxray.files import printable

if TYPE_CHECKING:
    import pandas as pd

    from chestxray.deployment.evaluate import Section

    Rows = Sequence[Mapping[str, Any]]

MOST_IMAGES = 66  # of each group
_SIDE = 224


def report_page(
    classifier: Classifier, rows: "Rows", problems: "Rows", count: Mapping[str, int], threshold_rule: str
) -> str:
    """Return the report of a prediction: images with heatmaps, most suspicious first.

    ``rows`` are classified images, most suspicious first; their files are read again. ``problems`` are
    refused and unreadable images; ``count`` is that of :class:`chestxray.deployment.session.Session`.
    """
    count = collections.Counter(count)
    return render(
        "prediction.html.j2",
        card=classifier.card,
        count=count,
        threshold=classifier.threshold(threshold_rule),
        threshold_rule=threshold_rule,
        seen=seen_text(count["seen train"], count["seen val"], count["images"]),
        images=_images(classifier, rows),
        problems=[{**row, "path": printable(row["path"])} for row in problems],
    )


def _images(classifier: Classifier, rows: "Rows") -> list[dict[str, Any]]:
    """Return what the page shows of each row. Files are read and scored again, in batches."""
    settings, images, heatmaps, windows = classifier.image_settings, [], [], []
    for start in range(0, len(rows), BATCH):
        batch = [_read(row["path"], settings.size) for row in rows[start : start + BATCH]]
        pixels = np.stack([fit(image, settings) for image in batch])
        maps = classifier.score(pixels, with_maps=True).maps
        windows += [model_window(image, settings) for image in batch]
        for image in batch:
            width = round(_SIDE * min(3.0, max(1 / 3, image.shape[1] / image.shape[0])))
            images.append(cv2.resize(image, (width, _SIDE), interpolation=cv2.INTER_AREA))
        heatmaps += [] if maps is None else list(maps)
    strongest = max([1e-9, *(float(heatmap.max()) for heatmap in heatmaps)])
    entries = []
    for number, (row, image) in enumerate(zip(rows, images)):
        entry = {**row, "path": printable(row["path"]), "group": triage_group(row, classifier.card)}
        entry |= {"source": _data_url(image, "jpeg"), "overlay": None}
        if heatmaps:
            heatmap = heatmaps[number] / strongest
            placed = _place(heatmap, windows[number], image.shape)
            entry["overlay"] = _data_url(overlay(image, placed), "jpeg")
            entry |= {"strength": heatmap.max(), "resolution": "{} × {}".format(*heatmap.shape)}
        entries.append(entry)
    return entries


def _read(path: str, size: int) -> NDArray:
    try:
        return decode_file(Path(path), size=size).pixels
    except (ValueError, OSError):  # the file was removed or changed after its prediction
        return np.zeros((size, size), np.uint8)


def _place(heatmap: NDArray, window: NDArray, shape: tuple[int, int]) -> NDArray:
    """Resize a heatmap to the window of an image, (H, W), that the model has seen; 0 elsewhere."""
    placed = np.zeros(shape, np.float32)
    left, top, right, bottom = (round(edge) for edge in window * np.tile(shape[::-1], 2))
    heatmap = cv2.resize(heatmap.astype(np.float32), (max(1, right - left), max(1, bottom - top)))
    target = placed[max(0, top) : bottom, max(0, left) : right]
    target[:] = heatmap[max(0, -top) :, max(0, -left) :][: target.shape[0], : target.shape[1]]
    return placed


def triage_group(row: Mapping[str, Any], card: Mapping[str, Any]) -> str:
    """Return the triage group of a classified image: rule_in, refer or rule_out.

    Images whose decision, by another threshold, contradicts the two triage thresholds are referred.
    """
    positive = row["decision"] == card["classes"][1]
    if row["probability"] >= card["triage"]["rule_in"] and positive:
        return "rule_in"
    if row["probability"] < card["triage"]["rule_out"] and not positive:
        return "rule_out"
    return "refer"


def overlay(image: NDArray, heatmap: NDArray) -> NDArray:
    """Draw a heatmap, (h, w) in 0–1, over an image, ``uint8`` (H, W), which is unchanged where it is 0.

    Returns BGR, float (H, W, 3) in 0–255.
    """
    heatmap = np.clip(cv2.resize(heatmap.astype(np.float32), image.shape[::-1]), 0, 1)
    colours = cv2.applyColorMap(np.rint(255 * heatmap).astype(np.uint8), cv2.COLORMAP_INFERNO)
    share = 0.7 * np.sqrt(heatmap)[..., np.newaxis]
    return (1 - share) * image[..., np.newaxis] + share * colours


def _data_url(image: NDArray | bytes, format: str) -> str:
    """Return an encoded image, or pixels in 0–255, grey (H, W) or BGR (H, W, 3), as a data URL."""
    if isinstance(image, np.ndarray):
        pixels = np.clip(np.rint(image), 0, 255).astype(np.uint8)
        image = cv2.imencode(f".{format}", pixels)[1].tobytes()
    return f"data:image/{format};base64,{base64.b64encode(image).decode()}"


def number_text(value: float) -> str:
    """Format a number with three decimals, and a whole number from 2 on, which is a count, with none."""
    return f"{value:.0f}" if value >= 2 and value == round(value) else f"{value:.3f}"


def with_intervals(table: "pd.DataFrame") -> "pd.DataFrame":
    """Join each value and its interval to one text.

    They are columns named ``x, x_low, x_high`` or ``value, low, high``, or rows named in the first column.
    """
    if not len(table.columns):
        return table
    names = table.columns[0]
    if table[names].astype(str).str.endswith("_low").any():
        return with_intervals(table.set_index(names).T).T.reset_index(names=names).rename_axis(columns=None)
    table = table.rename_axis(columns=None)
    lows = [name for name in table if str(name).endswith("low") and name.replace("low", "high") in table]
    for low in lows:
        high, value = low.replace("low", "high"), low.removesuffix("_low")
        value = table.columns[table.columns.get_loc(low) - 1] if low == "low" else value
        numbers = zip(table[value], table[low], table[high])
        texts = ["–" if v != v or v is None else f"{v:.2f} ({a:.2f}–{b:.2f})" for v, a, b in numbers]
        table[value] = [text.replace(" (nan–nan)", "") for text in texts]
        table = table.drop(columns=[low, high])
    return table


def evaluation_figures(table: "pd.DataFrame", card: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return captions and data URLs of the figures for :func:`chestxray.deployment.evaluate.report`."""
    from chestxray import plots
    from chestxray.evaluation.calibration import decision_curve, reliability_table
    from chestxray.evaluation.metrics import confusion

    scored, threshold = table[table["probability"].notna()], card["thresholds"]["youden"]
    scores, name = (scored["label"].to_numpy(), scored["probability"].to_numpy()), card["name"]
    decisions = [confusion(*scores, threshold)], [f"threshold {threshold:.2f}"]
    curves = {name: reliability_table(*scores)}, {name: decision_curve(*scores)}
    figures = {
        "Ranking, with the stored threshold": plots.roc_pr({name: scores}, {name: threshold}),
        "Decisions at the stored threshold": plots.confusion_matrices(*decisions, classes=card["classes"]),
        "Reliability and net benefit": plots.calibration(*curves),
    }
    urls = []
    for figure in figures.values():
        figure.savefig(content := io.BytesIO(), dpi=100, format="png", bbox_inches="tight")
        urls.append(_data_url(content.getvalue(), "png"))
    return list(zip(figures, urls))


def sections_page(title: str, sections: "Sequence[Section]", figures: Sequence[tuple[str, str]] = ()) -> str:
    """Return a page of sections, and of figures: captions and data URLs."""
    return render("sections.html.j2", title=title, sections=with_html(sections), figures=figures)


def with_html(sections: "Sequence[Section]") -> list[tuple[str, str, str | None]]:
    """Convert the tables of sections to HTML."""
    options = {"index": False, "float_format": number_text, "na_rep": "–", "border": 0}
    return [
        (title, text, None if table is None else with_intervals(table).to_html(**options))
        for title, text, table in sections
    ]


def audit_page(sections: "Sequence[Section]", means: Mapping[str, NDArray]) -> str:
    """Return the page of an audit: sections of `chestxray.audit.describe`, class means of `audit_data`."""
    (negative, negative_mean), (positive, positive_mean) = means.items()
    difference = positive_mean - negative_mean
    largest = max(1.0, np.abs(difference).max())
    images = {f"mean of {name}": image for name, image in means.items()}
    caption = f"{positive} minus {negative}: grey is equal, white {largest:.0f} brighter"
    images[caption] = 127.5 * (1 + difference / largest)
    figures = [(caption, _data_url(image, "png")) for caption, image in images.items()]
    tables = with_html([sections[-1], *sections[:-1]])
    return render("audit.html.j2", title="Audit of chest X-rays", sections=tables, figures=figures)
