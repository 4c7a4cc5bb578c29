"""Which number format is chosen, on machines that are not here."""

import warnings

import pytest

from chestxray.models import training as precision
from chestxray.models.training import choose_precision, cpu_has_bf16


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be a machine: bf16 units, GPU details (None for no GPU), NVIDIA's tool."""

    def pretend(bf16=False, gpu=None, nvidia=False):
        devices = [] if gpu is None else ["GPU:0"]
        monkeypatch.setattr(precision.tf.config, "list_physical_devices", lambda kind: devices)
        monkeypatch.setattr(precision.tf.config.experimental, "get_device_details", lambda device: gpu)
        monkeypatch.setattr(precision, "cpu_has_bf16", lambda: bf16)
        monkeypatch.setattr(
            precision.shutil,
            "which",
            lambda tool: "/usr/bin/nvidia-smi" if nvidia and tool == "nvidia-smi" else None,
        )

    return pretend


@pytest.mark.parametrize(
    ("bf16", "pays", "expected"),
    [
        (True, True, "mixed_bfloat16"),
        (True, False, "float32"),
        (False, True, "float32"),
        (False, False, "float32"),
    ],
)
def test_auto_on_a_processor(machine, capsys, bf16, pays, expected):
    machine(bf16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_precision("auto", pays) == (expected, "CPU")
    assert capsys.readouterr().out == f"computing on CPU in {expected}\n"


@pytest.mark.parametrize(
    ("details", "expected"),
    [
        ({"device_name": "A100", "compute_capability": (8, 0)}, ("mixed_bfloat16", "A100")),
        ({"device_name": "H100", "compute_capability": (9, 0)}, ("mixed_bfloat16", "H100")),
        ({"device_name": "Tesla T4", "compute_capability": (7, 5)}, ("mixed_float16", "Tesla T4")),
        ({}, ("mixed_float16", "GPU")),
    ],
)
def test_auto_on_a_gpu_asks_the_card_and_not_the_processor(machine, capsys, details, expected):
    machine(bf16=False, gpu=details, nvidia=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert choose_precision("auto", bf16_pays=False) == expected
    assert capsys.readouterr().out == f"computing on {expected[1]} in {expected[0]}\n"


@pytest.mark.parametrize("wanted", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_a_wish_is_granted(machine, wanted):
    machine(bf16=wanted == "float32")
    assert choose_precision(wanted)[0] == wanted


def test_unseen_nvidia_card_is_warned_about(machine):
    machine(nvidia=True)
    with pytest.warns(UserWarning, match=r"does not find the NVIDIA GPU.*\[gpu\]"):
        assert choose_precision() == ("float32", "CPU")


def test_unknown_policy_is_an_error(machine):
    machine()
    with pytest.raises(ValueError, match="mixed_bfloat16.*Received: precision='bf16'"):
        choose_precision("bf16")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : fpu avx512f avx512_bf16 avx512_vnni", True),
        ("flags : amx_bf16 amx_tile", True),
        ("flags : fpu avx2 avx512f avx512_vnni amx_tile", False),
        (None, False),
    ],
)
def test_processor_flags(monkeypatch, flags, expected):
    def read_text(path):
        assert str(path) == "/proc/cpuinfo"
        if flags is None:
            raise FileNotFoundError
        return flags

    monkeypatch.setattr(precision.Path, "read_text", read_text)
    assert cpu_has_bf16() is expected
