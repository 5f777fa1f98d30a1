"""The artifact store, the intake's child, and the waiting for changes."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from polyolo.control.artifacts import PLATFORM, Artifacts
from polyolo.control.changes import Changes
from polyolo.control.intake import Facts, judge
from polyolo.control.memfile import gathered
from polyolo.control.objects import DirectoryStore
from polyolo.errors import ModelRefusedError
from polyolo.sandbox.layers import Layer
from polyolo.sandbox.probe import probe
from polyolo.sandbox.programs import Local
from polyolo.sealedfile import SealedFileError

INSPECT = (
    sys.executable,
    str(Path(__file__).parents[1] / "contract" / "small_inspect.py"),
)


KEYS = {"t_one": b"1" * 32, "t_two": b"2" * 32}


@pytest.fixture
def store(tmp_path: Path) -> Artifacts:
    return Artifacts(DirectoryStore(tmp_path), KEYS.__getitem__)


def test_a_file_is_sealed_for_its_tenant(store: Artifacts, tmp_path: Path):
    """Read back by its tenant; on the disk there is nothing of it; the platform's lies open."""
    for tenant in ("t_one", PLATFORM):
        assert not store.has(tenant, "d" * 64)
        store.keep(tenant, "d" * 64, [b"con", b"tent"])
        assert store.has(tenant, "d" * 64)
        assert b"".join(store.read(tenant, "d" * 64)) == b"content"
    assert b"content" not in (tmp_path / "t_one" / ("d" * 64)).read_bytes()
    assert (tmp_path / "platform" / ("d" * 64)).read_bytes() == b"content"


def test_a_file_under_another_name_does_not_open(store: Artifacts, tmp_path: Path):
    """Put in another tenant's folder, or in the place of another version: refused."""
    store.keep("t_one", "a" * 64, [b"content"])
    (tmp_path / "t_two").mkdir()
    for stolen in (tmp_path / "t_one" / ("b" * 64), tmp_path / "t_two" / ("a" * 64)):
        stolen.write_bytes((tmp_path / "t_one" / ("a" * 64)).read_bytes())
        with pytest.raises(SealedFileError):
            b"".join(store.read(stolen.parent.name, stolen.name))


def test_an_upload_arrives_in_pieces(store: Artifacts, tmp_path: Path):
    """In order, each once, none readable on the disk; what stands behind a gap has not arrived."""
    assert store.received("t_one", "u") == 0
    assert store.add("t_one", "u", 0, b"first ")
    assert not store.add("t_one", "u", 0, b"another")
    assert store.add("t_one", "u", 6, b"second")
    assert store.add("t_one", "u", 99, b"far off")
    assert store.received("t_one", "u") == 12
    assert b"".join(store.pieces("t_one", "u")) == b"first second"
    assert not any(b"first" in file.read_bytes() for file in tmp_path.rglob("0*"))
    store.drop("t_one", "u")
    assert list(store.everything()) == []


def test_pieces_cannot_change_places(store: Artifacts, tmp_path: Path):
    """Whoever can write to the store cannot make another file of an upload."""
    store.add("t_one", "u", 0, b"first ")
    store.add("t_one", "u", 6, b"second")
    one, two = sorted((tmp_path / "t_one" / "uploads" / "u").iterdir())
    first, second = one.read_bytes(), two.read_bytes()
    for file, content in ((one, second), (two, first)):
        file.unlink()
        file.write_bytes(content)
    with pytest.raises(SealedFileError):
        b"".join(store.pieces("t_one", "u"))


@pytest.fixture(scope="module", params=["all", "limits"])
def inspect(request: pytest.FixtureRequest):
    """What this host gives, and what every host does."""
    given = probe()
    fewer = given if request.param == "all" else given.without(set(Layer) - {Layer.RLIMITS})
    return Local(command=INSPECT, isolation=fewer)


@pytest.fixture
def model():
    with ExitStack() as held:
        yield lambda content: held.enter_context(gathered([content.encode()]))


