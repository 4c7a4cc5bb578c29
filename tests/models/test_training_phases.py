"""What learns in which phase, and what the phases leave behind."""

import dataclasses

import keras
import numpy as np
import pytest
import tiny
from tiny import STILL

from chestxray.data.augmentation import Augmentation
from chestxray.files import cache_dir
from chestxray.models import training as phases
from chestxray.models.builders import build_custom_cnn, build_student_cnn, build_transfer_model
from chestxray.models.settings import TrainSettings
from chestxray.models.training import (
    fine_tune,
    set_trainable_from,
    stages_from,
    summarise,
    train,
    train_head,
    train_whole,
    unfreeze_gradually,
)

SETTINGS = TrainSettings(epochs=1, learning_rate=0.01, batch_size=16)
STAGES = ("block3_conv1", "block4_conv1", "block5_conv1")
HEAD = {"dense1", "dense2", "dense3", "dense4", "logit"}


@pytest.fixture(scope="module")
def data64(tiny_folder):
    return tiny.load(tiny_folder, 64)


def network(seed=1):
    """The custom CNN with statistics that training would move, and a logit through which all learns."""
    keras.utils.set_random_seed(seed)
    model = build_custom_cnn(64)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([value + rng.uniform(0, 0.2, value.shape) for value in layer.get_weights()])
    model.get_layer("logit").set_weights([rng.normal(size=(32, 1)), np.zeros(1)])
    return model


def learners(model, first):
    """Convolutions and dense layers from the named one on."""
    names = [layer.name for layer in model.layers]
    return {
        layer.name
        for layer in model.layers[names.index(first) :]
        if isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
    }


# Two phases


@pytest.fixture(scope="module", params=["stored", pytest.param("fresh", marks=pytest.mark.slow)])
def two_phases(data64, request):
    """A network with batch normalisation through both phases: weights before, between and after."""
    settings = (
        SETTINGS
        if request.param == "stored"
        else dataclasses.replace(SETTINGS, augmentation=Augmentation(), views=0)
    )
    model = network()
    weights = [tiny.by_layer(model)]
    head = train_head(model, data64, settings)
    weights.append(tiny.by_layer(model))
    fine = fine_tune(model, data64, settings, "block4_conv1")
    return model, *weights, tiny.by_layer(model), head, fine


def test_head_phase_leaves_the_whole_backbone_bit_equal(two_phases):
    _, start, between, *_ = two_phases
    assert tiny.changed(start, between) == HEAD


def test_fine_tuning_changes_the_named_stage_and_never_batch_normalisation(two_phases):
    # That something changes here also shows that the new `trainable` took effect between the phases.
    model, _, between, after, *_ = two_phases
    assert tiny.changed(between, after) == learners(model, "block4_conv1")
    assert {"block4_conv2", "block5_conv3", *HEAD} < learners(model, "block4_conv1")
    assert len(after["block5_bn1"]) == 4  # gamma, beta, moving mean, moving variance


def test_the_fault_would_be_seen(data):
    # The same network without frozen batch normalisation: its statistics do move.
    model = tiny.network()
    before = tiny.by_layer(model)
    train(model, data, TrainSettings(epochs=1))
    assert "bn" in tiny.changed(before, tiny.by_layer(model))


def test_phases_are_named_and_counted(two_phases):
    *_, head, fine = two_phases
    assert list(head.history["phase"]) == ["head"]
    assert list(fine.history["phase"]) == ["from block4_conv1"]
    record = summarise([head, fine], "float32", "CPU")
    assert record["epochs"] == {"head": 1, "from block4_conv1": 1}
    assert record["history"]["epoch"] == [1, 1]
    assert (record["precision"], record["device"]) == ("float32", "CPU")


@pytest.mark.slow
def test_looking_ahead_changes_no_weight(data64, tmp_path, monkeypatch):
    ends = []
    settings = dataclasses.replace(SETTINGS, epochs=3, augmentation=Augmentation(), views=2)
    for ahead in (None, "block4_conv1"):
        monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path / str(ahead)))
        model = network()
        train_head(model, data64, settings, unfreeze_next=ahead)
        ends.append(tiny.state(model))
        assert {layer.name for layer in model.layers if layer.trainable_weights} == HEAD
        assert len(list(cache_dir("features").iterdir())) == (6 if ahead else 3)  # 2 views and validation
    assert tiny.same(*ends)


# Which layers


def test_trainable_from_a_layer():
    model = build_custom_cnn(64)
    for first in ("block2_conv2", "block5_conv1", "block3_conv1"):  # later, and back again
        set_trainable_from(model, first)
        start = [layer.name for layer in model.layers].index(first)
        for number, layer in enumerate(model.layers):
            expected = number >= start and not isinstance(layer, keras.layers.BatchNormalization)
            assert layer.trainable == expected, layer.name
        assert len(model.trainable_weights) == sum(
            len(layer.weights) for layer in model.layers if layer.trainable
        )


