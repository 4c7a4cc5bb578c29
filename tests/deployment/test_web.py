"""The page of a classifier: its files, and in headless Chromium what a person sees, clicks and gets."""

import base64
import functools
import hashlib
import http.server
import io
import json
import re
import shutil
import subprocess
import tarfile
import threading
import time
import urllib.request
import zlib
from pathlib import Path

import chromium
import cv2
import numpy as np
import pandas as pd
import pytest
import tiny
from click.testing import CliRunner
from PIL import Image

from chestxray import ImageSettings, load_classifier, load_data
from chestxray.cli import main
from chestxray.deployment import web
from chestxray.deployment.predict import decode_file, judge
from chestxray.deployment.report import triage_group
from chestxray.files import read_json
from chestxray.phantoms import phantom_dataset, render_phantom

SAVED = Path(__file__).parents[2] / "saved_models"
MODELS = ["phantom_cnn", "compact_student-patient-s0-t0"]  # stretched; the lung box


# ----------------------------------------------------------------------------------------- without a browser


@pytest.fixture(scope="module")
def linked(compact, data, tmp_path_factory, few_images_are_enough):
    """Page of the network that nobody trained; its runtime is linked."""
    folder = tmp_path_factory.mktemp("linked") / "page"
    web.export_page(compact, folder, data)
    return folder