def test_facts_of_a_good_file(model, inspect):
    """Family, classes, input; names given beside the file are handed on, as names only."""
    facts = Facts(family="yolox", classes=("cat", "dog"), input=(1, 3, 8, 8))
    assert judge(model("model"), (), inspect) == facts
    named = judge(model("model"), ("--help", "b c"), inspect)
    assert named.classes == ("--help", "b c")


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
def test_however_the_child_dies_the_file_is_refused(model, inspect, content, reason):
    """Refusal, crash, memory, output without end, nonsense, no end: one kind of answer."""
    with pytest.raises(ModelRefusedError, match=reason):
        judge(model(content), (), inspect, time_s=1.0 if content == "spin" else 20.0)


def test_the_child_knows_no_secrets_and_sees_an_empty_directory(model, inspect, monkeypatch):
    """Nothing of the platform's environment, nothing in its directory, which goes afterwards."""
    monkeypatch.setenv("POLYOLO_OPERATOR_KEY", "po_secret")
    with pytest.raises(ModelRefusedError) as caught:
        judge(model("secrets"), (), inspect)
    environment, entries, directory = json.loads(caught.value.detail)
    assert set(environment) <= {"PATH", "LANG", "TMPDIR", "PWD", "PYTHONSAFEPATH", "POLYOLO_PARENT"}
    assert entries == []
    assert not Path(directory).exists()


async def test_a_change_in_another_thread_wakes_a_waiter():
    """Published from a thread, seen on the loop, at once."""
    changes = Changes(5)
    waiting = asyncio.create_task(changes.newer("g", 5, -1, 10))
    await asyncio.sleep(0)
    threading.Thread(target=changes.publish, args=(6,)).start()
    async with asyncio.timeout(2):
        assert await waiting


async def test_waiting_ends_by_time_and_by_close():
    """False after the time, False for everybody on close."""
    changes = Changes(5)
    assert not await changes.newer("g", 5, -1, 0.01)
    waiting = asyncio.create_task(changes.newer("g", 5, -1, 10))
    await asyncio.sleep(0)
    changes.close()
    async with asyncio.timeout(2):
        assert not await waiting


async def test_an_answer_waits_for_the_gateways_that_are_there():
    """A gateway that polls has to come back for more; one that never polled is not waited for."""
    changes = Changes(5)
    assert await changes.at_gateways(99, 0.01)
    polling = asyncio.create_task(changes.newer("g", 5, -1, 10))
    await asyncio.sleep(0)
    changes.publish(6)
    assert await polling
    assert not await changes.at_gateways(6, 0.05)  # has the answer, may not have read it
    waiting = asyncio.create_task(changes.at_gateways(6, 5))
    polling = asyncio.create_task(changes.newer("g", 6, -1, 10))
    async with asyncio.timeout(2):
        assert await waiting
    polling.cancel()


async def test_gateways_are_told_how_many_they_are():
    """One that comes wakes the others, one that goes too, at once; who does not ask is not told."""
    changes = Changes(5)
    first = asyncio.create_task(changes.newer("a", 5, 1, 10))
    careless = asyncio.create_task(changes.newer("", 5, -1, 10))
    await asyncio.sleep(0)
    assert changes.gateways() == 1
    second = asyncio.create_task(changes.newer("b", 5, 2, 10))
    async with asyncio.timeout(2):
        assert await first
    first = asyncio.create_task(changes.newer("a", 5, 2, 10))
    await asyncio.sleep(0)
    assert changes.gateways() == 2
    second.cancel()  # its connection broke
    async with asyncio.timeout(2):
        assert await first
    assert changes.gateways() == 1
    assert not careless.done()
    careless.cancel()
    await asyncio.gather(second, careless, return_exceptions=True)


async def test_gateways_that_come_back_keep_their_shares():
    """After control was killed the first one back is not alone; once it is plain, it is told."""
    changes = Changes(5, back_s=0.2)
    assert await changes.newer("a", -1, 2, 10)
    assert changes.gateways() == 2
    waiting = asyncio.create_task(changes.newer("a", 5, 2, 10))
    await asyncio.sleep(0.05)
    assert not waiting.done()
    async with asyncio.timeout(2):
        assert await waiting  # the other one is gone for good
    assert changes.gateways() == 1
