"""What K stored views of each image lose against fresh augmentation in every epoch.

    python benchmarks/head_quality.py --data-dir FOLDER [--weights FILE]

Trains a new head on frozen VGG16 features of the real data (split by patient,
224 px, EPOCHS epochs, cosine decay) with K = 1, 4 and 8 stored views and with
as many views as epochs, which is fresh augmentation: every epoch then sees
pictures that no other has seen. Three seeds each, of views, order and head;
the split stays the same. AUROC on the validation images. Writes
results/benchmarks/head_quality.json.
"""

import argparse
import dataclasses
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

import chestxray as cx
from chestxray.files import write_json
from chestxray.models.features import Features, find_cut

EPOCHS, SEEDS, VIEWS, WITHIN = 12, (0, 1, 2), (1, 4, 8, 12), 0.003
RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def auroc(data: cx.XrayData, weights: str, views: int) -> float:
    """Train one head; AUROC on validation."""
    cx.set_seed(data.seed)
    policy, _ = cx.choose_precision()
    model, _ = cx.build_transfer_model("VGG16", 224, (256,), 0.5, weights, policy)
    settings = cx.TrainSettings(
        epochs=EPOCHS, learning_rate=1e-3, decay="cosine", augmentation=cx.Augmentation(), views=views
    )
    cx.train_head(model, data, settings)
    features = Features(model, data, [find_cut(model)], settings.augmentation, views)
    features.prepare("val")
    logits = features.rest.predict(features.dataset("val"), verbose=0).ravel()
    return float(roc_auc_score(data.subset("val")["label"], logits))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--weights", default="imagenet")
    given = parser.parse_args()
    data = cx.load_data(given.data_dir, "patient", 0, cx.ImageSettings(224))
    found = {
        views: [auroc(dataclasses.replace(data, seed=seed), given.weights, views) for seed in SEEDS]
        for views in VIEWS
    }
    fresh = np.array(found[EPOCHS])
    table = {
        str(views): {
            "auroc": values,
            "mean": float(np.mean(values)),
            "sd": float(np.std(values, ddof=1)),
            "difference": float(np.mean(values - fresh)),
            "difference_sd": float(np.std(values - fresh, ddof=1)),
            "within": bool(abs(np.mean(values - fresh)) <= WITHIN),
        }
        for views, values in found.items()
    }
    print(f"\n{'views':>6s}{'AUROC':>9s}{'sd':>9s}{'difference':>12s}  seeds")
    for views, row in table.items():
        name = "fresh" if int(views) == EPOCHS else views
        print(
            f"{name:>6s}{row['mean']:>9.4f}{row['sd']:>9.4f}{row['difference']:>+12.4f} ± "
            f"{row['difference_sd']:.4f}  "
            + " ".join(f"{value:.4f}" for value in row["auroc"])
            + ("" if row["within"] else f"  not within {WITHIN}")
        )
    write_json(
        RESULTS / "head_quality.json",
        {
            "schema": "chestxray.benchmark/1",
            "name": "head_quality",
            "data": data.name,
            "split": data.split_hash,
            "backbone": "VGG16",
            "epochs": EPOCHS,
            "fresh": str(EPOCHS),
            "bound": WITHIN,
            "views": table,
        },
    )


if __name__ == "__main__":
    main()