def test_a_page_is_small_and_says_which_files_it_loads(linked, compact):
    assert sum(path.stat().st_size for path in linked.iterdir()) < 1.5e6
    page = (linked / "index.html").read_text(encoding="utf-8")
    settings = json.loads(re.search(r'id="settings">(.*?)</script>', page)[1])
    for name, file in settings["files"].items():
        if not file["url"].startswith("https:"):
            digest = hashlib.sha384((linked / file["url"]).read_bytes()).digest()
            assert file["integrity"] == f"sha384-{base64.b64encode(digest).decode()}", name
    policy = re.search(r'Content-Security-Policy" content="(.*?)"', page)[1]
    import_map = re.search(r'<script type="importmap">(.*?)</script>', page)[1]
    digest = base64.b64encode(hashlib.sha256(import_map.encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy and "'wasm-unsafe-eval'" in policy and "unsafe-inline" not in policy
    address = json.loads(import_map)["imports"]["ort"]
    assert (
        address.startswith("https://cdn.jsdelivr.net/npm/onnxruntime-web@")
        and json.loads(import_map)["integrity"][address]
    )
    assert read_json(linked / "card.json")["limits"][0] in page and "<script>" not in page
    for name in ("README.md", "NOTICE", "LICENSES.txt", "app.js", "style.css", "model.onnx"):
        assert (linked / name).is_file(), name
    assert (compact / "seen.npz").is_file() and not (linked / "seen.npz").exists()


def test_the_network_of_a_page_is_a_classifier_that_measures_too(compact, linked, data):
    images, original, exported = data.images("test"), load_classifier(compact), load_classifier(linked)
    np.testing.assert_allclose(exported.logits(images), original.logits(images), atol=1e-3)
    check, pixels = original.outlier_check, images[..., 0]
    measures = exported.model.predict(images)["measures"]
    expected = check.measure(pixels, np.zeros(len(images)))
    names = ("brightness", "contrast", "sharpness", "likeness")
    for number, values in enumerate([original.logits(images), *map(expected.get, names)]):
        np.testing.assert_allclose(measures[:, number], values, rtol=1e-4, atol=1e-3)

    np.testing.assert_allclose(measures[:, 5:].T, check._correlations(pixels)[1:], atol=1e-4)


@pytest.mark.parametrize("change", ["runtime", "clahe"])
def test_what_cannot_work_is_refused_before_anything_is_written(change, compact, data, tmp_path):
    shutil.copytree(compact, tmp_path / "model")
    if change == "clahe":
        card = read_json(compact / "card.json")
        (tmp_path / "model" / "card.json").write_text(
            json.dumps(card | {"image": {"size": 32, "clahe": True}})
        )
    runtime = tmp_path if change == "runtime" else None
    with pytest.raises(ValueError, match="npm install onnxruntime-web@|CLAHE is not available"):
        web.export_page(tmp_path / "model", tmp_path / "page", data, runtime)
    assert not (tmp_path / "page").exists()


def test_the_demo_takes_the_compact_model_whose_worse_score_is_best(tmp_path, monkeypatch):
    monkeypatch.setattr(web, "project_path", lambda name: tmp_path)
    card = read_json(SAVED / "compact_student-patient-s0-t0" / "card.json")
    scores = {"a": (0.99, 0.90), "b": (0.96, 0.95), "phantom_cnn": (0.999, None), "big": (0.999, 0.999)}
    for name, (plain, reframed) in scores.items():
        metrics = {"auroc": {"value": plain}} | ({"auroc_reframed": {"value": reframed}} if reframed else {})
        parameters = {"architecture": "compact_cnn"} if name != "big" else {"backbone": "VGG16"}
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.keras").touch()
        text = json.dumps(card | {"metrics": {"val": metrics}, "parameters": parameters})
        (tmp_path / name / "card.json").write_text(text)
    model, reason = web.recommended_model()
    assert model.name == "b" and "0.950" in reason
    for name in "ab":
        shutil.rmtree(tmp_path / name)
    assert web.recommended_model()[0].name == "phantom_cnn"


def test_the_demo_serves_a_page_on_this_machine_only(linked, monkeypatch):
    answers = {}

    def serve(server):
        thread = threading.Thread(target=server.handle_request)
        for name in ("index.html", "app.js", "model.onnx"):
            thread = threading.Thread(target=server.handle_request)
            thread.start()
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/{name}") as answer:
                answers[name] = answer.headers.get_content_type(), answer.read()
            thread.join()
        assert server.server_address[0] == "127.0.0.1"

    monkeypatch.setattr("http.server.ThreadingHTTPServer.serve_forever", serve)
    result = CliRunner().invoke(main, ["demo", str(linked), "--no-open"])
    assert result.exit_code == 0 and "http://127.0.0.1:" in result.output
    assert answers["app.js"] == ("text/javascript", (linked / "app.js").read_bytes())
    assert answers["index.html"][0] == "text/html"


# ---------------------------------------------------------------------------------------------- in a browser


@pytest.fixture(scope="module")
def runtime(tmp_path_factory):
    """The two files of ONNX Runtime Web, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm, for ONNX Runtime Web")
    folder = tmp_path_factory.mktemp("npm")
    command = ["npm", "pack", web.RUNTIME, "--silent", "--prefer-offline"]
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer")
    if done.returncode:
        pytest.skip(f"npm has no {web.RUNTIME}: {done.stderr[-200:]}")
    with tarfile.open(next(folder.glob("*.tgz"))) as archive:
        for name in web._RUNTIME_FILES:
            (folder / name).write_bytes(archive.extractfile(f"package/dist/{name}").read())
    return folder


@pytest.fixture(scope="module")
def pages(runtime, tmp_path_factory, few_images_are_enough):
    """Pages of two models of the repository, by name: folders."""
    folders = {}
    for name in MODELS:
        settings = ImageSettings(**read_json(SAVED / name / "card.json")["image"])
        phantoms = load_data(phantom_dataset(60), "patient", 0, settings)
        folders[name] = tmp_path_factory.mktemp("pages") / name
        web.export_page(SAVED / name, folders[name], phantoms, runtime, force=True)
    return folders


@pytest.fixture(scope="module")
def addresses(pages):
    """The same, served: addresses."""
    servers = {name: web.page_server(folder) for name, folder in pages.items()}
    for server in servers.values():
        threading.Thread(target=server.serve_forever, daemon=True).start()
    yield {name: f"http://127.0.0.1:{server.server_port}/" for name, server in servers.items()}
    for server in servers.values():
        server.shutdown()
        server.server_close()


@pytest.fixture(scope="module")
def browser():
    if chromium.PATH is None:
        pytest.skip("needs the browser chromium")
    browser = chromium.Browser()
    yield browser
    browser.close()


READY = "document.getElementById('status')?.textContent === 'Ready.'"
DONE = "document.getElementById('status').textContent.includes('classified')"


def ready(browser, address):
    browser.requests.clear()
    browser.errors.clear()
    browser.open(address)
    browser.wait(READY)
    assert browser.errors == []


ROWS = """import('./app.js').then(page => page.rows.map(row => ({
  path: row.path, status: row.status, problem: row.problem, outside: row.outside, logit: row.logit,
  probability: row.probability, ...row.measures, map: row.map && [...row.map.values],
  pixels: row.pixels && [...row.pixels] })))"""


def classified(browser, files):
    """Choose files, and return what the page made of them, by name."""
    browser.choose("#files", files)
    browser.wait(DONE, 300)
    rows = {row["path"]: row for row in browser.evaluate(ROWS)}
    browser.click("#clear")
    browser.wait(READY)
    return rows


def compare(classifier, files, rows, probability=1e-5, pixels=0):
    """Compare the rows of a page with those of Python; the tolerances are of probability and pixels."""
    threshold = classifier.threshold("youden")
    for file in files:
        [expected], row = judge(classifier, [file], "youden", accept_all=True), rows[file.name]
        [answered] = judge(classifier, [file], "youden")
        assert row["status"] == answered["status"], (file.name, row["problem"], answered["problem"])
        assert row["problem"] == answered["problem"] and row["outside"] == answered["outside"], file.name
        if expected["logit"] is None:
            continue
        assert row["probability"] == pytest.approx(expected["probability"], abs=probability), file.name
        if abs(expected["probability"] - threshold) > 0.02:
            assert (row["probability"] >= threshold) == (expected["probability"] >= threshold), file.name
        if pixels == 0:
            for name in ("brightness", "contrast", "sharpness", "likeness", "distance"):
                assert row[name] == pytest.approx(expected[name], rel=1e-3, abs=1e-3), (file.name, name)


def maps_agree(classifier, files, rows):
    """The map of the page is that of Python, on the same pixels."""
    for file in files:
        pixels = np.array(rows[file.name]["pixels"], np.uint8).reshape(
            1, *[classifier.image_settings.size] * 2
        )
        expected, result = classifier.score(pixels, with_maps=True).maps.ravel(), rows[file.name]["map"]
        np.testing.assert_allclose(result, expected, rtol=1e-3, atol=1e-3)
        if np.ptp(expected) > 0:
            assert np.corrcoef(expected, result)[0, 1] >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_pages_are_small_without_the_runtime(name, pages):
    sizes = {path.name: path.stat().st_size for path in pages[name].iterdir()}
    assert sum(size for name, size in sizes.items() if name not in web._RUNTIME_FILES) < 1.5e6


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_60_phantoms_get_the_answers_of_python(name, pages, addresses, browser):
    files, classifier = sorted(phantom_dataset(60).rglob("*.jpeg")), load_classifier(pages[name])
    ready(browser, addresses[name])
    rows = classified(browser, files)
    assert len(rows) == 60
    compare(classifier, files, rows)
    maps_agree(classifier, files, rows)


@pytest.mark.slow
def test_120_originals_get_the_answers_of_python(pages, addresses, browser, real_data):
    """Their JPEG files are decoded at half their size; four of them are progressive."""
    files, name = sorted((real_data / "chest_xray_original").rglob("*.jpeg")), MODELS[1]
    if not files:
        pytest.skip("needs the originals")
    ready(browser, addresses[name])
    rows, classifier = classified(browser, files), load_classifier(pages[name])
    compare(classifier, files, rows)
    maps_agree(classifier, files, rows)


def plain_png(pixels, depth, interlaced=False, filter_=0, megabytes=0):
    """Encode grey pixels with 1 to 16 bits as PNG, and zeros behind them, as no library does."""
    passes = [
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ]
    lines = b""
    for left, top, dx, dy in passes if interlaced else [(0, 0, 1, 1)]:
        for row in pixels[top::dy, left::dx]:
            bits = "".join(f"{value:0{depth}b}" for value in row)
            bits += "0" * (-len(bits) % 8)
            lines += bytes([filter_]) + int(bits, 2).to_bytes(len(bits) // 8, "big")
    header = np.array(pixels.shape[::-1], ">u4").tobytes() + bytes([depth, 0, 0, 0, interlaced])
    content, end = b"\x89PNG\r\n\x1a\n", zlib.compressobj()
    zipped = end.compress(lines) + end.flush(zlib.Z_FULL_FLUSH)
    zipped += (end.compress(bytes(2**20)) + end.flush(zlib.Z_FULL_FLUSH)) * megabytes + end.flush()
    for kind, data in ((b"IHDR", header), (b"IDAT", zipped), (b"IEND", b"")):
        check = zlib.crc32(kind + data).to_bytes(4, "big")
        content += len(data).to_bytes(4, "big") + kind + data + check
    return content


def encoded(pixels, format_, mode=None, **options):
    content = io.BytesIO()
    Image.fromarray(pixels).convert("RGB" if mode else None).convert(mode).save(content, format_, **options)
    return content.getvalue()


@pytest.fixture(scope="module")
def formats(tmp_path_factory):
    """One phantom in many formats, sizes and states, as files."""
    folder, rng = tmp_path_factory.mktemp("formats"), np.random.default_rng(0)
    grey = render_phantom("bacteria", 300, 14)[0][:, 5:290]
    deep = (grey * 14.0 + rng.integers(0, 14, grey.shape)).astype(np.uint16)
    colours, equal = np.dstack([grey, 255 - grey, grey // 2]), np.dstack([grey] * 3)
    large = cv2.resize(grey, (901, 1003), interpolation=cv2.INTER_CUBIC)
    huge = cv2.resize(grey, (2107, 2203), interpolation=cv2.INTER_CUBIC)
    contents = {
        "16 bits.png": encoded(deep, "png"),
        "one bright pixel.png": encoded(
            np.where(np.arange(deep.size).reshape(deep.shape), deep, 65535).astype(np.uint16), "png"
        ),
        "rgb.png": encoded(equal, "png"),
        "nearly grey.png": encoded(
            np.dstack([grey, np.clip(grey + 5.0, 0, 255).astype(np.uint8), grey]), "png"
        ),
        "alpha.png": encoded(np.dstack([equal, rng.integers(0, 255, grey.shape, np.uint8)]), "png"),
        "palette.png": encoded(np.array(grey), "png", bits=8),
        "bmp.bmp": encoded(grey, "bmp"),
        "webp.webp": encoded(equal, "webp", lossless=True),
        "colours.webp": encoded(colours, "webp", lossless=True),
        "colours.jpeg": encoded(cv2.resize(colours, (800, 800)), "jpeg"),
        "small.png": encoded(cv2.resize(grey, (90, 75), interpolation=cv2.INTER_AREA), "png"),
        "wide.png": encoded(cv2.resize(grey, (640, 100)), "png"),
        "letter.png": encoded(cv2.resize(grey, (256, 512)), "png"),
        "turned.png": encoded(np.ascontiguousarray(np.rot90(grey)), "png"),
        "inverted.png": encoded(255 - grey, "png"),
        "upside down.png": encoded(np.ascontiguousarray(grey[::-1, ::-1]), "png"),
        "flat.png": encoded(np.full_like(grey, 90), "png"),
        "whole.jpeg": encoded(grey, "jpeg", quality=90),
        "half.jpeg": encoded(large, "jpeg", quality=70),
        "quarter.jpeg": encoded(huge, "jpeg", quality=85),
        "quarter progressive.jpeg": encoded(huge, "jpeg", quality=85, progressive=True),
        "restarts.jpeg": encoded(large, "jpeg", restart_marker_blocks=7),
        "behind its end.jpeg": encoded(large, "jpeg") + bytes(500),
        "truncated.jpeg": encoded(large, "jpeg")[:20000],
        "truncated.png": encoded(grey, "png")[:20000],
        "header.jpeg": encoded(large, "jpeg")[:40],
        "text.png": b"nothing",
        "empty.jpeg": b"",
        "gif.gif": encoded(grey, "gif"),
        "tiny.png": encoded(grey[:10, :12], "png"),
        "small 40.png": encoded(cv2.resize(grey, (50, 40), interpolation=cv2.INTER_AREA), "png"),
        "filter.png": plain_png(grey, 8, filter_=5),
        "bomb.png": plain_png(grey, 8, megabytes=4000),
        "check.png": plain_png(grey, 8)[:-13] + bytes(1) + plain_png(grey, 8)[-12:],
        "big.tif": encoded(grey, "tiff", big_tiff=True),
        "clear.webp": encoded(np.dstack([equal, grey]), "webp", lossless=True),
        "animated.webp": encoded(equal, "webp", save_all=True, append_images=[Image.fromarray(colours)]),
        "cut.jpeg": encoded(large, "jpeg")[:40000] + b"\xff\xd9",
        "rgb half.jpeg": encoded(np.dstack([large // 2, large, large // 2 + 9]), "jpeg", keep_rgb=True),
        "cmyk half.jpeg": encoded(large, "jpeg", mode="CMYK"),
        "two images.jpeg": encoded(large, "jpeg") + encoded(grey, "jpeg"),
        "12000 x 12000.png": plain_png(np.zeros((1, 8), np.uint8), 8).replace(
            np.array([8, 1], ">u4").tobytes(), np.array([12000, 12000], ">u4").tobytes(), 1
        ),
    }
    contents |= {f"{depth} bits.png": plain_png(grey >> (8 - depth), depth) for depth in (1, 2, 4)}
    contents |= {f"interlaced {depth}.png": plain_png(p, depth, True) for p, depth in ((grey, 8), (deep, 16))}
    for subsampling in range(3):
        three = np.dstack([large] * 3)
        for progressive in (False, True):
            options = {"subsampling": subsampling, "progressive": progressive, "quality": 88}
            contents[f"luma {subsampling} {progressive}.jpeg"] = encoded(three, "jpeg", **options)
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        contents[f"exif {orientation}.jpeg"] = encoded(large, "jpeg", exif=exif)
        contents[f"exif {orientation}.png"] = encoded(grey, "png", exif=exif)
        contents[f"exif {orientation}.webp"] = encoded(equal, "webp", lossless=True, exif=exif)
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return sorted(folder.iterdir())


@pytest.fixture(scope="module")
def dicoms(tmp_path_factory):
    """The same phantom as DICOM files."""
    import pydicom
    from pydicom.encaps import encapsulate
    from pydicom.sequence import Sequence
    from pydicom.uid import ImplicitVRLittleEndian, JPEGBaseline8Bit

    folder = tmp_path_factory.mktemp("dicom")
    grey = render_phantom("bacteria", 300, 14)[0][:, 5:290]
    deep = (grey * 16.0 + np.random.default_rng(0).integers(0, 16, grey.shape)).astype(np.uint16)
    window, signed = {"WindowCenter": 2000, "WindowWidth": 3500}, deep.astype(np.int16) - 2048

    def table(first, entries, name="VOILUTSequence"):
        item = pydicom.Dataset()
        item.LUTDescriptor = [len(entries), first, 16]
        item.add_new("LUTData", "OW", np.asarray(entries, "<u2").tobytes())
        return {name: Sequence([item])}

    def saved(content, change, **options):
        dataset, file = pydicom.dcmread(io.BytesIO(content)), io.BytesIO()
        change(dataset)
        dataset.save_as(file, **options)
        return file.getvalue()

    def in_8_bits(dataset):
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 8, 8, 7
        dataset.PixelData = grey.tobytes()

    def in_colours(dataset):
        in_8_bits(dataset)
        dataset.SamplesPerPixel, dataset.PlanarConfiguration = 3, 1
        dataset.PhotometricInterpretation, dataset.PixelData = "RGB", grey.tobytes() * 3

    def as_jpeg(dataset):
        in_8_bits(dataset)
        dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
        exif = Image.Exif()
        exif[0x0112] = 3  # counts in JPEG files only
        jpeg = encoded(grey, "jpeg", quality=95, exif=exif)
        dataset.PixelData = encapsulate([jpeg], fragments_per_frame=2)
        dataset["PixelData"].is_undefined_length = True

    def as_wrong_jpeg(dataset):
        as_jpeg(dataset)
        dataset.BitsAllocated = 16

    def implicit(dataset):
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian

    sigmoid = 60000 / (1 + np.exp((2000 - np.arange(4096)) / 500))
    made = {
        "plain": (deep, {}),
        "window": (deep, window),
        "inverted": (4095 - deep, {"PhotometricInterpretation": "MONOCHROME1"}),
        "sigmoid": (deep, window | {"VOILUTFunction": "SIGMOID"}),
        "exact": (deep, window | {"VOILUTFunction": "LINEAR_EXACT"}),
        "several": (deep, {"WindowCenter": [1500, 9], "WindowWidth": [2500, 9]}),
        "impossible": (deep, {"WindowCenter": 9000, "WindowWidth": 10}),
        "rescaled": (
            deep,
            {"RescaleSlope": 2, "RescaleIntercept": -9, "WindowCenter": 3900, "WindowWidth": 7001},
        ),
        "negative slope": (4095 - deep, {"RescaleSlope": -1, "RescaleIntercept": 4095} | window),
        "values": (deep, table(0, sigmoid)),
        "part of values": (deep, table(100, sigmoid[:3000] / 64)),
        "modality": (4095 - deep, table(0, np.arange(4096)[::-1], "ModalityLUTSequence")),
        "upper bits": (deep << 4, {"HighBit": 15}),
        "bits above": (deep | (deep << 12), {}),
        "padded": (np.pad(deep, 20, constant_values=4095), {"PixelPaddingValue": 4095}),
        "adult": (deep, {"PatientAge": "060Y", "ViewPosition": "PA"}),
        "child": (deep, {"PatientAge": "003Y", "ViewPosition": "AP"}),
        "lateral": (deep, {"ViewPosition": "LL"}),
        "ct": (deep, {"Modality": "CT"}),
        "frames": (deep, {"NumberOfFrames": 2}),
        "signed": (signed.view(np.uint16), {"PixelRepresentation": 1}),
        "sign in bit 12": (signed.view(np.uint16) & 4095, {"PixelRepresentation": 1}),
    }
    contents = {name: tiny.radiograph(pixels, **tags) for name, (pixels, tags) in made.items()}
    whole, with_table = contents["window"], contents["values"]
    contents["without preamble"] = whole[132:]
    contents["truncated"] = whole[:-1000]
    contents["8 bits"] = saved(whole, lambda dataset: in_8_bits(dataset) or dataset.pop("WindowCenter"))
    contents["colours"] = saved(whole, in_colours)
    contents["implicit"] = saved(
        with_table, implicit, implicit_vr=True, little_endian=True, enforce_file_format=True
    )
    contents["compressed"] = saved(contents["8 bits"], as_jpeg)
    contents["contradiction"] = saved(contents["8 bits"], as_wrong_jpeg)
    for name, content in contents.items():
        (folder / f"{name}.dcm").write_bytes(content)
    return sorted(folder.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_formats_get_the_answers_of_python(name, pages, addresses, browser, formats):
    ready(browser, addresses[name])
    rows, classifier = classified(browser, formats), load_classifier(pages[name])
    others = {"text.png": "not an image (JPEG, PNG, BMP, WebP or DICOM)"}  # browsers do not read TIFF
    for file, kind in (("big.tif", "TIFF"), ("clear.webp", "transparent WebP")):
        others[file] = f"a format that is not supported ({kind}); convert it to PNG"
    for file, problem in others.items():
        assert rows[file]["status"] == "unreadable" and rows[file]["problem"] == problem
    same = [file for file in formats if file.name not in others]
    approximate = [
        file for file in same if file.name.startswith(("colours", "small", "wide", "cmyk", "rgb "))
    ]
    compare(classifier, [file for file in same if file not in approximate], rows)
    compare(classifier, approximate, rows, 0.1, pixels=1)
    assert rows["12000 x 12000.png"]["problem"].startswith("too large (12000 × 12000 pixels")
    assert sum(row["status"] == "ok" for row in rows.values()) > 25


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_dicom_files_get_the_answers_of_python(name, pages, addresses, browser, dicoms):
    ready(browser, addresses[name])
    rows, classifier = classified(browser, dicoms), load_classifier(pages[name])
    compare(classifier, dicoms, rows)
    assert sum(row["status"] == "ok" for row in rows.values()) > 15


@pytest.mark.slow
def test_images_are_resized_as_by_opencv(addresses, browser):
    ready(browser, addresses["phantom_cnn"])
    rng = np.random.default_rng(1)
    sizes = [
        ((61, 93), (32, 32)),
        ((256, 384), (128, 128)),
        ((128, 300), (128, 64)),
        ((500, 333), (128, 128)),
    ]
    for kind, method, flag, most in (
        ("shrink", min, cv2.INTER_AREA, 0),
        ("mix", max, cv2.INTER_AREA, 0),
        ("enlarge", max, cv2.INTER_CUBIC, 1),
    ):
        for one, other in sizes:
            source, target = (
                (one, other) if method is min else (other, tuple(max(*pair) for pair in zip(one, other)))
            )
            pixels = rng.integers(0, 256, source, np.uint8)
            result = browser.evaluate(
                f"import('./app.js').then(page => [...page.{kind}({{width: {source[1]}, height: {source[0]}, "
                f"pixels: Uint8Array.from({pixels.ravel().tolist()})}}, {target[1]}, {target[0]}).pixels])"
            )
            expected = cv2.resize(pixels, target[::-1], interpolation=flag).ravel()
            assert np.abs(expected.astype(int) - result).max() <= most, (kind, source, target)


@pytest.mark.slow
def test_no_request_leaves_the_page(addresses, browser, formats):
    address = addresses["phantom_cnn"]
    ready(browser, address)
    loaded = list(browser.requests)
    assert all(request.startswith(address) for request in loaded) and len(loaded) == 11
    classified(browser, formats[:5])
    browser.click("#samples")
    browser.wait(DONE)
    browser.click("#rows .open")
    assert browser.requests == loaded
    image = "Object.assign(new Image(), {src: 'x.png', onload: resolve, onerror: reject})"
    socket = "Object.assign(new WebSocket('ws://127.0.0.1:9'), {onopen: resolve, onerror: reject})"
    attempts = ["fetch('card.json')", f"fetch('{address}card.json', {{method: 'POST', body: 'x'}})"]
    attempts += [f"new Promise((resolve, reject) => {attempt})" for attempt in (image, socket)]
    for attempt in attempts:
        sent = f"Promise.resolve().then(() => {attempt}).then(() => 'sent', () => 'blocked')"
        assert browser.evaluate(sent) == "blocked", attempt


@pytest.mark.slow
def test_what_a_person_sees_and_clicks(pages, addresses, browser, formats, dicoms, tmp_path):
    classifier = load_classifier(pages["compact_student-patient-s0-t0"])
    ready(browser, addresses["compact_student-patient-s0-t0"])
    for text in [
        *classifier.card["limits"],
        "4,098 images",
        "Measured on 879 test images",
        "AUROC",
        "0.980 (0.968",
    ]:
        assert text in browser.text("body"), text
    files = [*dicoms, *(file for file in formats if file.suffix == ".jpeg")]
    browser.choose("#files", files)
    browser.wait(DONE)
    rows = [row for file in files for row in judge(classifier, [file], "youden")]
    counts = [sum(row["status"] == status for row in rows) for status in ("ok", "refused", "unreadable")]
    assert browser.text("#status") == "{} images: {} classified, {} refused, {} unreadable.".format(
        len(rows), *counts
    )

    def lines():
        texts = browser.evaluate("[...document.querySelectorAll('#rows tr')].map(line => line.innerText)")
        return [[part.strip() for part in re.split(r"[\t\n]+", text) if part.strip()] for text in texts]

    shown = {line[0]: line[1:] for line in lines()}
    probabilities = [float(result[0].split()[0]) for result in shown.values() if result[0][0] in "01"]
    assert probabilities == sorted(probabilities, reverse=True) and len(probabilities) == counts[0]
    groups = {"rule_in": "suspicious", "rule_out": "not suspicious", "refer": "to be reviewed"}
    for row in rows:
        text = " ".join(shown[Path(row["path"]).name])
        if row["status"] == "ok":
            assert text.startswith(
                f"{row['probability']:.3f} {row['decision']}, {groups[triage_group(row, classifier.card)]}"
            )
        else:
            assert text.startswith(f"{row['status']} {row['problem']}")
        assert ("Outside the training population" in text) == bool(row["outside"])

    # Another threshold: the decisions and the mark change, the order stays.
    order = [line[0] for line in lines()]
    browser.evaluate("document.getElementById('rule').focus()")
    browser.press("ArrowDown")
    assert browser.evaluate("document.getElementById('rule').value") == "sensitivity_95"
    lower = {name for name, value in zip(order, probabilities) if 0.530 <= value < 0.698}
    assert [line[0] for line in lines()] == order
    label = "document.querySelector('#rows .bar').ariaLabel"
    assert "threshold 0.530" in browser.evaluate(label) and "threshold 0.698" not in browser.evaluate(label)
    for line in lines():
        assert line[0] not in lower or "PNEUMONIA" in line[1]

    # The table as a file: that of Python.
    browser.call(
        "Browser.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path), eventsEnabled=False
    )
    browser.click("#download")
    end = time.monotonic() + 30
    while not (tmp_path / "predictions.csv").is_file() and time.monotonic() < end:
        time.sleep(0.05)
    table = pd.read_csv(tmp_path / "predictions.csv", keep_default_na=False).set_index("path")
    expected = [row for file in files for row in judge(classifier, [file], "sensitivity_95")]
    assert list(table.columns) == [name for name in expected[0] if name not in ("path", "seen")]
    for row in expected:
        line = table.loc[Path(row["path"]).name]
        assert line["status"] == row["status"] and line["problem"] == row["problem"]
        if row["status"] == "ok":
            assert line["decision"] == row["decision"]
            assert float(line["probability"]) == pytest.approx(row["probability"], abs=0.02)

    # An image and its map, each in the aspect ratio of the image.
    for file in [file for file in files if file.suffix == ".jpeg" and shown[file.name][0][0] in "01"][:5]:
        box = f"document.querySelector('[aria-label=\"Enlarge {file.name}\"] canvas').getBoundingClientRect()"
        height, width = decode_file(file).pixels.shape
        ratio = browser.evaluate(f"{box}.width / {box}.height")
        assert ratio == pytest.approx(width / height, rel=0.02), file.name
    opacity = "getComputedStyle(document.querySelector('#rows .map')).opacity"
    assert browser.evaluate(opacity) == "0.7"
    browser.evaluate("document.querySelector('.opacity').focus()")
    browser.press("ArrowLeft")
    assert browser.evaluate(opacity) == "0.69"
    with_maps = "document.querySelectorAll('#rows .map').length"
    assert browser.evaluate(with_maps) == counts[0]  # what is refused gets no map

    browser.click("#clear")
    assert browser.text("#status") == "Ready." and browser.evaluate(
        "document.getElementById('results').hidden"
    )


@pytest.mark.slow
def test_one_file_may_be_chosen_twice_and_its_name_is_no_formula(addresses, browser, formats, tmp_path):
    ready(browser, addresses["phantom_cnn"])
    [source] = [file for file in formats if file.name == "whole.jpeg"]
    shutil.copy(source, tmp_path / "=1+1.jpeg")
    for status in ("1 image: 1 classified", "2 images: 2 classified"):
        browser.choose("#files", [tmp_path / "=1+1.jpeg"])
        browser.wait(f"document.getElementById('status').textContent.startsWith('{status}')")
        assert browser.evaluate("document.getElementById('files').value") == ""
    browser.evaluate("URL.createObjectURL = (blob) => { window.saved = blob; return '#'; }; 0")
    browser.click("#download")
    assert "\n'=1+1.jpeg,ok," in browser.evaluate("saved.text()")
    assert browser.evaluate("getComputedStyle(document.querySelector('.bar')).forcedColorAdjust") == "none"
    browser.click("#clear")
    assert browser.evaluate("document.activeElement.id") == "files"


@pytest.mark.slow
def test_the_viewer_keeps_its_buttons_in_sight_and_its_slider_for_heatmaps(addresses, browser, formats):
    ready(browser, addresses["phantom_cnn"])
    files = [file for file in formats if file.name in ("half.jpeg", "inverted.png")]
    browser.choose("#files", files)
    browser.wait(DONE)
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=500, height=400, deviceScaleFactor=1, mobile=True
    )
    for number, refused in ((1, False), (2, True)):
        browser.evaluate(f"document.querySelector('#rows tr:nth-child({number}) .open').click()")
        assert browser.evaluate("document.querySelector('#viewer .opacity').disabled") == refused
        button = "document.getElementById('close').getBoundingClientRect()"
        assert browser.evaluate(f"{button}.bottom <= innerHeight && {button}.top > 0")
        browser.click("#close")
    browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
def test_the_keyboard_reaches_everything(addresses, browser):
    ready(browser, addresses["phantom_cnn"])
    browser.evaluate("document.getElementById('samples').focus()")
    browser.press("Enter")
    browser.wait(DONE)
    browser.evaluate("document.querySelector('#rows .open').focus()")
    browser.press("Enter")
    browser.wait("document.getElementById('viewer').open")
    name = browser.text("#viewer-name")
    browser.wait("document.querySelector('#viewer canvas').width === 384")  # read again, in full resolution
    browser.press("ArrowRight")
    assert browser.text("#viewer-name") != name
    browser.press("ArrowLeft")
    assert browser.text("#viewer-name") == name and re.match(r"\d\.\d{3}", browser.text("#viewer-text"))
    browser.press("Escape")
    assert (
        browser.evaluate("!document.getElementById('viewer').open && document.activeElement.className")
        == "open"
    )
    reached = []
    browser.evaluate("document.getElementById('files').focus()")
    for _ in range(12):
        browser.press("Tab")
        reached.append(browser.evaluate("document.activeElement.id || document.activeElement.className"))
    assert reached[:6] == ["samples", "rule", "opacity", "download", "clear", "open"]


@pytest.mark.slow
def test_a_screen_reader_is_told_what_is_there(addresses, browser):
    ready(browser, addresses["phantom_cnn"])
    browser.call(
        "Emulation.setDeviceMetricsOverride", width=360, height=700, deviceScaleFactor=1, mobile=True
    )
    browser.click("#samples")
    browser.wait(DONE)
    nodes = browser.call("Accessibility.getFullAXTree")["nodes"]
    named = [
        (node["role"]["value"], node.get("name", {}).get("value", ""))
        for node in nodes
        if not node["ignored"]
    ]
    roles = [role for role, _ in named]
    assert roles.count("row") >= 6 and roles.count("rowheader") >= 5 and "status" in roles
    for role in ("button", "slider", "combobox", "image", "table", "columnheader"):
        assert all(name for other, name in named if other == role) and role in roles, role
    assert ("button", "Choose images") in named  # the field for files
    assert ("image", "probability 0.999, threshold 0.584") in named or any(
        "threshold 0.584" in name for _, name in named
    )
    assert browser.evaluate("document.documentElement.scrollWidth <= innerWidth")  # not sideways
    browser.call("Emulation.clearDeviceMetricsOverride")


@pytest.mark.slow
def test_light_and_dark(addresses, browser):
    ready(browser, addresses["phantom_cnn"])
    colours = []
    for theme in ("light", "dark"):
        browser.call(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}]
        )
        style = "(style => [style.color, style.backgroundColor])(getComputedStyle(document.body))"
        colours.append(
            [np.mean(list(map(int, re.findall(r"\d+", colour)))) for colour in browser.evaluate(style)]
        )
    (ink, paper), (dark_ink, dark_paper) = colours
    assert paper - ink > 200 and dark_ink - dark_paper > 200


@pytest.mark.slow
def test_files_are_dropped_200_at_once(addresses, browser, tmp_path):
    ready(browser, addresses["phantom_cnn"])
    files = sorted(phantom_dataset(60).rglob("*.jpeg"))
    for number in range(200):
        shutil.copy(files[number % 60], tmp_path / f"{number:03d}.jpeg")
    names = [str(path) for path in sorted(tmp_path.iterdir())]
    data = {"items": [], "files": names, "dragOperationsMask": 1}
    for kind in ("dragEnter", "dragOver", "drop"):
        browser.call("Input.dispatchDragEvent", type=kind, x=300, y=300, data=data)
    browser.wait(DONE, 120)
    assert browser.text("#status").startswith("200 images: 200 classified")
    assert browser.evaluate("document.querySelectorAll('#rows tr').length") == 200


class Elsewhere(http.server.SimpleHTTPRequestHandler):
    """Another host, which lets pages of any origin load its files."""

    def end_headers(self):
        self.send_header("Access-Control-Allow-Origin", "*")
        super().end_headers()

    def log_message(self, *_):
        pass


@pytest.mark.slow
def test_a_linked_runtime_is_loaded_if_it_is_the_pinned_one(runtime, pages, browser, tmp_path, monkeypatch):
    shutil.copytree(runtime, tmp_path / "dist")
    elsewhere = functools.partial(Elsewhere, directory=tmp_path / "dist")
    servers = [
        http.server.ThreadingHTTPServer(("127.0.0.1", 0), elsewhere),
        web.page_server(tmp_path / "page"),
    ]
    for server in servers:
        threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(web, "_RUNTIME_URL", f"http://127.0.0.1:{servers[0].server_port}/")
    shutil.copytree(pages[MODELS[0]], tmp_path / "page", ignore=shutil.ignore_patterns("ort*"))
    web._write_page(tmp_path / "page", load_classifier(tmp_path / "page"), None)
    address = f"http://127.0.0.1:{servers[1].server_port}/"
    ready(browser, address)
    assert sum(request.startswith(web._RUNTIME_URL) for request in browser.requests) == 2
    for name, named in (
        ("ort-wasm-simd-threaded.wasm",) * 2,
        ("ort.wasm.bundle.min.mjs", "ONNX Runtime Web (from the internet, or copied by --runtime)"),
    ):
        with open(tmp_path / "dist" / name, "ab") as file:
            file.write(b" ")
        browser.call("Network.clearBrowserCache")
        browser.open(address)
        browser.wait("document.querySelector('#status.error')")
        assert f"This page cannot be used: {named} is missing, or is not the file" in browser.text("#status")
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["model.onnx", "ort-wasm-simd-threaded.wasm", "settings"])
def test_a_wrong_model_file_is_named_and_nothing_is_classified(name, pages, browser, tmp_path):
    shutil.copytree(pages["phantom_cnn"], tmp_path / "page")
    if name == "settings":  # of another model: the self-test finds it
        page = (tmp_path / "page" / "index.html").read_text(encoding="utf-8")
        changed = re.sub(r'"self_test": [-\d.]+', '"self_test": 1.25', page)
        (tmp_path / "page" / "index.html").write_text(changed, encoding="utf-8")
    else:
        content = (tmp_path / "page" / name).read_bytes()
        (tmp_path / "page" / name).write_bytes(content[:-1] + b"!")
    server = web.page_server(tmp_path / "page")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    browser.open(f"http://127.0.0.1:{server.server_port}/")
    browser.wait("document.querySelector('#status.error')")
    expected = "self-test failed: logit" if name == "settings" else f"{name} is missing, or is not the file"
    assert f"This page cannot be used: {expected}" in browser.text("#status")
    assert browser.evaluate("document.getElementById('files').disabled")
    server.shutdown()
    server.server_close()
