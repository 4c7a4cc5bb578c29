"""Write the tables of README.md and benchmarks/README.md from results/; with --check, fail if out of date."""

import json
import re
import sys
import textwrap
from pathlib import Path

import benchmark_tables
import pandas as pd

from chestxray.evaluation.arms import conclude
from chestxray.files import read_json
from chestxray.results import (
    comparison_table,
    read_predictions,
    read_results,
    seed_table,
)

ROOT = Path(__file__).resolve().parent.parent
METRICS = ("auroc", "accuracy", "sensitivity", "specificity")


def results() -> str:
    """Markdown table of our models and published ones, split by split, and what to know about two of them."""
    table = comparison_table(read_results(ROOT / "results"))
    scratch = table["model"].str.endswith("_scratch")
    audit = read_json(ROOT / "results" / "audit.json")
    blind = next(row for row in audit["shortcuts"] if row["sees"] == audit["floor"]["sees"])
    floors = {"patient": blind["auroc"], "official": blind["test_auroc"]}
    together = read_json(ROOT / "results" / "comparison-all.json")["together"]
    shown = table[~scratch & (table["seed"] == 0)].groupby("split_rule")["name"].agg(set)
    assert all(set(row["members"]) == shown[row["split_rule"]] for row in together), "run notebook 06 again"
    lines = ["| split | model | parameters | AUROC | accuracy | sensitivity | specificity |",
             "|---|---|---|---|---|---|---|"]
    for rule in ("patient", "official", "image"):
        mine = table[(table["split_rule"] == rule) & ~scratch]
        spread = seed_table(mine).set_index("model")
        for model, rows in mine.groupby("model", sort=False):
            first = rows.loc[rows["seed"].idxmin()]
            cells = ["{:.3f} ({:.3f}–{:.3f})".format(*first[[m, f"{m}_low", f"{m}_high"]]) for m in METRICS]
            lines.append(f"| {rule} | **{model}** | {first['parameter_count']:,} | {' | '.join(cells)} |")
            if (seeds := spread.loc[model, "seeds"]) > 1:
                cells = ["{:.3f} ± {:.3f}".format(*spread.loc[model, [m, f"{m}_sd"]]) for m in METRICS]
                lines.append(f"| | – mean of {seeds} seeds | | {' | '.join(cells)} |")
        for row in (row for row in together if row["split_rule"] == rule):
            scores = {**row["scores"], **row["scores"]["youden"]}
            cells = ["{value:.3f} ({low:.3f}–{high:.3f})".format(**scores[m]) for m in METRICS]
            lines.append(f"| {rule} | the {len(row['members'])} above together (mean log-odds) | | "
                         f"{' | '.join(cells)} |")
        for row in published_rows(rule).to_dict("records"):
            cells = [f"{row[m]:.3f}" if pd.notna(row[m]) else "–" for m in METRICS]
            note = f"; {row['note']}" if pd.notna(row["note"]) else ""
            lines.append(f"| {rule} | {row['model']} ({row['who']}{note}) | | {' | '.join(cells)} |")
        if rule in floors:
            lines.append(f"| {rule} | *linear model that sees hardly any lung* | | {floors[rule]:.3f} "
                         "| – | – | – |")
    said = "; ".join(
        f"`{row['model']}`, split `{row['split_rule']}`: AUROC {row['auroc']:.3f} "
        f"({row['auroc_low']:.3f}–{row['auroc_high']:.3f}), accuracy {row['accuracy']:.3f}"
        for _, row in table[scratch].iterrows())
    return "\n".join([*lines, "", _official(), "", _said(
        """ResNet50 and InceptionV3 have no row, because their ImageNet weights were out of reach:
        `chestxray run --data-dir FOLDER --only 03_transfer_learning-resnet50` (or `-inceptionv3`) makes
        it. What they reach from random initialisation, whole network, 128 px, 12 epochs: {said}.""",
        said=said)]) + "\n"


def published_rows(rule: str) -> pd.DataFrame:
    """What others report under a split rule."""
    return pd.read_csv(ROOT / "results" / "published.csv").query("split == @rule")


def _said(text: str, **values: object) -> str:
    """One paragraph; its line breaks are the source's."""
    return " ".join(text.split()).format(**values)


