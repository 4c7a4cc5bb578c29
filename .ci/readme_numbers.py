"""Write the tables of the README files from results/; with --check, fail if one is out of date."""

import re
import sys
import textwrap
from pathlib import Path

import benchmark_tables
import record_details
import record_tables
from record_tables import said

from chestxray.files import read_json
from chestxray.results import read_results

ROOT = Path(__file__).resolve().parent.parent


def shortcuts() -> str:
    """Markdown table of what can be had without lungs, and how much a split by image would leak."""
    audit = read_json(ROOT / "results" / "audit.json")
    lines = [
        "| a linear model that sees only | AUROC on other patients | on the published test set |",
        "|---|---|---|",
    ]
    lines += [
        "| {sees} | {auroc:.2f} ({low:.2f}–{high:.2f}) | {test_auroc:.2f} |".format(**row)
        for row in audit["shortcuts"]
    ]
    return (
        "\n".join(
            [
                *lines,
                "",
                f"The {audit['images']:,} real images at 224 px, by `chestxray audit FOLDER --json "
                "results/audit.json`; facts are those of the re-encoded files, not of the originals. The floor under "
                f"every score on other patients is the best row that sees hardly any lung, {audit['floor']['sees']}: "
                f"{audit['floor']['auroc']:.2f}, cross-validated over all images.",
            ]
        )
        + "\n"
    )


