"""Choice of a recipe by the worse of plain and re-framed validation, and results of all cells.

    python benchmarks/framing_report.py --work WORK --data-dir FOLDER

Reads the logits that ``framing.py`` wrote to WORK, adds them to ``results/framing_logits.npz``, and writes
``results/framing.json``. Without ``--work`` it computes everything again from the file in ``results/``. All
cells are evaluated on the test images. When the logits of a training are added for the first time, this is
logged.
"""

import itertools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import pandas as pd
from framing import CELLS, DRAWS, KINDS, LOST
from numpy.typing import NDArray
from statsmodels.stats.multitest import multipletests

from chestxray.data.dataset import XrayData, load_data
from chestxray.data.images import ImageSettings
from chestxray.data.lungs import MODEL_HASH
from chestxray.evaluation import metrics
from chestxray.evaluation.calibration import apply_platt, calibrate, calibration_metrics, shift_prevalence
from chestxray.evaluation.comparison import seed_weights
from chestxray.evaluation.thresholds import choose_thresholds
from chestxray.files import project_path, read_json, whole_file, write_json
from chestxray.results import log_test_evaluation

RESULTS = project_path("results")
BOOTSTRAP = 1000
SIMPLEST = [
    name + style for name in ("squash", "scaling", "letterbox", "lung_box") for style in ("", "_style")
]
DECIDING = ("compact-official", "vgg16-v4-official")  # `patient` validates on images of the published test
RATES = ("accuracy", "sensitivity", "specificity")


def join(work: Path, data: Mapping[str, XrayData]) -> dict[str, dict[str, NDArray]]:
    """Logits by name of the run, with those of WORK added to the file in results."""
    runs: dict[str, dict[str, NDArray]] = {}
    file = RESULTS / "framing_logits.npz"
    if file.is_file():
        with np.load(file) as stored:
            for key in stored.files:
                name, kind = key.split("/")
                runs.setdefault(name, {})[kind] = stored[key]
    for path in sorted(work.glob("*-s0-t?.npz")) if work else ():
        if path.stem in runs:
            continue
        with np.load(path) as stored:
            runs[path.stem] = {kind: stored[kind] for kind in ("val", "test", *KINDS)}
        described = read_json(path.with_suffix(".json"))
        expected = {"split_hash": data[split_of(path.stem)].split_hash}
        expected |= {"lungs": MODEL_HASH} if described["image"]["resize"] == "lung_box" else {}
        if any(described.get(key) != value for key, value in expected.items()):
            raise ValueError(f"other images, or another network of lungs. Received: name={path.stem!r}")
        parameters = {
            key: value for key, value in described.items() if key not in ("history", "name", "seconds")
        }
        log_test_evaluation(RESULTS.parent, path.stem, data[split_of(path.stem)], parameters)
    arrays = {f"{name}/{kind}": values for name, kinds in runs.items() for kind, values in kinds.items()}
    with whole_file(file) as target, open(target, "wb") as stream:
        np.savez_compressed(stream, **arrays)
    return runs


def split_of(name: str) -> str:
    return name.split("-")[-3]


def aurocs(labels: NDArray, logits: NDArray, weights: NDArray) -> NDArray:
    """AUROC for each row of weights (D, N), (D,)."""
    return metrics.weighted_ranking(labels, logits.astype(np.float64), weights)[0]


def worse_of_two(labels: NDArray, run: Mapping[str, NDArray], weights: NDArray, kind: str) -> NDArray:
    """The primary measure of one training: the smaller AUROC of plain and re-framed validation, (D,)."""
    warped = np.mean([aurocs(labels, logits, weights) for logits in run[kind]], axis=0)
    return np.minimum(aurocs(labels, run["val"], weights), warped)


def choose(
    data: XrayData, cells: Mapping[str, list[Mapping[str, NDArray]]], kind: str = "other"
) -> dict[str, Any]:
    """Compare all cells with the best one, and choose the simplest that is not shown to be worse.

    ``kind`` of re-framing is ``other``, or ``zoom`` as a second look. Every bootstrap draw takes patients and
    training seeds, the same for both cells; see :func:`chestxray.evaluation.comparison.seed_weights`.
    """
    rows = data.subset("val")
    labels, groups = rows["label"].to_numpy(), rows["group_conservative"].to_numpy()
    every_image = np.ones((1, len(rows)))
    seeds = len(next(iter(cells.values())))
    values = {
        cell: np.array([worse_of_two(labels, run, every_image, kind)[0] for run in runs])
        for cell, runs in cells.items()
    }
    drawn: dict[str, list[NDArray]] = {cell: [] for cell in cells}
    for weights in metrics.bootstrap_weights(labels, groups, BOOTSTRAP):
        for cell, runs in cells.items():
            drawn[cell].append(np.stack([worse_of_two(labels, run, weights, kind) for run in runs]))
    draws = {cell: np.concatenate(blocks, axis=1) for cell, blocks in drawn.items()}
    picks = seed_weights(seeds, BOOTSTRAP).T
    best = max(cells, key=lambda cell: values[cell].mean())
    compared = []
    for cell in sorted(cells, key=SIMPLEST.index):
        if cell == best:
            continue
        difference = np.sum(picks * (draws[cell] - draws[best]), axis=0)
        value = float((values[cell] - values[best]).mean())
        tail = min(np.mean(difference <= 0), np.mean(difference >= 0))
        row = {"cell": cell} | metrics.percentile_interval(value, difference)
        compared.append(row | {"p": float(min(1, 2 * max(tail, 1 / BOOTSTRAP)))})
    for row, p in zip(compared, multipletests([row["p"] for row in compared], method="holm")[1]):
        row["p_holm"] = float(p)
    tied = sorted([best, *(row["cell"] for row in compared if row["high"] >= 0)], key=SIMPLEST.index)
    measured = {cell: {"mean": float(v.mean()), "seeds": v.tolist()} for cell, v in values.items()}
    return {"measure": measured, "best": best, "minus_best": compared, "tied": tied, "chosen": tied[0]}


