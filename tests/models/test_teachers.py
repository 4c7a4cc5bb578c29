"""What a teacher says belongs to the image and the view, and is asked once."""

import dataclasses

import keras
import numpy as np
import pytest
import tiny

from chestxray.data.augmentation import Augmentation
from chestxray.deployment.classifier import Classifier
from chestxray.evaluation.calibration import log_odds
from chestxray.files import cache_dir
from chestxray.models import teachers
from chestxray.models.builders import build_student_cnn
from chestxray.models.distillation import Distiller
from chestxray.models.settings import TrainSettings
from chestxray.models.teachers import Distillation, Teacher
from chestxray.models.training import train

VIEWS = Augmentation()
SETTINGS = TrainSettings(
    epochs=3, learning_rate=0.05, batch_size=16, optimizer="sgd", augmentation=VIEWS, class_weights=False
)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, data):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path / "cache"))


def classifier(data, outputs=1, seed=1, split_hash=None):
    keras.utils.set_random_seed(seed)
    model = build_student_cnn(tiny.SIZE, outputs=outputs)
    kernel = np.random.default_rng(seed).normal(0, 1, (64, outputs))
    model.get_layer("logit").set_weights([kernel, np.zeros(outputs)])
    return Classifier(
        model,
        {
            "name": f"teacher{seed}",
            "image": dataclasses.asdict(data.store.settings),
            "training_data": {"split_hash": split_hash or data.split_hash},
        },
        None,
    )


def equalised(data, folder):
    """The same data through CLAHE."""
    settings = dataclasses.replace(data.store.settings, clahe=True)
    return dataclasses.replace(data, store=data.store.build(data.table, folder, settings))


def says(one, pixels):
    return np.asarray(one.model(np.asarray(pixels, np.float32)))


# Whose answer it is


def test_answers_follow_the_path_not_the_place(data):
    one = classifier(data)
    paths = list(data.subset("val")["path"])
    wanted = says(one, data.images("val"))
    for order in (range(len(paths)), reversed(range(len(paths))), [3, 0, 3]):
        order = list(order)
        found = Teacher([(one, data)]).logits("val", [paths[number] for number in order])
        np.testing.assert_allclose(found, wanted[order], atol=1e-5)


def test_answers_are_about_the_view_that_the_student_sees(data):
    one = classifier(data)
    asked, paths = Teacher([(one, data)]), list(data.subset("train")["path"])
    views = [asked.logits("train", paths, VIEWS, view) for view in range(3)]
    for view, found in enumerate(views):
        pixels = np.concatenate(
            [pixels for pixels, _ in data.dataset("train", augment=VIEWS, epoch=lambda view=view: view)]
        )
        np.testing.assert_allclose(found, says(one, pixels), atol=1e-5)
    assert np.abs(views[0] - views[1]).max() > 1e-3


def test_members_see_their_own_pixels(tiny_folder, data):
    # Teacher and student may have other sizes; the paths bring them together.
    large = tiny.load(tiny_folder, 48)
    keras.utils.set_random_seed(1)
    model = build_student_cnn(48)
    model.get_layer("logit").set_weights([np.linspace(-1, 1, 64).reshape(64, 1), np.zeros(1)])
    one = Classifier(
        model,
        {
            "name": "large",
            "image": dataclasses.asdict(large.store.settings),
            "training_data": {"split_hash": data.split_hash},
        },
        None,
    )
    found = Teacher([(one, large)]).logits("val", list(data.subset("val")["path"]))
    np.testing.assert_allclose(found, says(one, large.images("val")), atol=1e-5)


def test_ensemble_is_the_mean_logit(data):
    paths, members = list(data.subset("val")["path"]), [classifier(data, seed=seed) for seed in (1, 2, 3)]
    found = Teacher([(one, data) for one in members]).logits("val", paths)
    np.testing.assert_allclose(
        found, np.mean([says(one, data.images("val")) for one in members], axis=0), atol=1e-5
    )


