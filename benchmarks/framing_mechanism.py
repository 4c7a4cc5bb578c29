"""Effect of the framing of the published test set on trained models; nothing is trained.

    python benchmarks/framing_mechanism.py --data-dir FOLDER --masks MASKS.npz --sizes SIZES.csv MODEL …

Writes two measurements to ``results/framing_mechanism.json``:

- *Doses*: normals of the published test folder are collimated, step by step, like normals of the training
  folder, and validation normals like normals of the test folder. The control moves the boxes by the same
  distance towards boxes of the same folder. The change of specificity is paired, with intervals over
  patients. It is also measured on images with their original aspect ratio (SIZES.csv: split, file, width,
  height).
- *Thirds*: specificity of each recorded model of the split ``official`` by the shape of the lung box. The
  cut points are the tertiles of the training normals.

Doses of other models stay in the file. The lung boxes come from the masks. Test images are scored again, and
this is logged.
"""

from pathlib import Path
from typing import Any

import click
import cv2
import numpy as np
import pandas as pd
from numpy.typing import NDArray

from chestxray.data.catalog import scan
from chestxray.data.dataset import load_data
from chestxray.data.images import ImageSettings, decode_image, fit, resize
from chestxray.data.lungs import crop_window, mask_boxes, window_between
from chestxray.data.masks import read_masks
from chestxray.data.splits import make_split
from chestxray.deployment.classifier import load_classifier
from chestxray.evaluation.metrics import bootstrap, percentile_interval, wilson_interval
from chestxray.files import project_path, read_json, write_json
from chestxray.results import log_test_evaluation, read_predictions, read_results

DOSES = (0.2, 0.4, 0.6, 0.8, 1.0)
RESULTS = project_path("results")


def shape(boxes: NDArray) -> NDArray:
    """Width by height of boxes (N, 4) in the squashed image."""
    return (boxes[:, 2] - boxes[:, 0]) / (boxes[:, 3] - boxes[:, 1])


def strength(boxes: NDArray, targets: NDArray) -> NDArray:
    """How far a warp goes: mean distance of the edges of two boxes."""
    return np.abs(boxes - targets).mean(axis=-1)


def pick_donors(boxes: NDArray, targets: NDArray, own: NDArray) -> tuple[NDArray, NDArray]:
    """Boxes of random donors, (N, 4), and of donors of the own folder that are about as far away."""
    rng = np.random.default_rng(0)
    donors = targets[rng.integers(len(targets), size=len(boxes))]
    controls = []
    for box, donor in zip(boxes, donors):
        away = strength(box, own)
        nearest = np.argsort(np.abs(away - strength(box, donor)))[:5]
        controls.append(own[rng.choice(nearest)])
    return donors, np.array(controls)


def scores(classifier: Any, images: list[NDArray]) -> NDArray:
    pixels = np.stack([fit(image, classifier.image_settings) for image in images])[..., np.newaxis]
    return classifier.probabilities(classifier.score(pixels).logits)


def paired_change(before: NDArray, after: NDArray, groups: NDArray) -> dict[str, float]:
    """Change of the share of negative decisions, with a 95 % interval over patients."""
    change = after.astype(float) - before

    def mean(weights: NDArray) -> dict[str, NDArray]:
        return {"change": weights @ change / weights.sum(axis=1)}

    return percentile_interval(*bootstrap(mean, np.zeros(len(change), int), groups)["change"])


def doses(
    classifier: Any, images: list[NDArray], boxes: NDArray, donors: NDArray, groups: NDArray
) -> list[dict[str, Any]]:
    """Specificity at each dose of re-framing, and its paired change."""
    threshold = classifier.threshold("youden")
    plain = scores(classifier, images) < threshold
    rows = []
    for dose in DOSES:
        targets = boxes + dose * (donors - boxes)
        pairs = zip(images, boxes, targets)
        warped = [crop_window(image, window_between(box, target)) for image, box, target in pairs]
        negative = scores(classifier, warped) < threshold
        row = {"dose": dose, "specificity": float(negative.mean()), "plain": float(plain.mean())}
        rows.append(row | {"change": paired_change(plain, negative, groups)})
    return rows


def restored(image: NDArray, ratio: float) -> NDArray:
    """A squashed copy with the aspect ratio (width by height) at origin, in a square with repeated edges."""
    image = cv2.resize(image, (round(len(image) * ratio), len(image)), interpolation=cv2.INTER_CUBIC)
    return resize(image, ImageSettings(max(image.shape), "letterbox"))


def letterboxed(boxes: NDArray, ratios: NDArray) -> NDArray:
    """Lung boxes (N, 4) of :func:`restored` images."""
    share = np.stack(
        [np.minimum(1, ratios), np.minimum(1, 1 / ratios)], axis=1
    )  # of the square that is filled
    return 0.5 + (boxes - 0.5) * np.tile(share, 2)


