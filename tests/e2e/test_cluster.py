"""What only a real cluster shows: real pods, their scaling, and that policies refuse.

`make e2e-cluster`; see tests/e2e/cluster.py for what it needs. Times are printed, not judged.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from polyolo.drivers.kubernetes.job import Task, render
from polyolo.drivers.kubernetes.naming import HTTP, OBJECT
from polyolo.drivers.kubernetes.settings import ClusterSettings, JobSettings
from polyolo.errors import PolyoloError
from polyolo.models import bundled
from polyolo.resources import Tenant
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.receiver import PORT
from polyolo.types import Phase
from tests.e2e.cluster import PLATFORM, ClusterPlatform, found, kubectl, listed
from tests.e2e.platform import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_STRANGER = f"{PLATFORM}-stranger"


@pytest.fixture(scope="module")
def platform(cluster_platform: ClusterPlatform) -> ClusterPlatform:
    return cluster_platform


def reaches(namespace: str, pod: str, host: str, port: int) -> bool:
    """Say whether a pod can open a connection."""
    asked = f"import socket; socket.create_connection(({host!r}, {port}), 2); print('connected')"
    said = kubectl("-n", namespace, "exec", pod, "--", "python3", "-c", asked, check=False)
    return "connected" in said


def asleep(platform: ClusterPlatform, tenant: Tenant) -> None:
    """Have a tenant's runtime sleep, and wait until no pod is left."""
    with platform.operator() as operator:
        operator.change_limits(tenant.id, {"idle_s": 3.0})

        def none() -> bool:
            status = operator.get_runtime(tenant.id)
            pods = listed("-n", platform.namespace(tenant), "pods")
            return status.phase is Phase.ASLEEP and not pods

        eventually(none, within=120, what="its last pod goes")


def test_a_new_tenant_is_served(platform, board, told):
    """From `tenants create` to the first boxes, on pods that were not there."""
    started = time.monotonic()
    _, client = platform.tenant("first")
    with client:
        answer = client.detect(board)
    told("tenants create to first detection", time.monotonic() - started)
    assert answer.detections


def test_a_sleeping_one_is_woken_by_the_request_that_is_held(platform, board, told):
    """No pod, one request, one answer; several times, since the first may warm caches."""
    tenant, client = platform.tenant("sleeper")
    with client:
        client.detect(board)
        for turn in range(3):
            asleep(platform, tenant)
            started = time.monotonic()
            assert client.detect(board).detections
            told(f"from zero pods to the held request's answer, {turn + 1}",
                 time.monotonic() - started)  # fmt: skip


def test_a_model_is_swapped_and_settings_are_in_force_at_once(platform, board, told):
    """Pushed, used, rolled back; the pod stays the one it was."""
    tenant, client = platform.tenant("swapper")
    with client:
        client.push_model("city", bundled("pcb", 1))
        assert client.detect(board).model.version == 1
        (pod,) = platform.pods(tenant)
        started = time.monotonic()
        client.push_model("city", bundled("pcb", 2))
        client.use_model("city", 2)
        assert client.detect(board).model.version == 2
        told("push, use and first answer of another version", time.monotonic() - started)
        started = time.monotonic()
        client.change_settings("city", max_detections=1)
        eventually(lambda: len(client.detect(board).detections) == 1, within=30, what="settings")
        told("a change of settings in force", time.monotonic() - started)
        assert [one["metadata"]["name"] for one in platform.pods(tenant)] == [
            pod["metadata"]["name"]
        ]


def test_lasting_load_brings_another_pod(platform, board, told):
    """With KEDA or an HPA it is theirs to say; without, control's."""
    tenant, client = platform.tenant("busy")
    with platform.operator() as operator:
        operator.change_limits(tenant.id, {"max_replicas": 2, "idle_s": 600.0})
    over = threading.Event()

    def ask() -> None:
        while not over.is_set():
            client.detect(board)

    with client, ThreadPoolExecutor(8) as pool:
        client.detect(board)
        started = time.monotonic()
        asking = [pool.submit(ask) for _ in range(8)]
        try:
            eventually(lambda: len(platform.pods(tenant)) == 2, within=180, what="a second pod")
            told("from load to a second ready pod", time.monotonic() - started)
        finally:
            over.set()
        for one in asking:
            one.result()  # none was refused


