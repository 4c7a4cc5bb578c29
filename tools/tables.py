"""Write results/TABLES.md and the tables of README.md from results/: python tools/tables.py [--check]."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from chestxray.files import read_json
from chestxray.results import comparison_table, read_predictions, read_results

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
METRICS = [f"test {name}" for name in "auroc accuracy sensitivity specificity f1 precision".split()]
MAIN = "vgg16 vgg16_224 custom_cnn compact_student".split()
TESTED = {"patient": "other patients", "official": "published test set"}
METRICS += ["test auroc_reframed", "val auroc", "val auroc_reframed", "train auroc"]


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown table."""
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in (head, ["---"] * len(head), *rows))


def interval(entry: dict[str, Any], form: str = ".3f") -> str:
    return f"{entry['value']:{form}} ({entry['low']:{form}} to {entry['high']:{form}})"


def with_sd(mean: float, sd: float | None, form: str = ".3f") -> str:
    return f"{mean:{form}}" + ("" if sd is None or pd.isna(sd) else f" ± {sd:{form}}")


def models(folder: Path = RESULTS, metrics: Sequence[str] = METRICS) -> str:
    """Models of the first training, and the mean over all; AUROC also on validation and training images."""
    loaded, rows = read_results(folder), []
    every = {subset: comparison_table(loaded, subset) for subset in ("test", "val", "train")}
    named = [one.set_index("name").add_prefix(f"{subset} ") for subset, one in every.items() if len(one)]
    compared = pd.concat([every["test"].set_index("name"), *named], axis=1).dropna(subset="model")
    compared = compared.reindex(columns=[*compared, *set(metrics) - set(compared)])
    seeds = compared.sort_values(["split_rule", "split_seed", "train_seed"]).groupby(["split_rule", "model"])
    for (split_rule, model), group in seeds:
        first = group.iloc[0]
        entries = [first.reindex([metric, f"{metric}_low", f"{metric}_high"]) for metric in metrics]
        cells = ["{:.3f} ({:.3f}–{:.3f})".format(*entry) for entry in entries]
        rows.append([split_rule, f"**{model}**", *cells])
        if len(group) > 1:
            cells = [with_sd(group[metric].mean(), group[metric].std()) for metric in metrics]
            rows.append(["", f"– mean of {len(group)} trainings", *cells])
    names = (metric.removeprefix("test ").replace("_", ", ") for metric in metrics)
    return table(["split", "model", *names], rows).replace("nan (nan–nan)", "–")


def results() -> str:
    """The main models on test, for README, and the recommended one with its weakest number."""
    rows, worse, weakest = [], {}, {}
    metrics, names = ("auroc", "accuracy", "sensitivity", "specificity"), ("auroc", "auroc_reframed")
    for path in [f"{m}-{s}-s0-t0.json" for m in MAIN for s in TESTED]:
        if (RESULTS / path).is_file():
            (model, split_rule, *_), content = path.split("-"), read_json(RESULTS / path)["metrics"]
            scores = content["test"] | content["test"]["youden"]
            rows.append([f"`{model}`", TESTED[split_rule], *(interval(scores[m]) for m in metrics)])
            rates = [(scores[m]["value"], m, interval(scores[m]), TESTED[split_rule]) for m in metrics[2:]]
            weakest[model] = min(weakest.get(model, rates[0]), *rates)
            if split_rule == "patient":
                worse[model] = min(content["val"][name]["value"] for name in names)
    best = max(worse, key=worse.get)
    text = f"Recommended by the worse of plain and re-framed validation AUROC ({worse[best]:.3f}): `{best}`."
    text += " Its weakest number: {1} {2}, {3}.\n".format(*weakest[best])
    return table(["model", "tested on", *metrics], rows) + f"\n{text}"


def squashed() -> str:
    """Models that saw the whole image, squashed to a square: the results until November 2026."""
    return models(RESULTS / "squashed")


