"""A picture's bytes become pixels here: checked before they are decoded, upright afterwards.

`read_header` reads a few hundred bytes at most and decides who may come in; `decode` does the
work. Both are pure, safe in any thread, and raise errors that hold neither a byte of the picture
nor a decoder's own words.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # ships stubs, but no py.typed
from numpy.typing import NDArray

from polyolo.errors import (
    MalformedRequestError,
    TooLargeError,
    UndecodableImageError,
    UnsupportedImageError,
)
from polyolo.serving import imageheader

_MOST_SCANS = 64
"""Of a JPEG. Progressive ones have about 10; each costs a pass over the whole picture, 50 ms at
50 megapixels, and fits into 80 bytes: 20 MB of them would take hours."""
_LONGEST_SIDE = 1_000_000
"""Pixels; libpng reads nothing longer (PNG_USER_WIDTH_MAX), and the other formats' limits are
lower or about the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageLimits:
    """What a picture may measure, so that no request can fill the memory."""

    max_bytes: int = 20 * 1024 * 1024
    """Size of the encoded picture; the largest JPEGs of phones and cameras are about 15 MB."""
    max_pixels: int = 50_000_000
    """Width times height: a 50 megapixel phone's 8160x6120 is let in. 3 bytes each once decoded,
    so 150 MB; twice that while an EXIF orientation is applied or a progressive JPEG decoded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageHeader:
    """What a picture says of itself before it is decoded."""

    format: str
    """jpeg, png, webp or bmp."""
    width: int
    """Pixels of the upright picture, EXIF orientation applied."""
    height: int
    orientation: int = 1
    """EXIF orientation, 1 (upright) to 8."""


def read_header(data: bytes | memoryview, limits: ImageLimits) -> ImageHeader:
    """Return what `data` says it holds; decodes no pixels and takes some microseconds.

    Raises MalformedRequestError for no data, UnsupportedImageError for any other type,
    TooLargeError for too many bytes or pixels, UndecodableImageError for a broken header.
    """
    if not len(data):
        raise MalformedRequestError("the request holds no image: its body is empty")
    if len(data) > limits.max_bytes:
        raise TooLargeError(
            f"the image has {len(data):,} bytes; at most {limits.max_bytes:,} are accepted"
        )
    kind = imageheader.kind_of(data)
    if kind is None:
        raise UnsupportedImageError(
            "the data is not a JPEG, PNG, WebP or BMP image; convert it to one of these"
        )
    try:
        width, height, orientation = imageheader.READERS[kind](memoryview(data))
    except (IndexError, ValueError):  # all that its bounds-checked reading raises
        raise UndecodableImageError(
            f"the {_NAMES[kind]} image's header is cut off or broken; encode it again"
        ) from None
    if orientation >= 5:  # 5 to 8 lie on their side
        width, height = height, width
    if width * height > limits.max_pixels:
        raise TooLargeError(
            f"the image has {width:,} x {height:,} pixels; "
            f"at most {limits.max_pixels:,} in all are accepted; scale it down"
        )
    if max(width, height) > _LONGEST_SIDE:
        raise TooLargeError(
            f"the image has {width:,} x {height:,} pixels; "
            f"at most {_LONGEST_SIDE:,} a side are accepted"
        )
    return ImageHeader(format=kind, width=width, height=height, orientation=orientation)


def decode(data: bytes | memoryview, header: ImageHeader) -> NDArray[np.uint8]:
    """Return the picture upright, as uint8 [H,W,3] in BGR, C-contiguous.

    16 bits become 8; grey, palette and CMYK become BGR; of several frames the first is taken.
    Alpha is dropped, not blended: detectors are trained on what OpenCV reads, and it drops it.
    Raises UndecodableImageError for anything cut off or broken. Runs without the GIL for nearly
    all of its time.
    """
    try:
        pixels = _DECODERS[header.format](data)
    except (cv2.error, IndexError, ValueError, MemoryError):
        pixels = None
    size = (header.height, header.width, 3)
    if header.orientation >= 5:
        size = (header.width, header.height, 3)
    if pixels is None or pixels.shape != size:
        raise UndecodableImageError(
            f"the {_NAMES[header.format]} image is cut off or broken; encode or send it again"
        )
    return _upright(pixels, header.orientation)


def configure_opencv() -> None:
    """Set OpenCV up for a server. Process-wide: for a composition root, before any thread.

    One thread a call: requests fill the cores already, and OpenCV's own pool would only contend
    with them. No warnings on stderr about pictures that a client is told of anyway.
    """
    cv2.setNumThreads(1)
    logging = cv2.utils.logging
    logging.setLogLevel(logging.LOG_LEVEL_SILENT)


_NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "bmp": "BMP"}


def _decode_jpeg(data: bytes | memoryview) -> NDArray[np.uint8] | None:
    if imageheader.jpeg_scans(memoryview(data)) > _MOST_SCANS:
        return None
    try:
        _, _, colours, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError:  # rare chroma subsamplings, which OpenCV's libjpeg can read
        return _decode_other(data)
    space = "CMYK" if colours in ("CMYK", "YCCK") else "BGR"
    try:
        pixels = simplejpeg.decode_jpeg(data, space)
    except ValueError as error:
        # Cameras leave stray bytes between the last pixel and the end marker (0xd9). The whole
        # picture was read by then; every other complaint of libjpeg means that some is missing.
        if not str(error).endswith("extraneous bytes before marker 0xd9"):
            raise
        pixels = simplejpeg.decode_jpeg(data, space, strict=False)
    if space == "CMYK":
        return _from_cmyk(pixels, inverted=imageheader.jpeg_has_adobe(memoryview(data)))
    return np.asarray(pixels, np.uint8)


def _from_cmyk(pixels: NDArray[np.uint8], *, inverted: bool) -> NDArray[np.uint8]:
    """Convert CMYK [H,W,4] without a colour profile. Adobe's programs store it inverted."""
    if not inverted:
        pixels = np.invert(pixels)
    key = cv2.extractChannel(pixels, 3)
    planes = [  # yellow, magenta and cyan ink leave blue, green and red
        cv2.multiply(cv2.extractChannel(pixels, ink), key, scale=1 / 255) for ink in (2, 1, 0)
    ]
    return np.asarray(cv2.merge(planes), np.uint8)


def _decode_png(data: bytes | memoryview) -> NDArray[np.uint8] | None:
    return _decode_other(imageheader.png_pixels(memoryview(data)))


def _decode_other(data: bytes | memoryview) -> NDArray[np.uint8] | None:
    pixels = cv2.imdecode(
        np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR_BGR | cv2.IMREAD_IGNORE_ORIENTATION
    )
    return None if pixels is None else np.asarray(pixels, np.uint8)


_DECODERS = {
    "jpeg": _decode_jpeg,
    "png": _decode_png,
    "webp": _decode_other,
    "bmp": _decode_other,
}


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Undo an EXIF orientation (CIPA DC-008, tag 0x0112)."""
    if orientation >= 5:
        pixels = np.asarray(cv2.transpose(pixels), np.uint8)
    flip = _FLIPS.get(orientation)
    return pixels if flip is None else np.asarray(cv2.flip(pixels, flip), np.uint8)


_ROWS, _COLUMNS, _BOTH = 0, 1, -1  # what cv2.flip turns around
_FLIPS = {2: _COLUMNS, 3: _BOTH, 4: _ROWS, 6: _COLUMNS, 7: _BOTH, 8: _ROWS}
