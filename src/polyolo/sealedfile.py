"""Files that only the holder of a key can read: what control writes and runtimes read.

A file is sealed in chunks by AES-256-GCM, in the way of STREAM (Hoang, Reyhanitabar, Rogaway,
Vizár: "Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015): every chunk
bears its number and whether it is the last one, so that none can be left out, added, moved or
taken from another file. Each file has a key of its own (HKDF-SHA256, RFC 5869), derived from its
owner's key, a random salt and what the file is; under another name it does not open.

`polyolo`, 0x01, 32 bytes of salt, then chunks: 1 MiB of plain bytes each, fewer only in the last,
and 16 bytes of tag. A nonce is 7 zero bytes, the chunk's number (4 bytes, big-endian) and 1 for
the last chunk, else 0.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

MAGIC = b"polyolo\x01"
"""What a sealed file begins with; no ONNX file and no archive does."""
CHUNK_BYTES = 1 << 20
"""Plain bytes of a chunk: what is held in memory beside the result, and 16 bytes in each lost."""
KEY_VARIABLE = "POLYOLO_ARTIFACT_KEY"
"""Environment variable by which a runtime gets its tenant's key, in hex."""
KEY_HEADER = "polyolo-artifact-key"
"""Header by which one gets it that was started before anybody knew whose it would be."""

_SALT = 32
_TAG = 16
_HEADER = len(MAGIC) + _SALT


class SealedFileError(Exception):
    """A sealed file does not open: it was changed or cut, or the key or the name is another one."""


def artifact_key(data_key: bytes, tenant: str) -> bytes:
    """Return a tenant's key for files, 32 bytes, derived from the one that seals its secrets."""
    return _derive(data_key, b"", b"polyolo artifacts " + tenant.encode())


def sealed_size(size: int) -> int:
    """Return how many bytes `size` plain ones take when sealed."""
    return _HEADER + size + _TAG * max(1, -(-size // CHUNK_BYTES))


def plain_size(size: int) -> int:
    """Return how many plain bytes are in a sealed file of `size` bytes; 0 for a broken one."""
    chunks = -(-max(0, size - _HEADER) // (CHUNK_BYTES + _TAG))
    return max(0, size - _HEADER - _TAG * chunks)


def seal(key: bytes, what: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield `pieces`, cut in any way, as a sealed file.

    what: says what the file is, and has to be said again to open it.
    """
    salt = os.urandom(_SALT)
    cipher = _cipher(key, salt, what)
    yield MAGIC + salt
    for number, chunk, last in _chunks(pieces, CHUNK_BYTES):
        yield cipher.encrypt(_nonce(number, last=last), chunk, None)


def unseal(key: bytes, what: str, pieces: Iterable[bytes]) -> Iterator[bytes]:
    """Yield the plain bytes of a sealed file, each chunk once it is known to be genuine.

    Raises SealedFileError, even after some chunks: what is yielded is whole only at the end.
    """
    from cryptography.exceptions import InvalidTag

    source, head = iter(pieces), b""
    while len(head) < _HEADER:
        piece = next(source, None)
        if piece is None:
            raise SealedFileError("the file is cut off")
        head += piece
    if not head.startswith(MAGIC):
        raise SealedFileError("the file is not sealed")
    cipher = _cipher(key, head[len(MAGIC) : _HEADER], what)
    for number, chunk, last in _chunks(chain([head[_HEADER:]], source), CHUNK_BYTES + _TAG):
        try:
            plain = cipher.decrypt(_nonce(number, last=last), chunk, None)
        except (InvalidTag, ValueError):
            raise SealedFileError(
                "the file was changed or cut off, or is another one than it should be"
            ) from None
        yield plain


def read(path: Path, key: str, what: str) -> bytes:
    """Return a file's plain bytes, whether it is sealed or lies open.

    key: in hex, needed for a sealed one only. Raises OSError, SealedFileError.
    """
    with path.open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            file.seek(0)
            return file.read()
        if not key:
            raise SealedFileError("the file is sealed, and there is no key to open it with")
        file.seek(0)
        whole = io.BytesIO()  # gives its bytes away without a copy
        for chunk in unseal(bytes.fromhex(key), what, iter(lambda: file.read(CHUNK_BYTES), b"")):
            whole.write(chunk)
        return whole.getvalue()


def _chunks(pieces: Iterable[bytes], size: int) -> Iterator[tuple[int, bytes, bool]]:
    """Yield `pieces` cut anew: each chunk's number, its bytes, and whether it is the last."""
    held, number = bytearray(), 0
    for piece in pieces:
        held += piece
        while len(held) > size:
            yield number, bytes(held[:size]), False
            del held[:size]
            number += 1
    yield number, bytes(held), True


def _nonce(number: int, *, last: bool) -> bytes:
    return bytes(7) + number.to_bytes(4, "big") + bytes([last])


def _cipher(key: bytes, salt: bytes, what: str) -> AESGCM:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    return AESGCM(_derive(key, salt, b"polyolo sealed file 1 " + what.encode()))


def _derive(key: bytes, salt: bytes, info: bytes) -> bytes:
    from cryptography.hazmat.primitives.hashes import SHA256
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    return HKDF(algorithm=SHA256(), length=32, salt=salt, info=info).derive(key)
