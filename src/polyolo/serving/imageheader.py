"""Reads the headers of JPEG, PNG, WebP and BMP: size and orientation, without decoding a pixel.

Written for hostile bytes: every read is bounds-checked (an IndexError or ValueError says that
the header is broken), and the number of steps does not grow with the file. Sources: ITU-T T.81
and CIPA DC-008 (JPEG, EXIF), W3C PNG third edition, RFC 9649 (WebP), BITMAPINFOHEADER (BMP).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

Header = tuple[int, int, int]
"""Width and height as stored, orientation 1 to 8."""

_MOST_SEGMENTS = 1024
"""Segments or chunks to walk. An ICC profile fills up to 255, extended XMP some hundred."""
_MOST_STRAY = 65_536
"""Bytes between two segments that are skipped, as libjpeg does; tools pad with a few."""
_MOST_ENTRIES = 512
"""Entries of an EXIF directory to look at; cameras write about 20, most important tags first."""


def kind_of(data: bytes | memoryview) -> str | None:
    """Return jpeg, png, webp or bmp by the first bytes; None for anything else."""
    head = bytes(data[:18])
    if head.startswith(b"\xff\xd8\xff"):
        return "jpeg"
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return "webp"
    # "BM" alone also begins a text about cars: the size of a known info header must follow.
    if head.startswith(b"BM") and _little(head[14:18]) in _BMP_HEADERS:
        return "bmp"
    return None


def jpeg_has_adobe(data: memoryview) -> bool:
    """Tell whether Adobe's marker is there, which says that CMYK is stored inverted."""
    return any(
        marker == 0xEE and bytes(data[start : start + 5]) == b"Adobe"
        for marker, start, _ in _segments(data)
    )


def jpeg_scans(data: memoryview) -> int:
    """Return how many passes over the picture a JPEG's decoder has to make. Raises as READERS."""
    components = 0
    for marker, start, _ in _segments(data):
        if marker in _SEQUENTIAL:
            components = data[start + 5]
        elif marker == _SOS and data[start] == components:
            return 1  # all in one scan, and libjpeg goes no further
    return bytes(data).count(b"\xff\xda")  # within a scan's own bytes 0xff never stands so


def png_pixels(data: memoryview) -> bytes | memoryview:
    """Return a PNG with nothing but what its first picture needs. Raises as the READERS do.

    What is left out can be ruinous for the decoder: texts and profiles of a few kB that inflate
    to 8 MB each, chunks that claim 2 GB (for which OpenCV clears the memory first), frames.
    """
    at = 8
    kept = []
    dropped = False
    for _ in range(_MOST_CHUNKS):
        length = _big(data[at : at + 4])
        kind = bytes(data[at + 4 : at + 8])
        end = at + 12 + length
        if end > len(data):
            raise ValueError("a chunk reaches beyond the data")
        if kind in _PNG_NEEDED:
            kept.append(data[at:end])
        else:
            dropped = True
        if kind == b"IEND":
            return b"".join((data[:8], *kept)) if dropped else data[:end]
        at = end
    raise ValueError("too many chunks")


_PNG_NEEDED = frozenset({b"IHDR", b"PLTE", b"IDAT", b"IEND"})
_MOST_CHUNKS = 20_000
"""Of a whole PNG; one of 20 MiB in the customary pieces of 8 KiB has 2,560."""
_BMP_HEADERS = frozenset({12, 16, 40, 52, 56, 64, 108, 124})
_SOF = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # these three are other things
_SEQUENTIAL = frozenset({0xC0, 0xC1})  # Huffman-coded, not progressive
_SOS, _EOI, _APP1 = 0xDA, 0xD9, 0xE1
_ALONE = frozenset({0x01, *range(0xD0, 0xD9)})  # markers without a length


def _read_jpeg(data: memoryview) -> Header:
    size = None
    orientation = 0
    for marker, start, end in _segments(data):
        if marker in _SOF:
            if size is not None or end - start < 6:
                raise ValueError("a second or a short frame header")
            size = _big(data[start + 3 : start + 5]), _big(data[start + 1 : start + 3])
        elif marker == _APP1 and not orientation and bytes(data[start : start + 6]) == b"Exif\0\0":
            orientation = _orientation(data[start + 6 : end])
    if size is None:
        raise ValueError("no frame header before the pixels")
    return *_not_empty(*size), orientation or 1


