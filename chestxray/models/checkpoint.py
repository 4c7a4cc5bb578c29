"""Checkpoints of a training: an interrupted training continues to the same final weights.

After each epoch, the state of model, optimizer, callbacks and history is written to one file. Order and
augmentation of an epoch depend only on its number, so that the continued training is equal bit for bit.
"""

import contextlib
import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np

from chestxray.files import printable, whole_file

_CALLBACK_STATE = ("wait", "best", "best_epoch", "stopped_epoch", "cooldown_counter")


def fingerprint(model: keras.Model, description: dict[str, Any]) -> str:
    """Hash the network, its initial weights and the ``description`` of a training.

    The description has plain JSON types. Names of layers, which Keras numbers, and ``trainable`` of layers
    (that of the weights counts) are ignored.
    """
    operations, ignored = zip(model.operations, wiring(model), strict=True), {"name": "", "trainable": None}
    layers = [[type(layer).__name__, layer.get_config() | ignored, sources] for layer, sources in operations]
    digest = hashlib.sha256(json.dumps([description, layers], sort_keys=True, default=str).encode())
    for weight in model.weights:
        digest.update(f"{weight.shape}{weight.trainable}".encode())
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()[:16]


def functional(model: keras.Model) -> keras.Model:
    """Return a functional model, which shares the layers of a Sequential one. Others raise ValueError."""
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs, name=model.name)
    if isinstance(model, keras.Sequential) or not hasattr(model, "operations"):
        name = type(model).__name__
        raise ValueError(f"model must be functional, or Sequential with an Input. Received: model={name}")
    return model


def wiring(model: keras.Model) -> list[list[int]]:
    """Inputs of each of ``model.operations`` of a functional model, as positions in this list."""
    position = {layer.name: number for number, layer in enumerate(model.operations)}
    nodes = [layer["inbound_nodes"] for layer in model.get_config()["layers"]]
    return [[position[name] for name in _input_names(node)] for node in nodes]


def _input_names(node: Any) -> Iterator[str]:
    """Names of the input layers of a serialised call."""
    if isinstance(node, dict) and "keras_history" in node:
        yield node["keras_history"][0]
    elif isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _input_names(value)


@contextlib.contextmanager
def starting_again(model: keras.Model, wanted: bool) -> Iterator[None]:
    """After an error, restore the variables of the model if ``wanted``, so that its fingerprint stays."""
    start = [(variable, variable.numpy()) for variable in model.variables]
    try:
        yield
    except BaseException:
        if wanted:
            for variable, value in start:
                variable.assign(value)
        raise


class Checkpoint(keras.callbacks.Callback):
    """Last callback of a training: writes the state after each epoch and restores it.

    ``history`` has one dictionary per epoch with the metrics and ``epoch``; ``seconds`` is their duration in
    all calls. ``stopped`` is true after early stopping, and ``finished`` at the end of the training.
    """

    def __init__(self, path: Path | None, identity: str, watched: list[keras.callbacks.Callback]):
        super().__init__()
        self.path, self.identity, self.watched = path, identity, watched
        self.history: list[dict[str, float]] = []
        self.stopped = self.finished = False
        self.seconds = self._start = 0.0
        self._callback_state: list[dict[str, Any]] = []
        self._best_weights: list[np.ndarray] = []

    def restore(self, model: keras.Model) -> None:
        """Load the state of the same training into a compiled model, if it was stored."""
        if self.path is None or not self.path.is_file():
            return
        try:
            with np.load(self.path, allow_pickle=False) as file:
                state = dict(file)
            meta = json.loads(str(state["meta"]))
        except Exception as error:  # a damaged file can fail in any way
            print(f"{printable(self.path)} is damaged and not used ({type(error).__name__})")
            return
        if meta["identity"] != self.identity:
            print("an earlier training with other settings was found and is not continued")
            return
        for number, variable in enumerate(_variables(model)):
            variable.assign(state[f"variable{number}"])
        self._best_weights = [state[f"best{number}"] for number in range(meta["best_weights"])]
        self.history, self.stopped, self.finished = meta["history"], meta["stopped"], meta["finished"]
        self.seconds, self._callback_state = meta["seconds"], meta["callbacks"]

    def on_train_begin(self, logs: dict | None = None) -> None:
        self._start = time.perf_counter() - self.seconds
        for callback, state in zip(self.watched, self._callback_state):
            vars(callback).update(state)
            if self._best_weights and isinstance(callback, keras.callbacks.EarlyStopping):
                callback.best_weights = self._best_weights

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.history.append({"epoch": epoch + 1, **{key: float(value) for key, value in logs.items()}})
        self.seconds = time.perf_counter() - self._start
        self._write()

    def on_train_end(self, logs: dict | None = None) -> None:
        self.finished = True
        self._write()

    def _write(self) -> None:
        if self.path is None:
            return
        best = []
        for callback in self.watched if not self.finished else ():
            best += getattr(callback, "best_weights", None) or []
        stopped = self.stopped or self.model.stop_training
        meta = {"identity": self.identity, "history": self.history, "seconds": self.seconds}
        meta |= {"stopped": stopped, "finished": self.finished, "best_weights": len(best)}
        states = [vars(callback).items() for callback in self.watched]
        meta["callbacks"] = [{key: value for key, value in x if key in _CALLBACK_STATE} for x in states]
        variables = [variable.numpy() for variable in _variables(self.model)]
        arrays = {f"variable{number}": values for number, values in enumerate(variables)}
        arrays |= {f"best{number}": weight for number, weight in enumerate(best)}
        with whole_file(self.path) as partial, open(partial, "wb") as file:
            # NumPy scalars are no JSON types.
            np.savez(file, meta=np.array(json.dumps(meta, default=lambda x: x.item())), **arrays)


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]
