"""The command line: ``chestxray run | audit | predict | evaluate | export | freeze | publish | cache``.

Each command imports what it needs, so that help and prediction start fast.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from chestxray.files import CACHES, cache_dir, printable

_EXTRAS = {
    "ai_edge_litert": "lite",
    "onnxruntime": "lite",
    "pydicom": "dicom",
    "distributed": "dask",
    "onnx": "export",
    "tf2onnx": "export",
}
"""Which extra of the package brings what is missing; the others are in ``train``."""


class UserError(click.ClickException):
    """A user's mistake: one line, exit code 2."""

    exit_code = 2


def one_line_errors(command: Callable[..., Any]) -> Callable[..., Any]:
    """Turn the mistakes that the package reports into one line and exit code 2."""

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        try:
            return command(*args, **kwargs)
        except ModuleNotFoundError as error:
            extra = _EXTRAS.get((error.name or "").split(".")[0], "train")
            raise UserError(f"{error.name} is missing: pip install -e '.[{extra}]'") from error
        except (ValueError, OSError, TypeError, RuntimeError) as error:
            raise UserError(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)

    return wrapped


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """Say on Ctrl-C that what is done in this block need not be done again."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)


def parse_value(text: str) -> Any:
    """Read a parameter as YAML does, and 1e-4 as the number it is meant to be.

    Raises:
        ValueError: The text is not YAML.
    """
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"not a value in YAML. Received: value={text!r}") from None
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value):
        return float(value)
    return value


def check_ending(path: Path | None, *endings: str) -> None:
    """Raise ValueError where a slip would replace a file of another kind, such as an X-ray, by a page."""
    if path and path.suffix.lower() not in endings:
        raise ValueError(f"the name must end in {' or '.join(endings)}. Received: path={str(path)!r}")


def show(sections: list[tuple]) -> None:
    """Print sections of title, text and table; of long tables the first 20 rows."""
    from chestxray.deployment.report import number_text

    for title, text, table in sections:
        click.echo(f"\n{title}\n{'-' * len(title)}\n{text}".rstrip())
        if table is not None:
            first = table.head(20).map(lambda value: printable(value) if isinstance(value, str) else value)
            click.echo(first.to_string(index=False, float_format=number_text, na_rep=""))
            if len(table) > 20:
                click.echo(f"… and {len(table) - 20} more")


@click.group()
@click.version_option(package_name="chestxray")
def main() -> None:
    """Pneumonia classification from chest X-rays. Research software, not a medical device."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")  # where the terminal is not UTF-8


@main.command()
@click.option(
    "--data-dir",
    help='Folder of X-rays, "kaggle" to download, or "phantoms" (synthetic). '
    "[default: CHESTXRAY_DATA, Kaggle's input folder, or phantoms]",
)
@click.option(
    "--split",
    type=click.Choice(["official", "image", "patient", "given"]),
    help="Split rule; given keeps the folders train, val and test. [default: patient; the first "
    "three for full]",
)
@click.option("--output-dir", type=click.Path(path_type=Path), help="[default: runs/<preset>]")
@click.option(
    "--preset",
    type=click.Choice(["demo", "standard", "full"]),
    help="[default: demo on phantoms, standard on your data]",
)
@click.option("--only", metavar="STEP", help="Play only steps whose name begins with this, e.g. 03.")
@click.option(
    "--classes",
    nargs=2,
    metavar="NEGATIVE POSITIVE",
    help="Names of the class folders. [default: NORMAL PNEUMONIA]",
)
@click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a parameter in every notebook that has it.",
)
@click.option("--dry-run", is_flag=True, help="Only say what would run.")
@click.option("--force", is_flag=True, help="Run finished steps again.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Steps at a time.")
@click.option("--backend", metavar="NAME", help="joblib backend that plays them: loky, dask, …")
@one_line_errors
def run(
    data_dir: str | None,
    split: str | None,
    output_dir: Path | None,
    preset: str | None,
    only: str | None,
    classes: tuple[str, str] | None,
    parameters: tuple[tuple[str, str], ...],
    dry_run: bool,
    force: bool,
    jobs: int,
    backend: str | None,
) -> None:
    """Play the notebooks from raw images to compared models."""
    from chestxray.data.catalog import find_data
    from chestxray.run import run_plan

    if data_dir is None:
        try:
            data_dir = str(find_data())
        except FileNotFoundError:
            if os.environ.get("CHESTXRAY_DATA"):
                raise
            data_dir = "phantoms"
    preset = preset or ("demo" if data_dir == "phantoms" else "standard")
    click.echo(f"preset {preset} on {'synthetic phantoms' if data_dir == 'phantoms' else data_dir}")
    overrides = {name: parse_value(value) for name, value in parameters}
    if classes:
        overrides["classes"] = list(classes)
    with resumable():
        sys.exit(
            run_plan(
                preset,
                data_dir,
                [split] if split else None,
                output_dir or Path("runs") / preset,
                overrides,
                only,
                dry_run,
                force,
                jobs,
                backend,
            )
        )


