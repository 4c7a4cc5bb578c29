"""DICOM radiographs: what is shown, how it becomes grey pixels, and what is refused.

No patient tag leaves this module: neither messages nor results hold one.
"""

from __future__ import annotations

import contextlib
import io
import logging
import re
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from chestxray.data.formats import blocks, check_size, look_up, read_header

if TYPE_CHECKING:
    from pydicom import Dataset

MODALITIES = ("CR", "DX")
"""Computed and digital radiography."""

_OTHER_MODALITIES = (
    "CT",
    "DR",
    "ES",
    "IO",
    "MG",
    "MR",
    "NM",
    "OT",
    "PT",
    "PX",
    "RF",
    "RG",
    "SC",
    "SR",
    "US",
    "XA",
)

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


def decode_dicom(data: bytes, population: Mapping[str, Any] | None = None) -> DicomFilm:
    """Decode one radiograph.

    Stored values pass the modality LUT, then the VOI LUT or the first window;
    without either, the range from the 0.5th to the 99.5th percentile, padding
    left out. MONOCHROME1 is inverted last (PS3.3 C.7.6.3.1.2, C.11).

    Args:
        data: The whole file.
        population: Of the training images, as far as it is known: ``ages``,
            ``[least, most]`` in years, the second not included; ``views``,
            a list of values of ViewPosition.

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
    if _DEFLATED in data:  # may inflate to any size
        raise ValueError("a deflated DICOM file, which is not supported")
    try:
        with _silence():
            dataset = pydicom.dcmread(io.BytesIO(data))
            _check_kind(dataset)
            check_size(int(dataset.Columns), int(dataset.Rows))
            return DicomFilm(_shown(dataset), _outside(dataset, population or {}))
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
    """Grey values as a viewer would show them, ``uint8`` (H, W): worked out once for each stored value."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    _check_encoded_size(dataset)
    stored = dataset.pixel_array
    if stored.ndim != 2 or stored.dtype.itemsize > 2:
        raise NotAFrontalFilm("not one picture of at most 16 bits")
    least = int(stored.min())
    levels = np.arange(least, int(stored.max()) + 1)
    values = apply_modality_lut(levels, dataset)
    if dataset.get("VOILUTSequence"):
        ends = 0, 2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1
        values = apply_voi_lut(values, dataset, 0)
    elif dataset.get("WindowWidth") is not None and dataset.get("WindowCenter") is not None:
        ends = apply_voi_lut(np.array([values.min() - 1e6, values.max() + 1e6]), dataset, 0)
        values = apply_voi_lut(values, dataset, 0)
    else:
        counts = sum(
            np.bincount((rows.astype(int) - least).ravel(), minlength=len(levels)) for rows in blocks(stored)
        )
        ends = np.interp(_percentiles(levels, counts * ~_padding(levels, counts, dataset)), levels, values)
    low, high = float(min(ends)), float(max(ends))
    shown = (np.clip(values, low, high).astype(np.float64) - low) * (255 / max(high - low, 1e-9))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return look_up(np.rint(shown).astype(np.uint8), stored, least)


def _check_encoded_size(dataset: Dataset) -> None:
    """Compare the size that a compressed picture claims with that of the header, before it is decoded."""
    if not dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        return
    from pydicom.encaps import get_frame

    encoded = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if (place := encoded[:1024].find(b"\xff\x4f\xff\x51")) >= 0:  # JPEG 2000: SOC, SIZ
        right, bottom, left, top = struct.unpack(">IIII", encoded[place + 8 : place + 24])
        size = right - left, bottom - top
    elif encoded.startswith(b"\xff\xd8"):
        size = read_header(encoded)[:2]
    else:
        return  # run lengths, which say nothing of a size
    if size != (int(dataset.Columns), int(dataset.Rows)):
        raise ValueError("damaged (the compressed picture has another size than the header says)")


def _padding(levels: NDArray, counts: NDArray, dataset: Dataset) -> NDArray:
    """Which stored values mean outside the film, unless there are no others."""
    if (value := dataset.get("PixelPaddingValue")) is None:
        return np.zeros(levels.shape, bool)
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((int(value), int(value if limit is None else limit)))
    padding = (levels >= low) & (levels <= high)
    return padding & bool(counts[~padding].any())


def _percentiles(levels: NDArray, counts: NDArray) -> NDArray:
    """:data:`_PERCENTILES` of values that occur so often, with linear interpolation."""
    upto = np.cumsum(counts)
    place = np.array(_PERCENTILES) / 100 * (upto[-1] - 1)
    low, high = (
        levels[np.searchsorted(upto, whole, side="right")] for whole in (np.floor(place), np.ceil(place))
    )
    return low + (high - low) * (place % 1)


def _outside(dataset: Dataset, population: Mapping[str, Any]) -> tuple[str, ...]:
    age = re.fullmatch(r"(\d{1,3})([DWMY])", str(dataset.get("PatientAge") or "").strip())
    years = int(age[1]) * _YEARS[age[2]] if age else None
    view = str(dataset.get("ViewPosition") or "").upper()
    found = []
    if years is not None and "ages" in population:
        least, most = population["ages"]
        found += [] if least <= years < most else ["age"]
    if view and "views" in population:
        found += [] if view in population["views"] else ["view"]
    return tuple(found)


def _reason(error: Exception) -> str:
    """One line without values of tags: pydicom's messages about values hold them."""
    text = " ".join(str(error).split())
    if "missing dependencies" in text:
        packages = sorted(set(re.findall(r"pylibjpeg-\w+", text)))  # others can, too: these are the extra's
        return f"compressed; to read it install pylibjpeg and {' or '.join(packages)} (extra dicom)"
    if isinstance(error, ValueError) and text.startswith(("too large", "too small", "damaged")):
        return text
    if isinstance(error, AttributeError):
        return "no pixel data, or a tag that describes it is missing"
    return f"cannot be decoded ({type(error).__name__})"
