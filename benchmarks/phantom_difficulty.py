"""Difficulty of the phantoms: a small network is trained on 2,000 of them and evaluated on other patients.

    python benchmarks/phantom_difficulty.py

Writes results/phantom_difficulty.json, and the network to saved_models/phantom_cnn. With it, notebook 05
shows heatmaps of known lesions. It is too slow for the tests, which check what is possible without a network.
"""

import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path

import keras

import chestxray as cx
from chestxray.files import whole_folder, write_json
from chestxray.models.training import summarise
from chestxray.phantoms import PHANTOM_VERSION

IMAGES, SIDE, EPOCHS = 2_858, 128, 25  # 70 % of the images are for training
REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    data = cx.load_data(cx.phantom_dataset(IMAGES, SIDE, seed=10), "patient", 0, cx.ImageSettings(SIDE))
    keras.utils.set_random_seed(0)
    model = cx.build_compact_cnn(SIDE)
    settings = cx.TrainSettings(
        epochs=EPOCHS,
        learning_rate=0.003,
        decay="cosine",
        warmup_epochs=1,
        stop_patience=None,
        augmentation=cx.Augmentation(),
    )
    training = cx.train(model, data, settings)
    with tempfile.TemporaryDirectory() as folder:
        found = cx.record_model(
            model,
            data,
            "phantom_cnn",
            folder,
            weights="random",
            parameters={"architecture": "compact_cnn", **asdict(settings)},
            training=summarise([training], "float32", "CPU"),
        )
        with whole_folder(REPOSITORY / "saved_models" / "phantom_cnn") as target:
            shutil.copytree(Path(folder) / "saved_models" / found["name"], target, dirs_exist_ok=True)
    auroc = found["metrics"]["test"]["auroc"]
    write_json(
        REPOSITORY / "results" / "phantom_difficulty.json",
        {
            "schema": "chestxray.benchmark/1",
            "name": "phantom_difficulty",
            "data": "synthetic",
            "phantom_version": PHANTOM_VERSION,
            "training_images": len(data.subset("train")),
            "test_images": len(data.subset("test")),
            "image_size": SIDE,
            "architecture": "compact_cnn",
            "epochs": len(training.history),
            "auroc": auroc,
        },
    )
    print(
        f"{len(data.subset('train'))} training images, {len(data.subset('test'))} test images of other "
        "patients: AUROC {value:.3f} ({low:.3f} to {high:.3f})".format(**auroc)
    )


if __name__ == "__main__":
    main()