@pytest.mark.parametrize(
    ("wrong", "close"),
    [("block5conv1", "block5_conv1"), ("blok4_conv2", "block4_conv2"), ("logits", "logit")],
)
@pytest.mark.parametrize(
    "call",
    [
        lambda model, data, wrong: fine_tune(model, data, STILL, wrong),
        lambda model, data, wrong: train_head(model, data, STILL, unfreeze_next=wrong),
    ],
    ids=["fine_tune", "train_head"],
)
def test_wrong_layer_name_lists_close_ones(call, wrong, close, data):
    model = build_custom_cnn(64)
    with pytest.raises(ValueError, match=f"similar names: .*'{close}'.*Received: unfreeze_from='{wrong}'"):
        call(model, data, wrong)
    assert all(layer.trainable for layer in model.layers)


def test_name_like_nothing_lists_all():
    model = build_student_cnn(tiny.SIZE)
    with pytest.raises(ValueError, match="'conv1'.*'logit'.*unfreeze_from='§§'"):
        set_trainable_from(model, "§§")


@pytest.mark.parametrize(
    ("first", "expected"),
    [
        ("block3_conv1", ["block3_conv1", "block4_conv1", "block5_conv1"]),
        ("block3_conv2", ["block3_conv2", "block4_conv1", "block5_conv1"]),  # in the middle of a stage
        ("block1_conv1", ["block1_conv1", "block3_conv1", "block4_conv1", "block5_conv1"]),
        ("block5_conv1", ["block5_conv1"]),
        ("dense2", ["dense2"]),
    ],
)
def test_stages_from_a_layer_by_hand(first, expected):
    assert stages_from(build_custom_cnn(64), STAGES, first) == expected


# Stage after stage


@pytest.fixture(scope="module")
def gradual(data64, tmp_path_factory):
    """Three phases: weights at the start and after each, what they brought, and the checkpoints."""
    model, folder = network(), tmp_path_factory.mktemp("gradual")
    weights = [tiny.by_layer(model)]

    def spy(*args):
        found = fine_tune(*args)
        weights.append(tiny.by_layer(model))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(phases, "fine_tune", spy)
        trainings = unfreeze_gradually(model, data64, SETTINGS, STAGES, folder / "fine.npz")
    return model, weights, trainings, folder


def test_stages_are_unfrozen_from_the_last_to_the_first(gradual):
    model, weights, trainings, _ = gradual
    assert [list(training.history["phase"]) for training in trainings] == [
        ["from block5_conv1"],
        ["from block4_conv1"],
        ["from block3_conv1"],
    ]
    for number, stage in enumerate(reversed(STAGES)):
        assert tiny.changed(weights[number], weights[number + 1]) == learners(model, stage), stage
    assert "block3_conv1" in tiny.changed(weights[2], weights[3])


@pytest.mark.slow
def test_each_phase_has_its_own_checkpoint_and_a_second_call_goes_through_all(gradual, data64, capsys):
    _, weights, trainings, folder = gradual
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(files) == {"fine-block3_conv1.npz", "fine-block4_conv1.npz", "fine-block5_conv1.npz"}
    model = network()
    again = unfreeze_gradually(model, data64, SETTINGS, STAGES, folder / "fine.npz")
    printed = capsys.readouterr().out.splitlines()
    assert [line for line in printed if "stored activations" not in line] == [
        f"from {stage}: finished earlier, 1 epochs" for stage in reversed(STAGES)
    ]
    assert not tiny.changed(weights[-1], tiny.by_layer(model))
    assert all(one.history.equals(other.history) for one, other in zip(again, trainings, strict=True))
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files


@pytest.mark.slow
def test_broken_off_in_a_later_stage_the_same_call_goes_on(gradual, data64, tmp_path, monkeypatch, capsys):
    _, weights, trainings, _ = gradual
    model, started = network(), []

    def broken_off(*args):
        started.append(args[3])
        if len(started) == 2:
            raise KeyboardInterrupt
        return fine_tune(*args)

    with monkeypatch.context() as patch:
        patch.setattr(phases, "fine_tune", broken_off)
        with pytest.raises(KeyboardInterrupt):
            unfreeze_gradually(model, data64, SETTINGS, STAGES, tmp_path / "fine.npz")
    assert not tiny.changed(weights[0], tiny.by_layer(model))
    capsys.readouterr()
    again = unfreeze_gradually(model, data64, SETTINGS, STAGES, tmp_path / "fine.npz")
    assert f"from {STAGES[-1]}: finished earlier, 1 epochs" in capsys.readouterr().out
    assert not tiny.changed(weights[-1], tiny.by_layer(model))
    assert all(one.history.equals(other.history) for one, other in zip(again, trainings, strict=True))


