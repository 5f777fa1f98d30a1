"""A model's process, a real one: what it answers, how it ends, and that nothing of it is left."""

import asyncio
import functools
import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import ExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import uvloop

from polyolo.errors import ModelFailedError, ModelRefusedError
from polyolo.serving.imagecheck import ImageLimits, read_header
from polyolo.serving.params import JSON
from polyolo.serving.process import ModelProcess, start
from polyolo.serving.wire import Job, Opening
from polyolo.types import DetectionSettings, ModelRef
from tests.integration import troubled
from tests.integration.runtime import ended, yolov8

GREY = troubled.picture(white=False)
WHITE = troubled.picture(white=True)


def on_uvloop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Run a test on the event loop that serves."""

    @functools.wraps(test)
    def run(*args: Any, **named: Any) -> None:
        uvloop.run(test(*args, **named))

    return run


def opening(tmp_path: Path, data: bytes, *, digest: str = "") -> Opening:
    file = tmp_path / "model.onnx"
    file.write_bytes(data)
    return Opening(
        ref=ModelRef(name="city", version=1),
        path=str(file),
        digest=digest or hashlib.sha256(data).hexdigest(),
        classes=(),
        family=None,
        streams=2,
    )


def job(picture: bytes) -> Job:
    return Job(
        size=len(picture),
        header=read_header(picture, ImageLimits()),
        settings=DetectionSettings(),
        request_id="r",
        media_type=JSON,
    )


async def ask(process: ModelProcess, stream: int, *pictures: bytes) -> list[str]:
    """Return the error of each picture's answer, empty for a good one."""
    answers, bodies = await process.answer(stream, [job(one) for one in pictures], pictures)
    assert [len(body) for body in bodies] == [answer.size for answer in answers]
    return [answer.error for answer in answers]


def children() -> list[int]:
    """Return this process's children, those that nobody has waited for included."""
    return [
        int(pid)
        for file in Path("/proc/self/task").glob("*/children")
        for pid in file.read_text().split()
    ]


def sockets() -> int:
    """Count this process's open sockets: uvloop keeps a /dev/null or none, as it likes."""
    kinds = []
    for descriptor in os.listdir("/proc/self/fd"):  # noqa: PTH208  # one of them is this listing
        with suppress(OSError):
            kinds.append(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115  # no path
    return sum(kind.startswith("socket:") for kind in kinds)


@asynccontextmanager
async def nothing_left() -> AsyncIterator[None]:
    """Check that the block leaves no child, no descriptor and no task behind."""
    await warm()
    before = sockets(), len(asyncio.all_tasks())
    yield
    await until(lambda: not children())
    await until(lambda: (sockets(), len(asyncio.all_tasks())) == before)


async def warm() -> None:
    """Start one process of any kind: what the event loop keeps from then on is no leak."""
    nothing = asyncio.subprocess.DEVNULL
    await (await asyncio.create_subprocess_exec(sys.executable, "-c", "", stdin=nothing)).wait()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.01)


@on_uvloop
async def test_it_answers_on_every_stream_and_is_gone_when_closed(tmp_path: Path):
    """Batches side by side, each answer whole and in its place."""
    async with nothing_left():
        process = await start(opening(tmp_path, yolov8()))
        assert process.opened.family == "yolov8"
        assert process.pid in children()
        both = await asyncio.gather(ask(process, 0, GREY, WHITE), ask(process, 1, WHITE))
        assert both == [["", ""], [""]]
        large, _ = await process.answer(0, [job(GREY)] * 40, [GREY] * 40)
        assert [answer.count for answer in large] == [2] * 40
        await process.close()


@on_uvloop
async def test_one_bad_picture_of_a_batch_costs_no_other(tmp_path: Path):
    """The graph fails on the whole batch; each is tried alone, and one is to blame."""
    async with nothing_left():
        process = await start(opening(tmp_path, troubled.no_numbers()))
        broken = GREY[:-40]
        errors = await ask(process, 0, GREY, WHITE, broken, GREY)
        assert errors == ["", "model-failed", "undecodable-image", ""]
        await process.close()


@pytest.mark.parametrize(
    ("data", "digest", "reason"),
    [
        (b"no model", "", "not an ONNX model"),
        (yolov8(), "0" * 64, "sha256"),
        (troubled.no_numbers()[:-50], "", "not an ONNX model"),
    ],
)
@on_uvloop
async def test_what_cannot_be_opened_is_refused(
    tmp_path: Path, data: bytes, digest: str, reason: str
):
    """The process's own words arrive, and the process is gone."""
    async with nothing_left():
        with pytest.raises(ModelRefusedError, match=reason):
            await start(opening(tmp_path, data, digest=digest))


