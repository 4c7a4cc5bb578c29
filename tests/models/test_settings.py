"""Settings, optimizers, and how the learning rate moves: by step, by epoch, by layer."""

import dataclasses

import keras
import numpy as np
import pytest
import tiny
from tiny import STILL

from chestxray.data.augmentation import Augmentation
from chestxray.models.builders import build_student_cnn
from chestxray.models.features import find_cut
from chestxray.models.settings import OPTIMIZERS, TrainSettings, make_optimizer
from chestxray.models.training import train

# Settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("optimizer", "adamw"),
        ("decay", "linear"),
        ("epochs", 0),
        ("batch_size", 0),
        ("learning_rate", -1.0),
        ("plateau_factor", 1.0),
        ("views", -1),
        ("disk_gb", -0.1),
        ("epochs", 2.5),
        ("stop_patience", -1),
        ("plateau_patience", -1),
    ],
)
def test_impossible_settings_are_refused_at_once(field, value):
    with pytest.raises(ValueError, match=f"{field} must.*Received: {field}={value!r}"):
        TrainSettings(**{field: value})


@pytest.mark.parametrize("rates", [{"conv": 0.0}, {"conv": 1.0, "logit": -0.5}, {"conv": float("nan")}])
def test_rates_are_above_zero(rates):
    with pytest.raises(ValueError, match="rates must all be above 0.*Received: rates={'conv'"):
        TrainSettings(rates=rates)


@pytest.mark.parametrize(
    ("warmup", "decay", "reason"),
    [
        (1, "plateau", "be 0 without cosine"),
        (10, "cosine", r"be in \[0, epochs\)"),
        (-1, "cosine", r"be in \[0, epochs\)"),
    ],
)
def test_impossible_warm_up_is_refused(warmup, decay, reason):
    with pytest.raises(ValueError, match=f"warmup_epochs must {reason}. Received: warmup_epochs={warmup}"):
        TrainSettings(epochs=10, decay=decay, warmup_epochs=warmup)


def test_bounds_are_allowed():
    settings = TrainSettings(epochs=10, decay="cosine", warmup_epochs=9.9, views=0, disk_gb=0)
    assert (settings.views, settings.disk_gb) == (0, 0)


# Optimizers


@pytest.mark.parametrize(
    ("name", "kind", "momentum"),
    [
        ("sgd", keras.optimizers.SGD, 0.9),
        ("rmsprop", keras.optimizers.RMSprop, 0.0),
        ("adam", keras.optimizers.Adam, None),
    ],
)
def test_optimizers(data, name, kind, momentum):
    model = tiny.network()
    before = tiny.by_layer(model)
    train(model, data, TrainSettings(epochs=1, learning_rate=0.01, optimizer=name))
    assert type(model.optimizer) is kind
    assert float(model.optimizer.learning_rate) == pytest.approx(0.01)
    assert getattr(model.optimizer, "momentum", None) == momentum
    assert "conv" in tiny.changed(before, tiny.by_layer(model))


def test_one_sgd_step_by_hand(data):
    # First step from a logit of zero: d loss / d bias = mean(0.5 - label); momentum starts at 0.
    model = build_student_cnn(tiny.SIZE, dropout=0.0)
    train(
        model,
        data,
        TrainSettings(epochs=1, learning_rate=0.1, optimizer="sgd", batch_size=1000, class_weights=False),
    )
    labels = data.subset("train")["label"]
    bias = model.get_layer("logit").get_weights()[1][0]
    assert bias == pytest.approx(-0.1 * (0.5 - labels.mean()), rel=1e-5)


# Learning rates by layer


