"""Masks meet their images by name."""

import cv2
import numpy as np
import pandas as pd
import pytest

from chestxray.data.masks import read_masks

TABLE = pd.DataFrame({"path": ["train/a.jpeg", "train/b.jpeg", "test/c.png"]})


@pytest.fixture
def masks():
    made = np.zeros((2, 10, 12), bool)
    made[0, :5] = True
    made[1, :, :6] = True
    return made


def test_npz_packed_or_not_and_a_folder_give_the_same(tmp_path, masks):
    names = np.array(["c.jpeg", "a.jpeg"])
    np.savez(tmp_path / "plain.npz", names=names, masks=masks)
    np.savez(
        tmp_path / "packed.npz",
        names=names,
        packed=np.packbits(masks.reshape(2, -1), axis=1),
        shape=np.array([10, 12]),
    )
    (tmp_path / "folder").mkdir()
    for name, mask in zip(names, masks, strict=True):
        cv2.imwrite(str(tmp_path / "folder" / f"{name[0]}.png"), mask.astype(np.uint8) * 255)
    for source in ("plain.npz", "packed.npz", "folder"):
        shown, known = read_masks(tmp_path / source, TABLE, 20)
        assert known.tolist() == [True, False, True] and shown.shape == (2, 20, 20)
        assert shown[0, :, :10].all() and not shown[0, :, 10:].any()  # a: the left half
        assert shown[1, :10].all() and not shown[1, 10:].any()  # c: the upper half


def test_what_is_no_mask(tmp_path):
    with pytest.raises(FileNotFoundError, match="Received: source="):
        read_masks(tmp_path / "none.npz", TABLE, 20)
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="not a file of masks.*Received: path="):
        read_masks(tmp_path / "bad.npz", TABLE, 20)
    np.savez(tmp_path / "cut.npz", names=np.array(["1.png"]), masks=np.ones((1, 40, 40), bool))
    whole = (tmp_path / "cut.npz").read_bytes()
    for size in (0, len(whole) // 2):
        (tmp_path / "cut.npz").write_bytes(whole[:size])
        with pytest.raises(ValueError, match="not a file of masks"):
            read_masks(tmp_path / "cut.npz", TABLE, 20)
    np.savez(tmp_path / "other.npz", names=np.array(["x.png"]), masks=np.zeros((1, 4, 4), bool))
    with pytest.raises(ValueError, match="no mask has the name of an image"):
        read_masks(tmp_path / "other.npz", TABLE, 20)


def test_equal_names_in_two_folders_are_told_apart_by_path(tmp_path):
    made = np.array([np.full((8, 8), 255), np.zeros((8, 8))], np.uint8)
    for subset, mask in zip(("train", "test"), made):
        (tmp_path / subset).mkdir()
        cv2.imwrite(str(tmp_path / subset / "a.png"), mask)
    np.savez(tmp_path / "m.npz", names=np.array(["train/a.png", "test/a.png"]), masks=made)
    table = pd.DataFrame({"path": ["train/a.jpeg", "test/a.jpeg"]})
    for source in (tmp_path, tmp_path / "m.npz"):
        shown, known = read_masks(source, table, 8)
        assert known.all() and shown[0].all() and not shown[1].any()


def test_a_name_that_two_images_have_fits_neither(tmp_path):
    (tmp_path / "md").mkdir()
    cv2.imwrite(str(tmp_path / "md" / "1.png"), np.full((8, 8), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "md" / "2.png"), np.full((8, 8), 255, np.uint8))
    table = pd.DataFrame({"path": ["normal/1.jpeg", "sick/1.jpeg", "sick/2.jpeg"]})
    assert read_masks(tmp_path, table, 8)[1].tolist() == [False, False, True]


def test_masks_of_0_and_255_are_those_of_0_and_1(tmp_path):
    made = np.zeros((1, 14, 14), np.uint8)
    made[0, 3:10, 3:10] = 1
    shown = []
    for factor in (1, 255):
        np.savez(tmp_path / "m.npz", names=np.array(["x/2.png"]), masks=made * factor)
        shown.append(read_masks(tmp_path / "m.npz", pd.DataFrame({"path": ["sick/2.jpeg"]}), 28)[0])
    assert np.array_equal(*shown) and shown[0].sum() == 4 * 49


def test_a_mask_is_cut_to_the_window_of_its_image(tmp_path, masks):
    np.savez(tmp_path / "plain.npz", names=np.array(["c.jpeg", "a.jpeg"]), masks=masks)
    windows = [(0, 0, 1, 1), (0, 0, 1, 1), (0, 0.25, 1, 0.75)]
    shown, _ = read_masks(tmp_path / "plain.npz", TABLE, 20, windows)
    assert shown[0, :, :10].all() and not shown[0, :, 10:].any()  # a is shown whole
    # c: rows 2.5 to 7.5, rounded to 2 to 8, of which 2 to 5 are inside.
    assert shown[1, :10].all() and not shown[1, 10:].any()
