"""Settings, weights of the classes, and what learns in which phase."""

import dataclasses

import keras
import numpy as np
import pandas as pd
import pytest
import tiny

from chestxray.data.augmentation import Augmentation
from chestxray.models import training
from chestxray.models.builders import build_custom_cnn, build_student_cnn
from chestxray.models.training import (
    Training,
    TrainSettings,
    class_weights,
    compile_model,
    fine_tune,
    set_trainable_from,
    summarise,
    train,
    train_head,
)

STILL = TrainSettings(epochs=1, learning_rate=1e-30, class_weights=False)  # steps too small for float32


def by_layer(model):
    return {layer.name: [value.copy() for value in layer.get_weights()] for layer in model.layers}


def unchanged(before, after, name):
    return tiny.same(before[name], after[name])


# Class weights

def test_class_weights_by_hand():
    weights = class_weights(np.array([0] * 27 + [1] * 73))
    assert weights == {0: pytest.approx(100 / 54), 1: pytest.approx(100 / 146)}
    assert 27 * weights[0] == pytest.approx(73 * weights[1])


@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0], [0, 1, 2], []])
def test_class_weights_need_exactly_two_classes(labels):
    with pytest.raises(ValueError, match="both classes.*Received: counts="):
        class_weights(np.array(labels))


@pytest.mark.parametrize("weighted", [False, True])
def test_losses_by_hand(data, weighted):
    # Nothing moves, so loss and val_loss are means over the first state, also with a shorter last batch.
    model = build_student_cnn(tiny.SIZE, dropout=0.0)
    model.get_layer("logit").set_weights([np.linspace(-5, 5, 64).reshape(64, 1), np.array([1.5])])
    settings = dataclasses.replace(STILL, batch_size=16, class_weights=weighted)
    found = train(model, data, settings).history.iloc[0]
    expected = {}
    for part in ("train", "val"):
        labels = data.part(part)["label"].to_numpy()
        assert len(labels) % 16
        logits = np.ravel(model(data.images(part).astype(np.float32))).astype(np.float64)
        losses = np.logaddexp(0, logits) - labels * logits
        expected[part] = losses * np.where(labels, len(labels) / 2 / labels.sum(),
                                           len(labels) / 2 / (1 - labels).sum()) \
            if weighted and part == "train" else losses
    assert found["loss"] == pytest.approx(expected["train"].mean(), rel=1e-4)
    assert found["val_loss"] == pytest.approx(expected["val"].mean(), rel=1e-4)
    assert found["val_accuracy"] == pytest.approx(((logits > 0) == labels).mean(), abs=1e-6)


# Settings

@pytest.mark.parametrize(("field", "value"), [("optimizer", "adamw"), ("epochs", 0), ("batch_size", 0),
                                              ("learning_rate", -1.0), ("plateau_factor", 1.0)])
def test_impossible_settings_are_refused_at_once(field, value):
    with pytest.raises(ValueError, match=f"{field} must.*Received: {field}={value!r}"):
        TrainSettings(**{field: value})


@pytest.mark.parametrize(("name", "kind", "momentum"), [
    ("sgd", keras.optimizers.SGD, 0.9), ("rmsprop", keras.optimizers.RMSprop, 0.0),
    ("adam", keras.optimizers.Adam, None)])
def test_optimizers(data, name, kind, momentum):
    model = tiny.network()
    before = by_layer(model)
    train(model, data, TrainSettings(epochs=1, learning_rate=0.01, optimizer=name))
    assert type(model.optimizer) is kind
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert getattr(model.optimizer, "momentum", None) == momentum
    assert not unchanged(before, by_layer(model), "conv")


