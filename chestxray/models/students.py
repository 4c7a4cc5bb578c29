"""Settings of a training variant of a student, and its training."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path

import keras

from chestxray.data.dataset import XrayData
from chestxray.models.builders import CNNS
from chestxray.models.settings import TrainSettings
from chestxray.models.teachers import Distillation, Teacher
from chestxray.models.training import Training, train
from chestxray.schema import check


@dataclass(frozen=True)
class Candidate:
    """Settings of one training variant of a student; a value out of range raises ValueError.

    Attributes:
        outputs: Number of logits of the student: 1, or 3 (normal, bacteria, virus).
        alpha: Weight of the labels in the loss, in [0, 1]; with 1 there is no teacher.
        temperature: Temperature of the distillation, above 0; 1 without a teacher.
        label_smoothing: See :class:`TrainSettings`; only with one logit and no teacher.
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
            ("alpha", 0 <= self.alpha <= 1, "must be in [0, 1]"),
            ("temperature", self.temperature > 0, "must be above 0"),
            ("temperature", self.alpha < 1 or self.temperature == 1, "must be 1 with alpha 1"),
            ("label_smoothing", 0 <= self.label_smoothing < 1, "must be in [0, 1)"),
            ("label_smoothing", plain or not self.label_smoothing, "must be 0 without one logit and alpha 1"),
            ("learning_rate", self.learning_rate is None or self.learning_rate > 0, "must be above 0"),
        ):
            check(valid, f"{name} {text}", variant=self.variant, **{name: getattr(self, name)})

    @property
    def text(self) -> str:
        """Name of the variant and the settings that differ from the defaults."""
        settings = [(field, getattr(self, field.name)) for field in fields(self)[1:]]
        differing = [f"{field.name}={value:g}" for field, value in settings if value != field.default]
        return " ".join([self.variant, *differing])


def read_candidates(given: Mapping[str, list[dict]]) -> list[Candidate]:
    """Create the candidates from a notebook's parameter: for each variant a list of settings.

    Lists of different lengths, equal candidates and unknown or invalid settings raise ValueError.
    """
    counts = {variant: len(settings) for variant, settings in given.items()}
    equal = len(set(counts.values())) == 1 and all(counts.values())
    check(equal, "variants must have equally many candidates", candidates=counts)
    pairs = [(variant, settings) for variant, group in given.items() for settings in group]
    known = {field.name for field in fields(Candidate)} - {"variant"}
    if unknown := sorted({name for _, settings in pairs for name in settings} - known):
        raise ValueError(f"setting must be one of {sorted(known)}. Received: setting={unknown[0]!r}")
    candidates = [Candidate(variant, **settings) for variant, settings in pairs]
    if duplicates := [candidate.text for candidate in candidates if candidates.count(candidate) > 1]:
        raise ValueError(f"candidates must differ. Received: candidate={duplicates[0]!r} (twice)")
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
    """Build and train one student with an ``architecture`` of :data:`chestxray.models.builders.CNNS`.

    The candidate replaces learning rate and label smoothing of the ``settings``. ``seed`` determines initial
    weights and dropout. The keys of ``teachers`` are numbers of logits; a missing one raises ValueError.
    """
    check(architecture in CNNS, f"architecture must be one of {sorted(CNNS)}", architecture=architecture)
    outputs, distillation = candidate.outputs, None
    if candidate.alpha < 1:
        received = {"variant": candidate.variant, "teachers": sorted(teachers)}
        check(outputs in teachers, f"teachers must have one with {outputs} logits", **received)
        distillation = Distillation(teachers[outputs], candidate.alpha, candidate.temperature)
    keras.utils.set_random_seed(seed)
    student = CNNS[architecture](data.store.settings.size, dropout, outputs=outputs)
    rate = candidate.learning_rate or settings.learning_rate
    settings = replace(settings, label_smoothing=candidate.label_smoothing, learning_rate=rate)
    phase = f"{candidate.text}, seed {seed}"
    return student, train(student, data, settings, checkpoint, phase=phase, distillation=distillation)
