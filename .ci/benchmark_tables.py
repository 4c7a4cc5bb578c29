"""The tables of measured speed, for README.md and benchmarks/README.md, from results/benchmarks/."""

from pathlib import Path
from typing import Any

from chestxray.files import read_json

RESULTS = Path(__file__).resolve().parent.parent / "results"


def speed() -> str:
    """Markdown table of the two-phase benchmarks, one row an arm, and how they were measured."""
    lines = [
        "| network | as | whole training | faster | memory | disk | frozen, rest, validation | limit |",
        "|---|---|---|---|---|---|---|---|",
    ]
    protocols = set()
    for path in sorted((RESULTS / "benchmarks").glob("two_phase-*.json"), reverse=True):
        benchmark = read_json(path)
        for arm, row in benchmark["arms"].items():
            own, seconds = ["–"] * 3, row["seconds"]
            if "gigabytes" in row:
                validation = seconds["head, validation"] + seconds["fine, validation"]
                rest = seconds["total"] - seconds["frozen layers, once"] - validation
                shares = [
                    100 * part / seconds["total"]
                    for part in (seconds["frozen layers, once"], rest, validation)
                ]
                own = [
                    f"{row['gigabytes']:.1f} GB",
                    " ".join(f"{share:.0f} %" for share in shares),
                    f"{row['limit_seconds'] / 60:,.0f} min",
                ]
            lines.append(
                f"| {path.stem.split('-')[1]} | {arm} | {seconds['total'] / 60:,.0f} min | "
                f"{row['times_faster']:.1f}× | {row['peak_gb']:.1f} GB | {' | '.join(own)} |"
            )
        protocols.add(
            "{epochs[0]} epochs of the head and {epochs[1]} of fine-tuning on {training_images:,} "
            "+ {validation_images:,} images, K = {views}; extrapolated from {measured_images:,} "
            "measured images an arm".format(**benchmark)
        )
    quality = read_json(RESULTS / "benchmarks" / "head_quality.json")
    views = quality["views"]
    said = ", ".join(
        f"K = {count}: {row['difference']:+.4f} ± {row['difference_sd']:.4f}"
        for count, row in views.items()
        if count != quality["fresh"]
    )
    fresh = views[quality["fresh"]]
    reading = read_json(RESULTS / "benchmarks" / "input_path.json")
    rates = reading["images_per_second"]
    return (
        "\n".join(
            [
                *lines,
                "",
                f"*{'; or '.join(sorted(protocols))}.*",
                "",
                f"What stored views cost in quality: a head on frozen {quality['backbone']} reaches AUROC "
                f"{fresh['mean']:.4f} on validation with fresh augmentation in each of {quality['epochs']} epochs; "
                f"{said} ({len(fresh['auroc'])} seeds, `python benchmarks/head_quality.py --data-dir FOLDER`). "
                f"Reading originals: {rates['PixelStore, first reading']:,.0f} images/s the first time, which is "
                f"{reading['share_of_limit']:.0%} of what decoding, resizing and CLAHE alone take on all cores, and "
                f"{rates['PixelStore, every epoch']:,.0f} afterwards (`python benchmarks/input_path.py`).",
            ]
        )
        + "\n"
    )


def speed_in_short() -> str:
    """Minutes of a whole training in the common notebook, in its fast form, and here."""
    rows = []
    for path in sorted((RESULTS / "benchmarks").glob("two_phase-*.json"), reverse=True):
        minutes = {arm: row["seconds"]["total"] / 60 for arm, row in read_json(path)["arms"].items()}
        common, fast, own = map(minutes.get, ("common, float32", "common, bf16 and cache", "ours, bf16"))
        rows.append(
            [
                path.stem.split("-")[1],
                f"{common:.0f} min",
                f"{fast:.0f} min",
                f"{own:.0f} min",
                f"{common / own:.1f}×",
                f"{fast / own:.1f}×",
            ]
        )
    benchmarks = (read_json(RESULTS / "benchmarks" / f"{name}.json") for name in ("training", "batch_norm"))
    faster, fused = (sorted(row["faster"] for row in benchmark["rows"]) for benchmark in benchmarks)
    return _table(
        [
            "network",
            "common notebook",
            "the same in bfloat16, cached",
            "here, bfloat16",
            "faster than the first",
            "than the second",
        ],
        rows,
    ) + (
        f"\nNetworks from scratch train {faster[0]:.1f} to {faster[-1]:.1f} times as fast as in the common "
        f"notebook; a factor of {fused[0]:.1f} to {fused[-1]:.1f} of that is batch normalisation in one "
        "kernel ([both measured](benchmarks/README.md#training-from-scratch)).\n"
    )


