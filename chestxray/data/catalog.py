"""From a folder or a list to a table of images: the catalog.

A catalog is a pandas table with one row an image, sorted by ``path``:

========================  ====================================================
``path``                  relative to the data folder, with forward slashes
``label``                 0 = NORMAL, 1 = PNEUMONIA
``subtype``               normal, bacteria, virus, or empty
``group``                 patient group, strict key (for intervals)
``group_conservative``    patient group, coarse key (for cutting splits)
``official_split``        train, val, test, or empty
``width height mode``     as stored in the file, before EXIF orientation
``bytes sha256``          size and content of the file
========================  ====================================================

Columns of the user's own follow. Both group keys are merged over
byte-identical files. For the Kaggle data they are *file-name groups*, not
verified patients: the strict key is ``person12_bacteria``; the coarse one is
``person12``, because the numbers of both subtypes may count the same children.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from chestxray.data.formats import check_image
from chestxray.data.images import PIXELS_VERSION
from chestxray.files import cache_dir, printable, read_table, write_json
from chestxray.schema import CLASSES, COLUMNS, SPLIT_HEADER, SPLITS, SUBTYPES

_DEBRIS = ("__MACOSX", ".")

_PERSON = re.compile(r"(?P<person>person\d+)_(?P<subtype>bacteria|virus)_\d+(?:_\d+)?$")
_NORMAL = re.compile(r"(?P<group>(?:NORMAL2-)?IM-\d+)-\d{4}(?:-\d{4})?$")
_MENDELEY = re.compile(r"(?P<subtype>NORMAL|VIRUS|BACTERIA)-(?P<patient>\d+)-\d+$")


def parse_name(stem: str) -> tuple[str, str, str] | None:
    """Read subtype and patient groups from a file name of the known layouts.

    Args:
        stem: File name without its suffix.

    Returns:
        ``(subtype, group, group_conservative)``, or None for an unknown name.
    """
    if match := _PERSON.match(stem):
        person, subtype = match["person"], match["subtype"]
        return subtype, f"{person}_{subtype}", person
    if match := _NORMAL.match(stem):
        return "normal", match["group"], match["group"]
    if match := _MENDELEY.match(stem):
        return match["subtype"].lower(), f"patient-{match['patient']}", f"patient-{match['patient']}"
    return None


def scan(data_dir: str | Path | None = None, classes: tuple[str, str] | None = None) -> pd.DataFrame:
    """List the images of a folder as a catalog.

    Knows the Kaggle layout, the Mendeley v3 layout (documented patient ids,
    no val folder) and a plain folder with two class folders. Files that
    cannot be used are left out with a warning; :func:`verify` names them all.
    Where the file names tell no patient group, every image becomes its own
    group, and a warning says so.

    Args:
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        classes: Names of the (negative, positive) class folders; by default
            NORMAL and PNEUMONIA, these two in any case.

    Returns:
        The catalog.

    Raises:
        FileNotFoundError: There is no such folder.
        ValueError: A class folder is missing or holds no readable image.
    """
    root = find_data(data_dir)
    listing = _list_files(root, classes)
    catalog, problems = _usable(root, listing)
    for label, name in enumerate(classes or CLASSES):
        if not (catalog["label"] == label).any():
            raise ValueError(
                f"expected images of both classes, found no readable one of {name} "
                f"({len(problems)} unreadable). Received: data_dir={str(root)!r}"
            )
    return group_by_names(catalog)


def group_by_names(files: pd.DataFrame) -> pd.DataFrame:
    """Complete a catalog by subtype and patient groups, as far as the file names tell them."""
    parsed = [parse_name(Path(path).stem) or ("", "", "") for path in files["path"]]
    names = pd.DataFrame(parsed, columns=["subtype", "group", "group_conservative"], index=files.index)
    return _finish(files.join(names))


def from_table(
    csv: str | Path,
    image_root: str | Path,
    path: str = "path",
    label: str = "label",
    group: str = "group",
    split: str = "split",
    classes: tuple[str, str] = CLASSES,
) -> pd.DataFrame:
    """Make a catalog from a list that the user keeps.

    Args:
        csv: CSV file with a header; one row an image. Or a split file of
            :func:`chestxray.data.splits.write_split`, to be used under ``given``.
        image_root: Folder to which the paths are relative.
        path: Column with the paths.
        label: Column with 0 and 1, or with the names in ``classes``.
        group: Column with the patient; may be missing (a warning says so).
            ``group_conservative`` may hold a coarser key.
        split: Column with train, val or test, used under the split rules
            ``given`` and ``official``; may be missing.
        classes: Names of the (negative, positive) class.

    Returns:
        The catalog; columns that it does not have itself follow unchanged.
        Its ``attrs`` hold the classes for :func:`chestxray.data.dataset.load_data`.

    Raises:
        FileNotFoundError: The list or the folder does not exist.
        ValueError: A column is missing, a label or split is unknown, a
            subtype contradicts the label, a path is missing or listed twice,
            or a class is empty.
    """
    root = Path(image_root)
    for name, place in (("csv", Path(csv)), ("image_root", root)):
        if not place.exists():
            raise FileNotFoundError(f"does not exist. Received: {name}={str(place)!r}")
    with open(csv, encoding="utf-8") as file:
        header = file.readline().startswith(SPLIT_HEADER)
    names = (path, label, group, split, "group_conservative", "subtype")
    given = read_table(csv, names, skiprows=int(header))
    for name, column in (("path", path), ("label", label)):
        if column not in given:
            raise ValueError(
                f"the list has no such column, only {list(given.columns)}. Received: {name}={column!r}"
            )
    codes = {"0": 0, "1": 1, classes[0]: 0, classes[1]: 1}
    labels = given[label].map(codes)
    if labels.isna().any():
        wrong = given[label][labels.isna()].iloc[0]
        raise ValueError(f"labels must be 0, 1 or one of {classes}. Received: {label}={wrong!r}")
    paths = given[path].map(lambda name: Path(name).as_posix(), na_action="ignore")
    wrong = paths[paths.isna() | paths.duplicated()]
    if len(wrong):
        raise ValueError(f"a path is missing or listed twice. Received: {path}={wrong.iloc[0]!r}")
    listing = pd.DataFrame(
        {
            "path": paths,
            "label": labels.astype(int),
            "official_split": given[split].fillna("") if split in given else "",
        }
    )
    wrong = ~listing["official_split"].isin((*SPLITS, ""))
    if wrong.any():
        raise ValueError(
            f"a split must be one of {SPLITS}. Received: {split}={listing['official_split'][wrong].iloc[0]!r}"
        )
    listing["subtype"] = given["subtype"].fillna("") if "subtype" in given else ""
    wrong = listing["subtype"].isin(SUBTYPES) & ((listing["subtype"] != SUBTYPES[0]) != listing["label"])
    if wrong.any():
        one = listing[wrong].iloc[0]
        raise ValueError(
            "a subtype contradicts the label. "
            f"Received: path={one['path']!r}, label={one['label']}, subtype={one['subtype']!r}"
        )
    listing["group"] = given[group].fillna("") if group in given else ""
    listing["group_conservative"] = given.get("group_conservative", listing["group"]).fillna(listing["group"])
    own = [name for name in given if name not in (path, label, group, split, *COLUMNS)]
    listing = listing.join(given[own])
    catalog, problems = _usable(root, listing)
    if catalog["label"].nunique() < 2:
        raise ValueError(
            f"expected readable images of both classes ({len(problems)} unreadable). "
            f"Received: csv={str(csv)!r}"
        )
    catalog = _finish(catalog)
    catalog.attrs["classes"] = tuple(classes)
    return catalog


def verify(data_dir: str | Path | None = None, classes: tuple[str, str] | None = None) -> pd.DataFrame:
    """Collect every problem of a folder in one table, instead of failing at the first.

    Args:
        data_dir: See :func:`chestxray.data.catalog.find_data`.
        classes: See :func:`scan`.

    Returns:
        Table with ``path``, ``problem`` (unreadable, empty file, not an image,
        truncated, truncated or damaged header, too small, too large, file name
        is not UTF-8, unknown name, name contradicts class, byte-identical,
        byte-identical with other label), ``detail``, and
        ``kept``: False for the files that :func:`scan` leaves out.
    """
    root = find_data(data_dir)
    catalog, problems = _usable(root, _list_files(root, classes), quiet=True)
    rows = [(path, reason.split(" (")[0], reason, False) for path, reason in problems.items()]
    rows += [
        (path, "unknown name", "no patient group can be read from the name", True)
        for path in catalog["path"]
        if parse_name(Path(path).stem) is None
    ]
    rows += [
        (path, "name contradicts class", f"the folder says {(classes or CLASSES)[label]}", True)
        for path, label in zip(catalog["path"], catalog["label"], strict=True)
        if (parsed := parse_name(Path(path).stem)) and (parsed[0] != "normal") != label
    ]
    for _, copies in catalog.groupby("sha256"):
        if len(copies) > 1:
            problem = "byte-identical" + ("" if copies["label"].nunique() == 1 else " with other label")
            rows += [
                (path, problem, f"same content as {', '.join(copies['path'].drop(i))}", True)
                for i, path in copies["path"].items()
            ]
    table = pd.DataFrame(rows, columns=["path", "problem", "detail", "kept"])
    return table.sort_values(["kept", "problem", "path"], ignore_index=True)


def _list_files(root: Path, classes: tuple[str, str] | None) -> pd.DataFrame:
    """List every file below the class folders, with its label and official split."""
    any_case = classes is None or tuple(classes) == CLASSES
    wanted = {name.lower() if any_case else name: label for label, name in enumerate(classes or CLASSES)}
    rows, subsets = [], split_folders(root)
    for entry in sorted(root.iterdir()) if subsets else ():
        known = entry in subsets or entry.name == "chest_xray" or entry.name.startswith(_DEBRIS)
        if entry.is_dir() and not known:
            warnings.warn(f"folder ignored, it is none of {', '.join(SPLITS)}: {entry}", stacklevel=3)
    for folder in subsets or [root]:
        split = "" if folder == root else folder.name
        found = sorted(
            entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith(_DEBRIS)
        )
        labels = {entry: wanted.get(entry.name.lower() if any_case else entry.name) for entry in found}
        if {label for label in labels.values() if label is not None} != {0, 1}:
            raise ValueError(
                f"expected class folders {' and '.join(classes or CLASSES)} in {folder}, found "
                f"{[entry.name for entry in found] or 'no folder'}; name yours by "
                f"classes=(negative, positive). Received: classes={classes!r}"
            )
        for entry, label in labels.items():
            if label is None:
                warnings.warn(f"folder ignored, it is neither class: {entry}", stacklevel=3)
                continue
            rows += [
                (path.relative_to(root).as_posix(), label, split)
                for path in entry.rglob("*")
                if not path.is_dir()
                and not any(subset.startswith(_DEBRIS) for subset in path.relative_to(entry).parts)
            ]
    return pd.DataFrame(rows, columns=["path", "label", "official_split"])


def _usable(root: Path, listing: pd.DataFrame, quiet: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """Add what the files' bytes tell, and leave out the files that cannot be used."""
    facts, problems = inspect_files(root, list(listing["path"]))
    if problems and not quiet:
        named = "; ".join(f"{path}: {reason}" for path, reason in list(problems.items())[:5])
        warnings.warn(
            f"{len(problems)} of {len(listing)} files left out: {named}{'; …' if len(problems) > 5 else ''}",
            stacklevel=3,
        )
    catalog = listing.merge(facts, on="path", how="inner").sort_values("path", ignore_index=True)
    return catalog, problems


