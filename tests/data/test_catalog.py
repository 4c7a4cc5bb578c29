"""The real names without the images; every layout and every fault planted in small folders."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import types
import unicodedata
import warnings
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest

from chestxray.data import catalog as module
from chestxray.data.catalog import find_data, from_table, merge_groups, parse_name, scan, verify
from chestxray.data.dataset import load_data
from chestxray.data.images import ImageSettings
from chestxray.data.splits import make_split, split_hash, write_split

KAGGLE = [
    "train/NORMAL/IM-0115-0001.jpeg",
    "train/NORMAL/NORMAL2-IM-0666-0001-0002.jpeg",
    "train/PNEUMONIA/person12_bacteria_46.jpeg",
    "train/PNEUMONIA/person12_virus_7.jpeg",
    "val/NORMAL/NORMAL2-IM-1427-0001.jpeg",
    "val/PNEUMONIA/person1946_bacteria_4874.jpeg",
    "test/NORMAL/IM-0001-0001.jpeg",
    "test/PNEUMONIA/person1_virus_6.jpeg",
]
PLAIN = ["a/1.png", "a/2.png", "b/1.png", "b/2.png"]


@pytest.fixture
def kaggle(tmp_path, make_images):
    return make_images(tmp_path / "chest_xray", KAGGLE)


@pytest.fixture
def plain(tmp_path, make_images):
    return make_images(tmp_path / "mine", PLAIN)


@pytest.fixture
def table(plain):
    """Function that writes a list of the plain folder's images with these columns, and returns its path."""

    def write(**columns):
        columns = {"path": PLAIN, "label": [0, 0, 1, 1], "group": ["007", "7", "8", "8"]} | columns
        given = pd.DataFrame({name: values for name, values in columns.items() if values is not None})
        given.to_csv(plain / "list.csv", index=False)
        return plain / "list.csv"

    return write


# Names


@pytest.mark.parametrize(
    ("stem", "expected"),
    [
        ("person1_bacteria_2", ("bacteria", "person1_bacteria", "person1")),
        ("person1_virus_2", ("virus", "person1_virus", "person1")),
        ("person447_virus_921_1", ("virus", "person447_virus", "person447")),
        ("IM-0115-0001", ("normal", "IM-0115", "IM-0115")),
        ("IM-0666-0001-0002", ("normal", "IM-0666", "IM-0666")),
        ("NORMAL2-IM-0666-0001-0002", ("normal", "NORMAL2-IM-0666", "NORMAL2-IM-0666")),
        ("NORMAL2-IM-0651-0004", ("normal", "NORMAL2-IM-0651", "NORMAL2-IM-0651")),
        ("NORMAL-2558319-0001", ("normal", "patient-2558319", "patient-2558319")),
        ("VIRUS-990412-0008", ("virus", "patient-990412", "patient-990412")),
        ("BACTERIA-990412-0001", ("bacteria", "patient-990412", "patient-990412")),
    ],
)
def test_known_names(stem, expected):
    assert parse_name(stem) == expected


@pytest.mark.parametrize(
    "stem",
    [
        "",
        "scan",
        "1person1_virus_2",
        "person_virus_2",
        "person1_fungus_2",
        "person1_virus_2 (1)",
        "IM-0115",
        "IM-0115-1",
        "XIM-0115-0001",
        "NORMAL2-0115-0001",
        "COVID-12-0001",
        "VIRUS-x-0001",
    ],
)
def test_unknown_names(stem):
    assert parse_name(stem) is None


def test_images_of_the_kaggle_data(kaggle_names):
    counts = kaggle_names.groupby(["official_split", "label"]).size()
    assert counts.to_dict() == {
        ("train", 0): 1341,
        ("train", 1): 3875,
        ("val", 0): 8,
        ("val", 1): 8,
        ("test", 0): 234,
        ("test", 1): 390,
    }
    counts = kaggle_names.groupby(["official_split", "subtype"]).size()
    assert counts.to_dict() == {
        ("train", "normal"): 1341,
        ("train", "bacteria"): 2530,
        ("train", "virus"): 1345,
        ("val", "normal"): 8,
        ("val", "bacteria"): 8,
        ("test", "normal"): 234,
        ("test", "bacteria"): 242,
        ("test", "virus"): 148,
    }
    assert ((kaggle_names["subtype"] == "normal") == (kaggle_names["label"] == 0)).all()


