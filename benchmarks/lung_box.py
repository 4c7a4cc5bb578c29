"""Training of the network that finds the lung box, ``chestxray/data/lungs.onnx``, and its error.

    python benchmarks/lung_box.py --data-dir FOLDER --masks MASKS.npz [--phantoms-only] [--epochs 60]

It is trained on phantoms, whose lungs are known, and on the masks of patients that are in the training subset
of all recorded splits (``--phantoms-only`` uses no masks and writes no network). The error is measured on all
images with a mask, by folder, class, and whether the patient was used. Writes ``results/lung_box.json``.
"""

import os
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import click
import cv2
import keras
import numpy as np
import onnx
import pandas as pd
from keras import layers
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold, cross_val_predict

from chestxray.data.catalog import scan
from chestxray.data.images import ImageSettings, preprocess
from chestxray.data.lungs import GRID, MODEL, SIDE, crop_window, lung_boxes, mask_boxes, window_between
from chestxray.data.masks import read_masks
from chestxray.data.splits import make_split
from chestxray.files import project_path, write_json
from chestxray.parallel import in_processes
from chestxray.phantoms import radiograph
from chestxray.phantoms.anatomy import make_anatomy
from chestxray.schema import SUBTYPES

RECORDED = [(rule, seed) for rule in ("official", "patient", "image") for seed in range(3)]
SPLITS = "official, patient and image with seeds 0 to 2"
BATCH, STEPS = 64, 150
FIRST_PHANTOM = 500_000  # of these patients the data sets of phantoms show none
SOURCE = 160  # side of the images that views are drawn from


def render(size: int, patients: list[int]) -> list[tuple[NDArray, NDArray]]:
    """Phantoms with a field of view of 23 to 29 cm, and the boxes of their lungs."""
    rendered = []
    for patient in patients:
        radiograph.FIELD = float(np.random.default_rng([7, patient]).uniform(23, 29))  # of this process alone
        pose_rng, lesion_rng, exposure_rng = (np.random.default_rng([patient, 1, k]) for k in range(3))
        anatomy = make_anatomy(patient)
        rays = radiograph.Rays.through(radiograph.make_pose(pose_rng), size)
        path, air = radiograph.line_integrals(anatomy, rays, pose_rng)
        subtype = SUBTYPES[patient % 3]
        if subtype != "normal":
            path = path + radiograph.draw_lesion(subtype, anatomy, rays, air=air, rng=lesion_rng)
        box = mask_boxes(air.sum(axis=0, keepdims=True) > 0.3)[0]
        rendered.append((radiograph.expose(path, rays, exposure_rng), box))
    return rendered


