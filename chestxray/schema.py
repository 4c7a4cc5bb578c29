"""Names that several modules share (columns, splits, subtypes, classes), and errors of the user."""

import contextlib
from collections.abc import Iterator

CLASSES = ("NORMAL", "PNEUMONIA")
SPLITS = ("train", "val", "test")
SUBTYPES = ("normal", "bacteria", "virus")

# Columns of a catalog, and columns of predictions, which are left out of a table of the user.
_KEYS = ("path", "label", "subtype", "group", "group_conservative", "official_split")
COLUMNS = (*_KEYS, "width", "height", "mode", "bytes", "sha256")
PREDICTED = ("sharpness", "logit", "probability", *(f"logit_{name}" for name in SUBTYPES))

SPLIT_HEADER = "# {"  # start of the first line of a split file, which says how the split was made


def check(valid: object, message: str, error: type[Exception] = ValueError, **received: object) -> None:
    """Raise an error with the message and the received values, unless ``valid``."""
    if not valid:
        values = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise error(f"{message}. Received: {values}")


@contextlib.contextmanager
def mistake(message: str, errors: type[Exception] = Exception, **received: object) -> Iterator[None]:
    """Raise ValueError with the message and the reason if the block raises an error, except of an import."""
    try:
        yield
    except ModuleNotFoundError:
        raise
    except errors as error:
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:160]}"
        check(False, f"{message} ({reason})", **received)
