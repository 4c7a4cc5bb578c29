"""Planted faults must be found, a clean set must pass, and numbers agree with what is known."""

import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from chestxray import audit
from chestxray.audit import audit_data, describe, find_copies, shortcuts
from chestxray.cli import main
from chestxray.data.catalog import scan
from chestxray.data.images import perceptual_hashes
from chestxray.phantoms import phantom_dataset


@pytest.fixture(scope="module")
def clean():
    """Folder of 400 phantoms of 96 px in the Kaggle layout, with a published test set."""
    return phantom_dataset(400, 96)


@pytest.fixture(scope="module")
def clean_audit(clean):
    return audit_data(clean)


@pytest.fixture
def faulty(clean, tmp_path):
    """Function that copies the clean folder, plants faults in it, and returns the names of the flags."""

    def audited(plant) -> set[str]:
        shutil.copytree(clean, tmp_path / "chest_xray")
        shutil.copy(clean.parent / "README.txt", tmp_path)
        plant(tmp_path / "chest_xray")
        return {flag["name"] for flag in audit_data(tmp_path / "chest_xray")[0]["flags"]}

    return audited


def rewrite(path, change=lambda image: image, quality=90):
    image = change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])


# The whole audit


def test_a_clean_set_raises_no_flag(clean_audit):
    findings, means = clean_audit
    assert findings["flags"] == []
    assert findings["images"] == 400 and findings["data"] == "synthetic"
    assert findings["copies"] == [] and not findings["problems"]
    assert findings["overlap"][0]["groups_crossing"] == 0
    assert [image.shape for image in means.values()] == [(224, 224)] * 2
    json.dumps(findings, allow_nan=False)


def test_planted_framing_is_found_and_taken_away_by_reframing():
    findings, _ = audit_data(phantom_dataset(200, 64, framing=0.2))
    assert "shortcut: lung box" in {flag["name"] for flag in findings["flags"]}
    rows = {row["sees"]: row for row in findings["shortcuts"]}
    assert rows["lung box"]["low"] > 0.8 and rows["lung box"]["lungs_only"] < 0.7
    boxes = pd.DataFrame(findings["framing"]).set_index(["official_split", "label"])
    assert (boxes.loc["train", "aspect"].loc[0] / boxes.loc["train", "aspect"].loc[1]) > 1.1
    assert (boxes["none"] == 0).all() and boxes["images"].sum() == 200
    assert "Framing" in [title for title, *_ in describe(findings)]


@pytest.mark.slow
def test_jpeg_quality_by_class_is_found(faulty):
    flags = faulty(lambda root: [rewrite(path, quality=60) for path in root.rglob("PNEUMONIA/*.jpeg")])
    assert "shortcut: JPEG quantisation tables" in flags
    assert "shortcut: bits per pixel of the files" in flags


@pytest.mark.slow
def test_a_mark_in_the_corner_and_another_test_population_are_found(faulty):
    def mark(image):
        image[2:8, 2:8] = 255
        return image

    def plant(root):
        for path in sorted(root.rglob("PNEUMONIA/*.jpeg"))[::2]:
            rewrite(path, mark)
        for path in root.glob("test/NORMAL/*.jpeg"):
            rewrite(path, lambda image: (image * 0.6).astype(np.uint8))

    flags = faulty(plant)
    assert {"shortcut: border of 8 pixels", "shortcut: 28 × 28, centre blacked out"} <= flags
    assert "test set: NORMAL" in flags and "test set: PNEUMONIA" not in flags


def test_copies_and_a_patient_on_both_sides_are_found(faulty):
    def plant(root):
        first, second = sorted(root.glob("train/NORMAL/*.jpeg"))[:2]
        encoded_again = root / "test" / "NORMAL" / "IM-9999-0001.jpeg"
        shutil.copy(first, encoded_again)
        rewrite(encoded_again, quality=70)
        shutil.copy(second, root / "train" / "PNEUMONIA" / "person9999_virus_1.jpeg")
        person, subtype = sorted(root.glob("test/PNEUMONIA/*.jpeg"))[0].name.split("_")[:2]
        other = sorted(root.glob("train/PNEUMONIA/*.jpeg"))[0]
        other.rename(other.with_name(f"{person}_{subtype}_99999.jpeg"))

    assert faulty(plant) == {"copies across splits", "copies of two labels", "patients"}


