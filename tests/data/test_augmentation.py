"""Views against NumPy: turned, shifted and mirrored arrays, grey values by hand."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from chestxray.data import augmentation
from chestxray.data.augmentation import Augmentation, affine_coefficients, view_layer

SIZE = 16
IMAGES = np.random.default_rng(0).integers(0, 256, (3, SIZE, SIZE, 1), dtype=np.uint8)
NOTHING = Augmentation(0, 0, 0, 0, 0, 0)
PATHS = [f"train/NORMAL/IM-{number:04d}-0001.jpeg" for number in range(200)]


@pytest.fixture(scope="module")
def layer():
    return view_layer()


def parameters(gain=1.0, contrast=1.0, size=SIZE, **change):
    """One view's parameters, for three images."""
    names = {"angle": 0.0, "shift_x": 0.0, "shift_y": 0.0, "shear": 0.0, "zoom": 1.0, "mirror": 1.0} | change
    values = {name: np.full(3, value) for name, value in names.items()}
    shift = np.stack([values.pop("shift_x"), values.pop("shift_y")], axis=1)
    transforms = affine_coefficients(size, shift=shift, **values)
    return np.column_stack([transforms, np.full(3, gain), np.full(3, contrast)]).astype(np.float32)


def shown(layer, images=IMAGES, **change):
    result = np.asarray(layer(images, parameters(**change)))
    assert result.shape == images.shape and result.dtype == np.float32
    return result[..., 0]


def test_no_change_is_the_identity_to_the_bit(layer):
    images = np.random.default_rng(1).integers(0, 256, (20, 17, 17, 1), dtype=np.uint8)  # no even means
    drawn = NOTHING.draw(PATHS[:20], 17, view=4, seed=2)
    assert np.array_equal(np.asarray(layer(images, drawn)), images.astype(np.float32))
    assert drawn.dtype == np.float32 and drawn.shape == (20, 10)


@pytest.mark.parametrize("quarters", [-1, 1, 2])
def test_positive_angles_turn_counter_clockwise(layer, quarters):
    expected = np.rot90(IMAGES[..., 0], quarters, axes=(1, 2))
    assert np.abs(shown(layer, angle=quarters * np.pi / 2) - expected).max() < 1e-2


def test_small_positive_angle_lifts_the_right_side(layer):
    bar = np.zeros((3, 65, 65, 1), np.uint8)
    bar[:, 32, :] = 255
    view = shown(layer, bar, angle=np.deg2rad(10), size=65)[0]
    # 25 columns from the centre the bar stands 25 · tan 10° = 4.4 rows higher, or lower on the left.
    rows = np.arange(65)
    assert (view[:, 57] @ rows) / view[:, 57].sum() == pytest.approx(32 - 4.41, abs=0.1)
    assert (view[:, 7] @ rows) / view[:, 7].sum() == pytest.approx(32 + 4.41, abs=0.1)


def test_positive_shifts_go_right_and_down_and_repeat_the_edge(layer):
    image = IMAGES[..., 0]
    right = np.concatenate([image[:, :, :1].repeat(3, axis=2), image[:, :, :-3]], axis=2)
    assert np.array_equal(shown(layer, shift_x=3.0), right)
    down = np.concatenate([image[:, :1].repeat(2, axis=1), image[:, :-2]], axis=1)
    assert np.array_equal(shown(layer, shift_y=2.0), down)


def test_half_a_pixel_is_the_mean_of_two(layer):
    image = IMAGES[..., 0].astype(float)
    means = (image[:, :, 1:] + image[:, :, :-1]) / 2
    assert np.abs(shown(layer, shift_x=-0.5)[:, :, :-1] - means).max() < 1e-3


def test_mirror_exchanges_left_and_right(layer):
    assert np.array_equal(shown(layer, mirror=-1.0), IMAGES[:, :, ::-1, 0])


def test_zoom_enlarges_about_the_centre(layer):
    # Output x shows input 7.5 + (x − 7.5) / 3, which is a whole pixel at x = 0, 3, 6, …
    assert np.abs(shown(layer, zoom=3.0)[:, ::3, ::3] - IMAGES[:, 5:11, 5:11, 0]).max() < 1e-2


def test_shear_slides_rows_by_their_height(layer):
    # At 45° the row y takes its pixels from y − 7.5 further right: rows keep their place and content.
    view, image = shown(layer, shear=np.pi / 4, shift_x=0.5), IMAGES[..., 0]
    for y in range(SIZE):
        slide = y - 8
        inside = np.arange(max(0, -slide), min(SIZE, SIZE - slide))
        assert np.abs(view[:, y, inside] - image[:, y, inside + slide]).max() < 1e-2, y


def test_changes_are_composed_in_the_stated_order(layer):
    # The image is mirrored, turned about its centre, and then shifted.
    turned = np.rot90(IMAGES[:, :, ::-1, 0], axes=(1, 2))
    view = shown(layer, mirror=-1.0, angle=np.pi / 2, shift_x=4.0)
    assert np.abs(view[:, :, 4:] - turned[:, :, :-4]).max() < 1e-2


