"""What teachers say about each view of each image, asked once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import keras
import numpy as np
import tensorflow as tf

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import XrayData, pass_batches, pass_order
from chestxray.data.images import ImageSettings
from chestxray.evaluation.calibration import log_odds
from chestxray.files import cache_dir, whole_file
from chestxray.models.checkpoint import fingerprint
from chestxray.models.features import frozen_graph
from chestxray.models.settings import TrainSettings

TEACHERS_VERSION = 1
"""Part of the key of stored answers: raise it whenever views or their computation change."""

_BATCH = 32


class SavedClassifier(Protocol):
    """What a teacher needs of a classifier: the network, and a card with its name and its split."""

    model: keras.Model
    card: dict[str, Any]
    image_settings: ImageSettings


class Teacher:
    """One saved classifier, or an ensemble whose logits are averaged.

    Each member sees its own pixels (size, CLAHE) of the very views that the
    student sees: the parameters of a view depend on the image's path, the
    number of the view and the data's seed, not on the pixels. The answers
    about one view of all images of a subset are one file on disk, looked up by
    path, so that a big teacher is asked once for all students, variants and seeds.
    """

    def __init__(self, members: Sequence[tuple[SavedClassifier, XrayData]], bf16: bool = False):
        """Join the members; nothing is computed yet.

        Args:
            members: Classifiers, each with the data in its own image
                settings; all of one split.
            bf16: Let the processor compute in bfloat16: faster, and about
                1 % off.

        Raises:
            TypeError: A classifier is no Keras model, but an exported one.
            ValueError: A classifier was trained on another split than that
                of its data (it may have seen what the student is validated
                on), or on other pixels.
        """
        if not members:
            raise ValueError("a teacher needs at least one classifier. Received: members=[]")
        for classifier, data in members:
            if not isinstance(classifier.model, keras.Model):
                raise TypeError(
                    "a teacher must be a Keras model, not an exported one. "
                    f"Received: teacher={classifier.card['name']!r}"
                )
            trained = classifier.card["training_data"]["split_hash"]
            if trained != data.split_hash:
                raise ValueError(
                    "this teacher was trained on another split: it may know validation and test "
                    f"images of this one. Received: teacher={classifier.card['name']!r} "
                    f"({trained}), split={data.split_hash!r}"
                )
            if classifier.image_settings != data.store.settings:
                raise ValueError(
                    f"this teacher sees other pixels: {classifier.image_settings}. Received: "
                    f"teacher={classifier.card['name']!r}, data with {data.store.settings}"
                )
        self.members, self.bf16 = list(members), bf16
        self.names = [classifier.card["name"] for classifier, _ in members]
        self.outputs = min(classifier.model.output_shape[-1] for classifier, _ in members)
        computed = {
            "version": TEACHERS_VERSION,
            "bf16": bf16,
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "devices": len(tf.config.list_physical_devices()),
        }
        self._identities = [fingerprint(classifier.model, computed) for classifier, _ in members]
        self._graphs: dict[int, Callable] = {}
        self._answers: dict[tuple, dict[str, np.ndarray]] = {}

    @property
    def identity(self) -> list[list[str]]:
        """What decides the answers, besides the view."""
        return [
            [identity, data.store.key]
            for identity, (_, data) in zip(self._identities, self.members, strict=True)
        ]

    def logits(
        self, subset: str, paths: Sequence[str], augmentation: Augmentation | None = None, view: int = 0
    ) -> np.ndarray:
        """Ask about the given images, or look up what was answered before.

        Args:
            subset: train, val or test: all its images are asked about at once.
            paths: Images of this subset.
            augmentation: Random views, or None for the images as they are.
            view: Number of the view.

        Returns:
            ``float32`` (len(paths), outputs): the mean of the members' logits.

        Raises:
            ValueError: A member has no such image.
        """
        key = subset, augmentation, view if augmentation else None
        if key not in self._answers:
            self._answers = {
                kept: answers for kept, answers in self._answers.items() if kept[0] != subset
            }  # one view of each part at a time
            self._answers[key] = self._ask_all(*key)
        try:
            return np.stack([self._answers[key][path] for path in paths])
        except KeyError as error:
            raise ValueError(f"the teacher has no such image. Received: path={error.args[0]!r}") from None

    def _ask_all(
        self, subset: str, augmentation: Augmentation | None, view: int | None
    ) -> dict[str, np.ndarray]:
        found = [self._ask(number, subset, augmentation, view) for number in range(len(self.members))]
        if self.outputs == 1:
            found = [{path: np.float32(log_odds(row)) for path, row in answers.items()} for answers in found]
        return {
            path: np.mean([np.atleast_1d(answers[path]) for answers in found], axis=0)
            for path in set.intersection(*map(set, found))
        }

    def _ask(
        self, number: int, subset: str, augmentation: Augmentation | None, view: int | None
    ) -> dict[str, np.ndarray]:
        """Answers of one member by path, from the disk or computed."""
        classifier, data = self.members[number]
        rows = data.subset(subset)
        drawn = [asdict(augmentation), view, data.train_seed] if augmentation else None
        key = json.dumps([*self.identity[number], list(rows["path"]), list(rows["sha256"]), drawn])
        file = cache_dir("teachers") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        answers = _read_answers(file)
        if answers is None:
            if number not in self._graphs:
                self._graphs[number] = frozen_graph(classifier.model, self.bf16)
            shown = f"{subset}, view {view + 1}" if augmentation else subset
            print(f"asking {self.names[number]} about {len(rows)} images ({shown})", flush=True)
            images = data.store.dataset(
                rows, _BATCH, augment=augmentation, seed=data.train_seed, epoch=lambda: view or 0
            )
            logits = np.concatenate([self._graphs[number](pixels)[0].numpy() for pixels, _ in images])
            answers = dict(zip(rows["path"], logits.astype(np.float32), strict=True))
            with whole_file(file) as partial:
                np.savez(partial, paths=np.array(list(answers)), logits=np.stack(list(answers.values())))
        return answers


def _read_answers(file: Path) -> dict[str, np.ndarray] | None:
    """Stored logits by path; None where there is no such file, or a damaged one."""
    try:
        with np.load(file, allow_pickle=False) as stored:
            return dict(zip(stored["paths"].tolist(), stored["logits"], strict=True))
    except Exception:  # a damaged file can fail in any way; what it held can be asked again
        return None


@dataclass(frozen=True)
class Distillation:
    """How a student is taught; see :class:`chestxray.models.distillation.Distiller`.

    Attributes:
        teacher: Gives as many logits as the student, or is reduced to the
            log-odds of pneumonia when the student has one.
        alpha: Share of the labels' term, [0, 1].
        temperature: T, above 0.
    """

    teacher: Teacher = field(repr=False)
    alpha: float = 0.3
    temperature: float = 2.0

    @property
    def identity(self) -> dict[str, Any]:
        """What decides the training, as plain JSON types."""
        return {"teacher": self.teacher.identity, "alpha": self.alpha, "temperature": self.temperature}

    def answers(
        self, data: XrayData, subset: str, settings: TrainSettings, epoch: int, outputs: int
    ) -> np.ndarray:
        """The teacher's logits for the pictures of an epoch, (N, outputs), in the table's order.

        Raises:
            ValueError: The student has more classes than the teacher, or the
                teacher's data are of another split or seed: it would see
                other views.
        """
        for _, taught in self.teacher.members:
            if (taught.split_hash, taught.train_seed) != (data.split_hash, data.train_seed):
                raise ValueError(
                    "teacher and student must have the same split and seed. Received: "
                    f"teacher={taught.split_hash}, {taught.train_seed}, "
                    f"student={data.split_hash}, {data.train_seed}"
                )
        if outputs > self.teacher.outputs:
            raise ValueError(
                f"a student of three classes needs a teacher of three. Received: teacher={self.teacher.names}"
            )
        augmentation = settings.augmentation if subset == "train" else None
        view = epoch % settings.views if settings.views else epoch
        logits = self.teacher.logits(subset, list(data.subset(subset)["path"]), augmentation, view)
        return logits if outputs == logits.shape[1] else log_odds(logits)[:, np.newaxis]

    def join(
        self,
        images: tf.data.Dataset,
        data: XrayData,
        subset: str,
        settings: TrainSettings,
        outputs: int,
        epoch: Callable[[], int] = lambda: 0,
    ) -> tf.data.Dataset:
        """Put the teacher's logits beside the batches of a data set.

        Args:
            images: From ``data.dataset`` with the same settings and epoch;
                train is shuffled.
            data, subset, settings, outputs: Of the student.
            epoch: Tells the number of the epoch when one begins.

        Returns:
            Dataset of ``({"image": …, "teacher_logit": …}, labels)``.
        """
        count = len(data.subset(subset))

        def begin() -> list[np.ndarray]:
            number = epoch()
            order = pass_order(count, subset == "train", data.train_seed, number)
            return [self.answers(data, subset, settings, number, outputs)[order]]

        signature = [tf.TensorSpec((None, outputs), tf.float32)]
        taught = pass_batches(begin, signature, count, settings.batch_size)
        joined = tf.data.Dataset.zip(images, taught)
        return joined.map(lambda pair, taught: ({"image": pair[0], "teacher_logit": taught[0]}, pair[1]))
