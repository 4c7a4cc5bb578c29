"""The frozen part, computed once: exactness, and a cache that serves nothing else."""

import dataclasses
import shutil
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tiny

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import load_data
from chestxray.data.images import ImageSettings
from chestxray.files import cache_dir
from chestxray.models.builders import as_float32, build_transfer_model
from chestxray.models.features import Features, find_cut, plan_features
from chestxray.models.settings import TrainSettings
from chestxray.models.training import (
    compile_model,
    cpu_has_bf16,
    fine_tune,
    set_trainable_from,
    train,
    train_head,
)

VIEWS = Augmentation()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, data):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path / "cache"))


# Exactness


@pytest.mark.slow
def test_stored_views_are_those_of_fresh_augmentation(data):
    # With as many views as epochs, stored and fresh training see the same pictures in the same order.
    ends = []
    for views in (3, 0):
        keras.utils.set_random_seed(0)
        model = _frozen()
        history = train(
            model,
            data,
            TrainSettings(epochs=3, learning_rate=0.1, optimizer="sgd", augmentation=VIEWS, views=views),
        ).history
        ends.append(history["loss"].to_numpy())
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-4)  # float16 on disk
    repeated = train(
        _frozen(),
        data,
        TrainSettings(epochs=3, learning_rate=0.1, optimizer="sgd", augmentation=VIEWS, views=1),
    ).history
    assert np.abs(repeated["loss"][1:] / ends[1][1:] - 1).max() > 1e-3  # other views would be seen


@pytest.mark.slow
def test_views_are_taken_in_turn(data, capsys):
    model = _frozen()
    train(model, data, TrainSettings(epochs=5, learning_rate=1e-3, augmentation=VIEWS, views=2))
    printed = capsys.readouterr().out
    assert [line.split("(")[1] for line in printed.splitlines() if "computing" in line] == [
        "val)",
        "view 1 of 2)",
        "view 2 of 2)",
    ]
    features = Features(model, data, [find_cut(model)], VIEWS, 2)
    for view in range(2):
        features.prepare("train", view)
    train_set = [
        next(iter(features.dataset("train", epoch=lambda number=number: number)))[0].numpy()
        for number in range(4)
    ]
    assert np.array_equal(train_set[0], train_set[2]) and np.array_equal(train_set[1], train_set[3])
    assert not np.array_equal(train_set[0], train_set[1])