@on_uvloop
async def test_a_model_that_hangs_while_it_opens_is_refused(tmp_path: Path):
    """It fails on the test picture by never ending; the process is ended."""
    async with nothing_left():
        with pytest.raises(ModelRefusedError, match=r"took longer than 1\.5 s"):
            await start(opening(tmp_path, troubled.hangs(above=0)), within_s=1.5)


@pytest.mark.parametrize("how", [signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT])
@on_uvloop
async def test_a_process_that_ends_while_it_opens_says_how(tmp_path: Path, how: signal.Signals):
    """The refusal names the signal."""
    async with nothing_left():
        opened = asyncio.create_task(start(opening(tmp_path, troubled.hangs(above=0))))
        await until(children)
        await asyncio.sleep(0.1)
        os.kill(children()[0], how)
        with pytest.raises(ModelRefusedError, match=how.name):
            await opened


@on_uvloop
async def test_a_process_that_ends_fails_the_batches_that_it_had(tmp_path: Path):
    """Both streams learn of it and of how; so does whoever asks it later."""
    async with nothing_left():
        process = await start(opening(tmp_path, troubled.hangs()))
        both = [asyncio.create_task(ask(process, stream, WHITE)) for stream in (0, 1)]
        await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGSEGV)
        for one in both:
            with pytest.raises(ModelFailedError, match="SIGSEGV"):
                await one
        with pytest.raises(ModelFailedError, match="SIGSEGV"):
            await ask(process, 0, GREY)
        assert await process.ended() == "it was ended by signal SIGSEGV"


@pytest.mark.parametrize("after_s", [0, 0.001, 0.005, 0.02, 0.1, 0.3])
@on_uvloop
async def test_a_start_that_is_given_up_leaves_nothing(tmp_path: Path, after_s: float):
    """Wherever it is interrupted: no child, no zombie, no descriptor, no task."""
    async with nothing_left():
        opened = asyncio.create_task(start(opening(tmp_path, troubled.hangs(above=0))))
        await asyncio.sleep(after_s)
        opened.cancel()
        with pytest.raises(asyncio.CancelledError):
            await opened


@pytest.mark.parametrize("free", [0, 1, 3])
@on_uvloop
async def test_a_start_for_which_there_are_no_descriptors_leaves_nothing(tmp_path: Path, free: int):
    """A process at its limit: OSError, what was opened is closed, and the next start works."""
    wanted = opening(tmp_path, yolov8())
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with nothing_left():
        with ExitStack() as held:
            held.callback(resource.setrlimit, resource.RLIMIT_NOFILE, (soft, hard))
            resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
            filling = []
            with suppress(OSError):
                while True:
                    filling.append(held.enter_context(Path("/dev/null").open()))  # noqa: ASYNC230
            for file in filling[len(filling) - free :]:
                file.close()
            try:
                await start(wanted)
                refused = ""
            except OSError as error:
                refused = str(error)
        assert "Too many open files" in refused
        await (await start(wanted)).close()


@pytest.mark.parametrize("after_s", [0.0, 0.05, 0.2, 1.0])
def test_no_process_outlives_its_runtime(tmp_path: Path, after_s: float):
    """Killed at any time, even while a model is opening, the parent takes its children along."""
    file = tmp_path / "model.onnx"
    file.write_bytes(troubled.hangs(above=0))
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(file)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        time.sleep(after_s)
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()
    deadline = time.monotonic() + 10
    while not ended(child):
        assert time.monotonic() < deadline, "it lives on"
        time.sleep(0.01)


PARENT = """
import asyncio, hashlib, sys
from pathlib import Path

import uvloop

from polyolo.serving.process import start
from polyolo.serving.wire import Opening
from polyolo.types import ModelRef

async def main():
    path = Path(sys.argv[1])
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    opening = Opening(
        ref=ModelRef(name="a", version=1), path=str(path), digest=digest, classes=(), family=None,
        streams=2,
    )
    asyncio.ensure_future(start(opening))
    while True:
        for file in Path("/proc/self/task").glob("*/children"):
            if pids := file.read_text().split():
                print(pids[0], flush=True)
                await asyncio.sleep(60)
        await asyncio.sleep(0)

uvloop.run(main())
"""
