""".pt files that run programs while they are read: nothing is touched, converter or not.

What they do is seen by canaries: files, sockets, processes. See `pickle_gadgets`.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from polyolo.control import conversion
from polyolo.control.conversion import Converter, converted
from polyolo.control.intake import CheckpointError, judge
from polyolo.control.memfile import gathered
from polyolo.errors import ModelRefusedError
from polyolo.sandbox.layers import Isolation, Layer
from polyolo.sandbox.probe import probe
from polyolo.sandbox.programs import Local
from polyolo.serving.inspect import describe
from polyolo.serving.torchfile import is_checkpoint
from tests.integration.control_plane import serving
from tests.integration.test_control_real_runtime import real
from tests.unit import hostile_graphs
from tests.unit.pickle_gadgets import Call, Canaries, floods, gadgets

PROGRAM = Path(__file__).parents[1] / "contract" / "small_converter.py"
COMMAND = f"{sys.executable} {PROGRAM}"
LIMIT = 4 << 20
SECRET = "po_canary_of_the_platform"


class Cage:
    """The canaries, and whether they still sing."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory / "canaries"
        self.directory.mkdir()
        self.old = self.directory / "old"
        self.old.write_text("old")
        self.tcp = socket.create_server(("127.0.0.1", 0))
        self.udp = socket.socket(type=socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.unix, self.abstract = (socket.socket(socket.AF_UNIX) for _ in range(2))
        self.unix.bind(str(directory / "unix.sock"))
        self.abstract.bind(f"\0canary-{os.getpid()}")
        for listener in (self.unix, self.abstract):
            listener.listen()
        self.sockets = (self.tcp, self.udp, self.unix, self.abstract)
        self.canaries = Canaries(
            directory=str(self.directory),
            tcp=self.tcp.getsockname()[1],
            udp=self.udp.getsockname()[1],
            unix=str(directory / "unix.sock"),
            abstract=f"\0canary-{os.getpid()}",
            pid=os.getpid(),
            marker=f"canary{os.getpid()}",
        )

    def touched(self) -> list[str]:
        """Return what is not as it was."""
        found = [] if [e.name for e in self.directory.iterdir()] == ["old"] else ["directory"]
        found += [] if self.old.read_text() == "old" and self.old.stat().st_nlink == 1 else ["file"]
        ready, _, _ = select.select(self.sockets, [], [], 0)
        found += [f"socket {one.getsockname()!r}" for one in ready]
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if self.canaries.marker.encode() in (entry / "cmdline").read_bytes():
                    found.append(f"process {entry.name}")
        return found


@pytest.fixture
def cage(tmp_path: Path) -> Iterator[Cage]:
    cage = Cage(tmp_path)
    yield cage
    for one in cage.sockets:
        one.close()


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    given = probe()
    if conversion.here(COMMAND, given).program is None:
        pytest.skip(f"this host cannot isolate conversions: {dict(given.missing)}")
    return given


@pytest.fixture
def converter(isolation: Isolation) -> Converter:
    return replace(conversion.here(COMMAND, isolation), time_s=30.0)


def refusal(content: bytes, converter: Converter) -> str:
    """Return why a pickle does not become a model."""
    with gathered([content]) as file:
        try:
            with converted(file, converter, LIMIT) as onnx:
                said = b"".join(onnx.pieces())
                assert SECRET.encode() not in said
                describe(said, ())
        except ModelRefusedError as error:
            return error.detail
    pytest.fail("it has become a model")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # their sockets
def test_the_canaries_are_alive(cage: Cage):
    """Read without a sandbox, gadgets of each kind are seen: the test below is no sham."""
    made = gadgets(cage.canaries)
    for name, kind in (("os.system", "directory"), ("os.truncate", "file"), ("udp", "socket")):
        pickle.loads(made[name])
        assert any(kind in one for one in cage.touched()), name
    connected = pickle.loads(made["socket"])
    connected.close()
    assert len([one for one in cage.touched() if "socket" in one]) == 2


def test_without_a_converter_no_pickle_is_read(cage: Cage):
    """Refused by what they are, by the process that looks into files; nothing runs."""
    made = gadgets(cage.canaries) | floods()
    assert len(made) >= 50
    for name, content in made.items():
        assert is_checkpoint(content), name
        with pytest.raises(ModelRefusedError, match="pickle"):
            describe(content, ())
    assert cage.touched() == []


def test_gadgets_in_the_converter_touch_nothing(
    cage: Cage, converter: Converter, monkeypatch: pytest.MonkeyPatch
):
    """Each of them is read, and runs, where there is nothing to reach; each is refused."""
    monkeypatch.setenv("POLYOLO_OPERATOR_KEY", SECRET)
    made = gadgets(cage.canaries)
    with ThreadPoolExecutor(4) as pool:
        reasons = dict(
            zip(
                made,
                pool.map(lambda content: refusal(content, converter), made.values()),
                strict=True,
            )
        )
    assert cage.touched() == []
    for name, reason in reasons.items():
        assert "could not be converted" in reason or "not an ONNX" in reason, name
    assert "\x1b" not in reasons["a forged refusal"]
    assert SECRET not in str(reasons)


def test_gadgets_that_take_all_there_is(cage: Cage, converter: Converter):
    """Time, processes, space, output: bounded, and over within seconds."""
    hasty = replace(converter, time_s=2.0)
    with ThreadPoolExecutor(4) as pool:
        reasons = list(pool.map(lambda content: refusal(content, hasty), floods().values()))
    assert all("could not be converted" in reason for reason in reasons), reasons
    assert cage.touched() == []


def test_where_the_host_cannot_lock_it_in_nothing_is_read(cage: Cage, isolation: Isolation):
    """One layer less: refused with the layer's name, before anything is started."""
    content = gadgets(cage.canaries)["os.system"]
    for layer in conversion.NEEDED:
        fewer = conversion.here(COMMAND, isolation.without([layer]))
        assert layer.value in refusal(content, fewer)
    neither = conversion.here(COMMAND, isolation.without([Layer.USER, Layer.ACCOUNT]))
    assert Layer.USER.value in refusal(content, neither)
    assert "--converter" in refusal(content, conversion.here("", isolation))
    assert cage.touched() == []


async def test_a_pt_file_becomes_a_version(tmp_path: Path, isolation: Isolation):
    """Converted and judged like any other; without a converter, how to export it is told."""
    assert isolation is not None
    model = hostile_graphs.good().SerializeToString()
    pushes = [pickle.dumps(model), pickle.dumps(Call(os.system, "true")), pickle.dumps(b"\x08junk")]
    path = "/tenants/me/models/mine/versions"
    async with serving(replace(real(tmp_path / "home"), converter=COMMAND)) as api:
        _, key = await api.tenant("acme")
        answers = [await api.ask("POST", path, key, content=content) for content in pushes]
        assert [answer.status_code for answer in answers] == [201, 422, 422]
        made = answers[0].json()
        assert (made["family"], made["size"]) == ("yolov8", len(model))
        assert "could not be converted" in answers[1].json()["detail"]
        assert "not an ONNX model" in answers[2].json()["detail"]
        names = [
            name for name, *_ in api.control.plane.store.everything() if "platform" not in name
        ]
        assert [name.rpartition("/")[2] for name in names] == [made["digest"]]  # and no pickle
    async with serving(real(tmp_path / "home")) as api:
        answer = await api.ask("POST", path, key, content=pushes[0])
        assert answer.status_code == 422
        for said in ("yolo export", "--converter", "program"):
            assert said in answer.json()["detail"]


def test_a_checkpoint_is_told_from_other_archives(isolation: Isolation):
    """By its table of contents: it is not an ONNX in a zip, nor a TorchScript archive."""
    command = (sys.executable, "-m", "polyolo.serving", "inspect")
    inspect = Local(command=command, isolation=isolation)
    with (
        gathered([hostile_graphs.zipped("archive/data.pkl")]) as file,
        pytest.raises(CheckpointError),
    ):
        judge(file, (), inspect)
    assert not is_checkpoint(hostile_graphs.zipped())
    assert not is_checkpoint(hostile_graphs.zipped("m/data.pkl", "m/constants.pkl", "m/code/m.py"))