def exports() -> str:
    """Caption of the figure of latencies: what was timed, and whether the exports decide as Keras does."""
    found = read_json(RESULTS / "deploy_student-patient-s0.json")
    (images,) = {row["images"] for row in found["parity"]}
    assert not any(row["decisions_changed"] for row in found["parity"]), "an export decides otherwise"
    return (
        "*The network alone, median time of an image, one at a time. (Made by notebook 07 with the "
        f"recipe `deploy_student`; each of the {len(found['parity'])} exports decides all {images} "
        "validation images as Keras does: [results](results/deploy_student-patient-s0.json).)*\n"
    )


def archive_in_short() -> str:
    """What one core decides in a second, from the file on."""
    rows = {
        (row["model"], row["files"]): row
        for row in read_json(RESULTS / "benchmarks" / "predict.json")["rows"]
    }
    cells = []
    for model in ("compact_student-litert", "compact_student-keras", "vgg16-keras"):
        originals, small = (rows[(model, files)]["decision"] for files in ("originals", "224 px"))
        cells.append(
            [f"`{model}`", f"{originals:,.0f}", f"{small:,.0f}", f"{1e7 / originals / 3600:,.0f} core hours"]
        )
    heads = ["model", "originals, images/s", "files of 224 px, images/s", "ten million originals"]
    return _table(heads, cells)


def archive() -> str:
    """Images per second and core, and what ten million images cost."""
    rows = read_json(RESULTS / "benchmarks" / "predict.json")["rows"]
    lines = [
        "| model | files | images/s and core | of reading and resizing alone | ten million images |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| `{row['model']}` | {row['files']} | {row['decision']:,.0f} | "
        f"{row['decision'] / row['reading']:.0%} | {1e7 / row['decision'] / 3600:,.1f} core hours |"
        for row in rows
    ]
    return "\n".join(lines) + "\n"


