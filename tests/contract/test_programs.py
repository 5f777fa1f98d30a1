"""What is asked of a Program, wherever it runs: here, or in a pod of an emulated cluster."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from polyolo.drivers.kubernetes.cluster import at
from polyolo.drivers.kubernetes.jobs import Jobs, mine
from polyolo.drivers.kubernetes.settings import JobSettings
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome, memory_file
from polyolo.sandbox.probe import probe
from polyolo.sandbox.programs import Local, Program
from tests.cluster.clusters import SETTINGS, inhabited

BARE = ("-I", "-S", "-c")
Make = Callable[[str], Program]


@pytest.fixture(scope="module", params=["local", "pod"])
def make(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Make]:
    """Give what makes a Program of a piece of Python."""
    if request.param == "local":
        isolation = probe()
        yield lambda code: Local(command=(sys.executable, *BARE, code), isolation=isolation)
        if isolation.groups is not None:
            isolation.groups.close()
        return
    settings = replace(SETTINGS, jobs=JobSettings(start_s=60.0))
    with inhabited(("false",), tmp_path_factory.mktemp("node")) as (cluster, _):
        client = at(cluster.server.url, answer_s=5.0, selector=mine("tests"))
        jobs = Jobs(client, settings, "tests")
        yield lambda code: jobs.program("serving:1", ("python3", *BARE, code))
        jobs.close()
        left = cluster.server.do(
            lambda: [key for key in cluster.server.store.objects if key[0] == "jobs.batch"]
        )
        assert left == []


def run(
    make: Make, code: str, *words: str, content: bytes = b"some bytes", time_s: float = 20.0,
    result: int | None = None, output_bytes: int = 1 << 20, **limits,
) -> Outcome:  # fmt: skip
    with memory_file([content]) as file:
        return make(code)(
            file,
            Confinement(**limits),
            time_s=time_s,
            words=words,
            result=result,
            output_bytes=output_bytes,
        )


HOSTILE = ("--help", "$(reboot)", "a b\n", "{{x}}", "'\"\\", "\u202e\U0001f600", "")


def test_it_reads_the_file_and_its_words(make: Make):
    """The path comes first, the words behind it as they are, whatever is in them."""
    code = """
import json, sys
with open(sys.argv[1], "rb") as file: said = file.read()
print(json.dumps([len(said), said[-3:].hex(), sys.argv[2:]]))
sys.exit(sys.stderr.write("complaint") and 3)
"""
    outcome = run(make, code, *HOSTILE, content=bytes(3 << 20) + b"end")
    assert (outcome.ending, outcome.code, outcome.errors) == (Ending.EXITED, 3, b"complaint")
    assert json.loads(outcome.output) == [(3 << 20) + 3, b"end".hex(), list(HOSTILE)]


ENDS: list[tuple[str, Ending, dict[str, object]]] = [
    ("import os; os.abort()", Ending.SIGNALLED, {}),
    ("import time; time.sleep(60)", Ending.TIME, {"time_s": 0.5}),
    ("while True: pass", Ending.CPU, {"cpu_s": 1}),
    ("while True: print('x' * 1000)", Ending.OUTPUT, {"output_bytes": 5000}),
]


@pytest.mark.parametrize(("code", "ending", "more"), ENDS, ids=[one[1].value for one in ENDS])
def test_the_end_is_told(make: Make, code: str, ending: Ending, more: dict):
    """Crash, time, processor time, too many words: each is told apart."""
    outcome = run(make, code, **more)
    assert outcome.ending is ending, outcome.errors
    assert outcome.code == (signal.SIGABRT if ending is Ending.SIGNALLED else 0)
    assert len(outcome.output) == (5000 if ending is Ending.OUTPUT else 0)


def test_memory_ends(make: Make):
    """No more than it was given: it is told so, or ended."""
    code = """
try: b"x" * (1 << 30)
except MemoryError: print("no more")
"""
    assert run(make, code, address_bytes=512 << 20).output == b"no more\n"
    outcome = run(make, code, memory_bytes=256 << 20)
    assert outcome.ending is Ending.MEMORY or outcome.output == b"no more\n"


@pytest.fixture
def result() -> Iterator[int]:
    descriptor = os.memfd_create("result")
    yield descriptor
    os.close(descriptor)


WRITE = """
import sys
with open(sys.argv[2], "r+b", buffering=0) as file:
    for _ in range(int(sys.argv[3])): file.write(b"x" * 1000)
"""


def test_what_it_writes_comes_back(make: Make, result: int):
    """A file beside its words, of more than one piece."""
    outcome = run(make, WRITE, "3000", result=result, file_bytes=4 << 20)
    assert (outcome.ending, outcome.code) == (Ending.EXITED, 0), outcome.errors
    assert os.pread(result, 4 << 20, 0) == b"x" * 3_000_000


def test_it_writes_no_more_than_it_may(make: Make, result: int):
    """It fails, or is ended, and no more than that comes back."""
    outcome = run(make, WRITE, "3000", result=result, file_bytes=1 << 20)
    assert (outcome.ending, outcome.code) != (Ending.EXITED, 0)
    assert os.fstat(result).st_size <= 1 << 20


LOOK = """
import json, os, socket, sys
def tried(what):
    try: what()
    except OSError as error: return error.strerror
    return "done"
address = os.environ.get("POD_IP", "127.0.0.1")
print(json.dumps({
    "environment": sorted(os.environ), "here": os.listdir("."),
    "changed": tried(lambda: open(sys.argv[1], "r+b", buffering=0).write(b"x")),
    "internet": tried(lambda: socket.socket(socket.AF_INET)),
    "abroad": tried(lambda: socket.socket(socket.AF_INET6)),
    "outside": tried(lambda: os.listdir(sys.argv[2])),
    "written": tried(lambda: open(sys.argv[2] + "/file", "w")),
    "parent": tried(lambda: os.kill(os.getppid(), 0)) if os.getppid() > 1 else "Operation",
}))
"""


def test_nothing_of_anybody_elses_is_there(make: Make, tmp_path: Path):
    """No variables, files, network or other processes; its own file is sealed."""
    seen = json.loads(run(make, LOOK, str(tmp_path)).output)
    assert set(seen.pop("environment")) <= {"PATH", "LANG", "LC_CTYPE", "TMPDIR", "PWD", "PYTHONSAFEPATH"}  # noqa: E501  # fmt: skip
    assert seen.pop("here") == []
    assert seen.pop("outside") in ("No such file or directory", "Permission denied")
    assert seen.pop("parent") is not None
    assert "done" not in seen.values(), seen


def test_many_at_once(make: Make):
    """Each gets its own answer."""
    from concurrent.futures import ThreadPoolExecutor

    def one(number: int) -> bytes:
        code = "import sys; print(open(sys.argv[1]).read(), sys.argv[2])"
        return run(make, code, str(number), content=f"file {number}".encode()).output

    with ThreadPoolExecutor(3) as pool:
        said: Sequence[bytes] = list(pool.map(one, range(3)))
    assert said == [f"file {number} {number}\n".encode() for number in range(3)]
