"""Pneumonia classification from chest X-rays with Keras: research software, not a medical device.

Names are imported when they are first used, so that ``import chestxray`` and
the command line start without TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "chestxray.data.location": ("find_data",),
    "chestxray.data.catalog": ("from_table", "scan", "verify"),
    "chestxray.data.splits": ("make_split", "overlap", "read_split", "split_hash", "write_split"),
    "chestxray.data.images": ("ImageSettings", "preprocess", "read_image"),
    "chestxray.data.augmentation": ("Augmentation",),
    "chestxray.data.pixels": ("PixelStore",),
    "chestxray.data.dataset": ("XrayData", "load_data"),
    "chestxray.data.phantom": ("phantom_dataset", "render_phantom"),
    "chestxray.data.audit": ("audit", "describe"),
    "chestxray.data.masks": ("read_masks",),
    "chestxray.models.backbones": ("BACKBONES", "get_backbone"),
    "chestxray.models.builders": (
        "CNNS",
        "build_compact_cnn",
        "build_custom_cnn",
        "build_student_cnn",
        "build_teacher_cnn",
        "build_transfer_model",
        "layer_table",
    ),
    "chestxray.models.precision": ("choose_precision",),
    "chestxray.models.phases": (
        "fine_tune",
        "set_trainable_from",
        "stages_from",
        "train_head",
        "train_whole",
        "unfreeze_gradually",
    ),
    "chestxray.models.costs": ("layer_mflops", "network_costs", "time_per_image"),
    "chestxray.models.distillation": ("Distiller", "distillation_loss", "mean_tempered_entropy"),
    "chestxray.models.students": ("Candidate", "read_candidates", "train_student"),
    "chestxray.models.teachers": ("Distillation", "Teacher"),
    "chestxray.models.schedules": ("TrainSettings", "stage_rates"),
    "chestxray.models.training": ("class_weights", "set_seed", "summarise", "train"),
    "chestxray.evaluation.arms": ("arm_table", "conclude", "difference_table", "score_arms"),
    "chestxray.evaluation.calibration": ("log_odds",),
    "chestxray.evaluation.comparison": ("auroc_difference", "pair_table"),
    "chestxray.evaluation.drift": ("describe_reference", "drift_table"),
    "chestxray.evaluation.ensemble": ("score_ensemble",),
    "chestxray.evaluation.metrics": ("roc_band",),
    "chestxray.evaluation.operating": ("operating_points", "threshold_elsewhere", "triage_table"),
    "chestxray.evaluation.reliability": ("calibration_metrics", "decision_curve", "reliability_table"),
    "chestxray.evaluation.stress": ("stress_table",),
    "chestxray.evaluation.subgroups": ("subgroup_table",),
    "chestxray.deployment.bundle": ("Classifier", "load_classifier"),
    "chestxray.deployment.export": ("export_model",),
    "chestxray.deployment.predict": ("predict_files",),
    "chestxray.record": ("log_test_look", "predict_arms", "record_arms", "record_model", "subtype_confusion"),
    "chestxray.results": (
        "comparison_table",
        "find_classifier",
        "read_predictions",
        "read_results",
        "seed_table",
        "write_result",
    ),
    "chestxray.experiments": ("run_plan",),
    "chestxray.files": ("project_path", "read_json"),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'chestxray' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
