"""Atomic writing of files and folders, the cache, and reading of tables and JSON.

A file is written under a temporary name and then renamed. A reader sees the old file or the new one, whole.
"""

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
import unicodedata
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from chestxray.schema import check, mistake

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

CACHES = ("features", "files", "medmnist", "phantoms", "pixels", "teachers", "web")  # can be computed again
_NO_LOCKS = (OSError, NotImplementedError)  # raised if the file system has no locks


def cache_dir(kind: str) -> Path:
    """Return, and create, the folder of one of :data:`CACHES`, in CHESTXRAY_CACHE or ~/.cache/chestxray."""
    check(kind in CACHES, f"kind must be one of {CACHES}", kind=kind)
    root = os.environ.get("CHESTXRAY_CACHE") or Path.home() / ".cache" / "chestxray"
    folder = Path(root).expanduser().resolve() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_folder(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder ``name`` of one kind of cache; if it is new, ``make`` fills it, and others wait."""
    cache = cache_dir(kind)
    folder = cache / name
    if not folder.is_dir():
        lock = FileLock(cache.with_name(f".{cache.name}.lock"), fallback_to_soft=False)
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print(f"waiting for another process that fills {printable(cache)}", file=sys.stderr, flush=True)
            lock.acquire()
        except _NO_LOCKS:
            pass
        try:
            if not folder.is_dir():
                with whole_folder(folder) as unfinished:
                    make(unfinished)
        finally:
            lock.release()
    return folder


def remove_folder(path: Path) -> None:
    """Remove a whole folder, or nothing if another process has it open (on Windows)."""
    renamed = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    with contextlib.suppress(OSError):
        os.replace(path, renamed)
        shutil.rmtree(renamed, ignore_errors=True)


def printable(path: str | Path) -> str:
    """Escape line ends, control characters and invalid bytes in a file name that is printed."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path, with the suffix of ``path``, that becomes ``path`` when the block succeeds."""
    with _partial(Path(path)) as partial:
        yield partial
        os.replace(partial, path)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block succeeds.

    An existing ``path`` is renamed to ``.former-<name>`` and removed last; the next call restores it if the
    process is killed between the two renames.
    """
    path = Path(path)
    former = path.with_name(f".former-{path.name}")
    with _partial(path) as partial:
        with locked(path, wait=True):
            _restore(former, path)
        partial.mkdir()
        yield partial
        with locked(path, wait=True):
            _restore(former, path)
            shutil.rmtree(former, ignore_errors=True)
            try:
                if path.exists():
                    os.replace(path, former)
                os.replace(partial, path)
            finally:
                _restore(former, path)
            shutil.rmtree(former, ignore_errors=True)


def _restore(former: Path, path: Path) -> None:
    if former.exists() and not path.exists():
        os.replace(former, path)


@contextlib.contextmanager
def _partial(path: Path) -> Iterator[Path]:
    """Yield a locked temporary path beside ``path``. Remove it, and those of killed processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_debris(path.parent, path.name)
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    with locked(partial, wait=True):
        try:
            yield partial
        finally:
            _remove(partial)


def remove_debris(folder: Path, name: str | None = None) -> None:
    """Remove temporary paths that no process has locked any more, by default for any final name."""
    pattern = re.compile(r"\.partial-[0-9a-f]{8}-" + (".*" if name is None else re.escape(name)))
    for path in folder.glob(".partial-*"):
        partial = path.with_name(path.name.removesuffix(".lock"))
        if pattern.fullmatch(partial.name):
            with contextlib.suppress(Timeout, *_NO_LOCKS), locked(partial, wait=False, required=True):
                _remove(partial)


@contextlib.contextmanager
def locked(path: Path, wait: bool, required: bool = False) -> Iterator[None]:
    """Hold the lock of a path, in a file beside it that is removed at the end.

    If another process holds it: wait, or raise filelock.Timeout. A file system without locks is an error only
    if the lock is ``required``.
    """
    lock = FileLock(path.with_name(f".{path.name.removeprefix('.')}.lock"), fallback_to_soft=False)
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except _NO_LOCKS as error:
        if isinstance(error, Timeout) or required:
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows another process may have it open
            os.unlink(lock.lock_file)
        lock.release()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # workers of a killed process may still write there
    else:
        path.unlink(missing_ok=True)


def files_below(folder: Path, visited: set[str] | None = None) -> Iterator[Path]:
    """List all files below a folder by name, except hidden ones. Links are followed, each folder once."""
    visited = {os.path.realpath(folder)} if visited is None else visited
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        yield folder  # cannot be opened; the caller reports it
        return
    paths = [folder / name for name in names if not name.startswith((".", "__MACOSX"))]
    for path in sorted(paths, key=lambda path: os.path.islink(path) and os.path.isdir(path)):
        if not os.path.isdir(path):
            yield path
        elif (real := os.path.realpath(path)) not in visited:
            visited.add(real)
            yield from files_below(path, visited)


def spelled(folder: Path, name: str) -> str:
    """Spell a file name of a table as the folder does: with ``/`` for a backslash, in either Unicode form."""
    slashes = name.replace("\\", "/")
    forms = name, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))
    return next((spelling for spelling in forms if os.path.lexists(folder / spelling)), name)


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, atomically."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, atomically. Raises ValueError for NaN and infinity."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. Raises ValueError if it is not JSON."""
    with mistake("not a JSON file", ValueError, path=str(path)):
        return json.loads(Path(path).read_text(encoding="utf-8"))


@contextlib.contextmanager
def open_arrays(path: Path) -> Iterator["np.lib.npyio.NpzFile"]:
    """Open an ``.npz`` file without unpickling. An error in the block raises ValueError: a damaged file."""
    import numpy as np

    with mistake(f"{path.name} is damaged", path=str(path)), np.load(path, allow_pickle=False) as file:
        yield file


def read_table(path: str | Path, texts: Collection[str], **options: Any) -> "pd.DataFrame":
    """Read a CSV file and keep names as they are written; ``options`` are those of :func:`pandas.read_csv`.

    pandas would read 007 as 7 and NA as missing. A column of text is one of ``texts``, not numeric, or has a
    value that starts with a zero before a digit; in it only an empty cell is missing.
    """
    import pandas as pd  # here: prediction with an exported model needs no pandas
    from pandas.api.types import is_numeric_dtype

    with mistake("not a table", ValueError, path=str(path)):
        table = pd.read_csv(path, **options)
    numbers = {name for name in table if name not in texts and is_numeric_dtype(table[name])}
    # A column of fractions needs no second reading: it saves time for large tables of predictions.
    names = [name for name in table if name not in numbers or not (table[name] % 1).any()]
    columns = [table.columns.get_loc(name) for name in names]
    written = pd.read_csv(path, dtype=str, keep_default_na=False, **options, usecols=columns)
    written = written.set_axis(names, axis=1)
    for name in names:
        if name not in numbers or written[name].str.contains(r"^\s*[+-]?0\d").any():
            table[name] = written[name].where(written[name] != "")
    return table


def project_path(path: str | Path) -> Path:
    """Resolve a path of a notebook: a relative path starts at the repository's root."""
    return (Path(__file__).resolve().parent.parent / Path(path).expanduser()).resolve()


