"""Ways of training a student: equal budgets, equal pixels, and what tells them apart."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from chestxray.data import dataset as pixels
from chestxray.data.augmentation import Augmentation
from chestxray.deployment.classifier import Classifier
from chestxray.models import students
from chestxray.models.builders import build_student_cnn
from chestxray.models.features import Features
from chestxray.models.settings import TrainSettings
from chestxray.models.students import Candidate, read_candidates, train_student
from chestxray.models.teachers import Distillation, Teacher
from chestxray.models.training import train

SETTINGS = TrainSettings(epochs=1, learning_rate=0.01, batch_size=16, augmentation=Augmentation())


@pytest.fixture
def teacher(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path / "cache"))
    model = build_student_cnn(tiny.SIZE)
    card = {
        "name": "teacher",
        "image": dataclasses.asdict(data.store.settings),
        "training_data": {"split_hash": data.split_hash},
    }
    return {1: Teacher([(Classifier(model, card, None), data)])}


def test_candidates_are_read_in_order():
    found = read_candidates(
        {
            "alone": [{}, {"learning_rate": 0.01}],
            "taught": [{"alpha": 0.3, "temperature": 2.0}, {"alpha": 0.3}],
        }
    )
    assert found == [
        Candidate("alone"),
        Candidate("alone", learning_rate=0.01),
        Candidate("taught", alpha=0.3, temperature=2.0),
        Candidate("taught", alpha=0.3),
    ]
    assert found[2].text == "taught alpha=0.3 temperature=2"


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"alone": [{}], "taught": [{}, {}]}, "equally many candidates. Received: candidates={'alone': 1"),
        ({}, "equally many"),
        ({"alone": []}, "equally many"),
        ({"alone": [{"rate": 1}]}, "Received: setting='rate'"),
        ({"alone": [{}, {}]}, "candidates must differ. Received: candidate='alone'"),
    ],
)
def test_unequal_budgets_and_unknown_settings_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        read_candidates(given)


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ({"outputs": 2}, "must be 1 or 3"),
        ({"alpha": 1.5}, r"must be in \[0, 1\]"),
        ({"alpha": 0.5, "temperature": 0.0}, "must be above 0"),
        ({"temperature": 2.0}, "must be 1 with alpha 1"),
        ({"label_smoothing": 0.1, "alpha": 0.5}, "must be 0 without one logit and alpha 1"),
        ({"label_smoothing": 0.1, "outputs": 3}, "must be 0 without one logit and alpha 1"),
        ({"learning_rate": 0.0}, "must be above 0"),
    ],
)
def test_settings_that_are_wrong_or_would_do_nothing_are_refused(setting, text):
    with pytest.raises(ValueError, match=f"{text}. Received: variant='x', "):
        Candidate("x", **setting)


@pytest.mark.slow
def test_variants_of_one_seed_begin_alike_and_end_apart(data, teacher):
    still = dataclasses.replace(SETTINGS, learning_rate=1e-30)
    ways = [Candidate("alone"), Candidate("smooth", label_smoothing=0.1), Candidate("taught", alpha=0.3)]
    begin = [train_student("student_cnn", data, still, way, 0, teacher)[0].get_weights() for way in ways]
    for other in begin[1:]:
        assert all(np.allclose(*pair, rtol=0, atol=1e-20) for pair in zip(begin[0], other, strict=True))
    end = [train_student("student_cnn", data, SETTINGS, way, 0, teacher)[0].get_weights() for way in ways]
    assert not tiny.same(end[0], end[1]) and not tiny.same(end[0], end[2])
    other_seed = train_student("student_cnn", data, still, ways[0], 1, teacher)[0].get_weights()
    assert not tiny.same(begin[0], other_seed)


@pytest.mark.slow
def test_all_variants_and_seeds_see_the_same_views_in_the_same_order(data, teacher, monkeypatch):
    drawn, draw, ordered, order = [], Augmentation.draw, [], pixels.pass_order

    def draw_spy(self, paths, size, view, seed):
        drawn.append((view, seed))
        return draw(self, paths, size, view, seed)

    def order_spy(count, shuffle, seed, epoch):
        if shuffle:
            ordered.append((seed, epoch))
        return order(count, shuffle, seed, epoch)

    settings = dataclasses.replace(SETTINGS, epochs=3, views=2)
    for view in range(2):
        teacher[1].logits("train", list(data.subset("train")["path"]), settings.augmentation, view)
    monkeypatch.setattr(Augmentation, "draw", draw_spy)
    monkeypatch.setattr(pixels, "pass_order", order_spy)
    for way, seed in ((Candidate("alone"), 0), (Candidate("taught", alpha=0.5), 0), (Candidate("alone"), 5)):
        train_student("student_cnn", data, settings, way, seed, teacher)
    assert drawn == 3 * [(0, 0), (1, 0), (0, 0)]
    assert ordered == 3 * [(0, 0), (0, 1), (0, 2)]


def test_no_data_set_comes_from_a_generator(data, teacher, monkeypatch):
    # It would slow down every step of the process: chestxray/data/passes.py.
    def refuse(*args, **options):
        raise AssertionError("from_generator")

    monkeypatch.setattr(tf.data.Dataset, "from_generator", refuse)
    model, trained = train_student("student_cnn", data, SETTINGS, Candidate("taught", alpha=0.3), 0, teacher)
    assert trained.images == len(data.subset("train"))
    features = Features(model, data, [model.layers[-2]], SETTINGS.augmentation, 1)
    features.prepare("train")
    assert sum(len(labels) for _, labels in features.dataset("train")) == trained.images


def test_learning_rate_of_a_candidate_counts(data, teacher, monkeypatch):
    seen = []
    train = students.train
    monkeypatch.setattr(
        students,
        "train",
        lambda model, data, settings, *args, **options: (
            seen.append(settings),
            train(model, data, settings, *args, **options),
        )[1],
    )
    for way in (Candidate("alone"), Candidate("alone", learning_rate=0.5, label_smoothing=0.2)):
        train_student("student_cnn", data, SETTINGS, way, 0, teacher)
    assert [(one.learning_rate, one.label_smoothing) for one in seen] == [(0.01, 0.0), (0.5, 0.2)]


def test_smoothed_labels_by_hand(data):
    # Every logit is b: −(y' log p + (1 − y') log(1 − p)) with y' = 0.9·y + 0.05.
    still = dataclasses.replace(SETTINGS, learning_rate=1e-30, class_weights=False)
    keras.utils.set_random_seed(0)
    model = build_student_cnn(tiny.SIZE)
    model.get_layer("logit").set_weights([np.zeros((64, 1)), np.array([0.7])])
    found = train(model, data, dataclasses.replace(still, label_smoothing=0.1)).history["loss"][0]
    soft = 0.9 * data.targets("train") + 0.05
    assert found == pytest.approx(np.mean(np.logaddexp(0, 0.7) - 0.7 * soft), rel=1e-5)


def test_labels_are_smoothed_only_where_that_does_something(data, teacher):
    smooth = dataclasses.replace(SETTINGS, label_smoothing=0.1)
    for outputs, distillation in ((3, None), (1, Distillation(teacher[1], 0.3, 2.0))):
        with pytest.raises(ValueError, match="teacher or three logits. Received: label_smoothing=0.1"):
            train(build_student_cnn(tiny.SIZE, outputs=outputs), data, smooth, distillation=distillation)


def test_an_unknown_architecture_is_named(data):
    with pytest.raises(ValueError, match="one of .*'student_cnn'.*Received: architecture='vgg'"):
        train_student("vgg", data, SETTINGS, Candidate("alone"), 0, {})


def test_a_missing_teacher_is_named(data, teacher):
    with pytest.raises(ValueError, match=r"must have one with 3 logits. Received: variant='kinds'.*\[1\]"):
        train_student("student_cnn", data, SETTINGS, Candidate("kinds", 3, 0.3), 0, teacher)
