"""Pneumonia classification from chest X-rays with Keras: research software, not a medical device.

Names are imported when they are first used, so that ``import chestxray`` and
the command line start without TensorFlow.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {
    "chestxray.audit": ("audit", "describe"),
    "chestxray.data.augmentation": ("Augmentation",),
    "chestxray.data.catalog": ("find_data", "from_table", "scan", "verify"),
    "chestxray.data.dataset": ("PixelStore", "XrayData", "load_data"),
    "chestxray.data.images": ("ImageSettings", "preprocess", "read_image"),
    "chestxray.data.masks": ("read_masks",),
    "chestxray.data.splits": ("make_split", "overlap", "read_split", "split_hash", "write_split"),
    "chestxray.deployment.classifier": ("Classifier", "load_classifier"),
    "chestxray.deployment.costs": ("layer_mflops", "network_costs", "time_per_image"),
    "chestxray.deployment.export": ("export_model",),
    "chestxray.deployment.predict": ("predict_files",),
    "chestxray.evaluation.calibration": (
        "calibration_metrics",
        "decision_curve",
        "log_odds",
        "reliability_table",
    ),
    "chestxray.evaluation.comparison": (
        "variant_table",
        "auroc_difference",
        "conclude",
        "difference_table",
        "pair_table",
        "score_variants",
        "score_ensemble",
    ),
    "chestxray.evaluation.drift": ("describe_reference", "drift_table"),
    "chestxray.evaluation.metrics": ("roc_band", "subgroup_table"),
    "chestxray.evaluation.saliency": ("stress_table",),
    "chestxray.evaluation.thresholds": ("operating_points", "threshold_elsewhere", "triage_table"),
    "chestxray.files": ("project_path", "read_json"),
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
    "chestxray.models.distillation": ("Distiller", "distillation_loss", "mean_tempered_entropy"),
    "chestxray.models.settings": ("TrainSettings", "stage_rates"),
    "chestxray.models.students": ("Candidate", "read_candidates", "train_student"),
    "chestxray.models.teachers": ("Distillation", "Teacher"),
    "chestxray.models.training": (
        "choose_precision",
        "class_weights",
        "fine_tune",
        "set_seed",
        "set_trainable_from",
        "stages_from",
        "summarise",
        "train",
        "train_head",
        "train_whole",
        "unfreeze_gradually",
    ),
    "chestxray.phantoms": ("phantom_dataset", "render_phantom"),
    "chestxray.results": (
        "comparison_table",
        "find_classifier",
        "log_test_look",
        "predict_variants",
        "read_predictions",
        "read_results",
        "record_variants",
        "record_model",
        "seed_table",
        "subtype_confusion",
        "write_result",
    ),
    "chestxray.run": ("run_plan",),
}
_MODULE_OF = {name: module for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *sorted(_MODULE_OF)]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module 'chestxray' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
