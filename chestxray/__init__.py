"""Pneumonia classification from chest X-rays with Keras: research software, not a medical device.

Names are imported when they are first used, so that ``import chestxray`` and
the command line start without TensorFlow.
"""

import importlib
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "chestxray.audit": "audit_data",
    "chestxray.data.augmentation": "Augmentation",
    "chestxray.data.catalog": "find_data from_table scan verify",
    "chestxray.data.dataset": "XrayData load_data",
    "chestxray.data.images": "ImageSettings preprocess",
    "chestxray.data.splits": "make_split overlap",
    "chestxray.deployment.classifier": "Classifier load_classifier",
    "chestxray.deployment.export": "export_model",
    "chestxray.deployment.predict": "predict_files",
    "chestxray.evaluation.metrics": "evaluate subgroup_table",
    "chestxray.evaluation.thresholds": "operating_points",
    "chestxray.models.backbones": "BACKBONES",
    "chestxray.models.builders": "CNNS build_compact_cnn build_custom_cnn build_student_cnn "
    "build_teacher_cnn build_transfer_model",
    "chestxray.models.distillation": "Distiller distillation_loss",
    "chestxray.models.settings": "TrainSettings",
    "chestxray.models.students": "train_student",
    "chestxray.models.teachers": "Teacher",
    "chestxray.models.training": "fine_tune train train_head train_whole unfreeze_gradually",
    "chestxray.phantoms": "phantom_dataset",
    "chestxray.results": "comparison_table find_classifier read_predictions read_results record_model",
    "chestxray.run": "run_plan",
}
MODULE_OF = {name: module for module, names in _NAMES.items() for name in names.split()}
"""Module that each public name is imported from."""

__all__ = ["__version__", *sorted(MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module 'chestxray' has no attribute {name!r}")
    from chestxray.parallel import without_native_messages

    with without_native_messages():
        return getattr(importlib.import_module(MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
