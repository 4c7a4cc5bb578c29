"""Two-phase transfer learning with this package, compared with a common notebook.

    python benchmarks/two_phase.py [--backbone VGG16] [--data-dir FOLDER]

Times 5 epochs of the head and 16 epochs of fine-tuning on 4,098 training and 879 validation images (the real
data set, split by patient), with batch size 32, for four variants. Each runs in its own process:

- common: frozen layers are computed in each epoch, float32, ImageDataGenerator;
- common, bf16 and cache: the same network in mixed_bfloat16 with image_dataset_from_directory().cache() and
  augmentation layers;
- ours in float32, and ours in bfloat16 if the processor has it, with the lung box, the augmentation of the
  recipe vgg16.yaml, and K = 4 stored views.

Images per second are those of the fastest of REPEATS epochs over IMAGES images, after a first epoch that
traces and compiles. Times of whole trainings and the memory of the cached pixels are extrapolated from them.
Weights are random: speed does not depend on them. The measured activations are in the page cache; those of a
whole training may not be. Writes results/benchmarks/two_phase-<backbone>.json if it was measured on real
images.
"""

import argparse
import json
import math
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import keras
import tensorflow as tf
from keras.src.legacy.preprocessing.image import ImageDataGenerator

import chestxray as cx
from chestxray.data.catalog import scan
from chestxray.data.dataset import data_name
from chestxray.deployment.costs import layer_mflops
from chestxray.files import write_json
from chestxray.models.backbones import get_backbone
from chestxray.models.features import Features, find_cut
from chestxray.models.training import compile_model, cpu_has_bf16, set_trainable_from
from chestxray.results import versions

IMAGES, BATCH, REPEATS = 256, 32, 3  # measured training images; half as many for validation
TRAIN, VAL, HEAD_EPOCHS, FINE_EPOCHS, VIEWS = 4_098, 879, 5, 16, 4
FROM = {
    "VGG16": "block5_conv1",
    "ResNet50": "conv4_block5_1_conv",
    "InceptionV3": "mixed8",
    "DenseNet121": "conv5_block1_0_bn",
}
RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


class Clock(keras.callbacks.Callback):
    """Shortest time of an epoch of a ``fit``, training and validation apart, in seconds."""

    def __init__(self) -> None:
        super().__init__()
        self.train = self.val = math.inf

    def on_epoch_begin(self, epoch: int, logs: dict | None = None) -> None:
        self.began = time.perf_counter()

    def on_test_begin(self, logs: dict | None = None) -> None:
        self.test = time.perf_counter()

    def on_test_end(self, logs: dict | None = None) -> None:
        self.train = min(self.train, self.test - self.began)
        self.val = min(self.val, time.perf_counter() - self.test)


def fit(model, train, val, counts) -> dict[str, float]:
    """Images a second of training and validation."""
    clock = Clock()
    model.fit(train, validation_data=val, epochs=1 + REPEATS, verbose=0, callbacks=[clock])
    return {"train": counts[0] / clock.train, "val": counts[1] / clock.val}


def common(backbone: str, folder: Path, bf16: bool) -> dict:
    """The usual notebook: nested backbone, whole network in every epoch."""
    size = 299 if backbone == "InceptionV3" else 224
    counts = [len(list((folder / subset).rglob("*.*"))) for subset in ("train", "val")]
    if bf16:
        keras.config.set_dtype_policy("mixed_bfloat16")
        sets = [
            keras.utils.image_dataset_from_directory(
                folder / subset,
                label_mode="binary",
                image_size=(size, size),
                batch_size=BATCH,
                shuffle=subset == "train",
                verbose=False,
            )
            .cache()
            .prefetch(2)
            for subset in ("train", "val")
        ]
        augment = [
            keras.layers.RandomRotation(0.02),
            keras.layers.RandomZoom(0.1),
            keras.layers.RandomTranslation(0.05, 0.05),
            keras.layers.Rescaling(1 / 255),
        ]
    else:
        generators = (
            ImageDataGenerator(
                rescale=1 / 255,
                rotation_range=7,
                zoom_range=0.1,
                shear_range=5,
                width_shift_range=0.05,
                height_shift_range=0.05,
            ),
            ImageDataGenerator(rescale=1 / 255),
        )
        sets = [
            generator.flow_from_directory(
                folder / subset, (size, size), batch_size=BATCH, class_mode="binary"
            )
            for generator, subset in zip(generators, ("train", "val"), strict=True)
        ]
        augment = []
    base = getattr(keras.applications, backbone)(weights=None, include_top=False, input_shape=(size, size, 3))
    base.trainable = False
    inputs = x = keras.Input((size, size, 3))
    for layer in augment:
        x = layer(x)
    x = keras.layers.GlobalAveragePooling2D()(base(x, training=False))
    x = keras.layers.Dropout(0.5)(keras.layers.Dense(256, activation="relu")(x))
    model = keras.Model(inputs, keras.layers.Dense(1, activation="sigmoid", dtype="float32")(x))
    model.compile(keras.optimizers.Adam(1e-4), "binary_crossentropy", metrics=["accuracy"])
    speeds = {"head": fit(model, *sets, counts)}
    base.trainable = True
    names = [layer.name for layer in base.layers]
    for layer in base.layers[: names.index(FROM[backbone]) + (backbone == "InceptionV3")]:
        layer.trainable = False
    model.compile(keras.optimizers.Adam(1e-5), "binary_crossentropy", metrics=["accuracy"])
    speeds["fine"] = fit(model, *sets, counts)
    return speeds