def all_claims() -> str:
    """Claims of course projects, and their recipes run again: accuracy / precision / recall / F1 / AUROC."""
    return claims(only_run=False)


def claims(only_run: bool = True) -> str:
    """Claims whose recipe was run again, at probability 0.5 before calibration."""
    rows, scores = [], (accuracy_score, precision_score, recall_score, f1_score)
    for claim in pd.read_csv(RESULTS / "published.csv").query("recipe == recipe").to_dict("records"):
        cells = [[claim[name] for name in ("accuracy", "precision", "sensitivity", "f1", "auroc")], [], []]
        for again, split_rule in zip(cells[1:], (claim["split"], "patient")):
            path = RESULTS / f"claims/{claim['recipe']}-{split_rule}-s0-t0.json"
            if path.is_file():
                test = read_predictions(path.parent, path.stem).query("split == 'test'")
                again += [score(test["label"], test["logit"] >= 0) for score in scores]
                entries = read_json(path)["metrics"]["test"]
                again += [entries[metric]["value"] for metric in ("auroc", "auroc_reframed")]
        texts = [" / ".join("–" if pd.isna(v) else f"{v:.3f}" for v in values[:5]) for values in cells]
        missing = "needs ImageNet weights" if "resnet50" in claim["recipe"] else "not run"
        texts = [text.replace("– / – / – / – / –", "no number") or missing for text in texts]
        reframed = f"{cells[2][5]:.3f}" if cells[2] else ""
        if cells[1] or cells[2] or not only_run:
            rows.append([f"{claim['model']} ({claim['recipe'][7:10]})", claim["split"], *texts, reframed])
    head = "model (project)|its split|claimed|run again|by patient|by patient, re-framed: AUROC"
    return table(head.split("|"), rows)


def published() -> str:
    """What others report on this data set."""
    listed = pd.read_csv(RESULTS / "published.csv", keep_default_na=False).query("accuracy != ''")
    names = "split model who source auroc accuracy sensitivity specificity precision f1 note".split()
    return table(names, listed[names].to_numpy())


def students() -> str:
    """Variants of training the compact student, on test."""
    rows = []
    for path in sorted(RESULTS.glob("compact_student_variants-*.json"), reverse=True):
        content = read_json(path)
        for variant, entry in content["variants"]["test"].items():
            cells = [with_sd(entry["mean"][m], entry["sd"][m], ".4f") for m in entry["mean"]]
            gain = entry.get("difference", {}).get("auroc")
            change = interval(gain, "+.4f") if gain else "–"
            rows.append([content["split_rule"], variant, len(entry["seeds"]["auroc"]), *cells, change])
    return table(["split", "variant", "trainings", *entry["mean"], "auroc minus *alone*"], rows)


def tried() -> str:
    """Configurations that were compared on validation images; – is not finished."""
    listed = pd.read_csv(RESULTS / "tried.csv").sort_values(["split_rule", "auroc"], ascending=[True, False])
    rows = []
    for row in listed.to_dict("records"):
        image = json.loads(row["image"])
        cells = [f"{row[m]:.4f}".replace("nan", "–") for m in ("auroc", "specificity")]
        side = f"{image['size']} px{', CLAHE' if image['clahe'] else ''}"
        rows.append([row["split_rule"], row["name"], side, *cells, f"`{row['epochs']}`"])
    return table(["split", "name", "images", "auroc", "specificity", "epochs"], rows)


def shortcuts() -> str:
    """Linear models that see little or nothing of the lungs."""
    listed = pd.DataFrame(read_json(RESULTS / "audit.json")["shortcuts"])
    aurocs = ["{auroc:.2f} ({low:.2f}–{high:.2f})".format(**row) for row in listed.to_dict("records")]
    others = [[f"{value:.2f}" for value in listed[name]] for name in ("test_auroc", "lungs_only")]
    names = ["a linear model that sees only", "AUROC on other patients", "on the published test set"]
    rows = zip(listed["sees"], aurocs, *others)
    return table([*names, "when the lungs fill the image"], rows).replace("| nan |", "| – |")


