"""Command line. Each command imports the modules that it needs, so that help and prediction start fast."""

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

from chestxray.files import CACHES, cache_dir, printable, project_path, read_table, write_json, write_text
from chestxray.schema import check, mistake

_EXTRAS = {"ai_edge_litert": "lite", "onnxruntime": "lite", "cv2": "lite", "pydicom": "dicom"}
_EXTRAS |= {"dask": "dask", "distributed": "dask", "onnx": "export", "tf2onnx": "export"}
_DISK = (errno.EACCES, errno.EISDIR, errno.ENOSPC, errno.ENOTDIR, errno.EPERM, errno.EROFS)


def _one_line(error: Exception) -> str | None:
    """Message for an error that the user can correct; None for an error of the program."""
    if isinstance(error, ModuleNotFoundError) and not str(error.name).startswith("chestxray"):
        module = str(error.name).split(".")[0]
        return f"{error.name} is not installed: pip install -e '.[{_EXTRAS.get(module, 'train')}]'"
    if isinstance(error, OSError) and error.errno in _DISK:  # no mistake, but no error of the program either
        return str(error)
    mistake = isinstance(error, (ValueError, FileNotFoundError, TypeError)) and "Received: " in str(error)
    return " ".join(str(error).split()) if mistake else None


def command(function: Callable[..., Any]) -> click.Command:
    """Make a command that reports a user's mistake in one line, or with ``--debug`` as a traceback."""

    @functools.wraps(function)
    def wrapped(debug: bool, **options: Any) -> Any:
        try:
            return function(**options)
        except KeyboardInterrupt:
            click.echo("interrupted", err=True)
            sys.exit(130)
        except Exception as error:
            line = _one_line(error)
            if line is None or debug:
                raise
            click.echo(f"Error: {line}", err=True)
            sys.exit(2)

    option = click.option("--debug", is_flag=True, help="Show the traceback of an error.")
    return main.command()(option(wrapped))