def test_groups_of_the_kaggle_data(kaggle_names):
    table = kaggle_names[kaggle_names["official_split"] != "val"]
    parsed = [parse_name(Path(path).stem) for path in table["path"]]
    assert len({strict for _, strict, _ in parsed}) == 4082
    assert len({coarse for _, _, coarse in parsed}) == 3103
    # Merged over identical files, which join NORMAL2-IM-0095 and NORMAL2-IM-0096 and nothing else.
    assert table["group"].nunique() == 4081
    assert table["group_conservative"].nunique() == 3102
    changed = table[table["group"] != [strict for _, strict, _ in parsed]]
    assert changed["path"].tolist() == ["test/NORMAL/NORMAL2-IM-0096-0001.jpeg"]
    assert changed["group"].tolist() == ["NORMAL2-IM-0095"]
    sizes = table["group"].value_counts()
    assert (sizes.index[0], sizes.iloc[0]) == ("person23_bacteria", 30)


def test_strict_groups_lie_within_conservative_ones(kaggle_names):
    assert (kaggle_names.groupby("group")["group_conservative"].nunique() == 1).all()


def test_identical_files_of_the_kaggle_data(kaggle_names):
    sizes = kaggle_names["sha256"].value_counts()
    assert (sizes > 1).sum() == 30 and sizes[sizes > 1].sum() == 62
    sides = kaggle_names.groupby("sha256")[["official_split", "label"]].nunique()
    assert (sides == 1).all(axis=None)


def test_the_list_of_names_is_the_folder(kaggle_names, real_data):
    found = scan(real_data)
    same = ["path", "label", "subtype", "group", "group_conservative", "official_split"]
    pd.testing.assert_frame_equal(found[same], kaggle_names[same])
    copies = found["sha256"].map(found["sha256"].value_counts())
    listed = kaggle_names["sha256"].map(kaggle_names["sha256"].value_counts())
    assert (copies == listed).all()


def test_merging_is_transitive():
    # a–b share x, b–c share y, d stands alone.
    groups = pd.Series(["c", "b", "b", "a", "d", "c"])
    contents = pd.Series(["y", "y", "x", "x", "z", "w"])
    assert merge_groups(groups, contents).tolist() == ["a", "a", "a", "a", "d", "a"]


# Layouts


def test_kaggle_layout(kaggle):
    table = scan(kaggle)
    assert table["path"].tolist() == sorted(KAGGLE)
    row = table.set_index("path").loc["train/PNEUMONIA/person12_virus_7.jpeg"]
    file = kaggle / row.name
    assert row.to_dict() == {
        "label": 1,
        "subtype": "virus",
        "group": "person12_virus",
        "group_conservative": "person12",
        "official_split": "train",
        "width": 24,
        "height": 20,
        "mode": "L",
        "bytes": file.stat().st_size,
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }
    assert table["label"].sum() == 4 and (table["official_split"] == "test").sum() == 2


def test_debris_and_copies_of_the_archive_count_nothing(kaggle, make_images):
    whole = scan(kaggle)
    for copy in (kaggle / "chest_xray", kaggle.parent / "__MACOSX" / "chest_xray", kaggle / "__MACOSX"):
        shutil.copytree(kaggle / "train", copy / "train")
    debris = [
        "train/NORMAL/._IM-0115-0001.jpeg",
        "train/NORMAL/.DS_Store",
        "train/.DS_Store",
        ".DS_Store",
        "train/NORMAL/.cache/IM-9999-0001.jpeg",
        "train/NORMAL/__MACOSX/IM-9999-0001.jpeg",
    ]
    for path in debris:
        (kaggle / path).parent.mkdir(exist_ok=True)
        (kaggle / path).write_bytes(b"\0\x05\x16\x07")
    pd.testing.assert_frame_equal(scan(kaggle), whole)
    assert verify(kaggle).empty


