"""Teacher logits, computed once per augmented view and cached."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
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

TEACHERS_VERSION = 1  # part of the key of cached logits: raise it when views or their computation change
_BATCH = 32


class SavedClassifier(Protocol):
    """The parts of a classifier that a teacher needs; the card has its name and its split."""

    model: keras.Model
    card: dict[str, Any]
    image_settings: ImageSettings


class Teacher:
    """One saved classifier, or an ensemble whose logits are averaged.

    The logits of one view of all images of a subset are one file on disk, computed once for all students.
    """

    def __init__(self, members: Sequence[tuple[SavedClassifier, XrayData]], bf16: bool = False):
        """Join ``members``: classifiers, each with the data in its own image settings.

        Another split or other pixels raise ValueError, an exported one TypeError. ``bf16`` is about 1 % off.
        """
        if not members:
            raise ValueError("a teacher needs at least one classifier. Received: members=[]")
        for classifier, data in members:
            trained = classifier.card["training_data"]["split_hash"]
            received = f"Received: teacher={classifier.card['name']!r}"
            if not isinstance(classifier.model, keras.Model):
                raise TypeError(f"a teacher must be a Keras model, not an exported one. {received}")
            if trained != data.split_hash:
                message = "trained on another split: it may know validation and test images of this one"
                received += f" ({trained}), split={data.split_hash!r}"
                raise ValueError(f"this teacher was {message}. {received}")
            if classifier.image_settings != data.store.settings:
                message = f"this teacher sees other pixels: {classifier.image_settings}"
                raise ValueError(f"{message}. {received}, data with {data.store.settings}")
        self.members, self.bf16 = list(members), bf16
        self.names = [classifier.card["name"] for classifier, _ in members]
        self.outputs = min(classifier.model.output_shape[-1] for classifier, _ in members)
        computed = {"version": TEACHERS_VERSION, "bf16": bf16, "keras": keras.__version__}
        computed |= {"tensorflow": tf.__version__, "devices": len(tf.config.list_physical_devices())}
        self._identities = [fingerprint(classifier.model, computed) for classifier, _ in members]
        self._graphs: dict[int, Callable] = {}
        self._logits: dict[tuple, dict[str, np.ndarray]] = {}

    @property
    def identity(self) -> list[list[str]]:
        """Everything that decides the logits, besides the view."""
        return [[identity, data.store.key] for identity, (_, data) in zip(self._identities, self.members)]

    def logits(
        self, subset: str, paths: Sequence[str], augmentation: Augmentation | None = None, view: int = 0
    ) -> np.ndarray:
        """Look up the logits of the given images of a subset, or compute those of the whole subset.

        ``augmentation`` and ``view`` are random views and the number of the view, or None for the images as
        they are. An unknown path raises ValueError. Returns ``float32`` (len(paths), outputs).
        """
        key = subset, augmentation, view if augmentation else None
        if key not in self._logits:
            # One view of each subset is in memory at a time.
            self._logits = {kept: rows for kept, rows in self._logits.items() if kept[0] != subset}
            self._logits[key] = self._mean_logits(*key)
        try:
            return np.stack([self._logits[key][path] for path in paths])
        except KeyError as error:
            raise ValueError(f"the teacher has no such image. Received: path={error.args[0]!r}") from None

    def _mean_logits(self, *view: Any) -> dict[str, np.ndarray]:
        members = [self._member_logits(number, *view) for number in range(len(self.members))]
        if self.outputs == 1:
            members = [{path: np.float32(log_odds(row)) for path, row in rows.items()} for rows in members]
        shared = set.intersection(*map(set, members))
        return {path: np.mean([np.atleast_1d(rows[path]) for rows in members], axis=0) for path in shared}

    def _member_logits(
        self, number: int, subset: str, augmentation: Augmentation | None, view: int | None
    ) -> dict[str, np.ndarray]:
        classifier, data = self.members[number]
        rows = data.subset(subset)
        drawn = [asdict(augmentation), view, data.train_seed] if augmentation else None
        key = json.dumps([*self.identity[number], list(rows["path"]), list(rows["sha256"]), drawn])
        file = cache_dir("teachers") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        # A file that is missing, or damaged in any way, is made (again).
        with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as stored:
            return dict(zip(stored["paths"].tolist(), stored["logits"], strict=True))
        if number not in self._graphs:
            self._graphs[number] = frozen_graph(classifier.model, self.bf16)
        shown = f"{subset}, view {view + 1}" if augmentation else subset
        print(f"computing {self.names[number]} for {len(rows)} images ({shown})", flush=True)
        options = {"augment": augmentation, "seed": data.train_seed, "epoch": lambda: view or 0}
        images = data.store.dataset(rows, _BATCH, **options)
        logits = np.concatenate([self._graphs[number](pixels)[0].numpy() for pixels, _ in images])
        logits = logits.astype(np.float32)
        with whole_file(file) as partial:
            np.savez(partial, paths=np.array(list(rows["path"])), logits=logits)
        return dict(zip(rows["path"], logits, strict=True))


@dataclass(frozen=True)
class Distillation:
    """Settings of distillation; see :class:`chestxray.models.distillation.Distiller`.

    A teacher with three logits is reduced to the log-odds of pneumonia for a student with one.
    """

    teacher: Teacher = field(repr=False)
    alpha: float = 0.3
    temperature: float = 2.0

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that decides the training, as plain JSON types."""
        return {"teacher": self.teacher.identity, "alpha": self.alpha, "temperature": self.temperature}

    def answers(
        self, data: XrayData, subset: str, settings: TrainSettings, epoch: int, outputs: int
    ) -> np.ndarray:
        """Teacher's logits for the images of an epoch, (N, outputs), in the table's order.

        Raises ValueError: The student has more classes than the teacher, or another split or seed.
        """
        for _, taught in self.teacher.members:
            teacher, student = (f"{each.split_hash}, {each.train_seed}" for each in (taught, data))
            if teacher != student:
                message = "teacher and student must have the same split and seed"
                raise ValueError(f"{message}. Received: teacher={teacher}, student={student}")
        if outputs > self.teacher.outputs:
            message = "a student of three classes needs a teacher of three"
            raise ValueError(f"{message}. Received: teacher={self.teacher.names}")
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
        """Join the logits to batches of ``data.dataset``: ``({"image": …, "teacher_logit": …}, labels)``."""
        count = len(data.subset(subset))

        def begin() -> list[np.ndarray]:
            number = epoch()
            order = pass_order(count, subset == "train", data.train_seed, number)
            return [self.answers(data, subset, settings, number, outputs)[order]]

        signature = [tf.TensorSpec((None, outputs), tf.float32)]
        taught = pass_batches(begin, signature, count, settings.batch_size)
        joined = tf.data.Dataset.zip(images, taught)
        return joined.map(lambda pair, taught: ({"image": pair[0], "teacher_logit": taught[0]}, pair[1]))
