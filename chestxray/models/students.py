"""Variants of training a student: settings of each, and the training of one."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import keras

from chestxray.data.dataset import XrayData
from chestxray.models.builders import CNNS
from chestxray.models.settings import TrainSettings
from chestxray.models.teachers import Distillation, Teacher
from chestxray.models.training import Training, train


@dataclass(frozen=True)
class Candidate:
    """Settings of one variant of training a student; a value out of range raises ValueError.

    Attributes:
        variant: Its name, for example ``alone`` or ``distilled``.
        outputs: Logits of the student: 1, or 3 (normal, bacteria, virus).
        alpha: Share of the labels in the loss, 0–1; 1 needs no teacher.
        temperature: Of the distillation, above 0; 1 if there is none.
        label_smoothing: See :class:`TrainSettings`; with one logit and no teacher.
        learning_rate: See :class:`TrainSettings`; None for that of the experiment.
    """

    variant: str
    outputs: int = 1
    alpha: float = 1.0
    temperature: float = 1.0
    label_smoothing: float = 0.0
    learning_rate: float | None = None

    def __post_init__(self) -> None:
        plain = self.outputs == self.alpha == 1
        for name, valid, text in (
            ("outputs", self.outputs in (1, 3), "must be 1 or 3"),
            ("alpha", 0 <= self.alpha <= 1, "must lie in 0–1"),
            ("temperature", self.temperature > 0, "must be above 0"),
            ("temperature", self.alpha < 1 or self.temperature == 1, "does nothing with alpha 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "must lie in 0–1"),
            ("label_smoothing", plain or not self.label_smoothing, "needs one logit and alpha 1"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "must be above 0"),
        ):
            if not valid:
                received = f"variant={self.variant!r}, {name}={getattr(self, name)!r}"
                raise ValueError(f"{name} {text}. Received: {received}")

    @property
    def text(self) -> str:
        """The variant with the settings that differ from the defaults."""
        settings = [(field, getattr(self, field.name)) for field in dataclasses.fields(self)[1:]]
        differing = [f"{field.name}={value:g}" for field, value in settings if value != field.default]
        return " ".join([self.variant, *differing])


def read_candidates(given: Mapping[str, list[dict]]) -> list[Candidate]:
    """Read a notebook's parameter: for each variant a list of settings, all of one length.

    ValueError: a variant may try more than another or the same twice, or a setting is unknown or useless.
    """
    counts = {variant: len(tried) for variant, tried in given.items()}
    if len(set(counts.values())) != 1 or not all(counts.values()):
        raise ValueError(f"every variant needs the same number of candidates. Received: candidates={counts}")
    known = {field.name for field in dataclasses.fields(Candidate)} - {"variant"}
    names = {name for tried in given.values() for settings in tried for name in settings}
    if unknown := sorted(names - known):
        raise ValueError(f"a candidate may set {sorted(known)}. Received: setting={unknown[0]!r}")
    candidates = [Candidate(variant, **settings) for variant, tried in given.items() for settings in tried]
    if twice := next((each.text for each in candidates if candidates.count(each) > 1), None):
        raise ValueError(f"a candidate is listed twice. Received: candidate={twice!r}")
    return candidates


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
    """Build and train one student of an ``architecture`` in :data:`chestxray.models.builders.CNNS`.

    Learning rate and label smoothing of the ``settings`` are replaced by the candidate's. ``seed`` is that of
    first weights and dropout; order and views of the images follow from ``data.train_seed``. ``teachers`` are
    given by number of logits; a missing one raises ValueError, as an unknown architecture does.
    """
    if architecture not in CNNS:
        raise ValueError(f"architecture must be one of {sorted(CNNS)}. Received: {architecture=}")
    outputs, distillation = candidate.outputs, None
    if candidate.alpha < 1:
        if outputs not in teachers:
            received = f"variant={candidate.variant!r}, teachers with {sorted(teachers)}"
            raise ValueError(f"a teacher with {outputs} logits is needed. Received: {received}")
        distillation = Distillation(teachers[outputs], candidate.alpha, candidate.temperature)
    keras.utils.set_random_seed(seed)
    student = CNNS[architecture](data.store.settings.size, dropout, outputs=outputs)
    rate = candidate.learning_rate or settings.learning_rate
    settings = dataclasses.replace(settings, label_smoothing=candidate.label_smoothing, learning_rate=rate)
    phase = f"{candidate.text}, seed {seed}"
    return student, train(student, data, settings, checkpoint, phase=phase, distillation=distillation)
