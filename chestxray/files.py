"""Files that are whole or not there, folders of the cache, and tables and JSON.

A file that another step may take for finished is written under a temporary name in the same folder and then
renamed. A reader sees the old file or the new one, never half of one.
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

if TYPE_CHECKING:
    import pandas as pd

CACHES = ("features", "files", "medmnist", "phantoms", "pixels", "teachers")
"""Kinds of cache; every entry can be made again."""

_NO_LOCKS = (OSError, NotImplementedError)  # raised where the file system knows no locks


def cache_dir(kind: str) -> Path:
    """Return the folder of one kind of cache (see :data:`CACHES`), and create it.

    It is ``$CHESTXRAY_CACHE/<kind>``, by default ``~/.cache/chestxray/<kind>``. Unknown kind: ValueError.
    """
    if kind not in CACHES:
        raise ValueError(f"kind must be one of {CACHES}. Received: kind={kind!r}")
    root = os.environ.get("CHESTXRAY_CACHE") or Path.home() / ".cache" / "chestxray"
    folder = Path(root).expanduser().resolve() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_folder(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of one kind of cache. If it does not exist, ``make`` fills an empty folder.

    ``name`` identifies the content. Other processes that need an entry of the same kind wait meanwhile, so
    that no entry is made twice at the same time. On a file system without locks nobody waits.
    """
    place = cache_dir(kind)
    folder = place / name
    if not folder.is_dir():
        lock = _file_lock(place.with_name(f".{place.name}.lock"))
        try:
            lock.acquire(timeout=1)
        except Timeout:
            print(f"waiting for another process that fills {printable(place)}", file=sys.stderr, flush=True)
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
    """Remove a whole folder, or nothing where it is open in another process (on Windows)."""
    debris = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    with contextlib.suppress(OSError):
        os.replace(path, debris)
        shutil.rmtree(debris, ignore_errors=True)


def printable(path: str | Path) -> str:
    """Escape line ends, control characters and invalid bytes in a file name, for the terminal."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block succeeds.

    It keeps the suffix, because some writers choose their format by it. After an error ``path`` is as it was.
    """
    with _partial(Path(path)) as partial:
        yield partial
        os.replace(partial, path)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block succeeds.

    An existing ``path`` is replaced. Its former content stays beside it, as ``.former-<name>``, until the new
    folder has its name. If the process is killed between the two renames, the next call restores it.
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
    """Yield a locked temporary path beside ``path``, and remove it and the debris of killed processes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_debris(path.parent, path.name)
    partial = path.with_name(f".partial-{secrets.token_hex(4)}-{path.name}")
    with locked(partial, wait=True):
        try:
            yield partial
        finally:
            _remove(partial)


def remove_debris(folder: Path, name: str | None = None) -> None:
    """Remove what killed processes left half-written in a folder, by default under any final name.

    A writer holds a lock on its temporary path, so a path whose lock is free is debris.
    """
    pattern = re.compile(r"\.partial-[0-9a-f]{8}-" + (".*" if name is None else re.escape(name)))
    for partial in folder.glob(".partial-*"):
        if not pattern.fullmatch(partial.name.removesuffix(".lock")):
            continue
        partial = partial.with_name(partial.name.removesuffix(".lock"))
        with contextlib.suppress(Timeout, *_NO_LOCKS), locked(partial, wait=False, without=False):
            _remove(partial)


def _file_lock(path: Path) -> FileLock:
    return FileLock(path, fallback_to_soft=False)  # raises where the file system knows no locks


@contextlib.contextmanager
def locked(path: Path, wait: bool, without: bool = True) -> Iterator[None]:
    """Hold the lock of a path, in a file beside it that is removed at the end.

    If another process holds it, wait, or raise filelock.Timeout. ``without`` goes on also where the file
    system knows no locks.
    """
    lock = _file_lock(path.with_name(f".{path.name.removeprefix('.')}.lock"))
    try:
        lock.acquire(timeout=-1 if wait else 0)
    except _NO_LOCKS as error:
        if isinstance(error, Timeout) or not without:
            raise
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # on Windows another process may look at it
            os.unlink(lock.lock_file)
        lock.release()


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # orphaned workers may write there for some seconds
    else:
        path.unlink(missing_ok=True)


def files_below(folder: Path, visited: set[str] | None = None) -> Iterator[Path]:
    """List every file below a folder that is not hidden, by name; links are followed, each folder once."""
    visited = {os.path.realpath(folder)} if visited is None else visited
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        yield folder  # cannot be opened, and is reported by name
        return
    paths = [folder / name for name in names if not name.startswith((".", "__MACOSX"))]
    for path in sorted(paths, key=lambda path: os.path.islink(path) and os.path.isdir(path)):
        if not os.path.isdir(path):
            yield path
        elif (real := os.path.realpath(path)) not in visited:
            visited.add(real)
            yield from files_below(path, visited)


def spelled(folder: Path, name: str) -> str:
    """A name from a table as the folder spells it: with ``/`` for a backslash, in either Unicode form."""
    slashes = name.replace("\\", "/")
    forms = name, slashes, *(unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))
    return next((spelling for spelling in forms if os.path.lexists(folder / spelling)), name)


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as indented JSON, whole or not at all. NaN and infinity raise ValueError."""
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file. A file that is not JSON raises a ValueError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a JSON file ({error}). Received: path={str(path)!r}") from None


