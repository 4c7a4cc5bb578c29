"""Grad-CAM heatmaps per second, compared with tf-keras-vis on the same flat model, layer and batch.

    pip install tf-keras-vis
    python benchmarks/gradcam.py [--backbone VGG16] [--images 64]

Prints one table and writes results/benchmarks/gradcam-<backbone>.json. Weights are random: speed and equality
do not depend on them.
"""

import argparse
import time

import keras
import numpy as np

import chestxray as cx
from chestxray.files import project_path, write_json
from chestxray.gradcam import find_layer, gradcam
from chestxray.results import versions

BATCHES = (1, 8, 32)


def fastest(work, repeats: int = 3) -> float:
    """Seconds of the fastest of some repeats; one more before warms up."""
    work()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    from tf_keras_vis.gradcam import Gradcam
    from tf_keras_vis.utils.scores import CategoricalScore

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--backbone", default="VGG16")
    parser.add_argument("--images", type=int, default=64)
    given = parser.parse_args()
    keras.utils.set_random_seed(0)
    model, _ = cx.build_transfer_model(given.backbone, head_units=[], weights=None)
    logit = model.get_layer("logit")
    logit.kernel.assign(np.abs(np.random.default_rng(0).normal(size=logit.kernel.shape)))  # maps not empty
    size, layer = model.input_shape[1], find_layer(model).name
    films = np.random.default_rng(0).uniform(0, 255, (given.images, size, size, 1)).astype(np.float32)
    theirs = Gradcam(model, clone=False)

    def peer(batch: int) -> np.ndarray:
        return np.concatenate(
            [
                theirs(
                    CategoricalScore([0] * len(some)),
                    some,
                    penultimate_layer=layer,
                    expand_cam=False,
                    normalize_cam=True,
                )
                for some in np.split(films, range(batch, len(films), batch))
            ]
        )

    rows = []
    for batch in BATCHES:
        ours, others = gradcam(model, films, layer, batch_size=batch)[0], np.asarray(peer(batch))
        told = [one for one in range(len(ours)) if ours[one].any()]
        correlation = min(np.corrcoef(ours[one].ravel(), others[one].ravel())[0, 1] for one in told)
        seconds = {
            "chestxray": fastest(lambda b=batch: gradcam(model, films, layer, batch_size=b)),
            "tf-keras-vis": fastest(lambda b=batch: peer(b)),
        }
        rows.append(
            {
                "batch": batch,
                **{name: len(films) / value for name, value in seconds.items()},
                "faster": seconds["tf-keras-vis"] / seconds["chestxray"],
                "lowest_correlation": float(correlation),
                "maps_compared": len(told),
            }
        )
        print(
            "batch {batch}: {chestxray:.1f} maps/s, tf-keras-vis {tf-keras-vis:.1f}, {faster:.1f} x; "
            "lowest correlation {lowest_correlation:.6f}".format(**rows[-1]),
            flush=True,
        )
    write_json(
        project_path(f"results/benchmarks/gradcam-{given.backbone}.json"),
        {
            "schema": "chestxray.benchmark/1",
            "name": f"gradcam-{given.backbone}",
            "layer": layer,
            "image_size": size,
            "images": given.images,
            "rows": rows,
            "versions": versions(),
        },
    )


if __name__ == "__main__":
    main()