def steps(optimizer, rates, scale=1.0, number=1):
    """Weights of each layer after steps from zero along made-up gradients, which are scaled."""
    model = tiny.network()
    rng = np.random.default_rng(0)
    for variable in model.trainable_variables:
        variable.assign(np.zeros(variable.shape))
    stepper = make_optimizer(model, TrainSettings(learning_rate=0.01, optimizer=optimizer, rates=rates), 1)
    for _ in range(number):
        gradients = [
            (scale * rng.uniform(1, 2, variable.shape) * rng.choice([-1, 1], variable.shape)).astype(
                np.float32
            )
            for variable in model.trainable_variables
        ]
        stepper.apply(gradients, model.trainable_variables)
    return {
        layer.name: [np.asarray(variable) for variable in layer.trainable_variables]
        for layer in model.layers
        if layer.trainable_variables
    }


@pytest.mark.parametrize("number", [1, 3])
@pytest.mark.parametrize("optimizer", sorted(OPTIMIZERS))
def test_a_step_is_the_factor_times_the_step_without_rates(optimizer, number):
    # Powers of two from weights of zero: the proportion is exact.
    plain = steps(optimizer, {}, number=number)
    assert all(np.abs(value).min() > 0 for values in plain.values() for value in values)
    scaled = steps(optimizer, {"bn": 0.5, "logit": 0.125}, number=number)
    factors = {"conv": 1.0, "bn": 0.5, "dense1": 0.5, "logit": 0.125}  # dense1 has that of the one before
    assert list(plain) == list(factors)
    for name, factor in factors.items():
        assert tiny.same(scaled[name], [factor * value for value in plain[name]]), name


@pytest.mark.parametrize(("optimizer", "factor"), [("adam", 1.0), ("rmsprop", 1.0), ("sgd", 0.5)])
def test_scaling_the_gradient_would_only_do_for_sgd(optimizer, factor):
    # Adam and RMSprop divide by its size: for them the test above would fail.
    plain, scaled = steps(optimizer, {}), steps(optimizer, {}, scale=0.5)
    for name, values in plain.items():
        for value, found in zip(values, scaled[name], strict=True):
            np.testing.assert_allclose(found, factor * value, rtol=1e-5)


@pytest.mark.parametrize("stored", [False, True])
@pytest.mark.parametrize(
    "optimizer",
    ["adam", *(pytest.param(name, marks=pytest.mark.slow) for name in sorted(OPTIMIZERS) if name != "adam")],
)
def test_rates_reach_training(data, optimizer, stored):
    changes = []
    for rates in ({}, {"dense1": 0.5, "logit": 0.125}):
        model = tiny.network()
        for layer in model.layers:
            layer.trainable = not stored or layer.name in ("dense1", "logit")
        before = tiny.by_layer(model)
        train(
            model,
            data,
            TrainSettings(epochs=1, learning_rate=0.01, optimizer=optimizer, batch_size=1000, rates=rates),
        )
        after = tiny.by_layer(model)
        changes.append({name: after[name][0] - before[name][0] for name in ("conv", "dense1", "logit")})
    for name, factor in {"conv": 1.0, "dense1": 0.5, "logit": 0.125}.items():
        plain, scaled = (change[name] for change in changes)
        assert plain.any() == (name != "conv" or not stored)
        np.testing.assert_allclose(scaled, factor * plain, rtol=1e-3, atol=1e-3 * np.abs(plain).max())


@pytest.mark.slow
@pytest.mark.parametrize("named", ["conv", "cut"])
def test_rates_may_name_a_frozen_layer(data, named):
    # InceptionV3's stages are named by the concatenation in front of them, where stored activations begin.
    changes = []
    for views in (1, 0):  # stored, and through the whole network
        model = tiny.network()
        for layer in model.layers:
            layer.trainable = layer.name in ("dense1", "logit")
        name = find_cut(model).name if named == "cut" else named
        before = tiny.by_layer(model)
        train(
            model,
            data,
            TrainSettings(
                epochs=1,
                learning_rate=0.1,
                optimizer="sgd",
                rates={name: 0.25},
                augmentation=Augmentation(),
                views=views,
            ),
        )
        changes.append(tiny.by_layer(model)["logit"][0] - before["logit"][0])
    np.testing.assert_allclose(*changes, rtol=0.02, atol=0.02 * np.abs(changes[1]).max())


