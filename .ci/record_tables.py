"""README.md: what was reached on the real data, what was tried, and why the published test set is hard."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from chestxray.evaluation.arms import conclude, score_arms
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
            elif len(trainings := _trainings(first)) > 1:
                cells = [f"{trainings[m].mean():.3f} ± {trainings[m].std():.3f}" for m in METRICS]
                lines.append(f"| | – mean of {len(trainings)} trainings on this split | | "
                             f"{' | '.join(cells)} |")
        for row in (row for row in together if row["split_rule"] == rule):
            scores = {**row["scores"], **row["scores"]["youden"]}
            cells = ["{value:.3f} ({low:.3f}–{high:.3f})".format(**scores[m]) for m in METRICS]
            lines.append(f"| {rule} | the {len(row['members'])} above together (mean log-odds) | | "
                         f"{' | '.join(cells)} |")
        for row in published_rows(rule).to_dict("records"):
            cells = [f"{row[m]:.3f}" if pd.notna(row[m]) else "–" for m in METRICS]
            note = f"; {row['note']}" if pd.notna(row["note"]) else ""
            who = f"[{row['who']}]({row['source']})" if pd.notna(row["source"]) else row["who"]
            lines.append(f"| {rule} | {row['model']} ({who}{note}) | | {' | '.join(cells)} |")
        if rule in floors:
            lines.append(f"| {rule} | *linear model that sees hardly any lung* | | {floors[rule]:.3f} "
                         "| – | – | – |")
    unaided = table[scratch].set_index(["model", "split_rule"])
    lines += ["", _official(), "", said(
        """ResNet50 and InceptionV3 have no row above, because their ImageNet weights were out of reach:
        `chestxray run --data-dir FOLDER --only 03_transfer_learning-resnet50` (or `-inceptionv3`) makes
        it. What they reach from random initialisation, whole network, 128 px, 12 epochs, one training each,
        AUROC and accuracy:"""), "",
        "| from random weights | patient | official | image |", "|---|---|---|---|"]
    for model in ("resnet50_scratch", "inceptionv3_scratch"):
        cells = ["{auroc:.3f} ({auroc_low:.3f}–{auroc_high:.3f}), {accuracy:.3f}".format(
            **unaided.loc[(model, rule)]) for rule in ("patient", "official", "image")]
        lines.append(f"| `{model}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _trainings(row: pd.Series) -> pd.DataFrame:
    """Scores of the further trainings, on the same split, of the way a student was trained; or no rows."""
    arms = ROOT / "results" / f"{row['model']}_arms-{row['split_rule']}-s{row['seed']}.json"
    if not arms.exists():
        return pd.DataFrame()
    student = read_json(ROOT / "results" / f"{row['name']}.json")
    table = pd.DataFrame(read_json(arms)["arms"]["test"][student["parameters"]["arm"]]["seeds"])
    counts = student["confusion"]["test"]["youden"]
    sick, well = counts["tp"] + counts["fn"], counts["tn"] + counts["fp"]
    table["accuracy"] = (sick * table["sensitivity"] + well * table["specificity"]) / (sick + well)
    assert all(np.isclose(table.loc[0, metric], row[metric]) for metric in METRICS), "another student"
    return table


def published_rows(rule: str) -> pd.DataFrame:
    """What others report under a split rule."""
    return pd.read_csv(ROOT / "results" / "published.csv").query("split == @rule")


def said(text: str, **values: object) -> str:
    """One paragraph; its line breaks are the source's."""
    return " ".join(text.split()).format(**values)


def said_list(words: list[str]) -> str:
    """Words with commas and an "and"."""
    *others, last = words
    return f"{', '.join(others)} and {last}" if others else last


