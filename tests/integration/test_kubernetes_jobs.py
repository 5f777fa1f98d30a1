"""Programs in pods, where things go wrong: no room, faults, strangers, sudden ends."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyolo.drivers.kubernetes.cluster import at
from polyolo.drivers.kubernetes.exchange import Request, hear, met, tell
from polyolo.drivers.kubernetes.job import JOB_NAME, render
from polyolo.drivers.kubernetes.jobs import Jobs, mine
from polyolo.drivers.kubernetes.settings import JobSettings
from polyolo.errors import NotReadyError
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome, memory_file
from polyolo.sandbox.receiver import PORT, proofs
from tests.cluster.apiserver import Asked, Fault
from tests.cluster.clusters import SETTINGS, Clustered, clustered, inhabited, with_namespace
from tests.cluster.node import Node
from tests.unit.test_job import TASK

HOME = SETTINGS.jobs_namespace
ECHO = "import sys; print(open(sys.argv[1]).read())"
SLEEP = f"import time; time.sleep(95)  # {os.getpid()}"


NO_FILTERS = """\
#!{python}
import ctypes, os, platform, struct, sys
column = ("x86_64", "aarch64").index(platform.machine())
step = lambda *one: struct.pack("=HBBI", *one)
program = b"".join([
    step(0x20, 0, 0, 0),  # the call's number
    step(0x15, 0, 3, (157, 167)[column]),  # prctl
    step(0x20, 0, 0, 16),  # its first argument
    step(0x15, 0, 1, 22),  # PR_SET_SECCOMP
    step(0x06, 0, 0, 0x00050001),  # EPERM
    step(0x06, 0, 0, 0x7FFF0000),
])
class Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))
libc = ctypes.CDLL(None)
libc.prctl(38, 1, 0, 0, 0)
assert libc.prctl(22, 2, ctypes.byref(Program(len(program) // 8, program)), 0, 0) == 0
os.execv("{python}", ["{python}", *sys.argv[1:]])
"""
"""A Python in a container whose runtime class refuses filters of system calls."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Clustered, Node]]:
    root = tmp_path_factory.mktemp("node")
    (root / "image").mkdir()
    (root / "image/python3").write_text(NO_FILTERS.format(python=sys.executable))
    (root / "image/python3").chmod(0o755)
    with inhabited(("false",), root, {"no-filters:1": root / "image"}) as made:
        yield made


@pytest.fixture
def cluster(world: tuple[Clustered, Node]) -> Iterator[Clustered]:
    cluster, node = world
    yield cluster
    cluster.server.fault = lambda _: None
    node.held, node.batch.forbidden = lambda _: None, lambda _: False
    until(lambda: not there(cluster, "jobs.batch") and not there(cluster, "pods"))


@pytest.fixture
def node(world: tuple[Clustered, Node]) -> Node:
    return world[1]


@contextmanager
def opened(cluster: Clustered, name: str = "tests", start_s: float = 60.0) -> Iterator[Jobs]:
    """Give the Jobs of a control plane."""
    settings = replace(SETTINGS, jobs=JobSettings(start_s=start_s))
    jobs = Jobs(at(cluster.server.url, answer_s=5.0, selector=mine(name)), settings, name)
    try:
        yield jobs
    finally:
        jobs.close()


def run(
    jobs: Jobs, code: str = ECHO, content: bytes = b"some bytes", image: str = "a:1", **more: Any
) -> Outcome:
    program = jobs.program(image, ("python3", "-I", "-S", "-c", code))
    with memory_file([content]) as file:
        return program(file, Confinement(), **({"time_s": 30.0} | more))


def there(cluster: Clustered, collection: str) -> list[dict[str, Any]]:
    return cluster.server.do(lambda: list(cluster.server.store.of(collection, HOME)))


def until(look: Callable[[], Any], within: float = 20.0) -> Any:
    deadline = time.monotonic() + within
    while not (seen := look()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.02)
    return seen


def sleepers() -> list[int]:
    """Return the processes of programs that sleep."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if SLEEP.encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def once(verb: str, fault: Fault) -> Callable[[Asked], Fault | None]:
    """Return a fault for the first request of a method."""
    seen: list[Asked] = []

    def judge(asked: Asked) -> Fault | None:
        if asked.method != verb or "/jobs" not in asked.path:
            return None
        seen.append(asked)
        return fault if len(seen) == 1 else None

    return judge


FAULTS = {
    "429": Fault(status=429, headers={"retry-after": "0.01"}),
    "broken off": Fault(),
    "500 once done": Fault(status=500, done=True),
}


@pytest.mark.parametrize("verb", ["POST", "DELETE"])
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_a_fault_that_passes_is_not_noticed(cluster: Clustered, verb: str, fault: Fault):
    """Of the API server, at making and at deleting: one Job, one answer, nothing left."""
    cluster.server.fault = once(verb, fault)
    with opened(cluster) as jobs:
        assert run(jobs).output == b"some bytes\n"
        assert there(cluster, "jobs.batch") == []


def test_faults_that_stay_put_it_off(cluster: Clustered):
    """Whoever asks hears that it is not ready, and nothing of the cluster."""
    with opened(cluster) as jobs:
        for fault in (Fault(status=403), Fault(status=500), Fault()):
            cluster.server.fault = lambda asked, fault=fault: (
                fault if "/jobs" in asked.path else None
            )
            with pytest.raises(NotReadyError, match="try again") as caught:
                run(jobs)
            assert "API" not in caught.value.detail
            jobs.sweep()  # nor is it a reason not to start
        cluster.server.fault = lambda _: None
        assert run(jobs).output == b"some bytes\n"


def logged(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(str(vars(record).get("fields")) for record in caplog.records)


def condition(**state: Any) -> dict[str, Any]:
    return {"phase": "Pending", "conditions": [{"type": "PodScheduled", **state}]}


NO_ROOM = "0/3 nodes are available: 3 Insufficient memory"
WAITS = {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff"}}}]}
TROUBLES = {
    "no room": (condition(status="False", message=NO_ROOM), "no node takes it: 0/3 nodes"),
    "no image": (condition(status="True") | WAITS, "its image cannot be pulled"),
}


@pytest.mark.parametrize(("status", "reason"), TROUBLES.values(), ids=TROUBLES)
def test_why_a_pod_does_not_start_is_logged(
    cluster: Clustered, node: Node, caplog: pytest.LogCaptureFixture, status: dict, reason: str
):
    """In words for whoever can do something about it; whoever asked is to come again."""
    node.held = lambda _: status
    with opened(cluster, start_s=3.0) as jobs, pytest.raises(NotReadyError):
        run(jobs)
    assert reason in logged(caplog)


def test_a_quota_that_is_used_up_is_named(
    cluster: Clustered, node: Node, caplog: pytest.LogCaptureFixture
):
    """No pod is made at all."""
    node.batch.forbidden = lambda _: True
    with opened(cluster, start_s=1.0) as jobs, pytest.raises(NotReadyError):
        run(jobs)
    assert "quota" in logged(caplog)


def test_a_pod_that_cannot_confine_runs_nothing(
    cluster: Clustered, caplog: pytest.LogCaptureFixture, tmp_path: Path
):
    """Where its runtime refuses filters of system calls, the program is not even begun."""
    touch = f"open({str(tmp_path / 'touched')!r}, 'w')"
    with opened(cluster) as jobs, pytest.raises(NotReadyError):
        run(jobs, touch, image="no-filters:1")
    assert "cannot confine a program" in logged(caplog)
    assert "Operation not permitted" in logged(caplog)
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_a_tenants_is_in_the_manifest(cluster: Clustered):
    """Neither words nor bytes: what is sent to the API server is the same for everybody."""
    code = "import sys; print(sys.argv[2:])"
    hostile = ['"}}, "hostNetwork": true', "$(id)", "{{ .Values }}"]
    kept: list[str] = []

    def keep(collection: str) -> None:
        store = cluster.server.store
        kept.extend(json.dumps(one) for one in store.of("jobs.batch") + store.of("pods"))

    cluster.server.do(lambda: cluster.server.store.listeners.append(keep))
    try:
        with opened(cluster) as jobs:
            said = run(jobs, code, content=b"secret weights", words=hostile).output
    finally:
        cluster.server.do(lambda: cluster.server.store.listeners.remove(keep))
    assert said.decode().strip() == str(hostile)
    assert kept
    for word in (*hostile, "secret weights", "hostNetwork"):
        assert not any(json.dumps(word)[1:-1] in one for one in kept), word


def test_only_the_jobs_own_pod_is_asked():
    """One that carries its label, but that was not made for it, is none of its pods."""

    def pod(name: str, kind: str) -> dict[str, Any]:
        owner = {"kind": kind, "name": "job-x", "uid": "-"}
        marks = {"labels": {JOB_NAME: "job-x"}, "ownerReferences": [owner]}
        metadata = {"name": name, "namespace": HOME, **marks}
        return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}

    with clustered() as cluster, opened(cluster) as jobs:
        with_namespace(cluster.server, HOME)
        store = cluster.server.store
        for made in (pod("mine", "Job"), pod("theirs", "ReplicaSet")):
            key = ("pods", HOME, made["metadata"]["name"])
            cluster.server.do(lambda key=key, made=made: store.create(key, made, "k"))
        assert [one["metadata"]["name"] for one in jobs._pods("job-x")] == ["mine"]


def test_who_is_not_control_is_let_go():
    """Strangers who come to the receiver's door first get no answer; then control is served."""
    address = f"127.{220 + os.getpid() % 30}.{os.getpid() // 30 % 250}.10"
    made = render(TASK, SETTINGS, JobSettings())["spec"]["template"]["spec"]["containers"][0]
    path = f"{Path(sys.executable).parent}:{os.defpath}"
    pod = subprocess.Popen(
        [sys.executable, *made["command"][1:]], env={"POD_IP": address, "PATH": path}
    )

    def knocked(said: bytes) -> bytes | None:
        """Return what the door answers; None where there is none yet."""
        try:
            door = socket.create_connection((address, PORT), 5.0)
        except ConnectionRefusedError:
            return None
        with door, suppress(OSError):  # it may be gone before all is said
            door.sendall(said)
            door.shutdown(socket.SHUT_WR)
            return door.recv(1)
        return b""

    try:
        until(lambda: knocked(b"") is not None)
        for said in (b"x" * 32, b"GET / HTTP/1.1\r\n\r\n" * 3, proofs(b"other")[1]):
            assert knocked(said) == b""
        code = ("python3", "-I", "-S", "-c", ECHO)
        with memory_file([b"some bytes"]) as file, met(address, TASK.key, 5.0) as line:
            request = Request(
                file=file, size=10, command=code, words=(), confinement=Confinement(),
                time_s=20.0, output_bytes=100, result=None,
            )  # fmt: skip
            tell(line, request, time.monotonic() + 5)
            assert hear(line, request, time.monotonic() + 20).output == b"some bytes\n"
        assert pod.wait(20) == 0
    finally:
        pod.kill()
        pod.wait()


def test_the_end_of_control_is_the_end_of_its_job(cluster: Clustered):
    """Killed, it leaves a Job whose pod ends by itself; the next of its name deletes it, and
    nobody else's."""
    script = """
import sys
from tests.integration.test_kubernetes_jobs import *
client = at(sys.argv[1], answer_s=5.0, selector=mine("killed"))
jobs = Jobs(client, replace(SETTINGS, jobs=JobSettings()), "killed")
run(jobs, sys.stdin.read(), time_s=90.0)
"""
    control = subprocess.Popen(
        [sys.executable, "-c", script, cluster.server.url],
        stdin=subprocess.PIPE,
        cwd=Path(__file__).parents[2],
    )
    assert control.stdin is not None
    with control.stdin as words:
        words.write(SLEEP.encode())
    try:
        until(lambda: sleepers())
    finally:
        control.kill()
        control.wait()
    until(lambda: not sleepers())
    (left,) = there(cluster, "jobs.batch")
    until(lambda: there(cluster, "jobs.batch")[0].get("status", {}).get("conditions"))
    with opened(cluster, "another") as other:
        other.sweep()
        assert [one["metadata"]["uid"] for one in there(cluster, "jobs.batch")] == [
            left["metadata"]["uid"]
        ]
    with opened(cluster, "killed") as again:
        again.sweep()
    assert there(cluster, "jobs.batch") == []


def sleeping(jobs: Jobs, meanwhile: Callable[[], None]) -> Outcome:
    """Do something while a program sleeps; return what became of that."""
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(run, jobs, SLEEP)
        until(lambda: sleepers())
        meanwhile()
        outcome = running.result(60)
    until(lambda: not sleepers())
    return outcome


def test_who_ends_puts_off_what_runs(cluster: Clustered):
    """At once, and its pod goes."""
    with opened(cluster) as jobs:
        with pytest.raises(NotReadyError):
            sleeping(jobs, jobs.close)
        assert there(cluster, "jobs.batch") == []
        with pytest.raises(NotReadyError):
            run(jobs)


def test_a_program_that_ends_its_pod_is_told(cluster: Clustered, node: Node):
    """Killed from within, the receiver says nothing; Kubernetes does."""
    with opened(cluster) as jobs:
        outcome = sleeping(jobs, lambda: os.kill(node.pids(HOME)[0], signal.SIGKILL))
    assert (outcome.ending, outcome.code) == (Ending.SIGNALLED, signal.SIGKILL)


@pytest.mark.parametrize("collection", ["pods", "jobs.batch"])
def test_a_pod_that_is_taken_away_is_no_fault_of_the_file(cluster: Clustered, collection: str):
    """Deleted by somebody, or with its Job: asked again, it is looked into again."""

    def delete() -> None:
        (one,) = there(cluster, collection)
        key = (collection, HOME, one["metadata"]["name"])
        cluster.server.do(lambda: cluster.server.store.delete(key))

    with opened(cluster) as jobs:
        with pytest.raises(NotReadyError):
            sleeping(jobs, delete)
        assert run(jobs).output == b"some bytes\n"
