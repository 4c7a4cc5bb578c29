"""DICOM files drawn in memory: shown as a viewer would, or refused with a reason."""

import io
import struct

import numpy as np
import pydicom
import pytest
from pydicom.dataset import FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, JPEG2000Lossless, JPEGLSLossless, generate_uid

from chestxray.data.dicom import NotAFrontalImage, decode_dicom
from chestxray.data.images import decode_image
from chestxray.deployment.classifier import POPULATION

SECRET = "Doe^Jane"


def radiograph(pixels, bits=12, **tags):
    """A computed radiograph, encoded."""
    dataset = pydicom.Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID, dataset.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.1", generate_uid()
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality, dataset.PatientName, dataset.PatientID = "CR", SECRET, "4711-secret"
    dataset.Rows, dataset.Columns = np.shape(pixels)[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, bits, bits - 1
    dataset.PixelRepresentation = 0
    dataset.PixelData = np.asarray(pixels, "<u2").tobytes()
    for name, value in tags.items():
        setattr(dataset, name, value)
    file = io.BytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def noise(bits=12, seed=0):
    return np.random.default_rng(seed).integers(0, 2**bits, (20, 24))


def test_a_window_worked_out_by_hand():
    # Width 201 around 1000.5: 900 and less is black, 1100 and more is white, 1000 is half.
    values = np.full((16, 16), 1000)
    values[0, :5] = 0, 900, 950, 1100, 4095
    shown = decode_dicom(radiograph(values, WindowCenter=1000.5, WindowWidth=201)).pixels
    assert shown[0, :5].tolist() == [0, 0, 64, 255, 255] and shown[1, 0] in (127, 128)
    assert shown.dtype == np.uint8 and shown.shape == (16, 16)


def test_of_several_windows_the_first():
    first = decode_dicom(radiograph(noise(), WindowCenter=1000, WindowWidth=500)).pixels
    several = decode_dicom(radiograph(noise(), WindowCenter=[1000, 3000], WindowWidth=[500, 90])).pixels
    np.testing.assert_array_equal(first, several)


def test_without_a_window_the_middle_99_percent():
    values = np.arange(1000).reshape(25, 40) + 100
    shown = decode_dicom(radiograph(values)).pixels.ravel()
    low, high = np.percentile(values, (0.5, 99.5))
    expected = 255 * (np.clip(values.ravel(), low, high) - low) / (high - low)
    np.testing.assert_array_equal(shown, np.rint(expected))


def test_padding_does_not_count():
    values = noise(10)
    padded = np.hstack([values, np.full((20, 40), 4095)])
    shown = decode_dicom(radiograph(padded, PixelPaddingValue=4095)).pixels
    np.testing.assert_array_equal(shown[:, :24], decode_dicom(radiograph(values)).pixels)
    ranged = np.hstack([values, np.full((20, 20), 4000), np.full((20, 20), 4095)])
    shown = decode_dicom(radiograph(ranged, PixelPaddingValue=4095, PixelPaddingRangeLimit=3990)).pixels
    np.testing.assert_array_equal(shown[:, :24], decode_dicom(radiograph(values)).pixels)


@pytest.mark.parametrize(
    "tags",
    [
        {},
        {"WindowCenter": 1500, "WindowWidth": 1001},
        {"WindowCenter": 1500, "WindowWidth": 1001, "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": 2, "RescaleIntercept": -100, "WindowCenter": 2900, "WindowWidth": 2001},
    ],
)
def test_a_radiograph_and_its_negative_give_the_same_image(tags):
    mirrored = dict(tags)
    if "WindowCenter" in tags:  # mirrored with the values; a linear one of width w ends at c + w/2 - 1
        slope, intercept = tags.get("RescaleSlope", 1), tags.get("RescaleIntercept", 0)
        half = 0 if tags.get("VOILUTFunction") else 1
        mirrored["WindowCenter"] = slope * 4095 + 2 * intercept - tags["WindowCenter"] + half
    positive = decode_dicom(radiograph(noise(), **tags)).pixels
    negative = decode_dicom(
        radiograph(4095 - noise(), PhotometricInterpretation="MONOCHROME1", **mirrored)
    ).pixels
    np.testing.assert_array_equal(positive, negative)
    assert positive.std() > 50


def test_a_lookup_table_is_followed():
    table = pydicom.Dataset()
    table.LUTDescriptor = [4, 0, 16]
    table.add_new("LUTData", "OW", np.array([0, 65535, 32768, 16384], "<u2").tobytes())
    values = np.tile([0, 1, 2, 3], (16, 4))
    shown = decode_dicom(radiograph(values, VOILUTSequence=Sequence([table]))).pixels
    assert shown[0, :4].tolist() == [0, 255, 128, 64]


def test_a_window_without_a_centre_is_no_window():
    np.testing.assert_array_equal(
        decode_dicom(radiograph(noise(), WindowWidth=100)).pixels, decode_dicom(radiograph(noise())).pixels
    )


def test_signed_values():
    values = noise().astype(int) - 2048
    signed = radiograph(np.asarray(values, "<i2").view("<u2"), bits=16, PixelRepresentation=1)
    np.testing.assert_array_equal(decode_dicom(signed).pixels, decode_dicom(radiograph(values + 2048)).pixels)


def test_a_compressed_image_of_another_size_is_not_decoded():
    plain = radiograph(np.random.default_rng(0).integers(0, 4096, (90, 80)))
    whole = pydicom.dcmread(io.BytesIO(plain))
    whole.compress(JPEG2000Lossless)
    file = io.BytesIO()
    whole.save_as(file)
    np.testing.assert_array_equal(decode_dicom(file.getvalue()).pixels, decode_dicom(plain).pixels)
    place = file.getvalue().index(b"\xff\x4f\xff\x51") + 8
    bomb = file.getvalue()[:place] + struct.pack(">II", 60000, 60000) + file.getvalue()[place + 8 :]
    with pytest.raises(ValueError, match="another size than the header says"):
        decode_dicom(bomb)


@pytest.mark.parametrize(
    ("tags", "reason"),
    [
        ({"Modality": "CT"}, "modality CT"),
        ({"Modality": ""}, "modality unknown"),
        ({"ViewPosition": "LL"}, "a lateral view"),
        ({"ViewPosition": "RL"}, "a lateral view"),
        ({"PatientOrientation": ["A", "F"]}, "a lateral view"),
        ({"NumberOfFrames": 2}, "several frames"),
        ({"PhotometricInterpretation": "RGB"}, "a colour image"),
    ],
)
def test_what_is_no_frontal_image_is_refused(tags, reason):
    with pytest.raises(NotAFrontalImage, match=reason):
        decode_dicom(radiograph(noise(), **tags))


@pytest.mark.parametrize(
    ("tags", "outside"),
    [
        ({}, ()),
        ({"PatientAge": "003Y", "ViewPosition": "AP"}, ()),
        ({"PatientAge": "005Y"}, ()),
        ({"PatientAge": "006Y"}, ("age",)),
        ({"PatientAge": "011M"}, ("age",)),
        ({"PatientAge": "013M"}, ()),
        ({"PatientAge": "040D"}, ("age",)),
        ({"PatientAge": "", "ViewPosition": ""}, ()),
        ({"PatientAge": "071Y", "ViewPosition": "PA"}, ("age", "view")),
    ],
)
def test_what_is_known_to_lie_outside_the_training_population(tags, outside):
    assert decode_dicom(radiograph(noise(), **tags), POPULATION).outside == outside
    assert decode_dicom(radiograph(noise(), **tags)).outside == ()  # of other models nothing is known


def without_pixels():
    dataset = pydicom.dcmread(io.BytesIO(radiograph(noise())))
    del dataset.PixelData
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (radiograph(noise())[:200], "modality unknown"),
        (radiograph(noise())[:-300], "cannot be decoded"),
        (without_pixels(), "no pixel data"),
        (radiograph(np.zeros((8, 8))), "too small"),
        (radiograph(noise(), Rows=60000, Columns=60000), "too large"),
    ],
)
def test_damage_is_named_in_one_line(data, reason):
    with pytest.raises(ValueError, match=reason) as caught:
        decode_image(data)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_a_missing_decoder_is_named(monkeypatch):
    from pydicom.pixels.decoders import JPEGLSLosslessDecoder

    encoded = pydicom.dcmread(io.BytesIO(radiograph(noise())))
    encoded.PixelData = pydicom.encaps.encapsulate([b"\0" * 100])
    encoded.file_meta.TransferSyntaxUID = JPEGLSLossless
    encoded["PixelData"].is_undefined_length = True
    file = io.BytesIO()
    encoded.save_as(file)
    monkeypatch.setattr(JPEGLSLosslessDecoder, "_available", {})
    monkeypatch.setattr(
        JPEGLSLosslessDecoder,
        "_unavailable",
        {"pylibjpeg": ("pylibjpeg>=2", "pylibjpeg-libjpeg>=2"), "gdcm": ("gdcm>=3.0",)},
    )
    with pytest.raises(ValueError, match=r"install pylibjpeg and pylibjpeg-libjpeg \(extra dicom\)$"):
        decode_dicom(file.getvalue())


def test_no_message_holds_a_patient_tag(caplog, recwarn):
    rng, whole = np.random.default_rng(7), radiograph(noise(), PatientAge="004Y")
    heard = set()
    for _ in range(400):
        data = bytearray(whole)
        for place in rng.integers(132, 700, 3):
            data[place] = rng.integers(0, 256)
        try:
            decode_image(bytes(data))
        except ValueError as error:
            heard.add(str(error))
            assert not any(word in str(error) for word in ("Doe", "Jane", "4711", "secret"))
    assert len(heard) > 3
    assert not caplog.records and not recwarn.list


def test_grey_pixels_pass_through_decode_image():
    np.testing.assert_array_equal(decode_image(radiograph(noise())), decode_dicom(radiograph(noise())).pixels)
