"""How the command line listens and talks: values, mistakes, sections of a report."""

from __future__ import annotations

import contextlib
import functools
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from chestxray.files import printable

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
    from chestxray.deployment.page import number_text

    for title, text, table in sections:
        click.echo(f"\n{title}\n{'-' * len(title)}\n{text}".rstrip())
        if table is not None:
            first = table.head(20).map(lambda value: printable(value) if isinstance(value, str) else value)
            click.echo(first.to_string(index=False, float_format=number_text, na_rep=""))
            if len(table) > 20:
                click.echo(f"… and {len(table) - 20} more")
