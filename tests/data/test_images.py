"""Files of every kind, made here with Pillow or by hand, read back against numbers known beforehand."""

from __future__ import annotations

import io
import struct
import zlib
from dataclasses import asdict

import cv2
import numpy as np
import pytest
from PIL import Image

from chestxray.data.formats import check_image, read_header
from chestxray.data.images import ImageSettings, apply_clahe, as_batch, decode_image, fit, preprocess, resize

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (20, 30), dtype=np.uint8)
NOISE = RNG.integers(0, 256, (96, 96), dtype=np.uint8)


def encode(pixels, kind="PNG", mode=None, **options) -> bytes:
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(np.asarray(pixels))
    assert mode in (None, image.mode)
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png(width, height, depth=8, colour=0, data=b"") -> bytes:
    """A PNG file by hand, with right checksums whatever the content."""

    def chunk(kind, content):
        return (
            struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
        )

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def jpeg_header(width, height, components=1, depth=8) -> bytes:
    """The shortest file that says it is a JPEG of this size."""
    frame = struct.pack(">BHHB", depth, height, width, components) + bytes(3 * components)
    return b"\xff\xd8\xff\xc0" + struct.pack(">H", 2 + len(frame)) + frame + b"\xff\xda\0\2\xff\xd9"


def blocks(*values) -> np.ndarray:
    """Rows of 16 × 16 blocks of one grey each."""
    return np.kron(np.array(values), np.ones((16, 16))).astype(np.uint8)


# Kinds of files


def test_grey_png_comes_back_unchanged():
    assert np.array_equal(decode_image(encode(GREY, mode="L")), GREY)


def test_grey_and_alpha_keeps_the_grey():
    alpha = Image.fromarray(255 - GREY)
    file = encode(Image.merge("LA", [Image.fromarray(GREY), alpha]))
    assert read_header(file) == (30, 20, "LA")
    assert np.array_equal(decode_image(file), GREY)


def test_one_bit_is_black_and_white():
    file = encode(GREY > 99, mode="1")
    assert np.array_equal(decode_image(file), np.where(GREY > 99, 255, 0))


@pytest.mark.parametrize(
    ("colour", "grey"),
    [
        # ITU-R BT.601: .299 R + .587 G + .114 B
        ((255, 0, 0), 76),
        ((0, 255, 0), 150),
        ((0, 0, 255), 29),
        ((100, 200, 50), 153),
        ((90, 90, 90), 90),
    ],
)
@pytest.mark.parametrize("alpha", [None, 255, 0])
def test_colour_becomes_luma_and_alpha_is_dropped(colour, grey, alpha):
    mode, colour = ("RGB", colour) if alpha is None else ("RGBA", (*colour, alpha))
    file = encode(Image.new(mode, (30, 20), colour))
    assert read_header(file) == (30, 20, mode)
    image = decode_image(file)
    assert image.shape == (20, 30) and image.dtype == np.uint8
    assert np.unique(image).size == 1 and abs(int(image[0, 0]) - grey) <= 1  # libpng rounds down


def test_colour_jpeg_becomes_luma():
    file = encode(Image.new("RGB", (30, 20), (100, 200, 50)), "JPEG", quality=100)
    assert read_header(file) == (30, 20, "RGB")
    assert np.abs(decode_image(file).astype(int) - 153).max() <= 1


WHOLE_PNG, WHOLE_JPEG = encode(NOISE), encode(NOISE, "JPEG")


@pytest.mark.parametrize("options", [{}, {"transparency": 1}], ids=["opaque", "transparent"])
def test_palette_is_looked_up(options):
    image = Image.fromarray(np.repeat(np.arange(3, dtype=np.uint8), 100).reshape(15, 20).repeat(2, 0))
    image.putpalette([200, 200, 200, 255, 0, 0, 10, 10, 10] + [0] * 759)
    file = encode(image, mode="P", **options)
    assert read_header(file) == (20, 30, "P")
    assert decode_image(file)[::2].ravel().tolist() == [200] * 100 + [76] * 100 + [10] * 100