@main.command()
@click.argument("data_dir")
@click.option(
    "--classes",
    nargs=2,
    metavar="NEGATIVE POSITIVE",
    help="Names of the class folders. [default: NORMAL PNEUMONIA]",
)
@click.option("--html", "page_path", type=click.Path(path_type=Path), help="Write the report as a page, too.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the findings, too.")
@click.option("--strict", is_flag=True, help="Exit with 1 when there is a red flag.")
@one_line_errors
def audit(
    data_dir: str,
    classes: tuple[str, str] | None,
    page_path: Path | None,
    json_path: Path | None,
    strict: bool,
) -> None:
    """Look in DATA_DIR for leaks, copies and shortcuts, before any model.

    DATA_DIR is a folder of X-rays, "kaggle" or "phantoms".
    """
    from chestxray.audit import audit as look
    from chestxray.audit import describe
    from chestxray.files import whole_file, write_json

    check_ending(page_path, ".html", ".htm")
    check_ending(json_path, ".json")
    found, means = look(data_dir, classes)
    findings = describe(found)
    show(findings)
    if json_path:
        write_json(json_path, found)
    if page_path:
        from chestxray.deployment.report import audit_page

        with whole_file(page_path) as partial:
            partial.write_text(audit_page(findings, means), encoding="utf-8")
        click.echo(f"\nwrote {page_path}")
    sys.exit(1 if strict and found["flags"] else 0)


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option(
    "--model",
    type=click.Path(path_type=Path),
    required=True,
    help="Folder of the model that made them: its card holds thresholds and reference.",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    help="CSV with path and label (0, 1 or a class name), and what else is known: group (the "
    "patient), age, sex, site, …",
)
@click.option("--by", default="", metavar="COLUMN,…", help="Columns of the labels to score apart.")
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of pneumonia where the model is to be used.",
)
@click.option("--html", "page_path", type=click.Path(path_type=Path), help="Write the report as a page, too.")
@one_line_errors
def evaluate(
    predictions: Path,
    model: Path,
    labels: Path | None,
    by: str,
    prevalence: float | None,
    page_path: Path | None,
) -> None:
    """Say what PREDICTIONS of `chestxray predict --output` are worth.

    With labels: discrimination, decisions, calibration and subgroups.
    Without: whether images and scores have changed since the model was made.
    """
    import pandas as pd

    from chestxray.deployment.card import read_card
    from chestxray.deployment.evaluate import drift_report, join_labels, report
    from chestxray.files import read_table, whole_file

    check_ending(page_path, ".html", ".htm")
    card = read_card(model)
    read = functools.partial(
        read_table,
        texts=("path", "label", "group", "decision", "problem"),
        encoding_errors="backslashreplace",
    )
    table = (
        pd.read_json(predictions, lines=True, dtype=dict.fromkeys(("path", "decision", "problem"), str))
        if predictions.suffix.lower() == ".jsonl"
        else read(predictions)
    )
    if labels is None:
        if by or prevalence:
            raise ValueError(
                f"--by and --prevalence need --labels. Received: by={by!r}, prevalence={prevalence}"
            )
        sections = drift_report(table, card)
    else:
        table, absent = join_labels(table, read(labels), card["classes"])
        if len(absent):
            click.echo(
                f"{len(absent)} labels have no prediction, for example {printable(absent['path'].iloc[0])}",
                err=True,
            )
        sections = report(table, card, [name for name in by.split(",") if name], prevalence)
    show(sections)
    if page_path:
        from chestxray.deployment.report import page, section

        body = "\n".join(section(*one) for one in sections)
        with whole_file(page_path) as partial:
            partial.write_text(page(f"{card['name']} on {predictions.name}", body), encoding="utf-8")
        click.echo(f"\nwrote {page_path}")
    click.echo(f"\n{card['limits'][0]}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rule", default="youden", show_default=True, help="Which stored threshold decides.")
