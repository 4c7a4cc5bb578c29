"""Do heatmaps point at lesions that are known? Custom CNN and VGG16 on phantoms of other patients.

    python benchmarks/phantom_pointing.py --weights FILE_OR_FOLDER

Trains both on 2,000 phantoms of 128 px (VGG16 from ImageNet weights: head, then
block 5), and scores the maps of the last convolution and of the one before its
resolution was halved, on all pneumonias of the test part: how often the peak
lies inside the lesion, how much of the map does, and the same of a bell over
the middle of the film, which knows nothing. Writes
results/benchmarks/phantom_pointing.json.
"""

import argparse
from collections.abc import Callable

import keras
import numpy as np

import chestxray as cx
from chestxray.evaluation.saliency import control_maps, energy_inside, mean_interval, pointing_game
from chestxray.files import project_path, write_json
from chestxray.gradcam import enlarge, find_layer, gradcam

IMAGES, SIDE = 2_858, 128  # 70 % of the images are for training
INNER = {"custom_cnn": "block4_conv2", "VGG16": "block4_conv3"}


def custom_cnn(data: cx.XrayData, weights: str) -> keras.Model:
    model = cx.build_custom_cnn(SIDE)
    cx.train(
        model,
        data,
        cx.TrainSettings(
            epochs=15,
            learning_rate=0.002,
            decay="cosine",
            warmup_epochs=1,
            stop_patience=None,
            augmentation=cx.Augmentation(),
        ),
    )
    return model


def vgg16(data: cx.XrayData, weights: str) -> keras.Model:
    model, _ = cx.build_transfer_model("VGG16", SIDE, [64], 0.3, weights, "mixed_bfloat16")
    settings = {"augmentation": cx.Augmentation(), "views": 2}
    cx.train_head(model, data, cx.TrainSettings(epochs=3, **settings), unfreeze_next="block5_conv1")
    cx.fine_tune(
        model,
        data,
        cx.TrainSettings(epochs=6, learning_rate=1e-4, decay="cosine", warmup_epochs=1, **settings),
        "block5_conv1",
    )
    return model


NETWORKS: dict[str, Callable] = {"custom_cnn": custom_cnn, "VGG16": vgg16}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--weights", default="imagenet")
    given = parser.parse_args()
    root = cx.phantom_dataset(IMAGES, SIDE, seed=10)
    data = cx.load_data(root, "patient", 0, cx.ImageSettings(SIDE))
    test = data.subset("test").query("label == 1").reset_index(drop=True)
    lesions, known = cx.read_masks(root.parent / "masks", test, SIDE)
    test = test[known]
    films, groups, chance = data.store.images(test), test["group"], lesions.mean(axis=(1, 2))

    def score(maps: np.ndarray) -> dict[str, float]:
        found = {}
        for name, values in (("peak", pointing_game(maps, lesions)), ("share", energy_inside(maps, lesions))):
            low, high = mean_interval(values, groups)
            found |= {name: float(np.nanmean(values)), f"{name}_low": low, f"{name}_high": high}
        return found

    rows = [
        {
            "network": "none",
            "maps": "a bell over the middle",
            **score(control_maps(films[..., 0])["centred Gaussian"]),
        }
    ]
    for name, build in NETWORKS.items():
        cx.set_seed(0)
        model = build(data, given.weights)
        for layer in (find_layer(model).name, INNER[name]):
            for method in ("gradcam", "hirescam"):
                maps = enlarge(gradcam(model, films, layer, method=method)[0], (SIDE, SIDE))
                rows.append({"network": name, "maps": f"{method} at {layer}", **score(maps)})
                print(rows[-1], flush=True)
    write_json(
        project_path("results/benchmarks/phantom_pointing.json"),
        {
            "schema": "chestxray.benchmark/1",
            "name": "phantom_pointing",
            "data": "synthetic",
            "images": len(test),
            "patients": int(groups.nunique()),
            "chance": float(chance.mean()),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
