"""Commands of ``chestxray``. Each imports what it needs, so that help and prediction start fast."""

import contextlib
import errno
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
    "train": "keras matplotlib nbconvert nbformat pandas papermill scipy seaborn sklearn statsmodels "
    "tensorflow yaml",
    "lite": "ai_edge_litert cv2 onnxruntime",
    "dicom": "pydicom",
    "dask": "dask distributed",
    "export": "onnx tf2onnx",
}
"""The modules that each extra of the package brings."""

_DISK = (errno.EACCES, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS)
"""Errors of the disk that are neither a mistake of the user nor one of the program."""


class UserError(click.ClickException):
    """A user's mistake: one line, exit code 2."""

    exit_code = 2


def _one_line(error: Exception) -> str | None:
    """Line for an error that the user can mend; None for an error of the program."""
    if isinstance(error, ModuleNotFoundError):
        module = (error.name or "").split(".")[0]
        extra = next((extra for extra, brought in _EXTRAS.items() if module in brought.split()), None)
        return f"{error.name} is missing: pip install -e '.[{extra}]'" if extra else None
    if isinstance(error, OSError) and error.errno in _DISK:
        return str(error)
    users = isinstance(error, (ValueError, FileNotFoundError, TypeError)) and "Received: " in str(error)
    return " ".join(str(error).split()) if users else None


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command that reports a user's mistake in one line, with exit code 2.

    With ``--debug`` or ``CHESTXRAY_DEBUG=1`` every error shows its traceback.
    """

    @functools.wraps(function)
    def wrapped(debug: bool, **options: Any) -> Any:
        try:
            return function(**options)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except Exception as error:
            line = _one_line(error)
            if line is None or debug or os.environ.get("CHESTXRAY_DEBUG"):
                raise
            raise UserError(line) from error

    option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    return main.command()(option(wrapped))


def _not_zero(_: click.Context, __: click.Parameter, value: int | None) -> int | None:
    if value == 0:
        raise click.BadParameter("must not be 0")
    return value


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, say that the same command continues where this block was interrupted."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; the same command goes on from here", err=True)
        sys.exit(130)


def parse_value(text: str) -> Any:
    """Read a parameter as YAML does, 1e-4 as a number, and 0123 as a text. ValueError: not YAML."""
    import yaml

    if re.fullmatch(r"[-+]?0\d+", text):  # an octal number in YAML
        return text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        raise ValueError(f"not a value in YAML. Received: value={text!r}") from None
    if isinstance(value, str) and re.fullmatch(r"[-+]?[\d.]+[eE][-+]?\d+", value):
        return float(value)
    return value


def check_ending(path: Path | None, *endings: str) -> None:
    """Raise ValueError for another ending, so that a page does not overwrite an X-ray."""
    if path and path.suffix.lower() not in endings:
        raise ValueError(f"the name must end in {' or '.join(endings)}. Received: path={str(path)!r}")


def show(sections: list[tuple]) -> None:
    """Print sections of title, text and table; of long tables the first 20 rows."""
    from chestxray.deployment.report import number_text, with_intervals

    for title, text, table in sections:
        click.echo(f"\n{title}\n{'-' * len(title)}\n{text}".rstrip())
        if table is not None:
            table = with_intervals(table)
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


_MODELS = ("compact_cnn", "custom_cnn", "vgg16", "resnet50", "inceptionv3")
_SPLITS = ("official", "image", "patient", "given")
_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_path_option = functools.partial(click.option, type=_PATH)
_classes = click.option(
    "--classes",
    nargs=2,
    metavar="NEGATIVE POSITIVE",
    help="Names of the class folders. [default: NORMAL PNEUMONIA]",
)
_parameters = click.option(
    "-p",
    "parameters",
    nargs=2,
    multiple=True,
    metavar="NAME VALUE",
    help="Set a parameter in every notebook that has it.",
)
_runtime = _path_option("--runtime", help="Folder dist of npm's onnxruntime-web. [default: linked]")
_html = _path_option("--html", "page", help="Write the report as a page, too.")
_backend = click.option("--backend", metavar="NAME", help="joblib backend: loky, dask, …")


@command
@click.option(
    "--data-dir",
    help='Folder of X-rays, "kaggle" to download, or "phantoms" (synthetic). '
    "[default: CHESTXRAY_DATA, Kaggle's input folder, or phantoms]",
)
@click.option(
    "--split",
    type=click.Choice(_SPLITS),
    help="Split rule; given keeps the folders train, val and test. [default: patient; the first "
    "three for full]",
)
@_path_option("--output-dir", help="[default: runs/<preset>]")
@click.option(
    "--preset",
    type=click.Choice(["demo", "standard", "full"]),
    help="[default: demo on phantoms, standard on your data]",
)
@click.option("--only", metavar="STEP", help="Run only steps whose name begins with this, e.g. 03.")
@_classes
@_parameters
@click.option("--dry-run", is_flag=True, help="Only print what would run.")
@click.option("--force", is_flag=True, help="Run finished steps again.")
@click.option("--jobs", type=int, default=1, callback=_not_zero, help="Steps at a time. [default: 1]")
@_backend
def run(
    data_dir: str | None,
    split: str | None,
    output_dir: Path | None,
    preset: str | None,
    classes: tuple[str, str] | None,
    parameters: tuple[tuple[str, str], ...],
    **options: Any,
) -> None:
    """Train and compare models by running all notebooks in order."""
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
    split_rules, output_dir = [split] if split else None, output_dir or Path("runs") / preset
    with resumable():
        failed = run_plan(preset, data_dir, split_rules, output_dir, overrides, **options)
    sys.exit(failed)


@command
@click.argument("data_dir")
@click.option("--model", type=click.Choice(_MODELS), default="compact_cnn", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="[default: those of the recipe]")
@click.option("--size", type=click.IntRange(32), help="Side of the input in pixels. [default: the recipe's]")
@click.option("--name", help="Name of the result and of its folder, runs/NAME. [default: the model's]")
@click.option("--weights", help='ImageNet weights: a file, "imagenet" to download, or "" for random ones.')
@click.option("--split", type=click.Choice(_SPLITS), default="patient", show_default=True)
@_classes
@_parameters
@click.option("--force", is_flag=True, help="Replace a result of that name that has other settings.")
def train(
    data_dir: str,
    model: str,
    epochs: int | None,
    size: int | None,
    name: str | None,
    weights: str | None,
    split: str,
    classes: tuple[str, str] | None,
    parameters: tuple[tuple[str, str], ...],
    force: bool,
) -> None:
    """Train one model on DATA_DIR: a folder of X-rays, "kaggle" or "phantoms".

    Writes model, results and a page into runs/NAME, by running the notebook of the model.
    """
    from chestxray.run import train_model

    given = {"image_size": size, "weights": weights, "classes": list(classes) if classes else None}
    overrides = {key: value for key, value in given.items() if value is not None}
    overrides |= {key: parse_value(value) for key, value in parameters}
    with resumable():
        name = name or model
        output_dir = Path("runs") / name
        sys.exit(train_model(model, data_dir, name, output_dir, split, epochs, overrides, force))


@command
@click.argument("folders", nargs=-1, type=_PATH)
def models(folders: tuple[Path, ...]) -> None:
    """List saved models with their scores: those of the repository and of runs, or below FOLDERS."""
    from chestxray.deployment.card import read_card
    from chestxray.files import project_path

    places = folders or (project_path("saved_models"), Path("runs"))
    for path in sorted(card for place in places for card in Path(place).rglob("card.json")):
        try:
            card = read_card(path.parent)
        except ValueError as error:
            click.echo(f"{path.parent}: {error}", err=True)
            continue
        size, data, image = _bytes_of(path.parent), card["training_data"], card["image"]
        use = (
            "prediction without TensorFlow" if "export" in card else "prediction, heatmaps, further training"
        )
        use = "a check of the mechanics: it knows no patients" if data["name"] == "synthetic" else use
        scores = []
        for subset, values in card["metrics"].items():
            scores += [f"{subset} {values['auroc']['value']:.3f}"]
            if "auroc_reframed" in values:
                scores += [f"{subset} re-framed {values['auroc_reframed']['value']:.3f}"]
        click.echo(
            f"{path.parent}\n    {data['name']}, split {data['split_rule']}; {image['size']} px, ", nl=False
        )
        click.echo(f"{image['resize']}; {size / 1e6:.1f} MB; for {use}\n    AUROC: {', '.join(scores)}")


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@command
@click.argument("data_dir")
@_classes
@_html
@_path_option("--json", "json_path", help="Write the findings, too.")
@click.option("--strict", is_flag=True, help="Exit with 1 when there is a red flag.")
@_path_option("--model", help="Folder of a model: say which images it was trained on.")
def audit(
    data_dir: str,
    classes: tuple[str, str] | None,
    model: Path | None,
    page: Path | None,
    json_path: Path | None,
    strict: bool,
) -> None:
    """Check DATA_DIR for leaks, copies and shortcuts, before any model.

    DATA_DIR is a folder of X-rays, "kaggle" or "phantoms".
    """
    from chestxray.audit import audit_data, describe
    from chestxray.files import write_json

    check_ending(page, ".html", ".htm")
    check_ending(json_path, ".json")
    findings, means = audit_data(data_dir, classes)
    sections = describe(findings)
    if model:
        from chestxray.deployment.seen import seen_in_folder

        findings["seen"], text = seen_in_folder(model, data_dir, classes)
        sections.append(("Training images of the model", text, None))
    show(sections)
    if json_path:
        write_json(json_path, findings)
    if page:
        from chestxray.deployment.report import audit_page

        _write_page(page, audit_page(sections, means))
    sys.exit(1 if strict and findings["flags"] else 0)


def _write_page(path: Path, page: str) -> None:
    from chestxray.files import whole_file

    with whole_file(path) as partial:
        partial.write_text(page, encoding="utf-8")
    click.echo(f"\nwrote {path}")


@command
@click.argument("predictions", type=_FILE)
@_path_option("--model", required=True, help="Folder of the model that made them, with its card.")
@click.option(
    "--labels", type=_FILE, help="CSV: path, label (0, 1 or a class), and more, as group (the patient), age."
)
@click.option("--by", default="", metavar="COLUMN,…", help="Columns of the labels to score apart.")
@click.option(
    "--prevalence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    help="Share of pneumonia where the model is to be used.",
)
@_html
def evaluate(
    predictions: Path, model: Path, labels: Path | None, by: str, prevalence: float | None, page: Path | None
) -> None:
    """Evaluate PREDICTIONS of `chestxray predict --output` on your own images.

    With labels: discrimination, decisions, calibration and subgroups. Without: whether images and scores have
    changed since the model was made.
    """
    import pandas as pd

    from chestxray.deployment.card import read_card
    from chestxray.deployment.evaluate import drift_report, join_labels, report
    from chestxray.files import read_table

    check_ending(page, ".html", ".htm")
    card, texts = read_card(model), ("path", "label", "group", "decision", "problem")
    read = functools.partial(read_table, texts=texts, encoding_errors="backslashreplace")
    if predictions.suffix.lower() == ".jsonl":
        try:
            table = pd.read_json(predictions, lines=True, dtype=dict.fromkeys(texts, str))
        except ValueError as error:
            raise ValueError(f"not a table ({error}). Received: path={str(predictions)!r}") from None
    else:
        table = read(predictions)
    if labels is None:
        if by or prevalence:
            raise ValueError(f"--by and --prevalence need --labels. Received: {by=}, {prevalence=}")
        sections = drift_report(table, card)
    else:
        table, absent = join_labels(table, read(labels), card["classes"])
        if len(absent):
            example = printable(absent["path"].iloc[0])
            click.echo(f"{len(absent)} labels have no prediction, for example {example}", err=True)
        sections = report(table, card, [name for name in by.split(",") if name], prevalence)
    show(sections)
    if page:
        from chestxray.deployment.report import evaluation_figures, sections_page

        figures = [] if labels is None else evaluation_figures(table, card)
        _write_page(page, sections_page(f"{card['name']} on {predictions.name}", sections, figures))
    click.echo(f"\n{card['limits'][0]}")


@command
@click.argument("model", type=_PATH)
@click.argument("sources", nargs=-1, required=True, type=_PATH)
@click.option("--threshold-rule", default="youden", show_default=True, help="Which stored threshold decides.")
@_path_option("--output", metavar="FILE", help="Write a table (.csv, .jsonl); the same command continues it.")
@_path_option(
    "--report", "report_path", metavar="FILE", help="Write a page: the most suspicious images with heatmaps."
)
@click.option("--accept-all", is_flag=True, help="Classify also what does not look like the training images.")
@click.option(
    "--jobs", type=int, callback=_not_zero, help="Processes. [default: one a core if exported, else 1]"
)
@_backend
def predict(
    model: Path, sources: tuple[Path, ...], output: Path | None, report_path: Path | None, **options: Any
) -> None:
    """Classify images with a saved or exported MODEL.

    SOURCES are files (JPEG, PNG, BMP, TIFF, WebP, DICOM), folders, patterns, and CSV files with a column
    path. Images unlike those of training are refused. Exit code 1 when an image could not be read.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from chestxray.deployment.session import Session

    check_ending(report_path, ".html", ".htm")
    if report_path and (report_path.is_dir() or not report_path.absolute().parent.is_dir()):
        raise ValueError(f"the report cannot be written there. Received: path={str(report_path)!r}")
    session = Session(model, sources, **options)
    with resumable() if output else contextlib.nullcontext():
        for row in session.rows(output, report_path):
            if not output:
                decided = row["status"] == "ok"
                answer = f"{row['probability']:.3f}  {row['decision']}" if decided else row["status"]
                problem = f" ({row['problem']})" if row["problem"] else ""
                click.echo(f"{printable(row['path'])}  {answer}{problem}")
    for path in filter(None, (output, report_path)):
        click.echo(f"wrote {path}")
    click.echo(session.summary())
    sys.exit(1 if session.count["unreadable"] else 0)


