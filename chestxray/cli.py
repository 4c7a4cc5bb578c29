"""The command line: ``chestxray run | audit | predict | evaluate | freeze | publish | cache``.

Each command imports what it needs, so that help and prediction start fast.
"""

from __future__ import annotations

import collections
import csv
import functools
import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from chestxray.files import CACHES, cache_dir


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
            raise UserError(f"{error.name} is missing: pip install -e '.[train]'") from error
        except (ValueError, OSError, TypeError) as error:
            raise UserError(" ".join(str(error).split())) from error
        except KeyboardInterrupt:
            click.echo("interrupted; the same command goes on from here", err=True)
            sys.exit(130)
    return wrapped


@click.group()
@click.version_option(package_name="chestxray")
def main() -> None:
    """Pneumonia classification from chest X-rays. Research software, not a medical device."""


def _parse_value(text: str) -> Any:
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


@main.command()
@click.option("--data-dir", help="Folder of X-rays, \"kaggle\" to download, or \"phantoms\" (synthetic). "
              "[default: CHESTXRAY_DATA, Kaggle's input folder, or phantoms]")
@click.option("--split", type=click.Choice(["official", "image", "patient"]),
              help="Split rule. [default: patient; all three for full]")
@click.option("--output-dir", type=click.Path(path_type=Path), help="[default: runs/<preset>]")
@click.option("--preset", type=click.Choice(["demo", "standard", "full"]),
              help="[default: demo on phantoms, standard on your data]")
@click.option("--only", metavar="STEP", help="Play only steps whose name begins with this, e.g. 03.")
@click.option("--classes", nargs=2, metavar="NEGATIVE POSITIVE",
              help="Names of the class folders. [default: NORMAL PNEUMONIA]")
@click.option("-p", "parameters", nargs=2, multiple=True, metavar="NAME VALUE",
              help="Set a parameter in every notebook that has it.")
@click.option("--dry-run", is_flag=True, help="Only say what would run.")
@click.option("--force", is_flag=True, help="Run finished steps again.")
@one_line_errors
def run(data_dir: str | None, split: str | None, output_dir: Path | None, preset: str | None,
        only: str | None, classes: tuple[str, str] | None, parameters: tuple[tuple[str, str], ...],
        dry_run: bool, force: bool) -> None:
    """Play the notebooks from raw images to compared models."""
    from chestxray.data.location import find_data
    from chestxray.experiments import run_plan
    if data_dir is None:
        try:
            data_dir = str(find_data())
        except FileNotFoundError:
            if os.environ.get("CHESTXRAY_DATA"):
                raise
            data_dir = "phantoms"
    preset = preset or ("demo" if data_dir == "phantoms" else "standard")
    click.echo(f"preset {preset} on {'synthetic phantoms' if data_dir == 'phantoms' else data_dir}")
    overrides = {name: _parse_value(value) for name, value in parameters}
    if classes:
        overrides["classes"] = list(classes)
    sys.exit(run_plan(preset, data_dir, [split] if split else None, output_dir or Path("runs") / preset,
                      overrides, only, dry_run, force))


@main.command()
@click.argument("data_dir")
@click.option("--classes", nargs=2, metavar="NEGATIVE POSITIVE",
              help="Names of the class folders. [default: NORMAL PNEUMONIA]")
@click.option("--html", "page_path", type=click.Path(path_type=Path), help="Write the report as a page, too.")
@click.option("--json", "json_path", type=click.Path(path_type=Path), help="Write the findings, too.")
@click.option("--strict", is_flag=True, help="Exit with 1 when there is a red flag.")
@one_line_errors
def audit(data_dir: str, classes: tuple[str, str] | None, page_path: Path | None, json_path: Path | None,
          strict: bool) -> None:
    """Look in DATA_DIR for leaks, copies and shortcuts, before any model.

    DATA_DIR is a folder of X-rays, "kaggle" or "phantoms".
    """
    from chestxray.data.audit import audit as look
    from chestxray.data.audit import describe
    from chestxray.files import whole_file, write_json
    found, means = look(data_dir, classes)
    _show(describe(found))
    if json_path:
        write_json(json_path, found)
    if page_path:
        from chestxray.deployment.page import audit_page
        with whole_file(page_path) as partial:
            partial.write_text(audit_page(found, means), encoding="utf-8")
        click.echo(f"\nwrote {page_path}")
    sys.exit(1 if strict and found["flags"] else 0)


def _show(sections: list[tuple]) -> None:
    """Print sections of title, text and table; of long tables the first 20 rows."""
    from chestxray.deployment.page import number_text
    for title, text, table in sections:
        click.echo(f"\n{title}\n{'-' * len(title)}\n{text}".rstrip())
        if table is not None:
            click.echo(table.head(20).to_string(index=False, float_format=number_text, na_rep=""))
            if len(table) > 20:
                click.echo(f"… and {len(table) - 20} more")


