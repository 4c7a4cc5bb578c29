"""Catalog: a pandas table of images, made from a folder or from a table of the user.

The columns are those of contract 1 in ``CONTRIBUTING.md``, then the user's. The patient groups of the Kaggle
data are read from file names and not verified: ``person12_bacteria`` (strict, for intervals) and ``person12``
(conservative, for splits), because both subtypes may number the same children.
"""

import hashlib
import json
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
from chestxray.files import cache_dir, cached_folder, files_below, printable, read_table, spelled, write_json
from chestxray.schema import CLASSES, COLUMNS, SPLIT_HEADER, SPLITS, SUBTYPES, check, mistake

_FACTS = ["bytes", "mtime", "sha256", "width", "height", "mode", "problem"]
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
    """Find the folder that contains the class folders or ``train``, ``val``, ``test``.

    ``data_dir`` is a folder (nested copies of the Kaggle archive are searched), ``"phantoms"`` for the
    synthetic images, ``"kaggle"`` to download with kagglehub, or a PneumoniaMNIST file
    (``pneumoniamnist_224.npz``). None or ``""`` means the folder ``CHESTXRAY_DATA`` or Kaggle's input folder.

    Raises FileNotFoundError if there is no data folder, and ValueError if kagglehub is not installed.
    """
    if not data_dir:
        attached = _KAGGLE_INPUT.glob("**/chest_xray")
        data_dir = os.environ.get("CHESTXRAY_DATA") or min(attached, default=None)
        message = 'data_dir must be a folder, "kaggle" (download) or "phantoms", or set CHESTXRAY_DATA'
        check(data_dir is not None, message, FileNotFoundError, data_dir=None)
    if data_dir == "phantoms":
        from chestxray.phantoms import phantom_dataset

        return phantom_dataset(images=600)
    if data_dir == "kaggle":
        try:
            import kagglehub
        except ImportError:
            raise ValueError("needs pip install -e '.[kaggle]'. Received: data_dir='kaggle'") from None
        data_dir = kagglehub.dataset_download("paultimothymooney/chest-xray-pneumonia")
    folder = Path(data_dir).expanduser().resolve()
    if folder.suffix == ".npz" and folder.is_file():
        return _unpack(folder)
    check(folder.is_dir(), "no such data folder", FileNotFoundError, data_dir=str(data_dir))
    while not _split_folders(folder) and (folder / "chest_xray").is_dir():
        folder = folder / "chest_xray"
    return folder


def _unpack(file: Path) -> Path:
    """Write a PneumoniaMNIST file to the cache as PNG files, each image once: in test, val or train."""

    def write(folder: Path) -> None:
        written, subsets = set(), {}
        with mistake(message, data_dir=str(file)), np.load(file, allow_pickle=False) as arrays:
            for subset in reversed(SPLITS):
                images, labels = arrays[f"{subset}_images"], arrays[f"{subset}_labels"]
                valid = images.dtype == np.uint8 and images.shape[:1] == labels.shape[:1] and images.ndim == 3
                check(valid, f"{subset}_images must be grey and have one label each", shape=images.shape)
                names = [dict(enumerate(CLASSES))[int(label)] for (label,) in labels.reshape(len(labels), -1)]
                subsets[subset] = images, names
        for subset, (images, names) in subsets.items():
            for number, (image, name) in enumerate(zip(images, names)):
                if image.tobytes() not in written:
                    path = folder / file.stem / subset / name / f"{subset}_{number:05d}.png"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(cv2.imencode(".png", image)[1])
            written |= {image.tobytes() for image in images}

    message = "not a PneumoniaMNIST file (pneumoniamnist*.npz)"
    check(file.stem.startswith("pneumoniamnist"), message, data_dir=str(file))
    status = file.stat()
    key = hashlib.sha256(f"{file} {status.st_size} {status.st_mtime_ns}".encode()).hexdigest()[:16]
    return cached_folder("medmnist", key, write) / file.stem


def scan(data_dir: str | Path | None = None, classes: tuple[str, str] | None = None) -> pd.DataFrame:
    """List the images of a folder (see :func:`find_data`) as a catalog.

    The folder has the layout of Kaggle, Mendeley v3 (documented patients, no val folder) or two class
    folders, ``classes``, by default NORMAL and PNEUMONIA in upper or lower case. A warning names files that
    cannot be used (:func:`verify` lists all), another says how many images have no known patient group.

    Raises FileNotFoundError if there is no such folder, and ValueError for a class without readable images.
    """
    root = find_data(data_dir)
    catalog, _ = _inspect(root, _list_files(root, classes), classes or CLASSES)
    return group_by_names(catalog)


