"""Seeds, class weights, and one phase of training."""

from __future__ import annotations

import hashlib
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from chestxray.data.dataset import XrayData
from chestxray.models.batch_norm import fused_batch_norm
from chestxray.models.checkpoint import Checkpoint, fingerprint, starting_again
from chestxray.models.distillation import Distiller
from chestxray.models.features import plan_features
from chestxray.models.frozen import find_cut
from chestxray.models.mixup import Mixup
from chestxray.models.schedules import TrainSettings, make_optimizer
from chestxray.models.teachers import Distillation


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow: call it before a model is built."""
    keras.utils.set_random_seed(seed)


def class_weights(labels: np.ndarray, classes: int = 2) -> dict[int, float]:
    """Weights that give all classes the same total: n / (classes · n of the class).

    Raises:
        ValueError: A class is missing.
    """
    counts = np.bincount(np.asarray(labels, dtype=int), minlength=classes)
    if len(counts) != classes or not counts.all():
        raise ValueError(
            f"{'both' if classes == 2 else f'all {classes}'} classes are needed. "
            f"Received: counts={counts.tolist()}"
        )
    return {label: len(labels) / (classes * int(count)) for label, count in enumerate(counts)}


class EpochLine(keras.callbacks.Callback):
    """Prints one line an epoch, without times, so that notebooks stay comparable; stops at NaN."""

    def __init__(self, phase: str, epochs: int):
        super().__init__()
        self.phase, self.epochs = phase, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if not np.isfinite([logs["loss"], logs["val_loss"]]).all():
            raise ValueError(
                "the loss is not a number: train in float32 or with a smaller learning rate. "
                f"Received: phase={self.phase!r}, epoch={epoch + 1}"
            )
        logs.setdefault("learning_rate", float(self.model.optimizer.learning_rate))
        shown = ("loss", "val_loss", "val_accuracy", "val_auroc")
        text = "  ".join(f"{name} {logs[name]:.4f}" for name in shown if name in logs)
        print(
            f"epoch {epoch + 1:2d}/{self.epochs} {self.phase}: {text}  "
            f"learning rate {float(self.model.optimizer.learning_rate):.1e}",
            flush=True,
        )


def compile_model(model: keras.Model, optimizer: keras.Optimizer, label_smoothing: float = 0.0) -> None:
    """Compile for the model's logits: cross-entropy, accuracy, AUROC of pneumonia on 200 cuts.

    XLA stays off: on a processor it compiles a convolutional training step
    for many minutes.
    """
    if model.output_shape[-1] == 1:
        loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer=optimizer, loss=loss, metrics=_metrics(model), jit_compile=False)


class _SumAuroc(keras.metrics.AUC):
    """AUROC of the summed probability of all classes but the first."""

    def update_state(
        self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: tf.Tensor | None = None
    ) -> None:
        odds = keras.ops.logsumexp(y_pred[:, 1:], axis=1) - y_pred[:, 0]
        super().update_state(keras.ops.reshape(y_true, (-1,)) > 0, odds, sample_weight)


def _metrics(model: keras.Model) -> list[keras.metrics.Metric]:
    if model.output_shape[-1] > 1:
        return [
            keras.metrics.SparseCategoricalAccuracy(name="accuracy"),
            _SumAuroc(name="auroc", from_logits=True),
        ]
    return [
        keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),  # of the logit
        keras.metrics.AUC(name="auroc", from_logits=True),
    ]


@dataclass(frozen=True)
class Training:
    """What one phase of training brought.

    Attributes:
        history: One row an epoch: epoch, phase, loss, val_loss, …, learning_rate.
        seconds: Wall time of the epochs, in all calls together.
        images: Training images seen in them.
        steps_left_out: Steps whose gradient was not finite.
    """

    history: pd.DataFrame
    seconds: float
    images: int
    steps_left_out: int = 0


def train(
    model: keras.Model,
    data: XrayData,
    settings: TrainSettings,
    checkpoint: str | Path | None = None,
    phase: str = "training",
    keep: keras.layers.Layer | None = None,
    distillation: Distillation | None = None,
) -> Training:
    """Compile and train what is trainable, with early stopping, schedule and checkpoint.

    Without a teacher, layers that are frozen from the input on are computed
    once for each view and read from the disk afterwards
    (:mod:`chestxray.models.features`). The best weights by validation loss
    are in the model at the end, or the last ones (``stop_patience``). When a
    checkpoint of the same training (settings, data, network, starting
    weights, versions of Keras and TensorFlow) exists, training goes on from
    there and ends with the weights of an undisturbed run, bit for bit on the
    same processor. With a checkpoint, a call that is broken off, by whatever,
    gives the model its starting weights back, so that the same call, with the
    same model or a new one, is recognised and goes on.

    Args:
        model: Takes (N, size, size, 1) in 0–255, gives one logit, or three
            (normal, bacteria, virus).
        data: Training and validation images.
        settings: See :class:`TrainSettings`.
        checkpoint: File for the state (``.npz``); None keeps no state.
        phase: Name of the phase, for the history.
        keep: A frozen layer whose output a later phase will start from: its
            activations are stored in the same pass.
        distillation: Teacher of the model; see
            :class:`chestxray.models.teachers.Distillation`.

    Raises:
        ValueError: Mixtures are wanted of a teacher, whose answers are to
            whole pictures, or smoothed labels with one, or with three logits.
    """
    outputs = model.output_shape[-1]
    if distillation and settings.mixup:
        raise ValueError(
            "mixup must be 0 with a teacher, whose answers are to whole pictures. "
            f"Received: mixup={settings.mixup!r}"
        )
    if settings.label_smoothing and (distillation or outputs > 1):
        raise ValueError(
            "label_smoothing must be 0 with a teacher or three logits. "
            f"Received: label_smoothing={settings.label_smoothing!r}"
        )
    labels = data.targets("train", outputs)
    optimizer = make_optimizer(model, settings, math.ceil(len(labels) / settings.batch_size))
    if distillation:
        features, learner = None, Distiller(model, None, distillation.alpha, distillation.temperature)
        learner.compile(optimizer, _metrics(model))
    else:
        features = plan_features(
            model, data, [find_cut(model), keep], settings.augmentation, settings.views, settings.disk_gb
        )
        learner = features.rest if features else model
        if settings.mixup:
            learner = Mixup(learner, settings.mixup, data.seed)
        compile_model(learner, optimizer, settings.label_smoothing)
    learner.optimizer.build(learner.trainable_variables)
    watched = []
    if settings.stop_patience is not None:
        watched.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss", mode="min", restore_best_weights=True, patience=settings.stop_patience
            )
        )
    if settings.decay == "plateau":
        watched.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_loss",
                mode="min",
                factor=settings.plateau_factor,
                patience=settings.plateau_patience,
                min_delta=0.0,
                verbose=0,
            )
        )
    contents = hashlib.sha256("".join(data.table["sha256"]).encode() + labels.tobytes()).hexdigest()
    identity = fingerprint(
        model,
        {
            "settings": asdict(settings) | {"disk_gb": None},
            "phase": phase,
            "stored": bool(features),
            "pixels": data.store.key,
            "split": data.split_hash,
            "contents": contents,
            "seed": data.seed,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "distillation": distillation.identity if distillation else None,
        },
    )
    state = Checkpoint(Path(checkpoint) if checkpoint else None, identity, watched)
    with starting_again(learner, wanted=bool(state.path)):
        state.restore(learner)
        already = state.epochs_done
        if state.finished:
            print(f"{phase}: finished earlier, {already} epochs")
        else:
            if already:
                print(f"{phase}: continued after epoch {already}")
            number = {"epoch": already}

            def begin(epoch: int, logs: dict | None = None) -> None:
                number["epoch"] = epoch
                if features:
                    features.prepare("val")
                    features.prepare("train", epoch)
                if distillation:
                    distillation.answers(data, "val", settings, 0, outputs)
                    distillation.answers(data, "train", settings, epoch, outputs)

            if features:
                features.make_room(settings.disk_gb)
                training = features.dataset("train", settings.batch_size, True, lambda: number["epoch"])
                validation = features.dataset("val", settings.batch_size)
            else:
                training = data.dataset(
                    "train",
                    settings.batch_size,
                    settings.augmentation,
                    True,
                    lambda: number["epoch"],
                    settings.views,
                    outputs,
                )
                validation = data.dataset("val", settings.batch_size, outputs=outputs)
            if distillation:
                training = distillation.join(
                    training, data, "train", settings, outputs, lambda: number["epoch"]
                )
                validation = distillation.join(validation, data, "val", settings, outputs)
            with fused_batch_norm(model):
                learner.fit(
                    training,
                    validation_data=validation,
                    epochs=already if state.stopped else settings.epochs,
                    initial_epoch=already,
                    verbose=0,
                    shuffle=False,  # the dataset does that
                    class_weight=class_weights(labels, max(2, outputs)) if settings.class_weights else None,
                    callbacks=[
                        keras.callbacks.LambdaCallback(on_epoch_begin=begin),
                        *watched,
                        EpochLine(phase, settings.epochs),
                        state,
                    ],
                )
    steps = state.epochs_done * math.ceil(len(labels) / settings.batch_size)
    if left_out := steps - int(learner.optimizer.iterations):
        print(f"{phase}: {left_out} of {steps} steps left out, their gradient was not finite")
    history = pd.DataFrame(state.history).assign(phase=phase)
    return Training(history, state.seconds, state.epochs_done * len(labels), left_out)


def summarise(phases: list[Training], policy: str, device: str) -> dict[str, Any]:
    """Put the phases of a training into the form of a result (contract 6)."""
    seconds, images = sum(p.seconds for p in phases), sum(p.images for p in phases)
    return {
        "epochs": {p.history["phase"].iloc[0]: len(p.history) for p in phases},
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "steps_left_out": sum(p.steps_left_out for p in phases),
        "precision": policy,
        "device": device,
        "history": pd.concat([p.history for p in phases]).map(_six_digits).to_dict("list"),
    }


def _six_digits(value: Any) -> Any:
    """Round to six significant digits: fixed decimals would turn small learning rates into 0."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