@main.command()
@click.argument("predictions", type=click.Path(path_type=Path))
@click.option("--model", type=click.Path(path_type=Path), required=True,
              help="Folder of the model that made them: its card holds thresholds and reference.")
@click.option("--labels", type=click.Path(path_type=Path),
              help="CSV with path and label (0, 1 or a class name), and what else is known: group (the "
              "patient), age, sex, site, …")
@click.option("--by", default="", metavar="COLUMN,…", help="Columns of the labels to score apart.")
@click.option("--prevalence", type=click.FloatRange(0, 1, min_open=True, max_open=True),
              help="Share of pneumonia where the model is to be used.")
@click.option("--html", "page_path", type=click.Path(path_type=Path), help="Write the report as a page, too.")
@one_line_errors
def evaluate(predictions: Path, model: Path, labels: Path | None, by: str, prevalence: float | None,
             page_path: Path | None) -> None:
    """Say what PREDICTIONS of `chestxray predict --csv` are worth.

    With labels: discrimination, decisions, calibration and subgroups.
    Without: whether images and scores have changed since the model was made.
    """
    import pandas as pd

    from chestxray.evaluation.report import drift_report, join_labels, report
    from chestxray.files import read_json, whole_file
    card = read_json(model / "card.json")
    texts = {"path": str, "label": str, "problem": str}
    table = pd.read_csv(predictions, dtype=texts)
    if labels is None:
        if by or prevalence:
            raise ValueError("--by and --prevalence need --labels. "
                             f"Received: by={by!r}, prevalence={prevalence}")
        sections = drift_report(table, card)
    else:
        table, absent = join_labels(table, pd.read_csv(labels, dtype=texts), card["classes"])
        if len(absent):
            click.echo(f"{len(absent)} labels have no prediction, for example {absent['path'].iloc[0]}",
                       err=True)
        sections = report(table, card, [name for name in by.split(",") if name], prevalence)
    _show(sections)
    if page_path:
        from chestxray.deployment.page import page, section
        body = "\n".join(section(*one) for one in sections)
        with whole_file(page_path) as partial:
            partial.write_text(page(f"{card['name']} on {predictions.name}", body), encoding="utf-8")
        click.echo(f"\nwrote {page_path}")
    click.echo(f"\n{card['limits'][0]}")


@main.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--rule", default="youden", show_default=True, help="Which stored threshold decides.")
@click.option("--csv", "table", type=click.Path(path_type=Path), help="Write a CSV file instead of a table.")
@click.option("--accept-all", is_flag=True, help="Classify also what does not look like the training images.")
@one_line_errors
def predict(model: Path, sources: tuple[Path, ...], rule: str, table: Path | None, accept_all: bool) -> None:
    """Classify files and folders with a saved MODEL.

    Images that do not look like those of training are refused. Exit code 1
    when an image could not be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from chestxray.deployment.bundle import load_classifier
    from chestxray.deployment.predict import COLUMNS, list_images, predict_files
    from chestxray.files import whole_file
    classifier = load_classifier(model)
    if not any(True for _ in list_images(sources)):
        raise ValueError(f"no image found. Received: sources={[str(source) for source in sources]}")
    rows = predict_files(classifier, sources, rule, accept_all)
    count = collections.Counter()
    if table:
        with whole_file(table) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            for row in rows:
                writer.writerow(row)
                count[row["status"]] += 1
        click.echo(f"wrote {table}")
    else:
        for row in rows:
            found = row["status"] == "ok"
            said = f"{row['probability']:.3f}  {row['decision']}" if found else row["status"]
            problem = f" ({row['problem']})" if row["problem"] else ""
            click.echo(f"{row['path']}  {said}{problem}")
            count[row["status"]] += 1
    click.echo(f"{count.total()} images, {count['refused']} refused, {count['unreadable']} unreadable; "
               f"decided at {classifier.threshold(rule):.3f} ({rule}). {classifier.card['limits'][0]}")
    sys.exit(1 if count["unreadable"] else 0)


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
    click.echo(f"{found['name']} on test: AUROC {test['auroc']['value']:.3f}, accuracy "
               f"{test['youden']['accuracy']['value']:.3f}")


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
@click.option("--clear", is_flag=True, help="Remove what is shown.")
@one_line_errors
def cache(only: str | None, clear: bool) -> None:
    """Show the caches and their sizes; none holds anything that cannot be made again."""
    for folder in map(cache_dir, [only] if only else CACHES):
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        click.echo(f"{folder}  {size / 1e6:.1f} MB")
        if clear:
            shutil.rmtree(folder)
