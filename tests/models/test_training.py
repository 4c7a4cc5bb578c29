"""Weights of the classes, losses, what an epoch is, and what is kept of a training."""

import dataclasses
import json

import keras
import numpy as np
import pandas as pd
import pytest
import tiny
from sklearn.metrics import roc_auc_score
from tiny import STILL

from chestxray.data.augmentation import Augmentation
from chestxray.models import training
from chestxray.models.builders import build_student_cnn
from chestxray.models.settings import TrainSettings
from chestxray.models.training import Training, class_weights, compile_model, summarise, train

# Class weights


def test_class_weights_by_hand():
    weights = class_weights(np.array([0] * 27 + [1] * 73))
    assert weights == {0: pytest.approx(100 / 54), 1: pytest.approx(100 / 146)}
    assert 27 * weights[0] == pytest.approx(73 * weights[1])


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0], [0, 1, 2], []])
def test_class_weights_need_exactly_two_classes(labels):
    with pytest.raises(ValueError, match="all 2 classes.*Received: counts="):
        class_weights(np.array(labels))


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_by_hand(data, weighted):
    # Nothing moves, so loss and val_loss are means over the first state, also with a shorter last batch.
    model = build_student_cnn(tiny.SIZE, dropout=0.0)
    model.get_layer("logit").set_weights([np.linspace(-5, 5, 64).reshape(64, 1), np.array([1.5])])
    settings = dataclasses.replace(STILL, batch_size=16, class_weights=weighted)
    found = train(model, data, settings).history.iloc[0]
    expected = {}
    for subset in ("train", "val"):
        labels = data.subset(subset)["label"].to_numpy()
        assert len(labels) % 16
        logits = np.ravel(model(data.images(subset).astype(np.float32))).astype(np.float64)
        losses = np.logaddexp(0, logits) - labels * logits
        expected[subset] = (
            losses * np.where(labels, len(labels) / 2 / labels.sum(), len(labels) / 2 / (1 - labels).sum())
            if weighted and subset == "train"
            else losses
        )
    assert found["loss"] == pytest.approx(expected["train"].mean(), rel=1e-4)
    assert found["val_loss"] == pytest.approx(expected["val"].mean(), rel=1e-4)
    assert found["val_accuracy"] == pytest.approx(((logits > 0) == labels).mean(), abs=1e-6)


def test_metrics_cut_at_probability_one_half():
    # keras' default would cut the logit itself at 0.5, that is the probability at 0.62.
    model = build_student_cnn(tiny.SIZE)
    model.get_layer("logit").set_weights([np.zeros((64, 1)), np.array([0.3])])
    compile_model(model, "sgd")
    result = model.evaluate(
        np.zeros((4, tiny.SIZE, tiny.SIZE, 1)), np.array([1, 1, 1, 0]), verbose=0, return_dict=True
    )
    assert result["accuracy"] == 0.75
    assert result["auroc"] == pytest.approx(0.5, abs=1e-6)  # all scores equal


# Schedule


class Recorder(training.EpochLine):
    """Takes the place of the line an epoch and keeps the weights of every epoch."""

    seen: list

    def on_epoch_end(self, epoch, logs=None):
        super().on_epoch_end(epoch, logs)
        self.seen.append([value.copy() for value in self.model.get_weights()])


def backwards(data):
    """The same data with wrong labels in validation: learning makes val_loss worse."""
    table = data.table.copy()
    val = table["split"] == "val"
    table.loc[val, "label"] = 1 - table.loc[val, "label"]
    return dataclasses.replace(data, table=table)


def test_weights_of_the_best_epoch_are_kept(data, monkeypatch):
    Recorder.seen = []
    monkeypatch.setattr(training, "EpochLine", Recorder)
    model = tiny.network()
    history = train(
        model,
        backwards(data),
        TrainSettings(epochs=30, learning_rate=0.02, stop_patience=3, class_weights=False),
    ).history
    best = int(history["val_loss"].argmin())
    assert best == len(history) - 1 - 3  # stopped three epochs later, so the best is not the last
    assert tiny.same(model.get_weights(), Recorder.seen[best])
    assert not tiny.same(model.get_weights(), Recorder.seen[-1])


def test_patience_and_plateau_by_hand(data, capsys):
    # No step changes a weight, so epoch 1 stays the best. The rate falls after epochs 3 and 5 (two
    # without improvement each); training stops after five epochs without improvement.
    model = build_student_cnn(tiny.SIZE)
    history = train(
        model,
        data,
        dataclasses.replace(STILL, epochs=20, stop_patience=5, plateau_patience=2, plateau_factor=0.5),
    ).history
    assert history["val_loss"].nunique() == 1
    np.testing.assert_allclose(history["learning_rate"] / 1e-30, [1, 1, 1, 0.5, 0.5, 0.25], rtol=1e-5)
    assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [f"epoch  {n}/20 training" for n in range(1, 7)]