def group_by_names(files: pd.DataFrame) -> pd.DataFrame:
    """Add subtype and patient groups from the file names to a catalog; the label comes from the folder."""
    parsed = [parse_name(Path(path).stem) or ("", "", "") for path in files["path"]]
    names = pd.DataFrame(parsed, columns=["subtype", "group", "group_conservative"], index=files.index)
    wrong = (names["subtype"] != "") & ((names["subtype"] != SUBTYPES[0]) != files["label"])
    if wrong.any():
        message = f"{wrong.sum()} file names contradict the class of their folder and give no subtype"
        warnings.warn(f"{message}: {printable(files['path'][wrong].iloc[0])}, …", stacklevel=3)
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
    """Make a catalog from a table of the user. Its other columns are kept; ``attrs`` has the classes.

    Args:
        csv: CSV file with a header and one row for each image, or a split file of
            :func:`chestxray.data.splits.write_split` for the split rule ``given``.
        image_root: Folder to which the paths are relative.
        path, label: Columns with the paths, and with 0 and 1 or the names in ``classes``.
        group: Column with the patient; ``group_conservative`` may have a coarser key.
        split: Column with train, val or test, for the split rules ``given`` and ``official``; may be missing.
        classes: Names of the (negative, positive) class.

    Raises FileNotFoundError without table or folder, and ValueError for a missing column, an unknown label or
    split, a subtype that contradicts the label, a path that is missing or listed twice, or an empty class.
    """
    root = Path(image_root)
    for name, source in (("csv", Path(csv)), ("image_root", root)):
        check(source.exists(), f"{name} must exist", FileNotFoundError, **{name: str(source)})
    with open(csv, encoding="utf-8") as file:
        header = file.readline().startswith(SPLIT_HEADER)
    names = (path, label, group, split, "group_conservative", "subtype")
    table = read_table(csv, names, skiprows=int(header))
    for name, column in (("path", path), ("label", label)):
        message = f"{name} must be a column of the table, one of {list(table.columns)}"
        check(column in table, message, **{name: column})
    empty = pd.Series("", table.index)
    labels = table[label].map({"0": 0, "1": 1, classes[0]: 0, classes[1]: 1})
    paths = table[path].map(lambda name: Path(spelled(root, name)).as_posix(), na_action="ignore")
    splits, subtypes, groups = (table.get(name, empty).fillna("") for name in (split, "subtype", group))
    _require(labels.notna(), f"labels must be 0, 1 or one of {classes}", {label: table[label]})
    _require(paths.notna() & ~paths.duplicated(), "a path is missing or listed twice", {path: paths})
    _require(splits.isin((*SPLITS, "")), f"a split must be one of {SPLITS}", {split: splits})
    labels = labels.astype(int)
    consistent = ~subtypes.isin(SUBTYPES) | ((subtypes != SUBTYPES[0]) == labels)
    values = {"path": paths, "label": labels, "subtype": subtypes}
    _require(consistent, "a subtype contradicts the label", values)
    conservative = table.get("group_conservative", groups).fillna(groups)
    keys = {"official_split": splits, "group": groups, "group_conservative": conservative}
    others = [name for name in table if name not in (path, label, group, split, *COLUMNS)]
    catalog, _ = _inspect(root, pd.DataFrame(values | keys).join(table[others]), classes)
    catalog = _complete(catalog)
    catalog.attrs["classes"] = tuple(classes)
    return catalog


def _require(valid: pd.Series, message: str, values: dict[str, pd.Series]) -> None:
    """Raise ValueError with the values of the first invalid row."""
    if not valid.all():
        row = valid.to_numpy().argmin()
        received = ", ".join(f"{name}={column.astype(object).iloc[row]!r}" for name, column in values.items())
        raise ValueError(f"{message}. Received: {received}")


def verify(data_dir: str | Path | None = None, classes: tuple[str, str] | None = None) -> pd.DataFrame:
    """List all problems of the files in a folder; for the arguments see :func:`scan`.

    Columns: ``path``, ``problem`` (a reason of :func:`chestxray.data.formats.check_image`, or unreadable,
    file name is not UTF-8, unknown name, name contradicts class, byte-identical, byte-identical with other
    label), ``detail``, and ``kept``: False if :func:`scan` leaves the file out.
    """
    root = find_data(data_dir)
    catalog, problems = _inspect(root, _list_files(root, classes))
    rows = [(path, reason.split(" (")[0], reason, False) for path, reason in problems.items()]
    for path, label in zip(catalog["path"], catalog["label"]):
        parsed = parse_name(Path(path).stem)
        if parsed is None:
            rows.append((path, "unknown name", "no patient group can be read from the name", True))
        elif (parsed[0] != "normal") != label:
            detail = f"the folder is {(classes or CLASSES)[label]}"
            rows.append((path, "name contradicts class", detail, True))
    for _, copies in catalog[catalog.duplicated("sha256", keep=False)].groupby("sha256"):
        problem = "byte-identical" + ("" if copies["label"].nunique() == 1 else " with other label")
        for row, path in copies["path"].items():
            rows.append((path, problem, f"same content as {', '.join(copies['path'].drop(row))}", True))
    table = pd.DataFrame(rows, columns=["path", "problem", "detail", "kept"])
    return table.sort_values(["kept", "problem", "path"], ignore_index=True)


