"""The frozen part, computed once: the cut, exactness, and a cache that serves nothing else."""

import dataclasses
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import load_data
from chestxray.data.images import ImageSettings
from chestxray.files import cache_dir
from chestxray.models import features as module
from chestxray.models.builders import as_float32, build_custom_cnn, build_transfer_model
from chestxray.models.features import Features, find_cut, frozen_graph, plan_features
from chestxray.models.phases import fine_tune, set_trainable_from, train_head
from chestxray.models.precision import cpu_has_bf16
from chestxray.models.schedules import TrainSettings
from chestxray.models.training import train

VIEWS = Augmentation()


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch, data):
    monkeypatch.setenv("CHESTXRAY_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module", params=[("VGG16", 32), ("ResNet50", 32), ("InceptionV3", 75),
                                        ("DenseNet121", 32)], ids=lambda pair: pair[0])
def network(request):
    """A backbone with a head whose logits vary, batch normalisation with statistics of its own."""
    keras.utils.set_random_seed(3)
    model, _ = build_transfer_model(*request.param, (8,), weights=None)
    rng = np.random.default_rng(0)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.set_weights([value * rng.uniform(0.8, 1.2, value.shape) for value in layer.get_weights()])
    model.get_layer("logit").set_weights([rng.normal(size=(8, 1)), np.zeros(1)])
    return model


# The cut

@pytest.mark.parametrize(("backbone", "first", "cut"), [
    ("VGG16", "block5_conv1", "block4_pool"),
    ("VGG16", "block5_conv2", "block5_conv1"),
    ("ResNet50", "conv4_block5_1_conv", "conv4_block4_out"),
    ("ResNet50", "conv5_block1_1_conv", "conv4_block6_out"),
    ("ResNet50", "conv4_block5_2_conv", "conv4_block4_out"),  # inside a block: the shortcut runs beside it
    ("InceptionV3", "mixed8", "mixed8"),
    ("InceptionV3", "mixed7", "mixed7"),
    ("DenseNet121", "conv5_block1_0_bn", "pool4_pool"),
    ("DenseNet121", "conv5_block2_1_conv", "conv5_block1_concat"),
])
def test_cut_by_hand(backbone, first, cut):
    model, _ = build_transfer_model(backbone, 75, (8,), weights=None)
    set_trainable_from(model, first)
    assert find_cut(model).name == cut
    set_trainable_from(model, "pool")
    assert find_cut(model).name == "pool"


def test_nothing_frozen_means_no_cut():
    model, _ = build_transfer_model("VGG16", 32, (8,), weights=None)
    assert find_cut(model) is None
    set_trainable_from(model, "block1_conv1")  # only the preprocessing, which has weights too, is frozen
    assert find_cut(model) is None
    assert find_cut(build_custom_cnn(64)) is None


def test_dropout_and_moving_statistics_are_never_stored():
    model = tiny.network()
    for layer in model.layers:
        layer.trainable = layer.name in ("dense1", "logit")
    after = model.layers[model.layers.index(model.get_layer("bn")) + 1]  # the ReLU; dropout follows
    assert find_cut(model) is after
    model.get_layer("bn").trainable = True
    assert find_cut(model).name == "conv"


# Exactness

def test_prefix_and_rest_equal_the_whole_network_in_float32(network):
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (40, *network.input_shape[1:])) * np.linspace(0, 1, 40)[:, None, None, None]
    images = images.astype(np.float32)
    expected = network(images, training=False).numpy()
    assert np.ptp(expected) > 0.1 * np.abs(expected).max() > 0
    for cut in (network.get_layer("pool"), _stage_cut(network)):
        prefix = frozen_graph(keras.Model(network.input, cut.output))
        rest = keras.Model(cut.output, network.output)
        for size in (32, 8):  # a shorter last batch
            found = rest(prefix(tf.constant(images[:size]))[0], training=False)
            np.testing.assert_allclose(found, expected[:size], rtol=1e-5, atol=1e-5 * np.ptp(expected))


def _stage_cut(network):
    first = {"vgg16": "block5_conv1", "resnet50": "conv4_block5_1_conv", "inceptionv3": "mixed8",
             "densenet121": "conv5_block1_0_bn"}[network.name]
    set_trainable_from(network, first)
    return find_cut(network)