@contextmanager
def listening(address: str) -> Iterator[int]:
    """Listen on this machine for whoever may connect; yield the port."""
    server = ThreadingHTTPServer((address, 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def stranger(image: str) -> Iterator[str]:
    """Run a pod of somebody else's, in a namespace without policies; yield its name."""
    home = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _STRANGER}}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "stranger", "namespace": _STRANGER},
        "spec": {
            "containers": [
                {
                    "name": "stranger",
                    "image": image,
                    "command": ["python3", "-c", "import time; time.sleep(3600)"],
                }
            ],
            "terminationGracePeriodSeconds": 0,
        },
    }
    both = {"apiVersion": "v1", "kind": "List", "items": [home, pod]}
    kubectl("apply", "-f", "-", given=both)
    try:
        kubectl("-n", _STRANGER, "wait", "--for=condition=Ready", "pod/stranger", "--timeout=60s")
        yield "stranger"
    finally:
        kubectl("delete", "namespace", _STRANGER, "--wait")


def test_policies_refuse_and_nothing_else_does(platform, board):
    """From inside a pod only its model files are reached; with the policies gone, all of it is.

    The second half is what makes the first one say something. When control is back, so are they.
    """
    (one, asking), (other, asked) = platform.tenant("inside"), platform.tenant("neighbour")
    homes = [platform.namespace(tenant) for tenant in (one, other)]
    with asking, asked:
        asking.detect(board), asked.detect(board)
    (mine,), (theirs,) = platform.pods(one), platform.pods(other)
    name, image = mine["metadata"]["name"], mine["spec"]["containers"][0]["image"]
    neighbour = theirs["status"]["podIP"]
    api = found("-n", "default", "service", "kubernetes")["spec"]
    control = {part: platform.service(f"{PLATFORM}-control-{part}") for part in ("api", "models")}
    with listening(platform.address) as port, stranger(image) as outsider:
        outward = [
            (neighbour, HTTP),
            (api["clusterIP"], api["ports"][0]["port"]),
            (platform.address, port),
        ]
        assert reaches(homes[0], name, control["models"], 8711)
        refused = [*outward, (control["api"], 8710), ("169.254.169.254", 80)]
        assert [way for way in refused if reaches(homes[0], name, *way)] == []
        assert not reaches(_STRANGER, outsider, neighbour, HTTP)
        kubectl("-n", PLATFORM, "scale", f"deployment/{PLATFORM}-control", "--replicas=0")
        kubectl("-n", PLATFORM, "wait", "--for=delete", "pod", "-l",
                "app.kubernetes.io/component=control", "--timeout=90s")  # fmt: skip
        try:
            for home in homes:
                kubectl("-n", home, "delete", "networkpolicies", "--all")
            for way in outward:
                eventually(lambda: reaches(homes[0], name, *way), within=30,  # noqa: B023
                           what=f"{way} without a policy")  # fmt: skip
            eventually(lambda: reaches(_STRANGER, outsider, neighbour, HTTP), within=30,
                       what="the neighbour without a policy")  # fmt: skip
        finally:
            kubectl("-n", PLATFORM, "scale", f"deployment/{PLATFORM}-control", "--replicas=2")
            platform.rolled_out("control")
        eventually(lambda: not any(reaches(homes[0], name, *way) for way in outward), within=60,
                   what="control puts the policies back")  # fmt: skip
        eventually(lambda: not reaches(_STRANGER, outsider, neighbour, HTTP), within=30,
                   what="nobody comes in again")  # fmt: skip