def heatmaps() -> str:
    """Markdown table of what notebook 05 found on the real images."""
    lines = [
        "| model, map | of the map inside the lungs | of the peaks | AUROC, lungs blacked out "
        "| sensitivity, specificity then | deletion, insertion against two controls | two films "
        "| two trainings |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for path in sorted((ROOT / "results").glob("explain-*.json")):
        found = read_json(path)
        inside, peak = found["pointing"][:2]
        stress = {row["change"]: row for row in found["stress"]}
        black, none = stress["lungs blacked out"], stress["none"]
        verdicts = [
            "better" if row["low"] > 0 else "worse" if row["high"] < 0 else "undecided"
            for row in found["faithfulness"]
        ]
        counted = ", ".join(
            f"{verdicts.count(one)} {one}" for one in ("better", "undecided", "worse") if one in verdicts
        )
        share, two = "{value:.0%} ({low:.0%} to {high:.0%})", found.get("two_trainings")
        lines.append(
            f"| `{found['name'].removeprefix('explain-')}`, {found['method']} at `{found['layer']}` | "
            f"{share.format(**inside)}, chance {inside['by chance']:.0%} | {share.format(**peak)} | "
            f"{black['auroc']:.3f} instead of {none['auroc']:.3f} | {black['sensitivity']:.2f}, "
            f"{black['specificity']:.2f} instead of {none['sensitivity']:.2f}, {none['specificity']:.2f} | "
            f"{counted} | "
            f"{found['chance_similarity']:.2f} | {'–' if two is None else format(two, '.2f')} |"
        )
    pointing = read_json(ROOT / "results" / "benchmarks" / "phantom_pointing.json")
    peaks = ", ".join(
        f"{row['network']} {row['peak']:.0%} ({row['peak_low']:.0%} to {row['peak_high']:.0%})"
        for row in pointing["rows"]
        if row["maps"].startswith("gradcam at block5")
    )
    return (
        "\n".join(
            [
                *lines,
                "",
                said(
                    """Networks that were trained on synthetic films, on {images} synthetic pneumonias of other
        patients, whose lesions are known and cover {chance:.0%} of a film: the peak of Grad-CAM lies inside
        the lesion as often as this: {peaks}; that
        of a bell over the middle of the film {bell:.0%} ([layers and
        methods](benchmarks/README.md#do-heatmaps-point-at-what-is-known)).""",
                    images=pointing["images"],
                    chance=pointing["chance"],
                    peaks=peaks,
                    bell=pointing["rows"][0]["peak"],
                ),
            ]
        )
        + "\n"
    )


def distillation_elsewhere() -> str:
    """What the teacher was worth on the two other splits."""
    lines = [
        "| split | trainings | AUROC alone | distilled minus alone | specificity alone "
        "| distilled minus alone |",
        "|---|---|---|---|---|---|",
    ]
    for rule in ("official", "image"):
        arms = read_json(ROOT / "results" / f"compact_student_arms-{rule}-s0.json")["arms"]["test"]
        assert list(arms) == ["alone", "distilled"], rule
        cells = [f"{len(arms['alone']['seeds']['auroc'])}"]
        for metric in ("auroc", "specificity"):
            mean, sd = (arms["alone"][what][metric] for what in ("mean", "sd"))
            gain = arms["distilled"]["difference"][metric]
            assert gain["low"] < 0 < gain["high"], "README says that no difference is shown"
            cells += [
                f"{mean:.3f}" + ("" if sd is None else f" ± {sd:.3f}"),
                "{value:+.3f} ({low:+.3f} to {high:+.3f})".format(**gain),
            ]
        lines.append(f"| {rule} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def distillation() -> str:
    """Markdown table of the students' arms on real images, and what the numbers say."""
    found = read_json(ROOT / "results" / "compact_student_arms-patient-s0.json")
    arms = found["arms"]["test"]
    lines = [
        "| trained | AUROC | sensitivity | specificity | Brier | AUROC minus *alone* |",
        "|---|---|---|---|---|---|",
    ]
    for arm, entry in arms.items():
        cells = [
            f"{entry['mean'][metric]:.4f} ± {entry['sd'][metric]:.4f}"
            for metric in ("auroc", "sensitivity", "specificity", "brier")
        ]
        gain = entry.get("difference", {}).get("auroc")
        cells.append("{value:+.4f} ({low:+.4f} to {high:+.4f})".format(**gain) if gain else "–")
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    teachers = ", ".join(f"`{row['teacher']}` ({row['AUROC (validation)']:.4f})" for row in found["teachers"])
    costs = {row["model"]: row for row in found["costs"]}
    small, *large = costs.values()
    parameters = found["parameters"]
    return (
        "\n".join(
            [
                said(
                    """**{gain}** on split `patient` ({teachers} trainings of each arm). On the two other splits that
             is [not shown](results/README.md#students-on-the-other-splits).""",
                    gain=_gain(arms["distilled"]),
                    teachers=len(found["seeds"]),
                ),
                "",
                *lines,
                "",
                f"Test images, mean ± standard deviation, {parameters['epochs']} epochs, {parameters['views']} "
                f"stored views, {found['image']['size']} px; settings of each arm chosen on validation. Teachers, "
                f"with their AUROC on validation: {teachers}. The student has {small['parameters']:,} parameters, 1/"
                f"{large[0]['parameters'] / small['parameters']:.0f} of its teacher's, and "
                f"{small['mflops']:.0f} million operations an image against {large[0]['mflops']:,.0f}. "
                f"{len(arms) - 1} comparisons, each with its own 95 % interval.",
            ]
        )
        + "\n"
    )


def _gain(arm: dict) -> str:
    difference = arm["difference"]["auroc"]
    assert difference["low"] > 0, "the teacher is not shown to help"
    return "A teacher helps: AUROC {value:+.4f} ({low:+.4f} to {high:+.4f})".format(**difference)


def backbone() -> str:
    """The row of the registry that added DenseNet121, from the source."""
    source = (ROOT / "chestxray" / "models" / "backbones.py").read_text(encoding="utf-8")
    row = re.search(r'^ +Backbone\("DenseNet121".*?True\),$', source, re.M | re.S).group()
    return f"```python\n{textwrap.dedent(row)}\n```\n"


def footprint() -> str:
    """Download, disk and minutes."""
    found = read_json(ROOT / "results" / "benchmarks" / "footprint.json")
    images = read_json(ROOT / "results" / "audit.json")["images"]
    lines = [
        "| | |",
        "|---|---|",
        f"| packages to download (`.[train]`) | {found['download'] / 1e9:.1f} GB |",
        f"| environment on disk | {found['environment'] / 1e9:.1f} GB |",
        f"| `chestxray run` on synthetic images | {found['run_seconds'] / 60:.0f} min on "
        f"{found['cores']} cores, {(found['run'] + found['cache']) / 1e6:.0f} MB |",
        f"| decoded pixels of the real images, 224 px | {images * 224**2 / 1e9:.1f} GB of cache |",
    ]
    trained = sorted(
        result["training"]["seconds"] / 60
        for result in read_results(ROOT / "results")
        if result["name"].endswith("-s0") and "_scratch" not in result["name"]
    )
    lines.append(
        f"| training one model of the [results](#results) | {trained[0]:.0f} to {trained[-1]:.0f} min |"
    )
    return (
        "\n".join(
            [
                *lines,
                "",
                said(
                    """Download, environment and first run: `python benchmarks/footprint.py`; trainings from `results/`,
        some with features already cached, some with other work beside them: the order of magnitude."""
                ),
            ]
        )
        + "\n"
    )


BLOCKS = {
    "README.md": (
        record_tables.minute,
        record_tables.results,
        record_tables.official_in_short,
        distillation,
        benchmark_tables.speed_in_short,
        heatmaps,
        benchmark_tables.exports,
        benchmark_tables.archive_in_short,
        backbone,
        shortcuts,
        footprint,
    ),
    "results/README.md": (
        record_details.official,
        record_details.from_random_weights,
        record_details.tried,
        record_details.goals,
        distillation_elsewhere,
    ),
    "benchmarks/README.md": (
        benchmark_tables.speed,
        benchmark_tables.head_quality,
        benchmark_tables.input_path,
        benchmark_tables.batch_norm,
        benchmark_tables.training_steps,
        benchmark_tables.gradcam,
        benchmark_tables.archive,
        benchmark_tables.test_time_views,
        benchmark_tables.phantom_pointing,
        benchmark_tables.floor_lungs,
        benchmark_tables.difficulty,
    ),
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