def _official() -> str:
    """Why the published test set is another matter."""
    tried = pd.read_csv(ROOT / "results" / "tried.csv").query("split_rule == 'official'")
    audit = read_json(ROOT / "results" / "audit.json")
    metrics = read_json(ROOT / "results" / "vgg16-official-s0.json")["metrics"]
    seeds = comparison_table(read_results(ROOT / "results"), "val").query(
        "model == 'vgg16' and split_rule == 'official'")
    test, overlap = metrics["test"], {row["key"]: row for row in audit["overlap"]}
    assert abs(tried["auroc"].max() - metrics["val"]["auroc"]["value"]) < 1e-6, "not the best of those tried"
    assert overlap["group"]["groups_crossing"] == 0, "the strict key crosses, too"
    elsewhere = read_json(ROOT / "results" / "comparison-all.json")["elsewhere"]
    rows = read_predictions(ROOT / "results", "vgg16-official-s0").query("label == 0")
    seen = rows[rows["split"] == "val"]
    trend = max((part["logit"].corr(part["path"].str.extract(r"IM-(\d+)")[0].astype(int), method="spearman")
                 for _, part in seen.groupby(seen["path"].str.contains("NORMAL2"))), key=abs)
    by_folder = read_predictions(ROOT / "results", "vgg16-patient-s0").query("split == 'test' and label == 0")
    cleared = (by_folder["probability"] < read_json(ROOT / "results" / "vgg16-patient-s0.json")["thresholds"][
        "youden"]).groupby(by_folder["path"].str.split("/").str[0]).agg(["sum", "size", "mean"]).T
    here, calm = elsewhere["vgg16-official-s0"], elsewhere["vgg16-patient-s0"]
    careful = sorted(published_rows("official").query("decided_on == 'validation'")["specificity"])
    said = (
        """**The `official` test set** is another population, and validation gives no warning of it:""",
        """- A linear model tells its normal films from those of the training folder with AUROC
        {shift[0][auroc]:.2f}, its pneumonias with {shift[1][auroc]:.2f}. VGG16 gives normal films of the
        training folder, kept for validation, a median logit of {middle[val]:.1f}, and those of the test
        folder {middle[test]:+.1f}; among the former the logit shows no drift along the numbers in the
        file names (rank correlation at most {trend:.2f} in {films} films).""",
        """- It stays so when films of that folder are in training: under split `patient` VGG16 clears
        {cleared[test][sum]:.0f} of {cleared[test][size]:.0f} normal films of the folder `test`
        ({cleared[test][mean]:.3f}) and {cleared[train][mean]:.3f} of those of `train`.""",
        """- Before the first score on this set, {tries} configurations were compared on one validation part
        (class weights or none, 12 or 6 epochs, stronger changes of intensity and contrast, CLAHE): AUROC
        {low:.4f} to {high:.4f}, less than one configuration varies over {seeds} seeds, each with a
        validation part of its own ({least:.4f} to {most:.4f}). The one that was best there falls to a
        specificity of {specificity}. Of the published models two say that they decided on validation:
        specificity {careful[0]:.3f} and {careful[1]:.3f}.""",
        """- Cut and ranking both moved. VGG16 decides {before:.3f} of the validation images rightly, and
        {stored[accuracy][value]:.3f} here; the best of all cuts would reach {best[accuracy]:.3f}. A
        threshold chosen on {moved[labelled]} labelled films of that folder gives, on its others, accuracy
        {moved[accuracy]:.3f} (middle 95 % of {moved[draws]} draws: {moved[accuracy_low]:.3f} to
        {moved[accuracy_high]:.3f}), with specificity {moved[specificity]:.3f} instead of
        {stored[specificity][value]:.3f} and sensitivity {moved[sensitivity]:.3f} instead of
        {stored[sensitivity][value]:.3f}: an explanation, not a score, because test labels were used.
        Under split `patient`, where nothing had moved, the same makes it worse
        ({unmoved[accuracy]:.3f}).""",
        """- Without labels one sees that something changed, not what: the population stability index of
        the logits is {drift[psi]:.2f} (by chance {drift[psi_by_chance]:.2f}). That of the model of split
        `patient` is {quiet[psi]:.2f}, and {fewer[psi]:.2f} once only 40 % of the films are pneumonias.""",
        """- The set is not surely clean either: if a person's number means the same child in both folders,
        {crossing[groups_crossing]} children are on both sides, with {crossing[test_images_affected]} of
        the test images; by the strict key, which tells kinds of pneumonia apart, none.""")
    values = {
        "shift": audit["shift"], "middle": rows.groupby("split")["logit"].median(), "trend": abs(trend),
        "films": len(seen), "cleared": cleared, "tries": len(tried), "low": tried["auroc"].min(),
        "high": tried["auroc"].max(), "seeds": len(seeds), "least": seeds["auroc"].min(),
        "most": seeds["auroc"].max(), "specificity": _specificities("{:.3f}"), "careful": careful,
        "before": metrics["val"]["youden"]["accuracy"]["value"], "stored": test["youden"],
        "best": here["best"], "moved": here["moved"][1], "unmoved": calm["moved"][1],
        "drift": here["drift"][0], "quiet": calm["drift"][0], "fewer": calm["fewer"][0],
        "crossing": overlap["group_conservative"]}
    head, *points = (_said(text, **values) for text in said)
    return "\n".join([head, "", *points])


