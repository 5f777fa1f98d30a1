"""The ObjectStore protocol: what every place where model files lie must do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyolo.control.bucket import Access, Bucket
from polyolo.control.objects import DirectoryStore, ObjectStore
from polyolo.errors import InsufficientStorageError, NotReadyError
from tests.contract.bucket_server import bucket

MIB = 1 << 20
Again = Callable[[], ObjectStore]


@pytest.fixture(scope="module")
def server() -> Iterator[Access]:
    with bucket() as access:
        yield access


@pytest.fixture(params=["directory", "bucket"])
def again(request: pytest.FixtureRequest, tmp_path: Path) -> Again:
    """Give what opens the test's store, as each of several processes would."""
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path / "store")
    access = request.getfixturevalue("server")
    return lambda: Bucket(f"s3://models/{tmp_path.name}", access)


@pytest.fixture
def store(again: Again) -> ObjectStore:
    return again()


def names(store: ObjectStore, prefix: str = "") -> set[str]:
    return {entry.name for entry in store.entries(prefix)}


def read(store: ObjectStore, name: str) -> bytes:
    return b"".join(store.get(name))


def test_an_object_is_there_as_it_was_put(store: ObjectStore, again: Again):
    """Found by name, with its size, by another process too."""
    assert store.put("t_a/one", [b"abc", b"", b"def"]) is True
    assert read(again(), "t_a/one") == b"abcdef"
    (entry,) = again().entries()
    assert (entry.name, entry.size) == ("t_a/one", 6)
    assert entry.modified > 1e9


def test_a_large_object_in_many_pieces(store: ObjectStore, tmp_path: Path):
    """13 MiB: more than one request where requests have a size; placed in a file as it is."""
    pieces = [bytes([number]) * MIB for number in range(13)]
    store.put("t_a/large", iter(pieces))
    assert read(store, "t_a/large") == b"".join(pieces)
    store.place("t_a/large", tmp_path / "placed.onnx")
    assert (tmp_path / "placed.onnx").read_bytes() == b"".join(pieces)
    assert [entry.name for entry in tmp_path.iterdir() if entry.is_file()] == ["placed.onnx"]


def test_replaced_or_left_as_it_is(store: ObjectStore, again: Again):
    """Whoever does not replace learns that somebody was faster."""
    assert store.put("t_a/one", [b"first"], replace=False) is True
    assert again().put("t_a/one", [b"second"], replace=False) is False
    assert read(store, "t_a/one") == b"first"
    assert again().put("t_a/one", [b"third"]) is True
    assert read(store, "t_a/one") == b"third"


def test_an_object_that_breaks_off_is_not_there(store: ObjectStore):
    """What raises while it is put leaves nothing, and what was there stays."""

    def breaking() -> Iterator[bytes]:
        yield b"x" * (6 * MIB)
        raise RuntimeError("no more")

    store.put("t_a/old", [b"old"])
    for name in ("t_a/new", "t_a/old"):
        with pytest.raises(RuntimeError, match="no more"):
            store.put(name, breaking())
    assert names(store) == {"t_a/old"}
    assert read(store, "t_a/old") == b"old"


def test_folders(store: ObjectStore):
    """Listed by folder, not by the beginning of a word; deleted one by one, twice is nothing."""
    for name in ("t_a/one", "t_a/uploads/u/000", "t_a/uploads/u/001", "t_ab/one"):
        store.put(name, [b"x"])
    assert names(store, "t_a") == {"t_a/one", "t_a/uploads/u/000", "t_a/uploads/u/001"}
    assert names(store, "t_a/uploads/u") == {"t_a/uploads/u/000", "t_a/uploads/u/001"}
    assert names(store, "t_none") == set()
    for _ in range(2):
        store.delete("t_a/uploads/u/000")
    assert names(store, "t_a") == {"t_a/one", "t_a/uploads/u/001"}


def test_what_is_not_there(store: ObjectStore, tmp_path: Path):
    """FileNotFoundError, and no file of it."""
    with pytest.raises(FileNotFoundError):
        read(store, "t_a/none")
    with pytest.raises(FileNotFoundError):
        store.place("t_a/none", tmp_path / "placed.onnx")
    assert not [entry for entry in tmp_path.iterdir() if entry.is_file()]


def test_a_bucket_that_is_away(server: Access):
    """503 with a time to come again, after seconds, and its address in no sentence."""
    gone = Access(endpoint="http://127.0.0.1:9", access_key_id="k", secret_access_key="s")
    with pytest.raises(NotReadyError) as caught:
        read(Bucket("s3://models", gone), "t_a/one")
    assert "127.0.0.1" not in caught.value.detail
    with pytest.raises(NotReadyError):
        list(Bucket("s3://another", server).entries())


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path):
    """No object's name climbs out of a directory."""
    store = DirectoryStore(tmp_path / "store")
    for name in ("../x", "/etc/passwd", "t_a/../../x", ".hidden", "t_a//x", ""):
        with pytest.raises(ValueError, match="not an object's name"):
            store.put(name, [b"x"])


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path):
    """The kernel refuses the write (a limit on the file's size stands for the disk's end)."""
    program = """
import resource, sys
from pathlib import Path
from polyolo.control.objects import DirectoryStore
from polyolo.errors import InsufficientStorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    DirectoryStore(Path(sys.argv[1])).put("t_a/one", [b"x" * 40_000, b"x" * 40_000])
except InsufficientStorageError as error:
    print(error.status, error.detail)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith(f"{InsufficientStorageError.status} the platform's disk is full")
    assert list(DirectoryStore(tmp_path).entries()) == []


def test_a_kill_while_it_writes_leaves_nothing_for_long(tmp_path: Path):
    """kill -9 in the middle: no object; the next start takes the rest away, not a live one."""
    program = """
import os, sys, time
from pathlib import Path
from polyolo.control.objects import DirectoryStore
def pieces():
    yield b"x" * 100_000
    print("writing", flush=True)
    time.sleep(60)
DirectoryStore(Path(sys.argv[1])).put("t_a/one", pieces())
"""
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    store = DirectoryStore(tmp_path)  # another process starts, and cleans up
    assert list(store.entries()) == []
    assert len(list(tmp_path.glob(".*.part"))) == 1
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    DirectoryStore(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_files_are_private_and_read_only(tmp_path: Path):
    """Runtimes get links to them: nobody writes to one, and no other user reads it."""
    store = DirectoryStore(tmp_path / "store")
    store.put("t_a/one", [b"x"])
    file = tmp_path / "store" / "t_a" / "one"
    assert file.stat().st_mode & 0o777 == 0o400
    assert file.parent.stat().st_mode & 0o777 == 0o700
    store.place("t_a/one", tmp_path / "link.onnx")
    assert (tmp_path / "link.onnx").stat().st_ino == file.stat().st_ino
    store.delete("t_a/one")
    assert list((tmp_path / "store").iterdir()) == []  # the empty folder is gone too
    assert (tmp_path / "link.onnx").read_bytes() == b"x"
