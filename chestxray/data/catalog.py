"""Catalog: a pandas table of images, made from a folder or a list.

The columns are those of contract 1 in ``CONTRIBUTING.md``; the user's own columns follow. Both group keys are
merged over byte-identical files. For the Kaggle data they are *file-name groups*, not verified patients: the
strict key (for intervals) is ``person12_bacteria``; the conservative one (for splits) is ``person12``,
because the numbers of both subtypes may count the same children.
"""

import hashlib
import os
import re
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
from tqdm import tqdm
from tqdm.contrib.concurrent import thread_map

from chestxray.data.formats import check_image
from chestxray.data.images import PIXELS_VERSION
from chestxray.files import (
    cache_dir,
    cached_folder,
    files_below,
    printable,
    read_json,
    read_table,
    spelled,
    write_json,
)
from chestxray.schema import CLASSES, COLUMNS, SPLIT_HEADER, SPLITS, SUBTYPES

_FACTS = ["bytes", "mtime", "sha256", "width", "height", "mode", "problem"]
_KAGGLE_DATASET = "paultimothymooney/chest-xray-pneumonia"
_KAGGLE_INPUT = Path("/kaggle/input")

_PERSON = re.compile(r"(?P<person>person\d+)_(?P<subtype>bacteria|virus)_\d+(?:_\d+)?$")
_NORMAL = re.compile(r"(?P<group>(?:NORMAL2-)?IM-\d+)-\d{4}(?:-\d{4})?$")
_MENDELEY = re.compile(r"(?P<subtype>NORMAL|VIRUS|BACTERIA)-(?P<patient>\d+)-\d+$")


def parse_name(stem: str) -> tuple[str, str, str] | None:
    """Read ``(subtype, group, group_conservative)`` from a file name without suffix; None if unknown."""
    if match := _PERSON.match(stem):
        person, subtype = match["person"], match["subtype"]
        return subtype, f"{person}_{subtype}", person
    if match := _NORMAL.match(stem):
        return "normal", match["group"], match["group"]
    if match := _MENDELEY.match(stem):
        return match["subtype"].lower(), f"patient-{match['patient']}", f"patient-{match['patient']}"
    return None


def find_data(data_dir: str | Path | None = None) -> Path:
    """Find the folder that holds the class folders or ``train``, ``val``, ``test``.

    ``data_dir`` is a folder (nested copies of the Kaggle archive are searched), ``"phantoms"`` for the
    synthetic default, ``"kaggle"`` to download with kagglehub, or a PneumoniaMNIST file
    (``pneumoniamnist_224.npz``), whose images are written to the cache folder as PNG files. None or ``""``
    means the folder named by ``CHESTXRAY_DATA`` or, on Kaggle, the attached data set.

    Raises FileNotFoundError if nothing was found, and ValueError if kagglehub is not installed.
    """
    if not data_dir:
        attached = _KAGGLE_INPUT.glob("**/chest_xray")
        data_dir = os.environ.get("CHESTXRAY_DATA") or min(attached, default=None)
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
    if folder.suffix == ".npz" and folder.is_file():
        return _unpack(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"no such data folder. Received: data_dir={str(data_dir)!r}")
    while not _split_folders(folder) and (folder / "chest_xray").is_dir():
        folder = folder / "chest_xray"
    return folder