def _specificities(form: str) -> str:
    """Specificity of VGG16 on the published test set, of each seed on record."""
    table = comparison_table(read_results(ROOT / "results"))
    rows = table[(table["model"] == "vgg16") & (table["split_rule"] == "official")].sort_values("seed")
    *others, last = (form.format(value) for value in rows["specificity"])
    return f"{', '.join(others)} and {last} (seeds 0 to {len(others)})" if others else last


def tried() -> str:
    """Markdown table of the configurations that were compared on validation images."""
    lines = ["| split | VGG16, weights from ImageNet, learning from | AUROC | accuracy | specificity |",
             "|---|---|---|---|---|"]
    table = pd.read_csv(ROOT / "results" / "tried.csv").sort_values(
        ["split_rule", "auroc"], ascending=[True, False])
    for row in table.to_dict("records"):
        image, parameters = json.loads(row["image"]), json.loads(row["parameters"])
        fine = parameters["fine"]
        words = [f"`{parameters['unfreeze_from']}`, {fine['epochs']} epochs at {fine['learning_rate']:g}"]
        if image["size"] != 224:
            words.append(f"{image['size']} px")
        if image["clahe"]:
            words.append("CLAHE")
        if fine["augmentation"] is None:
            words.append("no augmentation")
        elif fine["augmentation"]["contrast"] > 0.15:
            words.append("stronger augmentation")
        if not fine["class_weights"]:
            words.append("no class weights")
        if fine["label_smoothing"]:
            words.append(f"label smoothing {fine['label_smoothing']:g}")
        lines.append(f"| {row['split_rule']} | {', '.join(words)} | {row['auroc']:.4f} | "
                     f"{row['accuracy']:.4f} | {row['specificity']:.3f} |")
    return "\n".join(lines) + "\n"


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
        f"every score on other patients is the best row that sees hardly any lung, {audit['floor']['sees']}: "
        f"{audit['floor']['auroc']:.2f}, cross-validated over all images. A split by image has a film of the "
        f"same patient in training for {audit['leak_by_image']['group']:.0%} of its test images, by "
        "expectation, where a patient is a number and a kind of pneumonia (`person17_virus`), and "
        f"{audit['leak_by_image']['group_conservative']:.0%} where it is the number alone."]) + "\n"


def _official_arms() -> str:
    found = read_json(ROOT / "results" / "compact_student_arms-official-s0.json")
    alone, distilled = (found["arms"]["test"][arm] for arm in ("alone", "distilled"))
    gain = {metric: "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**distilled["difference"][metric])
            for metric in ("auroc", "specificity")}
    spread = seed_table(comparison_table(read_results(ROOT / "results"))).set_index(["model", "split_rule"])
    return _said(
        """On the published test set (one training of each, settings as above, chosen on split `patient`,
        whose validation images hold some of these; teacher `{teacher}`): AUROC {alone[auroc]:.3f} alone,
        {gain[auroc]} distilled; specificity {alone[specificity]:.3f} alone, {gain[specificity]} distilled.
        These intervals are over patients, not over trainings: the specificity of VGG16 has a standard
        deviation of {sd:.3f} over its seeds here.""",
        teacher=found["teacher_names"]["1"][0], alone=alone["mean"], gain=gain,
        sd=spread.loc[("vgg16", "official"), "specificity_sd"])