def _finish(catalog: pd.DataFrame) -> pd.DataFrame:
    """Fill unknown groups, merge them over identical files and patients, order the columns."""
    catalog["group"] = catalog["group"].where(catalog["group"] != "", catalog["group_conservative"])
    unknown = catalog["group"] == ""
    if unknown.any():
        warnings.warn(
            f"no patient group is known for {unknown.sum()} of {len(catalog)} images: each "
            "counts as a patient of its own, so copies or several films of one patient may "
            "fall on both sides of a split",
            stacklevel=3,
        )
        for key in ("group", "group_conservative"):
            catalog[key] = catalog[key].where(~unknown, "image:" + catalog["path"])
    for key in ("group", "group_conservative"):
        catalog[key] = merge_groups(catalog[key], catalog["sha256"])
    catalog["group_conservative"] = merge_groups(catalog["group_conservative"], catalog["group"])
    return catalog[[*COLUMNS, *(column for column in catalog if column not in COLUMNS)]]


def merge_groups(groups: pd.Series, shared: pd.Series) -> pd.Series:
    """Join groups that share a value, under the smallest of their names."""
    parent = {group: group for group in groups}

    def find(group: str) -> str:
        while parent[group] != group:
            group = parent[group]
        return group

    for _, members in groups.groupby(shared):
        roots = {find(group) for group in members}
        for root in roots:
            parent[root] = min(roots)
    return groups.map(find)


_KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
_KAGGLE_INPUT = Path("/kaggle/input")


def find_data(data_dir: str | Path | None = None) -> Path:
    """Find the folder that holds the class folders or ``train``, ``val``, ``test``.

    Args:
        data_dir: A folder (the nested copies of the Kaggle archive are seen
            through); ``"phantoms"`` for the synthetic default; ``"kaggle"``
            to download with kagglehub; None or ``""`` for the folder named by
            ``CHESTXRAY_DATA`` or, on Kaggle, the attached data set.

    Raises:
        FileNotFoundError: Nothing was found; says what was looked for.
    """
    if not data_dir:
        data_dir = os.environ.get("CHESTXRAY_DATA") or next(
            iter(sorted(_KAGGLE_INPUT.glob("**/chest_xray"))), None
        )
        if data_dir is None:
            raise FileNotFoundError(
                'no data folder: give data_dir, set CHESTXRAY_DATA, or use "kaggle" (download) or '
                '"phantoms" (synthetic). Received: data_dir=None'
            )
    if data_dir == "phantoms":
        from chestxray.phantoms import phantom_dataset

        return phantom_dataset(images=600)
    if data_dir == "kaggle":
        try:
            import kagglehub
        except ImportError:
            raise ValueError(
                "downloading needs kagglehub: pip install -e '.[kaggle]'. Received: data_dir='kaggle'"
            ) from None
        data_dir = kagglehub.dataset_download(_KAGGLE_DATASET)
    folder = Path(data_dir).expanduser().resolve()
    if not folder.is_dir():
        raise FileNotFoundError(f"no such data folder. Received: data_dir={str(data_dir)!r}")
    while not split_folders(folder):
        inner = folder / "chest_xray"
        if not inner.is_dir():
            return folder
        folder = inner
    return folder


def split_folders(folder: Path) -> list[Path]:
    """The folders train, val and test that there are."""
    return [folder / name for name in SPLITS if (folder / name).is_dir()]


_FACTS = ("bytes", "mtime", "sha256", "width", "height", "mode", "problem")


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
    table = pd.DataFrame(entries, columns=_FACTS).assign(path=paths)
    usable = table["problem"] == ""
    facts = table.loc[usable, ["path", "width", "height", "mode", "bytes", "sha256"]]
    return facts, dict(
        zip(map(printable, table.loc[~usable, "path"]), table.loc[~usable, "problem"], strict=True)
    )