def test_a_folder_without_a_published_split_is_audited(plain_folder, tmp_path):
    findings, _ = audit_data(plain_folder(tmp_path, 60), ("healthy", "sick"))
    assert findings["overlap"] == findings["shift"] == []
    assert all(row["test_auroc"] is None for row in findings["shortcuts"])
    assert set(findings["leak_by_image"].values()) == {0}  # no patients are known: each image is one


def test_expected_leak_by_hand(clean, clean_audit):
    leaks = clean_audit[0]["leak_by_image"]
    for key in ("group", "group_conservative"):
        sizes = scan(clean).groupby(key)["path"].transform("size")
        assert leaks[key] == pytest.approx(np.mean(1 - 0.3 ** (sizes - 1)))
        assert 0.1 < leaks[key] < 1


# Copies


def random_images(count=6, size=96):
    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 255, (count, 12, 12)).astype(np.float32)
    fine = [cv2.resize(image, (size, size), interpolation=cv2.INTER_CUBIC) for image in coarse]
    return np.stack(fine).clip(0, 255).astype(np.uint8)


def table(count, **columns):
    return pd.DataFrame(
        {
            "path": [f"{number}.png" for number in range(count)],
            "label": 0,
            "split": "train",
            "group": [f"g{number}" for number in range(count)],
            "sha256": [f"s{number}" for number in range(count)],
        }
        | columns
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda image: cv2.imdecode(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], 0),
        lambda image: cv2.resize(cv2.resize(image, (48, 48), interpolation=cv2.INTER_AREA), (96, 96)),
        lambda image: (20 + 0.8 * image).astype(np.uint8),
    ],
    ids=["re-encoded", "resized", "exposure"],
)
def test_a_changed_copy_is_found_and_strangers_are_not(change):
    images = random_images()
    images = np.concatenate([images, [change(images[2])]])
    pairs = find_copies(table(7, label=[0] * 6 + [1]), images)
    assert list(pairs[["first", "second"]].itertuples(index=False, name=None)) == [("2.png", "6.png")]
    assert not pairs["exact"][0] and not pairs["same_label"][0] and pairs["same_split"][0]
    assert pairs["distance"][0] <= 32 and pairs["correlation"][0] > 0.98


def test_pairs_are_listed_in_order():
    images = np.concatenate([random_images(), random_images()[::-1], random_images()[:1]])
    pairs = find_copies(table(13), images)  # each image twice, the first three times
    numbers = pairs[["first", "second"]].map(lambda path: int(path.removesuffix(".png")))
    expected = [(0, 11), (0, 12), (1, 10), (2, 9), (3, 8), (4, 7), (5, 6), (11, 12)]
    assert list(numbers.itertuples(index=False, name=None)) == expected
    assert (pairs["distance"] == 0).all() and (pairs["correlation"] == 1).all()


def test_hash_has_half_its_bits_set():
    bits = np.unpackbits(perceptual_hashes(random_images()), axis=1)
    assert bits.shape == (6, 256) and (bits.sum(axis=1) == 128).all()


def test_equal_files_are_exact_copies_also_when_flat():
    pairs = find_copies(
        table(3, sha256=["a", "b", "a"]),
        np.zeros((3, 64, 64), np.uint8) + np.array([10, 90, 10], np.uint8)[:, None, None],
    )
    assert list(pairs.loc[pairs["exact"], ["first", "second"]].iloc[0]) == ["0.png", "2.png"]


# What the linear models see


