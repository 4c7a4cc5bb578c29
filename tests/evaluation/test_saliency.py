"""Checks of maps, against maps whose worth is known."""

import numpy as np
import pytest

from chestxray.evaluation.saliency import (
    control_maps,
    energy_inside,
    faithfulness_table,
    mean_interval,
    occlusion,
    perturbation_curves,
    pixel_precision,
    pointing_game,
    similarity,
)

MASK = np.zeros((1, 4, 4), bool)
MASK[0, :2, :2] = True


def test_pointing_and_energy_by_hand():
    maps = np.zeros((3, 4, 4))
    maps[0, 0, 1], maps[0, 3, 3] = 3, 1  # three quarters and the peak inside
    maps[1, 3, 3], maps[1, 0, 0] = 2, 2 - 1e-9  # the peak outside, half inside
    masks = np.repeat(MASK, 3, axis=0)
    assert pointing_game(maps, masks).tolist() == [True, False, False]  # the empty map misses
    assert energy_inside(maps, masks) == pytest.approx([0.75, 0.5, np.nan], nan_ok=True)


def test_precision_of_pixels_by_hand():
    ranked = np.zeros((1, 4, 4))
    ranked[0, 0, 0], ranked[0, 3, 3], ranked[0, 0, 1] = 3, 2, 1  # inside, outside, inside, then 13 ties
    # Average precision: 1/4 · 1 + 1/4 · 2/3 + 2/4 · 4/16.
    assert pixel_precision(ranked, MASK) == pytest.approx([0.25 + 1 / 6 + 0.125])
    assert pixel_precision(np.ones((1, 4, 4)), MASK) == pytest.approx([0.25])  # knows nothing: the base rate
    assert np.isnan(pixel_precision(ranked, np.zeros_like(MASK))).all()


def test_similarity_is_of_ranks():
    one = np.random.default_rng(0).random((3, 8, 8))
    assert similarity(one, np.exp(5 * one)) == pytest.approx([1, 1, 1])
    assert similarity(one, -one) == pytest.approx([-1, -1, -1])
    assert np.isnan(similarity(one, np.zeros_like(one))).all()
    other = np.random.default_rng(1).random((3, 8, 8))
    assert np.abs(similarity(one, other)).max() < 0.5


@pytest.fixture(scope="module")
def pictures():
    """Noise; the model looks at a patch at rows 8–15, columns 16–23 and finds it bright."""
    images = np.random.default_rng(0).integers(80, 120, (6, 32, 32)).astype(np.uint8)
    images[:, 8:16, 16:24] = 250
    return images


def looks_at_the_patch(images):
    return np.clip((images[:, 8:16, 16:24].mean(axis=(1, 2)) - 100) / 150, 0, 1)


def test_occlusion_finds_what_the_model_looks_at(pictures):
    found = occlusion(looks_at_the_patch, pictures, window=8, step=8)
    assert found.shape == (6, 4, 4)
    assert (found.reshape(6, -1).argmax(axis=1) == 4 * 1 + 2).all()
    rest = np.delete(found.reshape(6, -1), 6, axis=1)
    assert np.abs(rest).max() < 1e-6 and found[:, 1, 2].min() > 0.9


@pytest.mark.parametrize("side", [29, 32, 35])
def test_occlusion_reaches_every_pixel(side):
    # A model that adds all pixels up loses something wherever a square is, whichever pixel is bright.
    for row, column in ((0, 0), (side - 1, side - 1), (0, side - 1), (side // 2, side - 2)):
        picture = np.zeros((1, side, side), np.uint8)
        picture[0, row, column] = 255
        found = occlusion(lambda images: images.reshape(len(images), -1).max(axis=1), picture, 8, 8)
        assert found.max() >= 250, (row, column)


def test_what_is_hidden_is_grey_and_what_is_gone_is_blurred():
    even = np.full((1, 24, 24), 100, np.uint8)
    assert np.abs(occlusion(lambda images: images.mean(axis=(1, 2)), even, 8, 8)).max() == 0
    # A bright pixel of 150 more, blurred by 24 / 12 = 2 pixels: 150 / (2 pi 2²) of it stays.
    even[0, 12, 12] = 250
    start = perturbation_curves(
        lambda images: images[:, 12, 12].astype(float), even, np.zeros((1, 24, 24)), insert=True
    )[0, 0]
    assert start == pytest.approx(100 + 150 / (8 * np.pi), abs=1)


def true_map(pictures):
    maps = np.zeros(pictures.shape)
    maps[:, 8:16, 16:24] = 1
    return maps


def test_curves_begin_and_end_where_they_must(pictures):
    blurred_away = perturbation_curves(looks_at_the_patch, pictures, true_map(pictures))
    brought_back = perturbation_curves(looks_at_the_patch, pictures, true_map(pictures), insert=True)
    np.testing.assert_allclose(blurred_away[:, 0], looks_at_the_patch(pictures))
    np.testing.assert_allclose(brought_back[:, -1], looks_at_the_patch(pictures))
    np.testing.assert_allclose(blurred_away[:, -1], brought_back[:, 0])
    # The patch is 64 of 1024 pixels, a portion of 16: all is gone, or back, after the first step.
    np.testing.assert_allclose(blurred_away[:, 1], blurred_away[:, -1])
    np.testing.assert_allclose(brought_back[:, 1], brought_back[:, -1])


def test_a_true_map_beats_the_controls_and_a_false_one_does_not(pictures):
    true = true_map(pictures)
    for name, one, better in (("true", true, True), ("false", np.flip(true, axis=(1, 2)), False)):
        maps = {name: one} | control_maps(pictures)
        curves = {
            game: {
                label: perturbation_curves(looks_at_the_patch, pictures, some, insert)
                for label, some in maps.items()
            }
            for game, insert in (("deletion", False), ("insertion", True))
        }
        table = faithfulness_table(curves, name, np.arange(6))
        assert list(zip(table["game"], table["control"], strict=True)) == [
            ("deletion", "centred Gaussian"),
            ("deletion", "random"),
            ("insertion", "centred Gaussian"),
            ("insertion", "random"),
        ]
        assert ((table["low"] > 0) == better).all() and ((table["gain"] > 0) == better).all()
        deletion = table.iloc[0]
        assert deletion["gain"] == pytest.approx(deletion["control_area"] - deletion["area"])


def test_controls_know_nothing_of_the_picture(pictures):
    made = control_maps(pictures)
    assert {name: one.shape for name, one in made.items()} == {
        "random": pictures.shape,
        "centred Gaussian": pictures.shape,
    }
    bell = made["centred Gaussian"][0]
    assert bell[15:17, 15:17].min() == bell.max() and bell[0, 0] == bell.min() >= 0
    assert similarity(made["random"][:3], made["random"][3:]) == pytest.approx([0, 0, 0], abs=0.6)


def test_interval_counts_patients_not_images():
    values = np.repeat(np.random.default_rng(0).normal(0, 1, 40), 5)
    images, patients = (
        np.diff(mean_interval(values, groups)) for groups in (np.arange(200), np.repeat(np.arange(40), 5))
    )
    assert patients / images == pytest.approx(np.sqrt(5), rel=0.15)
    assert mean_interval([1.0, np.nan, 1.0], [0, 1, 2]) == (1.0, 1.0)


def test_shapes_must_fit():
    with pytest.raises(ValueError, match=r"Received: \(1, 4, 4\), \(2, 4, 4\)"):
        energy_inside(np.zeros((1, 4, 4)), np.zeros((2, 4, 4), bool))
