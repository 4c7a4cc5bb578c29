"""Which device computes, and in which number format."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import tensorflow as tf

POLICIES = ("auto", "float32", "mixed_bfloat16", "mixed_float16")


def choose_precision(wanted: str = "auto", bf16_pays: bool = True) -> tuple[str, str]:
    """Choose the Keras dtype policy for training, and print device and choice.

    Args:
        wanted: A policy, or ``"auto"``: on a GPU bfloat16 or, before compute
            capability 8, float16; on a processor bfloat16 where it has the
            units and the network gains by it; float32 otherwise.
        bf16_pays: Whether the network is faster in bfloat16 on a processor
            that has the units.

    Returns:
        The policy's name and the device's.

    Raises:
        ValueError: Unknown policy.
    """
    if wanted not in POLICIES:
        raise ValueError(f"precision must be one of {POLICIES}. Received: precision={wanted!r}")
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        device = details.get("device_name", "GPU")
        best = "mixed_bfloat16" if details.get("compute_capability", (0,))[0] >= 8 else "mixed_float16"
    else:
        if shutil.which("nvidia-smi"):
            warnings.warn(
                "there is an NVIDIA card, but TensorFlow does not see it: pip install -e '.[gpu]'",
                stacklevel=2,
            )
        device = "CPU"
        best = "mixed_bfloat16" if bf16_pays and cpu_has_bf16() else "float32"
    policy = best if wanted == "auto" else wanted
    print(f"computing on {device} in {policy}")
    return policy, device


def cpu_has_bf16() -> bool:
    """Whether the processor has bfloat16 units (AVX512-BF16 or AMX); False where unknown."""
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