def fall(data: XrayData, runs: list[Mapping[str, NDArray]]) -> dict[str, float | None]:
    """Change of the frozen threshold's specificity when validation is zoomed in, over patients and seeds."""
    rows, kept = data.subset("val"), []
    labels, normal = rows["label"].to_numpy(), (rows["label"] == 0).to_numpy(float)
    for run in runs:
        platt = calibrate(run["val"], labels)
        threshold = choose_thresholds(labels, apply_platt(run["val"], *platt))[0]["youden"]
        cleared = [apply_platt(run[kind], *platt) < threshold for kind in ("val", "zoom")]
        kept.append(cleared[1].mean(axis=0) - cleared[0])

    def change(weights: NDArray) -> dict[str, NDArray]:
        weights = weights * normal
        return {"change": np.stack([weights @ each / weights.sum(axis=1) for each in kept])}

    value, drawn = metrics.bootstrap(change, labels, rows["group_conservative"], BOOTSTRAP)["change"]
    return metrics.percentile_interval(
        value.mean(), np.sum(seed_weights(len(runs), BOOTSTRAP).T * drawn, axis=0)
    )


def choose_for_all(choices: list[Mapping[str, Any]]) -> str | None:
    """Give the simplest recipe that is not shown to be worse for any network; None where there is none."""
    tied = [set(choice.get("tied", ())) for choice in choices]
    return min(set.intersection(*tied), key=SIMPLEST.index, default=None)


def describe(data: XrayData, runs: list[Mapping[str, NDArray]]) -> dict[str, Any]:
    """Everything about one cell: validation by kind, test at frozen thresholds, calibration."""
    val, test = data.subset("val"), data.subset("test")
    y, truth = val["label"].to_numpy(), test["label"].to_numpy()
    one, rows = np.ones((1, len(val))), []
    calibrations = []
    for run in runs:
        row = {"val": aurocs(y, run["val"], one)[0]}
        row |= {kind: np.mean([aurocs(y, logits, one)[0] for logits in run[kind]]) for kind in KINDS}
        row["worse"] = worse_of_two(y, run, one, "other")[0]
        row["worse_zoom"] = worse_of_two(y, run, one, "zoom")[0]
        platt = calibrate(run["val"], y)
        probabilities = {part: apply_platt(run[part], *platt) for part in ("val", "test")}
        threshold = choose_thresholds(y, probabilities["val"])[0]["youden"]
        scored, _ = metrics.evaluate(
            truth, probabilities["test"], test["group"], {"youden": threshold}, draws=1
        )
        row |= {"test_auroc": scored["auroc"]["value"], "threshold": threshold}
        row |= {f"test_{rate}": scored["youden"][rate]["value"] for rate in RATES}
        chosen, _ = metrics.evaluate(y, probabilities["val"], val["group"], {"youden": threshold}, draws=1)
        row |= {f"val_{rate}": chosen["youden"][rate]["value"] for rate in RATES}
        for kind in KINDS:  # what the frozen threshold says of other collimations, and how far logits move
            positive = apply_platt(run[kind], *platt) >= threshold
            row |= {f"{kind}_sensitivity": positive[:, y == 1].mean()}
            row |= {f"{kind}_specificity": 1 - positive[:, y == 0].mean()}
            moved = (run[kind] - run["val"]).mean(axis=0) / run["val"].std()
            row |= {f"{kind}_moves_{name}": moved[y == k].mean() for k, name in enumerate(data.classes)}
        spread = threshold_spread(y, val["group_conservative"], probabilities, truth)
        row |= spread
        rows.append(row)
        shifted = shift_prevalence(probabilities["test"], y.mean(), truth.mean())
        for name, values in (("as it is", probabilities["test"]), ("prior shifted", shifted)):
            measured = calibration_metrics(truth, values, test["group"], draws=1)
            calibrations.append({"test": name} | {key: entry["value"] for key, entry in measured.items()})
    table, calibration = pd.DataFrame(rows), pd.DataFrame(calibrations)
    return {
        "mean": table.mean().to_dict(),
        "sd": table.std(ddof=1).to_dict() if len(table) > 1 else None,
        "seeds": table.to_dict("list"),
        "calibration": calibration.groupby("test").mean().to_dict("index"),
    }


