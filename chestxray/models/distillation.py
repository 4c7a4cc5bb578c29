"""Knowledge distillation: the loss and the Keras model that trains a student with it."""

from collections.abc import Mapping
from typing import Any

import keras
import tensorflow as tf
from keras import ops

from chestxray.models.builders import check_logits
from chestxray.schema import check


def distillation_loss(teacher_logits: Any, student_logits: Any, temperature: float) -> Any:
    """Distillation loss T² · KL(teacher ‖ student) at temperature T.

    The logits of both are divided by T. With the factor T², the gradient stays about as large when T changes
    (Hinton, Vinyals and Dean 2015, arXiv:1503.02531). One logit z is the log-odds of class 1 and is treated
    as the pair (0, z): the distributions are Bernoulli(σ(t/T)) and Bernoulli(σ(s/T)).

    Logits are (N, 1) for two classes, (N, C) for more. T, the ``temperature``, is above 0. Returns (N,), in
    nats times T²; 0 for equal distributions.
    """
    teacher, student = (_log_softened(logits, temperature) for logits in (teacher_logits, student_logits))
    return temperature**2 * ops.sum(ops.exp(teacher) * (teacher - student), axis=-1)


def mean_tempered_entropy(logits: Any, temperature: float) -> float:
    """Mean entropy of a teacher's softened probabilities, in nats.

    It measures the information of the teacher beyond the decision. It is at most ln 2 = 0.69 for two classes
    and ln 3 = 1.10 for three. Near 0, the teacher only repeats the labels. Logits are (N, 1) or (N, C), the
    ``temperature`` is above 0.
    """
    log = _log_softened(logits, temperature)
    return float(ops.mean(-ops.sum(ops.exp(log) * log, axis=-1)))


def _log_softened(logits: Any, temperature: float) -> Any:
    logits = ops.cast(logits, "float32")
    if logits.shape[-1] == 1:
        logits = ops.concatenate([ops.zeros_like(logits), logits], axis=-1)
    return ops.log_softmax(logits / temperature)


class Distiller(keras.Model):
    """Trains a student with ``α · cross-entropy + (1 − α) · distillation loss``, by its own ``train_step``.

    ``keras.distillation`` cannot be used: its softmax over one logit is constant, so that the loss is 0, and
    it ignores sample and class weights.

    The cross-entropy uses the labels (0 or 1 for one logit, the class index for several), the other term is
    :func:`distillation_loss`. Sample and class weights apply to both terms. As elsewhere in Keras, the
    weighted terms are summed and divided by the number of images. Regularisation losses of the student are
    added without weights. ``loss``, ``student_loss`` and ``distillation_loss`` are means over the epoch, and
    ``val_loss`` is the same loss on the validation images.

    The teacher is not part of this model: it is not trained or saved, and its weights and batch statistics do
    not change. Save ``student``, which shares its weights with this model.

    ``x`` of ``fit`` and ``evaluate`` is the images; ``{"image": …, "teacher_image": …}`` if their sizes
    differ; or, without a teacher, ``{"image": …, "teacher_logit": …}`` with stored logits. ``predict`` takes
    only the images and returns the student's logits.
    """

    def __init__(
        self,
        student: keras.Model,
        teacher: keras.Model | None = None,
        alpha: float = 0.3,
        temperature: float = 2.0,
    ):
        """Create the model from a student and a teacher, both with logits (N, 1) or (N, C).

        ``alpha``, in [0, 1], weights the labels; ``temperature`` is above 0. Other values raise ValueError.
        """
        check(0 <= alpha <= 1, "alpha must be in [0, 1]", alpha=alpha)
        check(temperature > 0, "temperature must be above 0", temperature=temperature)
        check_logits(student, "the student")
        if teacher is not None:
            check_logits(teacher, "the teacher")
            counts = {"teacher": teacher.output.shape[-1], "student": student.output.shape[-1]}
            equal = counts["teacher"] == counts["student"]
            check(equal, "both models must have the same number of logits", **counts)
        super().__init__(name=f"{student.name}_distiller", dtype=student.dtype_policy)
        self.student, self.alpha, self.temperature = student, alpha, temperature
        # A function hides the teacher from Keras, which would train, save and count an attribute.
        self._teacher = None if teacher is None else lambda images: teacher(images, training=False)
        self._terms = {name: keras.metrics.Mean(name) for name in ("student_loss", "distillation_loss")}
        self.built = True

    def compile(
        self, optimizer: keras.Optimizer | str = "adam", metrics: list | None = None, **options: Any
    ) -> None:
        """Compile with an optimizer for the student and metrics of its logits.

        XLA is off by default. The class defines the loss; the argument ``loss`` raises ValueError.
        """
        check("loss" not in options, "loss must not be set, the class defines it", loss=options.get("loss"))
        super().compile(optimizer=optimizer, metrics=metrics, **{"jit_compile": False} | options)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        return self.student(inputs["image"] if isinstance(inputs, Mapping) else inputs, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        teacher_logits = self._teacher_logits(x)
        variables = self.trainable_variables
        with tf.GradientTape() as tape:
            logits = self(x, training=True)
            loss = self._objective(y, logits, teacher_logits, weight)
            # tf.distribute adds the gradients of all replicas.
            replicas = tf.distribute.get_strategy().num_replicas_in_sync
            scaled = self.optimizer.scale_loss(loss / replicas)
        self.optimizer.apply_gradients(zip(tape.gradient(scaled, variables), variables))
        return self._report(y, logits, weight, loss)

    def test_step(self, data: Any) -> dict[str, Any]:
        x, y, weight = keras.utils.unpack_x_y_sample_weight(data)
        logits = self(x, training=False)
        return self._report(y, logits, weight, self._objective(y, logits, self._teacher_logits(x), weight))

    def _teacher_logits(self, x: Any) -> Any:
        if isinstance(x, Mapping) and "teacher_logit" in x:
            return x["teacher_logit"]
        received = sorted(x) if isinstance(x, Mapping) else type(x)
        check(self._teacher, 'without a teacher x must be {"image": …, "teacher_logit": …}', x=received)
        return self._teacher(x["teacher_image"] if isinstance(x, Mapping) else x)

    def _objective(self, labels: Any, logits: Any, teacher_logits: Any, weight: Any) -> Any:
        if logits.shape[-1] == 1:
            labels = ops.reshape(ops.cast(labels, logits.dtype), (-1, 1))
            cross_entropy = keras.losses.binary_crossentropy(labels, logits, from_logits=True)
        else:
            labels = ops.reshape(labels, (-1,))
            cross_entropy = keras.losses.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        distilled = distillation_loss(teacher_logits, logits, self.temperature)
        terms = {"student_loss": cross_entropy, "distillation_loss": distilled}
        for name, values in terms.items():
            if weight is not None:
                values = values * ops.reshape(ops.cast(weight, values.dtype), (-1,))
            terms[name] = ops.mean(values)
            self._terms[name].update_state(terms[name], sample_weight=ops.shape(logits)[0])
        loss = self.alpha * terms["student_loss"] + (1 - self.alpha) * terms["distillation_loss"]
        return ops.sum([loss, *self.losses])

    def _report(self, labels: Any, logits: Any, weight: Any, loss: Any) -> dict[str, Any]:
        self._loss_tracker.update_state(loss, sample_weight=ops.shape(logits)[0])
        return self.compute_metrics(None, labels, logits, sample_weight=weight)