@contextlib.contextmanager
def resumable() -> Iterator[None]:
    """On Ctrl-C, say that the same command continues, and exit."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo("interrupted; the same command continues from this point", err=True)
        sys.exit(130)


def parse_value(text: str) -> Any:
    """Read a parameter as YAML does, 1e-4 as a number, and 0123 as a text. ValueError: not YAML."""
    import yaml

    if re.fullmatch(r"[-+]?0\d+", text):  # an octal number in YAML
        return text
    with mistake("not a value in YAML", yaml.YAMLError, value=text):
        value = yaml.safe_load(text)
    is_number = isinstance(value, str) and re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+", value)
    return float(value) if is_number else value


def check_ending(path: Path | None, *endings: str) -> None:
    """Raise ValueError for another ending, so that a page does not overwrite an X-ray."""
    valid = not path or path.suffix.lower() in endings
    check(valid, f"the name must end in {' or '.join(endings)}", path=str(path))


def show(sections: list[tuple]) -> None:
    """Print sections of title, text and table; of a long table the first 20 rows."""
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
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # not in a notebook
            stream.reconfigure(errors="backslashreplace")  # where the terminal is not UTF-8


_MODELS = ("compact_cnn", "custom_cnn", "vgg16", "resnet50", "inceptionv3")
_SPLITS = click.Choice(["official", "image", "patient", "given"])
_PROPORTION = click.FloatRange(0, 1, min_open=True, max_open=True)
_PATH = click.Path(path_type=Path)
_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
_path_option = functools.partial(click.option, type=_PATH)
_split = click.option(
    "--split", type=_SPLITS, help="Split rule; given keeps train, val, test. [default: patient]"
)
_classes = click.option(
    "--classes", nargs=2, metavar="NEGATIVE POSITIVE", help="Class folders. [default: NORMAL PNEUMONIA]"
)
_parameters = click.option(
    "-p", nargs=2, multiple=True, metavar="NAME VALUE", help="Set a notebook parameter."
)
_runtime = _path_option("--runtime", help="Folder dist of npm's onnxruntime-web. [default: linked]")
_html = _path_option("--html", "page", help="Also write the report as an HTML page.")
_backend = click.option("--backend", metavar="NAME", help="joblib backend: loky, dask, …")


def _overrides(options: dict[str, Any]) -> dict[str, Any]:
    """Remove the parameters of notebooks from the options of a command and return them."""
    classes, parameters = options.pop("classes"), options.pop("p")
    given = {name: options.pop(name, None) for name in ("image_size", "weights")}
    given |= {"classes": list(classes) if classes else None}
    given = {name: value for name, value in given.items() if value is not None}
    return given | {name: parse_value(value) for name, value in parameters}  # -p takes precedence


@command
@click.option("--data-dir", help='Folder of X-rays, "kaggle" (download) or "phantoms" (synthetic images).')
@_split
@_path_option("--output-dir", help="Folder of the run. [default: runs/PRESET]")
@click.option("--preset", type=click.Choice(["demo", "standard", "full"]), help="Notebooks to run.")
@click.option("--only", metavar="STEP", help="Run only the steps whose name begins with STEP, e.g. 03.")
@_classes
@_parameters
@click.option("--dry-run", is_flag=True, help="Print the steps without running them.")
@click.option("--force", is_flag=True, help="Run finished steps again.")
@click.option("--jobs", type=int, default=1, show_default=True, help="Steps run in parallel.")
@_backend
@resumable()
def run(
    data_dir: str | None, split: str | None, output_dir: Path | None, preset: str | None, **options: Any
) -> None:
    """Train and compare models by running all notebooks in order.

    Default data: the folder CHESTXRAY_DATA, Kaggle's input folder, or phantoms. Default preset: demo for
    phantoms, otherwise standard. The preset full runs the split rules official, image and patient.
    """
    from chestxray.data.catalog import find_data
    from chestxray.run import run_plan

    check(options["jobs"] != 0, "--jobs must not be 0", jobs=0)
    if data_dir is None:
        try:
            data_dir = str(find_data())
        except FileNotFoundError:
            if os.environ.get("CHESTXRAY_DATA"):
                raise
            data_dir = "phantoms"
    preset = preset or ("demo" if data_dir == "phantoms" else "standard")
    output_dir = output_dir or Path("runs") / preset
    click.echo(f"preset {preset} on {'synthetic phantoms' if data_dir == 'phantoms' else data_dir}")
    overrides, split_rules = _overrides(options), [split] if split else None
    sys.exit(run_plan(preset, data_dir, split_rules, output_dir, overrides, **options))


@command
@click.argument("data_dir")
@click.option("--model", type=click.Choice(_MODELS), default="custom_cnn", show_default=True)
@click.option("--epochs", type=click.IntRange(1), help="Number of epochs. [default: the recipe's]")
@click.option(
    "--size", "image_size", type=click.IntRange(32), help="Image size in pixels. [default: the recipe's]"
)
@click.option("--name", help="Name of the result and of its folder, runs/NAME. [default: the model's]")
@click.option("--weights", help='Initial weights: a file, "imagenet" (download) or "" (random).')
@_split
@_classes
@_parameters
@click.option("--force", is_flag=True, help="Replace a result with the same name and other settings.")
@resumable()
def train(data_dir: str, model: str, name: str | None, split: str | None, **options: Any) -> None:
    """Train one model on DATA_DIR: a folder of X-rays, "kaggle" or "phantoms".

    Runs the notebook of the model, and writes the model, its results and an HTML page to runs/NAME.
    """
    from chestxray.run import train_model

    name = name or model
    folder, split, overrides = Path("runs") / name, split or "patient", _overrides(options)
    sys.exit(train_model(model, data_dir, name, folder, split, overrides=overrides, **options))


@command
@click.argument("folders", nargs=-1, type=_PATH)
def models(folders: tuple[Path, ...]) -> None:
    """List saved models with their scores.

    They are searched in FOLDERS, by default in saved_models of the repository and in runs.
    """
    from chestxray.deployment.card import read_card

    folders = folders or (project_path("saved_models"), Path("runs"))
    paths = sorted(card.parent for folder in folders for card in folder.rglob("card.json"))
    check(paths, "no saved model here", FileNotFoundError, folders=list(map(str, folders)))
    for path in paths:
        try:
            card = read_card(path)
        except ValueError as error:
            click.echo(f"{path}: {error}", err=True)
            continue
        data, image = card["training_data"], card["image"]
        purpose = "prediction without TensorFlow" if "export" in card else "prediction, heatmaps, training"
        if data["name"] == "synthetic":
            purpose = "tests of the software, because it was trained on synthetic images"
        click.echo(
            f"{path}\n    {data['name']}, split {data['split_rule']}; {image['size']} px, "
            f"{image['resize']}; {_bytes_of(path) / 1e6:.1f} MB; for {purpose}"
        )
        columns = {"auroc": "", "auroc_reframed": " re-framed"}
        values = card["metrics"].items()
        scores = [f"{s}{columns[m]} {v[m]['value']:.3f}" for s, v in values for m in columns if m in v]
        click.echo(f"    AUROC: {', '.join(scores)}")


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


@command
@click.argument("data_dir")
@_classes
@_html
@_path_option("--json", "json_path", help="Also write the findings as JSON.")
@click.option("--strict", is_flag=True, help="Exit with code 1 if there is a red flag.")
def audit(
    data_dir: str, classes: tuple[str, str] | None, page: Path | None, json_path: Path | None, strict: bool
) -> None:
    """Check DATA_DIR for leaks, copies and shortcuts before training.

    DATA_DIR is a folder of X-rays, "kaggle" or "phantoms".
    """
    from chestxray.audit import audit_data, describe

    check_ending(page, ".html", ".htm")
    check_ending(json_path, ".json")
    findings, means = audit_data(data_dir, classes)
    sections = describe(findings)
    show(sections)
    if json_path:
        write_json(json_path, findings)
    if page:
        from chestxray.deployment.report import audit_page

        write_text(page, audit_page(sections, means))
        click.echo(f"\nwrote {page}")
    sys.exit(1 if strict and findings["flags"] else 0)


@command
@click.argument("predictions", type=_FILE)
@_path_option("--model", required=True, help="Folder of the model that made the predictions.")
@click.option("--labels", type=_FILE, help="CSV file: path, label, and others such as group (patient), age.")
@click.option("--by", default="", metavar="COLUMN,…", help="Columns of the labels that define subgroups.")
@click.option("--prevalence", type=_PROPORTION, help="Proportion of pneumonia where the model will be used.")
@_html
def evaluate(
    predictions: Path, model: Path, labels: Path | None, by: str, prevalence: float | None, page: Path | None
) -> None:
    """Evaluate PREDICTIONS, a table of `chestxray predict --output`.

    With labels (0, 1 or class names): discrimination, decisions, calibration and subgroups. Without labels:
    whether images and scores differ from those of the model's validation images.
    """
    import pandas as pd

    from chestxray.deployment.card import read_card
    from chestxray.deployment.evaluate import drift_report, join_labels, report

    check_ending(page, ".html", ".htm")
    card, texts = read_card(model), ("path", "label", "group", "decision", "problem")
    read = functools.partial(read_table, texts=texts, encoding_errors="backslashreplace")
    if predictions.suffix.lower() == ".jsonl":
        with mistake("not a table", ValueError, path=str(predictions)):
            table = pd.read_json(predictions, lines=True, dtype=dict.fromkeys(texts, str))
    else:
        table = read(predictions)
    if labels is None:
        check(not by and not prevalence, "--by and --prevalence need --labels", by=by, prevalence=prevalence)
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
        write_text(page, sections_page(f"{card['name']} on {predictions.name}", sections, figures))
        click.echo(f"\nwrote {page}")
    click.echo(f"\n{card['limits'][0]}")


@command
@click.argument("model", type=_PATH)
@click.argument("sources", nargs=-1, required=True, type=_PATH)
@click.option("--threshold-rule", default="youden", show_default=True, help="Stored threshold that decides.")
@_path_option("--output", metavar="FILE", help="Write a table (.csv or .jsonl), or continue it.")
@_path_option("--report", "report_path", metavar="FILE", help="Write an HTML page with heatmaps.")
@click.option("--accept-all", is_flag=True, help="Also classify images that would be refused.")
@click.option("--jobs", type=int, help="Processes. [default: cores if exported, else 1]")
@_backend
def predict(
    model: Path, sources: tuple[Path, ...], output: Path | None, report_path: Path | None, **options: Any
) -> None:
    """Classify images with a saved or exported MODEL.

    SOURCES are files (JPEG, PNG, BMP, TIFF, WebP, DICOM), folders, patterns, and CSV files with a column
    path. Images that do not look like the validation images are refused. The exit code is 1 if an image
    could not be read.
    """
    from chestxray.deployment.session import Session

    check(options["jobs"] != 0, "--jobs must not be 0", jobs=0)
    check_ending(report_path, ".html", ".htm")
    if report_path and (report_path.is_dir() or not report_path.absolute().parent.is_dir()):
        raise ValueError(f"the report cannot be written there. Received: path={str(report_path)!r}")
    session = Session(model, sources, **options)
    with resumable() if output else contextlib.nullcontext():
        for row in session.rows(output, report_path):
            if not output or row["status"] == "unreadable":
                is_classified = row["status"] == "ok"
                answer = f"{row['probability']:.3f}  {row['decision']}" if is_classified else row["status"]
                problem = f" ({row['problem']})" if row["problem"] else ""
                click.echo(f"{printable(row['path'])}  {answer}{problem}")
    for path in filter(None, (output, report_path)):
        click.echo(f"wrote {path}")
    click.echo(session.summary())
    sys.exit(1 if session.count["unreadable"] else 0)


@command
@click.argument("model", type=_PATH)
@click.option("--format", "format_", type=click.Choice(["litert", "onnx", "web"]), required=True)
@click.option("--float16", is_flag=True, help="Store the weights in half precision, which halves the file.")
@click.option(
    "--data-dir", help="Training data of MODEL. [default: CHESTXRAY_DATA, or Kaggle's input folder]"
)
@_path_option("--output", help="Folder of the exported model. [default: MODEL-FORMAT]")
@click.option("--force", is_flag=True, help="Keep an exported model that fails the comparison.")
@_runtime
def export(
    model: Path, format_: str, data_dir: str | None, output: Path | None, runtime: Path | None, **options: Any
) -> None:
    """Export a saved MODEL to a file that runs without TensorFlow, or to a page for the browser.

    Both models score the validation images (a page without --data-dir: phantoms). An exported model whose
    decisions differ is removed.
    """
    from chestxray.data.dataset import load_data
    from chestxray.data.images import ImageSettings
    from chestxray.deployment.card import read_card
    from chestxray.parallel import without_native_messages

    with without_native_messages():
        from chestxray.deployment.export import export_model
        from chestxray.deployment.web import export_page

    card, data = read_card(model), None
    if data_dir or format_ != "web":
        split = card["training_data"]["split_rule"], card["training_data"]["split_seed"]
        data = load_data(data_dir, *split, ImageSettings(**card["image"]), tuple(card["classes"]))
    output = output or model.with_name(f"{model.name}-{format_}{'-float16' if options['float16'] else ''}")
    if format_ == "web":
        parity = export_page(model, output, data, runtime, **options)
    else:
        parity = export_model(model, output, format_, data, **options)
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
@click.option("--only", type=click.Choice(CACHES), help="Only this kind of cache.")
@click.option("--clear", is_flag=True, help="Remove these caches, which no other process may be using.")
def cache(only: str | None, clear: bool) -> None:
    """Show the caches and their sizes; their contents can be computed again."""
    for folder in map(cache_dir, [only] if only else CACHES):
        click.echo(f"{folder}  {_bytes_of(folder) / 1e6:.1f} MB")
        if clear:
            shutil.rmtree(folder)
