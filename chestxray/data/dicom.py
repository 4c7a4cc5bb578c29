"""DICOM radiographs: grey pixels as a viewer shows them, and checks for frontal chest radiographs.

Messages and results never contain the value of a patient tag.
"""

import io
import logging
import math
import re
import struct
import warnings
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from chestxray.data import formats

if TYPE_CHECKING:
    from pydicom import Dataset

COLOUR_ABOVE = 8.0  # mean range of the three channels, in grey values, above which an image has colours
_MODALITIES = ("CR", "DX", "DR", "RG")  # computed, digital and film radiography
_OTHER_MODALITIES = "CT ES IO KO MG MR NM OT PR PT PX RF SC SEG SR US XA".split()
_WITHOUT_PIXELS = ("KO", "PR", "SR")
_RADIOGRAPHS = [f"1.2.840.10008.5.1.4.1.1.1{end}" for end in ("", ".1", ".1.1")]  # SOP classes
_LATERAL = ("LL", "RL", "LLD", "RLD", "LAT", "LATERAL")
_DEFLATED = b"1.2.840.10008.1.2.1.99"
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


class NotAFrontalImage(ValueError):
    """A readable DICOM file that does not contain exactly one image."""


class DicomImage(NamedTuple):
    """A decoded image: ``pixels``, ``uint8`` (H, W), 0 is black.

    ``problem`` says why the image is not a frontal radiograph, or is empty. ``outside`` has ``"age"`` or
    ``"view"`` if it is known to be outside the training population.
    """

    pixels: NDArray
    problem: str
    outside: tuple[str, ...]


def decode_dicom(data: bytes, population: Mapping[str, Any] | None = None) -> DicomImage:
    """Decode one image from the content of its file.

    Stored values are mapped by the modality LUT, then by the VOI LUT, scaled to its largest value, or by the
    first window. Without these, the range between the 0.5th and 99.5th percentiles, without padding, is used.
    MONOCHROME1 is inverted last (PS3.3 C.7.6.3.1.2, C.11). An empty or impossible tag counts as absent.

    ``population`` describes the training images: ``ages``, ``[lowest, limit)`` in years; ``views``, a list of
    values of ViewPosition. Raises NotAFrontalImage for several frames or no pixels, and ValueError with a
    one-line reason: damaged, truncated, too large or small, or the name of a missing package.
    """
    try:
        import pydicom
    except ModuleNotFoundError:
        raise ValueError("a DICOM file, which needs the package pydicom") from None
    if _DEFLATED in data:  # it may inflate to any size
        raise ValueError("a deflated DICOM file, which is not supported")
    # Warnings and log messages of pydicom contain values of tags. The log stays off, because another thread
    # may be decoding.
    logging.getLogger("pydicom").setLevel(logging.CRITICAL + 1)
    try:
        with warnings.catch_warnings(action="ignore"):
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)  # a preamble may be missing
            _check_pixels(dataset)
            pixels, coloured = _grey_pixels(dataset)
            problem = "a colour image" if coloured else _problem(dataset)
            return DicomImage(pixels, problem, _outside(dataset, population or {}))
    except Exception as error:  # a damaged file can fail in any way
        raise error if isinstance(error, NotAFrontalImage) else ValueError(_reason(error)) from None


def _text(dataset: "Dataset", name: str) -> str:
    """Return the first value of a tag in upper case; empty if it is absent or cannot be read."""
    try:
        value = dataset.get(name) or ""
        return str(value if isinstance(value, str) else list(value)[0]).strip().upper()
    except Exception:
        return ""


def _numbers(dataset: "Dataset", name: str) -> list[float]:
    """Return the values of a numeric tag, NaN for an empty one; none if it is absent or impossible."""
    try:
        values = dataset.get(name)
        values = [values] if isinstance(values, (str, int, float)) else list(values)
        return [math.nan if value in (None, "") else float(value) for value in values]
    except Exception:
        return []


def _number(dataset: "Dataset", name: str, default: float = 0) -> float:
    """Return the first value of a numeric tag; the default if it is absent, empty or impossible."""
    value = [*_numbers(dataset, name), math.nan][0]
    return value if math.isfinite(value) else default


