"""Teacher logits, computed once per augmented view and cached."""

import contextlib
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import XrayData, pass_batches, pass_order
from chestxray.evaluation.calibration import log_odds
from chestxray.files import cache_dir, whole_file
from chestxray.models.checkpoint import fingerprint
from chestxray.models.features import frozen_graph
from chestxray.models.settings import TrainSettings
from chestxray.schema import check

TEACHERS_VERSION = 1  # part of the key of cached logits: increase it when views or their computation change
_BATCH = 32


class Teacher:
    """One saved classifier, or an ensemble of classifiers with averaged logits.

    The logits of one view of all images of a subset are one file on disk, computed once for all students.
    """

    def __init__(self, members: Sequence[tuple[Any, XrayData]], bf16: bool = False):
        """Create the teacher from ``members``: pairs of a Classifier and the data in its image settings.

        Another split or other settings raise ValueError. With ``bf16`` logits have an error of about 1 %.
        """
        check(members, "members must contain at least one classifier", members=members)
        for classifier, data in members:
            name, settings = classifier.card["name"], classifier.image_settings
            message = "a teacher must be a Keras model, not an exported one"
            check(isinstance(classifier.model, keras.Model), message, TypeError, teacher=name)
            # Otherwise it may be trained on validation or test images of this split.
            split = classifier.card["training_data"]["split_hash"]
            message = f"a teacher must be trained on the same split ({data.split_hash})"
            check(split == data.split_hash, message, teacher=name, split=split)
            message = f"the data must have the image settings of the teacher ({settings})"
            check(settings == data.store.settings, message, teacher=name, data=data.store.settings)
        self.members, self.bf16 = list(members), bf16
        self.names = [classifier.card["name"] for classifier, _ in members]
        self.outputs = min(classifier.model.output_shape[-1] for classifier, _ in members)
        computed = {"version": TEACHERS_VERSION, "bf16": bf16, "keras": keras.__version__}
        computed |= {"tensorflow": tf.__version__, "devices": len(tf.config.list_physical_devices())}
        # Everything that determines the logits except the view.
        self.identity = [[fingerprint(member.model, computed), data.store.key] for member, data in members]
        self._graphs: dict[int, Callable] = {}
        self._logits: dict[tuple, dict[str, np.ndarray]] = {}

    def logits(
        self, subset: str, paths: Sequence[str], augmentation: Augmentation | None = None, view: int = 0
    ) -> np.ndarray:
        """Return the logits of images of a subset, ``float32`` (len(paths), outputs).

        They are computed for the whole subset if they are not stored. An unknown path raises ValueError.
        """
        key = subset, augmentation, view if augmentation else None
        if key not in self._logits:
            # One view of each subset is in memory at a time.
            self._logits = {other: rows for other, rows in self._logits.items() if other[0] != subset}
            members = [self._member_logits(number, *key) for number in range(len(self.members))]
            if self.outputs == 1:
                members = [{path: np.float32(log_odds(z)) for path, z in rows.items()} for rows in members]
            shared = set.intersection(*map(set, members))
            together = {path: [np.atleast_1d(rows[path]) for rows in members] for path in shared}
            self._logits[key] = {path: np.mean(logits, axis=0) for path, logits in together.items()}
        try:
            return np.stack([self._logits[key][path] for path in paths])
        except KeyError as error:
            path = error.args[0]
            raise ValueError(f"paths must be in the teacher's data. Received: path={path!r}") from None

    def _member_logits(
        self, number: int, subset: str, augmentation: Augmentation | None, view: int | None
    ) -> dict[str, np.ndarray]:
        classifier, data = self.members[number]
        rows = data.subset(subset)
        augmented = [asdict(augmentation), view, data.train_seed] if augmentation else None
        key = json.dumps([*self.identity[number], list(rows["path"]), list(rows["sha256"]), augmented])
        file = cache_dir("teachers") / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.npz"
        # A missing or damaged file is computed (again).
        with contextlib.suppress(Exception), np.load(file, allow_pickle=False) as stored:
            return dict(zip(stored["paths"].tolist(), stored["logits"], strict=True))
        if number not in self._graphs:
            self._graphs[number] = frozen_graph(classifier.model, self.bf16)
        name = f"{subset}, view {view + 1}" if augmentation else subset
        print(f"computing {self.names[number]} for {len(rows)} images ({name})", flush=True)
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

    For a student with one logit, the logits of a three-class teacher become the log-odds of pneumonia.
    """

    teacher: Teacher = field(repr=False)
    alpha: float = 0.3
    temperature: float = 2.0

    @property
    def identity(self) -> dict[str, Any]:
        """Everything that determines the training, as plain JSON types."""
        return {"teacher": self.teacher.identity, "alpha": self.alpha, "temperature": self.temperature}

    def answers(
        self, data: XrayData, subset: str, settings: TrainSettings, epoch: int, outputs: int
    ) -> np.ndarray:
        """Return the teacher's logits for the images of an epoch, (N, outputs), in the order of the table.

        A student with more classes than the teacher, another split or another seed raises ValueError.
        """
        student = f"{data.split_hash}, {data.train_seed}"
        for _, teacher_data in self.teacher.members:
            teacher = f"{teacher_data.split_hash}, {teacher_data.train_seed}"
            message = "teacher and student must have the same split and seed"
            check(teacher == student, message, teacher=teacher, student=student)
        message = "the teacher of a three-class student must have three classes"
        check(outputs <= self.teacher.outputs, message, teacher=self.teacher.names)
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
        logits = pass_batches(begin, signature, count, settings.batch_size)
        joined = tf.data.Dataset.zip(images, logits)
        return joined.map(lambda pair, logits: ({"image": pair[0], "teacher_logit": logits[0]}, pair[1]))
