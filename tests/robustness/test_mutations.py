"""Whatever happens to a file's bytes: it is read, or named with a reason."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.dataset import FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, RLELossless, generate_uid

from chestxray.data.images import decode_image
from chestxray.deployment.predict import decode_file, list_images

TRIES = 120


def pattern(side=120):
    y, x = np.mgrid[:side, :side]
    waves = 128 + 60 * np.sin(x / 9) * np.cos(y / 7) + np.random.default_rng(0).normal(0, 8, (side, side))
    return np.clip(waves, 0, 255).astype(np.uint8)


def saved(image, **options):
    file = io.BytesIO()
    image.save(file, **options)
    return file.getvalue()


def dicom(transfer_syntax=ExplicitVRLittleEndian, side=120):
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    dataset.SOPInstanceUID = generate_uid(entropy_srcs=["the same in every run"])
    dataset.Modality, dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "CR", "MONOCHROME2", 1
    dataset.PatientAge, dataset.RescaleSlope, dataset.RescaleIntercept = "003Y", 1, 0
    dataset.Rows = dataset.Columns = side
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (np.resize(pattern(), (side, side)).astype("<u2") * 16).tobytes()
    if transfer_syntax != ExplicitVRLittleEndian:
        dataset.compress(transfer_syntax, generate_instance_uid=False)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


FILES = {
    "jpeg": lambda: cv2.imencode(".jpg", pattern())[1].tobytes(),
    "progressive jpeg": lambda: saved(Image.fromarray(pattern()), format="JPEG", progressive=True),
    "cmyk jpeg": lambda: saved(Image.fromarray(pattern()).convert("CMYK"), format="JPEG"),
    "jpeg with exif": lambda: saved(
        Image.fromarray(pattern()), format="JPEG", exif=b"Exif\0\0II*\0" + b"\0" * 80
    ),
    "png": lambda: cv2.imencode(".png", pattern())[1].tobytes(),
    "16-bit png": lambda: cv2.imencode(".png", pattern().astype(np.uint16) * 200)[1].tobytes(),
    "palette png": lambda: saved(Image.fromarray(pattern()).convert("P"), format="PNG"),
    "bmp": lambda: saved(Image.fromarray(pattern()), format="BMP"),
    "tiff": lambda: saved(Image.fromarray(pattern()), format="TIFF"),
    "packed 16-bit tiff": lambda: saved(
        Image.fromarray(pattern().astype(np.uint16) * 200), format="TIFF", compression="tiff_lzw"
    ),
    "webp": lambda: saved(Image.fromarray(pattern()), format="WEBP"),
    "dicom": dicom,
    "dicom without preamble": lambda: dicom()[132:],
    "rle dicom": lambda: dicom(RLELossless),
    "jpeg 2000 dicom": lambda: dicom(JPEG2000Lossless),
}


@pytest.mark.parametrize("name", FILES)
def test_mutated_files_are_read_or_named(name, tmp_path):
    path = tmp_path / "image"
    path.write_bytes(FILES[name]())
    decode_image(path.read_bytes())  # undamaged it is a image
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("mutate.py"), path, "0", str(TRIES)],
        capture_output=True,
        text=True,
    )
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"seed {lines[-1] if lines else None}: {done.stderr[-2000:]}"
    outcomes = json.loads(lines[-1])
    assert outcomes["read"] + outcomes["named"] == TRIES and outcomes["named"] > TRIES / 50
    assert outcomes["read"] > TRIES / 50 or "png" in name  # whose checksums find nearly everything
    assert outcomes["megabytes"] < 1024


def png(width, height, depth, colour, row):
    """A whole PNG whose rows are all alike: small on the disk, large in memory."""

    def chunk(kind, content):
        checksum = zlib.crc32(kind + content)
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", checksum)

    packer = zlib.compressobj(1)
    packed = b"".join(packer.compress(b"\0" + row) for _ in range(height)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


BOMBS = {
    "16-bit colours with alpha": (lambda: png(7000, 7000, 16, 6, b"\x80" * 7000 * 8), True),
    "grey": (lambda: png(8000, 8000, 8, 0, b"\x80" * 8000), True),
    "too large": (lambda: png(20000, 20000, 1, 0, b"\xaa" * 2500), False),
    "one line": (lambda: png(2_000_000, 16, 8, 0, b"\x80" * 2_000_000), False),
    "16-bit grey": (lambda: png(8000, 8000, 16, 0, b"\x80\x01" * 8000), True),
    "dicom": (lambda: dicom(side=8000), True),
}


@pytest.mark.parametrize("name", BOMBS)
def test_bombs_stay_within_memory(name, tmp_path):
    make, readable = BOMBS[name]
    (tmp_path / "image").write_bytes(make())
    assert (tmp_path / "image").stat().st_size < 5e6 or name == "dicom"
    script = (
        "import pathlib, re, sys; from chestxray.data.images import ImageSettings, fit\n"
        "from chestxray.deployment.predict import decode_file\n"
        "try:\n    fit(decode_file(pathlib.Path(sys.argv[1])).pixels, ImageSettings(32)); print('read')\n"
        "except ValueError as error: print(error)\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "print(int(re.search(r'VmHWM:\\s+(\\d+)', status)[1]) / 1024)"
    )  # of this process alone
    lines = subprocess.run(
        [sys.executable, "-c", script, tmp_path / "image"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    ).stdout.splitlines()
    assert (lines[0] == "read") == readable, lines
    assert float(lines[-1]) < 1024


def test_a_png_chunk_that_claims_gigabytes_is_not_believed():
    data = FILES["png"]()
    place = data.index(b"IDAT") - 4
    with pytest.raises(ValueError, match="truncated"):
        decode_image(data[:place] + struct.pack(">I", 3_690_995_712) + data[place + 4 :])


def test_a_deflated_dicom_file_is_not_inflated():
    data = dicom().replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    with pytest.raises(ValueError, match="a deflated DICOM file"):
        decode_image(data)


def test_what_is_no_regular_file_is_named(tmp_path):
    os.mkfifo(tmp_path / "a.png")
    (tmp_path / "b.png").symlink_to("/dev/zero")
    (tmp_path / "c.png").symlink_to("c.png")
    (tmp_path / "d.png").symlink_to(tmp_path)
    with open(tmp_path / "e.png", "wb") as file:
        file.truncate(40_000_000_000)  # sparse
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png", "d.png", "e.png")]
    reasons = []
    for path in paths:
        with pytest.raises((ValueError, OSError)) as caught:
            decode_file(path)
        reasons.append(str(caught.value))
    assert reasons[0] == reasons[1] == reasons[3] == "not a file"
    assert "symbolic links" in reasons[2] and "too large (40,000 MB" in reasons[4]
    assert list(list_images([tmp_path])) == [path for path in paths if path.name != "d.png"]
