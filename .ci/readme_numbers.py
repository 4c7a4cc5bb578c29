"""Write the tables of README.md from results/; with --check, fail when they are out of date."""

import sys
from pathlib import Path

import pandas as pd

from chestxray.evaluation.arms import conclude
from chestxray.files import read_json
from chestxray.results import comparison_table, read_results

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("auroc", "accuracy", "sensitivity", "specificity", "f1")


def results() -> str:
    """Markdown table of all models on record with test scores, without backbones from random weights."""
    lines = ["| model | split | initial weights | parameters | AUROC | accuracy | sensitivity | specificity "
             "| F1 |", "|---|---|---|---|---|---|---|---|---|"]
    table = comparison_table(read_results(ROOT / "results"))
    for _, row in table[~table["name"].str.contains("_scratch-")].iterrows():
        scores = [f"{row[m]:.3f} ({row[f'{m}_low']:.3f}–{row[f'{m}_high']:.3f})" for m in METRICS]
        weights = row["weights"].replace("vgg16_notop.weights.h5", "ImageNet").replace("imagenet", "ImageNet")
        lines.append(f"| {row['name'].split('-')[0]} | {row['split_rule']} | {weights} | "
                     f"{row['parameter_count']:,} | {' | '.join(scores)} |")
    said = "; ".join(
        f"`{row['name'].split('-')[0]}`, split `{row['split_rule']}`: AUROC {row['auroc']:.3f} "
        f"({row['auroc_low']:.3f}–{row['auroc_high']:.3f}), accuracy {row['accuracy']:.3f}"
        for _, row in table[table["name"].str.contains("_scratch-")].iterrows())
    tried = pd.read_csv(ROOT / "results" / "tried.csv")
    tried = tried[tried["split_rule"] == "official"]
    test = read_json(ROOT / "results" / "vgg16-official-s0.json")["metrics"]["test"]
    auroc, youden = tried["auroc"], test["youden"]
    official = (
        f"**The `official` test set** is another population. Against the fall in specificity {len(tried)} "
        "configurations were tried (class weights or none, stronger changes of intensity and contrast, "
        f"CLAHE); validation could not tell them apart (AUROC {auroc.min():.4f} to {auroc.max():.4f}), and "
        f"the one it liked best falls to a specificity of {youden['specificity']['value']:.3f} on test, with "
        f"a calibration intercept of {test['intercept']['value']:.1f}: what is chosen on patients of the "
        "training folder does not carry over.")
    scratch = ("ResNet50 and InceptionV3 need ImageNet weights to be worth a row. What they reach from "
               f"random initialisation, whole network, 128 px, 12 epochs: {said}.")
    return "\n".join([*lines, "", official, "", scratch]) + "\n"


def speed() -> str:
    """Markdown table of the two-phase benchmarks, one row an arm, and how they were measured."""
    lines = ["| network | as | whole training | faster | memory | disk | frozen, rest, validation | limit |",
             "|---|---|---|---|---|---|---|---|"]
    protocols = set()
    for path in sorted((ROOT / "results" / "benchmarks").glob("two_phase-*.json"), reverse=True):
        benchmark = read_json(path)
        for arm, row in benchmark["arms"].items():
            own, seconds = ["–"] * 3, row["seconds"]
            if "gigabytes" in row:
                validation = seconds["head, validation"] + seconds["fine, validation"]
                rest = seconds["total"] - seconds["frozen layers, once"] - validation
                shares = [100 * part / seconds["total"]
                          for part in (seconds["frozen layers, once"], rest, validation)]
                own = [f"{row['gigabytes']:.1f} GB", " ".join(f"{share:.0f} %" for share in shares),
                       f"{row['limit_seconds'] / 60:,.0f} min"]
            lines.append(f"| {path.stem.split('-')[1]} | {arm} | {seconds['total'] / 60:,.0f} min | "
                         f"{row['times_faster']:.1f}× | {row['peak_gb']:.1f} GB | {' | '.join(own)} |")
        protocols.add("{epochs[0]} epochs of the head and {epochs[1]} of fine-tuning on {training_images:,} "
                      "+ {validation_images:,} images, K = {views}; extrapolated from {measured_images:,} "
                      "measured images an arm".format(**benchmark))
    quality = read_json(ROOT / "results" / "benchmarks" / "head_quality.json")
    views = quality["views"]
    said = ", ".join(f"K = {count}: {row['difference']:+.4f} ± {row['difference_sd']:.4f}"
                     for count, row in views.items() if count != quality["fresh"])
    fresh = views[quality["fresh"]]
    reading = read_json(ROOT / "results" / "benchmarks" / "input_path.json")
    rates = reading["images_per_second"]
    return "\n".join([
        *lines, "", f"*{'; or '.join(sorted(protocols))}.*", "",
        f"What stored views cost in quality: a head on frozen {quality['backbone']} reaches AUROC "
        f"{fresh['mean']:.4f} on validation with fresh augmentation in each of {quality['epochs']} epochs; "
        f"{said} ({len(fresh['auroc'])} seeds, `python benchmarks/head_quality.py`). Reading originals: "
        f"{rates['PixelStore, first reading']:,.0f} images/s the first time, which is "
        f"{reading['share_of_limit']:.0%} of what decoding, resizing and CLAHE alone take on all cores, and "
        f"{rates['PixelStore, every epoch']:,.0f} afterwards (`python benchmarks/input_path.py`)."]) + "\n"


