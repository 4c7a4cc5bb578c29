"""Checkpoints of a training, which continues to the same weights after any interruption.

After every epoch one file takes the whole state: variables of the model with the seeds of its dropout layers,
the optimizer, EarlyStopping and ReduceLROnPlateau, and the history. Order and augmentation of an epoch depend
on its number alone, so nothing else is needed to continue bit for bit.
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
    """Identify a training by its network, its starting weights and its ``description``.

    The description holds settings, data and split as plain JSON types. Names of layers do not count: Keras
    numbers some anew in every instance. Of what is trainable, only weights count.
    """
    fed, ignored = zip(model.operations, wiring(model), strict=True), {"name": "", "trainable": None}
    layers = [[type(layer).__name__, layer.get_config() | ignored, sources] for layer, sources in fed]
    digest = hashlib.sha256(json.dumps([description, layers], sort_keys=True, default=str).encode())
    for weight in model.weights:
        digest.update(f"{weight.shape}{weight.trainable}".encode())
        digest.update(np.ascontiguousarray(weight.numpy()).tobytes())
    return digest.hexdigest()[:16]


def functional(model: keras.Model) -> keras.Model:
    """Return a functional model; that of a Sequential one shares its layers. Others raise ValueError."""
    if isinstance(model, keras.Sequential) and model.built:
        return keras.Model(model.inputs, model.outputs, name=model.name)
    if isinstance(model, keras.Sequential) or not hasattr(model, "operations"):
        message = "training needs a functional model, or a Sequential one that begins with an Input"
        raise ValueError(f"{message}. Received: model of class {type(model).__name__}")
    return model


def wiring(model: keras.Model) -> list[list[int]]:
    """Say for each of ``model.operations`` of a functional model which of them feed it, by position."""
    position = {layer.name: number for number, layer in enumerate(model.operations)}
    nodes = [layer["inbound_nodes"] for layer in model.get_config()["layers"]]
    return [[position[name] for name in _feeding(node)] for node in nodes]


def _feeding(node: Any) -> Iterator[str]:
    """Names of the layers in a serialised call."""
    if isinstance(node, dict) and "keras_history" in node:
        yield node["keras_history"][0]
    elif isinstance(node, (dict, list, tuple)):
        for value in node.values() if isinstance(node, dict) else node:
            yield from _feeding(value)


@contextlib.contextmanager
def starting_again(model: keras.Model, wanted: bool) -> Iterator[None]:
    """On any error give the model its variables back, if wanted, so that its :func:`fingerprint` stays."""
    start = [(variable, variable.numpy()) for variable in model.variables]
    try:
        yield
    except BaseException:
        if wanted:
            for variable, value in start:
                variable.assign(value)
        raise


class Checkpoint(keras.callbacks.Callback):
    """Last callback of a training: writes the state after every epoch and takes it up again.

    ``history`` has one dictionary an epoch, with the metrics and ``epoch``; ``epochs_done`` is their number
    and ``seconds`` their duration, in all calls together. ``stopped`` says whether early stopping has ended
    the training, ``finished`` whether it came to its end.
    """

    def __init__(self, path: Path | None, identity: str, watched: list[keras.callbacks.Callback]):
        super().__init__()
        self.path, self.identity, self.watched = path, identity, watched
        self.history: list[dict[str, float]] = []
        self.stopped = self.finished = False
        self.seconds = self._began = 0.0
        self._callback_state: list[dict[str, Any]] = []
        self._best_weights: list[np.ndarray] = []

    @property
    def epochs_done(self) -> int:
        return len(self.history)

    def restore(self, model: keras.Model) -> None:
        """Load the state of the same training into a compiled model, if there is one."""
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
        self._began = time.perf_counter() - self.seconds
        for callback, state in zip(self.watched, self._callback_state):
            vars(callback).update(state)
            if self._best_weights and isinstance(callback, keras.callbacks.EarlyStopping):
                callback.best_weights = self._best_weights

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        self.history.append({"epoch": epoch + 1, **{key: float(value) for key, value in logs.items()}})
        self.seconds = time.perf_counter() - self._began
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
        meta["callbacks"] = [
            {name: _plain(value) for name, value in vars(callback).items() if name in _CALLBACK_STATE}
            for callback in self.watched
        ]
        variables = [variable.numpy() for variable in _variables(self.model)]
        arrays = {f"variable{number}": values for number, values in enumerate(variables)}
        arrays |= {f"best{number}": weight for number, weight in enumerate(best)}
        with whole_file(self.path) as partial, open(partial, "wb") as file:
            np.savez(file, meta=np.array(json.dumps(meta)), **arrays)


def _variables(model: keras.Model) -> list[keras.Variable]:
    return [*model.variables, *model.optimizer.variables]


def _plain(value: Any) -> Any:
    return None if value is None else float(value) if isinstance(value, (float, np.floating)) else int(value)