@click.option(
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a table (.csv or .jsonl) instead of lines; interrupted, the same command goes on.",
)
@click.option(
    "--report",
    "report_path",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write a page for people, too: the most urgent films with overlays.",
)
@click.option("--accept-all", is_flag=True, help="Classify also what does not look like the training images.")
@click.option("--jobs", type=int, help="Processes. [default: one a core with an exported model, else 1]")
@click.option("--backend", metavar="NAME", help="joblib backend that runs them: loky, dask, …")
@one_line_errors
def predict(
    model: Path,
    sources: tuple[Path, ...],
    rule: str,
    output: Path | None,
    report_path: Path | None,
    accept_all: bool,
    jobs: int | None,
    backend: str | None,
) -> None:
    """Classify images with a saved or exported MODEL.

    SOURCES are files (JPEG, PNG, DICOM), folders, patterns, and CSV files with
    a column path. Images that do not look like those of training are refused.
    Exit code 1 when an image could not be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from chestxray.deployment.session import Session

    check_ending(report_path, ".html", ".htm")
    if report_path and (report_path.is_dir() or not report_path.absolute().parent.is_dir()):
        raise ValueError(f"the report cannot be written there. Received: path={str(report_path)!r}")
    session = Session(model, sources, rule, accept_all, jobs, backend)
    with resumable() if output else contextlib.nullcontext():
        for row in session.rows(output, report_path):
            if not output:
                found = row["status"] == "ok"
                said = f"{row['probability']:.3f}  {row['decision']}" if found else row["status"]
                problem = f" ({row['problem']})" if row["problem"] else ""
                click.echo(f"{printable(row['path'])}  {said}{problem}")
    for path in filter(None, (output, report_path)):
        click.echo(f"wrote {path}")
    click.echo(session.summary())
    sys.exit(1 if session.count["unreadable"] else 0)


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--format", "format_", type=click.Choice(["litert", "onnx"]), required=True)
@click.option("--float16", is_flag=True, help="Weights in half precision: half the size.")
@click.option(
    "--data-dir",
    help="The images it was trained on, for the comparison. "
    "[default: CHESTXRAY_DATA, or Kaggle's input folder]",
)
@click.option("--output", type=click.Path(path_type=Path), help="[default: beside MODEL, <MODEL>-<format>]")
@click.option("--force", is_flag=True, help="Keep an export that fails the comparison.")
@one_line_errors
def export(
    model: Path, format_: str, float16: bool, data_dir: str | None, output: Path | None, force: bool
) -> None:
    """Write a saved MODEL as a file that runs without TensorFlow.

    Both score the validation images; an export that decides otherwise is removed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from chestxray.data.catalog import find_data
    from chestxray.data.dataset import load_data
    from chestxray.data.images import ImageSettings
    from chestxray.deployment.card import read_card
    from chestxray.deployment.export import export_model

    card = read_card(model)
    trained_on = card["training_data"]
    data = load_data(
        data_dir or find_data(),
        trained_on["split_rule"],
        trained_on["split_seed"],
        ImageSettings(**card["image"]),
        tuple(card["classes"]),
    )
    output = output or model.with_name(f"{model.name}-{format_}{'-float16' if float16 else ''}")
    found = export_model(model, output, format_, data, float16, force)
    click.echo(
        f"wrote {output}: on {found['images']} images logits differ by up to "
        f"{found['logit_difference']:.2g}, {found['decisions_changed']:.2%} of the decisions and "
        f"{found['refusals_changed']:.2%} of the refusals change"
    )


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.argument("full_name", metavar="NAME")
@click.option("--as", "name", required=True, help="Final name, without split rule and seed.")
@click.option("--data-dir", required=True, help="The images it was trained on.")
@click.option("--output-dir", type=click.Path(path_type=Path), required=True)
@one_line_errors
def freeze(run_folder: Path, full_name: str, name: str, data_dir: str, output_dir: Path) -> None:
    """Score test once with model NAME of RUN, which was chosen on validation.

    For models that were trained with `-p score_test False`. The look is logged.
    """
    from chestxray.freeze import freeze as score

    found = score(run_folder, full_name, name, data_dir, output_dir)
    test = found["metrics"]["test"]
    click.echo(
        f"{found['name']} on test: AUROC {test['auroc']['value']:.3f}, accuracy "
        f"{test['youden']['accuracy']['value']:.3f}"
    )


@main.command()
@click.argument("run_folder", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--repository", type=click.Path(path_type=Path), default=Path("."), show_default=True)
@one_line_errors
def publish(run_folder: Path, repository: Path) -> None:
    """Copy results, curve figures and small models of RUN into the repository."""
    from chestxray.publish import publish as copy

    for line in copy(run_folder, repository):
        click.echo(line)


@main.command()
@click.option("--only", type=click.Choice(CACHES), help="Just this one.")
@click.option("--clear", is_flag=True, help="Remove what is shown; nothing may be using it.")
@one_line_errors
def cache(only: str | None, clear: bool) -> None:
    """Show the caches and their sizes; none holds anything that cannot be made again."""
    for folder in map(cache_dir, [only] if only else CACHES):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        click.echo(f"{folder}  {size / 1e6:.1f} MB")
        if clear:
            shutil.rmtree(folder)