def test_unknown_layer_in_rates_is_refused():
    with pytest.raises(ValueError, match="must name layers.*'image',.*Received: rates='dens1'"):
        make_optimizer(tiny.network(), TrainSettings(rates={"conv": 0.5, "dens1": 0.7}), 1)


# Cosine


def rates_at(steps_, **settings):
    optimizer = make_optimizer(
        tiny.network(),
        TrainSettings(epochs=10, learning_rate=0.1, decay="cosine", **settings),
        steps_per_epoch=5,
    )
    found = []
    for step in steps_:
        optimizer.iterations.assign(step)
        found.append(float(optimizer.learning_rate))
    return found


def test_cosine_after_warm_up_by_hand():
    # 10 steps up, 40 down: cos(pi/4) at a quarter of the way, 0 in the middle.
    found = rates_at([0, 5, 9, 10, 20, 30, 40, 50, 60], warmup_epochs=2)
    expected = [0, 0.05, 0.09, 0.1, 0.0853553, 0.05, 0.0146447, 0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-9)


def test_cosine_without_warm_up_begins_at_the_peak():
    np.testing.assert_allclose(rates_at([0, 25, 50]), [0.1, 0.05, 0], rtol=1e-5, atol=1e-9)


def test_warm_up_may_last_part_of_an_epoch():
    np.testing.assert_allclose(rates_at([0, 1, 2, 26], warmup_epochs=0.4), [0, 0.05, 0.1, 0.05], rtol=1e-5)


def test_cosine_ends_at_zero_and_the_plateau_never_interferes(data):
    # No step changes a weight, so the plateau would lower the rate in every epoch.
    settings = dataclasses.replace(STILL, epochs=4, decay="cosine", plateau_patience=1)
    history = train(build_student_cnn(tiny.SIZE), data, settings).history
    np.testing.assert_allclose(
        history["learning_rate"] / 1e-30, [0.853553, 0.5, 0.146447, 0], rtol=1e-5, atol=1e-7
    )


@pytest.mark.slow
def test_warm_up_in_training(data):
    settings = dataclasses.replace(STILL, epochs=4, decay="cosine", warmup_epochs=2)
    history = train(build_student_cnn(tiny.SIZE), data, settings).history
    np.testing.assert_allclose(history["learning_rate"] / 1e-30, [0.5, 1, 0.5, 0], rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_rates_do_not_disturb_the_schedule(data):
    settings = dataclasses.replace(STILL, epochs=2, decay="cosine", rates={"conv1": 0.25})
    history = train(build_student_cnn(tiny.SIZE), data, settings).history
    np.testing.assert_allclose(history["learning_rate"] / 1e-30, [0.5, 0], rtol=1e-5, atol=1e-7)


# Gradients that are not finite


def test_a_step_without_a_finite_gradient_is_left_out_in_bfloat16():
    model = tiny.network("mixed_bfloat16")
    optimizer = make_optimizer(model, TrainSettings(learning_rate=0.1, optimizer="sgd"), 10)
    variables = model.trainable_variables
    optimizer.build(variables)
    before, formers = tiny.state(model), [variable.numpy() for variable in variables]
    bad = [
        np.full(variable.shape, np.nan if number == 2 else 1.0, np.float32)
        for number, variable in enumerate(variables)
    ]
    optimizer.apply(bad, variables)
    assert tiny.same(before, tiny.state(model)) and int(optimizer.iterations) == 0
    scale = float(optimizer.scale_loss(1.0))
    optimizer.apply([np.full(variable.shape, scale, np.float32) for variable in variables], variables)
    assert int(optimizer.iterations) == 1
    for variable, former in zip(variables, formers, strict=True):
        assert not np.array_equal(variable.numpy(), former)