def _segments(data: memoryview) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end of content) up to the first scan's."""
    at = 2
    for _ in range(_MOST_SEGMENTS):
        gap = bytes(data[at : at + 2])
        if gap[:1] != b"\xff" or gap == b"\xff\xff":  # unusual
            gap = bytes(data[at : at + _MOST_STRAY])
        stray = gap.find(b"\xff")
        if stray < 0:
            raise ValueError("no marker where one must be")
        fill = gap[stray:].lstrip(b"\xff")  # any number of 0xff may precede the marker
        at += len(gap) - len(fill)
        marker = data[at]
        at += 1
        if marker == _EOI:
            return
        if marker == 0 or marker in _ALONE:
            continue
        length = _big(data[at : at + 2])
        if length < 2 or at + length > len(data):
            raise ValueError("a segment reaches beyond the data")
        yield marker, at + 2, at + length
        if marker == _SOS:
            return
        at += length
    raise ValueError("too many segments")


def _read_png(data: memoryview) -> Header:
    if _big(data[8:12]) != 13 or bytes(data[12:16]) != b"IHDR" or len(data) < 33:
        raise ValueError("does not begin with IHDR")
    orientation = 1
    at = 33
    for _ in range(_MOST_SEGMENTS):
        kind = bytes(data[at + 4 : at + 8])
        if kind in (b"", b"IDAT", b"IEND"):
            break
        length = _big(data[at : at + 4])
        if kind == b"eXIf":
            orientation = _orientation(data[at + 8 : at + 8 + length])
            break
        at += 12 + length
    return *_not_empty(_big(data[16:20]), _big(data[20:24])), orientation


def _read_webp(data: memoryview) -> Header:
    kind = bytes(data[12:16])
    if kind == b"VP8 ":
        if bytes(data[23:26]) != b"\x9d\x01\x2a":
            raise ValueError("no key frame")
        return *_not_empty(_little(data[26:28]) & 0x3FFF, _little(data[28:30]) & 0x3FFF), 1
    if kind == b"VP8L":
        if data[20] != 0x2F:
            raise ValueError("no lossless signature")
        bits = _little(data[21:25])
        return *_not_empty((bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1), 1
    if kind != b"VP8X":
        raise ValueError("an unknown first chunk")
    width, height = _little(data[24:27]) + 1, _little(data[27:30]) + 1
    if len(data) < 30:
        raise ValueError("cut off")
    return width, height, _webp_orientation(data) if data[20] & 0x08 else 1


def _webp_orientation(data: memoryview) -> int:
    at = 30
    for _ in range(_MOST_SEGMENTS):
        kind = bytes(data[at : at + 4])
        if len(kind) < 4:
            return 1
        length = _little(data[at + 4 : at + 8])
        if kind == b"EXIF":
            exif = data[at + 8 : at + 8 + length]
            # The specification has the bare TIFF structure; some writers put JPEG's prefix first.
            return _orientation(exif[6:] if bytes(exif[:6]) == b"Exif\0\0" else exif)
        at += 8 + length + (length & 1)
    return 1


def _read_bmp(data: memoryview) -> Header:
    if _little(data[14:18]) == 12:  # OS/2's header has 16 bits
        width, height = _little(data[18:20]), _little(data[20:22])
        needed = 26
    else:
        width, height = _little(data[18:22]), _little(data[22:26])
        needed = 54
        if height >= 1 << 31:  # negative: the rows lie top-down
            height = (1 << 32) - height
    if len(data) < needed or width >= 1 << 31:
        raise ValueError("cut off, or of negative width")
    return *_not_empty(width, height), 1


def _orientation(exif: memoryview) -> int:
    """Return the orientation out of a TIFF structure; 1 if it cannot be read, as browsers do."""
    order = bytes(exif[:4])
    read = {b"II*\0": _little, b"MM\0*": _big}.get(order)
    if read is None or len(exif) < 8:
        return 1
    at = read(exif[4:8])
    for entry in range(min(read(exif[at : at + 2]), _MOST_ENTRIES)):
        field = exif[at + 2 + 12 * entry : at + 14 + 12 * entry]
        if len(field) < 12:
            return 1
        if read(field[:2]) == 0x0112:
            value = read(field[8:10])
            return value if 1 <= value <= 8 else 1
    return 1


def _not_empty(width: int, height: int) -> tuple[int, int]:
    if not (width and height):
        raise ValueError("a side of no pixels")
    return width, height


def _big(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "big")


def _little(data: bytes | memoryview) -> int:
    return int.from_bytes(data, "little")


READERS: Mapping[str, Callable[[memoryview], Header]] = {
    "jpeg": _read_jpeg,
    "png": _read_png,
    "webp": _read_webp,
    "bmp": _read_bmp,
}
"""By format: returns the header, or raises IndexError or ValueError where it is broken."""