def test_one_sgd_step_by_hand(data):
    # First step from a logit of zero: d loss / d bias = mean(0.5 - label); momentum starts at 0.
    model = build_student_cnn(tiny.SIZE, dropout=0.0)
    train(model, data, TrainSettings(epochs=1, learning_rate=0.1, optimizer="sgd", batch_size=1000,
                                     class_weights=False))
    labels = data.part("train")["label"]
    bias = model.get_layer("logit").get_weights()[1][0]
    assert bias == pytest.approx(-0.1 * (0.5 - labels.mean()), rel=1e-5)


def test_metrics_cut_at_probability_one_half():
    # keras' default would cut the logit itself at 0.5, that is the probability at 0.62.
    model = build_student_cnn(tiny.SIZE)
    model.get_layer("logit").set_weights([np.zeros((64, 1)), np.array([0.3])])
    compile_model(model, TrainSettings())
    result = model.evaluate(np.zeros((4, tiny.SIZE, tiny.SIZE, 1)), np.array([1, 1, 1, 0]), verbose=0,
                            return_dict=True)
    assert result["accuracy"] == 0.75
    assert result["auroc"] == pytest.approx(0.5, abs=1e-6)  # all scores equal


# What learns

@pytest.fixture(scope="module")
def two_phases(tmp_path_factory):
    """A network with batch normalisation through both phases: weights before, between and after."""
    data = tiny.load(tiny.draw(tmp_path_factory.mktemp("phases")), 64)
    keras.utils.set_random_seed(1)
    model = build_custom_cnn(64)
    rng = np.random.default_rng(0)
    for layer in model.layers:  # statistics that training would certainly move
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([value + rng.uniform(0, 0.2, value.shape) for value in layer.get_weights()])
    start = by_layer(model)
    settings = TrainSettings(epochs=1, learning_rate=0.01, batch_size=16)
    head = train_head(model, data, settings)
    between = by_layer(model)
    fine = fine_tune(model, data, settings, "block4_conv1")
    return model, start, between, by_layer(model), head, fine


def test_head_phase_leaves_the_whole_backbone_bit_equal(two_phases):
    model, start, between, *_ = two_phases
    head = {"dense1", "dense2", "dense3", "dense4", "logit"}
    for layer in model.layers:
        if layer.weights and layer.name not in head:
            assert unchanged(start, between, layer.name), layer.name
    assert not unchanged(start, between, "logit")


def test_fine_tuning_changes_the_named_stage_and_never_batch_normalisation(two_phases):
    model, _, between, after, *_ = two_phases
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            assert len(after[layer.name]) == 4  # gamma, beta, moving mean, moving variance
            assert unchanged(between, after, layer.name), layer.name
    # That something changes here also shows that the new `trainable` took effect between the phases.
    for name in ("block4_conv1", "block4_conv2", "block5_conv3", "dense1", "logit"):
        assert not unchanged(between, after, name), name
    for name in ("block1_conv1", "block2_conv2", "block3_conv2"):
        assert unchanged(between, after, name), name


def test_the_fault_would_be_seen(data):
    # The same network without frozen batch normalisation: its statistics do move.
    model = tiny.network()
    before = by_layer(model)
    train(model, data, TrainSettings(epochs=1))
    assert not unchanged(before, by_layer(model), "bn")


def test_phases_are_named_and_counted(two_phases):
    *_, head, fine = two_phases
    assert list(head.history["phase"]) == ["head"] and list(fine.history["phase"]) == ["fine-tuning"]
    record = summarise([head, fine], "float32", "CPU")
    assert record["epochs"] == {"head": 1, "fine-tuning": 1}
    assert record["history"]["epoch"] == [1, 1]
    assert (record["precision"], record["device"]) == ("float32", "CPU")


def test_record_keeps_small_learning_rates():
    history = pd.DataFrame({"epoch": [1], "loss": [0.12345678], "learning_rate": [4e-8], "phase": ["head"]})
    record = summarise([Training(history, 2.0, 100)], "float32", "CPU")
    assert record["history"] == {"epoch": [1], "loss": [pytest.approx(0.123457)],
                                 "learning_rate": [pytest.approx(4e-8)], "phase": ["head"]}
    assert record["images_per_second"] == 50.0


