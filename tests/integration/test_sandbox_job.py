"""Throw-away processes: what they reach, what they may use, and what is told of their end."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest

from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome, memory_file, run_job
from polyolo.sandbox.layers import CGROUPS, NAMESPACES, Isolation, Layer
from polyolo.sandbox.probe import probe


@pytest.fixture(scope="module")
def isolation() -> Iterator[Isolation]:
    found = probe()
    yield found
    if found.groups is not None:
        found.groups.close()


@pytest.fixture
def namespaces(isolation: Isolation) -> Isolation:
    if Layer.MOUNT not in isolation:
        pytest.skip(f"no namespaces here: {isolation.missing[Layer.MOUNT]}")
    return isolation


def test_one_namespace_is_no_reason_to_lose_another(namespaces: Isolation):
    """Where there are mounts of its own, all of the sandbox works, but for what needs root."""
    assert set(namespaces.missing) <= {Layer.ACCOUNT, *CGROUPS}


def python(
    code: str, isolation: Isolation, *words: str, time_s: float = 20,
    passed_fds: Sequence[int] = (),
    output_bytes: int = 1 << 20, **limits,
) -> Outcome:  # fmt: skip
    argv = [sys.executable, "-I", "-S", "-c", code, *words]
    return run_job(
        argv,
        Confinement(**limits),
        isolation,
        time_s=time_s,
        environment={"GIVEN": "yes"},
        passed_fds=passed_fds,
        output_bytes=output_bytes,
    )


LOOK = """
import ctypes, json, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
def tried(what):
    try:
        what()
    except OSError as error:
        return error.strerror
    return "done"
def call(number, *arguments):
    def make():
        if libc.syscall(number, *arguments) < 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return make
print(json.dumps({
    "root": [name for name in sys.argv[3:] if os.path.exists(name)],
    "here": os.listdir("."), "environment": dict(os.environ),
    "processes": [name for name in os.listdir("/proc") if name.isdigit()],
    "interfaces": [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line],
    "host": os.uname().nodename, "users": open("/proc/self/uid_map").read().split(),
    "status": dict(line.strip().split(":\\t") for line in open("/proc/self/status")
                   if line.startswith(("CapEff", "CapPrm", "CapAmb", "NoNewPrivs", "Seccomp:"))),
    "secret": tried(lambda: open(sys.argv[1])), "listed": tried(lambda: os.listdir(sys.argv[2])),
    "passwords": tried(lambda: open("/etc/passwd")),
    "internet": tried(lambda: socket.socket(socket.AF_INET)),
    "netlink": tried(lambda: socket.socket(socket.AF_NETLINK)),
    "unix": tried(lambda: socket.socket(socket.AF_UNIX).close()),
    "unshare": tried(call(272 if os.uname().machine == "x86_64" else 97, 0x10000000)),
    "io_uring": tried(call(425, 4, 0)), "newer": tried(call(9999)),
    "root is": tried(lambda: open("/file", "w")), "usr is": tried(lambda: open("/usr/file", "w")),
    "device": tried(lambda: os.mknod("null", 0o20666, os.makedev(1, 3))),
    "pipe": tried(lambda: os.mkfifo("pipe")), "own": tried(lambda: open("own", "w").close()),
}))
"""


def test_nothing_of_the_machine_is_there(namespaces: Isolation, tmp_path: Path):
    """Files, processes, network, name, capabilities and dangerous calls are out of reach."""
    secret = tmp_path / "secret"
    secret.write_text("secret")
    elsewhere = ("/home", "/var", "/run", "/boot", "/srv", "/opt", "/mnt", "/bin", "/etc/passwd")
    outcome = python(LOOK, namespaces, str(secret), str(tmp_path), *elsewhere)
    assert (outcome.ending, outcome.code) == (Ending.EXITED, 0), outcome.errors
    seen = json.loads(outcome.output)
    assert seen["root"] == []
    assert seen["here"] == []
    seen["environment"].pop("PWD", "")
    assert seen["environment"].pop("LC_CTYPE", "C.UTF-8") == "C.UTF-8"
    assert seen["environment"] == {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "TMPDIR": "/scratch",
        "PYTHONSAFEPATH": "1",
        "GIVEN": "yes",
    }
    assert len(seen["processes"]) == 2  # a reaper and itself
    assert seen["interfaces"] == ["lo"]
    assert seen["host"] == "runtime"
    assert seen["users"][2] == "1"  # knows one user: its own
    assert set(seen["status"].values()) == {"0000000000000000", "1", "2"}
    nowhere = "No such file or directory"
    assert [seen["secret"], seen["listed"], seen["passwords"]] == [nowhere] * 3
    refused = "Operation not permitted"
    assert [seen[name] for name in ("internet", "netlink", "unshare", "io_uring")] == [refused] * 4
    assert seen["newer"] == "Function not implemented"
    assert seen["unix"] == seen["own"] == "done"
    assert {seen["root is"], seen["usr is"]} <= {"Read-only file system", "Permission denied"}
    assert {seen["device"], seen["pipe"]} == {refused, "Permission denied"} or (
        seen["device"] == seen["pipe"] == refused
    )


def test_its_user_is_nobodys(isolation: Isolation):
    """A platform that runs as root starts it as a user that nobody else is, seen from outside."""
    if Layer.ACCOUNT not in isolation:
        pytest.skip(isolation.missing[Layer.ACCOUNT])
    say = "import os; print(os.getresuid(), os.getresgid(), os.getgroups())"
    first, second = (python(say, isolation).output for _ in range(2))
    assert first != second
    assert b"(0," not in first
    assert first.endswith(b"[]\n")


@pytest.mark.parametrize(
    "missing", [(), (*NAMESPACES, Layer.ACCOUNT), tuple(Layer)], ids=["all", "some", "none"]
)
def test_the_end_is_told(isolation: Isolation, missing: tuple[Layer, ...]):
    """Status, signal, time, processor time and too many words: each is told apart."""
    fewer = isolation.without(missing)
    outcome = python("import sys; print('out'); sys.exit('err')", fewer)
    assert (outcome.ending, outcome.code) == (Ending.EXITED, 1)
    assert (outcome.output, outcome.errors) == (b"out\n", b"err\n")
    outcome = python("import os; os.abort()", fewer)
    assert (outcome.ending, outcome.code) == (Ending.SIGNALLED, signal.SIGABRT)
    outcome = python("import time; print('x', flush=True); time.sleep(60)", fewer, time_s=0.5)
    assert (outcome.ending, outcome.output) == (Ending.TIME, b"x\n")
    outcome = python("while True: print('x' * 1000)", fewer, output_bytes=5000)
    assert (outcome.ending, len(outcome.output)) == (Ending.OUTPUT, 5000)
    outcome = python("import sys\nwhile True: sys.stderr.write('x' * 1000)", fewer, time_s=0.5)
    assert (outcome.ending, len(outcome.errors)) == (Ending.TIME, 65536)
    if Layer.RLIMITS in fewer:
        outcome = python("while True: pass", fewer, cpu_s=1)
        assert outcome.ending is Ending.CPU


def test_limits_hold(isolation: Isolation):
    """Memory, file size, descriptors, scratch space and the number of processes end somewhere."""
    code = """