def _official() -> str:
    """Why the published test set is another matter."""
    choices = pd.read_csv(ROOT / "results" / "tried.csv").query("split_rule == 'official'")
    audit = read_json(ROOT / "results" / "audit.json")
    metrics = read_json(ROOT / "results" / "vgg16-official-s0.json")["metrics"]
    seeds = comparison_table(read_results(ROOT / "results"), "val").query(
        "model == 'vgg16' and split_rule == 'official'")
    test, overlap = metrics["test"], {row["key"]: row for row in audit["overlap"]}
    assert abs(choices["auroc"].max() - metrics["val"]["auroc"]["value"]) < 1e-6, "not the best of them"
    assert overlap["group"]["groups_crossing"] == 0, "the strict key crosses, too"
    elsewhere = read_json(ROOT / "results" / "comparison-all.json")["elsewhere"]
    rows = read_predictions(ROOT / "results", "vgg16-official-s0").query("label == 0")
    seen = rows[rows["split"] == "val"]
    trends = [part["logit"].corr(part["path"].str.extract(r"IM-(\d+)")[0].astype(int), method="spearman")
              for _, part in seen.groupby(seen["path"].str.contains("NORMAL2"))]
    trained = sorted(path.stem for path in (ROOT / "results").glob("vgg16-patient-s*.json"))
    cleared = [_cleared(name) for name in trained]
    folders = {folder: said_list([f"{one['sum'][folder]} of {one['size'][folder]}" for one in cleared])
               for folder in ("test", "train")}
    here, calm = elsewhere["vgg16-official-s0"], elsewhere["vgg16-patient-s0"]
    careful = published_rows("official").query("decided_on == 'validation'")["specificity"].sort_values()
    texts = (
        """**The `official` test set** is another population, and validation gives no warning of it:""",
        """- A linear model tells its normal films from those of the training folder with AUROC
        {shift[0][auroc]:.2f}, its pneumonias with {shift[1][auroc]:.2f}. The first VGG16 gives normal films
        of the training folder, kept for validation, a median logit of {middle[val]:.1f}, and those of the
        test folder {middle[test]:+.1f}; among the former the logit shows no drift along the numbers in the
        file names, taken for each of their two series (rank correlations {trends}; {films} films).""",
        """- It stays so, though less, when films of that folder are in training: under split `patient` VGG16
        clears {folders[test]} normal films of the folder `test`, and {folders[train]} of those of `train`
        (seeds 0 to {last}).""",
        """- Before the first score on this set, {tries} configurations were compared on one validation part
        (class weights or none, 12 or 6 epochs, stronger changes of intensity and contrast, CLAHE): AUROC
        {low:.4f} to {high:.4f}, less than one configuration varies over {seeds} seeds, each with a
        validation part of its own ({least:.4f} to {most:.4f}). The one that was best there falls to a
        specificity of {specificity}; the small network from scratch to {small}. Published models that say
        that they decided on validation have {careful}.""",
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
        "shift": audit["shift"], "middle": rows.groupby("split")["logit"].median(), "films": len(seen),
        "trends": said_list([f"{trend:.2f}" for trend in trends]), "folders": folders,
        "last": len(trained) - 1, "tries": len(choices), "low": choices["auroc"].min(),
        "high": choices["auroc"].max(), "seeds": len(seeds), "least": seeds["auroc"].min(),
        "most": seeds["auroc"].max(), "specificity": _specificities("vgg16", "{:.3f}"),
        "small": _specificities("custom_cnn", "{:.3f}"),
        "careful": said_list([f"{value:.3f}" for value in careful]),
        "before": metrics["val"]["youden"]["accuracy"]["value"], "stored": test["youden"],
        "best": here["best"], "moved": here["moved"][1], "unmoved": calm["moved"][1],
        "drift": here["drift"][0], "quiet": calm["drift"][0], "fewer": calm["fewer"][0],
        "crossing": overlap["group_conservative"]}
    head, *points = (said(text, **values) for text in texts)
    return "\n".join([head, "", *points])


