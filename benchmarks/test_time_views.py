"""Does it help to average the logit over random views of an image?

    python benchmarks/test_time_views.py MODEL_FOLDER --data-dir FOLDER [--split official]

Scores the validation images of a classifier on record as they are, and as the
mean logit of the image and VIEWS random views of it, drawn as in training.
Writes results/benchmarks/test_time_views-<model>.json.
"""

import argparse
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

import chestxray as cx
from chestxray.files import write_json

VIEWS = (0, 1, 4, 8)
RESULTS = Path(__file__).resolve().parent.parent / "results" / "benchmarks"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--split", default="official")
    given = parser.parse_args()
    classifier = cx.load_classifier(given.model)
    data = cx.load_data(given.data_dir, given.split, 0, classifier.image_settings)
    if data.split_hash != classifier.card["training_data"]["split_hash"]:
        raise SystemExit(f"the model was trained on another split. Received: split={given.split!r}")
    rows = data.subset("val")
    labels = rows["label"].to_numpy()

    def logits(view: int | None) -> np.ndarray:
        augment = None if view is None else cx.Augmentation()
        images = data.store.dataset(rows, 32, augment=augment, seed=data.seed, epoch=lambda: view)
        return classifier.model.predict(images, verbose=0).ravel().astype(float)

    views = [logits(view) for view in (None, *range(max(VIEWS)))]
    table = {}
    for count in VIEWS:
        mean = np.mean(views[: count + 1], axis=0)
        table[str(count)] = {
            "auroc": float(roc_auc_score(labels, mean)),
            "accuracy": float(np.mean((mean > 0) == labels)),
        }
        print(
            f"image and {count} views: "
            + "  ".join(f"{key} {value:.4f}" for key, value in table[str(count)].items())
        )
    write_json(
        RESULTS / f"test_time_views-{given.model.name}.json",
        {
            "schema": "chestxray.benchmark/1",
            "name": f"test_time_views-{given.model.name}",
            "data": data.name,
            "split_hash": data.split_hash,
            "images": len(rows),
            "views": table,
        },
    )


if __name__ == "__main__":
    main()