@pytest.mark.parametrize(
    ("inks", "grey"),
    [
        ((0, 0, 0, 0), 255),  # no ink: white paper
        ((0, 0, 0, 255), 0),
        ((0, 0, 0, 100), 155),
        ((255, 0, 0, 0), 179),  # cyan on white: R = 0, G = B = 255
        ((255, 0, 0, 128), 89),  # the same with half the light
    ],
)
def test_cmyk_jpeg_is_not_inverted(inks, grey):
    file = encode(Image.new("CMYK", (30, 20), inks), "JPEG", quality=100)
    assert read_header(file) == (30, 20, "CMYK")
    assert np.abs(decode_image(file).astype(int) - grey).max() <= 2


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        ([0, 2048, 4095], [0, 128, 255]),  # 12 bits: 2048 · 255/4095 = 127.53
        ([0, 256, 32768, 65535], [0, 1, 128, 255]),  # all 16: 256/257 = .996, 32768/257 = 127.502
        ([0, 512, 1023], [0, 128, 255]),  # 10 bits
        ([1000, 3000, 5000], [0, 128, 255]),  # whatever the bits
        ([0, 0, 0], [0, 0, 0]),
    ],
)
def test_16_bits_are_scaled_by_the_range_in_use(stored, expected):
    pixels = np.resize(np.array(stored, np.uint16), (16, 60))
    file = encode(pixels, mode="I;16")
    assert read_header(file) == (60, 16, "L;16")
    assert decode_image(file)[0, : len(expected)].tolist() == expected


def test_one_bright_pixel_does_not_decide_about_16_bits():
    film = RNG.integers(500, 3500, (96, 96)).astype(np.uint16)
    bright = film.copy()
    bright[3, 3] = 65535
    difference = decode_image(encode(bright)).astype(int) - decode_image(encode(film))
    difference[3, 3] = 0
    assert np.abs(difference).max() <= 1


# Other formats


@pytest.mark.parametrize("kind", ["BMP", "TIFF", "WEBP"])
def test_bmp_tiff_and_webp(kind):
    options = {"lossless": True} if kind == "WEBP" else {}
    assert np.array_equal(decode_image(encode(GREY, kind, **options)), GREY)
    colours = np.dstack([NOISE, NOISE.T, NOISE[::-1]])
    luma = colours @ [0.299, 0.587, 0.114]
    assert np.abs(decode_image(encode(colours, kind, **options)) - luma).max() <= 1
    whole = encode(NOISE, kind, **options)
    for end in (len(whole) // 2, len(whole) - 60, 30):
        with pytest.raises(ValueError, match="^truncated, damaged, or of a kind that is not supported$"):
            decode_image(whole[:end])
    with pytest.raises(ValueError, match="^too small"):
        check_image(encode(np.zeros((8, 300), np.uint8), kind))


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.float32])
def test_tiff_with_more_than_8_bits(kind):
    pixels = np.resize(np.array([1000, 3000, 5000], kind), (16, 60))
    assert decode_image(encode(pixels, "TIFF"))[0, :3].tolist() == [0, 128, 255]
    if kind is np.uint16:
        white = encode(pixels, "TIFF", tiffinfo={262: 0})  # 0 is white
        assert decode_image(white)[0, :3].tolist() == [255, 128, 0]


def test_colours_of_16_bits_are_not_taken_for_8():
    colours = np.dstack([NOISE.astype(np.uint16) * 16] * 3)  # 12 bits: the upper byte would be black
    with pytest.raises(ValueError, match="^not supported .*more than 8 bits"):
        decode_image(cv2.imencode(".tiff", colours)[1].tobytes())


def test_a_damaged_exif_block_is_no_reason_to_refuse(tmp_path):
    file = encode(GREY, "WEBP", lossless=True, exif=b"Exif\0\0garbage" * 3)
    assert np.array_equal(decode_image(file), GREY)


def test_several_images_in_one_file():
    pages = [Image.fromarray(GREY), Image.fromarray(GREY)]
    with pytest.raises(ValueError, match=r"^not one image \(2 in the file\)$"):
        decode_image(encode(pages[0], "TIFF", save_all=True, append_images=pages[1:]))