def ours(backbone: str, folder: Path, bf16: bool) -> dict:
    """Frozen layers once for each of the stored views, then the rest from there."""
    row = get_backbone(backbone)
    began = time.perf_counter()
    data = cx.load_data(folder, "image", 0, cx.ImageSettings(row.image_size, "lung_box"))
    decoding = time.perf_counter() - began
    data.table["split"] = data.table["path"].str.split("/").str[0]  # as the folders say
    model, _ = cx.build_transfer_model(
        backbone, None, (256,), 0.5, None, "mixed_bfloat16" if bf16 else "float32"
    )
    augmentation = cx.Augmentation(edges=0.06)
    counts = [len(data.subset(subset)) for subset in ("train", "val")]
    set_trainable_from(model, FROM[backbone])
    cuts = [find_cut(model)]
    set_trainable_from(model, "pool")
    cuts.insert(0, find_cut(model))
    features = Features(model, data, cuts, augmentation, VIEWS)
    seconds = []
    features.prepare("val")
    for view in range(1 + REPEATS):  # in the first one all is traced and compiled
        began = time.perf_counter()
        features.prepare("train", view)
        seconds.append(time.perf_counter() - began)
    speeds = {"decoding": {"train": sum(counts) / decoding}, "frozen": {"train": counts[0] / min(seconds)}}
    for name, first, cut in (("head", "pool", 0), ("fine", FROM[backbone], 1)):
        set_trainable_from(model, first)
        subset = Features(model, data, cuts[cut:], augmentation, VIEWS)
        for name_, view in (("val", 0), *(("train", view) for view in range(VIEWS))):
            subset.prepare(name_, view)
        compile_model(subset.rest, keras.optimizers.Adam(1e-4))
        speeds[name] = fit(
            subset.rest, subset.dataset("train", BATCH, shuffle=True), subset.dataset("val", BATCH), counts
        )
    sample = VIEWS * counts[0] + counts[1]
    speeds["gigabytes"] = features.bytes / sample * (VIEWS * TRAIN + VAL) / 1e9
    speeds["work"] = work(model, cuts[1].name)
    speeds["gflops"] = peak("bfloat16" if bf16 else "float32")
    return speeds


def work(model, cut: str) -> dict[str, float]:
    """Multiplications and additions of one image, in 10⁹ operations: up to the cut, and after it."""
    found, subset, mflops = {"frozen": 0.0, "rest": 0.0}, "frozen", layer_mflops(model)
    for layer in model.layers:
        found[subset] += 1e-3 * mflops.get(layer.name, 0.0)
        if layer.name == cut:
            subset = "rest"
    return found


def peak(dtype: str) -> float:
    """Speed of one large convolution alone, in 10⁹ operations a second: what the processor can do."""
    channels, side = 512, 28
    image = tf.cast(tf.random.uniform((BATCH, side, side, channels)), dtype)
    kernel = tf.cast(tf.random.uniform((3, 3, channels, channels)), dtype)
    convolve = tf.function(lambda: tf.nn.conv2d(image, kernel, 1, "SAME"))
    seconds = []
    for _ in range(50):
        began = time.perf_counter()
        convolve()
        seconds.append(time.perf_counter() - began)
    return 2e-9 * BATCH * side**2 * 9 * channels**2 / min(seconds)


def totals(speeds: dict) -> dict[str, float]:
    """Seconds of the whole training, by what they are spent on."""
    found = {}
    if "frozen" in speeds:
        found["decoding, once"] = (TRAIN + VAL) / speeds["decoding"]["train"]
        found["frozen layers, once"] = (VIEWS * TRAIN + VAL) / speeds["frozen"]["train"]
    for name, epochs in (("head", HEAD_EPOCHS), ("fine", FINE_EPOCHS)):
        found[f"{name}, training"] = epochs * TRAIN / speeds[name]["train"]
        found[f"{name}, validation"] = epochs * VAL / speeds[name]["val"]
    return found | {"total": sum(found.values())}


ARMS = {
    "common, float32": (common, False),
    "common, bf16 and cache": (common, True),
    "ours, float32": (ours, False),
    "ours, bf16": (ours, True),
}