def test_three_logits_become_the_odds_of_pneumonia_beside_one(data):
    paths, two, three = list(data.subset("val")["path"]), classifier(data), classifier(data, 3, seed=2)
    images = data.images("val")
    p = np.exp(says(three, images))
    wanted = (says(two, images)[:, 0] + np.log((p[:, 1] + p[:, 2]) / p[:, 0])) / 2
    asked = Teacher([(two, data), (three, data)])
    assert asked.outputs == 1
    np.testing.assert_allclose(asked.logits("val", paths)[:, 0], wanted, atol=1e-5)
    alone = Teacher([(three, data)])
    np.testing.assert_allclose(alone.logits("val", paths), says(three, images), atol=1e-5)
    taught = Distillation(alone).answers(data, "val", SETTINGS, 0, outputs=1)
    np.testing.assert_allclose(taught[:, 0], log_odds(says(three, images)), atol=1e-5)
    joined = Distillation(alone).join(data.dataset("val", SETTINGS.batch_size), data, "val", SETTINGS, 1)
    batches = [given["teacher_logit"].numpy() for given, _ in joined]
    np.testing.assert_allclose(np.concatenate(batches), taught, rtol=1e-6)


# Asked once


def test_a_second_teacher_reads_what_the_first_was_asked(data, monkeypatch, capsys):
    paths = list(data.subset("train")["path"])
    first = Teacher([(classifier(data), data)]).logits("train", paths, VIEWS, 1)
    assert capsys.readouterr().out == "computing teacher1 for 36 images (train, view 2)\n"
    monkeypatch.setattr(teachers, "frozen_graph", None)  # would fail
    np.testing.assert_array_equal(Teacher([(classifier(data), data)]).logits("train", paths, VIEWS, 1), first)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("other", ["weights", "view", "augmentation", "pixels", "part", "bf16"])
def test_nothing_else_is_served(data, tiny_folder, other):
    paths = list(data.subset("train")["path"])
    Teacher([(classifier(data), data)]).logits("train", paths, VIEWS, 0)
    elsewhere = equalised(data, tiny_folder) if other == "pixels" else data
    one = classifier(elsewhere, seed=2 if other == "weights" else 1)
    asked = Teacher([(one, elsewhere)], other == "bf16")
    subset = "val" if other == "part" else "train"
    asked.logits(
        subset,
        list(data.subset(subset)["path"]),
        Augmentation(zoom=0.2) if other == "augmentation" else VIEWS,
        1 if other == "view" else 0,
    )
    assert len(list(cache_dir("teachers").iterdir())) == 2


def test_damaged_answers_are_asked_again(data):
    paths = list(data.subset("val")["path"])
    first = Teacher([(classifier(data), data)]).logits("val", paths)
    (file,) = cache_dir("teachers").iterdir()
    file.write_bytes(file.read_bytes()[:-30])
    np.testing.assert_array_equal(Teacher([(classifier(data), data)]).logits("val", paths), first)
    np.testing.assert_array_equal(np.load(file)["logits"], first)


