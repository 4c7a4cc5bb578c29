"""The page for people: what a reader sees, clicks, and hears from a screen reader."""

import base64
import collections
import html.parser
import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pandas as pd
import pytest

from chestxray import load_classifier
from chestxray.data.images import ImageSettings, model_window
from chestxray.deployment.predict import predict_files
from chestxray.deployment.report import _place, audit_page, overlay, report_page, sections_page

COUNT = {"images": 9, "ok": 6, "refused": 2, "unreadable": 1, "outside age": 4}


@pytest.fixture(scope="module")
def rows(litert, data, tiny_folder):
    """Six images, the first three called pneumonia."""
    paths = [tiny_folder / path for path in data.subset("val")["path"]][:6]
    classifier = load_classifier(litert)
    predicted = list(predict_files(classifier, paths, accept_all=True))
    predicted.sort(key=lambda row: -row["probability"])
    normal, ill = classifier.card["classes"]
    return [row | {"decision": decision} for row, decision in zip(predicted, [ill] * 3 + [normal] * 3)]


@pytest.fixture(scope="module")
def written(litert, rows):
    """Page of six images, with triage thresholds between them: two of each kind."""
    classifier = load_classifier(litert)
    probabilities = [row["probability"] for row in rows]
    classifier.card["triage"] = {
        "rule_in": (probabilities[1] + probabilities[2]) / 2,
        "rule_out": (probabilities[3] + probabilities[4]) / 2,
    }
    problems = [
        {"path": "<b>.png", "status": "refused", "problem": "a lateral view"},
        {"path": "line\nend.png", "status": "unreadable", "problem": "empty file"},
    ]
    return report_page(classifier, rows, problems, COUNT, "youden")


class Reader(html.parser.HTMLParser):
    """Collects tags, attributes and text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.text = collections.defaultdict(list), []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags[tag].append(dict(attrs))

    def handle_data(self, data):
        self.text.append(data)


def test_images_in_order_with_their_numbers(written, rows):
    entries = re.findall(r'<span class="p">([\d.]+)</span> (\w+), ([\w ]+)<', written)
    assert [entry[0] for entry in entries] == [f"{row['probability']:.3f}" for row in rows]
    assert [entry[1] for entry in entries] == [row["decision"] for row in rows]
    assert [entry[2] for entry in entries] == ["suspicious"] * 2 + ["to be reviewed"] * 2 + [
        "not suspicious"
    ] * 2


def test_an_image_whose_decision_contradicts_the_triage_is_to_be_looked_at(litert, rows):
    classifier = load_classifier(litert)
    normal, ill = classifier.card["classes"]
    middle = (rows[2]["probability"] + rows[3]["probability"]) / 2
    classifier.card["triage"] = {"rule_in": middle, "rule_out": middle}  # nothing lies between
    decisions = [ill, normal, ill, ill, normal, normal]
    page = report_page(
        classifier,
        [row | {"decision": decision} for row, decision in zip(rows, decisions)],
        [],
        COUNT,
        "youden",
    )
    assert re.findall(r"</span> (\w+), ([\w ]+)<", page) == list(
        zip(
            decisions,
            [
                "suspicious",
                "to be reviewed",
                "suspicious",
                "to be reviewed",
                "not suspicious",
                "not suspicious",
            ],
        )
    )


def test_limits_thresholds_and_problems_are_said(written, litert):
    text = " ".join(Reader(written).text)
    card = load_classifier(litert).card
    for words in (
        card["limits"][0],
        f"probability of {card['thresholds']['youden']:.3f}",
        "9 images: 6 classified",
        "4 images show people outside the age range",
        "a lateral view",
        "line\\nend.png",
        "<b>.png",
    ):
        assert words in text
    assert "another view" not in text  # none was counted, so nothing is shown
    assert "not where the disease is" in text


def test_the_page_is_one_file_and_accessible(written):
    page = Reader(written)
    assert not re.search(r'(?:src|href)="(?!data:)', written)
    assert all(image["alt"] for image in page.tags["img"]) and len(page.tags["img"]) == 12
    assert page.tags["html"] == [{"lang": "en"}] and len(page.tags["h1"]) == 1
    assert all(button["aria-pressed"] in ("true", "false") for button in page.tags["button"])
    assert all(cell["scope"] == "col" for cell in page.tags["th"])


def test_an_image_that_is_gone_does_not_end_the_page(litert, rows, tmp_path):
    gone = [rows[0] | {"path": str(tmp_path / "gone.png")}, rows[1]]
    assert "gone.png" in report_page(load_classifier(litert), gone, [], {"images": 2, "ok": 2}, "youden")


def test_keras_and_its_export_draw_the_same(compact, litert, rows):
    pages = [report_page(load_classifier(folder), rows, [], COUNT, "youden") for folder in (compact, litert)]
    shares = [re.findall(r"heatmap: (\d+) %? ?of|heatmap: (\d+)% of", page) for page in pages]
    assert shares[0] == shares[1] and len(shares[0]) == 6


@pytest.mark.parametrize(
    ("resize", "shape", "window"),
    [
        ("stretch", (100, 200), (0, 0, 1, 1)),
        ("letterbox", (100, 200), (0, -0.5, 1, 1.5)),  # bars above and below, each half the height
        ("letterbox", (200, 100), (-0.5, 0, 1.5, 1)),
    ],
)
def test_the_window_of_a_model_by_hand(resize, shape, window):
    found = model_window(np.zeros(shape, np.uint8), ImageSettings(32, resize))
    np.testing.assert_allclose(found, window)


def test_a_map_is_placed_into_its_window():
    heatmap = np.zeros((4, 4))
    heatmap[:2] = 1  # upper half
    inner = _place(heatmap, np.array([0.25, 0.5, 0.75, 1.0]), (40, 80))
    assert inner[:20].max() == 0 and inner[:, :20].max() == 0 and inner[:, 60:].max() == 0
    assert inner[21:28, 20:60].min() == 1 and inner[33:, :].max() == 0
    outer = _place(heatmap, np.array([0.0, -0.5, 1.0, 1.5]), (40, 80))  # a letterbox: 20 rows are bars
    assert outer[:10].min() == 1 and outer[30:].max() == 0


def test_where_the_map_is_zero_the_image_stays():
    image = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    heat = np.zeros((4, 4))
    np.testing.assert_array_equal(overlay(image, heat), np.dstack([image] * 3))
    heat[0, 0] = 1
    changed = np.abs(overlay(image, heat) - image[..., None]).max(axis=-1) > 0
    assert changed[0, 0] and not changed[25:].any()


def test_the_map_lies_where_it_belongs():
    # The hot cell of a 4 x 5 map, row 1, column 3, is centred 37.5 % down and 70 % across the image.
    image, heat = np.zeros((80, 60), np.uint8), np.zeros((4, 5))
    heat[1, 3] = 1
    brightness = overlay(image, heat).sum(axis=-1)
    rows, columns = np.indices(image.shape) + 0.5
    centre = [(axis * brightness).sum() / brightness.sum() for axis in (rows, columns)]
    assert centre == pytest.approx([0.375 * 80, 0.7 * 60], abs=0.1)


CLICKS = """<script>
const seen = [], shown = () => [...document.querySelectorAll('.images li')].map((image, number) =>
  image.offsetHeight > 0 ? number + 1 : 0).filter(Boolean);