def processor() -> str:
    """Name of the processor and its bfloat16 units."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    lines = [line.split(":", 1) for line in text.splitlines() if ":" in line]
    known = {key.strip(): value.strip() for key, value in lines}
    units = [unit for unit in ("amx_bf16", "avx512_bf16") if unit in text]
    number = f"family {known.get('cpu family')}, model {known.get('model')}"
    return f"{known.get('model name')} ({number}), {', '.join(units) or 'no bfloat16 units'}"


def links(folder: Path, data_dir: str) -> str:
    """Fill ``folder/{train,val}/{NORMAL,PNEUMONIA}`` with links to the measured images; name of the data."""
    root = cx.find_data(data_dir)
    table = cx.make_split(scan(root), "patient", 0)
    for subset, count in (("train", IMAGES), ("val", IMAGES // 2)):
        rows = table[table["split"] == subset]
        rows = rows.sample(min(count, len(rows)), random_state=0)
        for path, label in rows[["path", "label"]].itertuples(index=False):
            target = folder / subset / ("PNEUMONIA" if label else "NORMAL") / path.replace("/", "_")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(root / path)
    return data_name(root)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--backbone", default="VGG16", choices=FROM)
    parser.add_argument("--data-dir", default="phantoms")
    parser.add_argument("--variant", choices=ARMS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.variant:
        function, bf16 = ARMS[given.variant]
        speeds = function(given.backbone, given.folder, bf16)
        speeds["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        if function is common and bf16:  # the cache of the whole training set
            side = get_backbone(given.backbone).image_size
            speeds["peak_gb"] += (TRAIN + VAL - 1.5 * IMAGES) * 3 * 4 * side**2 / 1e9
        print("\n" + json.dumps(speeds))
        return
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    measured = {}
    with tempfile.TemporaryDirectory() as place:
        name = links(Path(place) / "chest_xray", given.data_dir)
        os.environ["CHESTXRAY_CACHE"] = str(Path(place) / "cache")
        for variant in ARMS if cpu_has_bf16() else list(ARMS)[::2]:
            done = subprocess.run(
                [
                    sys.executable,
                    __file__,
                    "--backbone",
                    given.backbone,
                    "--variant",
                    variant,
                    "--folder",
                    str(Path(place) / "chest_xray"),
                ],
                stdout=subprocess.PIPE,
                check=True,
                text=True,
            )
            measured[variant] = json.loads(done.stdout.splitlines()[-1])
            measured[variant]["seconds"] = totals(measured[variant])
            print(
                f"{variant}: "
                + ", ".join(f"{key} {value:,.0f} s" for key, value in measured[variant]["seconds"].items()),
                flush=True,
            )
    slow = measured["common, float32"]["seconds"]["total"]
    print(f"\n{given.backbone}: {HEAD_EPOCHS} + {FINE_EPOCHS} epochs, {TRAIN} + {VAL} images, K = {VIEWS}")
    print(f"{'':24s}{'total':>10s}{'faster':>9s}{'memory':>10s}{'disk':>9s}{'limit':>9s}")
    for variant, speeds in measured.items():
        disk = f"{speeds['gigabytes']:.1f} GB" if "gigabytes" in speeds else ""
        limit = ""
        if "work" in speeds:
            # In training the rest costs three times its forward pass: activations, their gradients and the
            # weights' gradients, but for the gradients of its input. The head's work does not count.
            operations = (speeds["work"]["frozen"] + speeds["work"]["rest"]) * (VIEWS * TRAIN + VAL) + speeds[
                "work"
            ]["rest"] * FINE_EPOCHS * (3 * TRAIN + VAL)
            speeds["limit_seconds"] = operations / speeds["gflops"]
            limit = f"{speeds['limit_seconds']:,.0f} s"
        speeds["times_faster"] = slow / speeds["seconds"]["total"]
        print(
            f"{variant:24s}{speeds['seconds']['total']:>8,.0f} s{speeds['times_faster']:>8.1f}x"
            f"{speeds['peak_gb']:>7.1f} GB{disk:>9s}{limit:>9s}"
        )
    if name == "synthetic":
        return
    write_json(
        RESULTS / f"two_phase-{given.backbone}.json",
        {
            "schema": "chestxray.benchmark/1",
            "name": f"two_phase-{given.backbone}",
            "data": name,
            "processor": processor(),
            "cores": os.cpu_count(),
            "versions": versions(),
            "measured_images": IMAGES,
            "training_images": TRAIN,
            "validation_images": VAL,
            "epochs": [HEAD_EPOCHS, FINE_EPOCHS],
            "views": VIEWS,
            "unfreeze_from": FROM[given.backbone],
            "variants": measured,
        },
    )


if __name__ == "__main__":
    main()