def test_brightness_and_contrast_by_hand(layer):
    image = np.zeros((3, 2, 2, 1), np.float32) + np.array([[40, 80], [120, 160]], np.float32)[..., None]
    assert shown(layer, image, gain=1.5, size=2)[0].tolist() == [[60, 120], [180, 240]]
    # The mean is 100: half the distance from it, or twice.
    assert shown(layer, image, contrast=0.5, size=2)[0].tolist() == [[70, 90], [110, 130]]
    assert shown(layer, image, contrast=2.0, size=2)[0].tolist() == [[0, 60], [140, 220]]  # −20 is cut off
    assert shown(layer, image, gain=2.0, contrast=0.5, size=2)[0].tolist() == [[140, 180], [220, 255]]


def test_contrast_refers_to_each_image_alone(layer):
    flat = np.repeat(np.array([10, 100, 200], np.uint8), SIZE * SIZE).reshape(3, SIZE, SIZE, 1)
    assert np.abs(shown(layer, flat, contrast=1.9) - flat[..., 0]).max() < 1e-3


# Drawing


def test_a_view_depends_on_path_view_and_seed_alone():
    plan = Augmentation(flip=True)
    drawn = plan.draw(PATHS, SIZE, view=7, seed=3)
    order = np.random.default_rng(0).permutation(len(PATHS))
    assert np.array_equal(plan.draw([PATHS[i] for i in order], SIZE, 7, 3), drawn[order])
    assert np.array_equal(plan.draw(PATHS[50:51], SIZE, 7, 3), drawn[50:51])
    for other in (plan.draw(PATHS, SIZE, 8, 3), plan.draw(PATHS, SIZE, 7, 4), plan.draw(PATHS, SIZE, 3, 7)):
        assert (other[:, 9] != drawn[:, 9]).all()
    assert len(np.unique(drawn[:, 8])) == len(np.unique(drawn[:, 9])) == len(PATHS)


@pytest.mark.parametrize(
    ("limit", "edge", "read", "columns"),
    [
        # How to read the change off the coefficients, and which of them it may touch.
        ("rotation", 30.0, lambda p: np.rad2deg(np.arctan2(p[:, 3], p[:, 0])), {0, 1, 2, 3, 4, 5}),
        ("shift", 0.1, lambda p: -p[:, 2] / 100, {2, 5}),
        ("shift", 0.1, lambda p: -p[:, 5] / 100, {2, 5}),
        ("shear", 10.0, lambda p: np.rad2deg(np.arctan(p[:, 1])), {1, 2}),
        ("zoom", 0.2, lambda p: 1 / p[:, 0] - 1, {0, 2, 4, 5}),
        ("stretch", 0.3, lambda p: np.log(p[:, 0]), {0, 2, 4, 5}),
        ("stretch", 0.3, lambda p: np.log(p[:, 4]), {0, 2, 4, 5}),
        ("edges", 0.1, lambda p: p[:, 2] / 100, {0, 2, 4, 5}),  # where the left edge goes
        ("brightness", 0.3, lambda p: p[:, 8] - 1, {8}),
        ("contrast", 0.4, lambda p: p[:, 9] - 1, {9}),
    ],
    ids="rotation shift_x shift_y shear zoom width height edges brightness contrast".split(),
)
def test_draws_fill_their_limits_and_change_nothing_else(limit, edge, read, columns):
    plan = Augmentation(**(asdict(NOTHING) | {limit: edge}))
    drawn = plan.draw(PATHS, 100, view=0, seed=0).astype(float)
    values = read(drawn)
    assert np.abs(values).max() <= edge * 1.0001
    assert values.min() < -0.9 * edge and values.max() > 0.9 * edge
    assert abs(values.mean()) < 0.15 * edge
    still = NOTHING.draw(PATHS, 100, view=0, seed=0)
    assert {column for column in range(10) if (drawn[:, column] != still[:, column]).any()} == columns


def test_the_two_shifts_are_independent():
    drawn = Augmentation(**(asdict(NOTHING) | {"shift": 0.1})).draw(PATHS, 100, 0, 0)
    assert abs(np.corrcoef(drawn[:, 2], drawn[:, 5])[0, 1]) < 0.2


def test_flip_mirrors_every_second_view_and_is_off_by_default():
    assert not Augmentation().flip
    flips = Augmentation(**(asdict(NOTHING) | {"flip": True})).draw(PATHS, SIZE, 0, 0)[:, 0]
    assert set(flips) == {-1, 1} and 70 < (flips < 0).sum() < 130
    assert (NOTHING.draw(PATHS, SIZE, 0, 0)[:, 0] == 1).all()


# Another collimation, another workstation


def test_moved_edges_fill_the_view(layer):
    plan = Augmentation(**(asdict(NOTHING) | {"edges": 0.2}))
    drawn = plan.draw(PATHS[:1], 100, view=0, seed=0)
    x = np.tile(np.arange(100, dtype=np.float32), (100, 1))
    view = np.asarray(layer(x[None, :, :, None], drawn))[0, :, :, 0]
    # A ramp over the columns: its first and last column show the edges, where these move inwards.
    scale, start = drawn[0, 0], drawn[0, 2]
    assert start == pytest.approx(20 * _first_of(PATHS[0])[8] + (scale - 1) / 2, abs=1e-4)
    assert view[50] == pytest.approx(np.clip(start + scale * np.arange(100), 0, 99), abs=1e-2)


def _first_of(path):
    return augmentation._uniform(path, 0, 0)
