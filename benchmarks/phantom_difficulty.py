"""Are the phantoms a task? A CNN trained on 2,000 of them, scored on other patients.

    python benchmarks/phantom_difficulty.py

Writes results/phantom_difficulty.json. Too slow for the tests, which hold the
other bounds of the phantoms (what can be had without a network).
"""

from pathlib import Path

from scipy.special import expit

import chestxray as cx
from chestxray.data.phantom import PHANTOM_VERSION
from chestxray.evaluation.metrics import evaluate
from chestxray.files import write_json

IMAGES, SIDE, EPOCHS = 2_858, 96, 25  # 70 % of the images are for training


def main() -> None:
    data = cx.load_data(cx.phantom_dataset(IMAGES, SIDE, seed=10), "patient", 0, cx.ImageSettings(SIDE))
    cx.set_seed(0)
    policy, device = cx.choose_precision("auto")
    model = cx.build_custom_cnn(SIDE, precision=policy)
    settings = cx.TrainSettings(epochs=EPOCHS, learning_rate=0.001, augmentation=cx.Augmentation())
    training = cx.train(model, data, settings)
    test = data.part("test")
    logits = model.predict(data.dataset("test"), verbose=0).ravel()
    metrics, _ = evaluate(test["label"], expit(logits), test["group"], {}, test["subtype"])
    result = {"schema": "chestxray.benchmark/1", "name": "phantom_difficulty", "data": "synthetic",
              "phantom_version": PHANTOM_VERSION, "training_images": len(data.part("train")),
              "test_images": len(test), "image_size": SIDE, "epochs": len(training.history),
              "auroc": metrics["auroc"]}
    write_json(Path(__file__).resolve().parent.parent / "results" / "phantom_difficulty.json", result)
    print(f"{result['training_images']} training images, {result['test_images']} test images of other "
          "patients: AUROC {value:.3f} ({low:.3f} to {high:.3f})".format(**metrics["auroc"]))


if __name__ == "__main__":
    main()