def shortcuts() -> str:
    """Markdown table of what can be had without lungs, and how much a split by image would leak."""
    audit = read_json(ROOT / "results" / "audit.json")
    lines = ["| a linear model that sees only | AUROC on other patients | on the published test set |",
             "|---|---|---|"]
    lines += ["| {sees} | {auroc:.2f} ({low:.2f}–{high:.2f}) | {test_auroc:.2f} |".format(**row)
              for row in audit["shortcuts"]]
    return "\n".join([
        *lines, "", f"The {audit['images']:,} real images at 224 px, by `chestxray audit FOLDER --json "
        "results/audit.json`; facts are those of the re-encoded files, not of the originals. The floor under "
        f"every score above is the best row that sees no lungs, {audit['floor']['sees']}: "
        f"{audit['floor']['auroc']:.2f}. A split by image has a film of the same patient in training for "
        f"{audit['leak_by_image']:.0%} of its test images."]) + "\n"


def heatmaps() -> str:
    """What notebook 05 found on the real images."""
    said = []
    for path in sorted((ROOT / "results").glob("explain-*.json")):
        found = read_json(path)
        inside, peak = found["pointing"][:2]
        stress = {row["change"]: row["auroc"] for row in found["stress"]}
        games = [f"{row['game']} against {row['control']} "
                 + ("better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided")
                 for row in found["faithfulness"]]
        name, share = found["name"].removeprefix("explain-"), "{value:.0%} ({low:.0%} to {high:.0%})"
        alike, blind = found["chance_similarity"], stress["lungs blacked out"]
        said.append(
            f"On real films (`{name}`, {found['method']} at `{found['layer']}`) {share.format(**inside)} of "
            f"the map and {share.format(**peak)} of its peaks lie inside the {found['inside']}, by chance "
            f"{inside['by chance']:.0%}. With the lungs blacked out the AUROC is {blind:.3f} instead of "
            f"{stress['none']:.3f}. Against maps that know nothing: {'; '.join(games)}. The maps of two "
            f"different films agree with rank correlation {alike:.2f}"
            + (": they say more about the model than about the film." if alike > 0.5 else "."))
    return "\n\n".join(said) + "\n"


def distillation() -> str:
    """Markdown table of the students' arms on real images, and what the numbers say."""
    found = read_json(ROOT / "results" / "compact_student_arms-patient-s0.json")
    arms = found["arms"]["test"]
    lines = ["| trained | AUROC | sensitivity | specificity | Brier | AUROC minus *alone* |",
             "|---|---|---|---|---|---|"]
    for arm, entry in arms.items():
        cells = [f"{entry['mean'][metric]:.4f} ± {entry['sd'][metric]:.4f}"
                 for metric in ("auroc", "sensitivity", "specificity", "brier")]
        gain = entry.get("difference", {}).get("auroc")
        cells.append("{value:+.4f} ({low:+.4f} to {high:+.4f})".format(**gain) if gain else "–")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    teachers = ", ".join(f"`{row['teacher']}` ({row['AUROC (validation)']:.4f})" for row in found["teachers"])
    costs = {row["model"]: row for row in found["costs"]}
    small, *large = costs.values()
    parameters = found["parameters"]
    return "\n".join([
        *lines, "", f"Test images of split `{found['split_rule']}`, mean ± standard deviation over "
        f"{len(found['seeds'])} seeds, {parameters['epochs']} epochs, {parameters['views']} stored views, "
        f"{found['image']['size']} px; settings of each arm chosen on validation. Teachers, with their AUROC "
        f"on validation: {teachers}. The student has {small['parameters']:,} parameters, 1/"
        f"{large[0]['parameters'] / small['parameters']:.0f} of its teacher's, and "
        f"{small['mflops']:.0f} million operations an image against {large[0]['mflops']:,.0f}.", "",
        conclude(arms, found["baseline"]).replace("\n", " ")]) + "\n"


def archive() -> str:
    """Images per second and core, and what ten million images cost."""
    rows = read_json(ROOT / "results" / "benchmarks" / "predict.json")["rows"]
    lines = ["| model | files | images/s and core | of reading and resizing alone | ten million images |",
             "|---|---|---|---|---|"]
    lines += [f"| `{row['model']}` | {row['files']} | {row['decision']:,.0f} | "
              f"{row['decision'] / row['reading']:.0%} | {1e7 / row['decision'] / 3600:,.1f} core hours |"
              for row in rows]
    return "\n".join(lines) + "\n"


def main() -> int:
    path = ROOT / "README.md"
    text = wanted = path.read_text(encoding="utf-8")
    for block in (results, distillation, speed, heatmaps, archive, shortcuts):
        begin, end = f"<!-- {block.__name__} -->\n", f"<!-- /{block.__name__} -->"
        before, rest = wanted.split(begin)
        wanted = before + begin + block() + end + rest.split(end)[1]
    if "--check" in sys.argv:
        return int(text != wanted)
    path.write_text(wanted, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