def threshold_spread(
    labels: NDArray, groups: pd.Series, probabilities: Mapping[str, NDArray], truth: NDArray
) -> dict[str, float]:
    """5th and 95th percentile of threshold and rates on test, over draws of validation patients."""
    drawn = []
    for weights in itertools.chain(*metrics.bootstrap_weights(labels, groups, 200)):
        rows = np.repeat(np.arange(len(labels)), weights.astype(int))
        threshold = choose_thresholds(labels[rows], probabilities["val"][rows])[0]["youden"]
        positive = probabilities["test"] >= threshold
        drawn.append((threshold, positive[truth == 1].mean(), 1 - positive[truth == 0].mean()))
    bounds = np.percentile(drawn, [5, 95], axis=0)
    names = ("threshold", "test_sensitivity", "test_specificity")
    return {
        f"{name}_{end}": bounds[k][i] for i, name in enumerate(names) for k, end in enumerate(("p5", "p95"))
    }


def fill_declared(cells: list[dict[str, Any]]) -> None:
    """Write the validation scores into the rows of tried.csv that declared the experiment."""
    file = RESULTS / "tried.csv"
    table = pd.read_csv(file).set_index("name")
    for cell in cells:
        network = "" if cell["network"] == "compact" else f"{cell['network']}_{cell['views']}_"
        name, mean = f"framing_{network}{cell['cell']}-{cell['split']}-s0", cell["mean"]
        declared = json.loads(table.loc[name, "parameters"]) if name in table.index else {}
        if cell["trainings"] == len(declared.get("mean_over_train_seeds", ())):
            table.loc[name, ["auroc", *RATES]] = [mean["val"], *(mean[f"val_{rate}"] for rate in RATES)]
    with whole_file(file) as target:
        table.reset_index().to_csv(target, index=False, float_format="%.6g")


@click.command()
@click.option("--work", type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), required=True)
def main(work: Path | None, data_dir: Path) -> None:
    """Join the logits, choose, and write the report."""
    data = {rule: load_data(data_dir, rule, image=ImageSettings(32)) for rule in ("official", "patient")}
    runs = join(work, data) if work else join(Path("/nonexistent"), data)
    names = pd.DataFrame([[*name.split("-")[:2], split_of(name), name] for name in runs])
    names.columns = ["network", "cell", "split", "name"]
    names["views"] = [name.split("-")[2] if name.startswith("vgg16") else "" for name in runs]
    found: dict[str, Any] = {"draws": DRAWS, "bootstrap": BOOTSTRAP, "cells": [], "choice": {}}
    for (network, views, split), rows in names.groupby(["network", "views", "split"]):
        cells = {cell: [runs[name] for name in group["name"]] for cell, group in rows.groupby("cell")}
        for cell, trained in cells.items():
            row = {
                "network": network,
                "split": split,
                "cell": cell,
                "views": views,
                "trainings": len(trained),
            }
            found["cells"].append(row | describe(data[split], trained))
        wanted = {*CELLS, *LOST} if network == "compact" else {*CELLS, "lung_box_style"}
        if set(cells) == wanted and {len(trained) for trained in cells.values()} == {3}:
            chosen = choose(data[split], cells) | {"zoomed only": choose(data[split], cells, "zoom")}
            pair = {cell: cells[cell] for cell in ("scaling", "lung_box")}
            chosen["scaling against lung box, zoomed only"] = choose(data[split], pair, "zoom")["minus_best"]
            chosen["specificity when zoomed in"] = {c: fall(data[split], runs) for c, runs in cells.items()}
            found["choice"][f"{network}{views and '-' + views}-{split}"] = chosen
    declared = [found["choice"].get(name, {}) for name in DECIDING]
    zoomed = [choice.get("zoomed only", {}) for choice in declared]
    found["chosen"] = {"re-framed": choose_for_all(declared), "zoomed only": choose_for_all(zoomed)}
    write_json(RESULTS / "framing.json", found)
    fill_declared(found["cells"])
    shown = pd.DataFrame([row | row["mean"] for row in found["cells"]])
    columns = ["network", "split", "cell", "views", "trainings", "val", "other", "same", "zoom", "worse"]
    print(shown[[*columns, "test_auroc", *(f"test_{rate}" for rate in RATES)]].round(4).to_string())
    for name, choice in found["choice"].items():
        zoomed = choice["zoomed only"]
        print(name, "best", choice["best"], "chosen", choice["chosen"], "zoomed only", zoomed["tied"])
        print(pd.DataFrame(choice["minus_best"]).round(4).to_string())


if __name__ == "__main__":
    main()