def test_frames_do_not_see_the_centre():
    images = random_images(2, 224)
    changed = images.copy()
    changed[:, 33:191, 33:191] = 0
    for width in (1, 4):
        np.testing.assert_array_equal(shortcuts.frame(images, width), shortcuts.frame(changed, width))
    changed[:, 0, 0] = 255
    assert not np.array_equal(shortcuts.frame(images, 1), shortcuts.frame(changed, 1))


def test_features_by_hand():
    images = np.zeros((1, 224, 224), np.uint8)
    images[0, :112] = 200
    np.testing.assert_allclose(shortcuts.intensity(images), [[100, 100]])
    histogram = shortcuts.histogram(images)
    assert histogram.shape == (1, 32) and histogram[0, 0] == histogram[0, 25] == 0.5
    assert shortcuts.thumbnail(images, 8)[0].tolist() == [[200.0] * 8] * 4 + [[0.0] * 8] * 4
    assert shortcuts.frame(images, 1).shape == (1, 108) and shortcuts.frame(images, 4).shape == (1, 384)


def test_high_frequencies_see_noise_and_no_smooth_shape():
    y, x = np.mgrid[:224, :224]
    smooth = (100 + 90 * np.sin(2 * np.pi * (3 * x + 2 * y) / 224))[None]
    noise = np.random.default_rng(0).normal(0, 5, (1, 224, 224))
    assert shortcuts.high_frequencies(smooth).max() < 1
    powers = shortcuts.high_frequencies(smooth + noise)
    # Mean of log|F|² of white noise: log(N σ²) − Euler's constant
    np.testing.assert_allclose(powers, np.log(224**2 * 25) - 0.5772, atol=0.3)
    assert powers.shape == (1, 26)


def test_high_frequencies_of_a_rotated_image_are_the_same():
    # Half a turn keeps every power. In float32 they would differ by 5e-6.
    noise = np.random.default_rng(0).integers(0, 255, (224, 224)).astype(np.uint8)
    image = cv2.GaussianBlur(noise, (0, 0), 4)[None]
    powers, rotated = shortcuts.high_frequencies(image), shortcuts.high_frequencies(image[:, ::-1, ::-1])
    np.testing.assert_allclose(rotated, powers, rtol=0, atol=1e-9)


def test_models_are_scored_on_other_patients():
    # Every patient has a fingerprint and one label: within patients it tells everything, across nothing.
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    labels = generator.integers(0, 2, 100)[groups]
    features = generator.normal(size=(100, 60))[groups] + 0.01 * generator.normal(size=(400, 60))
    scores = shortcuts.cross_validated(features, labels, groups)
    assert abs(roc_auc_score(labels, scores) - 0.5) < 0.2


def test_the_linear_models_are_brought_to_their_minimum():
    # Neighbouring columns are nearly equal, as rings of a spectrum are; a fit that stops early ends
    # elsewhere, and on each processor somewhere else.
    generator = np.random.default_rng(0)
    features = np.cumsum(generator.normal(size=(400, 26)), axis=1)
    labels, groups = generator.integers(0, 2, 400), np.arange(400)
    scores = shortcuts.cross_validated(features, labels, groups)
    folds, distance = StratifiedGroupKFold(5, shuffle=True, random_state=0), {}
    for tolerance in (1e-4, 1e-9):
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=tolerance, max_iter=100_000))
        other = cross_val_predict(fit, features, labels, groups=groups, cv=folds, method="predict_proba")
        distance[tolerance] = np.abs(scores - other[:, 1]).max()
    assert distance[1e-9] < 1e-6 < distance[1e-4]


def test_quantisation_tables_tell_the_quality(tmp_path):
    for quality in (50, 90):
        cv2.imwrite(
            str(tmp_path / f"{quality}.jpg"), random_images(1)[0], [cv2.IMWRITE_JPEG_QUALITY, quality]
        )
    tables = shortcuts.quantisation(tmp_path, ["50.jpg", "90.jpg"])
    assert tables.shape == (2, 64) and tables[0, 0] == 16 and tables[1, 0] == 3  # T.81, table K.1
    cv2.imwrite(str(tmp_path / "x.png"), random_images(1)[0])
    assert shortcuts.quantisation(tmp_path, ["50.jpg", "x.png"]) is None