@pytest.mark.parametrize("depth", [0, 1, 2])
def test_nested_folders_are_seen_through(kaggle, depth):
    outer = kaggle.parent / "download"
    inner = outer.joinpath(*["chest_xray"] * depth)
    shutil.copytree(kaggle, inner)
    assert find_data(outer) == inner
    assert len(scan(outer)) == len(KAGGLE)


def test_mendeley_layout(tmp_path, make_images):
    make_images(
        tmp_path,
        [
            "train/NORMAL/NORMAL-2558319-0001.jpeg",
            "train/PNEUMONIA/VIRUS-990412-0008.jpeg",
            "train/PNEUMONIA/BACTERIA-990412-0001.jpeg",
            "test/NORMAL/NORMAL-11419-0003.jpeg",
            "test/PNEUMONIA/BACTERIA-40699-0001.jpeg",
        ],
    )
    table = scan(tmp_path)
    assert table["official_split"].tolist() == ["test", "test", "train", "train", "train"]
    assert table["subtype"].tolist() == ["normal", "bacteria", "normal", "bacteria", "virus"]
    assert table["group"].tolist() == [
        "patient-11419",
        "patient-40699",
        "patient-2558319",
        "patient-990412",
        "patient-990412",
    ]
    assert table["group"].equals(table["group_conservative"])


def test_plain_folder_with_other_names(plain):
    with pytest.warns(UserWarning, match="no patient group is known for 4 of 4 images"):
        table = scan(plain, classes=("b", "a"))
    assert table["path"].tolist() == PLAIN and table["label"].tolist() == [1, 1, 0, 0]
    assert table["group"].tolist() == table["group_conservative"].tolist() == [f"image:{p}" for p in PLAIN]
    assert set(table["official_split"]) == set(table["subtype"]) == {""}


def test_class_folders_in_any_case_and_with_subfolders(tmp_path, make_images):
    make_images(tmp_path, ["normal/2020/IM-0001-0001.jpeg", "Pneumonia/person1_virus_1.jpeg"])
    for classes in (None, ("NORMAL", "PNEUMONIA")):  # by default, and as a card names them
        assert scan(tmp_path, classes)["label"].to_dict() == {0: 1, 1: 0}


def test_a_third_folder_is_ignored_aloud(kaggle, make_images):
    make_images(kaggle, ["train/COVID/person9_virus_9.jpeg"])
    with pytest.warns(UserWarning, match="not one of the classes: .*COVID"):
        assert len(scan(kaggle)) == len(KAGGLE)


def test_unknown_names_are_kept_with_groups_of_their_own(kaggle):
    (kaggle / KAGGLE[0]).rename(kaggle / "train/NORMAL/scan.jpeg")
    with pytest.warns(UserWarning, match="no patient group is known for 1 of 8 images"):
        table = scan(kaggle).set_index("path")
    assert table.loc["train/NORMAL/scan.jpeg", "group"] == "image:train/NORMAL/scan.jpeg"
    assert table.loc["train/PNEUMONIA/person12_virus_7.jpeg", "group"] == "person12_virus"


def test_identical_files_join_their_groups(kaggle):
    (kaggle / KAGGLE[6]).write_bytes((kaggle / KAGGLE[0]).read_bytes())
    table = scan(kaggle).set_index("path")
    assert table.loc[KAGGLE[6], "group"] == table.loc[KAGGLE[0], "group"] == "IM-0001"
    assert table.loc[KAGGLE[6], "group_conservative"] == table.loc[KAGGLE[0], "group_conservative"]


# Mistakes: contract 8


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: shutil.rmtree(root / "train/NORMAL"),
            r"train must contain the class folders NORMAL and PNEUMONIA, but contains \['PNEUMONIA'\]",
        ),
        (
            lambda root: (root / "test/PNEUMONIA").rename(root / "test/SICK"),
            r"test must contain .*, but contains \['NORMAL', 'SICK'\]",
        ),
        (
            lambda root: [shutil.rmtree(root / split) for split in ("train", "val", "test")],
            "but contains no folder",
        ),
        (
            lambda root: [(root / path).unlink() for path in KAGGLE if "NORMAL" in path],
            r"class NORMAL must have a readable image \(0 unreadable files\)",
        ),
        (
            lambda root: [(root / path).write_bytes(b"") for path in KAGGLE if "PNEUMONIA" in path],
            r"class PNEUMONIA must have a readable image \(4 unreadable files\)",
        ),
    ],
)
def test_missing_and_empty_classes_are_errors(kaggle, change, message):
    change(kaggle)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=rf"{message}.*Received: \w+=.+$"):
            scan(kaggle)


