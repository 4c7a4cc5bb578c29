"""Framing experiment: training of networks without the information of the collimation.

    python benchmarks/framing.py restore --data-dir FOLDER --sizes SIZES.csv --work WORK
    python benchmarks/framing.py train --work WORK --masks MASKS.npz --split official --seed 0 [--cell NAME]
    python benchmarks/framing.py vgg16 --work WORK --masks MASKS.npz --weights FILE --seed 0 [--cell NAME]
    python benchmarks/framing.py originals --work WORK --originals ORIGINALS

``restore`` resizes squashed copies to the original aspect ratio from ``SIZES.csv`` (split, file, width,
height). It is not needed for originals (``WORK/chest_xray`` may be a link to them). ``train`` trains the
compact network once for each cell that is not done. ``framing_report.py`` reads the files in WORK, which are
not tracked.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestxray.data.augmentation import Augmentation
from chestxray.data.dataset import XrayData, load_data
from chestxray.data.images import ImageSettings, decode_image, preprocess
from chestxray.data.lungs import MODEL_HASH, lung_boxes, mask_boxes
from chestxray.data.masks import read_masks
from chestxray.evaluation.calibration import apply_platt, calibrate
from chestxray.evaluation.thresholds import choose_thresholds
from chestxray.files import project_path, whole_file, write_json

SIZE, EPOCHS, DRAWS = 128, 10, 5
CELLS = {  # resize rule and augmentation, from the simplest to the least simple
    "squash": ("stretch", Augmentation()),
    "scaling": ("stretch", Augmentation(stretch=0.3)),
    "lung_box": ("lung_box", Augmentation(edges=0.06)),
}
LOST = ("letterbox", *(f"{geometry}_style" for geometry in ("squash", "scaling", "letterbox", "lung_box")))
"""Recipes that lost; their code (letterbox with moved edges, tone, sharpness) is in commit 0aae8fa."""

KINDS = {"other": ("other", False), "same": ("same", False), "zoom": ("other", True)}  # donors, zoom only


@click.group()
def main() -> None:
    """Run the parts of the framing experiment; see the head of the file."""


@main.command()
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--sizes", type=click.Path(path_type=Path), required=True)
@click.option("--work", type=click.Path(path_type=Path), required=True)
def restore(data_dir: Path, sizes: Path, work: Path) -> None:
    """Write copies with the aspect ratio at origin, 224 px high; without a known size the median ratio."""
    table = pd.read_csv(sizes)
    ratios = dict(zip(table["split"] + "/" + table["file"], table["width"] / table["height"]))
    median = float(np.median(list(ratios.values())))
    for path in sorted(data_dir.rglob("*.jpeg")):
        name = path.relative_to(data_dir)
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        ratio = ratios.get(f"{name.parts[0]}/{name.name}", median)
        image = cv2.resize(image, (round(224 * ratio), 224), interpolation=cv2.INTER_CUBIC)
        with whole_file(work / "chest_xray" / name) as target:
            target.write_bytes(cv2.imencode(".jpeg", image, [cv2.IMWRITE_JPEG_QUALITY, 97])[1])


def boxes_of(data: XrayData, masks: Path, subset: str) -> NDArray:
    """Lung boxes of a subset from the masks, and from the package's network where there is none."""
    rows = data.subset(subset)
    shapes, known = read_masks(masks, rows, 224)
    boxes = np.empty((len(rows), 4))
    boxes[known] = mask_boxes(shapes)
    images = (decode_image((data.root / path).read_bytes()) for path in rows["path"][~known])
    boxes[~known] = lung_boxes(images)
    return boxes


def reframed(data: XrayData, masks: Path, work: Path) -> dict[str, NDArray]:
    """Validation images under another collimation, ``uint8`` (DRAWS, N, size, size), by kind of donor.

    They are stored, so that all trainings with one resize rule are asked about the same pixels.
    """
    settings = data.store.settings
    file = work / f"val-{data.split_hash}-{settings.resize}-{settings.size}-{MODEL_HASH}.npz"
    if not file.is_file():
        boxes = boxes_of(data, masks, "val")
        pixels = {}
        for kind, (donors, zoom_only) in KINDS.items():
            drawn = [data.reframed("val", draw, donors, zoom_only, boxes) for draw in range(DRAWS)]
            pixels[kind] = np.stack(drawn)[..., 0]
        with whole_file(file) as target, open(target, "wb") as stream:
            np.savez(stream, **pixels)
    with np.load(file) as stored:
        return {kind: stored[kind] for kind in KINDS}


