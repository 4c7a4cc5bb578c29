"""Mixup: the share of a mixture, and the training step against plain Keras."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from chestxray.data.augmentation import Augmentation
from chestxray.models import training
from chestxray.models.mixup import Mixup
from chestxray.models.settings import TrainSettings
from chestxray.models.students import Candidate, train_student
from chestxray.models.teachers import Distillation
from chestxray.models.training import compile_model, train

SETTINGS = TrainSettings(epochs=3, learning_rate=0.01, batch_size=16, augmentation=Augmentation(), mixup=0.4)


def linear(weight=0.03):
    """One logit, a straight line of the picture's mean."""
    inputs = keras.Input((2, 2, 1))
    x = keras.layers.GlobalAveragePooling2D()(inputs)
    model = keras.Model(inputs, keras.layers.Dense(1, dtype="float32")(x))
    model.set_weights([np.array([[weight]]), np.array([-1.0])])
    return model


def pictures(greys):
    return np.broadcast_to(np.array(greys, np.float32)[:, None, None, None], (len(greys), 2, 2, 1)).copy()


@pytest.mark.parametrize("alpha", [0.2, 1.0, 5.0])
def test_shares_are_those_of_a_beta_distribution(alpha):
    # Beta(α, α): mean 1/2, variance 1 / (4 (2α + 1)); with α = 1 uniform. Drawn from a seed: no chance.
    learner = Mixup(linear(), alpha, 3)
    shares = np.array(tf.map_fn(learner.share, tf.range(4000), fn_output_signature=tf.float32))
    assert shares.min() >= 0 and shares.max() <= 1
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.06)


def test_share_follows_from_seed_and_step():
    one, other = (Mixup(linear(), 0.4, seed) for seed in (0, 1))
    shares = [float(learner.share(step)) for learner, step in ((one, 0), (one, 0), (one, 1), (other, 0))]
    assert shares[0] == shares[1] and len(set(shares)) == 3


def test_a_step_by_hand():
    # Greys 0, 50, 100, labels 1, 0, 0, three quarters of each: mixtures 25, 50, 75, partners reversed.
    learner = Mixup(linear(0.04), 0.4, 0)
    learner.share = lambda step: tf.constant(0.75)
    compile_model(learner, keras.optimizers.SGD(1.0))
    found = learner.train_on_batch(
        pictures([0, 50, 100]), np.array([1.0, 0.0, 0.0]), class_weight={0: 2.0, 1: 5.0}, return_dict=True
    )
    logits = np.array([0.0, 1.0, 2.0])  # 0.04 · grey − 1
    positive, negative = np.log1p(np.exp(-logits)), np.log1p(np.exp(logits))
    losses = (
        0.75 * 5 * positive[0] + 0.25 * 2 * negative[0],
        2 * negative[1],
        0.75 * 2 * negative[2] + 0.25 * 5 * positive[2],
    )
    assert found["loss"] == pytest.approx(sum(losses) / 3, rel=1e-5)
    assert found["accuracy"] == pytest.approx(0.0)  # all three are on the wrong side, or on the line
    chance = 1 / (1 + np.exp(-logits))
    slopes = np.array(
        [
            0.75 * 5 * (chance[0] - 1) + 0.25 * 2 * chance[0],
            2 * chance[1],
            0.75 * 2 * chance[2] + 0.25 * 5 * (chance[2] - 1),
        ]
    )
    kernel, bias = learner.network.get_weights()
    assert bias[0] == pytest.approx(-1 - slopes.mean(), rel=1e-5)
    assert kernel[0, 0] == pytest.approx(0.04 - (slopes * [25, 50, 75]).mean(), rel=1e-5)


def test_nothing_is_mixed_when_scores_are_computed():
    x, y = pictures([10, 80, 30]), np.array([0.0, 1.0, 1.0])
    network = linear()
    learner = Mixup(network, 0.4, 0)
    for model in (network, learner):
        compile_model(model, "sgd")
    assert learner.evaluate(x, y, verbose=0) == pytest.approx(network.evaluate(x, y, verbose=0))
    np.testing.assert_array_equal(learner.predict(x, verbose=0), network.predict(x, verbose=0))


@pytest.mark.parametrize(
    ("frozen", "precision"), [(False, "float32"), (True, "float32"), (True, "mixed_bfloat16")]
)
def test_a_share_of_one_is_plain_training(data, monkeypatch, frozen, precision):
    monkeypatch.setattr(Mixup, "share", lambda self, step: tf.constant(1.0))
    states, losses = [], []
    for mixup in (0.0, 0.4):
        model = tiny.network(precision)
        if frozen:
            for name in ("conv", "bn"):
                model.get_layer(name).trainable = False
        found = train(model, data, dataclasses.replace(SETTINGS, mixup=mixup, views=2 * frozen))
        states.append(tiny.state(model))
        losses.append(found.history["val_loss"])
    np.testing.assert_allclose(*losses, rtol=1e-4)
    for one, other in zip(*states, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5)


def test_mixing_changes_what_is_learned_and_is_repeatable(data):
    states = []
    for mixup in (0.4, 0.4, 0.0):
        model = tiny.network()
        train(model, data, dataclasses.replace(SETTINGS, epochs=1, mixup=mixup))
        states.append(tiny.state(model))
    assert tiny.same(states[0], states[1]) and not tiny.same(states[0], states[2])


def test_an_interrupted_training_goes_on_with_the_same_mixtures(data, monkeypatch, tmp_path):
    undisturbed = tiny.network()
    train(undisturbed, data, SETTINGS)

    class Interrupter(training.EpochLine):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 2:
                raise KeyboardInterrupt

    model = tiny.network()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(training, "EpochLine", Interrupter)
        train(model, data, SETTINGS, tmp_path / "state.npz")
    train(model, data, SETTINGS, tmp_path / "state.npz")
    assert tiny.same(tiny.state(model), tiny.state(undisturbed))


def test_three_classes_and_students(data):
    model, found = train_student(
        "student_cnn", data, dataclasses.replace(SETTINGS, epochs=1), Candidate("mixed", 3, mixup=0.3), 0, {}
    )
    assert model.output_shape == (None, 3) and np.isfinite(found.history["loss"]).all()
    assert found.history["phase"].iloc[0] == "mixed outputs=3 mixup=0.3, seed 0"


def test_mixtures_have_no_teacher(data):
    with pytest.raises(ValueError, match="mixup must be 0 with a teacher.*Received: mixup=0.4"):
        train(tiny.network(), data, SETTINGS, distillation=Distillation(None, 0.3, 2.0))
