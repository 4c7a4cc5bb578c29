"""A training that is interrupted anywhere ends as if it had not been."""

import copy
import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
import tiny

from chestxray.data.augmentation import Augmentation
from chestxray.models import checkpoint, training
from chestxray.models.builders import build_student_cnn
from chestxray.models.settings import TrainSettings
from chestxray.models.training import train

SETTINGS = TrainSettings(
    epochs=5,
    learning_rate=0.01,
    batch_size=16,
    plateau_patience=1,
    plateau_factor=0.5,
    augmentation=Augmentation(),
)
COSINE = dataclasses.replace(SETTINGS, decay="cosine", warmup_epochs=1.5, rates={"dense1": 0.5})


class Interrupter(training.EpochLine):
    """Takes the place of the line an epoch; strikes in a given epoch and step."""

    at: tuple[int, int] | None = None

    def strike(self):
        raise KeyboardInterrupt

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_end(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            type(self).at = None
            self.strike()


@pytest.fixture
def interrupt(monkeypatch):
    monkeypatch.setattr(training, "EpochLine", Interrupter)
    monkeypatch.setattr(Interrupter, "at", None)

    def at(epoch, step):
        Interrupter.at = (epoch, step)

    return at


@pytest.fixture(scope="module")
def undisturbed(data):
    """History and final state of the training that nobody interrupts, by precision and decay."""
    memory = {}

    def get(precision="float32", settings=SETTINGS):
        key = precision, settings.decay
        if key not in memory:
            model = tiny.network(precision)
            memory[key] = train(model, data, settings).history, tiny.state(model)
        return memory[key]

    return get


def same_histories(first, second):
    pd.testing.assert_frame_equal(first, second, check_exact=True)


# What the state is made of


def test_dropout_seeds_and_learning_rate_are_variables(data):
    # If a Keras version moved them elsewhere, the checkpoint would have to follow.
    model = tiny.network()
    train(model, data, dataclasses.replace(SETTINGS, epochs=1))
    names = [variable.path for variable in model.variables]
    assert len([name for name in names if "seed_generator_state" in name]) == 2
    seeds = [variable for variable in model.variables if "seed" in variable.path]
    before = [seed.numpy() for seed in seeds]
    model(np.zeros((1, tiny.SIZE, tiny.SIZE, 1)), training=True)
    assert not tiny.same(before, [seed.numpy() for seed in seeds])
    assert any(variable.path.endswith("learning_rate") for variable in model.optimizer.variables)
    assert [v.path for v in model.optimizer.variables if "momentum" in v.path]


def test_training_is_repeatable(data, undisturbed):
    # Without this nothing below could hold.
    model = tiny.network()
    same_histories(train(model, data, SETTINGS).history, undisturbed()[0])
    assert tiny.same(tiny.state(model), undisturbed()[1])


# Interruption and continuation


@pytest.mark.parametrize(
    ("precision", "where"),
    [
        ("float32", (2, 1)),
        pytest.param("float32", (4, 2), marks=pytest.mark.slow),
        pytest.param("mixed_bfloat16", (2, 1), marks=pytest.mark.slow),
    ],
)
def test_interrupted_training_ends_with_the_same_weights(
    data, undisturbed, interrupt, tmp_path, capsys, precision, where
):
    path = tmp_path / "state.npz"
    history, final = undisturbed(precision)
    interrupt(*where)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.network(precision), data, SETTINGS, path)
    assert path.is_file()
    capsys.readouterr()
    model = tiny.network(precision)  # as a new process builds it
    found = train(model, data, SETTINGS, path)
    same_histories(found.history, history)
    assert tiny.same(tiny.state(model), final)
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"training: continued after epoch {where[0]}"
    assert len(printed) == 1 + 5 - where[0]
    assert found.images == 5 * len(data.subset("train"))


@pytest.mark.slow
@pytest.mark.parametrize("where", [(0, 1), (2, 1)])
def test_the_same_call_on_the_same_model_goes_on(data, undisturbed, interrupt, tmp_path, where):
    # Ctrl-C in a notebook, and the cell is run again: the model in memory is in the middle of an epoch.
    model = tiny.network()
    interrupt(*where)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, SETTINGS, tmp_path / "state.npz")
    same_histories(train(model, data, SETTINGS, tmp_path / "state.npz").history, undisturbed()[0])
    assert tiny.same(tiny.state(model), undisturbed()[1])