def recipes() -> str:
    """AUROC on validation, as it is and re-framed, and scores on test: means of trainings at 128 px."""
    names = {"val": "validation", "other": "re-framed", "zoom": "zoomed in", "val_specificity": "specificity"}
    names["zoom_specificity"] = "the same, zoomed in"
    names |= {f"test_{name}": f"test {name}" for name in ("auroc", "accuracy", "sensitivity", "specificity")}
    rows = []
    for cell in read_json(RESULTS / "framing.json")["cells"]:
        cells = [with_sd(cell["mean"][name], cell["sd"] and cell["sd"][name]) for name in names]
        recipe = cell["cell"].replace("_style", ", tone and sharpness").replace("_", " ")
        network = cell["network"] + cell["views"].replace("v", ", views: ")
        rows.append([cell["split"], network, recipe, cell["trainings"], *cells])
    return table(["split", "network", "recipe", "trainings", *names.values()], rows)


def heatmaps() -> str:
    """Checks of heatmaps on the real test images with a lung mask (notebook 05)."""
    rows = []
    for path in sorted(RESULTS.glob("explain-*.json")):
        content = read_json(path)
        share, peak = content["pointing"][:2]
        auroc = {row["change"]: f"{row['auroc']:.3f}" for row in content["stress"]}
        better = [row["low"] > 0 for row in content["faithfulness"]]
        name = f"`{content['name'].removeprefix('explain-')}`, {content['layer']}"
        cells = [name, interval(share, ".2f"), interval(peak, ".2f"), f"{share['by chance']:.2f}"]
        cells += [auroc["none"], auroc["lungs blacked out"]]
        rows.append([*cells, f"{sum(better)} of {len(better)}", f"{content['chance_similarity']:.2f}"])
    head = ["model, layer", "share of the map in the lungs", "peak in the lungs", "by chance", "auroc"]
    return table([*head, "lungs blacked out", "better than controls", "similarity of two images"], rows)


def speed() -> str:
    """Minutes of transfer learning in two phases: the common notebook, its fast form, this package."""
    rows = []
    for path in sorted((RESULTS / "benchmarks").glob("two_phase-*.json"), reverse=True):
        content = read_json(path)
        minutes = {name: run["seconds"]["total"] / 60 for name, run in content["variants"].items()}
        cells = [f"{value:.0f}" for value in minutes.values()]
        cells += [f"{minutes['common, float32'] / minutes['ours, bf16']:.1f}×"]
        rows.append([path.stem.split("-")[1], *cells, content.get("processor", "not recorded")])
    return table(["network, minutes", *minutes, "faster than the first", "processor"], rows)


IN_README = (results, claims, shortcuts)
IN_TABLES = (models, all_claims, squashed, published, students, tried, shortcuts, recipes, heatmaps, speed)


def pages() -> dict[Path, str]:
    """The two pages as they should be."""
    sections = [
        f"## {block.__name__.replace('_', ' ').capitalize()}\n\n{block.__doc__}\n\n{block()}"
        for block in IN_TABLES
    ]
    head = "# Tables\n\nMade by `python tools/tables.py` from the files here.\n\n"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for block in IN_README:
        begin, end = f"<!-- {block.__name__} -->\n", f"<!-- /{block.__name__} -->"
        readme, count = re.subn(f"{begin}.*?{end}", lambda _: begin + block() + end, readme, flags=re.DOTALL)  # noqa: B023
        if count != 1:
            raise ValueError(f"README.md needs one such block. Received: block={block.__name__!r}")
    return {RESULTS / "TABLES.md": head + "\n".join(sections), ROOT / "README.md": readme}


def main() -> int:
    """Write the pages; with ``--check`` fail if one is out of date."""
    outdated = False
    for path, text in pages().items():
        outdated |= not path.is_file() or path.read_text(encoding="utf-8") != text
        if "--check" not in sys.argv:
            path.write_text(text, encoding="utf-8")
    return int(outdated and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
