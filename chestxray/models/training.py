"""Training of one phase, phases of transfer learning, and choice of the precision."""

import contextlib
import difflib
import hashlib
import math
import shutil
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from chestxray.data.dataset import XrayData
from chestxray.models.checkpoint import Checkpoint, fingerprint, functional, starting_again
from chestxray.models.distillation import Distiller
from chestxray.models.features import Features, find_cut, plan_features
from chestxray.models.settings import TrainSettings, make_optimizer
from chestxray.models.teachers import Distillation
from chestxray.schema import check

POLICIES = ("auto", "float32", "mixed_bfloat16", "mixed_float16")
_File = str | Path | None  # of a checkpoint


def class_weights(labels: np.ndarray, classes: int = 2) -> dict[int, float]:
    """Weights n / (classes · n of the class), which balance the classes; a missing one raises ValueError."""
    counts = np.bincount(np.asarray(labels, dtype=int), minlength=classes)
    complete = len(counts) == classes and counts.all()
    check(complete, f"labels must contain all {classes} classes", counts=counts.tolist())
    return {label: len(labels) / (classes * int(count)) for label, count in enumerate(counts)}


class EpochLine(keras.callbacks.Callback):
    """Prints one line per epoch, without times, and raises ValueError if the loss is not finite."""

    def __init__(self, phase: str, epochs: int):
        super().__init__()
        self.phase, self.epochs = phase, epochs

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        finite = np.isfinite([logs["loss"], logs["val_loss"]]).all()
        message = "the loss must be finite: train in float32 or with a smaller learning rate"
        check(finite, message, phase=self.phase, epoch=epoch + 1)
        rate = float(self.model.optimizer.learning_rate)
        logs.setdefault("learning_rate", rate)
        names = [name for name in ("loss", "val_loss", "val_accuracy", "val_auroc") if name in logs]
        values = "  ".join(f"{name} {logs[name]:.4f}" for name in names)
        start = f"epoch {epoch + 1:2d}/{self.epochs} {self.phase}"
        print(f"{start}: {values}  learning rate {rate:.1e}", flush=True)


class _SumAuroc(keras.metrics.AUC):
    """AUROC of the sum of the probabilities of all classes except the first."""

    def update_state(self, y_true: tf.Tensor, y_pred: tf.Tensor, sample_weight: Any = None) -> None:
        odds = keras.ops.logsumexp(y_pred[:, 1:], axis=1) - y_pred[:, 0]
        super().update_state(keras.ops.reshape(y_true, (-1,)) > 0, odds, sample_weight)


def _metrics(outputs: int) -> list[keras.metrics.Metric]:
    if outputs > 1:
        accuracy = keras.metrics.SparseCategoricalAccuracy(name="accuracy")
        return [accuracy, _SumAuroc(name="auroc", from_logits=True)]
    accuracy = keras.metrics.BinaryAccuracy(name="accuracy", threshold=0.0)  # threshold of the logit
    return [accuracy, keras.metrics.AUC(name="auroc", from_logits=True)]


def compile_model(model: keras.Model, optimizer: keras.Optimizer, label_smoothing: float = 0.0) -> None:
    """Compile a model with logits: cross-entropy, accuracy, AUROC of pneumonia at 200 thresholds."""
    outputs = model.output_shape[-1]
    if outputs == 1:
        loss = keras.losses.BinaryCrossentropy(from_logits=True, label_smoothing=label_smoothing)
    else:
        loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    # On a CPU, XLA needs many minutes to compile a convolutional training step.
    model.compile(optimizer=optimizer, loss=loss, metrics=_metrics(outputs), jit_compile=False)


@dataclass(frozen=True)
class Training:
    """Record of one phase of training.

    ``history`` has one row per epoch: epoch, phase, loss, val_loss, …, learning_rate. ``seconds`` and
    ``images`` count all epochs, ``steps_left_out`` the steps without a finite gradient, which were skipped.
    """

    history: pd.DataFrame
    seconds: float
    images: int
    steps_left_out: int = 0


