"""Writes odd pictures byte by byte: what no encoder at hand would write, for the image tests."""

from __future__ import annotations

import struct
import zlib

import cv2
import numpy as np
from numpy.typing import NDArray


def smooth(height: int = 48, width: int = 80, seed: int = 7) -> NDArray[np.uint8]:
    """Return a picture [H,W,3] without symmetry, smooth enough to survive JPEG."""
    noise = np.random.default_rng(seed).integers(0, 256, (6, 10, 3), dtype=np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def encoded(suffix: str, picture: NDArray | None = None, *options: int) -> bytes:
    """Return the picture (`smooth()` by default) as OpenCV writes it."""
    done, data = cv2.imencode(suffix, smooth() if picture is None else picture, list(options))
    assert done
    return data.tobytes()


def exif(orientation: int, order: str = "<") -> bytes:
    """Return a TIFF structure with two entries, the second one the orientation."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    make = struct.pack(order + "HHI4s", 0x010F, 2, 4, b"abc\0")
    turned = struct.pack(order + "HHIHH", 0x0112, 3, 1, orientation, 0)
    return head + struct.pack(order + "IH", 8, 2) + make + turned + b"\0\0\0\0"


def jpeg_with(data: bytes, marker: int, content: bytes) -> bytes:
    """Return a JPEG with a segment put right behind its start."""
    return data[:2] + struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content + data[2:]


def rare_jpeg(level: int = 178) -> bytes:
    """Return a plain grey JPEG of 48 x 16 whose colours are subsampled 3 x 1, coded by hand.

    Codes of ITU-T T.81 annex K.3, which OpenCV's encoder uses too: one brightness, then zeros.
    """
    data = bytearray(encoded(".jpg", np.zeros((16, 48, 3), np.uint8)))
    table = data.index(b"\xff\xdb") + 5  # its first entry divides the brightness, times 8
    value = (level - 128) * 8 // data[table]
    assert 128 <= value < 256
    data[data.index(b"\xff\xc0") + 11] = 0x31
    first, same, colour = f"111110{value:08b}1010", "001010", "0000"
    bits = first + 2 * same + 2 * colour + 3 * (3 * same + 2 * colour)
    bits += "1" * (-len(bits) % 8)
    scan = data.index(b"\xff\xda")
    content = int(bits, 2).to_bytes(len(bits) // 8, "big")
    return bytes(data[: scan + 14]) + content.replace(b"\xff", b"\xff\0") + b"\xff\xd9"


def chunk(kind: bytes, content: bytes) -> bytes:
    """Return a PNG chunk."""
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def png(
    samples: NDArray, colour: int, *, depth: int = 8, interlaced: bool = False, more: bytes = b""
) -> bytes:
    """Return a PNG of samples [H,W,channels]; palette and such (`more`) go before the pixels."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, int(interlaced))
    passes = [samples]
    if interlaced:  # Adam7: start and step of x and of y, by pass
        steps = ((0, 8, 0, 8), (4, 8, 0, 8), (0, 4, 4, 8), (2, 4, 0, 4))
        steps += ((0, 2, 2, 4), (1, 2, 0, 2), (0, 1, 1, 2))
        passes = [samples[y::yy, x::xx] for x, xx, y, yy in steps]
    raw = b"".join(b"\0" + _row(row, depth) for part in passes for row in part if row.size)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + more
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def _row(row: NDArray, depth: int) -> bytes:
    if depth == 16:
        return row.astype(">u2").tobytes()
    if depth == 8:
        return row.astype(np.uint8).tobytes()
    bits = (row.reshape(-1, 1) >> np.arange(depth - 1, -1, -1)) & 1
    return np.packbits(bits.astype(np.uint8).ravel()).tobytes()


def png_header(width: int, height: int) -> bytes:
    """Return a PNG that claims a size and brings a few bytes of pixels."""
    data = png(np.zeros((1, 1, 3), np.uint8), 2)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return data[:8] + chunk(b"IHDR", header) + data[33:]


def webp_with_exif(data: bytes, orientation: int) -> bytes:
    """Return a simple WebP as an extended one with an EXIF chunk at its end."""
    height, width = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape[:2]
    size = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    content = exif(orientation)
    body = b"WEBPVP8X" + struct.pack("<IB3x", 10, 0x08) + size + data[12:]
    body += b"EXIF" + struct.pack("<I", len(content)) + content + b"\0" * (len(content) & 1)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def animation(suffix: str, frames: list[NDArray]) -> bytes:
    """Return an animated WebP or PNG."""
    moving = cv2.Animation()
    moving.frames = frames
    moving.durations = np.full(len(frames), 100, np.int32)
    done, data = cv2.imencodeanimation(suffix, moving)
    assert done
    return data.tobytes()
