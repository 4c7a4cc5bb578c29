"""How much of the lungs does the baseline of the audit hide, and what do their outlines alone tell?

    python benchmarks/baseline_lungs.py --data-dir FOLDER --masks FILE

The best row of the audit that should tell nothing about pneumonia is a linear
model on thumbnails whose centre is blacked out. By lung masks: what share of the
lungs lies in that centre. And, because the lungs are blacked out along these masks
in notebook 05: AUROC of a linear model that sees nothing but the masks (28 x 28),
cross-validated by patient group. Writes results/benchmarks/baseline_lungs.json.
"""

import argparse

import numpy as np
from sklearn.metrics import roc_auc_score

from chestxray.audit.shortcuts import cross_validated, thumbnail, without_centre
from chestxray.data.catalog import find_data, scan
from chestxray.data.masks import read_masks
from chestxray.files import project_path, write_json

SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--masks", required=True)
    given = parser.parse_args()
    table = scan(find_data(given.data_dir))
    masks, known = read_masks(given.masks, table, SIDE)
    table = table[known]
    fields = 255 * masks[..., np.newaxis].astype(np.uint8)
    shown = without_centre(fields).sum(axis=1) * (SIDE / 28) ** 2 / 255
    hidden = 1 - shown / masks.sum(axis=(1, 2))
    found = {
        "masks": len(masks),
        "mean": float(hidden.mean()),
        "percentiles": {str(q): float(np.percentile(hidden, q)) for q in (5, 50, 95)},
    }
    outlines = cross_validated(
        thumbnail(fields, 28).reshape(len(masks), -1),
        table["label"].to_numpy(),
        table["group_conservative"].to_numpy(),
    )
    found["outlines_auroc"] = float(roc_auc_score(table["label"], outlines))
    write_json(
        project_path("results/benchmarks/baseline_lungs.json"),
        {"schema": "chestxray.benchmark/1", "name": "baseline_lungs", **found},
    )
    print(found)


if __name__ == "__main__":
    main()
