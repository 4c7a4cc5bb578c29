"""Seeds, class weights, and one phase of training."""

from __future__ import annotations

import difflib
import hashlib
import math
import shutil
import warnings
from collections.abc import Sequence
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
from chestxray.models.features import find_cut, plan_features
from chestxray.models.mixup import Mixup
from chestxray.models.settings import TrainSettings, make_optimizer
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
            learner = Mixup(learner, settings.mixup, data.train_seed)
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
            "seed": data.train_seed,
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


def set_trainable_from(model: keras.Model, first: str) -> None:
    """Train the named layer and all that follow it; batch normalisation stays frozen.

    Its statistics come from ImageNet; small batches of another kind of
    picture would overwrite them within an epoch. (Calling the backbone with
    ``training=False`` does not prevent that in Keras 3's ``fit``.)

    Args:
        model: A flat model.
        first: Name of a layer.

    Raises:
        ValueError: There is no such layer; names close ones.
    """
    start = _position(model, first)
    for number, layer in enumerate(model.layers):
        layer.trainable = number >= start and not isinstance(layer, keras.layers.BatchNormalization)


def _position(model: keras.Model, name: str) -> int:
    names = [layer.name for layer in model.layers]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names
        raise ValueError(
            f"the model has no such layer; close names: {close}. Received: unfreeze_from={name!r}"
        )
    return names.index(name)


def train_head(
    model: keras.Model,
    data: XrayData,
    settings: TrainSettings,
    checkpoint: str | Path | None = None,
    unfreeze_next: str | None = None,
) -> Training:
    """First phase: the backbone is frozen, the layers after its pooling learn.

    Args:
        unfreeze_next: ``unfreeze_from`` of the next phase, if there will be
            one with the same augmentation and views: what it needs is stored
            on the way.

    See :func:`chestxray.models.training.train` for the other arguments.
    """
    keep = None
    if unfreeze_next:
        set_trainable_from(model, unfreeze_next)
        keep = find_cut(model)
    set_trainable_from(model, "pool")
    return train(model, data, settings, checkpoint, "head", keep)


def fine_tune(
    model: keras.Model,
    data: XrayData,
    settings: TrainSettings,
    unfreeze_from: str,
    checkpoint: str | Path | None = None,
) -> Training:
    """Later phase: the named layer and all that follow learn too, batch normalisation does not.

    Args:
        unfreeze_from: Name of the first layer that learns, for example one
            of the backbone's ``stages``.

    See :func:`chestxray.models.training.train` for the other arguments and
    :func:`set_trainable_from` for the errors.
    """
    set_trainable_from(model, unfreeze_from)
    return train(model, data, settings, checkpoint, f"from {unfreeze_from}")


def unfreeze_gradually(
    model: keras.Model,
    data: XrayData,
    settings: TrainSettings,
    stages: Sequence[str],
    checkpoint: str | Path | None = None,
) -> list[Training]:
    """One fine-tuning phase for each stage: the last, then the last two, and so on.

    Args:
        stages: First layer of each stage, from the input on.
        checkpoint: Each phase keeps its state beside it, with the stage in
            the file's name.

    See :func:`fine_tune` for the other arguments.
    """
    place = Path(checkpoint) if checkpoint else None
    with starting_again(model, wanted=place is not None):
        return [
            fine_tune(model, data, settings, stage, place and place.with_stem(f"{place.stem}-{stage}"))
            for stage in reversed(stages)
        ]


def train_whole(
    model: keras.Model, data: XrayData, settings: TrainSettings, checkpoint: str | Path | None = None
) -> Training:
    """Only phase of a network with random weights: everything learns, batch normalisation too.

    See :func:`chestxray.models.training.train` for the arguments.
    """
    for layer in model.layers:  # model.trainable = True does nothing where it is True already
        layer.trainable = True
    return train(model, data, settings, checkpoint, "whole network")


def stages_from(model: keras.Model, stages: Sequence[str], first: str) -> list[str]:
    """List where the stages that learn begin: the named layer, then each stage after it.

    Args:
        model: A flat model.
        stages: First layer of each stage of its backbone.
        first: Name of the first layer that learns.

    Raises:
        ValueError: There is no such layer; names close ones.
    """
    start = _position(model, first)
    return [first, *(stage for stage in stages if _position(model, stage) > start)]


POLICIES = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def choose_precision(wanted: str = "auto", bf16_pays: bool = True) -> tuple[str, str]:
    """Choose the Keras dtype policy for training, and print device and choice.

    Args:
        wanted: A policy, or ``"auto"``: on a GPU bfloat16 or, before compute
            capability 8, float16; on a processor bfloat16 where it has the
            units and the network gains by it; float32 otherwise.
        bf16_pays: Whether the network is faster in bfloat16 on a processor
            that has the units.

    Returns:
        The policy's name and the device's.

    Raises:
        ValueError: Unknown policy.
    """
    if wanted not in POLICIES:
        raise ValueError(f"precision must be one of {POLICIES}. Received: precision={wanted!r}")
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        device = details.get("device_name", "GPU")
        best = "mixed_bfloat16" if details.get("compute_capability", (0,))[0] >= 8 else "mixed_float16"
    else:
        if shutil.which("nvidia-smi"):
            warnings.warn(
                "there is an NVIDIA card, but TensorFlow does not see it: pip install -e '.[gpu]'",
                stacklevel=2,
            )
        device = "CPU"
        best = "mixed_bfloat16" if bf16_pays and cpu_has_bf16() else "float32"
    policy = best if wanted == "auto" else wanted
    print(f"computing on {device} in {policy}")
    return policy, device


def cpu_has_bf16() -> bool:
    """Whether the processor has bfloat16 units (AVX512-BF16 or AMX); False where unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
