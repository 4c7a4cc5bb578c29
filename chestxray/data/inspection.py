"""What the bytes of the files tell, read once and remembered.

Reading and hashing 5,856 originals takes seconds to minutes; nothing changes
between two calls, so the facts are kept in the user's cache, keyed by path,
size and modification time.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from chestxray.data.headers import check_image
from chestxray.data.images import PIXELS_VERSION
from chestxray.files import cache_dir, printable, write_json

_COLUMNS = ("bytes", "mtime", "sha256", "width", "height", "mode", "problem")


def inspect_files(root: Path, paths: list[str]) -> tuple[pd.DataFrame, dict[str, str]]:
    """Hash every file and read its header.

    Args:
        root: Folder to which the paths are relative.
        paths: Files to look at.

    Returns:
        Table with ``path, width, height, mode, bytes, sha256`` of the usable
        files, and a dictionary from the path of each other file, as printed, to
        the reason.
    """
    place = f"{PIXELS_VERSION} {root.resolve()}"
    memory = cache_dir("files") / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    try:
        known = json.loads(memory.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}

    def look(path: str) -> list:
        file = root / path
        if path.encode(errors="replace").decode() != path:  # tables and pages could not hold it
            return [0, 0, "", 0, 0, "", "file name is not UTF-8"]
        try:
            stat = file.stat()
            old = known.get(path)
            if old and old[:2] == [stat.st_size, stat.st_mtime_ns]:
                return old
            data = file.read_bytes()
        except OSError as error:
            return [0, 0, "", 0, 0, "", f"unreadable ({error.strerror})"]
        entry = [stat.st_size, stat.st_mtime_ns, hashlib.sha256(data).hexdigest()]
        try:
            return [*entry, *check_image(data), ""]
        except ValueError as error:
            return [*entry, 0, 0, "", str(error)]

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        entries = list(
            tqdm(
                pool.map(look, paths),
                total=len(paths),
                desc="looking at files",
                unit="file",
                delay=2,
                disable=None,
            )
        )
    found = dict(zip(paths, entries, strict=True))
    if any(known.get(path) != entry for path, entry in found.items()):
        write_json(memory, found)
    table = pd.DataFrame(entries, columns=_COLUMNS).assign(path=paths)
    usable = table["problem"] == ""
    facts = table.loc[usable, ["path", "width", "height", "mode", "bytes", "sha256"]]
    return facts, dict(
        zip(map(printable, table.loc[~usable, "path"]), table.loc[~usable, "problem"], strict=True)
    )
