"""Decides by a picture's header who may come in, before a pixel is decoded.

Reads a few hundred bytes at most and needs none of the libraries that decode. Its errors hold no
byte of the picture.
"""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.errors import (
    MalformedRequestError,
    TooLargeError,
    UndecodableImageError,
    UnsupportedImageError,
)
from polyolo.serving import imageheader

NAMES = {"jpeg": "JPEG", "png": "PNG", "webp": "WebP", "bmp": "BMP"}
"""What people call the formats."""

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
            f"the {NAMES[kind]} image's header is cut off or broken; encode it again"
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
