"""Pictures made to harm: cut off, lying about their size, slow or huge to decode."""

import contextlib
import struct
import time
import tracemalloc
import zlib

import cv2
import numpy as np
import pytest

from polyolo.errors import TooLargeError, UndecodableImageError, UnsupportedImageError
from polyolo.serving.image import configure_opencv, decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from tests.unit import pictures
from tests.unit.pictures import encoded, jpeg_with, png, smooth
from tests.unit.test_image import ALL, LIMITS, RGB, SCENE, read


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Set OpenCV up as a server does."""
    configure_opencv()


@pytest.mark.parametrize("data", ALL.values(), ids=ALL.keys())
def test_a_picture_cut_off_anywhere_is_refused(data):
    """Wherever the bytes end, the answer is 415 (no signature yet) or 422, never a half picture."""
    whole = read(data)[1]
    for end in {*range(1, 60), *range(60, len(data), max(1, len(data) // 100)), len(data) - 1}:
        try:
            pixels = decode(data[:end], read_header(data[:end], LIMITS))
        except (UnsupportedImageError, UndecodableImageError):
            continue
        np.testing.assert_array_equal(pixels, whole)  # only padding was missing


@pytest.mark.parametrize("kind", ["png", "bmp"])
@pytest.mark.parametrize(("width", "height"), [(0, 5), (5, 0)])
def test_no_side_may_be_empty(kind, width, height):
    """A picture without pixels is undecodable, not an empty answer."""
    data = pictures.png_header(width, height)
    if kind == "bmp":
        data = encoded(".bmp")
        data = data[:18] + struct.pack("<II", width, height) + data[26:]
    with pytest.raises(UndecodableImageError):
        read_header(data, LIMITS)


def test_a_size_that_the_pixels_do_not_have_is_refused():
    """A header that lies about the size is found out after decoding, whatever the decoder did."""
    data = encoded(".png")
    header = read_header(data, LIMITS)
    other = read_header(encoded(".png", smooth(20, 20)), LIMITS)
    assert decode(data, header).shape == SCENE.shape
    with pytest.raises(UndecodableImageError):
        decode(data, other)


def test_bytes_are_limited():
    """One byte over the limit is refused, at the limit not."""
    data = encoded(".png")
    read_header(data, ImageLimits(max_bytes=len(data)))
    with pytest.raises(TooLargeError, match="bytes"):
        read_header(data, ImageLimits(max_bytes=len(data) - 1))


def bomb(kind):
    """Return a few bytes that claim to be some billion pixels."""
    if kind == "png":
        return pictures.png_header(100_000, 100_000)
    if kind == "bmp":
        data = encoded(".bmp")
        return data[:18] + struct.pack("<ii", 40_000, -40_000) + data[26:]
    if kind == "webp":
        data = pictures.webp_with_exif(encoded(".webp"), 1)
        return data[:24] + b"\xff\x7f\0\xff\x7f\0" + data[30:]
    data = bytearray(encoded(".jpg"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = b"\xff\xdc\xff\xdc"
    return bytes(data)


@pytest.mark.parametrize("kind", ["png", "jpeg", "webp", "bmp"])
def test_a_bomb_is_refused_before_it_is_decoded(kind):
    """Billions of pixels are refused within milliseconds of work and without memory for them."""
    data = bomb(kind)
    tracemalloc.start()
    started = time.process_time()
    with pytest.raises(TooLargeError, match="pixels"):
        read_header(data, LIMITS)
    took = time.process_time() - started
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert took < 0.05
    assert peak < 100_000


def test_a_line_of_a_million_pixels_is_refused():
    """What no decoder here reads is said to be too large, not broken."""
    with pytest.raises(TooLargeError, match="a side"):
        read_header(pictures.png_header(1_000_001, 1), LIMITS)


def test_a_long_thin_picture_is_read():
    """70,000 x 2 pixels are no problem."""
    _, pixels = read(png(np.zeros((2, 70_000, 3), np.uint8), 2))
    assert pixels.shape == (2, 70_000, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"\xff\xd8" + b"\xff\xe0\0\2" * 5_000_000,
        b"\xff\xd8" + b"\xff" * 20_000_000,
        b"\xff\xd8\xff\xe0\0\2" + bytes(20_000_000),
        b"\xff\xd8\xff" + b"\x01\xff" * 10_000_000,
        encoded(".png")[:33] + b"\0\0\0\0tEXt\0\0\0\0" * 1_500_000,
        pictures.webp_with_exif(encoded(".webp"), 1)[:30] + b"ABCD\0\0\0\0" * 2_000_000,
    ],
    ids=["segments", "fill bytes", "stray bytes", "markers", "chunks", "riff chunks"],
)
def test_a_header_without_end_takes_no_time(data):
    """20 MB of header are given up on within milliseconds: the event loop is not held up."""
    started = time.process_time()
    with contextlib.suppress(UndecodableImageError):
        read_header(data, LIMITS)
    assert time.process_time() - started < 0.1


def inflating():
    """Return a small PNG with 200 texts of 8 MB each."""
    text = b"k\0\0" + zlib.compress(bytes(7_900_000))
    return png(RGB, 2, more=pictures.chunk(b"zTXt", text) * 200)


def endless_scans():
    """Return a progressive JPEG whose last scan comes 30,000 times."""
    data = encoded(".jpg", np.zeros((2000, 2000, 3), np.uint8), cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = data.rindex(b"\xff\xda")
    return data[:-2] + data[last:-2] * 30_000 + b"\xff\xd9"


def endless_sequential_scans():
    """Return a JPEG that is not progressive, one of whose components comes again and again."""
    data = bytearray(encoded(".jpg", np.zeros((2000, 2000, 3), np.uint8)))
    data[data.index(b"\xff\xc0") + 9] = 4  # a component that its scan does not hold
    data[data.index(b"\xff\xc0") + 2 : data.index(b"\xff\xc0") + 4] = b"\0\x14"
    at = data.index(b"\xff\xc0") + 19
    data[at:at] = b"\x04\x11\x01"
    scan = data.index(b"\xff\xda")
    return bytes(data[:-2] + data[scan:-2] * 300 + b"\xff\xd9")


def huge_chunk():
    """Return a PNG with a chunk that claims 2 GB."""
    data = encoded(".png")
    return data[:33] + b"\x7f\xff\xff\xfftEXt" + data[33:]


@pytest.mark.parametrize("make", [inflating, endless_scans, endless_sequential_scans, huge_chunk])
def test_a_picture_made_to_be_slow_takes_no_time(make):
    """What decoders would spend seconds to hours of work on is refused, or left out."""
    data = make()
    started = time.process_time()
    with contextlib.suppress(UndecodableImageError):
        np.testing.assert_array_equal(read(data)[1], SCENE)
    assert time.process_time() - started < 0.2


def test_no_error_carries_the_picture():
    """Error texts are ours alone: no bytes of the picture, no decoder's words, no cause."""
    secret = b"whatisinthepicture"
    for data in (
        secret,
        encoded(".png")[:60] + secret,
        jpeg_with(encoded(".jpg")[:200], 0xFE, secret),
    ):
        with pytest.raises((UnsupportedImageError, UndecodableImageError)) as error:
            read(data)
        assert secret.decode() not in str(error.value)
        assert error.value.__cause__ is None
        assert error.value.__suppress_context__ or error.value.__context__ is None