@command
@click.argument("model", type=_PATH)
@click.option("--format", "format_", type=click.Choice(["litert", "onnx", "web"]), required=True)
@click.option("--float16", is_flag=True, help="Weights in half precision: half the size.")
@click.option(
    "--data-dir",
    help="The images it was trained on, for the comparison. "
    "[default: CHESTXRAY_DATA, or Kaggle's input folder]",
)
@_path_option("--output", help="[default: beside MODEL, <MODEL>-<format>]")
@click.option("--force", is_flag=True, help="Keep an export that fails the comparison.")
@_runtime
def export(
    model: Path,
    format_: str,
    float16: bool,
    data_dir: str | None,
    output: Path | None,
    force: bool,
    runtime: Path | None,
) -> None:
    """Write a saved MODEL as a file that runs without TensorFlow, or as a page that runs in the browser.

    Both score the validation images (a page without --data-dir: phantoms); an export that decides otherwise
    is removed.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from chestxray.data.dataset import load_data
    from chestxray.data.images import ImageSettings
    from chestxray.deployment.card import read_card
    from chestxray.parallel import without_native_messages

    with without_native_messages():
        from chestxray.deployment.export import export_model
        from chestxray.deployment.web import export_page

    card, data = read_card(model), None
    if data_dir or format_ != "web":
        training, image = card["training_data"], ImageSettings(**card["image"])
        split = training["split_rule"], training["split_seed"]
        data = load_data(data_dir, *split, image, classes=tuple(card["classes"]))
    output = output or model.with_name(f"{model.name}-{format_}{'-float16' if float16 else ''}")
    options = {"data": data, "float16": float16, "force": force}
    if format_ == "web":
        parity = export_page(model, output, runtime=runtime, **options)
    else:
        parity = export_model(model, output, format_, **options)
    click.echo(
        f"wrote {output}: on {parity['images']} images logits differ by up to "
        f"{parity['logit_difference']:.2g}, {parity['decisions_changed']:.2%} of the decisions and "
        f"{parity['refusals_changed']:.2%} of the refusals change"
    )


@command
@click.argument("model", type=_PATH, required=False)
@_runtime
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="[default: any that is free]")
@click.option("--no-open", is_flag=True, help="Do not open a browser.")
def demo(model: Path | None, runtime: Path | None, port: int, no_open: bool) -> None:
    """Classify images in the browser, on this machine: serve the page of MODEL and open it.

    MODEL is a saved model, or a page from `chestxray export --format web`. [default: the best compact one]
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    import webbrowser

    from chestxray.deployment.web import demo_folder, page_server, recommended_model

    if model is None:
        model, reason = recommended_model()
        click.echo(f"{model.name}: {reason}")
    click.echo(f"page of {model} (when it is new: a minute)")
    folder = model if (model / "index.html").is_file() else demo_folder(model, runtime)
    server = page_server(folder, port)
    address = f"http://127.0.0.1:{server.server_port}/"
    click.echo(f"{address} (Ctrl-C ends it)")
    if not no_open:
        webbrowser.open(address)
    server.serve_forever()


@command
@click.option("--only", type=click.Choice(CACHES), help="Just this one.")
@click.option("--clear", is_flag=True, help="Remove what is shown; nothing may be using it.")
def cache(only: str | None, clear: bool) -> None:
    """Show the caches and their sizes; every entry can be made again."""
    for folder in map(cache_dir, [only] if only else CACHES):
        click.echo(f"{folder}  {_bytes_of(folder) / 1e6:.1f} MB")
        if clear:
            shutil.rmtree(folder)
