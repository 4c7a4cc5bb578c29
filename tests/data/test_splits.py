"""The rules on the real names, and leaks planted in small tables."""

from __future__ import annotations

import itertools

import pandas as pd
import pytest

from chestxray.data.splits import check_split, make_split, overlap, split_hash

CUTS = ("official", "image", "patient")


@pytest.fixture(params=[0, 2024])
def seed(request):
    return request.param


@pytest.fixture
def small():
    """Two patients a class and subset, two images each; one patient has both subtypes."""
    rows = []
    for subset in ("train", "val", "test"):
        for patient, number in itertools.product((1, 2, 3, 4), (1, 2)):
            label, group = int(patient > 2), f"{subset}{patient}"
            subtype = ("normal", ["bacteria", "virus"][number - 1])[label]
            path = f"{subset}/{patient}-{number}.png"
            rows.append((path, label, subtype, f"{group}{subtype}", group, subset, subset))
    return pd.DataFrame(
        rows, columns=["path", "label", "subtype", "group", "group_conservative", "official_split", "split"]
    )


def counts(table):
    return {
        subset: tuple((rows["label"] == label).sum() for label in (0, 1))
        for subset, rows in table.groupby("split")
    }


def sides(table, key):
    """Number of groups with images in more than one subset."""
    return int((table.groupby(key)["split"].nunique() > 1).sum())


# By image


def test_image_split_has_the_counts_of_the_published_ones(kaggle_names, seed):
    table = make_split(kaggle_names, "image", seed)
    assert counts(table) == {"train": (1108, 2991), "val": (237, 641), "test": (238, 641)}


def test_image_split_puts_patients_on_both_sides(kaggle_names):
    table = make_split(kaggle_names, "image", 0)
    test = table[table["split"] == "test"]
    shared = test["group"].isin(table.loc[table["split"] == "train", "group"])
    assert 0.3 < shared.mean() < 0.5
    assert overlap(table).set_index("key").loc["group", "test_images_affected"] >= shared.sum()


# By patient


def test_patient_split_keeps_patients_together(kaggle_names, seed):
    table = make_split(kaggle_names, "patient", seed)
    assert sides(table, "group_conservative") == sides(table, "group") == 0
    assert sides(table, "sha256") == 0
    assert overlap(table)[["groups_crossing", "test_images_affected"]].eq(0).all(axis=None)


def test_patient_split_is_stratified(kaggle_names, seed):
    table = make_split(kaggle_names, "patient", seed)
    for subtype, rows in table.groupby("subtype"):
        shares = rows["split"].value_counts(normalize=True)
        for subset, share in {"train": 0.70, "val": 0.15, "test": 0.15}.items():
            assert abs(shares[subset] - share) < 0.01, (subtype, subset)


def test_small_groups_are_not_all_in_one_subset(kaggle_names):
    # Large groups are dealt out first; single images must not be what is left for one subset.
    table = make_split(kaggle_names, "patient", 0)
    single = table.groupby("group_conservative")["path"].transform("size") == 1
    shares = table[single]["split"].value_counts(normalize=True)
    assert shares[["train", "val", "test"]].tolist() == pytest.approx([0.7, 0.15, 0.15], abs=0.05)


# Official


def test_official_split_keeps_the_published_test(kaggle_names, seed):
    table = make_split(kaggle_names, "official", seed)
    assert ((table["split"] == "test") == (table["official_split"] == "test")).all()
    assert counts(table)["test"] == (234, 390)
    rest = table[table["split"] != "test"]
    assert (rest["split"] == "val").mean() == pytest.approx(0.12, abs=0.001)
    for _, rows in rest.groupby("subtype"):
        assert (rows["split"] == "val").mean() == pytest.approx(0.12, abs=0.005)
    assert sides(rest, "group_conservative") == 0
    assert sides(table, "group") == 0


def test_the_published_val_folder_is_not_the_validation_set(kaggle_names, seed):
    table = make_split(kaggle_names, "official", seed)
    folder = set(table.loc[table["official_split"] == "val", "path"])
    assert len(folder) == 16 and (table["split"] == "val").sum() > 600
    assert not folder <= set(table.loc[table["split"] == "val", "path"])


def test_overlap_of_the_official_split(kaggle_names):
    table = overlap(make_split(kaggle_names, "official", 0)).set_index("key")
    assert table.loc["group"].tolist() == [4096, 0, 0, 0.0]
    assert table.loc["group_conservative"].tolist() == [3117, 170, 320, 320 / 624]
    # The 16 images of the val folder add nothing to it.
    test = kaggle_names[kaggle_names["official_split"] == "test"]
    train = kaggle_names[kaggle_names["official_split"] == "train"]
    assert test["group_conservative"].isin(train["group_conservative"]).sum() == 320


def test_official_needs_a_test_folder(small):
    with pytest.raises(ValueError, match="must have a published test set.*Received: split_rule='official'$"):
        make_split(small.assign(official_split=""), "official")


# As given