def _check_pixels(dataset: "Dataset") -> None:
    """Raise ValueError unless there is one whole image of a possible size; complete the transfer syntax."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    modality = _text(dataset, "Modality")
    if "PixelData" not in dataset:
        if modality in _WITHOUT_PIXELS:
            raise NotAFrontalImage(f"modality {modality}, without an image")
        raise ValueError("truncated, or without pixel data")
    if (frames := _number(dataset, "NumberOfFrames", 1)) > 1:
        raise NotAFrontalImage(f"{frames:.0f} frames, not one image")
    if not hasattr(dataset.file_meta, "TransferSyntaxUID"):
        implicit, little = dataset.original_encoding
        explicit = ExplicitVRLittleEndian if little else ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else explicit
    rows, columns, bits = (int(_number(dataset, name)) for name in ("Rows", "Columns", "BitsAllocated"))
    if not (rows and columns and bits):
        raise ValueError("damaged (Rows, Columns or BitsAllocated is missing)")
    formats.check_size(columns, rows)
    samples = dataset.SamplesPerPixel = int(_number(dataset, "SamplesPerPixel")) or 1
    if not 1 <= _number(dataset, "BitsStored") <= bits:
        dataset.BitsStored = bits
    dataset.PixelRepresentation = int(_number(dataset, "PixelRepresentation") == 1)
    dataset.PlanarConfiguration = int(_number(dataset, "PlanarConfiguration") == 1)
    interpretation = _text(dataset, "PhotometricInterpretation")
    grey = samples == 1 and interpretation not in ("MONOCHROME1", "PALETTE COLOR")
    dataset.PhotometricInterpretation = "MONOCHROME2" if grey else interpretation
    samples = 2 if interpretation == "YBR_FULL_422" else samples  # two pixels share their colour
    if dataset.file_meta.TransferSyntaxUID.is_encapsulated:
        _check_encoded(dataset, (columns, rows))
    elif (missing := rows * columns * samples * bits // 8 - len(dataset.PixelData)) > 0:
        raise ValueError(f"truncated (pixel data too short by {missing:,} bytes)")


def _check_encoded(dataset: "Dataset", size: tuple[int, int]) -> None:
    """Check, before decoding, that an image is whole and has the size in the header; decode JPEG."""
    from pydicom.encaps import get_frame

    encoded = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if (start := encoded[:1024].find(b"\xff\x4f\xff\x51")) >= 0:  # JPEG 2000: SOC, SIZ
        right, bottom, left, top = struct.unpack(">IIII", encoded[start + 8 : start + 24])
        encoded_size = right - left, bottom - top
        if b"\xff\xd9" not in encoded.rstrip(b"\0")[-16:]:
            raise ValueError("truncated (the end of the image is missing)")
    elif encoded.startswith(b"\xff\xd8"):
        encoded_size = formats.check_image(encoded)[:2]
    else:
        return  # run-length encoding does not contain the size
    if encoded_size != size:
        raise ValueError("damaged (the compressed image has another size than the header says)")
    # The decoder of JPEG files: pydicom's differ from it by 1 here and there, which moves the lung box.
    jpeg = dataset.file_meta.TransferSyntaxUID.endswith((".4.50", ".4.51"))
    pixels = cv2.imdecode(np.frombuffer(encoded, np.uint8), cv2.IMREAD_UNCHANGED) if jpeg else None
    if pixels is not None:  # None: of 12 bits
        pixels = np.atleast_3d(pixels)[..., ::-1]
        if pixels.shape[2] * 8 != dataset.SamplesPerPixel * dataset.BitsAllocated:
            raise ValueError("damaged (the compressed image has other channels or bits than the header says)")
        dataset.PixelData, dataset.file_meta.TransferSyntaxUID = pixels.tobytes(), "1.2.840.10008.1.2.1"
        if pixels.shape[2] > 1:
            dataset.PhotometricInterpretation, dataset.PlanarConfiguration = "RGB", 0


def _problem(dataset: "Dataset") -> str:
    """Return why the image is not a frontal radiograph; empty if no tag says so."""
    modality = _text(dataset, "Modality")
    sop_class = _text(dataset, "SOPClassUID") or _text(dataset.file_meta, "MediaStorageSOPClassUID")
    if modality not in _MODALITIES and (modality or sop_class not in _RADIOGRAPHS):
        name = modality if modality in _OTHER_MODALITIES else "unknown"  # a damaged tag may hold anything
        return f"modality {name}, not one of {', '.join(_MODALITIES)}"
    direction = _text(dataset, "PatientOrientation")[:1]  # of the rows
    return "a lateral view" if _text(dataset, "ViewPosition") in _LATERAL or direction in ("A", "P") else ""


def _grey_pixels(dataset: "Dataset") -> tuple[NDArray, bool]:
    """Return grey values as a viewer shows them, ``uint8`` (H, W), and whether the image has colours."""
    from pydicom.pixels import apply_color_lut

    unused = int(_number(dataset, "HighBit")) + 1 - dataset.BitsStored  # bits below those in use
    dataset.BitsStored = min(dataset.BitsStored + max(unused, 0), dataset.BitsAllocated)
    stored, interpretation = dataset.pixel_array, _text(dataset, "PhotometricInterpretation")
    if interpretation == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
    if stored.ndim == 3:
        if stored.dtype != np.uint8:
            stored = formats.to_grey(stored, *formats.robust_range(stored))
        ranges = [np.ptp(rows, axis=-1).mean() for rows in formats.blocks(stored)]
        return cv2.cvtColor(stored, cv2.COLOR_RGB2GRAY), bool(np.mean(ranges) > COLOUR_ABOVE)
    if stored.ndim != 2 or stored.dtype.itemsize > 2:
        raise NotAFrontalImage("not one image of at most 16 bits")
    if 0 < unused < 16 and not (stored & (2**unused - 1)).any():
        stored = stored >> unused
    lowest = int(stored.min())
    values = np.arange(lowest, int(stored.max()) + 1, dtype=float)  # each value is mapped only once
    if table := _table(dataset, "ModalityLUTSequence"):
        values = _look_up(table, values)
    else:
        values = values * (_number(dataset, "RescaleSlope", 1) or 1) + _number(dataset, "RescaleIntercept")
    if table := _table(dataset, "VOILUTSequence"):
        white, limit = table[1].max(), 1.5 * np.percentile(table[1], formats.PERCENTILES[1])
        scaled = _look_up(table, values) / (white if white <= limit or not limit else limit / 1.5)
    elif (scaled := _apply_window(dataset, values)) is None:
        limits = formats.robust_range(_without_padding(dataset, stored))
        low, high = np.interp(limits, np.arange(len(values)) + lowest, values)
        scaled = (values - min(low, high)) / max(abs(high - low), 1e-9)
    if interpretation == "MONOCHROME1":
        scaled = 1 - np.clip(scaled, 0, 1)
    grey, pixels = formats.to_grey(scaled, 0, 1), np.empty(stored.shape, np.uint8)
    for target, rows in zip(formats.blocks(pixels), formats.blocks(stored)):
        target[...] = grey[rows.astype(np.intp) - lowest]
    return pixels, False


def _table(dataset: "Dataset", name: str) -> tuple[float, NDArray] | None:
    """Return the first mapped value and the entries of the first possible lookup table; None without one."""
    order = "<" if dataset.original_encoding[1] else ">"
    for item in dataset.get(name) or ():
        try:
            count, first, _ = map(int, item.LUTDescriptor)
            count, data = count or 65536, item.LUTData
            data = data if isinstance(data, bytes) else np.array(data, f"{order}u2").tobytes()
            packed = len(data) in (count, count + 1)  # one byte for each entry
            entries = np.frombuffer(data, "u1" if packed else f"{order}u2")[:count].astype(float)
        except Exception:  # an empty tag, or a tag of another type
            continue
        if len(entries) > 0.9 * count and np.ptp(entries) > 0:
            return first, entries
    return None


def _look_up(table: tuple[float, NDArray], values: NDArray) -> NDArray:
    first, entries = table
    if first > 32767 and values.min() < 0:  # a negative number that was read without its sign
        first -= 65536
    return entries[np.clip(np.rint(values - first), 0, len(entries) - 1).astype(int)]


def _apply_window(dataset: "Dataset", values: NDArray) -> NDArray | None:
    """Map values with the first possible window (PS3.3 C.11.2.1.2) to 0–1; None without one."""
    function = _text(dataset, "VOILUTFunction")
    for centre, width in zip(_numbers(dataset, "WindowCenter"), _numbers(dataset, "WindowWidth")):
        linear = function not in ("SIGMOID", "LINEAR_EXACT")
        if not (math.isfinite(centre) and math.isfinite(width) and width > 0 and (width >= 1 or not linear)):
            continue
        if function == "SIGMOID":
            scaled = 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -60, 60)))
        elif linear:
            scaled = np.clip((values - centre + 0.5) / max(width - 1, 1e-9) + 0.5, 0, 1)
        else:
            scaled = np.clip((values - centre) / width + 0.5, 0, 1)
        if np.ptp(scaled) > 0 or np.ptp(values) == 0:  # the window contains some of the values
            return scaled
    return None


def _without_padding(dataset: "Dataset", stored: NDArray) -> NDArray:
    """Return stored values without padding; all values if all are padding."""
    value = _number(dataset, "PixelPaddingValue", math.nan)
    if not math.isfinite(value):
        return stored
    ends = np.array([value, _number(dataset, "PixelPaddingRangeLimit", value)], np.int64)
    low, high = sorted(ends.astype(stored.dtype))  # the tag may have been read with another sign
    inside = stored[(stored < low) | (stored > high)]
    return inside if inside.size else stored


def _outside(dataset: "Dataset", population: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the properties that are known to be outside the training population."""
    age = re.fullmatch(r"(\d{1,3})([DWMY])", _text(dataset, "PatientAge"))
    view = _text(dataset, "ViewPosition")
    outside = []
    if age and "ages" in population:
        lowest, limit = population["ages"]
        outside += [] if lowest <= int(age[1]) * _YEARS[age[2]] < limit else ["age"]
    if view and view not in population.get("views", [view]):
        outside.append("view")
    return tuple(outside)


def _reason(error: Exception) -> str:
    """Return a reason in one line without values of tags, which pydicom's messages may contain."""
    text = " ".join(str(error).split())
    if "missing dependencies" in text:
        packages = sorted(set(re.findall(r"pylibjpeg-\w+", text)))  # the packages of the extra
        return f"compressed; install pylibjpeg and {' or '.join(packages)} (extra dicom)"
    if isinstance(error, ValueError) and text.startswith(("too ", "truncated", "damaged")):
        return text
    if isinstance(error, NotImplementedError):
        return "compressed in a way that is not supported"
    return "damaged, or without a tag that describes the pixels"
