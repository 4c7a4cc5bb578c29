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

from chestxray.audit import audit, describe, duplicates, shortcuts
from chestxray.audit.duplicates import find_copies, perceptual_hashes
from chestxray.cli import main
from chestxray.data.catalog import scan
from chestxray.phantoms import write_phantoms


@pytest.fixture(scope="session")
def clean(tmp_path_factory):
    """Folder of 400 phantoms of 96 px in the Kaggle layout, with a published test set."""
    folder = tmp_path_factory.mktemp("clean")
    write_phantoms(folder, 400, 96, 0)
    return folder / "chest_xray"


@pytest.fixture
def faulty(clean, tmp_path):
    """Function that copies the clean folder, lets somebody spoil it, and returns the names of the flags."""

    def look(spoil) -> set[str]:
        shutil.copytree(clean, tmp_path / "chest_xray")
        shutil.copy(clean.parent / "README.txt", tmp_path)
        spoil(tmp_path / "chest_xray")
        return {flag["name"] for flag in audit(tmp_path / "chest_xray")[0]["flags"]}

    return look


def rewrite(path, change=lambda image: image, quality=90):
    image = change(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE))
    assert cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, quality])


# The whole audit


def test_a_clean_set_raises_no_flag(clean):
    found, means = audit(clean)
    assert found["flags"] == []
    assert found["images"] == 400 and found["data"] == "synthetic"
    assert found["copies"] == [] and not found["problems"]
    assert found["overlap"][0]["groups_crossing"] == 0
    assert [image.shape for image in means.values()] == [(224, 224)] * 2
    json.dumps(found, allow_nan=False)


def test_jpeg_quality_by_class_is_found(faulty):
    flags = faulty(lambda root: [rewrite(path, quality=60) for path in root.rglob("PNEUMONIA/*.jpeg")])
    assert "shortcut: JPEG quantisation tables" in flags
    assert "shortcut: bits per pixel of the files" in flags


def test_a_mark_in_the_corner_is_found(faulty):
    def mark(image):
        image[2:8, 2:8] = 255
        return image

    flags = faulty(lambda root: [rewrite(path, mark) for path in sorted(root.rglob("PNEUMONIA/*.jpeg"))[::2]])
    assert {"shortcut: border of 8 pixels", "shortcut: 28 × 28, centre blacked out"} <= flags


def test_a_copy_across_the_published_split_is_found(faulty):
    def copy(root):
        source = sorted(root.glob("train/NORMAL/*.jpeg"))[0]
        target = root / "test" / "NORMAL" / "IM-9999-0001.jpeg"
        shutil.copy(source, target)
        rewrite(target, quality=70)  # not byte for byte

    assert "copies across splits" in faulty(copy)


def test_a_film_under_both_labels_is_found(faulty):
    def copy(root):
        source = sorted(root.glob("train/NORMAL/*.jpeg"))[0]
        shutil.copy(source, root / "train" / "PNEUMONIA" / "person9999_virus_1.jpeg")

    assert "copies of two labels" in faulty(copy)


def test_a_patient_on_both_sides_is_found(faulty):
    def move(root):
        name = sorted(root.glob("test/PNEUMONIA/*.jpeg"))[0].name
        person, kind = name.split("_")[:2]
        other = sorted(root.glob("train/PNEUMONIA/*.jpeg"))[0]
        other.rename(other.with_name(f"{person}_{kind}_99999.jpeg"))

    assert faulty(move) == {"patients"}


def test_another_population_in_the_test_set_is_found(faulty):
    flags = faulty(
        lambda root: [
            rewrite(path, lambda image: np.clip(image * 0.6, 0, 255).astype(np.uint8))
            for path in root.glob("test/NORMAL/*.jpeg")
        ]
    )
    assert "test set: NORMAL" in flags and "test set: PNEUMONIA" not in flags


def test_a_folder_without_a_published_split_is_audited(plain_folder, tmp_path):
    found, _ = audit(plain_folder(tmp_path, 60), ("healthy", "sick"))
    assert found["overlap"] == found["shift"] == []
    assert all(row["test_auroc"] is None for row in found["shortcuts"])
    assert set(found["leak_by_image"].values()) == {0}  # every image its own patient, as far as is known


# What images of one patient would leak


def test_expected_leak_by_hand(clean):
    found, _ = audit(clean)
    for key in ("group", "group_conservative"):
        sizes = scan(clean).groupby(key)["path"].transform("size")
        assert found["leak_by_image"][key] == pytest.approx(np.mean(1 - 0.3 ** (sizes - 1)))
        assert 0.1 < found["leak_by_image"][key] < 1