@pytest.mark.slow
def test_a_full_disk_or_an_interrupted_reading_loses_nothing(
    data, undisturbed, interrupt, monkeypatch, tmp_path
):
    model, restore = tiny.network(), checkpoint.Checkpoint.restore

    def full(self):
        raise OSError(28, "No space left on device")

    def broken_off(self, learner):
        restore(self, learner)
        raise KeyboardInterrupt

    interrupt(2, 1)
    monkeypatch.setattr(Interrupter, "strike", full)
    with pytest.raises(OSError, match="No space left"):
        train(model, data, SETTINGS, tmp_path / "state.npz")
    monkeypatch.setattr(checkpoint.Checkpoint, "restore", broken_off)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, SETTINGS, tmp_path / "state.npz")
    monkeypatch.setattr(checkpoint.Checkpoint, "restore", restore)
    same_histories(train(model, data, SETTINGS, tmp_path / "state.npz").history, undisturbed()[0])
    assert tiny.same(tiny.state(model), undisturbed()[1])


def head_only():
    model = tiny.network()
    for layer in model.layers:
        layer.trainable = layer.name in ("dense1", "logit")
    return model


@pytest.mark.slow
@pytest.mark.parametrize("again", ["new", "same"])
def test_training_from_stored_activations_goes_on(data, interrupt, tmp_path, again):
    settings = dataclasses.replace(SETTINGS, views=2)
    whole, model = head_only(), head_only()
    history = train(whole, data, settings).history
    interrupt(2, 1)
    with pytest.raises(KeyboardInterrupt):
        train(model, data, settings, tmp_path / "state.npz")
    model = model if again == "same" else head_only()
    assert tiny.same(tiny.state(model), tiny.state(head_only()))
    same_histories(train(model, data, settings, tmp_path / "state.npz").history, history)
    assert tiny.same(tiny.state(model), tiny.state(whole))


def broken_off(data, settings, path):
    """Train until the interruption, then on with a new model; that model and its history."""
    with pytest.raises(KeyboardInterrupt):
        train(tiny.network(), data, settings, path)
    model = tiny.network()
    return model, train(model, data, settings, path).history


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["seed", "velocity"])
def test_a_forgotten_part_of_the_state_would_be_seen(
    data, undisturbed, interrupt, tmp_path, monkeypatch, forgotten
):
    variables = checkpoint._variables
    monkeypatch.setattr(
        checkpoint,
        "_variables",
        lambda model: [variable for variable in variables(model) if forgotten not in variable.path],
    )
    interrupt(3, 1)
    model, found = broken_off(data, SETTINGS, tmp_path / "state.npz")
    assert not (tiny.same(tiny.state(model), undisturbed()[1]) and found.equals(undisturbed()[0]))


KILLED = """
import os, signal, sys
import tiny
from test_checkpoint import SETTINGS, Interrupter
from chestxray.models import training

class Killer(Interrupter):
    at = (2, 1)
    def strike(self):
        os.kill(os.getpid(), signal.SIGKILL)

training.EpochLine = Killer
training.train(tiny.network(), tiny.load(sys.argv[1]), SETTINGS, sys.argv[2])
"""


@pytest.mark.slow
def test_process_killed_and_then_interrupted(data, tiny_folder, undisturbed, interrupt, tmp_path, capsys):
    here = Path(__file__).parent
    paths = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(tiny_folder), str(tmp_path / "state.npz")],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    interrupt(3, 0)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.network(), data, SETTINGS, tmp_path / "state.npz")
    model = tiny.network()
    capsys.readouterr()
    found = train(model, data, SETTINGS, tmp_path / "state.npz")
    assert capsys.readouterr().out.startswith("training: continued after epoch 3\n")
    same_histories(found.history, undisturbed()[0])
    assert tiny.same(tiny.state(model), undisturbed()[1])


# Early stopping and learning-rate schedule

PATIENT = dataclasses.replace(
    tiny.STILL, epochs=12, batch_size=16, stop_patience=3, plateau_patience=2, plateau_factor=0.5
)
RATES = [1, 1, 1, 0.5]  # the rate falls after two epochs without improvement; the third ends the training


@pytest.mark.slow
@pytest.mark.parametrize("where", [(2, 1), (3, 1)])
def test_patience_survives(data, interrupt, tmp_path, where):
    keras.utils.set_random_seed(0)
    interrupt(*where)
    with pytest.raises(KeyboardInterrupt):
        train(build_student_cnn(tiny.SIZE), data, PATIENT, tmp_path / "state.npz")
    keras.utils.set_random_seed(0)
    history = train(build_student_cnn(tiny.SIZE), data, PATIENT, tmp_path / "state.npz").history
    np.testing.assert_allclose(history["learning_rate"] / 1e-30, RATES, rtol=1e-5)