def draw(image: NDArray, box: NDArray, rng: np.random.Generator) -> tuple[NDArray, NDArray]:
    """Show an image under another collimation, exposure and sharpness; (SIDE, SIDE), and its box."""
    size = rng.uniform(0.45, 0.98, 2)
    centre = 0.5 + rng.uniform(-1, 1, 2) * np.minimum((0.12, 0.15), (1 - size) / 2 + 0.02)
    window = window_between(box, np.concatenate([centre - size / 2, centre + size / 2]))
    window = np.clip(window, -0.08, 1.08)  # little may be invented
    sides = np.tile(window[2:] - window[:2], 2)
    box = np.clip((box - np.tile(window[:2], 2)) / sides, 0, 1)
    image = cv2.resize(crop_window(image, window), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    if rng.random() < 0.5:
        image, box = image[:, ::-1], np.array([1 - box[2], box[1], 1 - box[0], box[3]])
    if rng.random() < 0.3:
        image = cv2.createCLAHE(rng.uniform(1, 5), (4, 4)).apply(np.ascontiguousarray(image))
    grey = image.astype(np.float32) / 255
    if rng.random() < 0.5:
        grey = np.maximum(grey, 1e-3) ** np.exp(rng.uniform(-0.7, 0.7))
    if rng.random() < 0.3:
        low, high = np.percentile(grey, (rng.uniform(0, 5), rng.uniform(95, 100)))
        grey = np.clip((grey - low) / max(high - low, 0.05), 0, 1)
    if rng.random() < 0.4:
        field = rng.normal(0, 0.15, (3, 3)).astype(np.float32)
        grey = grey + cv2.resize(field, (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    if rng.random() < 0.3:
        grey = cv2.GaussianBlur(grey, (0, 0), rng.uniform(0.3, 1.2))
    if rng.random() < 0.3:
        grey = grey + rng.normal(0, rng.uniform(0, 0.06), grey.shape)
    grey = grey.mean() + (grey - grey.mean()) * rng.uniform(0.6, 1.3) + rng.uniform(-0.2, 0.2)
    for _ in range(rng.integers(0, 3)):  # letters and tubes
        x, y, side = *rng.integers(0, SIDE - 6, 2), rng.integers(1, 5)
        grey[y : y + side, x : x + side] = rng.uniform(0, 1)
    return np.clip(np.rint(255 * grey), 0, 255), box


def draw_batches(folder: Path, share: float, real: int, seeds: list[int]) -> list:
    """Batches of training views; ``share`` of them from the last ``real`` images of the folder's arrays."""
    images, boxes = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("images", "boxes"))
    batches = []
    for seed in seeds:
        rng, drawn = np.random.default_rng([1, seed]), []
        for _ in range(BATCH):
            if real and rng.random() < share:
                row = len(images) - 1 - rng.integers(real)
            else:
                row = rng.integers(len(images) - real)
            drawn.append(draw(images[row], boxes[row], rng))
        views, targets = zip(*drawn)
        batches.append((np.stack(views).astype(np.uint8), np.stack(targets).astype(np.float32)))
    return batches


def build_network() -> keras.Model:
    """Build the regressor: images (N, 64, 64, 1) in 0-255 to boxes (N, 4). No 3 x 3 layer has stride 1."""
    inputs = keras.Input((SIDE, SIDE, 1))
    x = layers.Rescaling(1 / 255)(inputs)
    for filters, kernel, stride in ((16, 3, 2), (32, 3, 2), (64, 3, 2), (64, 1, 1), (64, 3, 2), (32, 1, 1)):
        x = layers.ZeroPadding2D(1)(x) if kernel == 3 else x
        x = layers.Conv2D(filters, kernel, stride, use_bias=False)(x)
        x = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(x))
    x = layers.Dense(64, use_bias=False)(layers.Flatten()(x))
    x = layers.ReLU()(layers.BatchNormalization(momentum=0.95)(x))
    return keras.Model(inputs, layers.Dense(4, bias_initializer=keras.initializers.Constant(0.5))(x))


def fit(network: keras.Model, folder: Path, epochs: int, share: float, real: int) -> None:
    """Train on views that are drawn in other processes, new ones in every epoch."""
    schedule = keras.optimizers.schedules.CosineDecay(2e-3, epochs * STEPS)
    network.compile(keras.optimizers.Adam(schedule), loss="mae", jit_compile=False)
    work, together = partial(draw_batches, folder, share, real), 6  # epochs whose views are drawn at a time
    for first in range(0, epochs, together):
        seeds = list(range(first * STEPS, min(first + together, epochs) * STEPS))
        batches = [batch for chunk in in_processes(work, seeds, "views") for batch in chunk]
        losses = [float(network.train_on_batch(images[..., None], boxes)) for images, boxes in batches]
        print(f"epoch {first + len(batches) // STEPS}/{epochs}: loss {losses[-1]:.4f}", flush=True)


def write_onnx(network: keras.Model, images: NDArray, path: Path) -> None:
    """Write the network with whole-number activations, exact in float32 on every machine.

    Batch normalisation is folded. Each activation is rounded to a whole number and clipped to 0-255. The
    scale clips 0.01 % of the activations of ``images`` (N, 64, 64, 1). Weights are multiples of
    2**-k, with the largest k that keeps every sum below 2**24 units. The last layer gives units of 1/GRID.
    """
    nodes, values, current, scale = [], [], "image", 1 / 255
    flow = [layer for layer in network.layers if isinstance(layer, (layers.Conv2D, layers.Dense))]
    for number, layer in enumerate(flow):
        weights = layer.get_weights()
        kernel, bias = weights[0], weights[1] if len(weights) > 1 else np.zeros(weights[0].shape[-1])
        following = network.layers[network.layers.index(layer) + 1 :]
        last = number == len(flow) - 1
        if not last:
            gamma, beta, mean, variance = following[0].get_weights()
            factor = gamma / np.sqrt(variance + following[0].epsilon)
            kernel, bias = kernel * factor, beta + (bias - mean) * factor
            outputs = keras.Model(network.input, following[1].output).predict(images, verbose=0)
            following_scale = float(np.quantile(outputs, 0.9999)) / 255
        else:
            following_scale = 1 / GRID
        kernel, bias = kernel * scale / following_scale, bias / following_scale + 0.5
        flat = np.abs(kernel.reshape(-1, kernel.shape[-1]))
        most = (255 * flat.sum(axis=0) + np.abs(bias)).max()
        unit = 2.0 ** -int(np.floor(np.log2(2**24 / most) - 0.01))
        kernel, bias = np.rint(kernel / unit) * unit, np.rint(bias / unit) * unit
        if isinstance(layer, layers.Conv2D):
            size, stride = layer.kernel_size[0], layer.strides[0]
            kernel = kernel.transpose(3, 2, 0, 1)
            options = {"kernel_shape": [size, size], "strides": [stride, stride], "pads": [size // 2] * 4}
            kind = "Conv"
        else:
            if kernel.shape[0] != 64:  # the flattened maps: Keras' order is rows, columns, channels
                side = SIDE // 16
                kernel = kernel.reshape(side, side, -1, kernel.shape[-1]).transpose(2, 0, 1, 3)
                kernel = kernel.reshape(-1, kernel.shape[-1])
                nodes.append(helper.make_node("Flatten", [current], ["flat"]))
                current = "flat"
            kind, options = "Gemm", {}
        names = [f"w{number}", f"b{number}"]
        values += [numpy_helper.from_array(np.float32(v), n) for v, n in zip((kernel, bias), names)]
        nodes.append(helper.make_node(kind, [current, *names], [f"sum{number}"], **options))
        nodes.append(helper.make_node("Floor", [f"sum{number}"], ["box" if last else f"floor{number}"]))
        if not last:
            nodes.append(helper.make_node("Clip", [f"floor{number}", "low", "high"], [f"out{number}"]))
        current, scale = f"out{number}", following_scale
    values += [numpy_helper.from_array(np.float32(v), n) for v, n in ((0, "low"), (255, "high"))]
    graph = helper.make_graph(
        nodes,
        "lungs",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 1, SIDE, SIDE])],
        [helper.make_tensor_value_info("box", TensorProto.FLOAT, [1, 4])],
        values,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def report(predicted: NDArray, truth: NDArray, table: pd.DataFrame, used: NDArray) -> dict[str, Any]:
    """Errors by folder, class and use; what the error tells about the label; abstentions by class."""
    error = predicted - truth
    table = table.assign(
        used=used,
        abstained=np.isnan(error[:, 0]),
        x=np.abs(error[:, [0, 2]]).mean(axis=1),
        y=np.abs(error[:, [1, 3]]).mean(axis=1),
        width=error[:, 2] - error[:, 0],
        height=error[:, 3] - error[:, 1],
    )
    keys = ["used", "official_split", "label"]
    rows = table.groupby(keys)[["x", "y", "width", "height", "abstained"]].mean()
    rows = rows.assign(images=table.groupby(keys).size()).round(4).reset_index()
    known = ~table["abstained"].to_numpy() & ~used
    unseen = table[known]
    folds = StratifiedGroupKFold(5, shuffle=True, random_state=0)
    labels = unseen["label"].to_numpy()

    def auroc(features: NDArray) -> float:
        features = features[known] / features[known].std(axis=0)
        how = {"groups": unseen["group_conservative"], "cv": folds, "method": "decision_function"}
        scores = cross_val_predict(LogisticRegression(), features, labels, **how)
        return round(float(roc_auc_score(labels, scores)), 4)

    means = unseen.groupby("label")[["x", "y", "width", "height"]].mean()
    return {
        "by": rows.to_dict("records"),
        "unseen": {
            "images": int(known.sum()),
            "x": float(unseen["x"].mean()),
            "y": float(unseen["y"].mean()),
            "difference_between_classes": (means.loc[1] - means.loc[0]).round(4).to_dict(),
            "abstained": table.loc[~used].groupby("label")["abstained"].mean().round(4).to_dict(),
        },
        "auroc_of_the_label": {"box": auroc(predicted), "mask box": auroc(truth), "error": auroc(error)},
    }


CARD = """# Lung box network

`lungs.onnx` estimates the box of both lungs in a frontal chest X-ray.
It is research software, not a medical device.

- **Input**: `image`, float32 (1, 1, 64, 64), the whole image stretched to 64 × 64 grey pixels in 0–255.
- **Output**: `box`, whole numbers left, top, right, bottom in 1/256 of the image's width and height.
- **Architecture**: six convolutions and two dense layers, {parameters:,} parameters, {bytes:,} bytes. Weights
  and activations are whole numbers in units of a power of two, so that every machine computes the same box.
- **Training data**: {phantoms:,} synthetic phantoms of this project, and the lung masks of {images} images of
  "Chest X-Ray Images (Pneumonia)" (Kermany, Zhang, Goldbaum, Mendeley Data, doi 10.17632/rscbjbr9sj,
  CC BY 4.0). The masks are from the V7 COVID-19 X-ray dataset (CC BY 4.0). Their patients are in the
  training subset of all recorded splits ({splits}).
- **Error** on {unseen:,} images of other patients, in fractions of the side: {x:.3f} in x, {y:.3f} in y.
  Mean error of pneumonia minus normal images: height {height:+.3f}, width {width:+.3f}. A linear model
  predicts the label from the error with AUROC {error:.2f}, from the true box with {box:.2f}. The number of
  epochs was chosen with these images, so that the error is slightly too small.
- **Limits**: children of one hospital, and phantoms. The masks do not define which part of the recess behind
  the diaphragm belongs to a lung. An implausible box is not used.

`python benchmarks/lung_box.py` trains the network; the numbers are in `results/lung_box.json`.
"""


def write_card(found: dict[str, Any], network: Path) -> None:
    """Write the model card beside the network."""
    unseen, aurocs = found["unseen"], found["auroc_of_the_label"]
    difference = unseen["difference_between_classes"]
    values = {
        "parameters": found["parameters"],
        "bytes": network.stat().st_size,
        "phantoms": found["phantoms"],
        "images": sum(row["images"] for row in found["by"] if row["used"]),
        "splits": SPLITS,
        "unseen": unseen["images"],
        "x": unseen["x"],
        "y": unseen["y"],
        "height": difference["height"],
        "width": difference["width"],
        "error": aurocs["error"],
        "box": aurocs["mask box"],
    }
    network.with_suffix(".md").write_text(CARD.format(**values), encoding="utf-8")


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--masks", type=click.Path(path_type=Path), required=True)
@click.option("--phantoms-only", is_flag=True)
@click.option("--epochs", default=60)
@click.option("--phantoms", default=3000)
@click.option("--share", default=0.7, help="Share of the views that come from real images.")
def main(data_dir: Path, masks: Path, phantoms_only: bool, epochs: int, phantoms: int, share: float) -> None:
    """Train, write the network, and report its error."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    catalog = scan(data_dir)
    shapes, known = read_masks(masks, catalog, 224)
    table, truth = catalog[known].reset_index(drop=True), mask_boxes(shapes)
    sane = (truth[:, 2] - truth[:, 0]) > 0.35  # one mask of the source shows one lung only
    table, truth = table[sane].reset_index(drop=True), truth[sane]
    images = np.stack([preprocess(data_dir / path, ImageSettings(224)) for path in table["path"]])
    crossing: set[str] = set()
    for rule, seed in RECORDED:
        split = make_split(catalog, rule, seed)
        crossing |= set(split.loc[split["split"] != "train", "group_conservative"])
    used = ~table["group_conservative"].isin(crossing).to_numpy() & (not phantoms_only)
    done = in_processes(
        partial(render, SOURCE), [FIRST_PHANTOM + number for number in range(phantoms)], "phantoms"
    )
    sources = [pair for chunk in done for pair in chunk]
    small = [cv2.resize(image, (SOURCE, SOURCE), interpolation=cv2.INTER_AREA) for image in images[used]]
    sources += list(zip(small, truth[used]))
    keras.utils.set_random_seed(0)
    network = build_network()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "images.npy", np.stack([image for image, _ in sources]))
        np.save(folder / "boxes.npy", np.stack([box for _, box in sources]))
        fit(network, folder, epochs, share, int(used.sum()))
        batches = draw_batches(folder, share, int(used.sum()), list(range(10**6, 10**6 + 10)))
    if phantoms_only:
        small = np.stack([cv2.resize(i, (SIDE, SIDE), interpolation=cv2.INTER_AREA) for i in images])
        predicted = network.predict(small[..., None].astype(np.float32), verbose=0)
    else:
        write_onnx(network, np.concatenate([views for views, _ in batches])[..., None], MODEL)
        predicted = lung_boxes(images)
    found = report(predicted, truth, table, used)
    found |= {"parameters": network.count_params(), "phantoms": phantoms, "epochs": epochs, "share": share}
    path = project_path("results/lung_box.json")
    write_json(path.with_name("lung_box_phantoms_only.json") if phantoms_only else path, found)
    if not phantoms_only:
        write_card(found, MODEL)
    print(pd.DataFrame(found["by"]).to_string(), found["unseen"], found["auroc_of_the_label"], sep="\n")


if __name__ == "__main__":
    main()
