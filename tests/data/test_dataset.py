"""The store against preprocess(), also after faults and kill -9; the pipeline against the store."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from chestxray.data import dataset as module
from chestxray.data.augmentation import Augmentation
from chestxray.data.catalog import scan
from chestxray.data.dataset import PixelStore, XrayData, create_array, data_name, load_data
from chestxray.data.images import ImageSettings, preprocess
from chestxray.data.lungs import mask_boxes
from chestxray.files import cache_dir, cached_folder, read_json, whole_folder, write_json

SETTINGS = ImageSettings(16)
NAMES = [
    f"{subset}/NORMAL/IM-{number:04d}-0001.png" for number, subset in enumerate(["train"] * 8 + ["test"] * 3)
]
NAMES += [
    f"{subset}/PNEUMONIA/person{number}_virus_1.png"
    for number, subset in enumerate(["train"] * 9 + ["test"] * 3)
]


@pytest.fixture(autouse=True)
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def folder(tmp_path, make_images):
    return make_images(tmp_path / "images", NAMES)


@pytest.fixture
def catalog(folder):
    return scan(folder)


@pytest.fixture
def store(catalog, folder):
    return PixelStore.build(catalog, folder, SETTINGS)


@pytest.fixture
def data(catalog, store):
    split = catalog["official_split"].where(catalog.index % 3 != 1, "val")
    return XrayData(catalog.assign(split=split), store, "image", 0, 0, "images")


def stores():
    return sorted(path.name for path in cache_dir("pixels").iterdir())


def damage(file):
    """Zeros in the middle: the header and the end stay valid."""
    content = bytearray(file.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 30] = bytes(30)
    file.write_bytes(content)


# The store


@pytest.mark.parametrize("settings", [SETTINGS, ImageSettings(32, "letterbox", True)])
def test_rows_are_what_preprocess_gives(catalog, folder, settings):
    store = PixelStore.build(catalog, folder, settings)
    images = store.images(catalog)
    assert images.shape == (len(NAMES), settings.size, settings.size, 1) and images.dtype == np.uint8
    for image, path in zip(images, catalog["path"], strict=True):
        assert np.array_equal(image[..., 0], preprocess(folder / path, settings))
    assert store.settings == settings and store.failed == {}


def test_rows_come_in_the_order_of_the_table(catalog, store):
    shuffled = catalog.sample(frac=1, random_state=1)
    assert shuffled.index.tolist() != catalog.index.tolist()
    assert np.array_equal(store.images(shuffled), store.images(catalog)[shuffled.index])
    assert store.images(catalog[:0]).shape == (0, 16, 16, 1)


def test_pixels_cannot_be_overwritten(store):
    with pytest.raises(ValueError, match="read-only"):
        store.pixels[0] = 0


def test_identical_files_share_a_row(folder):
    (folder / NAMES[3]).write_bytes((folder / NAMES[0]).read_bytes())
    catalog = scan(folder)
    store = PixelStore.build(catalog, folder, SETTINGS)
    assert len(store.pixels) == len(NAMES) - 1
    same = store.images(catalog.set_index("path").loc[[NAMES[0], NAMES[3]]].reset_index())
    assert np.array_equal(same[0], same[1])
    assert np.array_equal(same[0, ..., 0], preprocess(folder / NAMES[3], SETTINGS))


def test_a_damaged_file_is_left_out_and_named(folder):
    damage(folder / NAMES[1])
    catalog = scan(folder)
    assert len(catalog) == len(NAMES)  # its header is whole
    for _ in range(2):  # when built, and when found in the cache
        store = PixelStore.build(catalog, folder, SETTINGS)
        with pytest.warns(UserWarning, match=rf"1 of 23 images left out: {NAMES[1]}: cannot be decoded"):
            usable = store.readable(catalog)
        assert usable["path"].tolist() == [path for path in catalog["path"] if path != NAMES[1]]
        assert usable.index.tolist() == list(range(22))
        for image, path in zip(store.images(usable), usable["path"], strict=True):
            assert np.array_equal(image[..., 0], preprocess(folder / path, SETTINGS))
        with pytest.raises(ValueError, match=f"1 images are not stored.*Received: path='{NAMES[1]}'$"):
            store.images(catalog)


def test_whole_catalog_is_readable_without_a_warning(catalog, store):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pd.testing.assert_frame_equal(store.readable(catalog), catalog)


def test_images_of_another_folder_are_refused(store, tmp_path, make_images):
    other = scan(make_images(tmp_path / "other", NAMES, height=40))
    with pytest.raises(ValueError, match="23 images are not stored.*Received: path='.+'$"):
        store.images(other)


def test_a_file_that_vanished_is_not_remembered_as_damaged(catalog, folder):
    content = (folder / NAMES[0]).read_bytes()
    (folder / NAMES[0]).unlink()
    with pytest.raises(FileNotFoundError, match=f"Received: path='.*{NAMES[0]}'$"):
        PixelStore.build(catalog, folder, SETTINGS)
    assert stores() == []
    (folder / NAMES[0]).write_bytes(content)
    assert PixelStore.build(catalog, folder, SETTINGS).failed == {}


def test_a_full_disk_is_an_error_before_the_first_image(catalog, folder, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full, raising=False)
    with pytest.raises(OSError, match="No space left"):
        PixelStore.build(catalog, folder, SETTINGS)
    assert stores() == []


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="files are sparse there")
def test_a_new_array_has_its_disk_space(tmp_path):
    create_array(tmp_path / "a.npy", np.uint8, (1000, 1000))
    assert 512 * (tmp_path / "a.npy").stat().st_blocks >= 1_000_000


# What a store takes from others


@pytest.fixture
def decoded(monkeypatch):
    """Numbers of files that were decoded, one for each build."""
    counts, original = [], module.in_processes

    def counted(work, items, text):
        counts.append(len(items))
        return original(work, items, text)

    monkeypatch.setattr(module, "in_processes", counted)
    return counts


def test_only_new_and_failed_images_are_decoded(catalog, folder, decoded, make_images):
    damage(folder / NAMES[1])
    first = PixelStore.build(scan(folder), folder, SETTINGS)
    make_images(folder, ["train/NORMAL/IM-9999-0001.png"], height=40)
    grown = scan(folder)
    again = PixelStore.build(grown, folder, SETTINGS)
    assert decoded == [23, 2] and again.failed == first.failed != {}
    readable = grown[~grown["sha256"].isin(again.failed)]
    assert len(readable) == 23
    for image, path in zip(again.images(readable), readable["path"], strict=True):
        assert np.array_equal(image[..., 0], preprocess(folder / path, SETTINGS))


def test_a_store_within_the_new_one_is_removed(catalog, folder, decoded):
    small = PixelStore.build(catalog[:9], folder, SETTINGS)
    other = PixelStore.build(catalog[:9], folder, ImageSettings(17))
    whole = PixelStore.build(catalog, folder, SETTINGS)
    assert stores() == sorted([other.key, whole.key])
    assert np.array_equal(small.images(catalog[:9]), whole.images(catalog[:9]))  # an open one stays readable
    assert decoded == [9, 9, len(catalog) - 9]


@pytest.mark.parametrize("change", ["versions", "PIXELS_VERSION"])
def test_pixels_of_another_version_are_not_copied(catalog, folder, decoded, monkeypatch, change):
    first = PixelStore.build(catalog[:9], folder, SETTINGS)
    if change == "versions":  # stores of before the versions were noted
        path = cache_dir("pixels") / first.key / "index.json"
        write_json(path, {key: value for key, value in read_json(path).items() if key != "versions"})
    else:
        monkeypatch.setattr(module, "PIXELS_VERSION", -1)
    PixelStore.build(catalog, folder, SETTINGS)
    assert decoded == [9, len(catalog)]


@pytest.mark.parametrize("content", [None, "{", "{}", '{"settings": {"shape": 1}, "failed": {}}'])
def test_a_damaged_store_does_not_stop_another(catalog, folder, decoded, content):
    first = PixelStore.build(catalog[:9], folder, SETTINGS)
    path = cache_dir("pixels") / first.key / "index.json"
    path.unlink() if content is None else path.write_text(content)
    whole = PixelStore.build(catalog, folder, SETTINGS)
    assert decoded == [9, len(catalog)] and whole.images(catalog).shape[0] == len(catalog)


# What a store is keyed by


def test_a_store_is_built_once(catalog, folder, store, monkeypatch):
    monkeypatch.setattr(module, "in_processes", lambda *_: pytest.fail("was built again"))
    again = PixelStore.build(catalog.sample(frac=1, random_state=0).assign(label=0), folder, SETTINGS)
    assert np.array_equal(again.images(catalog), store.images(catalog))


def test_clahe_settings_are_part_of_the_key(catalog, folder):
    changes = [{}, {"clahe_clip_limit": 4.0}, {"clahe_tiles": 4}]
    settings = [ImageSettings(16, clahe=True, **change) for change in changes]
    assert len({PixelStore.build(catalog, folder, each).key for each in settings}) == 3


@pytest.mark.parametrize(
    "settings", [ImageSettings(17), ImageSettings(16, "letterbox"), ImageSettings(16, clahe=True)]
)
def test_other_settings_have_a_store_of_their_own(catalog, folder, store, settings):
    other = PixelStore.build(catalog, folder, settings)
    assert len(stores()) == 2
    first = catalog[:1]
    assert np.array_equal(other.images(first)[0, ..., 0], preprocess(folder / first["path"][0], settings))
    assert not np.array_equal(other.images(first), store.images(first))


def test_other_contents_have_a_store_of_their_own(catalog, folder, store):
    (folder / NAMES[0]).write_bytes(cv2.imencode(".png", np.full((30, 30), 77, np.uint8))[1].tobytes())
    changed = scan(folder)
    rows = PixelStore.build(changed, folder, SETTINGS).images(changed[changed["path"] == NAMES[0]])
    assert set(np.unique(rows)) == {77}
    assert not (store.images(catalog[catalog["path"] == NAMES[0]]) == 77).all()
    assert len(stores()) == 2


# Processes: more images than are decoded in one

BUILD = """
import os, signal, sys
from pathlib import Path
import pandas as pd
import tqdm
from chestxray import parallel
from chestxray.data.images import ImageSettings
from chestxray.data.dataset import PixelStore