# Where a JPEG file ends


@pytest.mark.parametrize("progressive", [False, True])
def test_what_follows_a_jpeg_is_no_part_of_it(progressive):
    whole = encode(NOISE, "JPEG", progressive=progressive)
    for rest in (b"\0", b"\0" * 5000, b"\xff" * 3000, RNG.bytes(100_000), whole):
        assert np.array_equal(decode_image(whole + rest), decode_image(whole))
    for rest in (b"\0" * 5000, b"appended by a phone"):
        with pytest.raises(ValueError, match="^truncated"):
            decode_image(whole[:-2] + rest)


@pytest.mark.parametrize("junk", [b"\0", b"\0\1\2\3" * 9, b"\xff\xff\xff", b"\xff\0"])
def test_junk_between_the_segments_of_a_jpeg_is_skipped(junk):
    table = WHOLE_JPEG.index(b"\xff\xdb")
    data = WHOLE_JPEG[:table] + junk + WHOLE_JPEG[table:]
    assert check_image(data) == (96, 96, "L")
    assert np.array_equal(decode_image(data), decode_image(WHOLE_JPEG))


@pytest.mark.parametrize(
    ("side", "size", "factor"), [(224, 32, 1), (512, 224, 1), (896, 224, 2), (512, 128, 2), (2000, 224, 4)]
)
def test_a_large_jpeg_is_decoded_at_a_part_of_its_size(side, size, factor):
    smooth = cv2.resize(NOISE[:24, :24], (side, side), interpolation=cv2.INTER_CUBIC)
    file = encode(smooth, "JPEG", quality=95)
    assert decode_image(file).shape == (side, side)
    assert decode_image(file, size).shape == (side // factor, side // factor)
    settings = ImageSettings(size)
    difference = fit(decode_image(file), settings).astype(int) - fit(decode_image(file, size), settings)
    assert np.abs(difference).mean() < 0.6


@pytest.mark.parametrize(
    ("colour", "channels", "mode"), [(2, 3, "RGB;16"), (4, 2, "LA;16"), (6, 4, "RGBA;16")]
)
def test_16_bits_in_several_channels(colour, channels, mode):
    grey = np.resize([0, 2048, 4095], (16, 60, 1)).astype(">u2")
    pixels = np.repeat(grey, channels, axis=2)
    if channels % 2 == 0:
        pixels[..., -1] = 65535  # an opaque alpha channel must not count as bits in use
    file = png(60, 16, 16, colour, zlib.compress(b"".join(b"\0" + row.tobytes() for row in pixels)))
    assert read_header(file) == (60, 16, mode)
    assert decode_image(file)[0, :3].tolist() == [0, 128, 255]


@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, np.fliplr),
        (3, lambda a: np.rot90(a, 2)),
        (4, np.flipud),
        (5, np.transpose),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: np.rot90(a, 2).T),
        (8, np.rot90),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(kind, orientation, upright):
    stored = blocks([0, 100, 200], [50, 150, 250])
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = encode(stored, kind, exif=exif, **({"quality": 100} if kind == "JPEG" else {}))
    assert read_header(file) == (48, 32, "L")  # as stored
    image, expected = decode_image(file), upright(stored).astype(int)
    assert image.shape == expected.shape
    assert np.abs(image - expected).max() <= 1


def test_progressive_jpeg():
    file = encode(blocks([30, 220]), "JPEG", quality=100, progressive=True)
    assert np.abs(decode_image(file).astype(int) - blocks([30, 220])).max() <= 1


