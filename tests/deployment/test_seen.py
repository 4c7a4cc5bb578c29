"""Images of the training data are recognised, others are not."""

import csv
import shutil

import cv2
import numpy as np
import pytest
from click.testing import CliRunner

from chestxray import load_classifier
from chestxray.cli import main
from chestxray.deployment.seen import SEEN_FILE, SeenImages, seen_text
from chestxray.phantoms import render_phantom


def images(number, size=224):
    """Phantoms of patients 0, 1, …: the given image of each."""
    return np.stack([render_phantom("normal", size, patient, number)[0] for patient in range(12)])[..., None]


@pytest.fixture(scope="module")
def seen():
    return SeenImages.of({"train": images(0)[:8], "val": images(0)[8:]})


def encoded_again(image, side, quality):
    large = cv2.resize(image, (side, side), interpolation=cv2.INTER_CUBIC)
    large = cv2.imdecode(cv2.imencode(".jpg", large, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], 0)
    return cv2.resize(large, (224, 224), interpolation=cv2.INTER_AREA)[..., None]


@pytest.mark.parametrize(("side", "quality"), [(224, 95), (224, 40), (700, 80), (150, 90)])
def test_a_copy_is_recognised_with_its_subset(seen, side, quality):
    copies = np.stack([encoded_again(image[..., 0], side, quality) for image in images(0)])
    assert seen.subsets_of(copies) == ["train"] * 8 + ["val"] * 4


def test_another_image_of_the_same_patient_is_not(seen):
    assert seen.subsets_of(images(1)) == [""] * 12


def test_nothing_is_unpickled_and_damage_is_named(seen, tmp_path):
    assert SeenImages.load(tmp_path) is None
    seen.save(tmp_path)
    assert np.array_equal(SeenImages.load(tmp_path).hashes, seen.hashes)
    for content in (b"", b"damaged"):
        (tmp_path / SEEN_FILE).write_bytes(content)
        with pytest.raises(ValueError, match="seen.npz is damaged .*Received: path="):
            SeenImages.load(tmp_path)
    for subsets in (np.full(12, 7, np.uint8), np.zeros(12), np.zeros(11, np.uint8)):
        np.savez(tmp_path / SEEN_FILE, hashes=seen.hashes, subsets=subsets)
        with pytest.raises(ValueError, match="seen.npz is damaged"):
            SeenImages.load(tmp_path)
    np.savez(tmp_path / SEEN_FILE, hashes=np.array([{}], object), subsets=np.zeros(1, np.uint8))
    with pytest.raises(ValueError, match="seen.npz is damaged"):
        SeenImages.load(tmp_path)


def test_predict_and_evaluate_say_what_was_seen(bundle, data, tiny_folder, tmp_path):
    paths = [f"{path}" for path in data.subset("train")["path"]]
    for number, path in enumerate(paths):  # renamed
        shutil.copy(tiny_folder / path, tmp_path / f"{number:02d}.png")
    labels = tmp_path / "labels.csv"
    rows = [(f"{number:02d}.png", label) for number, label in enumerate(data.subset("train")["label"])]
    with open(labels, "w", newline="") as file:
        csv.writer(file).writerows([("path", "label"), *rows])
    out, page = tmp_path / "out.csv", tmp_path / "page.html"
    words = ["predict", bundle[0], *sorted(tmp_path.glob("*.png")), "--output", out, "--report", page]
    result = CliRunner().invoke(main, [*map(str, words), "--accept-all"])
    said = f"{len(paths)} of these {len(paths)} images were used to make the model"
    assert result.exit_code == 0, result.output
    assert said in result.output and said in page.read_text()
    words = ["evaluate", out, "--model", bundle[0], "--labels", labels]
    assert said in " ".join(CliRunner().invoke(main, list(map(str, words))).output.split())


def test_without_the_file_nothing_is_recognised(bundle, tmp_path):
    shutil.copytree(bundle[0], tmp_path / "model")
    (tmp_path / "model" / SEEN_FILE).unlink()
    assert load_classifier(tmp_path / "model").seen is None
    assert seen_text(0, 0, 9) == ""
