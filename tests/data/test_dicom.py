"""DICOM files drawn in memory: shown as a viewer would, or refused with a reason."""

import io
import struct

import cv2
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGBaseline8Bit, JPEGLSLossless, RLELossless
from tiny import radiograph

from chestxray.data.dicom import NotAFrontalImage, decode_dicom
from chestxray.data.images import decode_image
from chestxray.deployment.classifier import POPULATIONS
from chestxray.phantoms import render_phantom


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
        ({"Modality": "CT"}, "modality CT, not one of CR, DX, DR, RG"),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, "modality unknown"),
        ({"ViewPosition": "LL"}, "a lateral view"),
        ({"ViewPosition": "RL"}, "a lateral view"),
        ({"PatientOrientation": ["A", "F"]}, "a lateral view"),
        ({"PatientOrientation": ["L", "F"]}, ""),
        ({"Modality": "DR"}, ""),
        ({"Modality": "RG", "PatientOrientation": ""}, ""),
        ({"Modality": "", "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1"}, ""),
        ({"Modality": None}, ""),  # its SOP class says what it is
    ],
)
def test_what_is_no_frontal_image_is_said(tags, reason):
    decoded = decode_dicom(radiograph(noise(), **tags))
    assert decoded.problem.startswith(reason) and bool(decoded.problem) == bool(reason)
    np.testing.assert_array_equal(decoded.pixels, decode_dicom(radiograph(noise())).pixels)


def test_what_is_not_one_image_is_refused():
    with pytest.raises(NotAFrontalImage, match="2 frames, not one image"):
        decode_dicom(radiograph(noise(), NumberOfFrames=2))
    with pytest.raises(NotAFrontalImage, match="modality SR, without an image"):
        decode_dicom(without_pixels(Modality="SR"))
    with pytest.raises(ValueError, match="truncated, or without pixel data"):
        decode_dicom(without_pixels(Modality="CT"))