def heatmaps() -> str:
    """Markdown table of what notebook 05 found on the real images."""
    lines = ["| model, map | inside the lungs (chance) | peaks inside | AUROC, lungs blacked out "
             "| deletion, insertion against two controls | two films | two trainings |",
             "|---|---|---|---|---|---|---|"]
    for path in sorted((ROOT / "results").glob("explain-*.json")):
        found = read_json(path)
        inside, peak = found["pointing"][:2]
        stress = {row["change"]: row["auroc"] for row in found["stress"]}
        verdicts = ["better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided"
                    for row in found["faithfulness"]]
        counted = ", ".join(f"{verdicts.count(one)} {one}" for one in ("better", "undecided", "worse")
                            if one in verdicts)
        share, two = "{value:.0%} ({low:.0%} to {high:.0%})", found.get("two_trainings")
        lines.append(
            f"| `{found['name'].removeprefix('explain-')}`, {found['method']} at `{found['layer']}` | "
            f"{share.format(**inside)}, chance {inside['by chance']:.0%} | {share.format(**peak)} | "
            f"{stress['lungs blacked out']:.3f} instead of {stress['none']:.3f} | {counted} | "
            f"{found['chance_similarity']:.2f} | {'–' if two is None else format(two, '.2f')} |")
    pointing = read_json(ROOT / "results" / "benchmarks" / "phantom_pointing.json")
    peaks = ", ".join(f"{row['network']} {row['peak']:.0%} ({row['peak_low']:.0%} to {row['peak_high']:.0%})"
                      for row in pointing["rows"] if row["maps"].startswith("gradcam at block5"))
    return "\n".join([*lines, "", _said(
        """On {images} synthetic pneumonias of other patients, whose lesions are known and cover
        {chance:.0%} of a film, the peak of Grad-CAM lies inside the lesion as often as this: {peaks}; that
        of a bell over the middle of the film {bell:.0%} ([layers and
        methods](benchmarks/README.md#do-heatmaps-point-at-what-is-known)).""", images=pointing["images"],
        chance=pointing["chance"], peaks=peaks, bell=pointing["rows"][0]["peak"])]) + "\n"


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
        conclude(arms, found["baseline"]).replace("\n", " "), "", _official_arms()]) + "\n"


def minute() -> str:
    """What was found, in a few sentences."""
    by_name = {result["name"]: result for result in read_results(ROOT / "results")}
    audit = read_json(ROOT / "results" / "audit.json")
    best, student = (by_name[name]["metrics"]["test"] for name in (
        "vgg16-patient-s0", "compact_student-patient-s0"))
    small = by_name["compact_student-patient-s0"]["parameter_count"]
    rates = {row["files"]: 1000 / row["decision"]
             for row in read_json(ROOT / "results" / "benchmarks" / "predict.json")["rows"]
             if row["model"] == "compact_student-litert"}
    explained = read_json(ROOT / "results" / "explain-vgg16-patient-s0.json")
    mean = seed_table(comparison_table(list(by_name.values()))).set_index(["model", "split_rule"]).loc[
        ("vgg16", "patient")]
    lungs = read_json(ROOT / "results" / "benchmarks" / "floor_lungs.json")

    def span(metrics: dict) -> str:
        return "AUROC {value:.3f} ({low:.3f}–{high:.3f})".format(**metrics["auroc"])

    return "\n".join([
        _said(
            """- On children it has not seen, a fine-tuned VGG16 reaches {best} and accuracy
            {accuracy:.3f} with the first of {seeds:.0f} seeds, {mean[auroc]:.3f} and {mean[accuracy]:.3f} in
            their mean. A student with {small:,} parameters that learned from the first reaches {student};
            without TensorFlow, on one core, it needs {rates[224 px]:.1f} ms from a 224 px file to the
            decision, {rates[originals]:.0f} ms from an original.""",
            best=span(best), accuracy=best["youden"]["accuracy"]["value"], small=small, student=span(student),
            rates=rates, seeds=mean["seeds"], mean=mean),
        _said(
            """- A linear model that sees hardly any lung (centre blacked out, {hidden:.0%} of the lungs
            hidden) reaches AUROC {floor:.3f}: much of such a score can be had without seeing
            the lungs. With the lungs blacked out along their masks VGG16 still reaches {blind:.3f}; the
            masks' outlines alone tell a linear model {lungs[outlines_auroc]:.3f}.""",
            hidden=lungs["mean"], floor=audit["floor"]["auroc"], lungs=lungs,
            blind=next(row["auroc"] for row in explained["stress"] if row["change"] == "lungs blacked out")),
        _said(
            """- On the published test set, another population, a VGG16 that is as good on validation
            calls only {specificity} of the normal films normal. Validation gave no warning.""",
            specificity=_specificities("{:.0%}")),
        _said(
            """- Whoever splits by image must expect {leak[group]:.0%} of the test images to have a film of
            the same child in training, or {leak[group_conservative]:.0%} if a number in the file names
            always means the same child.""", leak=audit["leak_by_image"])]) + "\n"