# Copies


def pictures(count=6, size=96):
    generator = np.random.default_rng(0)
    coarse = generator.uniform(0, 255, (count, 12, 12)).astype(np.float32)
    return np.stack(
        [cv2.resize(one, (size, size), interpolation=cv2.INTER_CUBIC).clip(0, 255) for one in coarse]
    ).astype(np.uint8)


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
    images = pictures()
    images = np.concatenate([images, [change(images[2])]])
    pairs = find_copies(table(7, label=[0] * 6 + [1]), images)
    assert list(pairs[["first", "second"]].itertuples(index=False, name=None)) == [("2.png", "6.png")]
    assert not pairs["exact"][0] and not pairs["same_label"][0] and pairs["same_split"][0]
    assert pairs["distance"][0] <= 32 and pairs["correlation"][0] > 0.98


def test_blocks_find_the_same_pairs(monkeypatch):
    # Copies within a block, across two, and at their edges.
    images = np.concatenate([pictures(), pictures()[::-1], pictures()[:1]])
    whole = find_copies(table(13), images)
    assert len(whole) == 6 + 2  # each picture twice, the first three times
    monkeypatch.setattr(duplicates, "_BLOCK", 4)
    pd.testing.assert_frame_equal(find_copies(table(13), images), whole)


def test_hash_has_half_its_bits_set():
    bits = perceptual_hashes(pictures())
    assert bits.shape == (6, 256) and (bits.sum(axis=1) == 128).all()


def test_equal_files_are_exact_copies_also_when_flat():
    pairs = find_copies(
        table(3, sha256=["a", "b", "a"]),
        np.zeros((3, 64, 64), np.uint8) + np.array([10, 90, 10], np.uint8)[:, None, None],
    )
    assert list(pairs.loc[pairs["exact"], ["first", "second"]].iloc[0]) == ["0.png", "2.png"]


# What the linear models see


def test_border_and_blacked_out_centre_see_no_centre():
    images = pictures(2, 224)
    changed = images.copy()
    changed[:, 33:191, 33:191] = 0
    for look in (shortcuts.border, shortcuts.without_centre):
        np.testing.assert_array_equal(look(images), look(changed))
    changed[:, 0, 0] = 255
    assert not np.array_equal(shortcuts.border(images), shortcuts.border(changed))


def test_features_by_hand():
    images = np.zeros((1, 224, 224), np.uint8)
    images[0, :112] = 200
    np.testing.assert_allclose(shortcuts.intensity(images), [[100, 100]])
    histogram = shortcuts.histogram(images)
    assert histogram.shape == (1, 32) and histogram[0, 0] == histogram[0, 25] == 0.5
    assert shortcuts.thumbnail(images, 8)[0].tolist() == [[200.0] * 8] * 4 + [[0.0] * 8] * 4
    assert shortcuts.border(images).shape == (1, 108)


def test_high_frequencies_see_noise_and_no_smooth_shape():
    y, x = np.mgrid[:224, :224]
    smooth = (100 + 90 * np.sin(2 * np.pi * (3 * x + 2 * y) / 224))[None]
    noise = np.random.default_rng(0).normal(0, 5, (1, 224, 224))
    assert shortcuts.high_frequencies(smooth).max() < 1
    found = shortcuts.high_frequencies(smooth + noise)
    # Mean of log|F|² of white noise: log(N σ²) − Euler's constant
    np.testing.assert_allclose(found, np.log(224**2 * 25) - 0.5772, atol=0.3)
    assert found.shape == (1, 26)


def test_high_frequencies_of_a_film_turned_round_are_the_same():
    # Half a turn leaves every power as it is; what float32 makes of the mean grey is another matter (5e-6).
    noise = np.random.default_rng(0).integers(0, 255, (224, 224)).astype(np.uint8)
    film = cv2.GaussianBlur(noise, (0, 0), 4)[None]
    np.testing.assert_allclose(
        shortcuts.high_frequencies(film[:, ::-1, ::-1]), shortcuts.high_frequencies(film), rtol=0, atol=1e-9
    )


def test_models_are_scored_on_other_patients():
    # Every patient has a fingerprint and one label: within patients it tells everything, across nothing.
    generator = np.random.default_rng(0)
    groups = np.repeat(np.arange(100), 4)
    labels = generator.integers(0, 2, 100)[groups]
    features = generator.normal(size=(100, 60))[groups] + 0.01 * generator.normal(size=(400, 60))
    found = shortcuts.cross_validated(features, labels, groups)
    assert abs(roc_auc_score(labels, found) - 0.5) < 0.2