import errno, os, resource
try:
    bytearray(1 << 30)
except MemoryError:
    print("memory")
try:
    with open("big", "wb") as file:
        while True: file.write(bytes(1 << 16))
except OSError as error:
    print("file", errno.errorcode[error.errno], os.stat("big").st_size)
os.unlink("big")
try:
    for number in range(100):
        with open(f"part{number}", "wb") as file: file.write(bytes(1 << 20))
except OSError as error:
    print("scratch", errno.errorcode[error.errno])
try:
    while True: os.open("/dev/null", os.O_RDONLY)
except OSError as error:
    print("files", errno.errorcode[error.errno])
print("core", resource.getrlimit(resource.RLIMIT_CORE))
"""
    outcome = python(
        code,
        isolation,
        address_bytes=512 << 20,
        file_bytes=2 << 20,
        open_files=40,
        scratch_bytes=5 << 20,
    )
    said = outcome.output.decode().splitlines()
    assert said[:2] == ["memory", f"file EFBIG {2 << 20}"], outcome.errors
    assert said[-2:] == ["files EMFILE", "core (0, 0)"]
    if Layer.MOUNT in isolation:
        assert "scratch ENOSPC" in said


def test_too_many_processes(isolation: Isolation):
    """A fork bomb stops at its limit, on its own account."""
    if Layer.USER not in isolation and Layer.ACCOUNT not in isolation:
        pytest.skip("no users of its own")
    code = """
import os, time
for count in range(100):
    try:
        if os.fork() == 0: time.sleep(60)
    except BlockingIOError:
        print(count); break
