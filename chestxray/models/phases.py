"""The phases of transfer learning: which layers learn when."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

import keras

from chestxray.data.dataset import XrayData
from chestxray.models.checkpoint import starting_again
from chestxray.models.frozen import find_cut
from chestxray.models.schedules import TrainSettings
from chestxray.models.training import Training, train


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