# Files that are refused


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty file"),
        (b"this is a letter, not an image\n" * 9, "not an image"),
        (b"GIF89a" + bytes(99), r"a format that is not supported \(GIF\)"),
        (b"\0\0\0 ftypheic" + bytes(99), r"a format that is not supported \(HEIC or AVIF\)"),
        (b"RIFF" + bytes(99), "not an image"),  # of another kind than WebP
        (jpeg_header(300, 200)[:-2], "truncated"),
        (WHOLE_JPEG[: len(WHOLE_JPEG) // 2], "truncated"),
        (WHOLE_PNG[: len(WHOLE_PNG) // 2], "truncated"),
        (WHOLE_JPEG[:-2], "truncated"),
        (WHOLE_JPEG[:12], "truncated or damaged header"),
        (WHOLE_PNG[:20], "truncated or damaged header"),
        (b"\xff\xd8" + bytes(99), "truncated or damaged header"),
        (b"\xff\xd8\xff\xe0" + bytes(99), "truncated or damaged header"),
        (png(30, 20, colour=5), "truncated or damaged header"),
        (encode(np.zeros((1, 1), np.uint8)), r"too small \(1 × 1 "),
        (encode(np.zeros((15, 400), np.uint8)), r"too small \(400 × 15 "),
        (png(12_000, 12_000), r"too large \(12000 × 12000 "),
        (jpeg_header(12_000, 12_000), r"too large \(12000 × 12000 "),
        (png(2**31 - 1, 2**31 - 1), "too large"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_refused_without_decoding(data, reason, monkeypatch):
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    for function in (check_image, decode_image):
        with pytest.raises(ValueError, match=f"^{reason}"):
            function(data)


def test_limits_of_size_are_inclusive():
    assert check_image(png(8_000, 8_000)) == (8_000, 8_000, "L")
    assert check_image(jpeg_header(16, 4_000_000 // 64)) == (16, 62_500, "L")
    with pytest.raises(ValueError, match="too large"):
        check_image(png(8_000, 8_001))


def test_header_of_jpeg_behind_other_segments():
    comment = b"\xff\xfe" + struct.pack(">H", 2 + 500) + b"\xff\xc0" * 250  # looks like frames
    table = b"\xff\xc4" + struct.pack(">H", 2 + 30) + bytes(30)  # Huffman codes, which are no frame
    data = b"\xff\xd8" + comment + table + b"\xff\xff" + jpeg_header(300, 200, 3)[2:]  # and a fill byte
    assert read_header(data) == (300, 200, "RGB")


def damaged(data: bytes, start: int, content: bytes) -> bytes:
    return data[:start] + content + data[start + len(content) :]


@pytest.mark.parametrize(
    "data",
    [
        damaged(WHOLE_PNG, len(WHOLE_PNG) // 2, bytes(40)),
        damaged(WHOLE_PNG, len(WHOLE_PNG) // 2, bytes([WHOLE_PNG[len(WHOLE_PNG) // 2] ^ 1])),
        png(96, 96, data=zlib.compress(b"".join(b"\0" + row.tobytes() for row in NOISE[:40]))),
    ],
    ids=["zeros", "one bit", "rows missing"],
)
def test_png_damaged_in_the_middle_is_refused(data):
    assert check_image(data) == (96, 96, "L")  # cannot be seen from outside
    with pytest.raises(ValueError, match="^cannot be decoded"):
        decode_image(data)


def test_png_without_its_middle_is_truncated():
    with pytest.raises(ValueError, match="^truncated"):
        check_image(WHOLE_PNG[: len(WHOLE_PNG) // 2] + WHOLE_PNG[-12:])


def test_errors_name_the_file(tmp_path):
    settings = ImageSettings(16)
    good, bad = tmp_path / "good.png", tmp_path / "text.jpeg"
    good.write_bytes(encode(GREY))
    bad.write_text("not an image")
    assert np.array_equal(preprocess(str(good), settings), resize(GREY, settings))
    with pytest.raises(ValueError, match=r"^not an image .*Received: path='.*text\.jpeg'$"):
        preprocess(bad, settings)
    for missing in (tmp_path / "none.png", tmp_path):
        with pytest.raises(FileNotFoundError, match=r"Received: path='.+'$"):
            preprocess(missing, settings)


# Resizing


def test_halving_takes_means_of_2_by_2_blocks():
    image = RNG.integers(0, 256, (32, 32), dtype=np.uint8)
    means = image.reshape(16, 2, 16, 2).mean(axis=(1, 3))
    assert np.abs(resize(image, ImageSettings(16)) - means).max() <= 0.5


def test_shrinking_by_a_fraction_weighs_by_area():
    # 24 columns to 16: the first holds column 0 and half of column 1, the second the rest and column 2.
    image = np.tile(np.array([0, 90, 240], np.uint8), (24, 8))
    result = resize(image, ImageSettings(16))
    assert result[0, :4].tolist() == [30, 190, 30, 190]  # 90·½/1½, (90·½ + 240)/1½


def test_shrinking_is_antialiased():
    stripes = np.tile(np.array([0, 200], np.uint8), (160, 80))
    assert set(np.unique(resize(stripes, ImageSettings(16)))) == {100}


def test_growing_interpolates_cubically():
    # Doubling puts samples at ¼ and ¾; Keys' kernel with a = −¾ weighs −.1055, .8789, .2617, −.0352 there.
    edge = np.repeat(np.array([50, 150], np.uint8), 8)[np.newaxis].repeat(16, axis=0)
    result = resize(edge, ImageSettings(32))
    expected = [50, 46.484, 39.453, 72.656, 127.344, 160.547, 153.516, 150]
    assert np.abs(result[:, 12:20] - np.array(expected)).max() <= 0.5


def test_one_axis_may_shrink_while_the_other_grows():
    columns = RNG.integers(0, 256, 64).astype(np.uint8)
    result = resize(np.tile(columns, (16, 1)), ImageSettings(32))
    assert np.abs(result - columns.reshape(32, 2).mean(axis=1)).max() <= 0.5
    assert np.array_equal(resize(np.tile(columns, (16, 1)).T, ImageSettings(32)), result.T)


def test_stretch_fills_the_square():
    assert resize(np.full((500, 77), 9, np.uint8), ImageSettings(64)).tolist() == [[9] * 64] * 64


@pytest.mark.parametrize(
    ("height", "width", "rows", "columns"),
    [
        (64, 32, slice(0, 32), slice(8, 24)),
        (32, 64, slice(8, 24), slice(0, 32)),
        (100, 50, slice(0, 32), slice(8, 24)),
        (64, 30, slice(0, 32), slice(8, 23)),  # 15 columns: the odd one of 17 goes to the right
        (16, 20, slice(3, 29), slice(0, 32)),  # grows by 1.6: 25.6 rows
        (3_000, 20, slice(0, 32), slice(15, 16)),  # .2 columns: at least one
        (48, 48, slice(0, 32), slice(0, 32)),
    ],
)
def test_letterbox_keeps_the_aspect_and_repeats_the_edge(height, width, rows, columns):
    ramp = np.linspace(0, 200, height)[:, None] + np.linspace(0, 50, width)
    result = resize(np.rint(ramp).astype(np.uint8), ImageSettings(32, "letterbox"))
    inside = result[rows, columns]
    padding = (rows.start, 32 - rows.stop), (columns.start, 32 - columns.stop)
    assert np.array_equal(result, np.pad(inside, padding, mode="edge"))
    # The whole ramp is inside, in proportion.
    assert abs(int(inside[0, 0]) - 0) <= 200 / inside.shape[0] + 50 / inside.shape[1] + 2
    assert abs(int(inside[-1, -1]) - 250) <= 200 / inside.shape[0] + 50 / inside.shape[1] + 2


# CLAHE


def test_clahe_does_not_depend_on_the_resolution_of_the_source(tmp_path):
    settings = ImageSettings(32, clahe=True)
    twice = NOISE.repeat(2, axis=0).repeat(2, axis=1)
    (tmp_path / "once.png").write_bytes(encode(NOISE))
    (tmp_path / "twice.png").write_bytes(encode(twice))
    once = preprocess(tmp_path / "once.png", settings)
    assert np.array_equal(preprocess(tmp_path / "twice.png", settings), once)
    assert np.array_equal(once, apply_clahe(resize(NOISE, settings)))
    before = [resize(apply_clahe(image), settings).astype(int) for image in (NOISE, twice)]
    assert np.abs(before[0] - before[1]).max() > 10  # what the rule avoids


@pytest.mark.parametrize(("limit", "first", "second"), [(2.0, 26 + 1, 28 + 2), (40.0, 21 + 10, 23 + 20)])
def test_clahe_by_hand(limit, first, second):
    # Each of the 8 × 8 tiles holds 32 pixels of 100 and 32 of 110. With limit 2.0, a bin holds at most
    # 2.0 · 64/256 counts, at least 1, so that 62 counts are cut off and handed out again, one to every
    # fourth bin (0, 4, … 244). Up to bin 100 lie 26 of them and 1 of its own, up to 110 it is 28 and 2.
    # With limit 40.0, a bin holds at most 10; 44 counts are cut off and go to every fifth bin.
    tile = np.repeat(np.array([100, 110], np.uint8), 32).reshape(8, 8)
    image = np.tile(tile, (8, 8))
    expected = np.where(image == 100, round(255 * first / 64), round(255 * second / 64))
    assert np.array_equal(apply_clahe(image, limit), expected)


@pytest.mark.parametrize("change", [{"clahe_clip_limit": 40.0}, {"clahe_tiles": 4}])
def test_clahe_settings_change_the_pixels(change):
    assert np.array_equal(fit(NOISE, ImageSettings(96, clahe=True)), apply_clahe(NOISE))
    assert not np.array_equal(fit(NOISE, ImageSettings(96, clahe=True, **change)), apply_clahe(NOISE))
    assert np.array_equal(fit(NOISE, ImageSettings(96, **change)), NOISE)  # without CLAHE they do nothing


def test_clahe_is_off_by_default(tmp_path):
    (tmp_path / "image.png").write_bytes(encode(NOISE))
    assert np.array_equal(preprocess(tmp_path / "image.png", ImageSettings(96)), NOISE)


@pytest.mark.parametrize(
    "settings",
    [
        *({"size": value} for value in (15, 224.0, "224", True)),
        *({"resize": value} for value in ("crop", None)),
        *({"clahe_clip_limit": value} for value in (0, -1.0, float("inf"), float("nan"), "2")),
        *({"clahe_tiles": value} for value in (0, 8.0, "8", 225)),
    ],
)
def test_settings_are_checked(settings):
    ((name, value),) = settings.items()
    with pytest.raises(ValueError, match=f"Received: {name}={value!r}$"):
        ImageSettings(**settings)


def test_settings_come_back_from_a_card():
    settings = ImageSettings(96, "letterbox", True, 3.0, 4)
    card = {"size": 96, "resize": "letterbox", "clahe": True}
    assert asdict(settings) == card | {"clahe_clip_limit": 3.0, "clahe_tiles": 4}
    assert ImageSettings(**asdict(settings)) == settings
    assert ImageSettings(**card) == ImageSettings(96, "letterbox", True, 2.0, 8)  # an older card


# Batches


@pytest.mark.parametrize("shape", [(20, 30), (1, 20, 30), (1, 20, 30, 1)])
def test_batch_axes_are_added(shape):
    assert np.array_equal(as_batch(GREY.reshape(shape)), GREY[np.newaxis, :, :, np.newaxis])


@pytest.mark.parametrize(
    "values",
    [GREY, GREY.astype(np.float32), np.zeros((20, 30)), np.full((20, 30), 1.5), np.ones((20, 30), np.uint8)],
)
def test_grey_values_pass_unchanged(values):
    batch = as_batch(values)
    assert batch.dtype == values.dtype and np.array_equal(batch[0, :, :, 0], values)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (GREY / 255, "divided by 255"),
        (np.full((2, 20, 30, 1), 0.01, np.float32), "divided by 255"),
        (GREY.astype(float) - 127, "must lie in 0–255"),
        (GREY.astype(int) * 16, "must lie in 0–255"),
        (np.full((20, 30), np.nan), "must lie in 0–255"),
        (np.zeros((1, 20, 30, 3), np.uint8), "must be grey"),
        (np.zeros(30, np.uint8), "must be grey"),
    ],
)
def test_wrong_batches_are_refused(wrong, reason):
    with pytest.raises(ValueError, match=rf"{reason}.*Received: \w+=.+$"):
        as_batch(wrong)