def test_interruption_after_the_last_epoch_of_an_early_stop_adds_no_epoch(
    data, tmp_path, monkeypatch, capsys
):
    # The state of epoch 4 is on disk, and patience has run out, but the end was never noted.
    def strike(self, logs=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.Checkpoint, "on_train_end", strike)
        keras.utils.set_random_seed(0)
        with pytest.raises(KeyboardInterrupt):
            train(build_student_cnn(tiny.SIZE), data, PATIENT, tmp_path / "state.npz")
    keras.utils.set_random_seed(0)
    capsys.readouterr()
    found = train(build_student_cnn(tiny.SIZE), data, PATIENT, tmp_path / "state.npz")
    assert len(found.history) == 4
    assert capsys.readouterr().out == "training: continued after epoch 4\n"


def test_best_weights_from_before_the_interruption_are_restored(data, interrupt, tmp_path):
    # With wrong labels in validation the first epochs are the best; the interruption comes later.
    table = data.table.copy()
    val = table["split"] == "val"
    table.loc[val, "label"] = 1 - table.loc[val, "label"]
    wrong = dataclasses.replace(data, table=table)
    settings = dataclasses.replace(
        SETTINGS, epochs=20, learning_rate=0.03, stop_patience=3, class_weights=False, augmentation=None
    )
    whole = tiny.network()
    history = train(whole, wrong, settings).history
    best = int(history["val_loss"].argmin())
    assert best == len(history) - 4
    interrupt(best + 2, 1)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.network(), wrong, settings, tmp_path / "state.npz")
    model = tiny.network()
    same_histories(train(model, wrong, settings, tmp_path / "state.npz").history, history)
    assert tiny.same(tiny.state(model), tiny.state(whole))


@pytest.mark.slow
@pytest.mark.parametrize("forgotten", ["nothing", "iteration"])
def test_cosine_survives(data, undisturbed, interrupt, tmp_path, monkeypatch, forgotten):
    # The learning rate is no variable here: it follows from the number of steps.
    history, final = undisturbed(settings=COSINE)
    variables = checkpoint._variables
    monkeypatch.setattr(
        checkpoint,
        "_variables",
        lambda model: [variable for variable in variables(model) if forgotten not in variable.path],
    )
    interrupt(3, 1)
    model, found = broken_off(data, COSINE, tmp_path / "state.npz")
    assert found["learning_rate"].equals(history["learning_rate"]) == (forgotten == "nothing")
    assert (found.equals(history) and tiny.same(tiny.state(model), final)) == (forgotten == "nothing")


# What is taken up again, and what is not


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    path = tmp_path_factory.mktemp("finished") / "state.npz"
    settings = dataclasses.replace(SETTINGS, epochs=2)
    model = tiny.network()
    history = train(model, data, settings, path).history
    return path.read_bytes(), settings, history, tiny.state(model)


@pytest.fixture
def stored(finished, tmp_path):
    path = tmp_path / "state.npz"
    path.write_bytes(finished[0])
    return path


def test_finished_training_is_not_run_again(data, finished, stored, monkeypatch, capsys):
    _, settings, history, final = finished
    monkeypatch.setattr(keras.Model, "fit", None)
    model = tiny.network()
    found = train(model, data, settings, stored)
    same_histories(found.history, history)
    assert tiny.same(tiny.state(model), final)
    assert found.images == 2 * len(data.subset("train"))
    assert capsys.readouterr().out == "training: finished earlier, 2 epochs\n"


def other_dropout():
    model = tiny.network()
    config = model.get_config()
    for layer in config["layers"]:
        if layer["class_name"] == "Dropout":
            layer["config"]["rate"] = 0.1
    changed = keras.Model.from_config(config)
    for variable, value in zip(changed.variables, model.variables, strict=True):
        variable.assign(value)
    return changed


def frozen():
    model = tiny.network()
    model.get_layer("conv").trainable = False
    return model


@pytest.mark.parametrize(
    "change",
    [
        {"learning_rate": 0.011},
        {"batch_size": 8},
        {"epochs": 3},
        {"optimizer": "sgd"},
        {"class_weights": False},
        {"augmentation": None},
        {"augmentation": Augmentation(rotation=8.0)},
        {"stop_patience": 9},
        {"decay": "cosine"},
        {"rates": {"dense1": 0.5}},
        {"views": 5},
    ],
)
def test_other_settings_are_not_continued(data, finished, stored, change, monkeypatch, capsys):
    settings = dataclasses.replace(finished[1], **change)
    assert not taken_up(tiny.network(), data, settings, stored, monkeypatch)
    assert "other settings" in capsys.readouterr().out