"""
    outcome = python(code, isolation, processes=10)
    assert outcome.output
    assert int(outcome.output) < 10


def test_memory_of_all_together(isolation: Isolation):
    """The limit on memory counts shared memory and every process; the end says what it was."""
    if Layer.MEMORY not in isolation:
        pytest.skip(isolation.missing[Layer.MEMORY])
    code = """
import mmap, os
area = mmap.mmap(-1, 256 << 20)
for at in range(0, len(area), 4096): area[at] = 1
"""
    outcome = python(code, isolation, memory_bytes=128 << 20)
    assert outcome.ending is Ending.MEMORY
    code = "open('file', 'wb').write(bytes(256 << 20))"
    outcome = python(code, isolation, memory_bytes=128 << 20, scratch_bytes=1 << 30)
    assert outcome.ending is Ending.MEMORY
    outcome = python("print('well')", isolation, memory_bytes=128 << 20)
    assert (outcome.ending, outcome.output) == (Ending.EXITED, b"well\n")


def test_no_group_is_left(isolation: Isolation):
    """Every control group goes with its job."""
    if isolation.groups is None or not set(CGROUPS) - set(isolation.missing):
        pytest.skip("no control groups here")
    made = isolation.groups.make(CGROUPS)
    parents = {path.parent for path in made.mounts}
    assert made.remove()
    python("import os\nfor _ in range(3): os.fork()", isolation)
    assert [list(parent.glob("*/cgroup.procs")) for parent in parents] == [[] for _ in parents]


def test_all_of_it_ends(namespaces: Isolation):
    """What it started ends with it, whatever session it hid in."""
    code = """
import os, sys, time
told, tell = os.pipe()
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.write(tell, b"x")
        time.sleep(96)
    os._exit(0)
print(os.read(told, 1))
"""
    assert python(code, namespaces).output == b"b'x'\n"
    _until(lambda: not [line for line in _processes().values() if "time.sleep(96)" in line])


def test_it_ends_with_its_starter(namespaces: Isolation, tmp_path: Path):
    """When the process that asked is killed, nothing of the job is left."""
    starter = tmp_path / "starter.py"
    starter.write_text(
        "import sys\n"
        "from polyolo.sandbox.probe import probe\n"
        "from polyolo.sandbox.job import run_job\n"
        "from polyolo.sandbox.confinement import Confinement\n"
        "run_job([sys.executable, '-c', 'import time; time.sleep(97)'], Confinement(), probe(),"
        " time_s=60)\n"
    )
    pid = os.spawnv(os.P_NOWAIT, sys.executable, [sys.executable, str(starter)])
    _until(lambda: [line for line in _processes().values() if line.endswith("time.sleep(97)")])
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    _until(lambda: not [line for line in _processes().values() if "time.sleep(97)" in line])


def test_a_file_from_memory(isolation: Isolation):
    """A file is handed in that never touched a disk; the job reads it and cannot change it."""
    code = """
import os, sys
path = f"/proc/self/fd/{sys.argv[1]}"
print(open(path, "rb").read(), open(path, "rb").read(3))
try:
    open(path, "r+b", buffering=0).write(b"other")
except OSError as error:
    print(error.strerror)
"""
    with memory_file([b"some ", b"bytes"]) as descriptor:
        outcome = python(code, isolation, str(descriptor), passed_fds=[descriptor])
        assert os.pread(descriptor, 100, 0) == b"some bytes"
    assert outcome.output.decode().splitlines() == [
        "b'some bytes' b'som'",
        "Operation not permitted",
    ], outcome.errors


def test_what_it_may_write_stays(namespaces: Isolation, tmp_path: Path):
    """A writable directory is there under its own path, what is beside it is not."""
    own, other = tmp_path / "own", tmp_path / "other"
    for place in (own, other):
        place.mkdir(mode=0o777)
        place.chmod(0o777)
    code = f"open('{own}/file', 'w').write('x')\nopen('{other}/file', 'w')"
    outcome = python(code, namespaces, writable=(own,))
    assert b"No such file" in outcome.errors
    assert (own / "file").read_text() == "x"


def test_many_threads(isolation: Isolation):
    """Jobs of several threads do not meet."""
    outcomes: list[Outcome] = []
    threads = [
        threading.Thread(target=lambda n=n: outcomes.append(python(f"print({n})", isolation)))
        for n in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcome.output for outcome in outcomes) == [b"0\n", b"1\n", b"2\n", b"3\n"]


def _processes() -> dict[int, str]:
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if line:
                found[int(entry.name)] = line.strip()
    return found


def _until(look) -> None:
    deadline = time.monotonic() + 10
    while not look():
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
