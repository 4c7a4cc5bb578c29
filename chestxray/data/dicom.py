"""DICOM radiographs: what is shown, how it becomes grey pixels, and what is refused.

No patient tag leaves this module: neither messages nor results hold one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestxray.data.images import check_size

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("CR", "DX")
"""Computed and digital radiography."""

_OTHER_MODALITIES = ("CT", "DR", "ES", "IO", "MG", "MR", "NM", "OT", "PT", "PX", "RF", "RG", "SC", "SR", "US",
                     "XA")

AGES = (1, 6)
"""Years of the children in the training data: from one to before the sixth birthday."""

VIEWS = ("AP",)
"""Views of the films in the training data."""

_DEFLATED = b"1.2.840.10008.1.2.1.99"
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_PERCENTILES = (0.5, 99.5)


class NotAFrontalFilm(ValueError):
    """A readable DICOM file that holds something else than one frontal radiograph."""


class DicomFilm(NamedTuple):
    """A decoded film.

    Attributes:
        pixels: ``uint8`` (H, W), 0 is black.
        outside: What is known to lie outside the training population:
            ``"age"``, ``"view"``. What is not known is not outside.
    """

    pixels: NDArray
    outside: tuple[str, ...]


def decode_dicom(data: bytes) -> DicomFilm:
    """Decode one radiograph.

    Stored values pass the modality LUT, then the VOI LUT or the first window;
    without either, the range from the 0.5th to the 99.5th percentile, padding
    left out. MONOCHROME1 is inverted last (PS3.3 C.7.6.3.1.2, C.11).

    Args:
        data: The whole file.

    Raises:
        NotAFrontalFilm: Another modality, several frames, a lateral view, or colours.
        ValueError: One line with the reason: damaged, no pixels, too large or
            small, or a package is needed to read it, which is named.
    """
    try:
        import pydicom
        from pydicom.errors import InvalidDicomError
    except ModuleNotFoundError:
        raise ValueError("a DICOM file; to read it install pydicom") from None
    if _DEFLATED in data[:1024]:  # may inflate to any size
        raise ValueError("a deflated DICOM file, which is not supported")
    try:
        with _silence():
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check_kind(dataset)
            check_size(int(dataset.Columns), int(dataset.Rows))
            return DicomFilm(_shown(dataset), _outside(dataset))
    except NotAFrontalFilm:
        raise
    except InvalidDicomError:
        raise ValueError("truncated or damaged header") from None
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(_reason(error)) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep pydicom's warnings and log lines to itself: they quote values of tags."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _check_kind(dataset: Dataset) -> None:
    modality = str(dataset.get("Modality", ""))
    if modality not in MODALITIES:
        known = modality if modality in _OTHER_MODALITIES else "unknown"  # a damaged one may hold anything
        raise NotAFrontalFilm(f"modality {known}, not {' or '.join(MODALITIES)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise NotAFrontalFilm("several frames, not one film")
    if str(dataset.get("PhotometricInterpretation", "")) not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotAFrontalFilm("a colour picture")
    view = str(dataset.get("ViewPosition", "")).upper()
    rows_point_to = str((dataset.get("PatientOrientation") or [""])[0])[:1].upper()
    if view in ("LL", "RL", "LLD", "RLD", "LAT", "LATERAL") or rows_point_to in ("A", "P"):
        raise NotAFrontalFilm("a lateral view")


def _shown(dataset: Dataset) -> NDArray:
    """Grey values as a viewer would show them, ``uint8`` (H, W)."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut
    stored = dataset.pixel_array
    values = apply_modality_lut(stored, dataset)
    if dataset.get("VOILUTSequence") or dataset.get("WindowWidth") is not None:
        ends = apply_voi_lut(np.array([values.min() - 1e6, values.max() + 1e6]), dataset, 0) \
            if not dataset.get("VOILUTSequence") else _lut_ends(dataset)
        values = apply_voi_lut(values, dataset, 0)
    else:
        ends = np.percentile(values[~_padding(stored, dataset)], _PERCENTILES)
    low, high = float(min(ends)), float(max(ends))
    shown = (np.clip(values, low, high).astype(np.float64) - low) * (255 / max(high - low, 1e-9))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return np.rint(shown).astype(np.uint8)


def _lut_ends(dataset: Dataset) -> tuple[int, int]:
    return 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1


def _padding(stored: NDArray, dataset: Dataset) -> NDArray:
    """Pixels outside the film, unless that is all of them."""
    if (value := dataset.get("PixelPaddingValue")) is None:
        return np.zeros(stored.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    padding = (stored >= low) & (stored <= high)
    return padding & ~padding.all()


def _outside(dataset: Dataset) -> tuple[str, ...]:
    age = re.fullmatch(r"(\d{1,3})([DWMY])", str(dataset.get("PatientAge") or "").strip())
    years = int(age[1]) * _YEARS[age[2]] if age else None
    view = str(dataset.get("ViewPosition") or "").upper()
    return tuple(name for name, known, inside in (
        ("age", years is not None, years is not None and AGES[0] <= years < AGES[1]),
        ("view", bool(view), view in VIEWS)) if known and not inside)


def _reason(error: Exception) -> str:
    """One line without values of tags: pydicom's messages about values hold them."""
    text = " ".join(str(error).split())
    if "missing dependencies" in text:
        packages = sorted(set(re.findall(r"(?:requires |and )([a-z][\w-]*)", text)))
        return f"compressed; to read it install one of: {', '.join(packages)}"
    if isinstance(error, ValueError) and text.startswith(("too large", "too small")):
        return text
    if isinstance(error, AttributeError):
        return "no pixel data, or a tag that describes it is missing"
    return f"cannot be decoded ({type(error).__name__})"