def test_shift_needs_enough_groups_of_a_class_in_the_test_set():
    images = np.random.default_rng(0).integers(0, 255, (60, 32, 32)).astype(np.uint8)
    rows = table(60, label=[0, 1] * 30, official_split="train")
    rows["group_conservative"] = rows["group"]
    rows.loc[[0, 2, *range(1, 25, 2)], "official_split"] = "test"  # 2 of label 0, 12 of label 1
    shift = shortcuts.test_set_shift(rows, images)
    assert list(shift["label"]) == [1] and shift["low"][0] <= shift["auroc"][0] <= shift["high"][0]


# The command


def test_command_writes_a_page_and_exits_1_on_a_flag_when_strict(clean_audit, tmp_path, monkeypatch):
    findings, means = clean_audit
    page, file = tmp_path / "audit.html", tmp_path / "audit.json"
    monkeypatch.setattr(audit, "audit_data", lambda *_: (findings, means))
    done = CliRunner().invoke(main, ["audit", "x", "--html", str(page), "--json", str(file), "--strict"])
    assert done.exit_code == 0, done.output
    assert "Red flags\n---------\nNone." in done.output
    text = page.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/png;base64,') == 3 and "mean of PNEUMONIA" in text
    assert json.loads(file.read_text())["schema"] == "chestxray.audit/1"
    assert not [word for word in ("http://", "https://", "<script") if word in text]
    flagged = findings | {"flags": [{"name": "patients", "text": "some"}]}
    monkeypatch.setattr(audit, "audit_data", lambda *_: (flagged, means))
    for options, code in (([], 0), (["--strict"], 1)):
        assert CliRunner().invoke(main, ["audit", "x", *options]).exit_code == code


def test_too_few_patients_is_one_line(clean, tmp_path):
    for kind, count in (("NORMAL", 3), ("PNEUMONIA", 8)):
        (tmp_path / "few" / kind).mkdir(parents=True)
        for path in sorted(clean.glob(f"train/{kind}/*.jpeg"))[:count]:
            shutil.copy(path, tmp_path / "few" / kind)
    done = CliRunner().invoke(main, ["audit", str(tmp_path / "few")])
    assert done.exit_code == 2
    assert "each class must have at least 5 patient groups. Received: groups=" in done.output


def test_an_unknown_folder_is_one_line():
    done = CliRunner().invoke(main, ["audit", "/nowhere"])
    assert done.exit_code == 2 and done.output.count("\n") == 1


# The real images


@pytest.mark.slow
def test_numbers_on_the_real_images(real_data):
    findings, _ = audit_data(Path(real_data))
    rows = {row["sees"]: row for row in findings["shortcuts"]}
    known = {
        "mean and spread of grey": (0.70, 0.66),
        "border of 8 pixels": (0.92, 0.75),
        "28 × 28, centre blacked out": (0.97, 0.81),
        "8 × 8 thumbnail": (0.98, 0.88),
        "28 × 28 thumbnail": (0.99, 0.91),
    }
    for name, (train, test) in known.items():
        assert rows[name]["auroc"] == pytest.approx(train, abs=0.03)
        assert rows[name]["test_auroc"] == pytest.approx(test, abs=0.03)
    assert rows["high frequencies"]["auroc"] == pytest.approx(0.94, abs=0.03)
    assert findings["baseline"]["sees"] == "28 × 28, centre blacked out"
    assert len(findings["copies"]) == 34 and all(pair["exact"] for pair in findings["copies"])
    assert findings["leak_by_image"] == pytest.approx({"group": 0.38, "group_conservative": 0.59}, abs=0.02)
    assert describe(findings)[-1][0] == "Red flags"
