"""Seeds, class weights, callbacks, and the phases of training."""

from __future__ import annotations

import difflib
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import XrayData
from chestxray.models.checkpoint import Checkpoint, fingerprint

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": lambda learning_rate: keras.optimizers.SGD(learning_rate, momentum=0.9),
}


@dataclass(frozen=True)
class TrainSettings:
    """What steers one phase of training.

    Attributes:
        epochs: Most passes over the training set.
        learning_rate: At the beginning.
        batch_size: Images a step.
        optimizer: ``adam``, ``rmsprop``, or ``sgd`` (momentum 0.9).
        stop_patience: Epochs without a better validation loss after which
            training stops; the best weights are kept in any case.
        plateau_patience: Epochs without a better validation loss after which
            the learning rate falls.
        plateau_factor: What it is then multiplied by.
        class_weights: Weigh both classes equally in the training loss.
        augmentation: Random views of the training images, or None.
    """

    epochs: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 32
    optimizer: str = "adam"
    stop_patience: int = 10
    plateau_patience: int = 4
    plateau_factor: float = 0.2
    class_weights: bool = True
    augmentation: Augmentation | None = None

    def __post_init__(self) -> None:
        if self.optimizer not in OPTIMIZERS:
            raise ValueError(f"optimizer must be one of {sorted(OPTIMIZERS)}. "
                             f"Received: optimizer={self.optimizer!r}")
        if self.epochs < 1:
            raise ValueError(f"epochs must be at least 1. Received: epochs={self.epochs!r}")
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1. Received: batch_size={self.batch_size!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be above 0. Received: learning_rate={self.learning_rate!r}")
        if not 0 < self.plateau_factor < 1:
            raise ValueError("plateau_factor must lie between 0 and 1. "
                             f"Received: plateau_factor={self.plateau_factor!r}")


def set_seed(seed: int) -> None:
    """Seed Python, NumPy and TensorFlow: call it before a model is built."""
    keras.utils.set_random_seed(seed)


def class_weights(labels: np.ndarray) -> dict[int, float]:
    """Weights that give both classes the same total: n / (2 · n of the class).

    Raises:
        ValueError: A class is missing.
    """
    counts = np.bincount(np.asarray(labels, dtype=int), minlength=2)
    if len(counts) != 2 or not counts.all():
        raise ValueError(f"both classes are needed. Received: counts={counts.tolist()}")
    return {label: len(labels) / (2 * int(count)) for label, count in enumerate(counts)}


class EpochLine(keras.callbacks.Callback):
    """Prints one line an epoch, without times, so that notebooks stay comparable."""

    def __init__(self, phase: str, epochs: int):
        super().__init__()
        self.phase, self.epochs = phase, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        shown = ("loss", "val_loss", "val_accuracy", "val_auroc")
        text = "  ".join(f"{name} {logs[name]:.4f}" for name in shown if name in logs)
        print(f"epoch {epoch + 1:2d}/{self.epochs} {self.phase}: {text}  "
              f"learning rate {float(self.model.optimizer.learning_rate):.1e}", flush=True)


def compile_model(model: keras.Model, settings: TrainSettings) -> None:
    """Compile for one logit: cross-entropy, accuracy at probability 0.5, AUROC on 200 cuts.

    XLA stays off: on a processor it compiles a convolutional training step
    for many minutes.
    """
    model.compile(
        optimizer=OPTIMIZERS[settings.optimizer](settings.learning_rate),
        loss=keras.losses.BinaryCrossentropy(from_logits=True),
        metrics=[keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0),
                 keras.metrics.AUC(name="auroc", from_logits=True)],
        jit_compile=False)


@dataclass(frozen=True)
class Training:
    """What one phase of training brought.

    Attributes:
        history: One row an epoch: epoch, phase, loss, val_loss, …, learning_rate.
        seconds: Wall time of the epochs, in all calls together.
        images: Training images seen in them.
    """

    history: pd.DataFrame
    seconds: float
    images: int


