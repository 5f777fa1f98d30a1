"""A picture's bytes become pixels here, upright, once `imagecheck` has let them in.

Pure and safe in any thread; its errors hold neither a byte of the picture nor a decoder's words.
"""

from __future__ import annotations

import cv2
import numpy as np
import simplejpeg  # type: ignore[import-untyped]  # ships stubs, but no py.typed
from numpy.typing import NDArray

from polyolo.errors import UndecodableImageError
from polyolo.serving import imageheader
from polyolo.serving.imagecheck import NAMES, ImageHeader

_MOST_SCANS = 64
"""Of a JPEG. Progressive ones have about 10; each costs a pass over the whole picture, 50 ms at
50 megapixels, and fits into 80 bytes: 20 MB of them would take hours."""


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
            f"the {NAMES[header.format]} image is cut off or broken; encode or send it again"
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
