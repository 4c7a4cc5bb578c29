"""Models whose shortcut is known are found out by the change that removes it."""

import numpy as np
import pytest

from chestxray.evaluation.saliency import STRESSES, centre_box, stress_table

SIZE = 56


@pytest.fixture(scope="module")
def films():
    """Grey noise; label 1 has a bright centre and, apart from that, a bright corner."""
    generator = np.random.default_rng(0)
    labels = np.arange(80) % 2
    images = generator.normal(100, 10, (80, SIZE, SIZE))
    images[labels == 1, 24:32, 24:32] += 40
    images[labels == 1, :2, :2] += 80
    return np.clip(images, 0, 255).astype(np.uint8), labels


def found(score, films, **given):
    images, labels = films
    table = stress_table(score, images, labels, np.arange(80), 0.5, **given)
    return table.set_index("change")


def centre_reader(images):
    return np.clip((images[:, 24:32, 24:32].mean(axis=(1, 2)) - 100) / 40, 0, 1)


def corner_reader(images):
    return np.clip((images[:, :2, :2].mean(axis=(1, 2)) - 100) / 80, 0, 1)


def test_a_model_that_looks_at_the_lungs_is_lost_without_them(films):
    table = found(centre_reader, films)
    assert table.loc["none", "auroc"] == 1 and table.loc["none", "changed"] == 0
    assert table.loc["centre blacked out", "auroc"] == 0.5  # all answers are equal
    assert table.loc["border only", "auroc"] == 0.5
    assert table.loc["centre blacked out", "changed"] == 0.5  # each pneumonia is now called normal
    assert table.loc["mirrored", "auroc"] == 1


def test_a_model_that_looks_at_a_mark_keeps_its_score_without_lungs(films):
    table = found(corner_reader, films)
    assert table.loc["centre blacked out", "auroc"] == 1
    assert table.loc["border only", "auroc"] == 1
    assert table.loc["mirrored", "auroc"] < 0.7  # the mark is on the other side


def test_masks_are_blacked_out_and_nothing_else(films):
    images, _ = films
    masks = np.random.default_rng(1).random(images.shape) < 0.3
    seen = []
    found(lambda given: seen.append(given.copy()) or np.linspace(0, 1, len(given)), films, masks=masks)
    assert (seen[1][masks] == 0).all() and (seen[1][~masks] == images[~masks]).all()
    assert len(seen) == 2 + len(STRESSES)


def test_box_has_seven_tenths_of_the_side():
    box = centre_box(100)
    assert box.sum() == 70 * 70 and box[15, 15] and not box[14, 50]


def test_changes_by_hand():
    image = np.full((40, 40), 100, np.uint8)
    image[10, 30] = 250
    assert STRESSES["mirrored"](image)[10, 9] == 250
    assert STRESSES["shifted by 5 %"](image)[12, 32] == 250
    assert STRESSES["darker by 30 %"](image)[0, 0] == 70
    assert STRESSES["brighter by 30 %"](image)[[0, 10], [0, 30]].tolist() == [130, 255]
    assert STRESSES["blurred, sigma 2"](image)[10, 30] == pytest.approx(100 + 150 / (8 * np.pi), abs=1.5)
    kept = STRESSES["border only"](image)
    assert (kept[0] == 100).all() and (kept[1:-1, 1:-1] == 0).all()
    assert not np.array_equal(STRESSES["JPEG, quality 30"](image), image)