def test_stored_activations_and_labels_belong_together(data):
    model = _frozen()
    features = Features(model, data, [find_cut(model)], VIEWS, 1)
    features.prepare("train")
    prefix = keras.Model(model.input, find_cut(model).output)
    pixels = data.dataset("train", 7, augment=VIEWS, shuffle=True, epoch=lambda: 0)
    stored = features.dataset("train", 7, shuffle=True, epoch=lambda: 0)
    batches = 0
    for (images, labels), (activations, theirs) in zip(pixels, stored, strict=True):
        assert np.array_equal(labels, theirs)
        np.testing.assert_allclose(activations, prefix(images), rtol=1e-3, atol=1e-3)
        batches += 1
    assert batches == -(-len(data.subset("train")) // 7)


@pytest.mark.slow
def test_whole_model_holds_what_the_rest_has_learned(data, tmp_path):
    keras.utils.set_random_seed(0)
    model, _ = build_transfer_model("ResNet50", tiny.SIZE, (8,), weights=None)
    model.get_layer("logit").set_weights([np.linspace(-1, 1, 8)[:, None], np.zeros(1)])
    settings = TrainSettings(epochs=1, learning_rate=1e-2, augmentation=VIEWS, views=1)
    train_head(model, data, settings, unfreeze_next="conv5_block1_1_conv")
    before = [layer.get_weights() for layer in model.layers]
    fine_tune(model, data, settings, "conv5_block1_1_conv")
    changed = {
        layer.name.split("_")[0]
        for layer, old in zip(model.layers, before, strict=True)
        if not tiny.same(layer.get_weights(), old)
    }
    assert changed == {"conv5", "dense1", "logit"}
    as_float32(model).save(tmp_path / "model.keras")
    reloaded = keras.saving.load_model(tmp_path / "model.keras", safe_mode=True)
    assert reloaded.input_shape == (None, tiny.SIZE, tiny.SIZE, 1)
    images = data.images("val")
    np.testing.assert_allclose(reloaded(images), model(images), rtol=1e-5, atol=1e-6)


# The cache serves nothing else


def _frozen(seed=0):
    model = tiny.network(seed=seed)
    for layer in model.layers:
        layer.trainable = layer.name in ("dense1", "logit")
    return model


@pytest.mark.slow
@pytest.mark.parametrize(
    ("backbone", "size", "first"), [("VGG16", 32, "block5_conv1"), ("InceptionV3", 75, "mixed8")]
)
def test_one_pass_feeds_both_phases(backbone, size, first, tiny_folder, capsys):
    data = tiny.load(tiny_folder, size)
    model, _ = build_transfer_model(backbone, size, (8,), weights=None)
    settings = TrainSettings(epochs=2, learning_rate=1e-3, augmentation=VIEWS, views=2)
    train_head(model, data, settings, unfreeze_next=first)
    capsys.readouterr()
    fine_tune(model, data, settings, first)
    assert "computing" not in capsys.readouterr().out


def test_what_the_head_phase_changes_is_not_kept_for_a_later_one(data):
    # Dropout stands behind dense1, so training the logit alone would start from there.
    model, _ = build_transfer_model("VGG16", tiny.SIZE, (8,), weights=None)
    set_trainable_from(model, "logit")
    later = find_cut(model)
    assert later.name == "dense1"
    set_trainable_from(model, "pool")
    assert [
        cut.name for cut in plan_features(model, data, [find_cut(model), later], VIEWS, 2, 20.0).cuts
    ] == ["pool"]


def test_same_layers_wired_otherwise_are_another_network(data):
    layers, identities = keras.layers, []
    for twice in (True, False):
        keras.utils.set_random_seed(0)
        x = inputs = keras.Input((tiny.SIZE, tiny.SIZE, 1))
        first = layers.Conv2D(4, 3, padding="same")(x)
        second = layers.Conv2D(4, 3, padding="same")(first)
        x = layers.Add()([second, second if twice else first])
        pool = layers.GlobalAveragePooling2D()
        model = keras.Model(inputs, layers.Dense(1)(pool(x)))
        identities.append(set(Features(model, data, [pool], None, 1).entries))
    assert not identities[0] & identities[1]


def test_a_training_survives_that_its_entries_are_cleared(data):
    model = _frozen()
    features = Features(model, data, [find_cut(model)], None, 1)
    features.prepare("val")
    before = next(iter(features.dataset("val", 100)))[0].numpy()
    for folder in cache_dir("features").iterdir():
        shutil.rmtree(folder)
    assert np.array_equal(next(iter(features.dataset("val", 100)))[0].numpy(), before)


def test_rest_scales_its_loss_where_the_whole_model_would(data):
    model, _ = build_transfer_model("VGG16", tiny.SIZE, (8,), weights=None, precision="mixed_float16")
    set_trainable_from(model, "pool")
    rest = Features(model, data, [find_cut(model)], None, 1).rest
    compile_model(rest, keras.optimizers.Adam())
    compile_model(model, keras.optimizers.Adam())
    assert type(rest.optimizer) is type(model.optimizer) is keras.optimizers.LossScaleOptimizer


@pytest.mark.parametrize("change", ["nothing", "weights", "size", "seed", "view", "strength", "policy"])
def test_entries_of_other_weights_pixels_or_settings_are_other_entries(change, data, tiny_folder):
    model, augmentation = _frozen(), VIEWS
    first = set(Features(model, data, [find_cut(model)], VIEWS, 2).entries)
    if change == "weights":
        conv = model.get_layer("conv")
        conv.set_weights([np.nextafter(value, 1) for value in conv.get_weights()])
    elif change == "size":
        data = load_data(tiny_folder, "patient", 0, ImageSettings(tiny.SIZE, "letterbox"))
    elif change == "seed":
        data = dataclasses.replace(data, train_seed=1)
    elif change == "strength":
        augmentation = Augmentation(rotation=8)
    elif change == "policy":
        model = tiny.network("mixed_bfloat16")
        for layer in model.layers:
            layer.trainable = layer.name in ("dense1", "logit")
    other = set(Features(model, data, [find_cut(model)], augmentation, 3 if change == "view" else 2).entries)
    common = {"nothing": 3, "view": 3, "seed": 1, "strength": 1}.get(change, 0)  # validation has no view
    assert len(first & other) == common
    assert len(first) == 3


def test_reordered_images_get_their_own_and_new_labels_do_not(data):
    model = _frozen()
    first = Features(model, data, [find_cut(model)], None, 0)
    relabelled = dataclasses.replace(data, table=data.table.assign(label=1 - data.table["label"]))
    other = Features(model, relabelled, [find_cut(model)], None, 0)
    assert first.entries == other.entries
    other.prepare("val")
    assert np.array_equal(next(iter(other.dataset("val", 100)))[1], 1 - data.subset("val")["label"])
    turned = dataclasses.replace(data, table=data.table[::-1])
    assert not set(first.entries) & set(Features(model, turned, [find_cut(model)], None, 0).entries)


@pytest.mark.parametrize("damage", ["cut off", "emptied", "missing", "partial"])
def test_a_half_written_entry_is_computed_again(damage, data, capsys):
    model = _frozen()
    features = Features(model, data, [find_cut(model)], None, 1)
    features.prepare("val")
    whole = next(iter(features.dataset("val", 100)))[0].numpy()
    path = next(cache_dir("features").glob("*")) / "features.npy"
    if damage == "cut off":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "emptied":
        path.write_bytes(b"")
    elif damage == "missing":
        path.unlink()
    else:  # as a killed process leaves it
        path.parent.rename(path.parent.with_name(f".partial-0123abcd-{path.parent.name}"))
    capsys.readouterr()
    features.prepare("val")
    assert "computing" in capsys.readouterr().out
    assert np.array_equal(next(iter(features.dataset("val", 100)))[0].numpy(), whole)
    assert len(list(cache_dir("features").iterdir())) == 1


@pytest.mark.slow
def test_killed_while_computing_leaves_no_entry(tiny_folder, tmp_path):
    script = tmp_path / "compute.py"
    script.write_text(
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "import tiny\n"
        "from chestxray.models import features\n"
        "from chestxray.models.features import find_cut\n"
        "data = tiny.load(sys.argv[2])\n"
        "model = tiny.network()\n"
        "graph = features.frozen_graph\n"
        "features._BATCH = 8\n"
        "def slow(part):\n"
        "    compute = graph(part)\n"
        "    def one(images):\n"
        "        print('batch', flush=True); time.sleep(0.5); return compute(images)\n"
        "    return one\n"
        "features.frozen_graph = slow\n"
        "for layer in model.layers: layer.trainable = layer.name == 'logit'\n"
        "features.Features(model, data, [find_cut(model)], None, 1).prepare('train')\n"
    )
    child = subprocess.Popen(
        [sys.executable, script, str(Path(tiny.__file__).parent), str(tiny_folder)],
        stdout=subprocess.PIPE,
        text=True,
        stderr=subprocess.DEVNULL,
    )
    for line in child.stdout:
        if line == "batch\n":
            break
    child.kill()
    child.wait()
    left = list(cache_dir("features").iterdir())
    assert left and all(folder.name.startswith(".partial-") for folder in left)
    model = _frozen()
    plan_features(model, tiny.load(tiny_folder), [find_cut(model)], None, 1, 20.0).make_room(20.0)
    assert not list(cache_dir("features").iterdir())


def test_overflow_of_float16_is_refused_and_leaves_nothing(data):
    model = _frozen()
    conv = model.get_layer("conv")
    conv.set_weights([value * 1e8 for value in conv.get_weights()])
    with pytest.raises(ValueError, match="must fit into float16.*disk_gb=0. Received: largest="):
        Features(model, data, [find_cut(model)], None, 1).prepare("val")
    assert not list(cache_dir("features").iterdir())


# The disk


def test_what_it_takes_is_stated_before_and_exact(data, capsys):
    model = _frozen()
    features = plan_features(model, data, [find_cut(model)], VIEWS, 3, 20.0)
    assert not list(cache_dir("features").iterdir())
    images = 3 * len(data.subset("train")) + len(data.subset("val"))
    assert features.bytes == images * 16 * 16 * 8 * 2
    assert f"{features.bytes / 1e9:.2f} GB, 3 views" in capsys.readouterr().out
    for view in range(3):
        features.prepare("train", view)
    features.prepare("val")
    taken = sum(path.stat().st_size for path in cache_dir("features").rglob("*.npy"))
    assert features.bytes <= taken <= features.bytes + 4 * 200  # headers


def test_too_small_a_disk_computes_the_whole_network(data, capsys):
    model = _frozen()
    settings = TrainSettings(epochs=1, learning_rate=1e-3, augmentation=VIEWS, views=2, disk_gb=1e-5)
    history = train(model, data, settings).history
    assert "the whole network is computed in every epoch" in capsys.readouterr().out
    assert len(history) == 1 and not list(cache_dir("features").iterdir())


def test_later_phase_gives_way_first(data, capsys):
    model, _ = build_transfer_model("VGG16", tiny.SIZE, (8,), weights=None)
    set_trainable_from(model, "block4_conv1")
    later = find_cut(model)
    set_trainable_from(model, "pool")
    both = plan_features(model, data, [find_cut(model), later], None, 0, 20.0)
    enough_for_one = (both.bytes - 1) / 1e9
    one = plan_features(model, data, [find_cut(model), later], None, 0, enough_for_one)
    assert [cut.name for cut in one.cuts] == ["pool"]
    assert "the later phase has to compute its own" in capsys.readouterr().out


def test_least_recently_used_entries_make_room(data, monkeypatch):
    model = _frozen()
    old, used = (Features(other, data, [find_cut(other)], None, 1) for other in (_frozen(1), _frozen(2)))
    for features in (old, used):
        features.prepare("train")
        features.prepare("val")
        time.sleep(0.02)
    old.prepare("val")  # used again: only its train entry is oldest now
    room = 2.3 * old.bytes / 1e9
    new = plan_features(model, data, [find_cut(model)], None, 1, room)
    assert len(list(cache_dir("features").iterdir())) == 4  # planning alone removes nothing
    new.make_room(room)
    new.prepare("train")
    new.prepare("val")
    left = set(cache_dir("features").iterdir())
    assert set(new.entries) <= left
    assert sum(path.stat().st_size for path in cache_dir("features").rglob("*.npy")) <= 1e9 * room
    assert old._folders["val", 0, None] in left and old._folders["train", 0, None] not in left


def test_fresh_views_are_not_stored(data):
    model = _frozen()
    assert plan_features(model, data, [find_cut(model)], VIEWS, 0, 20.0) is None
    assert plan_features(model, data, [find_cut(model)], None, 0, 20.0) is not None  # nothing is random


# Real images and weights


@pytest.mark.slow
def test_bf16_decisions_on_500_real_images(real_data, real_weights, tmp_path, monkeypatch):
    if not cpu_has_bf16():
        pytest.skip("the processor has no bfloat16 units")
    monkeypatch.setenv("CHESTXRAY_WEIGHTS", str(real_weights))
    data = load_data(real_data, "patient", 0, ImageSettings(224))
    table = data.table[data.table["split"] != "test"].groupby("split").head(500)
    data = dataclasses.replace(data, table=table)
    keras.utils.set_random_seed(0)
    model, _ = build_transfer_model("VGG16", 224, (64,), dropout=0.0, precision="mixed_bfloat16")
    settings = TrainSettings(epochs=4, learning_rate=1e-3, views=1)
    train_head(model, data, settings, unfreeze_next="block5_conv1")  # a head whose logits mean something
    set_trainable_from(model, "block5_conv1")
    features = Features(model, data, [find_cut(model)], None, 1)
    features.prepare("val")
    found = features.rest.predict(features.dataset("val"), verbose=0).ravel()
    expected = as_float32(model).predict(data.dataset("val"), verbose=0).ravel()
    assert len(expected) == 500 and np.ptp(expected) > 2
    assert np.abs(found - expected).max() < 0.02 * np.ptp(expected)
    flipped = (found > 0) != (expected > 0)
    assert (np.abs(expected[flipped]) < 0.3).all()
