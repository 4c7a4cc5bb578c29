"""Distillation: the loss against numbers worked out by hand, and the training step against plain Keras."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

from chestxray.models.distillation import Distiller, distillation_loss, mean_tempered_entropy


def network(outputs=1, size=8, seed=0, regularised=False, dropout=0.0):
    """Convolution with batch normalisation, and a head that says something before the first step."""
    keras.utils.set_random_seed(seed)
    inputs = keras.Input((size, size, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    x = layers.Conv2D(4, 3, kernel_regularizer=keras.regularizers.L2(0.1) if regularised else None)(x)
    x = layers.GlobalAveragePooling2D()(layers.ReLU()(layers.BatchNormalization(momentum=0.5)(x)))
    x = layers.Dropout(dropout)(x) if dropout else x
    return keras.Model(inputs, layers.Dense(outputs, kernel_initializer="he_normal", dtype="float32")(x))


def pictures(count=24, size=8, classes=2):
    generator = np.random.default_rng(0)
    labels = np.arange(count) % classes
    return (generator.uniform(0, 255, (count, size, size, 1)) + 20 * labels[:, None, None, None]).astype(
        "float32"
    ), labels.astype("float32")


def same_weights(one, other, tolerance=1e-6):
    for left, right in zip(one.get_weights(), other.get_weights(), strict=True):
        np.testing.assert_allclose(left, right, rtol=0, atol=tolerance)


# The loss


def test_one_logit_by_hand():
    # p = σ(2/2) = 0.731059, q = σ(0) = 0.5: KL = ln 2 − H(p) = 0.693147 − 0.582203, times 2² = 0.443778
    found = distillation_loss([[2.0]], [[0.0]], 2.0)
    np.testing.assert_allclose(found, [0.443778], atol=2e-6)


def test_three_logits_by_hand():
    # (½, ¼, ¼) against thirds: ln 3 − 1.5 ln 2 = 0.058892
    found = distillation_loss([[np.log(2.0), 0.0, 0.0]], [[5.0, 5.0, 5.0]], 1.0)
    np.testing.assert_allclose(found, [0.058892], atol=2e-6)


def test_zero_where_both_agree_and_above_it_elsewhere():
    logits = np.array([[-30.0], [-1.0], [0.0], [4.0], [90.0]], "float32")
    np.testing.assert_allclose(distillation_loss(logits, logits, 3.0), 0, atol=1e-6)
    assert np.all(np.asarray(distillation_loss(logits, logits + 1, 3.0))[1:4] > 0.01)


def test_equals_the_divergence_of_two_bernoulli_distributions():
    generator = np.random.default_rng(1)
    teacher, student = generator.normal(0, 3, (2, 50, 1))
    p, q = (1 / (1 + np.exp(-logits[:, 0] / 4)) for logits in (teacher, student))
    wanted = 16 * (p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q)))
    np.testing.assert_allclose(distillation_loss(teacher, student, 4.0), wanted, rtol=1e-4, atol=1e-5)


def test_equals_the_two_class_softmax_form():
    generator = np.random.default_rng(2)
    teacher, student = generator.normal(0, 3, (2, 50, 1))
    pairs = [
        np.concatenate([np.full_like(logits, 7.0), logits + 7.0], axis=1) for logits in (teacher, student)
    ]
    np.testing.assert_allclose(
        distillation_loss(teacher, student, 2.0), distillation_loss(*pairs, 2.0), rtol=1e-4, atol=1e-5
    )


def test_size_of_the_gradient_does_not_depend_on_the_temperature():
    def gradient(temperature):
        student = tf.Variable([[0.05]])
        with tf.GradientTape() as tape:
            loss = distillation_loss(tf.constant([[0.02]]), student, temperature)
        return float(tape.gradient(loss, student)[0, 0])

    # T · (σ(s/T) − σ(t/T)) → (s − t)/4
    for temperature in (1.0, 2.0, 5.0, 20.0):
        assert gradient(temperature) == pytest.approx(0.03 / 4, rel=0.01)


def test_far_logits_stay_finite():
    assert np.all(np.isfinite(distillation_loss([[1000.0], [-1000.0]], [[-1000.0], [1000.0]], 1.0)))


def test_entropy_by_hand():
    # σ(2/2) as above: 0.582203; σ(0): ln 2
    assert mean_tempered_entropy([[2.0], [0.0]], 2.0) == pytest.approx((0.582203 + 0.693147) / 2, abs=1e-5)
    assert mean_tempered_entropy([[0.0, 0.0, 0.0]], 1.0) == pytest.approx(np.log(3), abs=1e-6)
    assert mean_tempered_entropy([[50.0]], 1.0) == pytest.approx(0, abs=1e-6)


# The training step


def fitted(model, x, y, **options):
    history = model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, **options)
    return history.history


def test_alpha_one_is_plain_training():
    x, y = pictures()
    plain, student = (network(regularised=True) for _ in range(2))
    plain.compile(
        keras.optimizers.Adam(0.01),
        keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)],
        jit_compile=False,
    )
    distiller = Distiller(student, network(seed=3), alpha=1.0)
    distiller.compile(keras.optimizers.Adam(0.01), [keras.metrics.BinaryAccuracy("accuracy", threshold=0.0)])
    options = {"validation_data": (x[:10], y[:10]), "class_weight": {0: 2.0, 1: 0.5}}
    wanted, found = fitted(plain, x, y, **options), fitted(distiller, x, y, **options)
    same_weights(plain, student)
    for name, values in wanted.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-5)


def test_regularisation_is_added_once_and_unweighted():
    x, y = pictures()
    teacher, student = network(seed=1), network(regularised=True)
    distiller = Distiller(student, teacher, alpha=0.25)
    distiller.compile("sgd")
    found = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    penalty = 0.1 * np.sum(student.layers[2].kernel.numpy() ** 2)
    assert found["loss"] == pytest.approx(
        0.25 * found["student_loss"] + 0.75 * found["distillation_loss"] + penalty, rel=1e-5
    )


def test_reports_means_over_the_epoch():
    x, y = pictures(20)  # batches of 8, 8 and 4
    teacher, student = network(seed=1), network(seed=2)
    distiller = Distiller(student, teacher, alpha=0.4, temperature=3.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    found = distiller.evaluate(x, y, batch_size=8, verbose=0, return_dict=True)
    taught, said = teacher.predict(x, verbose=0), student.predict(x, verbose=0)
    hard = np.mean(np.logaddexp(0, said[:, 0]) - y * said[:, 0])
    soft = np.mean(distillation_loss(taught, said, 3.0))
    assert found["student_loss"] == pytest.approx(hard, rel=1e-5)
    assert found["distillation_loss"] == pytest.approx(soft, rel=1e-5)
    assert found["loss"] == pytest.approx(0.4 * hard + 0.6 * soft, rel=1e-5)


def test_class_weights_weigh_both_terms():
    x, y = pictures(24, classes=3)
    y = (y > 0).astype("float32")  # 8 of class 0, 16 of class 1
    teacher, student = network(seed=1), network(seed=2)
    for layer in student.layers:
        layer.trainable = not isinstance(layer, layers.BatchNormalization)
    distiller = Distiller(student, teacher, alpha=0.5)
    distiller.compile(keras.optimizers.SGD(0.0))
    subsets = [
        distiller.evaluate(x[y == label], y[y == label], verbose=0, return_dict=True) for label in (0, 1)
    ]
    found = distiller.fit(x, y, batch_size=24, verbose=0, class_weight={0: 3.0, 1: 0.5}).history
    for name in ("student_loss", "distillation_loss", "loss"):
        wanted = (8 * 3.0 * subsets[0][name] + 16 * 0.5 * subsets[1][name]) / 24
        assert found[name][0] == pytest.approx(wanted, rel=1e-5)


def test_sample_weight_of_zero_leaves_an_image_out():
    x, y = pictures(16)
    one, other = network(seed=2), network(seed=2)
    for student, count in ((one, 16), (other, 8)):
        for layer in student.layers:
            layer.trainable = not isinstance(layer, layers.BatchNormalization)
        distiller = Distiller(student, network(seed=1))
        distiller.compile(keras.optimizers.SGD(0.1 * count / 8))  # the sum is divided by all images
        distiller.fit(
            x[:count],
            y[:count],
            batch_size=16,
            epochs=1,
            verbose=0,
            shuffle=False,
            sample_weight=(np.arange(count) < 8).astype("float32"),
        )
    same_weights(one, other)


def test_teacher_stays_as_it_is_and_is_no_part_of_the_distiller():
    x, y = pictures()
    teacher, student = network(seed=1, dropout=0.5), network(seed=2)
    before, trainable = teacher.get_weights(), len(teacher.trainable_weights)
    distiller = Distiller(student, teacher)
    distiller.compile("adam")
    started = student.get_weights()
    fitted(distiller, x, y)
    for left, right in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(left, right)
    assert len(teacher.trainable_weights) == trainable
    assert distiller.count_params() == student.count_params()
    assert any(np.any(left != right) for left, right in zip(started, student.get_weights(), strict=True))


def test_a_dropout_teacher_is_asked_without_dropout():
    x, y = pictures()
    teacher = network(seed=1, dropout=0.5)
    distiller = Distiller(network(seed=2), teacher, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    found = [
        distiller.fit(x, y, batch_size=24, shuffle=False, verbose=0).history["distillation_loss"][0]
        for _ in range(2)
    ]
    assert found[0] == found[1]


@pytest.mark.slow
def test_logits_computed_before_teach_the_same():
    x, y = pictures()
    teacher, one, other = network(seed=1), network(seed=2), network(seed=2)
    in_step = Distiller(one, teacher)
    in_step.compile(keras.optimizers.Adam(0.01))
    stored = Distiller(other)
    stored.compile(keras.optimizers.Adam(0.01))
    wanted = fitted(in_step, x, y)
    found = fitted(stored, {"image": x, "teacher_logit": teacher.predict(x, verbose=0)}, y)
    same_weights(one, other)
    np.testing.assert_allclose(found["loss"], wanted["loss"], rtol=1e-5)


def test_teacher_of_another_size():
    x, y = pictures()
    large = np.repeat(np.repeat(x, 2, axis=1), 2, axis=2)
    teacher, student = network(seed=1, size=16), network(seed=2)
    distiller = Distiller(student, teacher, alpha=0.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    found = distiller.evaluate({"image": x, "teacher_image": large}, y, verbose=0, return_dict=True)
    wanted = np.mean(distillation_loss(teacher.predict(large, verbose=0), student.predict(x, verbose=0), 2.0))
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)


def test_three_classes():
    x, y = pictures(classes=3)
    student = network(3, seed=2)
    distiller = Distiller(student, network(3, seed=1), alpha=1.0)
    distiller.compile(keras.optimizers.SGD(0.0))
    said = student.predict(x, verbose=0)
    wanted = np.mean(np.log(np.exp(said).sum(1)) - said[np.arange(24), y.astype(int)])
    found = distiller.evaluate(x, y, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(wanted, rel=1e-5)


def test_predict_gives_the_students_logits():
    x, _ = pictures()
    student = network(seed=2)
    distiller = Distiller(student, network(seed=1))
    np.testing.assert_array_equal(distiller.predict(x, verbose=0), student.predict(x, verbose=0))


@pytest.mark.slow
def test_learns_and_stops_early():
    x, y = pictures(48)
    student = network(seed=2)
    distiller = Distiller(student, network(seed=1))
    distiller.compile(keras.optimizers.Adam(0.02))
    stop = keras.callbacks.EarlyStopping("val_loss", patience=3, mode="min", restore_best_weights=True)
    history = distiller.fit(
        x, y, validation_data=(x, y), batch_size=24, epochs=200, verbose=0, callbacks=[stop]
    ).history
    assert min(history["val_loss"]) < 0.9 * history["val_loss"][0]
    assert len(history["val_loss"]) < 200
    assert distiller.evaluate(x, y, verbose=0, return_dict=True)["loss"] == pytest.approx(
        min(history["val_loss"]), rel=1e-5
    )


def test_float16_scales_the_loss():
    x, y = pictures()
    keras.config.set_dtype_policy("mixed_float16")
    try:
        half = network(seed=2)
    finally:
        keras.config.set_dtype_policy("float32")
    full = network(seed=2)
    for student in (half, full):
        distiller = Distiller(student, network(seed=1))
        distiller.compile(keras.optimizers.SGD(0.1))
        fitted(distiller, x, y)
        scaled = isinstance(distiller.optimizer, keras.optimizers.LossScaleOptimizer)
        assert scaled == (student is half)
    same_weights(half, full, tolerance=0.02)


def test_student_alone_is_saved(tmp_path):
    x, y = pictures()
    student = network(seed=2)
    distiller = Distiller(student, network(seed=1))
    distiller.compile("adam")
    fitted(distiller, x, y)
    student.save(tmp_path / "student.keras")
    loaded = keras.models.load_model(tmp_path / "student.keras", safe_mode=True)
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), student.predict(x, verbose=0))
    assert loaded.count_params() == student.count_params()


# Mistakes


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"alpha": 1.2}, r"alpha must be in \[0, 1\]. Received: alpha=1.2"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"teacher": "three"}, "teacher=3, student=1"),
    ],
)
def test_settings(options, text):
    if options.get("teacher"):
        options = {"teacher": network(3)}
    with pytest.raises(ValueError, match=text):
        Distiller(network(), **options)


def test_a_loss_of_the_users_is_refused():
    with pytest.raises(ValueError, match="loss must not be set.*Received: loss='mse'"):
        Distiller(network(), network(seed=1)).compile("sgd", loss="mse")


def test_no_teacher_at_all():
    x, y = pictures()
    distiller = Distiller(network())
    distiller.compile("sgd")
    with pytest.raises(ValueError, match="without a teacher"):
        distiller.fit(x, y, verbose=0)


# What takes part


@pytest.mark.parametrize("end", [layers.Activation("sigmoid"), layers.Dense(1, activation=layers.Softmax())])
def test_a_teacher_that_gives_probabilities_is_refused(end):
    logits = network()
    teacher = keras.Model(logits.input, end(logits.output))
    nested = keras.Model(logits.input, layers.Average()([teacher(logits.input), teacher(logits.input)]))
    scaled = keras.Model(logits.input, layers.Rescaling(1.0)(teacher.output))
    for each in (teacher, nested, scaled):
        with pytest.raises(ValueError, match="the teacher must end in raw logits. Received: activation="):
            Distiller(network(), each)
    mean = layers.Average()([logits(logits.input), network(seed=1)(logits.input)])
    Distiller(network(), keras.Model(logits.input, mean))


REPLICAS = """
import sys
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(
    tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2
)
from test_distillation import network, pictures
from chestxray.models.distillation import Distiller
ends = []
for devices in (1, 2):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{number}" for number in range(devices)])
    with strategy.scope():
        distiller = Distiller(network(seed=2), network(seed=1))
        distiller.compile(keras.optimizers.SGD(0.5))
    images, labels = pictures(24)
    distiller.fit(images, labels, batch_size=24, epochs=1, verbose=0, shuffle=False)
    ends.append(distiller.student.get_weights())
# Batch normalisation has other statistics on half a batch; the last bias hardly depends on them.
print(*(float(end[-1][0]) for end in ends))
"""


@pytest.mark.slow
def test_a_step_on_two_replicas_is_as_large_as_on_one():
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", REPLICAS],
        env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [here, *filter(None, sys.path)]))},
        capture_output=True,
        text=True,
        check=True,
    )
    one, two = map(float, done.stdout.split()[-2:])
    assert one != 0 and two == pytest.approx(one, rel=0.05)


def test_a_sigmoid_that_is_no_layer_is_seen():
    logits = network()
    with pytest.raises(ValueError, match="raw logits"):
        Distiller(network(), keras.Model(logits.input, keras.ops.sigmoid(logits.output)))