def train(
    model: keras.Model,
    data: XrayData,
    settings: TrainSettings,
    checkpoint: _File = None,
    phase: str = "training",
    keep: keras.layers.Layer | None = None,
    distillation: Distillation | None = None,
) -> Training:
    """Compile and train the trainable layers, with early stopping, schedule and checkpoint.

    Without a teacher, the activations of the frozen layers are computed once per view and stored on disk
    (:mod:`chestxray.models.features`). At the end the model has the weights with the best validation loss, or
    the last ones if ``stop_patience`` is None.

    A checkpoint of the same training (settings, data, initial weights, versions of Keras and TensorFlow) is
    continued, with the same final weights on the same processor. An interrupted call restores the initial
    weights, so that the same call can continue.

    Args:
        model: Input (N, size, size, 1) in 0–255; output one logit, or three (normal, bacteria, virus).
        settings: With a teacher or three logits, smoothed labels raise ValueError.
        checkpoint: File for the state (``.npz``); None stores no state.
        phase: Name of the phase in the history.
        keep: A frozen layer that a later phase starts from: its activations are stored in the same pass.
        distillation: Teacher of the model; see :class:`chestxray.models.teachers.Distillation`.
    """
    model = functional(model)
    outputs = model.output_shape[-1]
    smoothing, allowed = settings.label_smoothing, outputs == 1 and not distillation
    message = "label_smoothing must be 0 with a teacher or three logits"
    check(allowed or not smoothing, message, label_smoothing=smoothing)
    labels = data.targets("train", outputs)
    steps_per_epoch = math.ceil(len(labels) / settings.batch_size)
    optimizer = make_optimizer(model, settings, steps_per_epoch)
    features: Features | None = None
    if distillation:
        learner: keras.Model = Distiller(model, None, distillation.alpha, distillation.temperature)
        learner.compile(optimizer, _metrics(outputs))
    else:
        views = settings.augmentation, settings.views
        features = plan_features(model, data, [find_cut(model), keep], *views, settings.disk_gb)
        learner = features.rest if features else model
        compile_model(learner, optimizer, settings.label_smoothing)
    learner.optimizer.build(learner.trainable_variables)
    watched: list[keras.callbacks.Callback] = []
    if settings.stop_patience is not None:
        stop = {"patience": settings.stop_patience, "restore_best_weights": True}
        watched.append(keras.callbacks.EarlyStopping("val_loss", mode="min", **stop))
    if settings.decay == "plateau":
        plateau = {"factor": settings.plateau_factor, "patience": settings.plateau_patience}
        watched.append(keras.callbacks.ReduceLROnPlateau("val_loss", mode="min", min_delta=0.0, **plateau))
    contents = hashlib.sha256("".join(data.table["sha256"]).encode() + labels.tobytes()).hexdigest()
    identity = {"settings": asdict(settings) | {"disk_gb": None}, "phase": phase, "stored": bool(features)}
    identity |= {"pixels": data.store.key, "split": data.split_hash, "contents": contents}
    identity |= {"seed": data.train_seed, "keras": keras.__version__, "tensorflow": tf.__version__}
    identity["distillation"] = distillation.identity if distillation else None
    state = Checkpoint(Path(checkpoint) if checkpoint else None, fingerprint(model, identity), watched)
    with starting_again(learner, wanted=bool(state.path)):
        state.restore(learner)
        done = len(state.history)
        if state.finished:
            print(f"{phase}: finished earlier, {done} epochs")
        else:
            if done:
                print(f"{phase}: continued after epoch {done}")
            training, validation, prepare = _pipelines(
                data, settings, outputs, features, distillation, lambda: len(state.history)
            )
            callbacks = [prepare, *watched, EpochLine(phase, settings.epochs), state]
            with fused_batch_norm(model):
                weights = class_weights(labels, max(2, outputs)) if settings.class_weights else None
                options = {"callbacks": callbacks, "class_weight": weights, "validation_data": validation}
                epochs = {"initial_epoch": done, "epochs": done if state.stopped else settings.epochs}
                learner.fit(training, **options, **epochs, verbose=0, shuffle=False)  # the dataset shuffles
    steps = len(state.history) * steps_per_epoch
    if skipped := steps - int(learner.optimizer.iterations):
        print(f"{phase}: {skipped} of {steps} steps were skipped, because their gradient was not finite")
    history = pd.DataFrame(state.history).assign(phase=phase)
    return Training(history, state.seconds, len(state.history) * len(labels), skipped)


