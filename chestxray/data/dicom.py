"""DICOM radiographs: grey pixels as a viewer shows them, and files that are refused.

No value of a patient tag leaves this module, neither in messages nor in results.
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

_MODALITIES = ("CR", "DX")  # computed and digital radiography
_OTHER_MODALITIES = "CT DR ES IO MG MR NM OT PT PX RF RG SC SR US XA".split()
_LATERAL = ("LL", "RL", "LLD", "RLD", "LAT", "LATERAL")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}
_PERCENTILES = (0.5, 99.5)


class NotAFrontalImage(ValueError):
    """A readable DICOM file that holds something else than one frontal radiograph."""


class DicomImage(NamedTuple):
    """A decoded radiograph: ``pixels``, ``uint8`` (H, W), 0 is black.

    ``outside`` names what is known to lie outside the training population: ``"age"``, ``"view"``.
    """

    pixels: NDArray
    outside: tuple[str, ...]


def decode_dicom(data: bytes, population: Mapping[str, Any] | None = None) -> DicomImage:
    """Decode one radiograph from the content of its file.

    Stored values pass the modality LUT, then the VOI LUT or the first window; without either, the range from
    the 0.5th to the 99.5th percentile, without padding. MONOCHROME1 is inverted last (PS3.3 C.7.6.3.1.2,
    C.11).

    ``population`` tells what is known of the training images: ``ages``, ``[least, most]`` in years, the
    second not included; ``views``, a list of values of ViewPosition.

    Raises NotAFrontalImage for another modality, several frames, a lateral view or colours, and ValueError
    with a one-line reason: damaged, no pixels, too large or small, or the name of a missing package.
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
            return DicomImage(_shown(dataset), _outside(dataset, population or {}))
    except NotAFrontalImage:
        raise
    except InvalidDicomError:
        raise ValueError("truncated or damaged header") from None
    except Exception as error:  # a damaged file can fail in any way
        raise ValueError(_reason(error)) from None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Suppress pydicom's warnings and log lines, which quote values of tags."""
    logger = logging.getLogger("pydicom")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logger.setLevel(level)


def _check_kind(dataset: Dataset) -> None:
    modality = str(dataset.get("Modality", ""))
    if modality not in _MODALITIES:
        known = modality if modality in _OTHER_MODALITIES else "unknown"  # a damaged one may hold anything
        raise NotAFrontalImage(f"modality {known}, not {' or '.join(_MODALITIES)}")
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise NotAFrontalImage("several frames, not one image")
    if str(dataset.get("PhotometricInterpretation", "")) not in ("MONOCHROME1", "MONOCHROME2"):
        raise NotAFrontalImage("a colour image")
    direction = str((dataset.get("PatientOrientation") or [""])[0])[:1].upper()  # of the rows
    if str(dataset.get("ViewPosition", "")).upper() in _LATERAL or direction in ("A", "P"):
        raise NotAFrontalImage("a lateral view")


def _shown(dataset: Dataset) -> NDArray:
    """Grey values as a viewer shows them, ``uint8`` (H, W), computed once for each stored value."""
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    _check_encoded_size(dataset)
    stored = dataset.pixel_array
    if stored.ndim != 2 or stored.dtype.itemsize > 2:
        raise NotAFrontalImage("not one image of at most 16 bits")
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
        offsets = ((rows.astype(int) - least).ravel() for rows in blocks(stored))
        counts = sum(np.bincount(offset, minlength=len(levels)) for offset in offsets)
        ends = np.interp(_middle_range(levels, counts, dataset), levels, values)
    low, high = float(min(ends)), float(max(ends))
    shown = (np.clip(values, low, high).astype(np.float64) - low) * (255 / max(high - low, 1e-9))
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        shown = 255 - shown
    return look_up(np.rint(shown).astype(np.uint8), stored, least)


def _check_encoded_size(dataset: Dataset) -> None:
    """Compare the size in a compressed image with that of the header, before decoding."""
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
        return  # run lengths hold no size
    if size != (int(dataset.Columns), int(dataset.Rows)):
        raise ValueError("damaged (the compressed image has another size than the header says)")


def _middle_range(levels: NDArray, counts: NDArray, dataset: Dataset) -> NDArray:
    """:data:`_PERCENTILES` of the stored values, with linear interpolation and without padding."""
    if (value := dataset.get("PixelPaddingValue")) is not None:
        limit = dataset.get("PixelPaddingRangeLimit")
        low, high = sorted((int(value), int(value if limit is None else limit)))
        outside = (levels < low) | (levels > high)
        counts = counts * outside if (counts * outside).any() else counts
    cumulative = np.cumsum(counts)
    place = np.array(_PERCENTILES) / 100 * (cumulative[-1] - 1)
    lower, upper = levels[np.searchsorted(cumulative, [np.floor(place), np.ceil(place)], side="right")]
    return lower + (upper - lower) * (place % 1)


def _outside(dataset: Dataset, population: Mapping[str, Any]) -> tuple[str, ...]:
    age = re.fullmatch(r"(\d{1,3})([DWMY])", str(dataset.get("PatientAge") or "").strip())
    view = str(dataset.get("ViewPosition") or "").upper()
    outside = []
    if age and "ages" in population:
        least, most = population["ages"]
        outside += [] if least <= int(age[1]) * _YEARS[age[2]] < most else ["age"]
    if view and view not in population.get("views", [view]):
        outside.append("view")
    return tuple(outside)


def _reason(error: Exception) -> str:
    """One line without values of tags, which pydicom's messages may hold."""
    text = " ".join(str(error).split())
    if "missing dependencies" in text:
        packages = sorted(set(re.findall(r"pylibjpeg-\w+", text)))  # others can, too: these are the extra's
        return f"compressed; to read it install pylibjpeg and {' or '.join(packages)} (extra dicom)"
    if isinstance(error, ValueError) and text.startswith(("too large", "too small", "damaged")):
        return text
    if isinstance(error, AttributeError):
        return "no pixel data, or a tag that describes it is missing"
    return f"cannot be decoded ({type(error).__name__})"
