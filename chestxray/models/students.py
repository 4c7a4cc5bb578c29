"""One student trained in several ways: which way, with which settings, and with which seed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras

from chestxray.data.dataset import XrayData
from chestxray.models.builders import CNNS
from chestxray.models.settings import TrainSettings
from chestxray.models.teachers import Distillation, Teacher
from chestxray.models.training import Training, set_seed, train


@dataclass(frozen=True)
class Candidate:
    """Settings of one way of training a student.

    Attributes:
        variant: Name of the way, for example ``alone`` or ``distilled``.
        outputs: Logits of the student: 1, or 3 (normal, bacteria, virus).
        alpha: Share of the labels in the loss; 1 needs no teacher.
        temperature: Of the distillation, with ``alpha`` below 1.
        label_smoothing: See :class:`TrainSettings`; with one logit and no teacher.
        mixup: See :class:`TrainSettings`; with no teacher.
        learning_rate: See :class:`TrainSettings`; None for that of the experiment.
    """

    variant: str
    outputs: int = 1
    alpha: float = 1.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    mixup: float = 0.0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        for name, right, rule in (
            ("outputs", self.outputs in (1, 3), "must be 1 or 3"),
            ("alpha", 0 <= self.alpha <= 1, "must lie in 0–1"),
            ("temperature", self.temperature > 0, "must be above 0"),
            ("temperature", self.alpha < 1 or self.temperature == 1, "does nothing with alpha 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "must lie in 0–1"),
            (
                "label_smoothing",
                not self.label_smoothing or self.outputs == self.alpha == 1,
                "needs one logit and alpha 1",
            ),
            ("mixup", self.mixup >= 0, "must not be negative"),
            ("mixup", not self.mixup or self.alpha == 1, "needs alpha 1"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "must be above 0"),
        ):
            if not right:
                raise ValueError(
                    f"{name} {rule}. Received: variant={self.variant!r}, {name}={getattr(self, name)!r}"
                )

    @property
    def text(self) -> str:
        """The variant with what differs from the defaults."""
        differing = [
            f"{field.name}={getattr(self, field.name):g}"
            for field in dataclasses.fields(self)[1:]
            if getattr(self, field.name) != field.default
        ]
        return " ".join([self.variant, *differing])


def read_candidates(given: Mapping[str, list[dict]]) -> list[Candidate]:
    """Read a notebook's parameter: for each variant a list of settings, equally many.

    Raises:
        ValueError: An variant may try more than another or the same twice, or a
            setting is unknown or useless.
    """
    counts = {variant: len(settings) for variant, settings in given.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise ValueError(
            f"every variant must have the same number of candidates. Received: candidates={counts}"
        )
    known = {field.name for field in dataclasses.fields(Candidate)} - {"variant"}
    if unknown := sorted({name for settings in given.values() for one in settings for name in one} - known):
        raise ValueError(f"a candidate may set {sorted(known)}. Received: setting={unknown[0]!r}")
    ways = [Candidate(variant, **one) for variant, settings in given.items() for one in settings]
    if twice := next((way.text for way in ways if ways.count(way) > 1), None):
        raise ValueError(f"a candidate is listed twice. Received: candidate={twice!r}")
    return ways


def train_student(
    architecture: str,
    data: XrayData,
    settings: TrainSettings,
    candidate: Candidate,
    seed: int,
    teachers: Mapping[int, Teacher],
    dropout: float = 0.2,
    checkpoint: str | Path | None = None,
) -> tuple[keras.Model, Training]:
    """Build and train one student.

    Args:
        architecture: Name in :data:`chestxray.models.builders.CNNS`.
        data: Its pixels; order and views of the images follow from the
            data's own seed, so all students of an experiment see the same.
        settings: Of the experiment; learning rate, label smoothing and mixup are the candidate's.
        candidate: The way of training.
        seed: Of the first weights and the dropout.
        teachers: By number of logits.
        dropout: See the builder.
        checkpoint: See :func:`chestxray.models.training.train`.

    Raises:
        ValueError: Unknown architecture, or there is no teacher with so many logits.
    """
    if architecture not in CNNS:
        raise ValueError(
            f"architecture must be one of {sorted(CNNS)}. Received: architecture={architecture!r}"
        )
    distillation = None
    if candidate.alpha < 1:
        if candidate.outputs not in teachers:
            raise ValueError(
                f"a teacher with {candidate.outputs} logits is needed. "
                f"Received: variant={candidate.variant!r}, teachers with {sorted(teachers)}"
            )
        distillation = Distillation(teachers[candidate.outputs], candidate.alpha, candidate.temperature)
    set_seed(seed)
    student = CNNS[architecture](data.store.settings.size, dropout, outputs=candidate.outputs)
    settings = dataclasses.replace(
        settings,
        label_smoothing=candidate.label_smoothing,
        mixup=candidate.mixup,
        learning_rate=candidate.learning_rate or settings.learning_rate,
    )
    return student, train(
        student, data, settings, checkpoint, f"{candidate.text}, seed {seed}", distillation=distillation
    )
