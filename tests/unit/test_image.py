"""Every kind of picture that is accepted, every kind that is not, and what is said of it."""

import struct
import threading

import cv2
import numpy as np
import pytest
import simplejpeg

from polyolo.errors import (
    MalformedRequestError,
    UndecodableImageError,
    UnsupportedImageError,
)
from polyolo.serving.image import configure_opencv, decode
from polyolo.serving.imagecheck import ImageLimits, read_header
from tests.unit import pictures
from tests.unit.pictures import encoded, exif, jpeg_with, png, smooth

LIMITS = ImageLimits()
SCENE = smooth()
HEIGHT, WIDTH = SCENE.shape[:2]
RGB = SCENE[:, :, ::-1]
GREY = SCENE[:, :, 0]
RNG = np.random.default_rng(1)
PALETTE = RNG.integers(0, 256, (256, 3), dtype=np.uint8)
INDICES = RNG.integers(0, 256, (HEIGHT, WIDTH, 1), dtype=np.uint8)
PLTE = pictures.chunk(b"PLTE", PALETTE.tobytes())
ALPHA = RNG.integers(0, 256, (HEIGHT, WIDTH), dtype=np.uint8)
WIDE = RNG.integers(0, 65536, SCENE.shape).astype(np.uint16)
FEW = RNG.integers(0, 4, (HEIGHT, WIDTH + 1, 1), dtype=np.uint8)
LOSSLESS = (cv2.IMWRITE_WEBP_QUALITY, 101)


@pytest.fixture(scope="module", autouse=True)
def quiet():
    """Set OpenCV up as a server does."""
    configure_opencv()