def test_the_linear_models_are_brought_to_their_minimum():
    # Neighbouring columns are nearly equal, as rings of a spectrum are; a fit that stops early ends
    # elsewhere, and on each processor somewhere else.
    generator = np.random.default_rng(0)
    features = np.cumsum(generator.normal(size=(400, 26)), axis=1)
    labels, groups = generator.integers(0, 2, 400), np.arange(400)
    found = shortcuts.cross_validated(features, labels, groups)
    folds, far = StratifiedGroupKFold(5, shuffle=True, random_state=0), {}
    for tolerance in (1e-4, 1e-9):
        fit = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, tol=tolerance, max_iter=100_000))
        other = cross_val_predict(fit, features, labels, groups=groups, cv=folds, method="predict_proba")
        far[tolerance] = np.abs(found - other[:, 1]).max()
    assert far[1e-9] < 1e-6 < far[1e-4]


def test_quantisation_tables_tell_the_quality(tmp_path):
    for quality in (50, 90):
        cv2.imwrite(str(tmp_path / f"{quality}.jpg"), pictures(1)[0], [cv2.IMWRITE_JPEG_QUALITY, quality])
    tables = shortcuts.quantisation(tmp_path, ["50.jpg", "90.jpg"])
    assert tables.shape == (2, 64) and tables[0, 0] == 16 and tables[1, 0] == 3  # T.81, table K.1
    cv2.imwrite(str(tmp_path / "x.png"), pictures(1)[0])
    assert shortcuts.quantisation(tmp_path, ["50.jpg", "x.png"]) is None


# The command


def test_command_writes_a_page_and_is_strict_when_asked(clean, tmp_path):
    page, findings = tmp_path / "audit.html", tmp_path / "audit.json"
    done = CliRunner().invoke(
        main, ["audit", str(clean), "--html", str(page), "--json", str(findings), "--strict"]
    )
    assert done.exit_code == 0, done.output
    assert "Red flags\n---------\nNone." in done.output
    text = page.read_text(encoding="utf-8")
    assert text.count('<img src="data:image/png;base64,') == 3 and "mean of PNEUMONIA" in text
    assert json.loads(findings.read_text())["schema"] == "chestxray.audit/1"
    assert not [word for word in ("http://", "https://", "<script") if word in text]


def test_command_exits_1_on_a_flag_when_strict(clean, tmp_path):
    folder = shutil.copytree(clean, tmp_path / "chest_xray")
    for path in folder.rglob("PNEUMONIA/*.jpeg"):
        rewrite(path, quality=60)
    for options, code in (([], 0), (["--strict"], 1)):
        assert CliRunner().invoke(main, ["audit", str(folder), *options]).exit_code == code


def test_too_few_patients_is_one_line(clean, tmp_path):
    for kind, count in (("NORMAL", 3), ("PNEUMONIA", 8)):
        (tmp_path / "few" / kind).mkdir(parents=True)
        for path in sorted(clean.glob(f"train/{kind}/*.jpeg"))[:count]:
            shutil.copy(path, tmp_path / "few" / kind)
    done = CliRunner().invoke(main, ["audit", str(tmp_path / "few")])
    assert done.exit_code == 2
    assert "at least 5 patient groups of each class are needed. Received: groups=" in done.output


def test_a_small_test_set_is_not_asked_for_its_population(clean, tmp_path):
    shutil.copytree(clean, tmp_path / "chest_xray")
    for path in sorted((tmp_path / "chest_xray" / "test" / "NORMAL").glob("*.jpeg"))[2:]:
        path.unlink()
    assert [row["label"] for row in audit(tmp_path / "chest_xray")[0]["shift"]] == [1]


def test_nonsense_is_one_line():
    done = CliRunner().invoke(main, ["audit", "/nowhere"])
    assert done.exit_code == 2 and done.output.count("\n") == 1


# The real images


@pytest.mark.slow
def test_numbers_on_the_real_images(real_data):
    found, _ = audit(Path(real_data))
    rows = {row["sees"]: row for row in found["shortcuts"]}
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
    assert found["baseline"]["sees"] == "28 × 28, centre blacked out"
    assert len(found["copies"]) == 34 and all(pair["exact"] for pair in found["copies"])
    assert found["leak_by_image"] == pytest.approx({"group": 0.38, "group_conservative": 0.59}, abs=0.02)
    assert describe(found)[-1][0] == "Red flags"