def test_graph_follows_nothing_but_its_own_weights():
    # Constants or variables: training the rest must not reach into what has been compiled.
    model, _ = build_transfer_model("ResNet50", 32, (8,), weights=None)
    set_trainable_from(model, "conv5_block1_1_conv")
    compute = frozen_graph(keras.Model(model.input, find_cut(model).output))
    images = tf.random.stateless_uniform((4, 32, 32, 1), (0, 0), maxval=255.0)
    before = compute(images)[0]
    layer = model.get_layer("conv5_block1_1_conv")
    layer.set_weights([value + 1 for value in layer.get_weights()])
    assert np.array_equal(compute(images)[0], before)


@pytest.mark.skipif(not cpu_has_bf16(), reason="the processor has no bfloat16 units")
def test_bf16_graph_leaves_float32_elsewhere(network):
    mixed, _ = build_transfer_model({"vgg16": "VGG16", "resnet50": "ResNet50", "inceptionv3": "InceptionV3",
                                     "densenet121": "DenseNet121"}[network.name],
                                    network.input_shape[1], (8,), weights=None, precision="mixed_bfloat16")
    mixed.set_weights(network.get_weights())
    images = tf.random.stateless_uniform((8, *network.input_shape[1:]), (0, 0), maxval=255.0)
    pool = keras.Model(network.input, network.get_layer("pool").output)
    expected = pool(images).numpy()
    found = frozen_graph(keras.Model(mixed.input, mixed.get_layer("pool").output))(images)[0]
    difference = np.abs(found - expected).max() / np.ptp(expected)
    assert 1e-5 < difference < 0.03  # it did compute in bfloat16, and no worse than that
    exact = tf.function(pool)(images).numpy()
    np.testing.assert_allclose(exact, expected, rtol=1e-4, atol=1e-5 * np.ptp(expected))


def test_stored_views_are_those_of_fresh_augmentation(data):
    # With as many views as epochs, stored and fresh training see the same pictures in the same order.
    ends = []
    for views in (3, 0):
        keras.utils.set_random_seed(0)
        model, _ = build_transfer_model("VGG16", tiny.SIZE, (8,), dropout=0.0, weights=None)
        settings = TrainSettings(epochs=3, learning_rate=1e-3, augmentation=VIEWS, views=views)
        history = train_head(model, data, settings).history
        ends.append((history["loss"].to_numpy(), model.get_layer("dense1").get_weights()[0]))
    np.testing.assert_allclose(ends[0][0], ends[1][0], rtol=2e-3)  # float16 on disk
    moved = np.abs(ends[0][1] - ends[1][1]).max()
    assert moved < 2e-3


def test_views_are_taken_in_turn(data, capsys):
    model = _frozen()
    train(model, data, TrainSettings(epochs=5, learning_rate=1e-3, augmentation=VIEWS, views=2))
    printed = capsys.readouterr().out
    assert [line.split("(")[1] for line in printed.splitlines() if "computing" in line] == [
        "val)", "view 1 of 2)", "view 2 of 2)"]
    features = Features(model, data, [find_cut(model)], VIEWS, 2)
    train_set = [next(iter(features.dataset("train", epoch=lambda number=number: number)))[0].numpy()
                 for number in range(4)]
    assert np.array_equal(train_set[0], train_set[2]) and np.array_equal(train_set[1], train_set[3])
    assert not np.array_equal(train_set[0], train_set[1])