def _pipelines(
    data: XrayData,
    settings: TrainSettings,
    outputs: int,
    features: Features | None,
    distillation: Distillation | None,
    epoch: Callable[[], int],
) -> tuple[tf.data.Dataset, tf.data.Dataset, keras.callbacks.Callback]:
    """Pipelines of training and validation, and the callback that prepares each ``epoch``."""

    def begin(number: int, logs: dict | None = None) -> None:
        if features:
            features.prepare("val")
            features.prepare("train", number)
        if distillation:
            distillation.answers(data, "val", settings, 0, outputs)
            distillation.answers(data, "train", settings, number, outputs)

    options, views = {"outputs": outputs}, {"augment": settings.augmentation, "views": settings.views}
    if features:
        features.make_room(settings.disk_gb)
        options, views = {}, {}
    source, size = features or data, settings.batch_size
    training = source.dataset("train", size, shuffle=True, epoch=epoch, **options, **views)
    validation = source.dataset("val", size, **options)
    if distillation:
        training = distillation.join(training, data, "train", settings, outputs, epoch)
        validation = distillation.join(validation, data, "val", settings, outputs)
    return training, validation, keras.callbacks.LambdaCallback(on_epoch_begin=begin)


def summarise(phases: list[Training], policy: str, device: str) -> dict[str, Any]:
    """Summarise the phases of a training in the format of a result (contract 6)."""
    seconds, images = sum(p.seconds for p in phases), sum(p.images for p in phases)
    history = pd.concat([p.history for p in phases])
    # Six significant digits: with fixed decimals, small learning rates would be 0.
    history = history.map(lambda value: float(f"{value:.6g}") if isinstance(value, float) else value)
    return {
        "epochs": {p.history["phase"].iloc[0]: len(p.history) for p in phases},
        "seconds": round(seconds, 1),
        "images_per_second": round(images / seconds, 1),
        "steps_left_out": sum(p.steps_left_out for p in phases),
        "precision": policy,
        "device": device,
        "history": history.to_dict("list"),
    }


def set_trainable_from(model: keras.Model, first: str) -> None:
    """Unfreeze the layer ``first`` and all following layers of a flat model, except batch normalisation.

    Small batches would replace its statistics of ImageNet within one epoch, in Keras 3 also with
    ``training=False``. An unknown layer raises ValueError.
    """
    start = _position(model, first)
    for number, layer in enumerate(model.layers):
        _set_trainable(layer, number >= start, frozen=keras.layers.BatchNormalization)


def _set_trainable(layer: keras.layers.Layer, trainable: bool, frozen: type | tuple = ()) -> None:
    """Set the attribute of a layer and of all layers of a nested model, except for the class ``frozen``."""
    layer.trainable = trainable and not isinstance(layer, frozen)
    for inner in getattr(layer, "layers", ()):
        _set_trainable(inner, trainable, frozen)


def _position(model: keras.Model, name: str) -> int:
    names = [layer.name for layer in model.layers]
    similar = difflib.get_close_matches(name, names, n=5, cutoff=0.3) or names
    check(name in names, f"no such layer; similar names: {similar}", unfreeze_from=name)
    return names.index(name)


def stages_from(model: keras.Model, stages: Sequence[str], first: str) -> list[str]:
    """First layers of the trainable stages, from ``first`` on. Unknown layers raise ValueError."""
    start = _position(model, first)
    return [first, *(stage for stage in stages if _position(model, stage) > start)]


def train_head(
    model: keras.Model,
    data: XrayData,
    settings: TrainSettings,
    checkpoint: _File = None,
    unfreeze_next: str | None = None,
) -> Training:
    """Train the head, the first phase of transfer learning; the backbone is frozen up to the pooling.

    ``unfreeze_next`` is ``unfreeze_from`` of the next phase, for which activations are stored in the same
    pass; its augmentation and views must be the same. For the other arguments see :func:`train`.
    """
    keep = None
    if unfreeze_next:
        set_trainable_from(model, unfreeze_next)
        keep = find_cut(functional(model))
    set_trainable_from(model, "pool")
    return train(model, data, settings, checkpoint, phase="head", keep=keep)


def fine_tune(
    model: keras.Model, data: XrayData, settings: TrainSettings, unfreeze_from: str, checkpoint: _File = None
) -> Training:
    """Train the layer ``unfreeze_from`` and all following layers; see :func:`set_trainable_from`."""
    set_trainable_from(model, unfreeze_from)
    return train(model, data, settings, checkpoint, phase=f"from {unfreeze_from}")