@pytest.mark.slow
def test_without_patience_the_last_weights_are_kept(data):
    # The loss rises from the first step: with patience the first epoch's weights come back.
    keras.utils.set_random_seed(0)
    start, ends = build_student_cnn(tiny.SIZE).get_weights(), {}
    for patience in (10, None):
        model = build_student_cnn(tiny.SIZE, dropout=0.0)
        model.set_weights(start)
        settings = TrainSettings(epochs=4, learning_rate=3.0, optimizer="sgd", stop_patience=patience)
        found = train(model, data, settings).history
        compile_model(model, "sgd")
        scored = model.evaluate(data.dataset("val"), verbose=0, return_dict=True)["loss"]
        ends[patience] = scored, found["val_loss"]
    assert len(ends[None][1]) == 4 and ends[None][1].iloc[-1] > ends[None][1].min()
    assert ends[None][0] == pytest.approx(ends[None][1].iloc[-1], rel=1e-4)
    assert ends[10][0] == pytest.approx(ends[10][1].min(), rel=1e-4)


def test_a_loss_that_is_not_a_number_stops_the_training(data, tmp_path):
    settings = TrainSettings(epochs=3, learning_rate=1e38, optimizer="sgd")
    state = tmp_path / "state.npz"
    with pytest.raises(ValueError, match="must be finite.*Received: phase='training', epoch=[12]$") as stop:
        train(build_student_cnn(tiny.SIZE), data, settings, state)
    kept = 0
    if state.exists():
        with np.load(state) as content:
            kept = len(json.loads(str(content["meta"]))["history"])
    assert kept == int(str(stop.value)[-1]) - 1  # that epoch, which one depends on the processor, is not kept


# Three classes


def test_targets_by_subtype(data):
    kinds = {"normal": 0, "bacteria": 1, "virus": 2}
    assert list(data.targets("test", 3)) == [kinds[name] for name in data.subset("test")["subtype"]]
    assert list(data.targets("test")) == list(data.subset("test")["label"])
    unknown = dataclasses.replace(data, table=data.table.assign(subtype=""))
    assert data.has_subtypes and not unknown.has_subtypes
    with pytest.raises(ValueError, match="every image must have a subtype.*Received: path="):
        unknown.targets("train", 3)


def test_accuracy_and_auroc_of_three_logits(data):
    model = build_student_cnn(tiny.SIZE, outputs=3)
    kernel, images = np.random.default_rng(0).normal(0, 30, (64, 3)), data.images("train").astype(np.float32)
    model.get_layer("logit").set_weights([kernel, np.zeros(3)])
    model.get_layer("logit").set_weights([kernel, -np.asarray(model(images)).mean(axis=0)])
    compile_model(model, "sgd")
    found = model.evaluate(data.dataset("train", outputs=3), verbose=0, return_dict=True)
    logits = np.asarray(model(images))
    assert np.ptp(logits) < 10  # the metric cuts the probability at 200 places
    assert found["accuracy"] == pytest.approx((logits.argmax(1) == data.targets("train", 3)).mean())
    odds = np.logaddexp(logits[:, 1], logits[:, 2]) - logits[:, 0]
    assert found["auroc"] == pytest.approx(roc_auc_score(data.targets("train"), odds), abs=0.02)
    assert abs(found["auroc"] - 0.5) > 0.05


def test_class_weights_of_three_classes_by_hand():
    assert class_weights(np.array([0, 0, 1, 2, 2, 2]), 3) == {0: 1.0, 1: 2.0, 2: pytest.approx(2 / 3)}


# Order and views


def test_every_epoch_has_its_own_views_and_order(data, monkeypatch):
    drawn = []
    draw = Augmentation.draw

    def spy(self, paths, size, view, seed):
        drawn.append(view)
        return draw(self, paths, size, view, seed)

    monkeypatch.setattr(Augmentation, "draw", spy)
    settings = dataclasses.replace(STILL, epochs=3, augmentation=Augmentation())
    train(build_student_cnn(tiny.SIZE), data, settings)
    assert drawn == [0, 1, 2]


def test_images_are_counted(data):
    found = train(build_student_cnn(tiny.SIZE), data, dataclasses.replace(STILL, epochs=2))
    assert found.images == 2 * len(data.subset("train"))
    assert len(found.history) == 2


# Record


def test_record_keeps_small_learning_rates():
    history = pd.DataFrame({"epoch": [1], "loss": [0.12345678], "learning_rate": [4e-8], "phase": ["head"]})
    record = summarise([Training(history, 2.0, 100)], "float32", "CPU")
    assert record["history"] == {
        "epoch": [1],
        "loss": [pytest.approx(0.123457)],
        "learning_rate": [pytest.approx(4e-8)],
        "phase": ["head"],
    }
    assert record["images_per_second"] == 50.0
