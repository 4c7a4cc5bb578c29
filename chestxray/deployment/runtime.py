"""Exported models, run without TensorFlow."""

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from chestxray.parallel import native_messages_to

# Names of exported files, by format.
MODEL_FILES = {"litert": "model.tflite", "onnx": "model.onnx", "web": "model.onnx"}


class Runtime:
    """A loaded exported model: ``model.tflite`` or ``model.onnx`` of `chestxray.deployment.export`.

    ``sha256`` is the expected hash of the file; None skips the check. ``threads`` is the number of cores that
    one image may use.

    Raises ValueError if the file is not the one that the card describes or cannot be loaded, and
    ModuleNotFoundError if the runtime of the format is not installed.
    """

    def __init__(self, path: str | Path, sha256: str | None = None, threads: int = 1):
        content = Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise ValueError(f"the file is not the one its card describes. Received: path={str(path)!r}")
        load = _load_litert if Path(path).suffix == ".tflite" else _load_onnx
        try:
            self._run = load(content, threads)
        except ModuleNotFoundError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            name = type(error).__name__
            raise ValueError(f"cannot be loaded ({name}). Received: path={str(path)!r}") from None

    def predict(self, images: NDArray) -> dict[str, NDArray]:
        """Run the model, image by image, on grey pixels in 0–255, (N, size, size, 1), N > 0.

        Gives ``logit`` (N, K), ``distance`` (N,) for the out-of-distribution check and, if the network ends
        in pooling and one dense layer, ``map`` (N, h, w), the class activation map (mean: logit − bias).
        """
        outputs = [self._run(np.asarray(image, np.float32)[np.newaxis]) for image in images]
        columns = {name: np.concatenate([output[name] for output in outputs]) for name in outputs[0]}
        return columns | {"distance": columns["distance"][:, 0]}


def _load_litert(content: bytes, threads: int) -> Callable[[NDArray], dict[str, NDArray]]:
    from ai_edge_litert.interpreter import Interpreter

    with native_messages_to(os.devnull):  # it logs which kernels it uses
        interpreter = Interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
    runner, lock = interpreter.get_signature_runner(), threading.Lock()

    def run(image: NDArray) -> dict[str, NDArray]:
        with lock:  # an interpreter has one set of tensors
            return runner(image=image)

    return run


def _load_onnx(content: bytes, threads: int) -> Callable[[NDArray], dict[str, NDArray]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    names = [output.name for output in session.get_outputs()]
    return lambda image: dict(zip(names, session.run(names, {"image": image})))