def unfreeze_gradually(
    model: keras.Model, data: XrayData, settings: TrainSettings, stages: list[str], checkpoint: _File = None
) -> list[Training]:
    """Fine-tune in one phase per stage (:func:`stages_from`): the last one, then the last two, and so on."""
    path = Path(checkpoint) if checkpoint else None
    with starting_again(model, wanted=path is not None):
        return [
            fine_tune(model, data, settings, stage, path and path.with_stem(f"{path.stem}-{stage}"))
            for stage in reversed(stages)
        ]


def train_whole(
    model: keras.Model, data: XrayData, settings: TrainSettings, checkpoint: _File = None
) -> Training:
    """Train all layers of a network with random weights in one phase, including batch normalisation."""
    _set_trainable(model, True)  # model.trainable = True has no effect if it is already True
    return train(model, data, settings, checkpoint, phase="whole network")


def choose_precision(wanted: str = "auto", bf16_pays: bool = True) -> tuple[str, str]:
    """Choose the Keras dtype policy for training; print and return policy and device.

    ``wanted`` is one of ``POLICIES``; others raise ValueError. ``auto`` is bfloat16 on a GPU (float16 below
    compute capability 8), and on a CPU with bfloat16 units if the network is faster with it (``bf16_pays``).
    """
    check(wanted in POLICIES, f"precision must be one of {POLICIES}", precision=wanted)
    if gpus := tf.config.list_physical_devices("GPU"):
        details = tf.config.experimental.get_device_details(gpus[0])
        device = details.get("device_name", "GPU")
        best = "mixed_bfloat16" if details.get("compute_capability", (0,))[0] >= 8 else "mixed_float16"
    else:
        if shutil.which("nvidia-smi"):
            text = "TensorFlow does not find the NVIDIA GPU of this machine: pip install -e '.[gpu]'"
            warnings.warn(text, stacklevel=2)
        device, best = "CPU", "mixed_bfloat16" if bf16_pays and cpu_has_bf16() else "float32"
    policy = best if wanted == "auto" else wanted
    print(f"computing on {device} in {policy}")
    return policy, device


def cpu_has_bf16() -> bool:
    """Whether the CPU has bfloat16 units (AVX512-BF16 or AMX); False if unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags


@contextlib.contextmanager
def fused_batch_norm(model: keras.Model) -> Iterator[None]:
    """Train the batch normalisation of a flat model with TensorFlow's fused kernel.

    The kernel needs fewer passes over the memory than Keras 3 (``benchmarks/batch_norm.py``). Outputs,
    gradients and moving statistics are equal up to rounding. Frozen layers and prediction do not use it.
    """
    replaced = [layer for layer in model.layers if _can_be_fused(layer)]
    for layer in replaced:
        layer.call = _fused_call(layer, layer.call)
    try:
        yield
    finally:
        for layer in replaced:
            del layer.call


def _can_be_fused(layer: keras.layers.Layer) -> bool:
    if type(layer) is not keras.layers.BatchNormalization or layer.input_spec.ndim != 4:
        return False
    renorm = getattr(layer, "renorm", False)  # since Keras 3.12
    return layer.axis in (-1, 3) and not layer.synchronized and not renorm


def _fused_call(
    layer: keras.layers.BatchNormalization, original: Callable[..., tf.Tensor]
) -> Callable[..., tf.Tensor]:
    def call(inputs: tf.Tensor, training: bool | None = None, mask: Any = None) -> tf.Tensor:
        if not (training and layer.trainable):
            return original(inputs, training=training, mask=mask)
        shape = layer.moving_mean.shape
        tensors = {"x": inputs, "mean": layer.moving_mean, "variance": layer.moving_variance}
        tensors["scale"] = layer.gamma if layer.scale else tf.ones(shape)
        tensors["offset"] = layer.beta if layer.center else tf.zeros(shape)
        options = {"epsilon": layer.epsilon, "is_training": True}
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(**tensors, **options)
        count = tf.cast(tf.size(inputs) // inputs.shape[-1], variance.dtype)
        variance *= (count - 1) / count  # the kernel divides by n - 1, Keras by n
        for moving, batch_value in ((layer.moving_mean, mean), (layer.moving_variance, variance)):
            moving.assign(moving * layer.momentum + batch_value * (1 - layer.momentum))
        return outputs

    return call
