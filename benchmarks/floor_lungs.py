"""How much of the lungs does the floor of the audit hide?

    python benchmarks/floor_lungs.py --data-dir FOLDER --masks FILE

The best row of the audit that should tell nothing about pneumonia is a linear
model on thumbnails whose centre is blacked out. By lung masks: what share of the
lungs lies in that centre. Writes results/benchmarks/floor_lungs.json.
"""

import argparse

import numpy as np

from chestxray.data.catalog import scan
from chestxray.data.location import find_data
from chestxray.data.masks import read_masks
from chestxray.data.shortcuts import without_centre
from chestxray.files import project_path, write_json

SIDE = 224


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--masks", required=True)
    given = parser.parse_args()
    masks, _ = read_masks(given.masks, scan(find_data(given.data_dir)), SIDE)
    fields = 255 * masks[..., np.newaxis].astype(np.uint8)
    shown = without_centre(fields).sum(axis=1) * (SIDE / 28) ** 2 / 255
    hidden = 1 - shown / masks.sum(axis=(1, 2))
    found = {"masks": len(masks), "mean": float(hidden.mean()),
             "percentiles": {str(q): float(np.percentile(hidden, q)) for q in (5, 50, 95)}}
    write_json(project_path("results/benchmarks/floor_lungs.json"),
               {"schema": "chestxray.benchmark/1", "name": "floor_lungs", **found})
    print(found)


if __name__ == "__main__":
    main()