def _unpack(file: Path) -> Path:
    """Write the images of a PneumoniaMNIST file to the cache as ``<part>/<class>/<part>_<number>.png``.

    Training images that are also in val or test, and val images that are in test, are left out.
    """
    received = f"Received: data_dir={str(file)!r}"

    def write(folder: Path) -> None:
        seen: set[bytes] = set()
        try:
            with np.load(file, allow_pickle=False) as arrays:
                parts = {part: [arrays[f"{part}_{kind}"] for kind in ("images", "labels")] for part in SPLITS}
            for part, (images, labels) in reversed(parts.items()):
                if images.dtype != np.uint8 or images.shape[:1] != labels.shape[:1] or images.ndim != 3:
                    raise ValueError(f"{part}_images are not grey, or have no label each")
                names = [dict(enumerate(CLASSES))[int(label)] for (label,) in labels.reshape(len(labels), -1)]
                for number, (image, name) in enumerate(zip(images, names)):
                    if image.tobytes() not in seen:
                        path = folder / file.stem / part / name / f"{part}_{number:05d}.png"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        path.write_bytes(cv2.imencode(".png", image)[1])
                seen |= {image.tobytes() for image in images}
        except OSError:
            raise
        except Exception as error:  # a damaged file can fail in any way
            raise ValueError(f"not a PneumoniaMNIST file ({error}). {received}") from None

    if not file.stem.startswith("pneumoniamnist"):
        raise ValueError(f"only PneumoniaMNIST's classes are known. {received}")
    status = file.stat()
    key = hashlib.sha256(f"{file} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    return cached_folder("medmnist", key, write) / file.stem


def scan(data_dir: str | Path | None = None, classes: tuple[str, str] | None = None) -> pd.DataFrame:
    """List the images of a folder (see :func:`find_data`) as a catalog.

    Knows the Kaggle layout, the Mendeley v3 layout (documented patient ids, no val folder) and a plain folder
    with two class folders. ``classes`` names the (negative, positive) class folders; by default they are
    NORMAL and PNEUMONIA in any case. Files that cannot be used are left out with a warning; :func:`verify`
    names them all. Images without a known patient group become their own group, with a warning.

    Raises FileNotFoundError if there is no such folder, and ValueError if a class has no folder or no
    readable image.
    """
    root = find_data(data_dir)
    catalog, problems = _inspect(root, _list_files(root, classes))
    for label, name in enumerate(classes or CLASSES):
        if not (catalog["label"] == label).any():
            raise ValueError(
                f"expected images of both classes, found no readable one of {name} "
                f"({len(problems)} unreadable). Received: data_dir={str(root)!r}"
            )
    return group_by_names(catalog)


def group_by_names(files: pd.DataFrame) -> pd.DataFrame:
    """Complete a catalog by subtype and patient groups from the file names; the folder decides the label."""
    parsed = [parse_name(Path(path).stem) or ("", "", "") for path in files["path"]]
    names = pd.DataFrame(parsed, columns=["subtype", "group", "group_conservative"], index=files.index)
    wrong = (names["subtype"] != "") & ((names["subtype"] != SUBTYPES[0]) != files["label"])
    if wrong.any():
        text = f"{wrong.sum()} file names contradict their folder, and give no subtype: "
        warnings.warn(f"{text}{printable(files['path'][wrong].iloc[0])}, …", stacklevel=3)
        names.loc[wrong, "subtype"] = ""
    return _complete(files.join(names))


def from_table(
    csv: str | Path,
    image_root: str | Path,
    path: str = "path",
    label: str = "label",
    group: str = "group",
    split: str = "split",
    classes: tuple[str, str] = CLASSES,
) -> pd.DataFrame:
    """Make a catalog from a list of the user; other columns follow, and ``attrs`` holds the classes.

    Args:
        csv: CSV file with a header and one row an image, or a split file of
            :func:`chestxray.data.splits.write_split`, to be used under the split rule ``given``.
        image_root: Folder to which the paths are relative.
        path, label: Columns with the paths, and with 0 and 1 or the names in ``classes``.
        group: Column with the patient; may be missing, with a warning. ``group_conservative`` may hold a
            coarser key.
        split: Column with train, val or test, for the split rules ``given`` and ``official``; may be missing.
        classes: Names of the (negative, positive) class.

    Raises FileNotFoundError if the list or the folder does not exist, and ValueError if a column is missing,
    a label or split is unknown, a subtype contradicts the label, a path is missing or listed twice, or a
    class is empty.
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
            columns = list(given.columns)
            raise ValueError(f"the list has no such column, only {columns}. Received: {name}={column!r}")
    empty = pd.Series("", given.index)
    labels = given[label].map({"0": 0, "1": 1, classes[0]: 0, classes[1]: 1})
    paths = given[path].map(lambda name: Path(spelled(root, name)).as_posix(), na_action="ignore")
    splits = given.get(split, empty).fillna("")
    subtypes = given.get("subtype", empty).fillna("")
    groups = given.get(group, empty).fillna("")
    _require(labels.notna(), f"labels must be 0, 1 or one of {classes}", {label: given[label]})
    _require(paths.notna() & ~paths.duplicated(), "a path is missing or listed twice", {path: paths})
    _require(splits.isin((*SPLITS, "")), f"a split must be one of {SPLITS}", {split: splits})
    labels = labels.astype(int)
    fits = ~subtypes.isin(SUBTYPES) | ((subtypes != SUBTYPES[0]) == labels)
    values = {"path": paths, "label": labels, "subtype": subtypes}
    _require(fits, "a subtype contradicts the label", values)
    coarse = given.get("group_conservative", groups).fillna(groups)
    keys = {"official_split": splits, "group": groups, "group_conservative": coarse}
    others = [name for name in given if name not in (path, label, group, split, *COLUMNS)]
    catalog, problems = _inspect(root, pd.DataFrame(values | keys).join(given[others]))
    if catalog["label"].nunique() < 2:
        raise ValueError(
            f"expected readable images of both classes ({len(problems)} unreadable). "
            f"Received: csv={str(csv)!r}"
        )
    catalog = _complete(catalog)
    catalog.attrs["classes"] = tuple(classes)
    return catalog


def _require(valid: pd.Series, message: str, values: dict[str, pd.Series]) -> None:
    """Raise ValueError with the values of the first row that is not valid."""
    if not valid.all():
        row = valid.to_numpy().argmin()
        received = ", ".join(f"{name}={column.astype(object).iloc[row]!r}" for name, column in values.items())
        raise ValueError(f"{message}. Received: {received}")


def verify(data_dir: str | Path | None = None, classes: tuple[str, str] | None = None) -> pd.DataFrame:
    """Collect all problems of a folder in one table; see :func:`scan` for the arguments.

    The columns are ``path``, ``problem`` (a reason of :func:`chestxray.data.formats.check_image`, or
    unreadable, file name is not UTF-8, unknown name, name contradicts class, byte-identical, byte-identical
    with other label), ``detail``, and ``kept``: False if :func:`scan` leaves the file out.
    """
    root = find_data(data_dir)
    catalog, problems = _inspect(root, _list_files(root, classes), quiet=True)
    rows = [(path, reason.split(" (")[0], reason, False) for path, reason in problems.items()]
    for path, label in zip(catalog["path"], catalog["label"]):
        parsed = parse_name(Path(path).stem)
        if parsed is None:
            rows.append((path, "unknown name", "no patient group can be read from the name", True))
        elif (parsed[0] != "normal") != label:
            detail = f"the folder says {(classes or CLASSES)[label]}"
            rows.append((path, "name contradicts class", detail, True))
    for _, copies in catalog[catalog.duplicated("sha256", keep=False)].groupby("sha256"):
        problem = "byte-identical" + ("" if copies["label"].nunique() == 1 else " with other label")
        for row, path in copies["path"].items():
            rows.append((path, problem, f"same content as {', '.join(copies['path'].drop(row))}", True))
    table = pd.DataFrame(rows, columns=["path", "problem", "detail", "kept"])
    return table.sort_values(["kept", "problem", "path"], ignore_index=True)


def _split_folders(folder: Path) -> list[Path]:
    """Folders named train, val or test, in any case."""
    return [path for path in _folders(folder) if path.name.lower() in SPLITS]


def _list_files(root: Path, classes: tuple[str, str] | None) -> pd.DataFrame:
    """List every file below the class folders, with its label and official split."""
    names = tuple(classes or CLASSES)
    any_case = names == CLASSES
    label_of = {name.lower() if any_case else name: label for label, name in enumerate(names)}
    rows, subsets = [], _split_folders(root)
    for folder in _folders(root) if subsets else ():
        if folder not in subsets and folder.name != "chest_xray":
            warnings.warn(f"folder ignored, it is none of {', '.join(SPLITS)}: {folder}", stacklevel=3)
    for parent in subsets or [root]:
        split = "" if parent == root else parent.name.lower()
        folders = _folders(parent)
        labels = [label_of.get(folder.name.lower() if any_case else folder.name) for folder in folders]
        if not {0, 1} <= set(labels):
            raise ValueError(
                f"expected class folders {' and '.join(names)} in {parent}, found "
                f"{[folder.name for folder in folders] or 'no folder'}; name yours by "
                f"classes=(negative, positive). Received: classes={classes!r}"
            )
        for folder, label in zip(folders, labels):
            if label is None:
                warnings.warn(f"folder ignored, it is neither class: {folder}", stacklevel=3)
                continue
            rows += [(path.relative_to(root).as_posix(), label, split) for path in files_below(folder)]
    return pd.DataFrame(rows, columns=["path", "label", "official_split"])


def _folders(parent: Path) -> list[Path]:
    return sorted(
        path for path in parent.iterdir() if path.is_dir() and not path.name.startswith((".", "__MACOSX"))
    )


def _inspect(root: Path, listing: pd.DataFrame, quiet: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """Usable files with hash and header, and reasons for the others, cached by path, size and time."""
    place = f"{PIXELS_VERSION} {root.resolve()}"
    cache = cache_dir("files") / f"{hashlib.sha256(place.encode()).hexdigest()[:16]}.json"
    try:
        cached = read_json(cache)
    except (OSError, ValueError):
        cached = {}

    def inspect(path: str) -> list:
        if path.encode(errors="replace").decode() != path:  # tables and pages could not hold it
            return [0, 0, "", 0, 0, "", "file name is not UTF-8"]
        try:
            stat = (root / path).stat()
            if path in cached and cached[path][:2] == [stat.st_size, stat.st_mtime_ns]:
                return cached[path]
            data = (root / path).read_bytes()
        except OSError as error:
            return [0, 0, "", 0, 0, "", f"unreadable ({error.strerror})"]
        entry = [stat.st_size, stat.st_mtime_ns, hashlib.sha256(data).hexdigest()]
        try:
            return [*entry, *check_image(data), ""]
        except ValueError as error:
            return [*entry, 0, 0, "", str(error)]

    progress = {"desc": "inspecting files", "unit": "file", "delay": 2, "disable": None}
    entries = thread_map(inspect, listing["path"], max_workers=os.cpu_count(), tqdm_class=tqdm, **progress)
    facts = dict(zip(listing["path"], entries))
    if any(cached.get(path) != entry for path, entry in facts.items()):
        write_json(cache, facts)
    files = listing.join(pd.DataFrame(entries, columns=_FACTS, index=listing.index))
    usable = files["problem"] == ""
    problems = dict(zip(map(printable, files["path"][~usable]), files["problem"][~usable]))
    if problems and not quiet:
        named = "; ".join(f"{path}: {reason}" for path, reason in list(problems.items())[:5])
        more = "; …" if len(problems) > 5 else ""
        warnings.warn(f"{len(problems)} of {len(files)} files left out: {named}{more}", stacklevel=3)
    catalog = files[usable].drop(columns=["mtime", "problem"])
    return catalog.sort_values("path", ignore_index=True), problems


def _complete(catalog: pd.DataFrame) -> pd.DataFrame:
    """Fill unknown groups, merge groups over identical files and patients, and order the columns."""
    catalog["group"] = catalog["group"].where(catalog["group"] != "", catalog["group_conservative"])
    unknown = catalog["group"] == ""
    if unknown.any():
        warnings.warn(
            f"no patient group is known for {unknown.sum()} of {len(catalog)} images: each counts as its own "
            "patient, so copies or several images of one patient may fall on both sides of a split",
            stacklevel=3,
        )
    for key in ("group", "group_conservative"):
        groups = catalog[key].where(~unknown, "image:" + catalog["path"])
        catalog[key] = merge_groups(groups, catalog["sha256"])
    catalog["group_conservative"] = merge_groups(catalog["group_conservative"], catalog["group"])
    return catalog[[*COLUMNS, *(column for column in catalog if column not in COLUMNS)]]


def merge_groups(groups: pd.Series, shared: pd.Series) -> pd.Series:
    """Join groups that share a value, under the smallest of their names."""
    from scipy.sparse import coo_array  # here: the processes that decode images need no SciPy
    from scipy.sparse.csgraph import connected_components

    group, names = pd.factorize(groups)
    value, values = pd.factorize(shared)
    nodes = len(names) + len(values)
    edges = coo_array((np.ones(len(groups)), (group, len(names) + value)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][group]
    return groups.groupby(component).transform("min")