class Deadly(tqdm.tqdm):
    def update(self, n=1):  # called after each chunk
        os.kill(os.getpid(), signal.SIGKILL)

if sys.argv[1] == "killed":
    parallel.tqdm = Deadly
folder = Path(sys.argv[2])
PixelStore.build(pd.read_csv(folder / "catalog.csv"), folder, ImageSettings(16))
assert not {"tensorflow", "keras", "torch", "jax"} & set(sys.modules)
"""


@pytest.fixture
def build(tmp_path, make_images):
    """Function that builds the store of 150 images in a fresh process where TensorFlow cannot be imported."""
    folder = make_images(tmp_path / "many", [f"{label}/{n}.png" for label in "ab" for n in range(75)])
    damage(folder / "a/5.png")
    with pytest.warns(UserWarning, match="no patient group"):
        scan(folder, ("a", "b")).to_csv(folder / "catalog.csv", index=False)
    for name in ("tensorflow", "keras"):
        (tmp_path / "poison" / name).mkdir(parents=True)
        (tmp_path / "poison" / name / "__init__.py").write_text("raise RuntimeError('imported TensorFlow')")

    groups = []

    def run(how, cache):
        environment = os.environ | {
            "CHESTXRAY_CACHE": str(tmp_path / cache),
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "poison"), *filter(None, sys.path)]),
        }
        with open(tmp_path / "messages.txt", "w") as messages:  # not a pipe, which orphans would keep open
            process = subprocess.Popen(
                [sys.executable, "-c", BUILD, how, str(folder)],
                env=environment,
                start_new_session=True,
                stdout=messages,
                stderr=messages,
            )
        groups.append(process.pid)
        return process.wait(timeout=60), (tmp_path / "messages.txt").read_text()

    yield run
    for group in groups:  # the workers of the killed process
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)


@pytest.mark.slow
def test_a_killed_build_is_never_taken_for_a_whole_one(build, tmp_path):
    code, messages = build("undisturbed", "one")
    assert code == 0, messages
    (whole,) = (tmp_path / "one" / "pixels").iterdir()
    assert np.load(whole / "pixels.npy").shape == (150, 16, 16)

    assert build("killed", "two")[0] == -signal.SIGKILL
    (left,) = (tmp_path / "two" / "pixels").glob(".partial-*[0-9a-f]")  # and its .lock
    assert left.name.startswith(".partial-") and left.name.endswith(whole.name)
    assert (left / "pixels.npy").is_file() and not (left / "index.json").exists()

    code, messages = build("undisturbed", "two")
    assert code == 0, messages
    (again,) = (tmp_path / "two" / "pixels").iterdir()  # and the debris is gone
    assert again.name == whole.name
    for name in ("pixels.npy", "index.json"):
        assert (again / name).read_bytes() == (whole / name).read_bytes()
    store = PixelStore(again)
    assert len(store.failed) == 1
    with pytest.warns(UserWarning, match="1 of 150 images left out: a/5.png"):
        catalog = store.readable(pd.read_csv(tmp_path / "many" / "catalog.csv"))
    for image, path in zip(store.images(catalog), catalog["path"], strict=True):
        assert np.array_equal(image[..., 0], preprocess(tmp_path / "many" / path, SETTINGS))


# Whole files and folders


def test_folder_appears_whole_or_not_at_all(tmp_path):
    target = tmp_path / "store"
    with pytest.raises(RuntimeError), whole_folder(target) as partial:
        (partial / "half").write_text("1")
        assert not target.exists()
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    for content in "12":  # the second replaces the first
        with whole_folder(target) as partial:
            (partial / content).write_text(content)
    assert [path.name for path in target.iterdir()] == ["2"]
    assert list(tmp_path.iterdir()) == [target]


ONCE = """
import os, signal, sys, time
from pathlib import Path
from chestxray.files import cached_folder