def _table(heads: list[str], rows: list[list[Any]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "".join(f"| {' | '.join(str(cell) for cell in line)} |\n" for line in lines)


def gradcam() -> str:
    """Maps per second at each size of batch, against tf-keras-vis."""
    found = read_json(RESULTS / "benchmarks" / "gradcam-VGG16.json")
    alone = read_json(RESULTS / "benchmarks" / "two_phase-VGG16.json")["arms"]["ours, float32"]["frozen"]
    return _table(
        [
            "images a batch",
            "chestxray, maps/s",
            "tf-keras-vis, maps/s",
            "faster",
            "lowest correlation of the maps",
        ],
        [
            [
                row["batch"],
                f"{row['chestxray']:.1f}",
                f"{row['tf-keras-vis']:.1f}",
                f"{row['faster']:.1f}×",
                f"{row['lowest_correlation']:.6f}",
            ]
            for row in found["rows"]
        ],
    ) + (
        "\nA map needs the forward pass, and the gradient from the logit back to the one layer whose "
        "channels are weighed, which is next to nothing. The limit is therefore the forward pass: the frozen "
        f"part of the same network in float32 takes {alone['train']:.1f} images/s by itself (first table).\n"
    )


def batch_norm() -> str:
    """Training images per second, with Keras' kernel and with the fused one."""
    found = read_json(RESULTS / "benchmarks" / "batch_norm.json")
    return _table(
        ["network", "side", "Keras' own, images/s", "fused, images/s", "faster"],
        [
            [
                row["network"],
                f"{row['image_size']} px",
                f"{row['keras_images_per_second']:.0f}",
                f"{row['fused_images_per_second']:.0f}",
                f"{row['faster']:.2f}×",
            ]
            for row in found["rows"]
        ],
    )


def training_steps() -> str:
    """Training images, fresh pages a step and peak memory, in the common notebook and here."""
    lines = []
    for row in read_json(RESULTS / "benchmarks" / "training.json")["rows"]:
        common, own = row["common"], row["chestxray"]
        lines.append(
            [
                row["network"],
                f"{row['image_size']} px",
                f"{common['images_per_second']:.0f}",
                f"{own['images_per_second']:.0f}",
                f"{row['faster']:.2f}×",
                *(f"{run['pages']:,.0f}" for run in (common, own)),
                *(f"{run['megabytes']:,.0f} MB" for run in (common, own)),
            ]
        )
    return _table(
        [
            "network",
            "side",
            "common, images/s",
            "chestxray, images/s",
            "faster",
            "common, fresh pages a step",
            "chestxray, fresh pages a step",
            "common, peak",
            "chestxray, peak",
        ],
        lines,
    )


def input_path() -> str:
    """Images per second of every reader, and the limit."""
    found = read_json(RESULTS / "benchmarks" / "input_path.json")
    rows = [[name, f"{rate:,.0f}"] for name, rate in found["images_per_second"].items()]
    limit = "limit of a first reading: decoding, resizing and CLAHE alone, all cores"
    return _table(["reader", "images/s"], [*rows, [limit, f"{found['limit']:,.0f}"]])


def head_quality() -> str:
    """AUROC on validation by number of stored views."""
    found = read_json(RESULTS / "benchmarks" / "head_quality.json")
    seeds = len(next(iter(found["views"].values()))["auroc"])
    return _table(
        [
            "stored views",
            f"AUROC on validation, mean ± sd of {seeds} seeds",
            "minus fresh views in every epoch",
        ],
        [
            [
                f"{count} (fresh)" if count == found["fresh"] else count,
                f"{row['mean']:.4f} ± {row['sd']:.4f}",
                f"{row['difference']:+.4f} ± {row['difference_sd']:.4f}",
            ]
            for count, row in found["views"].items()
        ],
    )


def test_time_views() -> str:
    """Validation scores of one model by number of averaged random views."""
    found = read_json(RESULTS / "benchmarks" / "test_time_views-vgg16-official-s0.json")
    return _table(
        ["random views averaged in", "AUROC on validation", "accuracy at 0.5"],
        [[count, f"{row['auroc']:.4f}", f"{row['accuracy']:.3f}"] for count, row in found["views"].items()],
    )


def phantom_pointing() -> str:
    """How well maps point at lesions that are known."""
    found = read_json(RESULTS / "benchmarks" / "phantom_pointing.json")
    span = "{{{0}:.0%}} ({{{0}_low:.0%}} to {{{0}_high:.0%}})"
    rows = [
        [row["network"], row["maps"], *(span.format(key).format(**row) for key in ("peak", "share"))]
        for row in found["rows"]
    ]
    return _table(["network", "map", "peak inside the lesion", "share of the map inside"], rows) + (
        f"\n{found['images']} synthetic pneumonias of {found['patients']} other patients; lesions cover "
        f"{found['chance']:.0%} of a film.\n"
    )


def floor_lungs() -> str:
    """How much of the lungs the audit's blacked-out centre hides."""
    found = read_json(RESULTS / "benchmarks" / "floor_lungs.json")
    return (
        f"The centre that the audit blacks out hides {found['mean']:.0%} of the lungs on average, "
        f"{found['percentiles']['5']:.0%} or less on one film in twenty ({found['masks']:,} lung "
        "masks). A linear model that sees nothing but these masks reaches AUROC "
        f"{found['outlines_auroc']:.3f} on other patients: blacking the lungs out along them does not "
        "hide everything that they tell.\n"
    )


def difficulty() -> str:
    """What a small network reaches on the phantoms."""
    found = read_json(RESULTS / "phantom_difficulty.json")
    return (
        "AUROC {value:.3f} ({low:.3f} to {high:.3f})".format(**found["auroc"])
        + f" on {found['test_images']} phantoms of other patients, after {found['epochs']} epochs on "
        f"{found['training_images']:,} of {found['image_size']} px.\n"
    )