def test_trainable_from_a_layer():
    model = build_custom_cnn(64)
    for first in ("block2_conv2", "block5_conv1", "block3_conv1"):  # later, and back again
        set_trainable_from(model, first)
        start = [layer.name for layer in model.layers].index(first)
        for number, layer in enumerate(model.layers):
            expected = number >= start and not isinstance(layer, keras.layers.BatchNormalization)
            assert layer.trainable == expected, layer.name
        assert len(model.trainable_weights) == sum(
            len(layer.weights) for layer in model.layers if layer.trainable)


@pytest.mark.parametrize(("wrong", "close"), [
    ("block5conv1", "block5_conv1"), ("blok4_conv2", "block4_conv2"), ("logits", "logit")])
def test_wrong_layer_name_lists_close_ones(wrong, close, data):
    model = build_custom_cnn(64)
    with pytest.raises(ValueError, match=f"close names: .*'{close}'.*Received: unfreeze_from='{wrong}'"):
        fine_tune(model, data, STILL, wrong)
    assert all(layer.trainable for layer in model.layers)


def test_name_like_nothing_lists_all():
    model = build_student_cnn(tiny.SIZE)
    with pytest.raises(ValueError, match="'conv1'.*'logit'.*unfreeze_from='§§'"):
        set_trainable_from(model, "§§")


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
    history = train(model, backwards(data), TrainSettings(
        epochs=30, learning_rate=0.02, stop_patience=3, class_weights=False)).history
    best = int(history["val_loss"].argmin())
    assert best == len(history) - 1 - 3  # stopped three epochs later, so the best is not the last
    assert tiny.same(model.get_weights(), Recorder.seen[best])
    assert not tiny.same(model.get_weights(), Recorder.seen[-1])


def test_patience_and_plateau_by_hand(data, capsys):
    # No step changes a weight, so epoch 1 stays the best. The rate falls after epochs 3 and 5 (two
    # without improvement each); training stops after five epochs without improvement.
    model = build_student_cnn(tiny.SIZE)
    history = train(model, data, dataclasses.replace(
        STILL, epochs=20, stop_patience=5, plateau_patience=2, plateau_factor=0.5)).history
    assert history["val_loss"].nunique() == 1
    np.testing.assert_allclose(history["learning_rate"] / 1e-30, [1, 1, 1, 0.5, 0.5, 0.25], rtol=1e-5)
    assert list(history["epoch"]) == [1, 2, 3, 4, 5, 6]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed] == [f"epoch  {n}/20 training" for n in range(1, 7)]


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
    assert found.images == 2 * len(data.part("train"))
    assert len(found.history) == 2


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "size", "stage"), [
    ("ResNet50", 32, "conv5_block1_1_conv"), ("InceptionV3", 75, "mixed8"), ("VGG16", 32, "block5_conv1")])
def test_real_backbones_fine_tune_with_frozen_statistics(backbone, size, stage, tmp_path):
    from chestxray.models.builders import build_transfer_model
    data = tiny.load(tiny.draw(tmp_path), size)
    keras.utils.set_random_seed(0)
    model, _ = build_transfer_model(backbone, size, (8,), weights=None, precision="mixed_bfloat16")
    start = by_layer(model)
    settings = TrainSettings(epochs=1, learning_rate=1e-3, batch_size=16)
    train_head(model, data, settings)
    between = by_layer(model)
    head = {"dense1", "logit"}
    assert {name for name in start if not unchanged(start, between, name)} == head
    fine_tune(model, data, settings, stage)
    after = by_layer(model)
    changed = {name for name in start if not unchanged(between, after, name)}
    assert changed - head
    assert {type(model.get_layer(name)) for name in changed - head} == {keras.layers.Conv2D}
    order = [layer.name for layer in model.layers]
    assert min(order.index(name) for name in changed) >= order.index(stage)