def find_weights(weights: str | None, backbone: str) -> tuple[str | None, str]:
    """Find the pretrained weights of a backbone of the registry.

    ``weights`` is a weights file; a folder with ``<backbone>*notop*.h5``; ``"imagenet"`` for such a file in
    the folder ``CHESTXRAY_WEIGHTS`` or else for Keras' download; or None for random weights.

    Returns ``weights`` for ``keras.applications``, and ``imagenet``, ``random`` or the file's name. Raises
    FileNotFoundError if there are no such weights.
    """
    if weights is None:
        return None, "random"
    source = os.environ.get("CHESTXRAY_WEIGHTS") if weights == "imagenet" else weights
    exists = not source or Path(source).exists()
    check(exists, f"no such file or folder of weights: {source}", FileNotFoundError, weights=weights)
    if source and Path(source).is_file():
        return str(source), Path(source).name
    for path in sorted(Path(source).glob("*notop*.h5")) if source else []:
        if path.name.replace("_", "").lower().startswith(backbone.lower()):  # Keras writes inception_v3
            return str(path), path.name
    message = f"weights must be a file, or a folder with a file {backbone.lower()}*notop*.h5"
    check(weights == "imagenet", message, FileNotFoundError, weights=weights)
    return "imagenet", "imagenet"
