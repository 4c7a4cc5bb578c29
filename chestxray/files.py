"""Where files go, and how they get there whole.

Every file that another step may take for finished is written under a
temporary name in the same folder and then renamed, so that a reader sees the
old file or the new one, never half of one.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import shutil
import sys
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_numeric_dtype


def read_table(path: str | Path, texts: Collection[str], **options: Any) -> pd.DataFrame:
    """Read a CSV file and keep names as they are written.

    pandas would make one patient of 007 and 7, and none of NA. Here a column
    holds numbers only if no value of it begins with a zero before another
    digit; in all others only an empty cell is missing.

    Args:
        path: The file.
        texts: Columns, where there are such, that hold names in any case.
        options: Of :func:`pandas.read_csv`.
    """
    table = pd.read_csv(path, **options)
    numbers = {name for name in table if name not in texts and is_numeric_dtype(table[name])}
    # Fractions are no names: in a large table of predictions they are most of the columns.
    names = [name for name in table if name not in numbers or not (table[name] % 1).any()]
    written = pd.read_csv(
        path,
        dtype=str,
        keep_default_na=False,
        **options,
        usecols=[table.columns.get_loc(name) for name in names],
    ).set_axis(names, axis=1)
    for name in names:
        if name not in numbers or written[name].str.contains(_LEADING_ZERO).any():
            table[name] = written[name].where(written[name] != "")
    return table


_LEADING_ZERO = r"^\s*[+-]?0\d"


CACHES = ("features", "files", "phantoms", "pixels", "teachers")
"""Everything that is ever cached; all of it can be made again."""


def cache_dir(kind: str) -> Path:
    """Return the folder for one kind of cache, and create it.

    Args:
        kind: One of :data:`CACHES`.

    Returns:
        ``$CHESTXRAY_CACHE/<kind>``, or ``~/.cache/chestxray/<kind>`` when the
        variable is not set.

    Raises:
        ValueError: There is no such cache.
    """
    if kind not in CACHES:
        raise ValueError(f"kind must be one of {CACHES}. Received: kind={kind!r}")
    root = os.environ.get("CHESTXRAY_CACHE") or Path.home() / ".cache" / "chestxray"
    folder = Path(root).expanduser().resolve() / kind
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached_folder(kind: str, name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache, and make it when it is wanted for the first time.

    Processes that want something of the same kind meanwhile wait for it: the
    making takes all cores, and what another has finished is not made again.
    Where the file system knows no locks nobody waits, and it may be made twice.

    Args:
        kind: See :func:`cache_dir`.
        name: Says all about the content.
        make: Fills the empty folder that it is given.
    """
    place = cache_dir(kind)
    folder = place / name
    if not folder.is_dir():
        with _alone_in(place):
            if not folder.is_dir():
                with whole_folder(folder) as unfinished:
                    make(unfinished)
    return folder


@contextlib.contextmanager
def _alone_in(place: Path) -> Iterator[None]:
    """Wait, and say so, while another process is in the block for the same folder."""
    from filelock import FileLock, Timeout  # here: predictions need no cache

    lock = FileLock(place.with_name(f".{place.name}.lock"))
    try:
        lock.acquire(timeout=1)
    except Timeout:
        print(f"waiting for another process that fills {printable(place)}", file=sys.stderr, flush=True)
        lock.acquire()
    except (OSError, NotImplementedError):
        pass  # no locks here
    try:
        yield
    finally:
        lock.release()


def printable(path: str | Path) -> str:
    """A file's name for the terminal: line ends, control characters and bad bytes are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


@contextlib.contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path that becomes ``path`` when the block succeeds.

    The temporary name keeps the suffix of ``path``, because some writers
    choose their format by it. On any error the temporary file is removed and
    ``path`` is untouched.
    """
    partial = _partial(path)
    try:
        yield partial
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes ``path`` when the block succeeds.

    Folders that a killed process left behind (their names hold the process
    id) are removed first; an existing ``path`` is replaced.
    """
    path = Path(path)
    partial = _partial(path)
    partial.mkdir()
    try:
        yield partial
        try:
            os.replace(partial, path)
        except OSError:  # there is one, perhaps since a moment ago
            old = path.with_name(f".partial-{os.getpid()}-old-{path.name}")
            os.replace(path, old)
            os.replace(partial, path)
            shutil.rmtree(old)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _partial(path: str | Path) -> Path:
    """Name what becomes ``path``; what a killed process left under such a name is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_debris(path.parent, glob.escape(path.name))
    return path.with_name(f".partial-{os.getpid()}-{path.name}")


def remove_debris(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left half-written.

    Args:
        folder: Where to look.
        name: Pattern of the names it would have had; this process must not be
            writing one of them.
    """
    for debris in folder.glob(f".partial-*-{name}"):
        process = int(debris.name.split("-")[1])
        if process == os.getpid() or not _alive(process):  # containers hand out the same id again
            if debris.is_dir():
                shutil.rmtree(debris, ignore_errors=True)  # orphans may write there for some seconds
            else:
                debris.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def write_json(path: str | Path, content: Any) -> None:
    """Write ``content`` as readable JSON, whole or not at all.

    Raises:
        ValueError: ``content`` holds NaN or infinity, which JSON does not know.
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")


def read_json(path: str | Path) -> Any:
    """Read a JSON file.

    Raises:
        ValueError: The file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"not a JSON file ({error}). Received: path={str(path)!r}") from None


def project_path(path: str | Path) -> Path:
    """Resolve a path of a notebook: relative ones start at the checkout, wherever the kernel runs."""
    return (Path(__file__).resolve().parent.parent / Path(path).expanduser()).resolve()


def find_weights(weights: str | None, backbone: str) -> tuple[str | None, str]:
    """Say where the weights of a backbone come from.

    Args:
        weights: A weights file; a folder with ``<backbone>_notop*.h5``;
            ``"imagenet"`` for such a file in the folder ``CHESTXRAY_WEIGHTS``
            if it has one, else for Keras' download; None for random weights.
        backbone: Name in the registry.

    Returns:
        What ``keras.applications`` takes as ``weights``, and the name to
        record: ``imagenet``, ``random``, or the file's name.

    Raises:
        FileNotFoundError: The file or folder does not hold the weights.
    """
    if weights is None:
        return None, "random"
    place = os.environ.get("CHESTXRAY_WEIGHTS") if weights == "imagenet" else weights
    if place and not Path(place).exists():
        raise FileNotFoundError(f"no such file or folder of weights: {place}. Received: weights={weights!r}")
    if place and Path(place).is_file():
        return str(place), Path(place).name
    # Keras itself writes inception_v3, but vgg16 and resnet50.
    found = [
        path
        for path in (sorted(Path(place).glob("*notop*.h5")) if place else [])
        if path.name.replace("_", "").lower().startswith(backbone.lower())
    ]
    if found:
        return str(found[0]), found[0].name
    if weights == "imagenet":
        return "imagenet", "imagenet"
    raise FileNotFoundError(
        "no weights file here (in a folder it must be named "
        f"{backbone.lower()}*notop*.h5). Received: weights={weights!r}"
    )