def read(data):
    """Return header and pixels, as a request does it."""
    header = read_header(data, LIMITS)
    pixels = decode(data, header)
    assert pixels.shape == (header.height, header.width, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    return header, pixels


def bgr(grey):
    """Return a grey picture in three channels."""
    return np.repeat(grey.reshape(*grey.shape[:2], 1), 3, axis=2)


def sampled(name):
    """Return the options for a JPEG of this chroma subsampling."""
    return cv2.IMWRITE_JPEG_SAMPLING_FACTOR, getattr(cv2, f"IMWRITE_JPEG_SAMPLING_FACTOR_{name}")


def opaque(picture, alpha=ALPHA):
    """Return the picture with an alpha channel that hides much of it."""
    return np.dstack([picture, alpha])


def top_down_bmp():
    """Return a BMP whose negative height says that the first row comes first."""
    data = bytearray(encoded(".bmp", SCENE[::-1]))
    data[22:26] = struct.pack("<i", -HEIGHT)
    return bytes(data)


def os2_bmp():
    """Return a BMP with OS/2's header of 12 bytes."""
    data = encoded(".bmp")
    head = struct.pack("<2sIHHI", b"BM", 26 + len(data) - 54, 0, 0, 26)
    return head + struct.pack("<IHHHH", 12, WIDTH, HEIGHT, 1, 24) + data[54:]


EXACT = {
    "png": (encoded(".png"), SCENE),
    "png, interlaced": (png(RGB, 2, interlaced=True), SCENE),
    "png, grey": (png(GREY[:, :, None], 0), bgr(GREY)),
    "png, grey of 2 bits": (png(FEW, 0, depth=2), bgr(FEW * 85)),
    "png, grey and alpha": (png(np.dstack([GREY, ALPHA]), 4), bgr(GREY)),
    "png, alpha": (png(opaque(RGB), 6), SCENE),
    "png, alpha, interlaced": (png(opaque(RGB), 6, interlaced=True), SCENE),
    "png, 16 bits": (png(WIDE[:, :, ::-1], 2, depth=16), (WIDE >> 8).astype(np.uint8)),
    "png, grey of 16 bits": (png(WIDE[:, :, :1], 0, depth=16), bgr(WIDE[:, :, 0] >> 8)),
    "png, palette": (png(INDICES, 3, more=PLTE), PALETTE[INDICES[:, :, 0]][:, :, ::-1]),
    "png, palette with alpha": (
        png(INDICES, 3, more=PLTE + pictures.chunk(b"tRNS", bytes(200))),
        PALETTE[INDICES[:, :, 0]][:, :, ::-1],
    ),
    "png, animated": (pictures.animation(".png", [SCENE, SCENE[::-1].copy()]), SCENE),
    "webp, lossless": (encoded(".webp", None, *LOSSLESS), SCENE),
    "webp, lossless, alpha": (encoded(".webp", opaque(SCENE, ALPHA | 1), *LOSSLESS), SCENE),
    "bmp": (encoded(".bmp"), SCENE),
    "bmp, grey": (encoded(".bmp", GREY), bgr(GREY)),
    "bmp, alpha": (encoded(".bmp", opaque(SCENE)), SCENE),
    "bmp, top down": (top_down_bmp(), SCENE),
    "bmp, OS/2": (os2_bmp(), SCENE),
}
LOSSY = {
    "jpeg": encoded(".jpg"),
    "jpeg, progressive": encoded(".jpg", None, cv2.IMWRITE_JPEG_PROGRESSIVE, 1),
    "jpeg, restart markers": encoded(".jpg", None, cv2.IMWRITE_JPEG_RST_INTERVAL, 2),
    "jpeg, 4:4:4": encoded(".jpg", None, *sampled("444")),
    "jpeg, 4:2:2": encoded(".jpg", None, *sampled("422")),
    "jpeg, 4:4:0": encoded(".jpg", None, *sampled("440")),
    "jpeg, 4:1:1": encoded(".jpg", None, *sampled("411")),
    "jpeg, something behind it": encoded(".jpg") + b"a second picture, or a film",
    "jpeg, fill bytes": encoded(".jpg")[:2] + b"\xff" * 500 + encoded(".jpg")[2:],
    "jpeg, stray bytes": encoded(".jpg")[:-2] + b"\0" * 9 + b"\xff\xd9",
    "webp, lossy": encoded(".webp", None, cv2.IMWRITE_WEBP_QUALITY, 95),
    "webp, lossy, alpha": encoded(".webp", opaque(SCENE), cv2.IMWRITE_WEBP_QUALITY, 95),
    "webp, animated": pictures.animation(".webp", [SCENE, SCENE[::-1].copy()]),
}  # fmt: skip


@pytest.mark.parametrize(("data", "expected"), EXACT.values(), ids=EXACT.keys())
def test_lossless_pictures_are_read_to_the_last_bit(data, expected):
    """Colours, grey, palettes, depths, layouts; alpha is dropped; the first frame counts."""
    _, pixels = read(data)
    np.testing.assert_array_equal(pixels, expected)


@pytest.mark.parametrize("data", LOSSY.values(), ids=LOSSY.keys())
def test_lossy_pictures_are_read_closely(data):
    """Every kind of coding and chroma subsampling gives the scene, but for its loss."""
    _, pixels = read(data)
    assert np.abs(pixels.astype(int) - SCENE).mean() < 10


def test_a_jpeg_of_grey_has_three_equal_channels():
    """Grey JPEGs become BGR as well."""
    _, pixels = read(encoded(".jpg", GREY))
    assert np.abs(pixels.astype(int) - bgr(GREY)).mean() < 4
    np.testing.assert_array_equal(pixels[:, :, 0], pixels[:, :, 2])


@pytest.mark.parametrize("inverted", [True, False], ids=["Adobe's inversion", "plain"])
def test_a_jpeg_of_cmyk_becomes_colours(inverted):
    """CMYK is converted without a profile: a colour is what its ink and the black leave."""
    inks = np.dstack([SCENE, np.full((HEIGHT, WIDTH), 200, np.uint8)])
    data = simplejpeg.encode_jpeg(np.ascontiguousarray(inks), 95, "CMYK", "444")
    at = data.index(b"Adobe")
    if not inverted:  # hide Adobe's marker: the four planes are then taken as they lie
        data = data.replace(b"Adobe", b"Other")
    stored = simplejpeg.decode_jpeg(data, "CMYK").astype(float)
    left = stored if inverted else 255 - stored
    _, pixels = read(data)
    np.testing.assert_allclose(pixels, (left[:, :, 2::-1] * left[:, :, 3:] / 255), atol=0.51)
    assert at < 100


def test_a_jpeg_of_a_rare_subsampling_is_read_by_opencv():
    """What simplejpeg does not know, 3 x 1 here, is no reason to refuse a picture."""
    data = pictures.rare_jpeg(level=178)
    with pytest.raises(ValueError, match="subsampling"):
        simplejpeg.decode_jpeg_header(data)
    _, pixels = read(data)
    assert pixels.shape == (16, 48, 3)
    assert np.abs(pixels.astype(int) - 178).max() <= 1
    with pytest.raises(UndecodableImageError):
        read(data[:-4])


MARK = np.zeros((32, 48, 3), np.uint8)  # a corner of each colour, to tell all eight apart
MARK[:16, :16], MARK[:16, 32:], MARK[16:, :16] = (255, 0, 0), (0, 255, 0), (0, 0, 255)
STORED = {  # what is stored for each orientation so that MARK is what a viewer shows
    1: MARK,
    2: MARK[:, ::-1],
    3: MARK[::-1, ::-1],
    4: MARK[::-1],
    5: MARK.transpose(1, 0, 2),
    6: np.rot90(MARK, 1),
    7: MARK[::-1, ::-1].transpose(1, 0, 2),
    8: np.rot90(MARK, -1),
}


@pytest.mark.parametrize("order", ["<", ">"], ids=["Intel", "Motorola"])
@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpeg", "jpeg, progressive", "png", "webp"])
def test_pictures_are_upright(kind, orientation, order):
    """All eight EXIF orientations, in JPEG, PNG and WebP; the header has the upright size."""
    stored = np.ascontiguousarray(STORED[orientation])
    turned = exif(orientation, order)
    if kind == "png":
        data = png(stored[:, :, ::-1], 2, more=pictures.chunk(b"eXIf", turned))
    elif kind == "webp":
        data = pictures.webp_with_exif(encoded(".webp", stored, *LOSSLESS), orientation)
    else:
        options = (cv2.IMWRITE_JPEG_PROGRESSIVE, int("progressive" in kind), *sampled("444"))
        data = jpeg_with(encoded(".jpg", stored, *options), 0xE1, b"Exif\0\0" + turned)
    header, pixels = read(data)
    assert (header.width, header.height, header.orientation) == (48, 32, orientation)
    assert np.abs(pixels.astype(int) - MARK).max() < 12


@pytest.mark.parametrize(
    "broken",
    [b"", b"II", b"XX*\0" + exif(6)[4:], exif(9), exif(0), exif(6)[:25], exif(6)[:9],
     b"II*\0\xff\xff\xff\xff", b"II*\0\x08\0\0\0\xff\xff"],
    ids=range(9),
)  # fmt: skip
def test_a_broken_orientation_is_none(broken):
    """EXIF that cannot be read leaves the picture as it is stored, as browsers do."""
    header, _ = read(jpeg_with(encoded(".jpg"), 0xE1, b"Exif\0\0" + broken))
    assert header.orientation == 1


FOREIGN = {
    "GIF": b"GIF89a" + bytes(60),
    "TIFF": b"II*\0" + bytes(60),
    "PDF": b"%PDF-1.7 " + bytes(60),
    "AVIF": b"\0\0\0\x20ftypavif" + bytes(60),
    "JPEG 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(60),
    "text": b"BMW is a car, and this is no picture at all",
    "JSON": b'{"image": "aGVsbG8="}',
    "SVG": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
    "WAVE": b"RIFF\x24\0\0\0WAVEfmt " + bytes(60),
    "zeros": bytes(1000),
    "one byte": b"\xff",
    "half a JPEG's signature": b"\xff\xd8",
}


@pytest.mark.parametrize("data", FOREIGN.values(), ids=FOREIGN.keys())
def test_other_types_are_unsupported(data):
    """415 names what is accepted."""
    with pytest.raises(UnsupportedImageError, match="JPEG, PNG, WebP or BMP"):
        read_header(data, LIMITS)


def test_no_bytes_are_malformed():
    """An empty body is no picture of an unsupported type: nothing was sent."""
    with pytest.raises(MalformedRequestError, match="empty"):
        read_header(b"", LIMITS)


ALL = {name: data for name, (data, _) in EXACT.items()} | LOSSY
ALL["webp, exif"] = pictures.webp_with_exif(encoded(".webp"), 1)


def test_a_view_of_the_bytes_is_enough():
    """A memoryview is read without a copy of it."""
    for data in ALL.values():
        _, pixels = read(memoryview(data))
        np.testing.assert_array_equal(pixels, read(data)[1])


def test_threads_decode_side_by_side():
    """Decoding in four threads gives what it gives in one."""
    expected = {name: read(data)[1] for name, data in ALL.items()}
    wrong = []

    def work():
        for _ in range(20):
            wrong.extend(n for n, d in ALL.items() if not np.array_equal(read(d)[1], expected[n]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