def train(model: keras.Model, data: XrayData, settings: TrainSettings,
          checkpoint: str | Path | None = None, phase: str = "training") -> Training:
    """Compile and train, with early stopping, learning-rate schedule and checkpoint.

    The best weights by validation loss are in the model at the end. When a
    checkpoint of the same training (settings, data, network, starting
    weights) exists, training goes on from there and ends with the weights of
    an undisturbed run, bit for bit on the same processor. With a checkpoint,
    a call that is interrupted gives the model its starting weights back, so
    that the same call, with the same model or a new one, is recognised and
    goes on.

    Args:
        model: Takes (N, size, size, 1) in 0–255, gives one logit.
        data: Training and validation images.
        settings: See :class:`TrainSettings`.
        checkpoint: File for the state (``.npz``); None keeps no state.
        phase: Name of the phase, for the history.
    """
    compile_model(model, settings)
    model.optimizer.build(model.trainable_variables)
    watched = [
        keras.callbacks.EarlyStopping(monitor="val_loss", mode="min", patience=settings.stop_patience,
                                      restore_best_weights=True),
        keras.callbacks.ReduceLROnPlateau(monitor="val_loss", mode="min", factor=settings.plateau_factor,
                                          patience=settings.plateau_patience, min_delta=0.0, verbose=0)]
    contents = hashlib.sha256("".join(data.table["sha256"]).encode()).hexdigest()
    identity = fingerprint(model, {
        "settings": asdict(settings), "phase": phase, "image": asdict(data.store.settings),
        "split": data.split_hash, "contents": contents, "seed": data.seed})
    state = Checkpoint(Path(checkpoint) if checkpoint else None, identity, watched)
    start = [variable.numpy() for variable in model.variables]
    state.restore(model)
    labels = data.part("train")["label"].to_numpy()
    already = state.epochs_done
    if state.finished:
        print(f"{phase}: finished earlier, {already} epochs")
    else:
        if already:
            print(f"{phase}: continued after epoch {already}")
        number = {"epoch": already}
        try:
            model.fit(
                data.dataset("train", settings.batch_size, settings.augmentation, shuffle=True,
                             epoch=lambda: number["epoch"]),
                validation_data=data.dataset("val", settings.batch_size),
                epochs=already if state.stopped else settings.epochs, initial_epoch=already, verbose=0,
                shuffle=False,  # the dataset does that
                class_weight=class_weights(labels) if settings.class_weights else None,
                callbacks=[keras.callbacks.LambdaCallback(
                               on_epoch_begin=lambda epoch, logs: number.update(epoch=epoch)),
                           *watched, EpochLine(phase, settings.epochs), state])
        except KeyboardInterrupt:
            if state.path:
                for variable, value in zip(model.variables, start, strict=True):
                    variable.assign(value)
            raise
    history = pd.DataFrame(state.history).assign(phase=phase)
    return Training(history, state.seconds, state.epochs_done * len(labels))


def _freeze_batch_norm(model: keras.Model) -> None:
    """Freeze every BatchNormalization layer.

    Their statistics come from ImageNet; small batches of another kind of
    picture would overwrite them within an epoch. (Calling the backbone with
    ``training=False`` does not prevent that in Keras 3's ``fit``.)
    """
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False


def set_trainable_from(model: keras.Model, first: str) -> None:
    """Train the named layer and all that follow it; batch normalisation stays frozen.

    Args:
        model: A flat model.
        first: Name of a layer.

    Raises:
        ValueError: There is no such layer; names close ones.
    """
    names = [layer.name for layer in model.layers]
    if first not in names:
        close = difflib.get_close_matches(first, names, n=5, cutoff=0.3) or names
        raise ValueError(f"the model has no such layer; close names: {close}. "
                         f"Received: unfreeze_from={first!r}")
    start = names.index(first)
    for number, layer in enumerate(model.layers):
        layer.trainable = number >= start
    _freeze_batch_norm(model)


def train_head(model: keras.Model, data: XrayData, settings: TrainSettings,
               checkpoint: str | Path | None = None) -> Training:
    """First phase: the backbone is frozen, the layers after its pooling learn.

    See :func:`train` for the arguments.
    """
    set_trainable_from(model, "pool")
    return train(model, data, settings, checkpoint, phase="head")


def fine_tune(model: keras.Model, data: XrayData, settings: TrainSettings, unfreeze_from: str,
              checkpoint: str | Path | None = None) -> Training:
    """Second phase: the named layer and all that follow learn too, batch normalisation does not.

    Args:
        unfreeze_from: Name of the first layer that learns, for example one
            of the backbone's ``stages``.

    See :func:`train` for the other arguments and :func:`set_trainable_from`
    for the errors.
    """
    set_trainable_from(model, unfreeze_from)
    return train(model, data, settings, checkpoint, phase="fine-tuning")


def summarise(phases: list[Training], policy: str, device: str) -> dict[str, Any]:
    """Put the phases of a training into the form of a result (contract 6)."""
    seconds, images = sum(p.seconds for p in phases), sum(p.images for p in phases)
    return {
        "epochs": {p.history["phase"].iloc[0]: len(p.history) for p in phases},
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "precision": policy, "device": device,
        "history": pd.concat([p.history for p in phases]).map(_six_digits).to_dict("list"),
    }


def _six_digits(value: Any) -> Any:
    """Round to six significant digits: fixed decimals would turn small learning rates into 0."""
    return float(f"{value:.6g}") if isinstance(value, float) else value