def test_stored_activations_and_labels_belong_together(data):
    model = _frozen()
    features = Features(model, data, [find_cut(model)], VIEWS, 1)
    features.prepare("train")
    prefix = keras.Model(model.input, find_cut(model).output)
    pixels = data.dataset("train", 7, VIEWS, shuffle=True, epoch=lambda: 0)
    stored = features.dataset("train", 7, shuffle=True, epoch=lambda: 0)
    batches = 0
    for (images, labels), (activations, theirs) in zip(pixels, stored, strict=True):
        assert np.array_equal(labels, theirs)
        np.testing.assert_allclose(activations, prefix(images), rtol=1e-3, atol=1e-3)
        batches += 1
    assert batches == -(-len(data.part("train")) // 7)


def test_whole_model_holds_what_the_rest_has_learned(data, tmp_path):
    keras.utils.set_random_seed(0)
    model, _ = build_transfer_model("ResNet50", tiny.SIZE, (8,), weights=None)
    model.get_layer("logit").set_weights([np.linspace(-1, 1, 8)[:, None], np.zeros(1)])
    settings = TrainSettings(epochs=1, learning_rate=1e-2, augmentation=VIEWS, views=1)
    train_head(model, data, settings, unfreeze_next="conv5_block1_1_conv")
    before = [layer.get_weights() for layer in model.layers]
    fine_tune(model, data, settings, "conv5_block1_1_conv")
    changed = {layer.name.split("_")[0] for layer, old in zip(model.layers, before, strict=True)
               if not tiny.same(layer.get_weights(), old)}
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


def test_one_pass_feeds_both_phases(data, capsys):
    model, _ = build_transfer_model("VGG16", tiny.SIZE, (8,), weights=None)
    settings = TrainSettings(epochs=2, learning_rate=1e-3, augmentation=VIEWS, views=2)
    train_head(model, data, settings, unfreeze_next="block5_conv1")
    capsys.readouterr()
    fine_tune(model, data, settings, "block5_conv1")
    assert "computing" not in capsys.readouterr().out


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
        data = dataclasses.replace(data, seed=1)
    elif change == "strength":
        augmentation = Augmentation(rotation=8)
    elif change == "policy":
        model = tiny.network("mixed_bfloat16")
        for layer in model.layers:
            layer.trainable = layer.name in ("dense1", "logit")
    other = set(Features(model, data, [find_cut(model)], augmentation,
                         3 if change == "view" else 2).entries)
    common = {"nothing": 3, "view": 3, "seed": 1, "strength": 1}.get(change, 0)  # validation has no view
    assert len(first & other) == common
    assert len(first) == 3


def test_relabelled_or_reordered_images_get_their_own(data):
    model = _frozen()
    first = Features(model, data, [find_cut(model)], None, 0)
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
        path.parent.rename(path.parent.with_name(f".partial-999999999-{path.parent.name}"))
    capsys.readouterr()
    features.prepare("val")
    assert "computing" in capsys.readouterr().out
    assert np.array_equal(next(iter(features.dataset("val", 100)))[0].numpy(), whole)
    assert len(list(cache_dir("features").iterdir())) == 1


def test_killed_while_computing_leaves_no_entry(tiny_folder, tmp_path):
    script = tmp_path / "compute.py"
    script.write_text(
        "import sys, time; sys.path.insert(0, sys.argv[1])\n"
        "import tiny\n"
        "from chestxray.models import features\n"
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
        "features.Features(model, data, [features.find_cut(model)], None, 1).prepare('train')\n")
    child = subprocess.Popen([sys.executable, script, str(Path(tiny.__file__).parent), str(tiny_folder)],
                             stdout=subprocess.PIPE, text=True, stderr=subprocess.DEVNULL)
    for line in child.stdout:
        if line == "batch\n":
            break
    child.kill()
    child.wait()
    left = list(cache_dir("features").iterdir())
    assert left and all(folder.name.startswith(".partial-") for folder in left)


def test_overflow_of_float16_is_refused_and_leaves_nothing(data):
    model = _frozen()
    conv = model.get_layer("conv")
    conv.set_weights([value * 1e8 for value in conv.get_weights()])
    with pytest.raises(ValueError, match="do not fit into float16; train with views=0. Received: largest="):
        Features(model, data, [find_cut(model)], None, 1).prepare("val")
    assert not list(cache_dir("features").iterdir())


# The disk

def test_what_it_takes_is_stated_before_and_exact(data, capsys):
    model = _frozen()
    features = plan_features(model, data, [find_cut(model)], VIEWS, 3, 20.0)
    assert not list(cache_dir("features").iterdir())
    images = 3 * len(data.part("train")) + len(data.part("val"))
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
    next(iter(old.dataset("val")))  # used again: now the other's are older, and old's train oldest
    room = 2.2 * old.bytes / 1e9
    new = plan_features(model, data, [find_cut(model)], None, 1, room)
    new.prepare("train")
    new.prepare("val")
    left = set(cache_dir("features").iterdir())
    assert set(new.entries) <= left
    assert sum(map(module._size, left)) <= 1e9 * room
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