@pytest.mark.parametrize(
    "build",
    [lambda: tiny.network(seed=1), lambda: tiny.network("mixed_bfloat16"), other_dropout, frozen],
    ids=["weights", "precision", "dropout", "trainable"],
)
def test_other_models_are_not_continued(data, finished, stored, build, monkeypatch):
    assert not taken_up(build(), data, finished[1], stored, monkeypatch)


def test_other_data_is_not_continued(data, finished, stored, monkeypatch):
    split = data.table.copy()
    split.loc[split.index[0], "split"] = "test" if split["split"].iloc[0] != "test" else "train"
    pixels = data.table.copy()
    pixels.loc[pixels.index[0], "sha256"] = pixels["sha256"].iloc[1]  # same name, another picture
    decoded_otherwise = copy.copy(data.store)
    decoded_otherwise.key = "of another version of OpenCV"
    for other in (
        dataclasses.replace(data, table=split),
        dataclasses.replace(data, table=pixels),
        dataclasses.replace(data, train_seed=1),
        dataclasses.replace(data, store=decoded_otherwise),
    ):
        assert not taken_up(tiny.network(), other, finished[1], stored, monkeypatch)


@pytest.mark.parametrize("package", [keras, tf])
def test_another_version_of_a_package_is_not_continued(data, finished, stored, monkeypatch, package):
    monkeypatch.setattr(package, "__version__", "0.1")
    assert not taken_up(tiny.network(), data, finished[1], stored, monkeypatch)


def test_another_phase_is_not_continued(data, finished, stored, monkeypatch):
    assert not taken_up(tiny.network(), data, finished[1], stored, monkeypatch, phase="head")


def test_the_same_model_under_other_automatic_names_is_continued(data, finished, stored, monkeypatch):
    # InceptionV3 numbers its layers anew in every instance; the re-run of a cell must not lose its training.
    model = tiny.network()
    names = [layer.name for layer in model.layers]
    assert names != [layer.name for layer in tiny.network().layers]  # re_lu, re_lu_1, …
    assert taken_up(model, data, finished[1], stored, monkeypatch)


def taken_up(model, data, settings, path, monkeypatch, **phase):
    """Whether a finished training is recognised; otherwise it would call fit."""

    class Started(Exception):
        pass

    def fit(*args, **kwargs):
        raise Started

    monkeypatch.setattr(keras.Model, "fit", fit)
    try:
        train(model, data, settings, path, **phase)
    except Started:
        return False
    return True


# On disk


@pytest.mark.parametrize("size", [0, 2000, -30])
def test_a_cut_checkpoint_is_named_and_not_used(data, finished, stored, monkeypatch, capsys, size):
    stored.write_bytes(finished[0][:size])
    assert not taken_up(tiny.network(), data, finished[1], stored, monkeypatch)
    assert capsys.readouterr().out.startswith(f"{stored} is damaged and not used")


def test_a_write_that_breaks_off_leaves_the_former_state(data, undisturbed, tmp_path, monkeypatch, capsys):
    path = tmp_path / "state.npz"
    savez = np.savez
    calls = []

    def broken(file, **arrays):
        calls.append(file)
        if len(calls) == 3:
            target = file if hasattr(file, "write") else open(file, "wb")
            target.write(b"PK\x03\x04 half of it")
            target.flush()
            raise KeyboardInterrupt
        savez(file, **arrays)

    monkeypatch.setattr(np, "savez", broken)
    with pytest.raises(KeyboardInterrupt):
        train(tiny.network(), data, SETTINGS, path)
    assert [file.name for file in tmp_path.iterdir()] == ["state.npz"]
    model = tiny.network()
    capsys.readouterr()
    found = train(model, data, SETTINGS, path)
    assert capsys.readouterr().out.startswith("training: continued after epoch 2\n")
    same_histories(found.history, undisturbed()[0])
    assert tiny.same(tiny.state(model), undisturbed()[1])


def test_state_is_written_under_the_name_that_was_given(data, tmp_path):
    path = tmp_path / "deep" / "state"  # numpy would add .npz
    train(tiny.network(), data, dataclasses.replace(SETTINGS, epochs=1), path)
    assert [file.name for file in path.parent.iterdir()] == ["state"]


def test_nothing_is_written_without_a_path(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train(tiny.network(), data, dataclasses.replace(SETTINGS, epochs=1))
    assert not list(tmp_path.iterdir())


def test_state_holds_no_pickles(finished, stored):
    with np.load(stored, allow_pickle=False) as arrays:
        assert {arrays[name].dtype.hasobject for name in arrays} == {False}
