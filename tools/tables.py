"""Write results/TABLES.md and the tables of README.md from results/: python tools/tables.py [--check]."""

import json
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from chestxray.files import read_json
from chestxray.results import comparison_table, read_results, seed_table

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results"
METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "precision", "f1")


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Markdown table."""
    return "".join(f"| {' | '.join(map(str, cells))} |\n" for cells in (head, ["---"] * len(head), *rows))


def interval(entry: dict[str, Any], form: str = ".3f") -> str:
    return f"{entry['value']:{form}} ({entry['low']:{form}} to {entry['high']:{form}})"


def with_sd(mean: float, sd: float | None, form: str = ".3f") -> str:
    return f"{mean:{form}}" + ("" if sd is None or pd.isna(sd) else f" ± {sd:{form}}")


def model_rows(metrics: Sequence[str]) -> list[list[str]]:
    """One row a model of seed 0, and one for the mean over its seeds, by split rule."""
    compared, rows = comparison_table(read_results(RESULTS)), []
    means = seed_table(compared).set_index(["model", "split_rule"])
    for split_rule in ("patient", "official", "image"):
        for _, row in compared[compared["split_rule"] == split_rule].iterrows():
            if row["split_seed"] == 0:
                cells = ["{:.3f} ({:.3f}–{:.3f})".format(*row[[m, f"{m}_low", f"{m}_high"]]) for m in metrics]
                rows.append([split_rule, f"**{row['model']}**", *cells])
                mean = means.loc[(row["model"], split_rule)]
                if mean["seeds"] > 1:
                    cells = [with_sd(mean[m], mean[f"{m}_sd"]) for m in metrics]
                    rows.append(["", f"– mean of {mean['seeds']:.0f} seeds", *cells])
    return rows


def results() -> str:
    """The main models on test, for README."""
    rows, hidden = [], False
    for row in model_rows(METRICS[:4]):
        others = "_scratch" in row[1] or "_three" in row[1] or (row[0] == "image" and "vgg16" not in row[1])
        hidden = others if row[0] else hidden
        rows += [] if hidden else [row]
    return table(["split", "model", *METRICS[:4]], rows)


def models() -> str:
    """All models on test, and AUROC on validation."""
    validation = comparison_table(read_results(RESULTS), "val").query("split_seed == 0")
    aurocs = {(row["split_rule"], f"**{row['model']}**"): row["auroc"] for _, row in validation.iterrows()}
    rows = [[*row, f"{aurocs[row[0], row[1]]:.4f}" if row[0] else ""] for row in model_rows(METRICS)]
    return table(["split", "model", *METRICS, "auroc (validation)"], rows)


def published() -> str:
    """What others report on this data set."""
    listed = pd.read_csv(RESULTS / "published.csv", keep_default_na=False)
    names = "split model who source auroc accuracy sensitivity specificity precision f1 note".split()
    return table(names, listed[names].to_numpy())


def students() -> str:
    """Variants of training the compact student, on test."""
    rows = []
    for split_rule in ("patient", "official", "image"):
        scored = read_json(RESULTS / f"compact_student_variants-{split_rule}-s0-t0.json")["variants"]["test"]
        for variant, entry in scored.items():
            cells = [with_sd(entry["mean"][m], entry["sd"][m], ".4f") for m in entry["mean"]]
            gain = entry.get("difference", {}).get("auroc")
            count = len(entry["seeds"]["auroc"])
            rows.append([split_rule, variant, count, *cells, interval(gain, "+.4f") if gain else "–"])
    return table(["split", "variant", "trainings", *entry["mean"], "auroc minus *alone*"], rows)


def tried() -> str:
    """Configurations that were compared on validation images; – is not finished."""
    listed = pd.read_csv(RESULTS / "tried.csv").sort_values(["split_rule", "auroc"], ascending=[True, False])
    rows = []
    for row in listed.to_dict("records"):
        image, cells = (
            json.loads(row["image"]),
            [f"{row[m]:.4f}".replace("nan", "–") for m in ("auroc", "specificity")],
        )
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


def framing(splits: Sequence[str] = ("official",), views: Sequence[str] = ("", "v4")) -> str:
    """AUROC on validation, as it is and re-framed, and scores on test: means of trainings at 128 px."""
    names = {"val": "validation", "other": "re-framed", "zoom": "zoomed in", "val_specificity": "specificity"}
    names["zoom_specificity"] = "the same, zoomed in"
    names |= {f"test_{name}": f"test {name}" for name in ("auroc", "accuracy", "sensitivity", "specificity")}
    rows, trained = [], read_json(RESULTS / "framing.json")["cells"]
    for cell in (cell for cell in trained if cell["split"] in splits and cell["views"] in views):
        cells = [with_sd(cell["mean"][name], cell["sd"] and cell["sd"][name]) for name in names]
        recipe = cell["cell"].replace("_style", ", tone and sharpness").replace("_", " ")
        network = cell["network"] + cell["views"].replace("v", ", views: ")
        rows.append([cell["split"], network, recipe, cell["trainings"], *cells])
    return table(["split", "network", "recipe", "trainings", *names.values()], rows)


def recipes() -> str:
    """The framing experiment on both splits; columns as in README."""
    return framing(("official", "patient"), ("", "v4", "v8"))


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
        minutes = {name: run["seconds"]["total"] / 60 for name, run in read_json(path)["variants"].items()}
        cells = [f"{value:.0f}" for value in minutes.values()]
        cells += [f"{minutes['common, float32'] / minutes['ours, bf16']:.1f}×"]
        rows.append([path.stem.split("-")[1], *cells])
    return table(["network, minutes", *minutes, "faster than the first"], rows)


def benchmarks() -> str:
    """Rows of every other benchmark, as they were recorded."""
    parts = []
    for path in sorted((RESULTS / "benchmarks").glob("*.json")):
        content = read_json(path)
        numbers = {name: value for name, value in content.items() if isinstance(value, (int, float))}
        shown = pd.json_normalize(content.get("rows") or [numbers | content.get("images_per_second", {})])
        shown = shown.map(lambda value: f"{value:,.4g}" if isinstance(value, float) else value)
        if not path.stem.startswith("two_phase"):
            parts.append(f"### {path.stem}\n\n{table(list(shown), shown.to_numpy())}")
    return "\n".join(parts)


IN_README = (results, shortcuts, framing)
IN_TABLES = (models, published, students, tried, shortcuts, recipes, heatmaps, speed, benchmarks)


def pages() -> dict[Path, str]:
    """The two pages as they should be."""
    sections = [f"## {block.__name__.capitalize()}\n\n{block.__doc__}\n\n{block()}" for block in IN_TABLES]
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