const press = name => document.querySelector(name).click();
seen.push(shown());
press('button[data-group=rule_in]'); seen.push(shown(), document.getElementById('shown').textContent);
press('button[data-group=refer]'); seen.push(shown());
press('button[data-group=all]');
const overlays = () => [...document.querySelectorAll('.overlay')].filter(map => map.offsetHeight > 0).length;
seen.push(overlays()); press('#maps'); seen.push(overlays()); press('#maps'); seen.push(overlays());
seen.push([...document.images].every(image => image.naturalWidth === 224 || !image.complete));
document.querySelector('button').focus(); seen.push(document.activeElement.textContent);
document.title = 'seen ' + JSON.stringify(seen);
</script></body>"""


def test_what_happens_on_clicks(written, tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("needs the browser chromium")
    (tmp_path / "page.html").write_text(written.replace("</body>", CLICKS), encoding="utf-8")
    dom = subprocess.run(
        [
            browser,
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--dump-dom",
            f"--user-data-dir={tmp_path}/user",
            (tmp_path / "page.html").as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    ).stdout
    seen = json.loads(re.search(r"<title>seen (.*?)</title>", dom)[1])
    assert seen == [[1, 2, 3, 4, 5, 6], [1, 2], "2 of 6 images shown", [3, 4], 6, 0, 6, True, "all"]


def test_images_can_be_decoded(written):
    sources = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', written)
    assert len(sources) >= 6
    for data in sources:
        pixels = np.frombuffer(base64.b64decode(data), np.uint8)
        assert cv2.imdecode(pixels, cv2.IMREAD_COLOR).shape == (224, 224, 3)


def test_sections_are_escaped_and_the_last_one_leads_the_audit():
    table = pd.DataFrame({"a<b": ["<script>"], "count": [3.0], "share": [0.5]})
    sections = [("Files & <folders>", "<none>", table), ("Red flags", "", None)]
    pages = [
        sections_page("<title>", sections),
        audit_page(sections, {"A": np.zeros((8, 8)), "<B>": np.eye(8)}),
    ]
    for page in pages:
        seen = Reader(page)
        assert "script" not in seen.tags and "<none>" in seen.text and "a<b" in seen.text
        assert ["3", "0.500"] == [text for text in seen.text if re.fullmatch(r"[\d.]+", text)]
    assert "<title>" in Reader(pages[0]).text
    assert re.findall("<h2>(.*?)</h2>", pages[1]) == [
        "Red flags",
        "Files &amp; &lt;folders&gt;",
        "Class means",
    ]
    assert [image["alt"] for image in Reader(pages[1]).tags["img"]][1:] == [
        "mean of <B>",
        "<B> minus A: grey is equal, white 1 brighter",
    ]
