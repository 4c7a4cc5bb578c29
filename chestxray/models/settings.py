"""Settings of one training phase, its optimizer and its learning rates."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import keras
import tensorflow as tf

from chestxray.data.augmentation import Augmentation
from chestxray.schema import check

OPTIMIZERS = {
    "adam": keras.optimizers.Adam,
    "rmsprop": keras.optimizers.RMSprop,
    "sgd": lambda learning_rate: keras.optimizers.SGD(learning_rate, momentum=0.9),
}
DECAYS = ("plateau", "cosine")


@dataclass(frozen=True)
class TrainSettings:
    """Settings of one training phase; a value out of range raises ValueError.

    Attributes:
        epochs, batch_size: Maximum number of epochs; number of images per step.
        learning_rate, optimizer: Maximum learning rate; ``adam``, ``rmsprop``, or ``sgd`` (momentum 0.9).
        decay: ``plateau`` lowers the learning rate when the validation loss stops falling; ``cosine`` lowers
            it to 0 at the last epoch by half a cosine wave (Loshchilov and Hutter 2017, without restarts).
        plateau_patience, plateau_factor: Epochs without a better validation loss, and the factor on the rate.
        warmup_epochs: First epochs, in which the learning rate rises linearly from 0; only with ``cosine``.
        stop_patience: Epochs without a better validation loss after which training stops. The best weights
            are restored in any case. None: all epochs are trained, and the model has the last weights.
        rates: Factors on the learning rate, ``{name of a layer: factor}``. A factor applies to its layer and
            all following layers up to the next named one; before the first it is 1 (Howard and Ruder 2018).
        class_weights: Whether all classes have the same total weight in the training loss.
        label_smoothing: Twice the shift of the labels 0 and 1 towards 0.5 (Szegedy 2016); for one logit.
        augmentation: Random augmentation of the training images, or None.
        views: Number of augmented views of each image, which the epochs use in turn; frozen layers are
            computed once per view. 0: each epoch has new views and computes the whole network.
        disk_gb: Maximum size of the stored activations, in 10⁹ bytes.
    """

    epochs: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 32
    optimizer: str = "adam"
    decay: str = "plateau"
    plateau_patience: int = 4
    plateau_factor: float = 0.2
    warmup_epochs: float = 0.0
    stop_patience: int | None = 10
    rates: Mapping[str, float] = field(default_factory=dict)
    class_weights: bool = True
    label_smoothing: float = 0.0
    augmentation: Augmentation | None = None
    views: int = 0
    disk_gb: float = 20.0

    def __post_init__(self) -> None:
        for name, valid, text in (
            ("optimizer", self.optimizer in OPTIMIZERS, f"be one of {sorted(OPTIMIZERS)}"),
            ("decay", self.decay in DECAYS, f"be one of {DECAYS}"),
            ("epochs", self.epochs >= 1 and self.epochs == int(self.epochs), "be a whole number above 0"),
            ("batch_size", self.batch_size >= 1, "be at least 1"),
            ("learning_rate", self.learning_rate > 0, "be above 0"),
            ("plateau_patience", self.plateau_patience >= 0, "not be negative"),
            ("stop_patience", self.stop_patience is None or self.stop_patience >= 0, "not be negative"),
            ("plateau_factor", 0 < self.plateau_factor < 1, "be in (0, 1)"),
            ("warmup_epochs", 0 <= self.warmup_epochs < self.epochs, "be in [0, epochs)"),
            ("warmup_epochs", self.decay == "cosine" or not self.warmup_epochs, "be 0 without cosine"),
            ("rates", all(rate > 0 for rate in self.rates.values()), "all be above 0"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "be in [0, 1)"),
            ("views", self.views >= 0, "not be negative"),
            ("disk_gb", self.disk_gb >= 0, "not be negative"),
        ):
            check(valid, f"{name} must {text}", **{name: getattr(self, name)})


def make_optimizer(model: keras.Model, settings: TrainSettings, steps_per_epoch: int) -> keras.Optimizer:
    """Create the optimizer of a phase for the whole network; an unknown layer in ``rates`` raises ValueError.

    In bfloat16 it skips steps whose gradient is not finite (on AMX processors, oneDNN issue 5717).
    """
    rate = settings.learning_rate
    if settings.decay == "cosine":
        steps = settings.epochs * steps_per_epoch
        warmup = min(round(settings.warmup_epochs * steps_per_epoch), steps - 1)
        start, warm = (0.0, {"warmup_target": rate, "warmup_steps": warmup}) if warmup else (rate, {})
        rate = keras.optimizers.schedules.CosineDecay(start, steps - warmup, **warm)
    optimizer = OPTIMIZERS[settings.optimizer](rate)
    if settings.rates:
        _scale_updates(optimizer, model, settings.rates)
    if any(layer.compute_dtype == "bfloat16" for layer in model.layers):
        return keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=1.0, dynamic_growth_steps=2**30)
    return optimizer


def _scale_updates(optimizer: keras.Optimizer, model: keras.Model, rates: Mapping[str, float]) -> None:
    """Multiply the learning rate of each variable; Adam would cancel a factor on the gradient."""
    names = [layer.name for layer in model.layers]
    if unknown := [name for name in rates if name not in names]:
        raise ValueError(f"rates must name layers ({names[:5]}, …). Received: rates={unknown[0]!r}")
    factors, factor = {}, 1.0
    for layer in model.layers:
        factor = rates.get(layer.name, factor)
        factors |= {variable.value.ref(): factor for variable in layer.trainable_variables}
    update = optimizer.update_step

    def scaled(gradient: tf.Tensor, variable: tf.Variable, learning_rate: tf.Tensor) -> None:
        update(gradient, variable, learning_rate * factors[variable.ref()])

    optimizer.update_step = scaled