def test_wrong_names_of_classes_are_an_error(plain):
    with pytest.raises(ValueError, match=r"NORMAL and PNEUMONIA, .*\['a', 'b'\].*Received: classes=None$"):
        scan(plain)
    with pytest.raises(ValueError, match=r"Received: classes=\('a', 'c'\)$"):
        scan(plain, ("a", "c"))


def test_missing_folder_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"Received: data_dir='.*nowhere'$"):
        scan(tmp_path / "nowhere")


def test_no_folder_named_at_all(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_KAGGLE_INPUT", tmp_path)
    for nothing in (None, ""):
        with pytest.raises(FileNotFoundError, match="CHESTXRAY_DATA.*Received: data_dir=None$"):
            find_data(nothing)


def test_folders_that_are_found_by_themselves(monkeypatch, tmp_path, kaggle):
    attached = tmp_path / "input" / "chest-xray-pneumonia" / "chest_xray"
    shutil.copytree(kaggle, attached)
    monkeypatch.setattr(module, "_KAGGLE_INPUT", tmp_path / "input")
    assert find_data() == attached
    monkeypatch.setenv("CHESTXRAY_DATA", str(tmp_path))
    assert find_data() == kaggle  # the variable comes first, and its nested folder is seen through
    assert find_data(attached) == attached


def test_download_from_kaggle(monkeypatch, kaggle):
    monkeypatch.setitem(sys.modules, "kagglehub", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[kaggle\]'.*Received: data_dir='kaggle'$"):
        find_data("kaggle")
    wanted = []
    fake = types.SimpleNamespace(dataset_download=lambda name: wanted.append(name) or str(kaggle.parent))
    monkeypatch.setitem(sys.modules, "kagglehub", fake)
    assert find_data("kaggle") == kaggle
    assert wanted == ["paultimothymooney/chest-xray-pneumonia"]


# Problems


def test_verify_finds_every_planted_problem(kaggle, make_images):
    whole = (kaggle / KAGGLE[0]).read_bytes()
    header = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + (12_000).to_bytes(4, "big") * 2 + b"\x08\0\0\0\0" + b"IEND"
    planted = {
        "train/NORMAL/IM-0900-0001.jpeg": (b"", "empty file"),
        "train/NORMAL/IM-0901-0001.jpeg": (b"a letter", "not an image"),
        "train/NORMAL/IM-0902-0001.jpeg": (whole[:-20], "truncated"),
        "train/NORMAL/IM-0903-0001.jpeg": (whole[:10], "truncated or damaged header"),
        "train/NORMAL/IM-0904-0001.png": (
            cv2.imencode(".png", np.zeros((1, 1), np.uint8))[1].tobytes(),
            "too small",
        ),
        "train/NORMAL/IM-0905-0001.png": (header, "too large"),
    }
    for path, (content, _) in planted.items():
        (kaggle / path).write_bytes(content)
    (kaggle / "val/NORMAL/scan 7.jpeg").write_bytes(whole)  # the name, and two copies of KAGGLE[0]
    (kaggle / "val/NORMAL/IM-0907-0001.jpeg").symlink_to("nowhere")  # a file that was not fetched
    (kaggle / KAGGLE[7]).write_bytes((kaggle / KAGGLE[6]).read_bytes())  # normal and pneumonia at once

    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the table says it all
        table = verify(kaggle)

    left_out = table[~table["kept"]].set_index("path")
    assert left_out["problem"].to_dict() == {"val/NORMAL/IM-0907-0001.jpeg": "unreadable"} | {
        path: problem for path, (_, problem) in planted.items()
    }
    assert left_out.loc["train/NORMAL/IM-0904-0001.png", "detail"].startswith("too small (1 × 1 pixels")
    kept = table[table["kept"]]
    assert sorted(zip(kept["path"], kept["problem"])) == [
        (KAGGLE[6], "byte-identical with other label"),
        (KAGGLE[7], "byte-identical with other label"),
        (KAGGLE[0], "byte-identical"),
        ("val/NORMAL/scan 7.jpeg", "byte-identical"),
        ("val/NORMAL/scan 7.jpeg", "unknown name"),
    ]
    details = kept.set_index(["path", "problem"])["detail"]
    assert details[KAGGLE[0], "byte-identical"] == "same content as val/NORMAL/scan 7.jpeg"


def test_verify_names_a_file_in_the_folder_of_the_other_class(tmp_path, make_images):
    astray = "train/NORMAL/person7_virus_9.jpeg"
    make_images(tmp_path, ["train/NORMAL/IM-0001-0001.jpeg", astray, "train/PNEUMONIA/person1_virus_1.jpeg"])
    table = verify(tmp_path)
    assert table[["path", "problem", "kept"]].values.tolist() == [[astray, "name contradicts class", True]]


def test_scan_leaves_out_what_verify_does_not_keep_and_names_it(kaggle):
    (kaggle / KAGGLE[0]).write_bytes(b"")
    (kaggle / "train/NORMAL/notes.txt").write_text("remember the milk")
    with pytest.warns(UserWarning) as caught:
        table = scan(kaggle)
    assert table["path"].tolist() == sorted(KAGGLE[1:])
    (message,) = (str(warning.message) for warning in caught)
    assert message.startswith("2 of 9 files left out: ")
    assert f"{KAGGLE[0]}: empty file" in message and "notes.txt: not an image" in message


def test_a_whole_folder_has_no_problems(kaggle):
    assert verify(kaggle).empty
    assert verify(kaggle).columns.tolist() == ["path", "problem", "detail", "kept"]


# What is remembered of the files


def test_facts_are_remembered(kaggle, monkeypatch):
    first = scan(kaggle)
    monkeypatch.setattr(module, "check_image", lambda data: pytest.fail("was read again"))
    pd.testing.assert_frame_equal(scan(kaggle), first)


def test_facts_are_refreshed_when_a_file_changes(kaggle):
    before = scan(kaggle).set_index("path")
    file, other = kaggle / KAGGLE[0], cv2.imencode(".png", np.eye(50, 40, dtype=np.uint8))[1].tobytes()
    size, time = len(file.read_bytes()), file.stat().st_mtime_ns
    file.write_bytes(other)
    os.utime(file, ns=(time, time))  # another size, the same time
    after = scan(kaggle).set_index("path")
    assert after.loc[KAGGLE[0], ["width", "height", "bytes"]].tolist() == [40, 50, len(other)]
    assert after.loc[KAGGLE[0], "sha256"] == hashlib.sha256(other).hexdigest()
    assert after.drop(KAGGLE[0]).equals(before.drop(KAGGLE[0]))

    file.write_bytes(bytes(len(other)))  # the same size, another time
    os.utime(file, ns=(time + 1, time + 1))
    assert verify(kaggle)["path"].tolist() == [KAGGLE[0]]
    assert size != len(other)


def test_a_damaged_memory_is_not_trusted(kaggle):
    first = scan(kaggle)
    for memory in module.cache_dir("files").glob("*.json"):
        memory.write_text('{"train')
    pd.testing.assert_frame_equal(scan(kaggle), first)


# Lists


def test_a_patient_with_two_families_holds_them_together(table, plain):
    csv = table(group=["a", "a", "b", "c"], group_conservative=["family", "", "other", "other"])
    listed = from_table(csv, plain)
    assert listed["group_conservative"].tolist() == ["a", "a", "other", "other"]


def test_list_with_columns_of_its_own(table, plain):
    csv = table(
        label=["healthy", "healthy", "sick", "sick"],
        group=None,
        patient=["007", "7", "8", "8"],
        split=["train", "val", "test", None],
        subtype=["", "", "virus", None],
        age=[3.5, None, 4, 5],
        site=["x", "y", "x", "NA"],
    )
    listed = from_table(csv, plain, group="patient", classes=("healthy", "sick"))
    assert listed["path"].tolist() == PLAIN and listed["label"].tolist() == [0, 0, 1, 1]
    assert listed["group"].tolist() == listed["group_conservative"].tolist() == ["007", "7", "8", "8"]
    assert listed["official_split"].tolist() == ["train", "val", "test", ""]
    assert listed["subtype"].tolist() == ["", "", "virus", ""]
    assert listed.columns[-2:].tolist() == ["age", "site"]
    assert listed["age"].fillna(-1).tolist() == [3.5, -1, 4, 5]
    assert listed["width"].tolist() == [24] * 4


def test_subsets_and_class_names_of_a_list_reach_the_data(table, tmp_path, make_images):
    paths = [
        f"{subset}/{label}{number}.png"
        for subset in ("train", "val", "test")
        for label in "ab"
        for number in (1, 2)
    ]
    folder = make_images(tmp_path / "listed", paths)
    pd.DataFrame(
        {
            "path": paths,
            "label": [{"a": "healthy", "b": "sick"}[path.split("/")[1][0]] for path in paths],
            "group": paths,
            "split": [path.split("/")[0] for path in paths],
        }
    ).to_csv(folder / "list.csv", index=False)
    listed = from_table(folder / "list.csv", folder, classes=("healthy", "sick"))
    data = load_data(folder, "given", image=ImageSettings(32), catalog=listed)
    assert data.classes == ("healthy", "sick")
    assert data.table["split"].tolist() == [path.split("/")[0] for path in data.table["path"]]
    with pytest.warns(UserWarning, match="does not use the subsets of the table"):
        load_data(folder, "patient", image=ImageSettings(32), catalog=listed)


def test_a_list_without_its_folder(table, plain):
    with pytest.raises(ValueError, match="folder of the catalog's paths. Received: data_dir=None"):
        load_data(catalog=from_table(table(), plain))


def test_a_name_that_no_table_can_hold_is_left_out_by_name(plain):
    (plain / "a" / os.fsdecode(b"caf\xe9.png")).write_bytes((plain / "a/1.png").read_bytes())
    with pytest.warns(UserWarning, match=r"1 of 5 files left out: a/caf\\xe9.png: file name is not UTF-8"):
        assert scan(plain, ("a", "b"))["path"].tolist() == PLAIN


def test_patients_and_classes_may_be_called_none(table, plain, recwarn):
    csv = table(group=["NA", "None", "null", "null"], label=["None", "None", "NA", "NA"])
    listed = from_table(csv, plain, classes=("None", "NA"))
    assert listed["group"].tolist() == ["NA", "None", "null", "null"]
    assert listed["label"].tolist() == [0, 0, 1, 1] and not len(recwarn)


def test_a_split_file_is_a_list(tmp_path, make_images):
    folder = make_images(tmp_path / "x", [f"{kind}/{number}.png" for kind in "ab" for number in range(9)])
    table = make_split(scan(folder, ("a", "b")), "patient", 5)
    write_split(table, tmp_path / "split.csv", "patient", 5)
    listed = from_table(tmp_path / "split.csv", folder, classes=("a", "b"))
    data = load_data(folder, "given", image=ImageSettings(32), catalog=listed)
    assert data.split_hash == split_hash(table)
    pd.testing.assert_frame_equal(data.table[[*table]], table.assign(official_split=table["split"]))


def test_a_subtype_that_contradicts_the_label(table, plain):
    csv = table(subtype=["normal", "virus", "bacteria", ""])
    with pytest.raises(ValueError, match="contradicts.*path='a/2.png', label=0, subtype='virus'"):
        from_table(csv, plain)
    with pytest.raises(ValueError, match="path='b/1.png', label=1, subtype='normal'"):
        from_table(table(subtype=["normal", "", "normal", "virus"]), plain)


def test_columns_that_predictions_have_themselves_are_left_out(tmp_path, make_images):
    folder = make_images(tmp_path / "x", [f"{kind}/{number}.png" for kind in "ab" for number in range(9)])
    catalog = scan(folder, ("a", "b")).assign(sharpness=1.0, logit=2.0, age=3)
    with pytest.warns(UserWarning, match="left out: sharpness, logit"):
        data = load_data(folder, classes=("a", "b"), image=ImageSettings(32), catalog=catalog)
    assert data.table["age"].eq(3).all() and not {"sharpness", "logit"} & set(data.table)


def test_folders_beside_the_subsets_are_named(tmp_path, make_images):
    folder = make_images(
        tmp_path / "x",
        [
            f"{subset}/{kind}/1.png"
            for subset in ("train", "valid", "test")
            for kind in ("NORMAL", "PNEUMONIA")
        ],
    )
    (folder / "chest_xray_more").mkdir()
    for debris in ("__MACOSX", ".git", "chest_xray"):
        (folder / debris).mkdir()
    with pytest.warns(UserWarning) as caught:
        assert len(scan(folder)) == 4
    messages = [str(warning.message) for warning in caught]
    assert [message for message in messages if "ignored" in message] == [
        f"folder ignored, not one of train, val, test: {folder / name}"
        for name in ("chest_xray_more", "valid")
    ]


def test_list_is_sorted_by_path_and_rows_stay_together(table, plain):
    csv = table(path=PLAIN[::-1], label=[1, 1, 0, 0], group=["z", "y", "x", "w"], age=[1, 2, 3, 4])
    listed = from_table(csv, plain)
    assert listed[["path", "label", "group", "age"]].values.tolist() == [
        ["a/1.png", 0, "w", 4],
        ["a/2.png", 0, "x", 3],
        ["b/1.png", 1, "y", 2],
        ["b/2.png", 1, "z", 1],
    ]


def test_columns_named_like_ours_are_read_anew(table, plain):
    listed = from_table(table(width=[1, 2, 3, 4], bytes=[0] * 4, sha256=["?"] * 4), plain)
    assert listed["width"].tolist() == [24] * 4
    assert listed["bytes"].tolist() == [(plain / path).stat().st_size for path in PLAIN]


def test_an_exported_catalog_comes_back(kaggle, tmp_path):
    table = scan(kaggle)
    table.to_csv(tmp_path / "catalog.csv", index=False)
    again = from_table(tmp_path / "catalog.csv", kaggle, split="official_split")
    pd.testing.assert_frame_equal(again, table, check_dtype=False)


def test_list_without_groups_warns(table, plain):
    with pytest.warns(UserWarning, match="no patient group is known for 4 of 4"):
        listed = from_table(table(group=None), plain)
    assert listed["group"].tolist() == [f"image:{path}" for path in PLAIN]
    with pytest.warns(UserWarning, match="no patient group is known for 1 of 4"):
        listed = from_table(table(group=["1", None, "2", "2"]), plain)
    assert listed["group"].tolist() == ["1", "image:a/2.png", "2", "2"]


def test_files_of_a_list_that_cannot_be_used_are_named(table, plain):
    (plain / "a/1.png").write_bytes(b"")
    (plain / "b/1.png").unlink()
    with pytest.warns(UserWarning, match="2 of 4 files left out: a/1.png: empty file; b/1.png: unreadable"):
        assert from_table(table(), plain)["path"].tolist() == ["a/2.png", "b/2.png"]


@pytest.mark.parametrize(
    ("columns", "arguments", "message"),
    [
        ({"label": [0, 1, 2, 0]}, {}, "labels must be 0, 1.*Received: label='2'$"),
        ({"label": ["0", "1", None, "1"]}, {}, "labels must be 0, 1.*Received: label=nan$"),
        (
            {"label": ["normal", "sick", "sick", "sick"]},
            {"classes": ("healthy", "sick")},
            r"one of \('healthy', 'sick'\).*Received: label='normal'$",
        ),
        ({"label": [1, 1, 1, 1]}, {}, r"class NORMAL must have .*\(0 unreadable files\).*Received: folder="),
        ({"split": ["train", "test", "dev", "val"]}, {}, "a split must be one of .*Received: split='dev'$"),
        (
            {"path": ["a/1.png", "a/2.png", "a/1.png", "b/1.png"]},
            {},
            "listed twice.*Received: path='a/1.png'$",
        ),
        ({"path": ["a/1.png", "a/2.png", "./a//1.png", "b/1.png"]}, {}, "twice.*Received: path='a/1.png'$"),
        ({"path": ["a/1.png", None, "b/2.png", "b/1.png"]}, {}, "missing or listed.*Received: path=nan$"),
        ({}, {"path": "file"}, "path must be a column.*Received: path='file'$"),
        ({}, {"label": "finding"}, "label must be a column.*Received: label='finding'$"),
    ],
)
def test_mistakes_in_a_list(table, plain, columns, arguments, message):
    with pytest.raises(ValueError, match=message):
        from_table(table(**columns), plain, **arguments)


def test_missing_list_or_folder(table, plain, tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: csv='.*none.csv'$"):
        from_table(tmp_path / "none.csv", plain)
    with pytest.raises(FileNotFoundError, match="Received: image_root='.*none'$"):
        from_table(table(), tmp_path / "none")


# As other systems write them


def test_a_linked_folder_is_followed_but_in_no_circle(tmp_path, make_images):
    folder = make_images(tmp_path / "mine", PLAIN)
    make_images(tmp_path / "elsewhere", [f"more/{number}.png" for number in (7, 8)])
    (folder / "a" / "linked").symlink_to(tmp_path / "elsewhere")
    (folder / "a" / "again").symlink_to(tmp_path / "elsewhere" / "more")  # each folder once
    (folder / "a" / "circle").symlink_to(folder / "a")
    (folder / "a" / "nowhere").symlink_to("x" * 300)
    with pytest.warns(UserWarning, match="no patient group|1 of 7 files left out: a/nowhere"):
        paths = list(scan(folder, ("a", "b"))["path"])
    assert paths == ["a/1.png", "a/2.png", "a/again/7.png", "a/again/8.png", "b/1.png", "b/2.png"]


@pytest.mark.parametrize("spelling", [str.upper, str.title])
def test_split_folders_in_any_case(tmp_path, make_images, spelling):
    paths = [spelling(split) + path.removeprefix(split) for path in KAGGLE for split in [path.split("/")[0]]]
    found = scan(make_images(tmp_path / "chest_xray", paths))
    assert dict(zip(found["path"], found["official_split"])) == {
        path: path.split("/")[0].lower() for path in paths
    }


def test_a_name_that_contradicts_its_folder_gives_no_subtype(tmp_path, make_images):
    paths = [*KAGGLE, "train/PNEUMONIA/IM-0001-0001.jpeg", "train/NORMAL/person7_virus_3.jpeg"]
    with pytest.warns(UserWarning, match="2 file names contradict the class of their folder"):
        found = scan(make_images(tmp_path / "chest_xray", paths)).set_index("path")
    assert list(found.loc[paths[-2:], "subtype"]) == ["", ""]
    assert list(found.loc[paths[-2:], "group"]) == ["IM-0001", "person7_virus"]
    assert (found.loc[KAGGLE, "subtype"] != "").all()


@pytest.mark.parametrize("written", ["a\\1.png", "a/1.png"])
def test_a_list_from_windows(table, plain, written):
    assert list(from_table(table(path=[written, *PLAIN[1:]]), plain)["path"]) == PLAIN


@pytest.mark.parametrize(("stored", "written"), [("NFD", "NFC"), ("NFC", "NFD")])
def test_names_in_another_unicode_form(tmp_path, make_images, stored, written):
    name = unicodedata.normalize(stored, "a/Müller.png")
    folder = make_images(tmp_path / "mine", [name, *PLAIN[1:]])
    listed = [unicodedata.normalize(written, name), *PLAIN[1:]]
    pd.DataFrame({"path": listed, "label": [0, 0, 1, 1], "group": list("1234")}).to_csv(
        folder / "list.csv", index=False
    )
    assert set(from_table(folder / "list.csv", folder)["path"]) == {name, *PLAIN[1:]}


@pytest.mark.parametrize("text", ["path,label\n", "path,label,group,split\n"])
def test_a_list_with_a_header_only(plain, text):
    (plain / "list.csv").write_text(text)
    with pytest.raises(ValueError, match=r"class NORMAL must have a readable image \(0 unreadable files\)"):
        from_table(plain / "list.csv", plain)


def test_empty_class_folders(tmp_path):
    for name in ("NORMAL", "PNEUMONIA"):
        (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match="class NORMAL must have a readable image"):
        scan(tmp_path)
    assert verify(tmp_path).empty
