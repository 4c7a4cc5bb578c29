"""Out-of-distribution check: images of the trained kind are accepted, others refused with a reason."""

import cv2
import numpy as np
import pytest

from chestxray.deployment.outliers import ACCEPTED, OutlierCheck, fit_outlier_check, is_colour
from chestxray.phantoms import render_phantom

SIDE = 64
KINDS = ("normal", "bacteria", "virus")


def features_of(images):
    """What a small network would pool: means of filtered and rectified images, (N, 8)."""
    filters = np.random.default_rng(0).normal(0, 1, (8, 5, 5)).astype(np.float32)
    return np.stack(
        [
            [
                np.maximum(cv2.filter2D(image.astype(np.float32) / 255, -1, kernel), 0).mean()
                for kernel in filters
            ]
            for image in images
        ]
    )


@pytest.fixture(scope="module")
def images():
    return np.stack([render_phantom(KINDS[number % 3], SIDE, number)[0] for number in range(160)])


@pytest.fixture(scope="module")
def check(images):
    return fit_outlier_check(
        images[:80], features_of(images[:80]), images[80:120], features_of(images[80:120])
    )


def reasons_of(check, images):
    images = np.ascontiguousarray(images, dtype=np.uint8)
    return check.reasons(images, check.distances(features_of(images)))


def test_other_images_are_accepted(check, images):
    assert sum(map(bool, reasons_of(check, images[120:]))) <= 4


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda images: 255 - images, "looks inverted"),
        (lambda images: np.rot90(images, 2, (1, 2)), "looks upside down"),
        (lambda images: np.rot90(images, 1, (1, 2)), "counterclockwise"),
        (lambda images: np.rot90(images, 3, (1, 2)), "90° clockwise"),
        (lambda images: np.full_like(images, 77), "shows nothing"),
        (lambda images: np.random.default_rng(0).integers(0, 256, images.shape), "frontal chest image"),
    ],
)
def test_spoilt_images_are_refused_with_the_reason(check, images, change, reason):
    reasons = reasons_of(check, change(images[120:]))
    assert sum(map(bool, reasons)) >= 38
    assert sum(reason in text for text in reasons) >= 26


def leg(seed):
    """Two bones in soft tissue on a dark background."""
    generator = np.random.default_rng(seed)
    image = np.zeros((SIDE, SIDE), np.float32)
    middle, width = generator.uniform(28, 36), generator.uniform(12, 18)
    image[:, int(middle - width) : int(middle + width)] = 90
    for offset, thick in ((-5, 6), (7, 3)):
        place = middle + offset
        cv2.line(image, (int(place), 0), (int(place + generator.uniform(-3, 3)), SIDE), 200, thick)
    return cv2.GaussianBlur(image, (0, 0), 1.5) + generator.normal(0, 3, image.shape)


def photo(seed):
    """Coloured discs."""
    generator = np.random.default_rng(seed)
    image = np.full((SIDE, SIDE, 3), generator.integers(0, 255, 3), np.uint8)
    for _ in range(12):
        cv2.circle(
            image,
            generator.integers(0, SIDE, 2).tolist(),
            int(generator.integers(3, 18)),
            generator.integers(0, 255, 3).tolist(),
            -1,
        )
    return image


def test_another_part_of_the_body_is_refused(check):
    assert all(reasons_of(check, np.clip([leg(seed) for seed in range(40)], 0, 255)))


def test_photographs_are_refused_in_grey_and_in_colour(check):
    photos = [photo(seed) for seed in range(40)]
    grey = reasons_of(check, [cv2.cvtColor(image, cv2.COLOR_BGR2GRAY) for image in photos])
    assert sum(map(bool, grey)) >= 38
    assert all(is_colour(cv2.imencode(".jpg", image)[1].tobytes()) for image in photos)


def test_grey_in_three_channels_is_no_colour(images):
    assert not is_colour(cv2.imencode(".jpg", np.dstack([images[0]] * 3))[1].tobytes())
    assert not is_colour(b"no image")


def test_distance_is_mahalanobis():
    """Features with standard deviations 1 and 2, uncorrelated: distance of (1, 4) is sqrt(1 + 4)."""
    generator = np.random.default_rng(0)
    features = generator.normal(0, [1, 2], (20_000, 2))
    images = generator.integers(0, 256, (20, SIDE, SIDE)).astype(np.uint8)
    fitted = fit_outlier_check(images, features, images, features)
    assert fitted.distances(np.array([[1.0, 4.0]])) == pytest.approx([np.sqrt(5)], rel=0.03)
    assert np.mean(fitted.distances(features) > fitted.most_distance) == pytest.approx(1 - ACCEPTED, abs=1e-4)


def test_only_the_learned_distance_sees_a_change_that_keeps_the_place_of_things(check, images):
    noisy = np.clip(images[120:] + np.random.default_rng(0).normal(0, 40, images[120:].shape), 0, 255)
    reasons = reasons_of(check, noisy)
    assert sum("unlike the training images" in text for text in reasons) >= 26


def test_saved_and_loaded_says_the_same(check, images, tmp_path):
    check.save(tmp_path / "refusal.npz")
    loaded = OutlierCheck.load(tmp_path / "refusal.npz")
    mixed = np.concatenate([images[120:130], 255 - images[120:130], np.rot90(images[120:130], 2, (1, 2))])
    before, after = reasons_of(check, mixed), reasons_of(loaded, mixed)
    assert [text.split("(")[0] for text in after] == [text.split("(")[0] for text in before]


def test_a_damaged_file_is_one_line(tmp_path):
    (tmp_path / "refusal.npz").write_bytes(b"PK nothing")
    with pytest.raises(ValueError, match="damaged .*Received: path="):
        OutlierCheck.load(tmp_path / "refusal.npz")


def test_features_that_are_dead_or_depend_on_each_other():
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (30, SIDE, SIDE)).astype(np.uint8)
    feature = generator.normal(0, 1e-4, (30, 1))
    for features in (np.zeros((30, 5)), np.hstack([feature, feature, 1e6 * feature, np.zeros((30, 3))])):
        fitted = fit_outlier_check(images, features.astype(np.float32), images, features.astype(np.float32))
        assert np.isfinite(fitted.distances(features)).all() and np.isfinite(fitted.most_distance)
        assert fitted.distances(features[:1] + 1e9) > fitted.most_distance
