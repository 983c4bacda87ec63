"""Still pictures of every depth and colour type keep all that 8 bits a channel can show."""

import io
import struct
import zlib

import numpy as np
import PIL.Image
import pytest

from tokvid.input_pipeline.clips import read_image

GREY, COLOUR, PALETTE, GREY_ALPHA, COLOUR_ALPHA = 0, 2, 3, 4, 6  # PNG's colour types
RAMP = np.linspace(0, 65535, 4096).reshape(64, 64).astype(np.uint16)
COLOURS = np.stack([RAMP, RAMP[::-1], RAMP.T], axis=-1)


def chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png(image: np.ndarray, depth: int, kind: int, *more: bytes) -> bytes:
    """A PNG of samples (H, W) or (H, W, C); `more` are chunks before the pixels."""
    height, width = image.shape[:2]
    if depth < 8:
        bits = np.unpackbits(image.astype(np.uint8)[..., None], axis=-1)[..., -depth:].reshape(height, -1)
        rows = [np.packbits(row).tobytes() for row in bits]
    else:
        rows = [row.astype(f">u{depth // 8}").tobytes() for row in image]
    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    chunks = [chunk(b"IHDR", head), *more, chunk(b"IDAT", pixels), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def transparent(*samples: int) -> bytes:
    return chunk(b"tRNS", struct.pack(f">{len(samples)}H", *samples))


def test_sixteen_bits_of_grey():
    image = read_image(png(RAMP, 16, GREY))
    assert np.abs(image[..., 0] - RAMP / 257).max() <= 0.5 and len(np.unique(image)) == 256
    clear = read_image(png(RAMP, 16, GREY, transparent(int(RAMP[5, 5]))))
    assert (clear[5, 5] == 255).all() and (np.argwhere(clear != image)[:, :2] == 5).all()


def test_sixteen_bits_of_colour():
    image = read_image(png(COLOURS, 16, COLOUR))
    assert np.abs(image - COLOURS / 257).max() <= 1 and len(np.unique(image[..., 0])) == 256
    clear = read_image(png(COLOURS, 16, COLOUR, transparent(*COLOURS[9, 9].tolist())))
    assert (clear[9, 9] == 255).all() and (clear[9, 8] == image[9, 8]).all()


@pytest.mark.parametrize("kind, samples", [(GREY_ALPHA, RAMP[..., None]), (COLOUR_ALPHA, COLOURS)])
def test_sixteen_bits_with_alpha(kind, samples):
    half = np.full((64, 64, 1), 32768, np.uint16)
    image = read_image(png(np.concatenate([samples, half], axis=-1), 16, kind))
    assert np.abs(image - (samples / 257 + 255) / 2).max() <= 1.5  # on white


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
@pytest.mark.parametrize("key", [None, 0, 1])
def test_few_bits_of_grey(depth, key):
    samples = np.arange(2**depth)[None]
    expected = np.rint(samples * 255 / (2**depth - 1))
    if key is not None:
        expected[0, key] = 255
    more = () if key is None else (transparent(key),)
    np.testing.assert_array_equal(read_image(png(samples, depth, GREY, *more))[..., 0], expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8])
def test_palettes_some_of_whose_colours_are_transparent(depth):
    samples = np.arange(2**depth)[None]
    colours_NC = np.random.default_rng(0).integers(0, 255, (2**depth, 3), np.uint8)
    palette, alpha = chunk(b"PLTE", colours_NC.tobytes()), chunk(b"tRNS", b"\0")
    image = read_image(png(samples, depth, PALETTE, palette, alpha))
    np.testing.assert_array_equal(image[0], np.concatenate([[[255] * 3], colours_NC[1:]]))


def test_a_turned_picture_of_sixteen_bits():
    exif = PIL.Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    file = io.BytesIO()
    PIL.Image.fromarray(RAMP[:32]).save(file, "PNG", exif=exif)
    image = read_image(file.getvalue())
    assert np.abs(image[..., 0] - np.rot90(RAMP[:32], -1) / 257).max() <= 0.5


@pytest.mark.parametrize(
    "mode, colour, shown",
    [("CMYK", (0, 255, 255, 0), (255, 0, 0)), ("CMYK", (0, 0, 0, 200), (55,) * 3), ("L", 90, (90,) * 3)],
)
def test_jpegs_of_other_colours(mode, colour, shown):
    file = io.BytesIO()
    PIL.Image.new(mode, (16, 16), colour).save(file, "JPEG", quality=95)
    assert np.abs(read_image(file.getvalue()).astype(int) - shown).max() <= 2


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA"])
def test_bmps(mode):
    file, colours = io.BytesIO(), PIL.Image.fromarray((COLOURS >> 8).astype(np.uint8))
    picture = colours.convert(mode)
    picture.save(file, "BMP")
    np.testing.assert_array_equal(read_image(file.getvalue()), np.asarray(picture.convert("RGB")))