def _specificities(model: str, form: str) -> str:
    """Specificity of a model on the published test set, of each seed on record."""
    table = comparison_table(read_results(ROOT / "results"))
    rows = table[(table["model"] == model) & (table["split_rule"] == "official")].sort_values("seed")
    return f"{said_list([form.format(value) for value in rows['specificity']])} (seeds 0 to {len(rows) - 1})"


def _cleared(name: str) -> pd.DataFrame:
    """How many normal test films a model calls normal, by the folder of the published split."""
    rows = read_predictions(ROOT / "results", name).query("split == 'test' and label == 0")
    threshold = read_json(ROOT / "results" / f"{name}.json")["thresholds"]["youden"]
    return (rows["probability"] < threshold).groupby(rows["path"].str.split("/").str[0]).agg(["sum", "size"])


def tried() -> str:
    """Markdown table of the configurations that were compared on validation images, best first seed first."""
    table = pd.read_csv(ROOT / "results" / "tried.csv")
    table = table[[json.loads(given).get("backbone") == "VGG16" for given in table["parameters"]]]
    table["words"] = [_configuration(json.loads(image), json.loads(parameters))
                     for image, parameters in table[["image", "parameters"]].to_numpy()]
    further = comparison_table(read_results(ROOT / "results"), "val").query("model == 'vgg16' and seed > 0")
    settings = further["name"].map(lambda name: read_json(ROOT / "results" / f"{name}.json"))
    further["words"] = [_configuration(one["image"], one["parameters"]) for one in settings]
    table = pd.concat([table, further])
    table["seed"] = table["name"].str.extract(r"-s(\d+)$")[0].astype(int)
    rows = [(rule, words, seeds.sort_values("seed")) for (rule, words), seeds in
            table.groupby(["split_rule", "words"])]
    lines = ["| split | VGG16, weights from ImageNet, learning from | AUROC | accuracy | specificity |",
             "|---|---|---|---|---|"]
    for rule, words, seeds in sorted(rows, key=lambda row: (row[0], -row[2]["auroc"].iloc[0])):
        assert list(seeds["seed"]) == list(range(len(seeds))), f"{rule}, {words}: seeds {list(seeds['seed'])}"
        cells = [", ".join(f"{value:.{digits}f}" for value in seeds[metric])
                 for metric, digits in (("auroc", 4), ("accuracy", 4), ("specificity", 3))]
        lines.append(f"| {rule} | {words} | {' | '.join(cells)} |")
    means = [f"{words}: {seeds['auroc'].mean():.4f}" for rule, words, seeds in rows
             if rule == "patient" and len(seeds) > 1]
    assert len(means) == 2, means
    return "\n".join([*lines, "", said(
        """Under split `patient` the mean AUROC over {count} seeds does not tell the two apart that were
        trained on all of them ({means}), though the first seed seemed to.""",
        count=max(len(seeds) for *_, seeds in rows), means="; ".join(means)), "", _from_scratch()]) + "\n"


def _from_scratch() -> str:
    """What other images in training brought the compact network without a teacher."""
    base = "compact_student_arms-patient-s0"
    table = read_predictions(ROOT / "results", base).query("split == 'val'")
    seeds, parameters = (read_json(ROOT / "results" / f"{base}.json")[key] for key in ("seeds", "parameters"))
    columns = [f"alone, seed {seed}" for seed in seeds]
    arms, settings = {"as on record": columns}, {"as on record": ""}
    for path in sorted((ROOT / "results").glob("compact_*_arms-patient-s0.json")):
        if path.stem == base:
            continue
        other = read_json(path)
        assert other["seeds"] == seeds and list(other["arms"]) == ["val"], path.stem
        words = "CLAHE" if other["image"]["clahe"] else "stronger changes"
        more = [f"{kind} {value:g}" for kind, value in other["parameters"]["augmentation"].items()
                if value != parameters["augmentation"][kind]]
        assert words not in arms, path.stem
        settings[words] = f" ({', '.join(more)})" if more else ""
        arms[words] = [f"{words}, seed {seed}" for seed in seeds]
        table = table.merge(read_predictions(ROOT / "results", path.stem)[["path", *columns]].rename(
            columns=dict(zip(columns, arms[words]))), on="path", validate="one_to_one")
    scored = score_arms(table, arms, "as on record", "val")
    means = "; ".join(f"{words}{settings[words]} {entry['mean']['auroc']:.4f} ± {entry['sd']['auroc']:.4f}"
                      for words, entry in scored.items())
    return said(
        """The compact network alone, from scratch, split `patient`, {count} trainings each, AUROC on
        validation: {means}. {verdict} Each is the command of `compact_student` above with `-p candidates
        '{{"alone": [{{}}]}}' -p score_test False`, a `-p name` of its own, and `-p clahe true`, or `-p
        augmentation` with the changes named.""",
        count=len(seeds), means=means, verdict=conclude(scored, "as on record").replace("\n", " "))