def held(image: str) -> dict[str, Any]:
    """Return a pod like one of a Job's, which only waits."""
    known = ClusterSettings(image=image, artifacts="http://127.0.0.1/", platform=PLATFORM)
    task = Task(
        name="held",
        by="nobody",
        image=image,
        key="00",
        user=100_000_007,
        size=0,
        time_s=60.0,
        confinement=Confinement(memory_bytes=256 << 20, cpus=1.0),
    )
    template = render(task, known, JobSettings())["spec"]["template"]
    template["spec"]["containers"][0]["command"] = ["python3", "-c", _LISTEN]
    metadata = {"name": "held", "namespace": known.jobs_namespace, **template["metadata"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


_LISTEN = f"""
import os, socket
with socket.create_server((os.environ["POD_IP"], {PORT})) as listener:
    while True: listener.accept()[0].close()
"""


def test_a_file_is_opened_in_a_pod_that_goes(platform, told):
    """An upload takes a Job, a wrong file too; nothing of them is left."""
    home = f"{PLATFORM}-jobs"
    seen: set[str] = set()
    over = threading.Event()

    def look() -> None:
        while not over.is_set():
            seen.update(one["metadata"]["name"] for one in listed("-n", home, "pods"))

    _, client = platform.tenant("uploader")
    with client, ThreadPoolExecutor(1) as pool:
        looking = pool.submit(look)
        try:
            started = time.monotonic()
            client.push_model("city", bundled("pcb", 1))
            told("push, looked into in a pod", time.monotonic() - started)
            with pytest.raises(PolyoloError, match=r"."):
                client.push_model("city", Path(__file__))
        finally:
            over.set()
        looking.result()
    assert seen
    eventually(lambda: not listed("-n", home, "pods"), within=60, what="the last pod goes")
    assert listed("-n", home, "jobs") == []


def test_a_jobs_pod_reaches_nothing(platform, board):
    """Not the API server, not the platform, no tenant, no name, not the node, and only control
    comes in; with the policies gone, all of that is possible."""
    home = f"{PLATFORM}-jobs"
    tenant, client = platform.tenant("bystander")
    with client:
        client.detect(board)
    (theirs,) = platform.pods(tenant)
    image = theirs["spec"]["containers"][0]["image"]
    (control, *_) = listed(
        "-n", PLATFORM, "pods", "-l", "app.kubernetes.io/component=control",
        "--field-selector=status.phase=Running",
    )  # fmt: skip
    api = found("-n", "default", "service", "kubernetes")["spec"]
    policies = listed("-n", home, "networkpolicies")
    assert len(policies) == 2
    with listening(platform.address) as port, stranger(image) as outsider:
        kubectl("apply", "-f", "-", given=held(image))
        try:
            kubectl("-n", home, "wait", "--for=condition=Ready", "pod/held", "--timeout=60s")
            inside = found("-n", home, "pod", "held")["status"]["podIP"]
            ways = [
                (api["clusterIP"], api["ports"][0]["port"]),
                (platform.service(f"{PLATFORM}-control-models"), 8711),
                (platform.address, port),
            ]
            closed = [*ways, (theirs["status"]["podIP"], HTTP), ("169.254.169.254", 80)]
            assert [way for way in closed if reaches(home, "held", *way)] == []
            assert not reaches(_STRANGER, outsider, inside, PORT)
            name = control["metadata"]["name"]
            eventually(lambda: reaches(PLATFORM, name, inside, PORT), within=30, what="control")
            kubectl("-n", home, "delete", "networkpolicies", "--all")
            for way in (ways[0], ways[2]):
                eventually(lambda: reaches(home, "held", *way), within=30,  # noqa: B023
                           what=f"{way} without a policy")  # fmt: skip
            eventually(lambda: reaches(_STRANGER, outsider, inside, PORT), within=30,
                       what="the pod without a policy")  # fmt: skip
        finally:
            for one in policies:
                one["metadata"] = {
                    name: one["metadata"][name] for name in ("name", "namespace", "labels")
                }
            kubectl(
                "apply", "-f", "-", given={"apiVersion": "v1", "kind": "List", "items": policies}
            )
            kubectl("-n", home, "delete", "pod", "held", "--ignore-not-found", "--wait")


def test_changes_by_hand_are_put_right(platform, board):
    """A Deployment that is deleted comes back, and the tenant is served."""
    tenant, client = platform.tenant("meddled")
    home = platform.namespace(tenant)
    with client:
        client.detect(board)
        kubectl("-n", home, "delete", "deployment", OBJECT)
        kubectl("-n", home, "delete", "resourcequota", OBJECT)
        eventually(lambda: _served(client, board), within=60, what="it is served again")
        eventually(lambda: found("-n", home, "resourcequota", OBJECT), within=30, what="its quota")


def test_nothing_is_left_of_a_tenant(platform, board, told):
    """Deleted, its namespace goes, and with it everything."""
    tenant, client = platform.tenant("leaving")
    home = platform.namespace(tenant)
    with client:
        client.detect(board)
    started = time.monotonic()
    with platform.operator() as operator:
        operator.delete_tenant(tenant.id)
    eventually(lambda: home not in platform.left(), within=120, what="its namespace goes")
    told("tenants delete until nothing is left", time.monotonic() - started)
    volumes = listed("persistentvolumes")
    assert [
        one for one in volumes if one["spec"].get("claimRef", {}).get("namespace") == home
    ] == []


def _served(client, board) -> bool:
    try:
        return bool(client.detect(board).detections)
    except PolyoloError:
        return False