def backbone() -> str:
    """The row of the registry that added DenseNet121, from the source."""
    source = (ROOT / "chestxray" / "models" / "backbones.py").read_text(encoding="utf-8")
    row = re.search(r'^ +Backbone\("DenseNet121".*?True\),$', source, re.M | re.S).group()
    return f"```python\n{textwrap.dedent(row)}\n```\n"


def footprint() -> str:
    """Download, disk and minutes."""
    found = read_json(ROOT / "results" / "benchmarks" / "footprint.json")
    images = read_json(ROOT / "results" / "audit.json")["images"]
    lines = ["| | |", "|---|---|",
             f"| packages to download (`.[train]`) | {found['download'] / 1e9:.1f} GB |",
             f"| environment on disk | {found['environment'] / 1e9:.1f} GB |",
             f"| `chestxray run` on synthetic images | {found['run_seconds'] / 60:.0f} min on "
             f"{found['cores']} cores, {(found['run'] + found['cache']) / 1e6:.0f} MB |",
             f"| decoded pixels of the real images, 224 px | {images * 224**2 / 1e9:.1f} GB of cache |"]
    lines += [f"| training `{result['name']}` | {result['training']['seconds'] / 60:.0f} min |"
              for result in read_results(ROOT / "results")
              if result["name"].endswith("-s0") and "_scratch" not in result["name"]]
    return "\n".join(lines) + "\n\nDownload, environment and first run: `python benchmarks/footprint.py`; "\
        "trainings from `results/`.\n"


BLOCKS = {
    "README.md": (minute, results, tried, distillation, benchmark_tables.speed, heatmaps,
                  benchmark_tables.archive, backbone, shortcuts, footprint),
    "benchmarks/README.md": (
        benchmark_tables.speed, benchmark_tables.head_quality, benchmark_tables.input_path,
        benchmark_tables.batch_norm, benchmark_tables.gradcam, benchmark_tables.archive,
        benchmark_tables.test_time_views, benchmark_tables.phantom_pointing, benchmark_tables.floor_lungs,
        benchmark_tables.difficulty),
}


def main() -> int:
    outdated = False
    for name, blocks in BLOCKS.items():
        path = ROOT / name
        text = wanted = path.read_text(encoding="utf-8")
        for block in blocks:
            begin, end = f"<!-- {block.__name__} -->\n", f"<!-- /{block.__name__} -->"
            if wanted.count(begin) != 1 or wanted.count(end) != 1:
                raise ValueError(f"{name} must have one block {block.__name__}")
            before, rest = wanted.split(begin)
            wanted = before + begin + block() + end + rest.split(end)[1]
        outdated |= text != wanted
        if "--check" not in sys.argv:
            path.write_text(wanted, encoding="utf-8")
    return int(outdated and "--check" in sys.argv)


if __name__ == "__main__":
    sys.exit(main())
