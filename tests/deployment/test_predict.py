"""Files in, rows out: whatever lies in the folder, each file is read or named."""

import dataclasses
import functools
import os
import shutil
import struct
import unicodedata
import zlib

import cv2
import numpy as np
import pytest
from PIL import Image
from tiny import radiograph

from chestxray import load_classifier
from chestxray.data.formats import robust_range, to_grey
from chestxray.data.images import fit, preprocess
from chestxray.deployment import predict
from chestxray.deployment.predict import list_images

predict_files = functools.partial(
    predict.predict_files, accept_all=True
)  # the images here are no radiographs


@pytest.fixture(scope="module")
def classifier(bundle):
    return load_classifier(bundle[0])


def drawn(seed, size=64):
    rng = np.random.default_rng(seed)
    return np.clip(rng.normal(rng.uniform(90, 110), 25, (size, size)), 0, 255).astype(np.uint8)


def write(path, image):
    assert cv2.imwrite(str(path), image)
    return path


def png_header(width, height):
    """A well-formed PNG that promises more pixels than it holds."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(b"\0" * 100))
        + chunk(b"IEND", b"")
    )


@pytest.fixture
def strange(tmp_path):
    """The folder of the issue; names give the order."""
    folder = tmp_path / "strange"
    folder.mkdir()
    grey = drawn(1)
    write(folder / "a_good.png", grey)
    whole = cv2.imencode(".jpg", drawn(2, 200))[1].tobytes()
    (folder / "b_truncated.jpeg").write_bytes(whole[: len(whole) // 2])
    (folder / "c_empty.png").touch()
    (folder / "d_text.jpeg").write_text("this is no drawn\n" * 50)
    write(folder / "e_sixteen.png", grey.astype(np.uint16) * 257)
    Image.fromarray(grey).convert("CMYK").save(folder / "f_cmyk.jpg", quality=95)
    write(folder / "g_rgba.png", np.dstack([grey] * 3 + [np.full_like(grey, 255)]))
    write(folder / "h_one.png", np.array([[7]], dtype=np.uint8))
    (folder / "i_huge.png").write_bytes(png_header(12_000, 12_000))
    write(folder / "j_last.png", drawn(3))
    return folder


PROBLEMS = {
    "b_truncated.jpeg": "truncated",
    "c_empty.png": "empty file",
    "d_text.jpeg": "not an image",
    "h_one.png": "too small (1 × 1",
    "i_huge.png": "too large (12000 × 12000",
}


def test_each_file_is_read_or_named_and_the_rest_goes_on(classifier, strange):
    rows = list(predict_files(classifier, [strange]))
    assert [row["path"] for row in rows] == [str(path) for path in sorted(strange.iterdir())]
    by_name = {row["path"].rsplit("/", 1)[1]: row for row in rows}
    for name, row in by_name.items():
        if name in PROBLEMS:
            assert PROBLEMS[name] in row["problem"] and "Received" not in row["problem"]
            assert (row["status"], row["probability"], row["decision"]) == ("unreadable", None, None)
        else:
            assert row["status"] == "ok" and 0 <= row["probability"] <= 1
    good = by_name["a_good.png"]["probability"]
    stretched = to_grey(drawn(1), *robust_range(drawn(1)))  # the same image in 16 bits is shown like this
    pixels = fit(stretched, classifier.image_settings)[np.newaxis]
    sixteen = float(classifier.probabilities(classifier.logits(pixels))[0])
    assert by_name["e_sixteen.png"]["probability"] == pytest.approx(sixteen, abs=1e-5)
    assert by_name["g_rgba.png"]["probability"] == pytest.approx(good, abs=1e-3)  # and with an alpha channel
    assert by_name["f_cmyk.jpg"]["probability"] == pytest.approx(good, abs=0.03)  # and as lossy CMYK
    assert abs(by_name["j_last.png"]["probability"] - good) > 0.001


def expected(classifier, paths):
    pixels = np.stack([preprocess(path, classifier.image_settings) for path in paths])
    return classifier.probabilities(classifier.logits(pixels))


def test_order_over_batches_with_bad_files_at_their_edges(classifier, tmp_path):
    # Batches of 32: bad are the first, 32nd, 33rd and last file, and the whole of the third batch.
    bad = {0, 31, 32, *range(64, 96), 99}
    paths = []
    for number in range(100):
        path = tmp_path / f"{number:03d}.png"
        if number in bad:
            path.write_bytes(b"bad")
        else:
            write(path, drawn(number))
        paths.append(path)
    rows = list(predict_files(classifier, [tmp_path]))
    assert [row["path"] for row in rows] == [str(path) for path in paths]
    assert {number for number, row in enumerate(rows) if row["status"] == "unreadable"} == bad
    good = [number for number in range(100) if number not in bad]
    probabilities = np.array([rows[number]["probability"] for number in good])
    assert len(np.unique(probabilities)) == len(good)
    np.testing.assert_allclose(
        probabilities, expected(classifier, [paths[number] for number in good]), atol=1e-5
    )


def test_decision_at_the_stored_threshold(classifier, tmp_path):
    paths = [write(tmp_path / f"{number}.png", drawn(number)) for number in range(6)]
    probabilities = expected(classifier, paths)
    cut = float(np.sort(probabilities)[2:4].mean())
    card = classifier.card | {"thresholds": {"youden": cut}, "classes": ["healthy", "ill"]}
    rows = predict_files(dataclasses.replace(classifier, card=card), paths)
    assert [row["decision"] for row in rows] == ["ill" if p >= cut else "healthy" for p in probabilities]


def test_probability_equal_to_the_threshold_is_positive(classifier, tmp_path):
    path = write(tmp_path / "one.png", drawn(1))
    probability = next(predict_files(classifier, [path]))["probability"]
    card = classifier.card | {"thresholds": {"youden": probability}}
    row = next(predict_files(dataclasses.replace(classifier, card=card), [path]))
    assert (row["probability"], row["decision"]) == (probability, "PNEUMONIA")


def test_missing_and_repeated_files_are_reported_each_time(classifier, tmp_path):
    good, missing = write(tmp_path / "good.png", drawn(1)), tmp_path / "missing.png"
    rows = list(predict_files(classifier, [missing, good, missing, good]))
    assert [row["problem"] for row in rows[::2]] == ["no such image file"] * 2
    assert rows[1] == rows[3]


def test_one_path_is_not_taken_for_its_letters(classifier, tmp_path):
    good = write(tmp_path / "good.png", drawn(1))
    for source in (good, str(good), str(tmp_path)):
        assert [row["path"] for row in predict_files(classifier, source)] == [str(good)]


def test_rule_without_threshold_stops_before_the_first_file(classifier, tmp_path):
    with pytest.raises(ValueError, match="Received: threshold_rule='sensitivity_95'"):
        next(predict_files(classifier, [tmp_path / "missing.png"], threshold_rule="sensitivity_95"))


def test_folders_are_searched_without_debris(tmp_path):
    for name in (
        "b/c/2.png",
        "b/1.png",
        "a.jpeg",
        "__MACOSX/b/._1.png",
        ".DS_Store",
        "b/._1.png",
        ".git/x.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    listed = [path.relative_to(tmp_path).as_posix() for path in list_images([tmp_path])]
    assert listed == ["a.jpeg", "b/1.png", "b/c/2.png"]
    shutil.copytree(tmp_path / "b", tmp_path / ".hidden" / "b")
    hidden = list(list_images([tmp_path / ".hidden" / "b"]))  # named by the caller: listed
    assert [path.name for path in hidden] == ["1.png", "2.png"]


def test_empty_folder_gives_no_rows(classifier, tmp_path):
    assert list(predict_files(classifier, [tmp_path])) == []


def test_refused_images_get_a_reason_and_no_answer(classifier, tiny_folder, data, tmp_path):
    images = [str(tiny_folder / path) for path in data.subset("val")["path"]]
    coloured = write(tmp_path / "colour.png", np.dstack([drawn(1), drawn(2), drawn(3)]))
    flat = write(tmp_path / "flat.png", np.full((64, 64), 99, np.uint8))
    rows = list(predict.predict_files(classifier, [*images, coloured, flat]))
    assert [row["status"] for row in rows[:-2]] == ["ok"] * len(images)  # on these the limits were set
    assert [row["status"] for row in rows[-2:]] == ["refused"] * 2
    assert rows[-2]["problem"] == "a colour image"
    for row in rows[-2:]:
        assert row["probability"] is None and row["decision"] is None and np.isfinite(row["logit"])
    again = next(predict_files(classifier, [flat]))
    assert again["status"] == "ok" and again["problem"] and 0 <= again["probability"] <= 1


def test_three_equal_channels_are_no_colours(classifier, tmp_path, tiny_folder, data):
    image = cv2.imread(str(tiny_folder / data.subset("val")["path"].iloc[0]), 0)
    row = next(predict.predict_files(classifier, [write(tmp_path / "rgb.png", np.dstack([image] * 3))]))
    assert row["status"] == "ok"


def test_patterns_tables_and_links(tmp_path):
    for name in ("a/1.png", "a/b/2.png", "c/3.jpeg", "with [brackets].png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "a" / "b" / "loop").symlink_to(tmp_path / "a")
    (tmp_path / "c" / "one.png").symlink_to(tmp_path / "a" / "1.png")
    (tmp_path / "list.csv").write_text("name,path\nx,a/1.png\ny,missing.png\n")

    def listed(*names):
        paths = list_images(tmp_path / name for name in names)
        return [path.relative_to(tmp_path).as_posix() for path in paths]

    assert listed("a/**/*.png") == ["a/1.png", "a/b/2.png"]
    (tmp_path / "a" / ".hidden.png").write_bytes(b"")
    assert listed("a/*") == ["a/1.png"]
    assert listed("a", "*.jpg") == ["a/1.png", "a/b/2.png", "*.jpg"]  # reported as no file later
    assert listed("list.csv") == ["a/1.png", "missing.png"]
    assert listed("a", "c") == ["a/1.png", "a/b/2.png", "c/3.jpeg", "c/one.png"]
    assert listed("with [brackets].png") == ["with [brackets].png"]
    (tmp_path / "other.csv").write_text("file\nx\n")
    with pytest.raises(ValueError, match="needs a column path.*columns=\\['file'\\]"):
        listed("other.csv")
    (tmp_path / "short.csv").write_text("name,path\nx\ny,a/1.png\n")
    assert listed("short.csv") == [".", "a/1.png"]  # the folder, which is then no image
    (tmp_path / "damaged.csv").write_text('path\n"' + "x" * 200_000)
    with pytest.raises(ValueError, match="a damaged table"):
        listed("damaged.csv")


def test_names_that_could_do_harm(classifier, tmp_path):
    names = [
        "-rf.png",
        "two words.png",
        "quote\"'.png",
        "line\nend.png",
        "漢.png",
        os.fsdecode(b"bad\xff.png"),
    ]
    for number, name in enumerate(names):
        write(tmp_path / "plain.png", drawn(number))
        os.rename(tmp_path / "plain.png", tmp_path / name)
    rows = list(predict_files(classifier, tmp_path))
    assert sorted(row["path"] for row in rows) == sorted(str(tmp_path / name) for name in names)
    assert {row["status"] for row in rows} == {"ok"}


def test_threads_give_the_same_rows_in_the_same_order(litert, tmp_path):
    classifier = load_classifier(litert)
    for number in range(100):
        write(tmp_path / f"{number:02d}.png", drawn(number))
    (tmp_path / "33.png").write_bytes(b"bad")
    alone = list(predict_files(classifier, [tmp_path]))
    spread = list(
        predict.predict_parallel(litert, list_images([tmp_path]), "youden", True, jobs=2, backend="threading")
    )
    assert [row["path"] for row in spread] == [row["path"] for row in alone]
    for row, expected_row in zip(spread, alone, strict=True):
        assert row["status"] == expected_row["status"]
        assert row["logit"] == pytest.approx(expected_row["logit"], abs=1e-5)


def test_a_radiograph_that_is_refused_is_answered_on_request(classifier, tmp_path):
    for name, tags in (
        ("ct", {"Modality": "CT"}),
        ("side", {"ViewPosition": "LL"}),
        ("two", {"NumberOfFrames": 2}),
    ):
        (tmp_path / f"{name}.dcm").write_bytes(radiograph(drawn(1), **tags))
    rows = list(predict.predict_files(classifier, tmp_path))
    assert [row["status"] for row in rows] == ["refused"] * 3
    assert [row["problem"].split(",")[0] for row in rows] == ["modality CT", "a lateral view", "2 frames"]
    rows = list(predict.predict_files(classifier, tmp_path, accept_all=True))
    assert [row["status"] for row in rows] == ["ok", "ok", "refused"]  # the last is not one image
    assert rows[0]["problem"].startswith("modality CT") and rows[0]["decision"]


@pytest.mark.parametrize("name", ["ä/B\\c.png"])
def test_a_table_from_another_system(classifier, tmp_path, name):
    stored = tmp_path / unicodedata.normalize("NFD", "ä") / "B"
    stored.mkdir(parents=True)
    path = write(stored / "c.png", drawn(1))
    (tmp_path / "list.csv").write_text(f"path\r\n{name}\r\n", encoding="utf-8-sig")
    (row,) = predict.predict_files(classifier, tmp_path / "list.csv", accept_all=True)
    assert (row["path"], row["status"]) == (str(path), "ok")