def thirds(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Specificity of the recorded models of ``official`` by third of the lung box's shape."""
    normals = table[(table["label"] == 0) & table["shape"].notna()]
    cuts = normals.loc[normals["official_split"] == "train", "shape"].quantile([1 / 3, 2 / 3])
    labels = ["framed like pneumonias", "in between", "framed like training normals"]
    bins = [-np.inf, *cuts, np.inf]
    rows = []
    for result in read_results(RESULTS):
        if result["split_rule"] != "official" or "test" not in result["metrics"]:
            continue
        predictions = read_predictions(RESULTS, result["name"]).merge(normals[["path", "shape"]], on="path")
        predictions["third"] = pd.cut(predictions["shape"], bins, labels=labels)
        negative = predictions["probability"] < result["thresholds"]["youden"]
        for subset in ("val", "test"):
            for third in labels:
                chosen = (predictions["split"] == subset) & (predictions["third"] == third)
                count, right = int(chosen.sum()), int(negative[chosen].sum())
                low, high = (float(v) for v in wilson_interval(right, count)[1:])
                row = {"name": result["name"], "subset": subset, "third": third, "images": count}
                rows.append(row | {"negative": right, "low": low, "high": high})
    return rows


@click.command()
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
@click.option("--masks", type=click.Path(path_type=Path), required=True)
@click.option("--sizes", type=click.Path(path_type=Path), required=True)
@click.argument("models", nargs=-1, type=click.Path(path_type=Path))
def main(data_dir: Path, masks: Path, sizes: Path, models: tuple[Path, ...]) -> None:
    """Measure doses for each saved MODEL and thirds for all recorded ones."""
    catalog = scan(data_dir)
    table = make_split(catalog, "official")
    shapes, known = read_masks(masks, table, 224)
    boxes = np.full((len(table), 4), np.nan)
    boxes[known] = mask_boxes(shapes)
    table["shape"] = shape(boxes)
    listed = pd.read_csv(sizes)
    ratios = pd.Series(
        (listed["width"] / listed["height"]).to_numpy(), listed["split"] + "/" + listed["file"]
    )
    names = [f"{path.split('/')[0]}/{Path(path).name}" for path in table["path"]]
    ratios = ratios.reindex(names).fillna(ratios.median()).to_numpy()
    normals = table[(table["label"] == 0) & table["shape"].notna()].groupby("split")["shape"]
    middle = normals.get_group("test").median()  # half of the test normals are narrower for their height
    counts = {part: [int((shapes < middle).sum()), len(shapes)] for part, shapes in normals}
    found: dict[str, Any] = {"thirds": thirds(table), "below the median test normal": counts, "doses": []}
    for folder in models:
        classifier = load_classifier(folder)
        training = classifier.card["training_data"]
        how = {"split_seed": training["split_seed"], "image": classifier.image_settings}
        data = load_data(data_dir, training["split_rule"], **how)
        split = data.table.set_index("path")["split"].reindex(table["path"]).to_numpy()
        normal = (table["label"] == 0).to_numpy() & known
        published = (table["official_split"] == "test").to_numpy()
        name = classifier.card["name"]
        log_test_evaluation(RESULTS.parent, name, data, {"framing": "doses on the normals"})
        for part, chosen, donors_from in (
            ("test normals", normal & published & (split == "test"), normal & ~published),
            ("validation normals", normal & ~published & (split == "val"), normal & published),
        ):
            groups, own = table.loc[chosen, "group"].to_numpy(), normal & ~donors_from & ~chosen
            own = own if own.sum() > 50 else chosen
            for version, framed in (("squashed", boxes), ("true aspect ratio", letterboxed(boxes, ratios))):
                images = [decode_image((data_dir / path).read_bytes()) for path in table["path"][chosen]]
                if version != "squashed":
                    images = [restored(*pair) for pair in zip(images, ratios[chosen])]
                donors, controls = pick_donors(framed[chosen], framed[donors_from], framed[own])
                for kind, targets in (("re-framed", donors), ("control", controls)):
                    row = {"model": name, "part": part, "images": len(images), "version": version}
                    row |= {"kind": kind, "strength": float(strength(framed[chosen], targets).mean())}
                    result = doses(classifier, images, framed[chosen], targets, groups)
                    found["doses"].append(row | {"doses": result})
                    last = result[-1]
                    print(
                        row, f"{last['plain']:.3f} -> {last['specificity']:.3f}", last["change"], flush=True
                    )
    written = RESULTS / "framing_mechanism.json"
    former = read_json(written)["doses"] if written.is_file() else []
    measured = {row["model"] for row in found["doses"]}
    found["doses"] = [row for row in former if row["model"] not in measured] + found["doses"]
    write_json(written, found)


if __name__ == "__main__":
    main()