def finished(work: Path, name: str) -> bool:
    """Whether the logits of a training lie in the work folder or in the repository."""
    file = project_path("results/framing_logits.npz")
    if (work / f"{name}.npz").is_file() or not file.is_file():
        return (work / f"{name}.npz").is_file()
    with np.load(file) as stored:
        return f"{name}/val" in stored


def score(model: Any, data: XrayData, warped: dict[str, NDArray], frozen: Path | None = None) -> dict:
    """Logits of validation, test and re-framed validation images.

    ``frozen`` is a file for what VGG16 gives at block4_pool, the same for all trainings with one resize rule.
    """
    import keras

    parts = {subset: data.images(subset)[..., 0] for subset in ("val", "test")} | warped
    images = np.concatenate([part.reshape(-1, *part.shape[-2:], 1) for part in parts.values()])
    if frozen:
        cut = model.get_layer("block4_pool").output
        if not frozen.is_file():
            with whole_file(frozen) as target, open(target, "wb") as file:
                np.save(file, keras.Model(model.input, cut).predict(images, batch_size=32, verbose=0))
        images, model = np.load(frozen), keras.Model(cut, model.output)
    logits = model.predict(images, batch_size=64, verbose=0)[:, 0]
    ends = np.cumsum([np.prod(part.shape[:-2]) for part in parts.values()])[:-1]
    found = dict(zip(parts, np.split(logits, ends)))
    return {part: values.reshape(parts[part].shape[:-2]) for part, values in found.items()}


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--masks", type=click.Path(path_type=Path), required=True)
@click.option("--split", default="official")
@click.option("--seed", type=int, required=True)
@click.option("--cell", "cells", multiple=True, type=click.Choice(list(CELLS)), default=tuple(CELLS))
def train(work: Path, masks: Path, split: str, seed: int, cells: tuple[str, ...]) -> None:
    """Train the compact network for each cell, and keep its logits."""
    import keras

    from chestxray.models.builders import build_compact_cnn
    from chestxray.models.settings import TrainSettings
    from chestxray.models.training import train as train_network

    for cell in cells:
        name = f"compact-{cell}-{split}-s0-t{seed}"
        if finished(work, name):
            continue
        resize, augmentation = CELLS[cell]
        image = ImageSettings(SIZE, resize)
        root = work / "chest_xray"
        data = load_data(root, split, image=image, train_seed=seed)
        settings = TrainSettings(
            epochs=EPOCHS,
            learning_rate=0.003,
            decay="cosine",
            warmup_epochs=1,
            stop_patience=None,
            augmentation=augmentation,
        )
        keras.utils.set_random_seed(seed)
        model = build_compact_cnn(SIZE)
        start = time.perf_counter()
        training = train_network(model, data, settings, work / f"{name}.checkpoint.npz")
        seconds = time.perf_counter() - start
        found = score(model, data, reframed(data, masks, work))
        keep(work, name, data, found, seconds, training.history, {"image": image, "settings": settings})
        with whole_file(work / f"{name}.keras") as target:
            model.save(target)
        (work / f"{name}.checkpoint.npz").unlink(missing_ok=True)


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--originals", type=click.Path(path_type=Path), required=True)
def originals(work: Path, originals: Path) -> None:
    """Compare the decisions on originals with those on their small copies, for each cell of seed 0."""
    from chestxray.deployment.classifier import load_model

    paths, rows = [path.relative_to(originals) for path in sorted(originals.rglob("*.jpeg"))], []
    data = load_data(work / "chest_xray", "official", image=ImageSettings(32))
    for cell, (resize, _) in CELLS.items():
        name = f"compact-{cell}-official-s0-t0"
        model, settings = load_model(work / f"{name}.keras"), ImageSettings(SIZE, resize)
        with np.load(work / f"{name}.npz") as stored:
            slope, intercept = calibrate(stored["val"], data.targets("val"))
            probabilities = apply_platt(stored["val"], slope, intercept)
        threshold = choose_thresholds(data.targets("val"), probabilities)[0]["youden"]
        logits = []
        for root in (originals, work / "chest_xray"):
            pixels = [preprocess(root / path, settings) for path in paths]
            logits.append(model.predict(np.stack(pixels)[..., None], verbose=0)[:, 0])
        positive = [apply_platt(values, slope, intercept) >= threshold for values in logits]
        shift = logits[0] - logits[1]
        row = {"cell": cell, "images": len(paths), "agree": float(np.mean(positive[0] == positive[1]))}
        rows.append(row | {"mean_shift": float(shift.mean()), "mean_absolute": float(np.abs(shift).mean())})
        print(rows[-1], flush=True)
    write_json(project_path("results/framing_originals.json"), rows)