def test_no_checkpoint_is_written_without_a_path(data64, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    unfreeze_gradually(network(), data64, SETTINGS, STAGES[2:])
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_gradual_with_smaller_rates_for_early_stages(data64):
    # Howard and Ruder combine both. While a stage is frozen, its factor has nothing to do.
    model = network()
    rates = dict(zip(STAGES, (0.125, 0.25, 0.5))) | {"pool": 1.0}
    settings = dataclasses.replace(SETTINGS, rates=rates)
    before = tiny.by_layer(model)
    assert len(unfreeze_gradually(model, data64, settings, STAGES)) == 3
    assert tiny.changed(before, tiny.by_layer(model)) == learners(model, STAGES[0])


# The whole network


def test_whole_network_learns_whatever_was_frozen(data, tmp_path, monkeypatch):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path))
    drawn, draw = [], Augmentation.draw

    def spy(self, paths, size, view, seed):
        drawn.append(view)
        return draw(self, paths, size, view, seed)

    monkeypatch.setattr(Augmentation, "draw", spy)
    model = tiny.network()
    set_trainable_from(model, "pool")
    before = tiny.by_layer(model)
    settings = TrainSettings(epochs=6, learning_rate=0.01, augmentation=Augmentation(), views=4)
    found = train_whole(model, data, settings)
    assert set(found.history["phase"]) == {"whole network"}
    after = tiny.by_layer(model)
    assert tiny.changed(before, after) == {"conv", "bn", "dense1", "logit"}
    assert len(after["bn"]) == 4  # gamma, beta, moving mean, moving variance
    assert not any(map(np.array_equal, before["bn"], after["bn"]))
    assert drawn == [0, 1, 2, 3, 0, 1]
    assert not list(cache_dir("features").iterdir())


# Real backbones


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "stage"),
    [
        ("ResNet50", 32, "conv5_block1_1_conv"),
        ("InceptionV3", 75, "mixed8"),
        ("VGG16", 32, "block5_conv1"),
        ("DenseNet121", 32, "conv5_block1_0_bn"),
    ],
)
def test_real_backbones_fine_tune_with_frozen_statistics(backbone, size, stage, tmp_path):
    data = tiny.load(tiny.draw(tmp_path), size)
    keras.utils.set_random_seed(0)
    model, _ = build_transfer_model(backbone, size, (8,), weights=None, precision="mixed_bfloat16")
    start = tiny.by_layer(model)
    settings = dataclasses.replace(SETTINGS, learning_rate=1e-3)
    train_head(model, data, settings, unfreeze_next=stage)
    between = tiny.by_layer(model)
    head = {"dense1", "logit"}
    assert tiny.changed(start, between) == head
    fine_tune(model, data, dataclasses.replace(settings, rates={stage: 0.5, "pool": 1.0}), stage)
    changed = tiny.changed(between, tiny.by_layer(model))
    assert changed - head
    assert {type(model.get_layer(name)) for name in changed - head} == {keras.layers.Conv2D}
    order = [layer.name for layer in model.layers]
    assert min(order.index(name) for name in changed) >= order.index(stage)


# Nested and Sequential models


def nested(sequential):
    """The tiny network cut in two: a backbone as one layer, and a head."""
    flat = tiny.network()
    backbone = keras.Model(flat.input, flat.get_layer("dropout0").output, name="backbone")
    head = [keras.layers.GlobalAveragePooling2D(name="pool"), keras.layers.Dense(1, name="logit")]
    inputs = keras.Input((tiny.SIZE, tiny.SIZE, 1))
    if sequential:
        return keras.Sequential([inputs, backbone, *head])
    return keras.Model(inputs, head[1](head[0](backbone(inputs))))


@pytest.mark.parametrize("sequential", [False, True])
def test_a_nested_backbone_is_trained_as_a_flat_one(data, sequential, tmp_path):
    model = nested(sequential)
    inner, start = model.get_layer("backbone"), tiny.by_layer(model.get_layer("backbone"))
    train_head(model, data, SETTINGS, tmp_path / "head.npz")
    assert not tiny.changed(start, tiny.by_layer(inner))
    fine_tune(model, data, SETTINGS, "backbone")
    assert tiny.changed(start, tiny.by_layer(inner)) == {"conv"}  # batch normalisation stays frozen
    train_whole(model, data, SETTINGS)
    assert {"conv", "bn"} <= tiny.changed(start, tiny.by_layer(inner))


def test_a_model_without_an_input_is_named(data):
    model = keras.Sequential([keras.layers.Flatten(), keras.layers.Dense(1)])
    with pytest.raises(ValueError, match="must be functional.*Received: model=Sequential"):
        train_whole(model, data, SETTINGS)