def _configuration(image: dict, parameters: dict) -> str:
    """What distinguishes a configuration of VGG16 from others that were tried."""
    fine = parameters["fine"]
    words = [f"`{parameters['unfreeze_from']}`, {fine['epochs']} epochs at {fine['learning_rate']:g}"]
    if fine["views"] != 4:
        words.append(f"{fine['views']} stored views instead of 4")
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
    return ", ".join(words)


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
    means = seed_table(comparison_table(list(by_name.values()))).set_index(["model", "split_rule"])
    mean, there = means.loc[("vgg16", "patient")], means.loc[("vgg16", "official"), "accuracy"]
    seen = comparison_table(list(by_name.values()), "val").query(
        "model == 'vgg16' and split_rule == 'official'")
    theirs = published_rows("official")["accuracy"].dropna()
    lungs = read_json(ROOT / "results" / "benchmarks" / "floor_lungs.json")

    def span(metrics: dict) -> str:
        return "AUROC {value:.3f} ({low:.3f}–{high:.3f})".format(**metrics["auroc"])

    return "\n".join([
        said(
            """- On children it has not seen, a fine-tuned VGG16 reaches {best} and accuracy
            {accuracy:.3f} with the first of {seeds:.0f} seeds, {mean[auroc]:.3f} and {mean[accuracy]:.3f} in
            their mean. A student with {small:,} parameters that learned from the first reaches {student};
            without TensorFlow, on one core, it needs {rates[224 px]:.1f} ms from a 224 px file to the
            decision, {rates[originals]:.0f} ms from an original.""",
            best=span(best), accuracy=best["youden"]["accuracy"]["value"], small=small, student=span(student),
            rates=rates, seeds=mean["seeds"], mean=mean),
        said(
            """- A linear model that sees hardly any lung (centre blacked out, {hidden:.0%} of the lungs
            hidden) reaches AUROC {floor:.3f}: much of such a score can be had without seeing
            the lungs. With the lungs blacked out along their masks VGG16 still ranks with
            {blind[auroc]:.3f}, though at its threshold it then finds only {blind[sensitivity]:.0%} of the
            pneumonias; the masks' outlines alone tell a linear model {lungs[outlines_auroc]:.3f}.""",
            hidden=lungs["mean"], floor=audit["floor"]["auroc"], lungs=lungs,
            blind=next(row for row in explained["stress"] if row["change"] == "lungs blacked out")),
        said(
            """- On the published test set, another population, a VGG16 with AUROC {before:.3f} or more on
            validation calls only {specificity} of the normal films normal. Validation gave no warning.
            {higher} of {published} published accuracies there are higher than its {mean:.3f}, the mean of
            its seeds.""",
            specificity=_specificities("vgg16", "{:.0%}"), before=seen["auroc"].min(), published=len(theirs),
            higher=(theirs > there).sum(), mean=there),
        said(
            """- Whoever splits by image must expect {leak[group]:.0%} of the test images to have a film of
            the same child in training, or {leak[group_conservative]:.0%} if a number in the file names
            always means the same child.""", leak=audit["leak_by_image"])]) + "\n"