@main.command()
@click.option("--work", type=click.Path(path_type=Path), required=True)
@click.option("--masks", type=click.Path(path_type=Path), required=True)
@click.option("--weights", required=True)
@click.option("--seed", type=int, required=True)
@click.option("--views", default=4)
@click.option("--cell", "cells", multiple=True, type=click.Choice(list(CELLS)), default=("squash",))
def vgg16(work: Path, masks: Path, weights: str, seed: int, views: int, cells: tuple[str, ...]) -> None:
    """Train head and last block of VGG16 on `official` for each cell, by the recipe on record at 128 px.

    All seeds share the stored views of seed 0; they differ in first weights and dropout.
    """
    import keras

    from chestxray.models.builders import build_transfer_model
    from chestxray.models.settings import TrainSettings
    from chestxray.models.training import fine_tune, train_head

    for cell in cells:
        name = f"vgg16-{cell}-v{views}-official-s0-t{seed}"
        if finished(work, name):
            continue
        resize, augmentation = CELLS[cell]
        image = ImageSettings(SIZE, resize)
        data = load_data(work / "chest_xray", "official", image=image)
        common = {"augmentation": augmentation, "views": views, "class_weights": False, "stop_patience": 6}
        head = TrainSettings(epochs=3, learning_rate=1e-3, **common)
        fine = TrainSettings(epochs=8, learning_rate=1e-4, decay="cosine", warmup_epochs=1, **common)
        keras.utils.set_random_seed(seed)
        model, _ = build_transfer_model("VGG16", SIZE, (256,), 0.5, weights)
        start, block = time.perf_counter(), "block5_conv1"
        phases = [train_head(model, data, head, work / f"{name}.head.npz", unfreeze_next=block)]
        phases.append(fine_tune(model, data, fine, block, work / f"{name}.fine.npz"))
        seconds = time.perf_counter() - start
        history = pd.concat([phase.history for phase in phases])
        found = score(model, data, reframed(data, masks, work), work / f"{resize}.block4_pool.npy")
        keep(work, name, data, found, seconds, history, {"image": image, "head": head, "fine": fine})


def keep(
    work: Path,
    name: str,
    data: XrayData,
    found: dict[str, NDArray],
    seconds: float,
    history: pd.DataFrame,
    settings: dict[str, Any],
) -> None:
    """Write logits and description of one training."""
    described = {key: dataclasses.asdict(value) for key, value in settings.items()}
    described |= {"name": name, "seconds": round(seconds, 1), "split_hash": data.split_hash}
    described["lungs"] = MODEL_HASH
    described["history"] = history.map(lambda v: float(f"{v:.6g}") if isinstance(v, float) else v).to_dict(
        "list"
    )
    write_json(work / f"{name}.json", described)
    with whole_file(work / f"{name}.npz") as target, open(target, "wb") as file:
        np.savez(file, **{key: value.astype(np.float32) for key, value in found.items()})
    val = data.targets("val")
    print(name, f"{seconds:.0f} s", "val", round(auroc(val, found["val"]), 4), end=" ")
    print(*(f"{kind} {np.mean([auroc(val, row) for row in found[kind]]):.4f}" for kind in KINDS), flush=True)


def auroc(labels: NDArray, logits: NDArray) -> float:
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(labels, logits))


if __name__ == "__main__":
    main()