def test_broken_off_while_asking_leaves_nothing(data, monkeypatch):
    def interrupted(file, **arrays):
        file.write_bytes(b"PK half of it")
        raise KeyboardInterrupt

    monkeypatch.setattr(teachers.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Teacher([(classifier(data), data)]).logits("val", list(data.subset("val")["path"]))
    assert not list(cache_dir("teachers").iterdir())


# Teaching


@pytest.mark.slow
@pytest.mark.parametrize("views", [0, 2])
def test_stored_answers_teach_what_the_teacher_itself_would(data, views):
    one, ends, settings = classifier(data), [], dataclasses.replace(SETTINGS, views=views)
    taught, student = (build_student_cnn(tiny.SIZE, dropout=0.0) for _ in range(2))
    student.set_weights(taught.get_weights())
    found = train(taught, data, settings, distillation=Distillation(Teacher([(one, data)]), 0.4, 3.0)).history
    distiller = Distiller(student, one.model, 0.4, 3.0)
    distiller.compile(keras.optimizers.SGD(0.05, momentum=0.9))
    for epoch in range(3):
        order = {"shuffle": True, "epoch": lambda epoch=epoch: epoch}
        images = data.dataset("train", 16, augment=VIEWS, views=views, **order)
        ends.append(
            distiller.fit(
                images, epochs=1, validation_data=data.dataset("val", 16), shuffle=False, verbose=0
            ).history
        )
    for name in ("loss", "student_loss", "distillation_loss", "val_loss"):
        np.testing.assert_allclose(found[name], [end[name][0] for end in ends], rtol=1e-4)
    assert found["val_loss"].idxmin() == 2  # so that the best weights are the last
    for left, right in zip(taught.get_weights(), student.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, atol=1e-5)


def test_views_are_asked_about_in_turn(data, capsys):
    settings = dataclasses.replace(SETTINGS, epochs=5, views=2)
    train(
        build_student_cnn(tiny.SIZE),
        data,
        settings,
        distillation=Distillation(Teacher([(classifier(data), data)])),
    )
    asked = [
        line.split("(")[1] for line in capsys.readouterr().out.splitlines() if "computing teacher" in line
    ]
    assert asked == ["val)", "train, view 1)", "train, view 2)"]


def test_three_class_student_learns_the_subtype(data):
    # Nothing moves; the losses are those of the labels 0 normal, 1 bacteria, 2 virus, weighted alike.
    student, teacher = build_student_cnn(tiny.SIZE, outputs=3), Teacher([(classifier(data, 3), data)])
    student.get_layer("logit").set_weights([np.zeros((64, 3)), np.array([0.1, 0.5, -0.9])])
    still = dataclasses.replace(SETTINGS, epochs=1, learning_rate=1e-30, class_weights=True)
    found = train(student, data, still, distillation=Distillation(teacher)).history.iloc[0]
    p = np.exp([0.1, 0.5, -0.9]) / np.exp([0.1, 0.5, -0.9]).sum()
    assert found["student_loss"] == pytest.approx(-np.log(p).mean(), rel=1e-5)  # each class counts a third
    shares = [(data.subset("val")["subtype"] == name).mean() for name in ("normal", "bacteria", "virus")]
    assert found["val_student_loss"] == pytest.approx(-np.log(p) @ shares, rel=1e-5)
    assert found["val_accuracy"] == pytest.approx(shares[1])


@pytest.mark.slow
def test_another_teacher_is_another_training(data, tmp_path, capsys):
    for seed, alpha in ((1, 0.3), (1, 0.3), (2, 0.3), (1, 0.5)):
        keras.utils.set_random_seed(0)
        train(
            build_student_cnn(tiny.SIZE),
            data,
            dataclasses.replace(SETTINGS, epochs=1),
            tmp_path / "s.npz",
            distillation=Distillation(Teacher([(classifier(data, seed=seed), data)]), alpha),
        )
    printed = capsys.readouterr().out
    assert printed.count("finished earlier") == 1
    assert printed.count("other settings was found") == 2


# Mistakes


def test_a_teacher_of_another_split_is_refused(data):
    with pytest.raises(ValueError, match="trained on the same split.*teacher1.*0000"):
        Teacher([(classifier(data, split_hash="0000"), data)])


def test_a_teacher_of_other_pixels_or_an_exported_one_is_refused(data, tiny_folder):
    one = classifier(data)
    with pytest.raises(ValueError, match="image settings.*teacher='teacher1', data=.*clahe=True"):
        Teacher([(one, equalised(data, tiny_folder))])
    with pytest.raises(TypeError, match="not an exported one. Received: teacher='teacher1'"):
        Teacher([(dataclasses.replace(one, model=object()), data)])


def test_no_member(data):
    with pytest.raises(ValueError, match="at least one classifier"):
        Teacher([])


def test_views_of_another_seed_are_refused(data):
    with pytest.raises(ValueError, match="same split and seed"):
        train(
            build_student_cnn(tiny.SIZE),
            dataclasses.replace(data, train_seed=1),
            SETTINGS,
            distillation=Distillation(Teacher([(classifier(data), data)])),
        )


def test_unknown_image(data):
    with pytest.raises(ValueError, match="in the teacher's data. Received: path='x.png'"):
        Teacher([(classifier(data), data)]).logits("val", ["x.png"])


def test_three_classes_need_a_teacher_of_three(data):
    with pytest.raises(ValueError, match=r"must have three classes. Received: teacher=\['teacher1'\]"):
        train(
            build_student_cnn(tiny.SIZE, outputs=3),
            data,
            SETTINGS,
            distillation=Distillation(Teacher([(classifier(data), data)])),
        )
