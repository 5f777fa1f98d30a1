"""The artifact store, the intake's child, and the waiting for changes."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from polyolo.control.artifacts import ArtifactStore
from polyolo.control.changes import Changes
from polyolo.control.intake import Facts, judge
from polyolo.errors import ModelRefusedError, TooLargeError

INSPECT = (
    sys.executable,
    str(Path(__file__).parents[1] / "contract" / "small_inspect.py"),
)


def files(directory: Path) -> set[str]:
    return {entry.name for entry in directory.iterdir()}


def put(store: ArtifactStore, content: bytes) -> str:
    with store.upload(1000) as upload:
        upload.write(content)
        digest = upload.finish()
        with store.placing(upload, digest):
            pass
    return digest


def test_a_placed_file_is_whole_and_read_only(tmp_path: Path):
    """Found under its digest, nobody may write to it, nothing else is left."""
    store = ArtifactStore(tmp_path / "store")
    digest = put(store, b"content")
    assert digest == hashlib.sha256(b"content").hexdigest()
    assert store.path(digest).read_bytes() == b"content"
    assert store.path(digest).stat().st_mode & 0o777 == 0o400
    assert files(tmp_path / "store") - {".lock"} == {digest} == store.digests()


def test_an_upload_that_is_not_placed_leaves_nothing(tmp_path: Path):
    """Broken off, too large: gone. Killed: gone at the next start."""
    store = ArtifactStore(tmp_path)
    with store.upload(100) as upload:
        upload.write(b"half")
    with store.upload(100) as upload:
        upload.write(b"x" * 60)
        with pytest.raises(TooLargeError, match="100"):
            upload.write(b"x" * 60)
    assert files(tmp_path) == set()
    (tmp_path / ".killed.part").write_bytes(b"half")
    ArtifactStore(tmp_path)
    assert files(tmp_path) == set()


def test_a_file_is_not_discarded_while_it_is_placed(tmp_path: Path):
    """Deleting one tenant's model cannot take the file that another is just uploading."""
    store = ArtifactStore(tmp_path)
    digest = put(store, b"shared")
    with store.upload(100) as upload:
        upload.write(b"shared")
        with store.placing(upload, upload.finish()):
            store.discard(digest, if_so=lambda: True)
            assert store.path(digest).exists()
    store.discard(digest, if_so=lambda: False)
    assert store.path(digest).exists()
    store.discard(digest, if_so=lambda: True)
    assert not store.path(digest).exists()


def test_two_stores_on_one_directory(tmp_path: Path):
    """As two control planes have: neither deletes what the other receives or places."""
    store, other = ArtifactStore(tmp_path), ArtifactStore(tmp_path)
    with store.upload(100) as upload:
        upload.write(b"shared")
        ArtifactStore(tmp_path)  # starts, and cleans up
        digest = upload.finish()
        assert upload.path.exists()
        with store.placing(upload, digest):
            other.discard(digest, if_so=lambda: True)
            assert store.path(digest).exists()
    other.discard(digest, if_so=lambda: True)
    assert not store.path(digest).exists()


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path):
    """The kernel refuses the write (a limit on the file's size stands for the disk's end)."""
    program = """
import resource, sys
from pathlib import Path
from polyolo.control.artifacts import ArtifactStore
from polyolo.errors import InsufficientStorageError
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
try:
    with ArtifactStore(Path(sys.argv[1])).upload(1 << 30) as upload:
        upload.write(b"x" * 40_000)
        upload.write(b"x" * 40_000)
except InsufficientStorageError as error:
    print(error.status, error.detail)
"""
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("507 the platform's disk is full")
    assert files(tmp_path) == set()


@pytest.fixture
def model(tmp_path: Path):
    def write(content: str) -> Path:
        file = tmp_path / "model.bin"
        file.write_text(content)
        return file

    return write


def test_facts_of_a_good_file(model):
    """Family, classes, input; names given beside the file are handed on, as names only."""
    facts = Facts(family="yolox", classes=("cat", "dog"), input=(1, 3, 8, 8))
    assert judge(model("model"), (), INSPECT) == facts
    assert judge(model("model"), ("--help", "b c"), INSPECT).classes == ("--help", "b c")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no", "this is no model"),
        ("abort", "could not be looked into"),
        ("hog", "could not be looked into"),
        ("flood", "could not be looked into"),
        ("lie", "could not be looked into"),
        ("spin", "longer than 1 s"),
    ],
)
def test_however_the_child_dies_the_file_is_refused(model, content, reason):
    """Refusal, crash, memory, output without end, nonsense, no end: one kind of answer."""
    with pytest.raises(ModelRefusedError, match=reason):
        judge(model(content), (), INSPECT, time_s=1.0 if content == "spin" else 20.0)


def test_the_child_knows_no_secrets_and_sees_an_empty_directory(model, monkeypatch):
    """Nothing of the platform's environment, nothing in its directory, which goes afterwards."""
    monkeypatch.setenv("POLYOLO_OPERATOR_KEY", "po_secret")
    with pytest.raises(ModelRefusedError) as caught:
        judge(model("secrets"), (), INSPECT)
    environment, entries, directory = json.loads(caught.value.detail)
    assert set(environment) <= {"PATH", "LANG", "LC_CTYPE", "TMPDIR", "POLYOLO_PARENT"}
    assert entries == []
    assert not Path(directory).exists()
    assert os.getpid() == int(environment["POLYOLO_PARENT"])


async def test_a_change_in_another_thread_wakes_a_waiter():
    """Published from a thread, seen on the loop, at once."""
    changes = Changes(5)
    waiting = asyncio.create_task(changes.newer("g", 5, 10))
    await asyncio.sleep(0)
    threading.Thread(target=changes.publish, args=(6,)).start()
    async with asyncio.timeout(2):
        assert await waiting


async def test_waiting_ends_by_time_and_by_close():
    """False after the time, False for everybody on close."""
    changes = Changes(5)
    assert not await changes.newer("g", 5, 0.01)
    waiting = asyncio.create_task(changes.newer("g", 5, 10))
    await asyncio.sleep(0)
    changes.close()
    async with asyncio.timeout(2):
        assert not await waiting


async def test_an_answer_waits_for_the_gateways_that_are_there():
    """A gateway that polls has to come back for more; one that never polled is not waited for."""
    changes = Changes(5)
    assert await changes.at_gateways(99, 0.01)
    polling = asyncio.create_task(changes.newer("g", 5, 10))
    await asyncio.sleep(0)
    changes.publish(6)
    assert await polling
    assert not await changes.at_gateways(6, 0.05)  # has the answer, may not have read it
    waiting = asyncio.create_task(changes.at_gateways(6, 5))
    polling = asyncio.create_task(changes.newer("g", 6, 10))
    async with asyncio.timeout(2):
        assert await waiting
    polling.cancel()