def test_given_subsets_stay_and_must_not_leak(small):
    moved = small.assign(
        official_split=small["official_split"].map({"train": "test", "val": "train", "test": "val"})
    )
    assert make_split(moved, "given", 7)["split"].tolist() == moved["official_split"].tolist()
    leak = moved["path"] == "train/1-1.png"
    with pytest.raises(ValueError, match="1 patient groups.*train1. Received: split_rule='given'"):
        make_split(moved.assign(official_split=moved["official_split"].where(~leak, "train")), "given")
    with pytest.raises(ValueError, match="Received: split=''"):
        make_split(moved.assign(official_split=moved["official_split"].where(~leak, "")), "given")


# What the rules that cut share


@pytest.mark.parametrize("rule", CUTS)
def test_seed_decides(kaggle_names, rule):
    first = make_split(kaggle_names, rule, 5)
    pd.testing.assert_frame_equal(make_split(kaggle_names, rule, 5), first)
    other = make_split(kaggle_names, rule, 6)["split"]
    free = first["official_split"] != "test" if rule == "official" else slice(None)
    assert (other[free] != first["split"][free]).mean() > 0.1


@pytest.mark.parametrize("rule", CUTS)
def test_catalog_is_not_changed(kaggle_names, rule):
    before = kaggle_names.copy()
    table = make_split(kaggle_names, rule)
    pd.testing.assert_frame_equal(kaggle_names, before)
    pd.testing.assert_frame_equal(table.drop(columns="split"), before)


def test_unknown_rule(small):
    with pytest.raises(ValueError, match="one of .*Received: split_rule='random'$"):
        make_split(small, "random")


@pytest.mark.parametrize("rule", CUTS)
def test_too_few_images_of_a_class(small, rule):
    few = small[(small["label"] == 0) | (small["path"] == "test/3-1.png")]
    with pytest.raises(ValueError, match=f"must hold images of both classes.*Received: split_rule='{rule}'$"):
        make_split(few, rule)


# Planted leaks


def leak(table, path, key):
    """Give an image of another subset the group of the first training image."""
    table = table.copy()
    table.loc[table["path"] == path, key] = table.loc[table["split"] == "train", key].iloc[0]
    return table


@pytest.mark.parametrize(
    ("rule", "path", "key", "refused"),
    [
        ("patient", "val/1-1.png", "group_conservative", True),
        ("patient", "test/1-1.png", "group_conservative", True),
        ("official", "val/1-1.png", "group_conservative", True),
        ("official", "test/1-1.png", "group", True),
        ("official", "test/1-1.png", "group_conservative", False),  # cannot be cut anew: only reported
        ("image", "val/1-1.png", "group_conservative", False),
        ("image", "test/1-1.png", "group", False),
    ],
)
def test_leaks_are_refused(small, rule, path, key, refused):
    check_split(small, rule)
    leaking = leak(small, path, key)
    if not refused:
        check_split(leaking, rule)
        return
    with pytest.raises(
        ValueError, match=f"1 patient groups .*example train1.*Received: split_rule='{rule}'$"
    ):
        check_split(leaking, rule)


@pytest.mark.parametrize("number", [-1, 1.5, "0", None])
def test_impossible_seeds(small, number):
    with pytest.raises(ValueError, match=f"seed must be a whole number.*Received: seed={number!r}"):
        make_split(small, "patient", number)


def test_a_published_test_that_leaks_is_refused_when_made(small):
    make_split(small, "official")
    with pytest.raises(ValueError, match="1 patient groups .*Received: split_rule='official'$"):
        make_split(leak(small, "test/2-1.png", "group"), "official")


def test_overlap_by_hand(small):
    # One of the two images of test/1 gets the group of train/1: one group crosses, one image of 8 is in it.
    table = overlap(leak(small, "test/1-1.png", "group_conservative")).set_index("key")
    assert table.loc["group"].tolist() == [18, 0, 0, 0.0]
    assert table.loc["group_conservative"].tolist() == [12, 1, 1, 1 / 8]
    # The same between val and test counts too, between train and val it does not.
    table = small.copy()
    table.loc[table["path"] == "val/1-1.png", "group_conservative"] = "test1"
    assert overlap(table).set_index("key").loc["group_conservative"].tolist() == [12, 1, 2, 2 / 8]
    table = overlap(leak(small, "val/1-1.png", "group_conservative")).set_index("key")
    assert table.loc["group_conservative", "groups_crossing"] == 0


@pytest.mark.parametrize("subset", ["Train", "dev", ""])
def test_subsets_of_another_name_are_refused(small, subset):
    with pytest.raises(ValueError, match=f"Received: split='{subset}'$"):
        check_split(
            small.assign(split=small["split"].where(small["path"] != "val/1-1.png", subset)), "patient"
        )


# The hash


def test_hash_is_of_path_label_and_subset(small):
    # Computed once with: printf 'a.png\t0\ttrain\nb.png\t1\ttest' | sha256sum | cut -c 1-16
    table = pd.DataFrame({"path": ["b.png", "a.png"], "label": [1, 0], "split": ["test", "train"]})
    assert split_hash(table) == "c33bfb22cfbb4012"
    whole = split_hash(small)
    assert split_hash(small.sample(frac=1, random_state=0).assign(group="x", width=7)) == whole
    assert split_hash(small[1:]) != whole
    for column, value in {"path": "other", "label": 1, "split": "test"}.items():
        changed = small.copy()
        changed.loc[0, column] = value
        assert split_hash(changed) != whole