def read_table(path: str | Path, texts: Collection[str], **options: Any) -> "pd.DataFrame":
    """Read a CSV file and keep names as they are written; ``options`` are those of :func:`pandas.read_csv`.

    pandas would read 007 as 7 and NA as missing. Here ``texts`` are columns of names, if the file has them.
    Another column holds numbers only if none of its values begins with a zero before another digit. In
    columns without numbers only an empty cell is missing.
    """
    import pandas as pd  # here: prediction with an exported model needs no pandas
    from pandas.api.types import is_numeric_dtype

    try:
        table = pd.read_csv(path, **options)
    except (pd.errors.EmptyDataError, pd.errors.ParserError, UnicodeDecodeError) as error:
        raise ValueError(f"not a table ({error}). Received: path={str(path)!r}") from None
    numbers = {name for name in table if name not in texts and is_numeric_dtype(table[name])}
    # Columns of fractions hold no names; in a large table of predictions they are most of the columns.
    names = [name for name in table if name not in numbers or not (table[name] % 1).any()]
    columns = [table.columns.get_loc(name) for name in names]
    written = pd.read_csv(path, dtype=str, keep_default_na=False, **options, usecols=columns)
    written = written.set_axis(names, axis=1)
    for name in names:
        if name not in numbers or written[name].str.contains(r"^\s*[+-]?0\d").any():
            table[name] = written[name].where(written[name] != "")
    return table


def project_path(path: str | Path) -> Path:
    """Resolve a path of a notebook: relative ones start at the checkout, wherever the kernel runs."""
    return (Path(__file__).resolve().parent.parent / Path(path).expanduser()).resolve()


def find_weights(weights: str | None, backbone: str) -> tuple[str | None, str]:
    """Find the pretrained weights of a backbone of the registry, or raise FileNotFoundError.

    ``weights`` is a weights file; a folder with ``<backbone>_notop*.h5``; ``"imagenet"`` for such a file in
    the folder ``CHESTXRAY_WEIGHTS`` if it has one, else for Keras' download; or None for random weights.
    Gives what ``keras.applications`` takes as ``weights``, and ``imagenet``, ``random`` or the file's name.
    """
    if weights is None:
        return None, "random"
    place = os.environ.get("CHESTXRAY_WEIGHTS") if weights == "imagenet" else weights
    if place and not Path(place).exists():
        raise FileNotFoundError(f"no such file or folder of weights: {place}. Received: weights={weights!r}")
    if place and Path(place).is_file():
        return str(place), Path(place).name
    for path in sorted(Path(place).glob("*notop*.h5")) if place else []:
        if path.name.replace("_", "").lower().startswith(backbone.lower()):  # Keras writes inception_v3
            return str(path), path.name
    if weights == "imagenet":
        return "imagenet", "imagenet"
    message = f"no weights file here (in a folder it must be named {backbone.lower()}*notop*.h5)"
    raise FileNotFoundError(f"{message}. Received: weights={weights!r}")
