"""Sealed files: open for their key and their name only, whole or not at all."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from polyolo import sealedfile
from polyolo.sealedfile import CHUNK_BYTES, MAGIC, SealedFileError, artifact_key, seal, unseal

KEY = artifact_key(bytes(32), "t_one")
SIZES = (0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES)


def content(size: int) -> bytes:
    return (b"0123456789abcde" * (size // 15 + 1))[:size]


def sealed(size: int, what: str = "it") -> bytes:
    return b"".join(seal(KEY, what, [content(size)]))


@pytest.mark.parametrize("size", SIZES)
def test_what_is_sealed_opens(size: int):
    """However it is cut into pieces, on either side; and its size tells the plain one's."""
    plain = content(size)
    pieces = [plain[at : at + 300_007] for at in range(0, size, 300_007)]
    whole = b"".join(seal(KEY, "it", pieces))
    assert plain[:200] not in whole or size < 2
    assert len(whole) == sealedfile.sealed_size(size)
    assert sealedfile.plain_size(len(whole)) == size
    for cut in (len(whole), 7, 1_000_003):
        again = [whole[at : at + max(cut, 1)] for at in range(0, len(whole), max(cut, 1))]
        if len(again) < 10_000:
            assert b"".join(unseal(KEY, "it", again)) == plain


def damaged(whole: bytes) -> dict[str, bytes]:
    """Return every way to tamper with a sealed file of three chunks."""
    head, step = len(MAGIC) + 32, CHUNK_BYTES + 16
    chunks = [whole[at : at + step] for at in range(head, len(whole), step)]
    other = sealed(3 * CHUNK_BYTES)
    flipped = bytearray(whole)
    flipped[-1] ^= 1
    salted = bytearray(whole)
    salted[len(MAGIC)] ^= 1
    return {
        "a bit of the tag": bytes(flipped),
        "a bit of the salt": bytes(salted),
        "cut in a chunk": whole[:-5],
        "cut behind a chunk": whole[: head + 2 * step],
        "cut in the head": whole[:20],
        "nothing": b"",
        "one more byte": whole + b"x",
        "chunks swapped": whole[:head] + chunks[1] + chunks[0] + chunks[2],
        "a chunk left out": whole[:head] + chunks[0] + chunks[2],
        "a chunk twice": whole[:head] + chunks[0] + chunks[0] + chunks[1] + chunks[2],
        "a chunk of another file": whole[:head] + other[head : head + step] + whole[head + step :],
        "not sealed": b"onnx" * 20,
    }


@pytest.mark.parametrize("how", damaged(bytes(sealedfile.sealed_size(3 * CHUNK_BYTES))))
def test_a_file_that_was_tampered_with_does_not_open(how: str):
    """Changed, cut, lengthened, chunks moved or exchanged: an error, never other bytes."""
    with pytest.raises(SealedFileError):
        b"".join(unseal(KEY, "it", [damaged(sealed(3 * CHUNK_BYTES))[how]]))


@pytest.mark.parametrize("size", SIZES)
def test_another_key_tenant_or_name_does_not_open_it(size: int):
    """A file belongs to its tenant and is what it is, wherever it is put."""
    whole = sealed(size)
    for key, what in (
        (artifact_key(bytes(32), "t_two"), "it"),
        (artifact_key(b"x" * 32, "t_one"), "it"),
        (KEY, "another"),
    ):
        with pytest.raises(SealedFileError):
            b"".join(unseal(key, what, [whole]))


def test_equal_files_look_unequal():
    """Nobody learns by looking that two tenants, or one twice, store the same."""
    one, two = sealed(1000), sealed(1000)
    assert one[len(MAGIC) :] != two[len(MAGIC) :]


def test_a_file_is_read_sealed_or_not(tmp_path: Path):
    """An open file needs no key; a sealed one says what is missing."""
    file = tmp_path / "model"
    file.write_bytes(b"plain")
    assert sealedfile.read(file, "", "it") == b"plain"
    file.write_bytes(sealed(2 * CHUNK_BYTES))
    assert sealedfile.read(file, KEY.hex(), "it") == content(2 * CHUNK_BYTES)
    with pytest.raises(SealedFileError, match="no key"):
        sealedfile.read(file, "", "it")


def test_who_reads_open_files_loads_no_cryptography(tmp_path: Path):
    """The import costs a runtime 13 ms: only where a file is sealed."""
    file = tmp_path / "model"
    file.write_bytes(b"plain")
    program = (
        "import sys; from pathlib import Path; from polyolo import sealedfile;"
        f"sealedfile.read(Path({str(file)!r}), '', 'it');"
        "sys.exit(any(name.startswith('cryptography') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0