def _split_folders(folder: Path) -> list[Path]:
    """Return the folders named train, val or test, in upper or lower case."""
    return [path for path in _folders(folder) if path.name.lower() in SPLITS]


def _list_files(root: Path, classes: tuple[str, str] | None) -> pd.DataFrame:
    """List every file below the class folders, with its label and official split."""
    names = tuple(classes or CLASSES)
    spell = str.lower if names == CLASSES else str
    label_of = {spell(name): label for label, name in enumerate(names)}
    rows, subsets = [], _split_folders(root)
    for folder in _folders(root) if subsets else ():
        if folder not in subsets and folder.name != "chest_xray":
            warnings.warn(f"folder ignored, not one of {', '.join(SPLITS)}: {folder}", stacklevel=3)
    for parent in subsets or [root]:
        split = "" if parent == root else parent.name.lower()
        folders = _folders(parent)
        labels = [label_of.get(spell(folder.name)) for folder in folders]
        if not {0, 1} <= set(labels):
            content = [folder.name for folder in folders] or "no folder"
            message = f"{parent} must contain the class folders {' and '.join(names)}, but contains {content}"
            raise ValueError(f"{message}; name them by --classes or classes=. Received: classes={classes!r}")
        for folder, label in zip(folders, labels):
            if label is None:
                warnings.warn(f"folder ignored, not one of the classes: {folder}", stacklevel=3)
                continue
            rows += [(path.relative_to(root).as_posix(), label, split) for path in files_below(folder)]
    return pd.DataFrame(rows, columns=["path", "label", "official_split"])


def _folders(parent: Path) -> list[Path]:
    folders = (path for path in parent.iterdir() if path.is_dir())
    return sorted(path for path in folders if not path.name.startswith((".", "__MACOSX")))


def _inspect(root: Path, listing: pd.DataFrame, classes: tuple = ()) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return usable files with hash and header, and problems of the others; cached by path, size and time.

    With ``classes``, warn of problems, and raise ValueError for a class without usable files.
    """
    key = f"{PIXELS_VERSION} {root.resolve()}"
    cache = cache_dir("files") / f"{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"
    try:
        cached = json.loads(cache.read_bytes())
    except (OSError, ValueError):
        cached = {}

    def inspect(path: str) -> list:
        if path.encode(errors="replace").decode() != path:  # it cannot be written to tables
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
    if problems and classes:
        examples = "; ".join(f"{path}: {reason}" for path, reason in list(problems.items())[:5])
        more = "; …" if len(problems) > 5 else ""
        warnings.warn(f"{len(problems)} of {len(files)} files left out: {examples}{more}", stacklevel=3)
    for label, name in enumerate(classes):
        message = f"class {name} must have a readable image ({len(problems)} unreadable files)"
        check((files["label"][usable] == label).any(), message, folder=str(root))
    catalog = files[usable].drop(columns=["mtime", "problem"])
    return catalog.sort_values("path", ignore_index=True), problems


def _complete(catalog: pd.DataFrame) -> pd.DataFrame:
    """Fill unknown groups, merge groups over identical files and patients, and order the columns."""
    catalog["group"] = catalog["group"].where(catalog["group"] != "", catalog["group_conservative"])
    unknown = catalog["group"] == ""
    if unknown.any():
        message = f"no patient group is known for {unknown.sum()} of {len(catalog)} images"
        warnings.warn(f"{message}; images of one patient may be in several subsets", stacklevel=3)
    for key in ("group", "group_conservative"):
        groups = catalog[key].where(~unknown, "image:" + catalog["path"])
        catalog[key] = merge_groups(groups, catalog["sha256"])
    catalog["group_conservative"] = merge_groups(catalog["group_conservative"], catalog["group"])
    return catalog[[*COLUMNS, *(column for column in catalog if column not in COLUMNS)]]


def merge_groups(groups: pd.Series, shared: pd.Series) -> pd.Series:
    """Merge groups that have a value of ``shared`` in common; the smallest name is kept."""
    from scipy.sparse import coo_array  # not needed to decode images in other processes
    from scipy.sparse.csgraph import connected_components

    group, names = pd.factorize(groups)
    value, values = pd.factorize(shared)
    nodes = len(names) + len(values)
    edges = coo_array((np.ones(len(groups)), (group, len(names) + value)), shape=(nodes, nodes))
    component = connected_components(edges, directed=False)[1][group]
    return groups.groupby(component).transform("min")