def coloured(channels, interpretation="RGB", **tags):
    tags |= {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": interpretation}
    tags |= {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    return radiograph(channels, PixelData=channels.astype(np.uint8).tobytes(), **tags)


def test_three_equal_channels_are_grey_and_others_a_colour_image():
    grey = noise(8).astype(np.uint8)
    decoded = decode_dicom(coloured(np.dstack([grey] * 3)))
    assert decoded.problem == ""
    np.testing.assert_array_equal(decoded.pixels, grey)
    decoded = decode_dicom(coloured(np.dstack([grey, noise(8, 1), noise(8, 2)])))
    assert decoded.problem == "a colour image" and decoded.pixels.shape == grey.shape


# What is absent, empty or impossible

WINDOW = {"WindowCenter": 2048, "WindowWidth": 4096}


def table(entries, descriptor=None):
    item = pydicom.Dataset()
    item.LUTDescriptor = descriptor or [len(entries), 0, 16]
    if entries is not None:
        item.add_new("LUTData", "OW", np.array(entries, "<u2").tobytes())
    return Sequence([item])


@pytest.mark.parametrize("tags", [{}, WINDOW])
@pytest.mark.parametrize(
    "nothing",
    [
        {"RescaleSlope": None, "RescaleIntercept": None},
        {"RescaleSlope": 0},
        {"PixelPaddingValue": None},
        {"PatientOrientation": None, "ViewPosition": None, "PatientAge": None},
        {"NumberOfFrames": None},
        {"NumberOfFrames": 0},
        {"VOILUTFunction": ""},
        {"VOILUTSequence": table(None, [4096, 0, 16])},
        {"VOILUTSequence": table([1, 2], [4096, 0, 16])},  # shorter than it says
        {"VOILUTSequence": table(np.full(4096, 7))},  # of one value
        {"VOILUTSequence": Sequence([])},
        {"ModalityLUTSequence": table(None, [4096, 0, 16])},
        {"SamplesPerPixel": None, "PhotometricInterpretation": "", "PixelRepresentation": None},
        {"BitsStored": 12, "HighBit": None},
        {"PhotometricInterpretation": "monochrome2"},
        {"Modality": None},
    ],
)
def test_an_empty_or_impossible_tag_counts_as_absent(nothing, tags):
    plain = decode_dicom(radiograph(noise(), **tags))
    np.testing.assert_array_equal(decode_dicom(radiograph(noise(), **tags, **nothing)).pixels, plain.pixels)


@pytest.mark.parametrize("width", [0, 0.5, None, -100])
def test_an_impossible_window_counts_as_absent(width):
    plain = decode_dicom(radiograph(noise())).pixels
    shown = decode_dicom(radiograph(noise(), WindowCenter=2048, WindowWidth=width)).pixels
    np.testing.assert_array_equal(shown, plain)
    both = decode_dicom(radiograph(noise(), WindowCenter=[7, 2048], WindowWidth=[width, 4096])).pixels
    if width is not None:  # DICOM text cannot hold an empty first value here
        np.testing.assert_array_equal(both, decode_dicom(radiograph(noise(), **WINDOW)).pixels)


def test_a_negative_slope_with_a_window_is_not_inverted():
    plain = decode_dicom(radiograph(noise(), **WINDOW)).pixels
    turned = {"RescaleSlope": -1, "RescaleIntercept": 4095, "PhotometricInterpretation": "MONOCHROME1"}
    np.testing.assert_array_equal(decode_dicom(radiograph(noise(), **turned, **WINDOW)).pixels, plain)
    np.testing.assert_array_equal(
        decode_dicom(radiograph(noise(), **turned)).pixels, decode_dicom(radiograph(noise())).pixels
    )


def test_a_lookup_table_is_scaled_by_its_largest_value():
    entries = np.arange(4096) * 8  # declared 16 bits, holds 15
    plain = decode_dicom(radiograph(noise(), WindowCenter=2048, WindowWidth=4096)).pixels
    shown = decode_dicom(radiograph(noise(), VOILUTSequence=table(entries))).pixels
    np.testing.assert_array_equal(shown, plain)


@pytest.mark.parametrize(
    ("entries", "descriptor", "kind"),
    [
        (np.arange(4096) * 16, [4097, 0, 16], "<u2"),  # one entry is missing
        (np.arange(4096) // 16, [4096, 0, 8], "u1"),  # a byte an entry
        (np.arange(4096) // 16, [4096, 0, 16], "u1"),  # which says two
        (np.r_[np.arange(4096) * 4, 65535], [4097, 0, 16], "<u2"),  # one that no pixel reaches
    ],
)
def test_lookup_tables_of_several_makers(entries, descriptor, kind):
    item = pydicom.Dataset()
    item.LUTDescriptor = descriptor
    item.add_new("LUTData", "OW", np.array(entries, kind).tobytes())
    shown = decode_dicom(radiograph(noise(), VOILUTSequence=Sequence([pydicom.Dataset(), item]))).pixels
    plain = decode_dicom(radiograph(noise(), **WINDOW)).pixels
    assert np.abs(shown.astype(int) - plain).max() <= 2


def test_the_first_value_of_a_table_may_be_read_without_its_sign():
    for first in (-2048, 63488):
        item = table(np.arange(4096) * 16)
        item[0].add_new("LUTDescriptor", "SS" if first < 0 else "US", [4096, first, 16])
        shown = decode_dicom(radiograph(noise(), RescaleSlope=1, RescaleIntercept=-2048, VOILUTSequence=item))
        assert (
            np.abs(shown.pixels.astype(int) - decode_dicom(radiograph(noise(), **WINDOW)).pixels).max() <= 1
        )


def test_padding_may_be_read_with_another_sign():
    values = noise() - 2048
    padded = np.hstack([values, np.full((20, 40), -30000)]).astype("<i2").view("<u2")
    shown = decode_dicom(radiograph(padded, bits=16, PixelRepresentation=1, PixelPaddingValue=-30000))
    np.testing.assert_array_equal(shown.pixels[:, :24], decode_dicom(radiograph(noise())).pixels)
    raw = pydicom.dcmread(io.BytesIO(radiograph(padded, bits=16, PixelRepresentation=1)))
    raw.add_new("PixelPaddingValue", "US", 35536)
    file = io.BytesIO()
    raw.save_as(file)
    np.testing.assert_array_equal(decode_dicom(file.getvalue()).pixels, shown.pixels)


def test_values_in_the_upper_bits():
    shown = decode_dicom(radiograph(noise() << 4, HighBit=15, **WINDOW)).pixels
    np.testing.assert_array_equal(shown, decode_dicom(radiograph(noise(), **WINDOW)).pixels)
    wrong = decode_dicom(radiograph(noise(), HighBit=15, **WINDOW)).pixels  # the lower bits are in use
    np.testing.assert_array_equal(wrong, decode_dicom(radiograph(noise(), **WINDOW)).pixels)


@pytest.mark.parametrize(
    "window", [{"WindowCenter": 60000, "WindowWidth": 10}, {"WindowCenter": -9, "WindowWidth": 2}]
)
def test_a_window_beside_all_values_counts_as_absent(window):
    shown = decode_dicom(radiograph(noise(), **window)).pixels
    np.testing.assert_array_equal(shown, decode_dicom(radiograph(noise())).pixels)


def test_12_bits_in_three_equal_channels():
    values = noise()
    shown = decode_dicom(
        radiograph(np.dstack([values] * 3), SamplesPerPixel=3, PhotometricInterpretation="RGB")
    )
    assert shown.problem == ""
    assert np.abs(shown.pixels.astype(int) - decode_dicom(radiograph(values)).pixels).max() <= 2


def test_zeros_after_a_jpeg_2000_image_are_no_part_of_it():
    dataset = pydicom.dcmread(io.BytesIO(compressed(JPEG2000Lossless)))
    frame = pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1)
    dataset.PixelData = pydicom.encaps.encapsulate([frame + bytes(40)])
    file = io.BytesIO()
    dataset.save_as(file)
    plain = decode_dicom(compressed(JPEG2000Lossless)).pixels
    np.testing.assert_array_equal(decode_dicom(file.getvalue()).pixels, plain)


def test_one_bright_pixel_changes_nothing_else():
    values = noise() + np.arange(20)[:, None]
    bright = values.copy()
    bright[3, 3] = 65535
    shown, plain = (decode_dicom(radiograph(each, bits=16)).pixels for each in (bright, values))
    assert np.abs(shown.astype(int) - plain)[np.arange(480).reshape(20, 24) != 75].max() <= 3


def test_without_preamble_or_meta_header():
    data, plain = radiograph(noise()), decode_dicom(radiograph(noise())).pixels
    dataset = pydicom.dcmread(io.BytesIO(data))
    meta = data[132:].index(b"\x08\x00\x16\x00")  # SOPClassUID, the first tag after the meta header
    for part in (data[132:], data[132 + meta :]):
        np.testing.assert_array_equal(decode_image(part), plain)
    implicit = io.BytesIO()
    del dataset.file_meta
    pydicom.dcmwrite(implicit, dataset, implicit_vr=True, little_endian=True, enforce_file_format=False)
    np.testing.assert_array_equal(decode_image(implicit.getvalue().removeprefix(bytes(128) + b"DICM")), plain)


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
    assert decode_dicom(radiograph(noise(), **tags), POPULATIONS["kermany"]).outside == outside
    assert decode_dicom(radiograph(noise(), **tags)).outside == ()  # of other models nothing is known


def compressed(syntax):
    pixels = np.random.default_rng(0).integers(0, 4096, (90, 80))
    dataset = pydicom.dcmread(io.BytesIO(radiograph(pixels)))
    dataset.compress(syntax)
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


def as_jpeg(pixels, quality=90, **tags):
    """A DICOM file with a JPEG image, whose EXIF data do not count, and the pixels of that JPEG image."""
    exif, jpeg, file = Image.Exif(), io.BytesIO(), io.BytesIO()
    exif[0x0112] = 6
    Image.fromarray(pixels).save(jpeg, "jpeg", quality=quality, exif=exif)
    bits = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7, "WindowCenter": 128, "WindowWidth": 256}
    samples = {"SamplesPerPixel": 3, "PhotometricInterpretation": "YBR_FULL_422", "PlanarConfiguration": 1}
    tags = bits | (samples if pixels.ndim == 3 else {}) | tags
    dataset = pydicom.dcmread(io.BytesIO(radiograph(pixels[..., 0] if pixels.ndim == 3 else pixels, **tags)))
    dataset.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    dataset.PixelData = pydicom.encaps.encapsulate([jpeg.getvalue()])
    dataset["PixelData"].is_undefined_length = True
    dataset.save_as(file)
    return file.getvalue(), cv2.imdecode(np.frombuffer(jpeg.getvalue(), np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.mark.parametrize("number", range(3))
def test_a_jpeg_image_has_the_pixels_of_the_jpeg_file_whatever_plugins_are_there(number):
    pixels = render_phantom("virus", 301, number)[0][:, :283]
    shown, expected = as_jpeg(pixels)
    np.testing.assert_array_equal(decode_dicom(shown).pixels, expected)
    shown, expected = as_jpeg(np.dstack([pixels, pixels, 0.98 * pixels]).astype(np.uint8))
    np.testing.assert_array_equal(decode_dicom(shown).pixels, cv2.cvtColor(expected, cv2.COLOR_BGR2GRAY))


def without_pixels(**tags):
    dataset = pydicom.dcmread(io.BytesIO(radiograph(noise(), **tags)))
    del dataset.PixelData
    file = io.BytesIO()
    dataset.save_as(file)
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (radiograph(noise())[:200], "truncated, or without pixel data"),
        (radiograph(noise())[:-2], r"truncated \(pixel data too short by 2 bytes\)"),
        (radiograph(noise(), Modality="CT")[:-300], "too short by 300 bytes"),
        (compressed(JPEG2000Lossless)[:-300], "truncated"),
        (compressed(RLELossless)[:-300], "truncated"),
        (without_pixels(), "without pixel data"),
        (as_jpeg(np.zeros((20, 24), np.uint8), BitsAllocated=16)[0], "other channels or bits"),
        (as_jpeg(np.zeros((20, 24, 3), np.uint8), SamplesPerPixel=1)[0], "other channels or bits"),
        (radiograph(noise(), Rows=None), "Rows, Columns or BitsAllocated is missing"),
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