def make(folder):
    with open(sys.argv[1], "a") as log:
        log.write("made ")
    if sys.argv[2] == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    while len(list(Path(sys.argv[1]).parent.glob("begun-*"))) < 3:
        time.sleep(0.05)
    time.sleep(0.5)  # each then stands at the lock, or would be making
    (folder / "content").write_text("whole")

if sys.argv[2] == "lives":
    Path(sys.argv[1]).with_name(f"begun-{os.getpid()}").touch()
print((cached_folder("phantoms", "some", make) / "content").read_text())
"""


@pytest.mark.parametrize("first", ["lives", "dies"])
def test_processes_wait_for_a_cached_folder_and_it_is_made_once(first, tmp_path):
    log = tmp_path / "log"
    start = [sys.executable, "-c", ONCE, str(log)]
    if first == "dies":
        assert subprocess.run([*start, "dies"]).returncode == -signal.SIGKILL
    together = [subprocess.Popen([*start, "lives"], stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [process.communicate(timeout=60)[0] for process in together] == 3 * ["whole\n"]
    assert log.read_text().split() == ["made"] * (2 if first == "dies" else 1)
    assert [path.name for path in cache_dir("phantoms").iterdir()] == ["some"]


def test_a_process_that_waits_says_for_what():
    place = cache_dir("phantoms")
    code = (
        "from chestxray.files import cached_folder\n"
        "print(cached_folder('phantoms', 'some', lambda folder: None).name)"
    )
    with FileLock(place.with_name(".phantoms.lock")):
        waiting = subprocess.Popen(
            [sys.executable, "-c", code], text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert waiting.stderr.readline() == f"waiting for another process that fills {place}\n"
        assert not list(place.iterdir())
    assert waiting.communicate(timeout=60) == ("some\n", "")


def test_a_file_system_without_locks_has_a_cache(monkeypatch):
    fcntl = pytest.importorskip("fcntl")

    def flock(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    made = cached_folder("phantoms", "some", lambda folder: (folder / "content").write_text("whole"))
    assert (made / "content").read_text() == "whole"
    assert cached_folder("phantoms", "some", pytest.fail) == made


def test_json_without_numbers_is_refused_and_the_old_file_stays(tmp_path):
    write_json(tmp_path / "facts.json", {"a": 1})
    with pytest.raises(ValueError):
        write_json(tmp_path / "facts.json", {"a": float("nan")})
    assert (tmp_path / "facts.json").read_text() == '{\n  "a": 1\n}\n'
    assert [path.name for path in tmp_path.iterdir()] == ["facts.json"]


# The pipeline


def collected(dataset):
    images, labels = zip(*[(images.numpy(), labels.numpy()) for images, labels in dataset])
    return np.concatenate(images), np.concatenate(labels)


def positions(images, reference):
    """Where in the reference (all different) each image stands."""
    equal = (images[:, None] == reference[None]).all(axis=(2, 3, 4))
    assert (equal.sum(axis=1) == 1).all()
    return equal.argmax(axis=1)


def test_pipeline_keeps_the_order_of_the_table(data):
    table = data.subset("train").sample(frac=1, random_state=2)
    dataset = data.store.dataset(table, batch_size=4)
    images, labels = collected(dataset)
    assert images.dtype == labels.dtype == np.float32
    assert np.array_equal(images, data.store.images(table))
    assert np.array_equal(labels, table["label"])
    assert 0 < labels.mean() < 1 and images.max() > 200
    assert [len(batch) for batch, _ in dataset] == [4] * (len(table) // 4) + [len(table) % 4]


@pytest.mark.parametrize(("batch_size", "batches"), [(1, 23), (11, 3), (12, 2), (23, 1), (32, 1)])
def test_number_of_batches_is_known(catalog, store, batch_size, batches):
    dataset = store.dataset(catalog, batch_size)
    assert int(dataset.cardinality()) == len(list(dataset)) == batches


def test_every_pass_is_another_permutation_with_the_labels_attached(data):
    table = data.subset("train")
    reference = data.images("train")
    dataset = data.dataset("train", batch_size=4, shuffle=True)
    orders = []
    for _ in range(3):
        images, labels = collected(dataset)
        order = positions(images, reference)
        assert sorted(order) == list(range(len(table)))
        assert np.array_equal(labels, table["label"].to_numpy()[order])
        orders.append(order.tolist())
    assert orders[0] != orders[1] != orders[2] != orders[0]
    assert list(range(len(table))) not in orders


def test_a_pass_can_be_repeated_by_its_number(data):
    table, plan = data.subset("train"), Augmentation()

    def seen(epoch, seed=0):
        return collected(data.store.dataset(table, 4, True, plan, seed, epoch=lambda: epoch))[0]

    counted = data.store.dataset(table, 4, True, plan, seed=0)
    passes = [collected(counted)[0] for _ in range(3)]
    assert np.array_equal(passes[2], seen(2)) and np.array_equal(passes[0], seen(0))
    assert not np.array_equal(seen(2), seen(1))
    assert not np.array_equal(seen(2), seen(2, seed=1))


def test_the_training_seed_decides_order_and_views(data):
    def seen(**seeds):
        changed = dataclasses.replace(data, **seeds)
        return collected(changed.dataset("train", augment=Augmentation(), shuffle=True))[0]

    assert np.array_equal(seen(), seen(split_seed=1))
    assert not np.array_equal(seen(), seen(train_seed=1))


def test_views_belong_to_the_image_not_to_its_place(data):
    table, plan = data.subset("train"), Augmentation(flip=True)
    ordered, labels = collected(data.store.dataset(table, 5, False, plan, seed=0, epoch=lambda: 6))
    shuffled, shuffled_labels = collected(data.store.dataset(table, 3, True, plan, seed=0, epoch=lambda: 6))
    order = np.random.default_rng([0, 6]).permutation(len(table))
    assert np.abs(shuffled - ordered[order]).max() < 1e-3
    assert np.array_equal(shuffled_labels, labels[order])
    assert np.abs(ordered - data.images("train")).mean() > 5
    assert ordered.min() >= 0 and ordered.max() <= 255


def test_augmentation_without_limits_changes_nothing(data):
    images, _ = collected(data.dataset("train", augment=Augmentation(0, 0, 0, 0, 0, 0)))
    assert np.array_equal(images, data.images("train"))


# The subsets


@pytest.mark.parametrize("split", ["val", "test"])
@pytest.mark.parametrize("wish", [{"shuffle": True}, {"augment": Augmentation()}])
def test_only_train_is_shuffled_or_augmented(data, split, wish):
    with pytest.raises(ValueError, match=f"only train .*Received: subset='{split}'$"):
        data.dataset(split, **wish)
    images, labels = collected(data.dataset(split))
    assert np.array_equal(images, data.images(split))
    assert np.array_equal(labels, data.subset(split)["label"])


def test_unknown_subset(data):
    with pytest.raises(ValueError, match="Received: subset='dev'$"):
        data.subset("dev")


def test_a_folder_becomes_data_without_its_damaged_images(folder, capsys):
    damage(folder / NAMES[1])
    with pytest.warns(UserWarning, match=f"1 of 23 images left out: {NAMES[1]}"):
        data = load_data(folder, "image", split_seed=1, image=SETTINGS, train_seed=2)
    assert len(data.table) == 22 and NAMES[1] not in set(data.table["path"])
    for split in ("train", "val", "test"):
        for image, path in zip(data.images(split), data.subset(split)["path"], strict=True):
            assert np.array_equal(image[..., 0], preprocess(folder / path, SETTINGS))
    assert (data.split_rule, data.split_seed, data.train_seed) == ("image", 1, 2)
    assert (data.name, data.synthetic) == ("images", False)
    printed = capsys.readouterr().out
    assert f"0 of {len(data.subset('test'))} test images share a strict patient group" in printed


def test_phantoms_are_named_synthetic(tmp_path):
    folder = tmp_path / "chest_xray"
    assert data_name(folder) == "chest_xray"
    (tmp_path / "README.txt").write_text("These images are SYNTHETIC.")
    assert data_name(folder) == "synthetic"


# Re-framing


WIDE, HIGH = (0.1, 0.3, 0.9, 0.7), (0.3, 0.1, 0.7, 0.9)  # boxes of NORMAL and of PNEUMONIA


@pytest.fixture
def framed(tmp_path):
    """Images of 100 × 100 pixels with a white box on grey, wide for one class and high for the other."""
    for name in NAMES:
        left, top, right, bottom = (round(100 * edge) for edge in (WIDE if "NORMAL" in name else HIGH))
        image = np.full((100, 100), 90, np.uint8)
        image[top:bottom, left:right] = 255
        (tmp_path / "framed" / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(tmp_path / "framed" / name), image)
    data = load_data(tmp_path / "framed", "image", image=ImageSettings(100))
    labels = data.subset("train")["label"].to_numpy()
    return data, labels, np.where(labels[:, None] == 0, WIDE, HIGH)


def white_boxes(images):
    return mask_boxes(images[..., 0] > 170)


def test_reframed_images_get_the_box_of_the_other_class(framed):
    data, labels, boxes = framed
    images = data.reframed("train", zoom_only=False, boxes=boxes)
    assert images.shape == (len(labels), 100, 100, 1) and images.dtype == np.uint8
    other = np.where(labels[:, None] == 1, WIDE, HIGH)
    assert np.abs(white_boxes(images) - other).max() < 0.02
    same = data.reframed("train", donors="same", zoom_only=False, boxes=boxes)
    assert np.array_equal(same, data.images("train"))  # all boxes of a class are equal here
    # Zoomed in only, a wide box gets higher, but not narrower: nothing from outside is shown.
    zoomed = white_boxes(data.reframed("train", boxes=boxes))
    assert np.abs(zoomed[labels == 0] - (0.1, 0.1, 0.9, 0.9)).max() < 0.02
    assert np.abs(zoomed[labels == 1] - (0.1, 0.1, 0.9, 0.9)).max() < 0.02


def test_an_image_without_a_box_stays_and_is_no_donor(framed):
    data, labels, boxes = framed
    boxes[labels == 0] = (0.45, 0.45, 0.55, 0.55)
    kept = np.flatnonzero(labels == 0)[0]
    boxes[kept] = WIDE
    boxes[labels == 1] = [HIGH, *[[np.nan] * 4] * (np.sum(labels == 1) - 1)]
    images = data.reframed("train", zoom_only=False, boxes=boxes)
    assert np.array_equal(images[labels == 1][1:], data.images("train")[labels == 1][1:])
    assert white_boxes(images)[kept] == pytest.approx(HIGH, abs=0.02)


def test_donors_depend_on_the_draw_alone(framed):
    data, labels, boxes = framed
    boxes = boxes + np.random.default_rng(0).uniform(-0.05, 0.05, boxes.shape)
    first = data.reframed("train", zoom_only=False, boxes=boxes)
    assert np.array_equal(data.reframed("train", zoom_only=False, boxes=boxes), first)
    assert not np.array_equal(data.reframed("train", draw=1, zoom_only=False, boxes=boxes), first)
    with pytest.raises(ValueError, match="donors must be 'other' or 'same'. Received: donors='none'"):
        data.reframed("train", donors="none", boxes=boxes)
    boxes[labels == 1, 2:] = boxes[labels == 1, :2] + 0.05  # too small to be lungs
    with pytest.raises(ValueError, match="both classes must have .* Received: subset='train', 8 of 1"):
        data.reframed("train", zoom_only=False, boxes=boxes)


# MedMNIST


def test_a_medmnist_file_keeps_its_own_three_parts(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {}
    for part, count in {"train": 10, "val": 4, "test": 6}.items():
        arrays[f"{part}_images"] = rng.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        arrays[f"{part}_labels"] = (np.arange(count) % 2)[:, None]
    copies = {"train_images": arrays["val_images"][:1], "train_labels": arrays["val_labels"][:1]}
    joined = {name: np.concatenate([arrays[name], copy]) for name, copy in copies.items()}
    np.savez(tmp_path / "pneumoniamnist.npz", **arrays | joined)  # an image of val is in train, too
    with pytest.warns(UserWarning, match="patient"):
        data = load_data(tmp_path / "pneumoniamnist.npz", image=ImageSettings(28))
    assert data.name == "pneumoniamnist" and data.split_rule == "given"
    for part in ("train", "val", "test"):
        rows = data.subset(part)
        assert len(rows) == len(arrays[f"{part}_images"])
        numbers = rows["path"].str.extract(r"_(\d+)\.png")[0].astype(int)
        assert np.array_equal(rows["label"], numbers % 2)
        assert np.array_equal(data.images(part)[..., 0], arrays[f"{part}_images"][numbers])


def test_another_npz_file_is_one_line(tmp_path):
    arrays = {}
    for part in ("train", "val", "test"):
        arrays |= {f"{part}_images": np.zeros((4, 28, 28), np.uint8), f"{part}_labels": np.zeros((4, 1), int)}
    for number, change in enumerate(
        [
            {"val_labels": np.zeros((3, 1), int)},  # a label is missing
            {"test_labels": np.zeros((4, 14), int)},  # of ChestMNIST
            {"test_labels": np.full((4, 1), 2)},  # a third class
            {"train_images": np.zeros((4, 28, 28))},  # float
            {"train_images": np.zeros((4, 28, 28, 3), np.uint8)},  # colour
        ]
    ):
        np.savez(tmp_path / f"pneumoniamnist_{number}.npz", **arrays | change)
    np.savez(tmp_path / "pneumoniamnist_few.npz", train_images=arrays["train_images"])
    (tmp_path / "pneumoniamnist_cut.npz").write_bytes(b"PK damaged")
    for file in tmp_path.glob("*.npz"):
        with pytest.raises(ValueError, match=r"not a PneumoniaMNIST file .*Received: data_dir="):
            load_data(file)
    np.savez(tmp_path / "breastmnist.npz", **arrays)
    with pytest.raises(ValueError, match="not a PneumoniaMNIST file"):
        load_data(tmp_path / "breastmnist.npz")
