"""Controllers and a kubelet for the emulated cluster: pods are real processes on 127.0.0.0/8.

A Deployment gets pods, and so does a Job (see batch); a pod gets an address, its ConfigMap as
files, its Secret as variables, and a process. One with a probe is ready when /readyz says so. A
process that ends waits in CrashLoopBackOff, unless it is to run only once.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from tests.cluster.apiserver import ApiServer
from tests.cluster.batch import Batch
from tests.cluster.store import Key, Object

BACKOFF_S = 10.0
"""After which a container that ended is started again; the kubelet's first back-off."""
HURRY = 10
"""Pods' time to end passes so much faster here."""
_LOOK_S = 0.02
_PROBE_S = 0.05


@dataclass
class Running:
    """One pod's process."""

    address: str
    directory: Path
    process: subprocess.Popen[bytes] | None = None
    ended_at: float = 0.0
    stop_by: float = 0.0
    probed_at: float = 0.0
    restarts: int = 0
    started: bool = False
    mounted: dict[str, str] = field(default_factory=dict)


class Node:
    """Runs the pods of one API server.

    command: starts a container that names none, its arguments are added. images: of those that do,
    where their programs lie; the tests' own Python for others.
    """

    def __init__(
        self,
        server: ApiServer,
        command: Sequence[str],
        root: Path,
        images: Mapping[str, Path] | None = None,
    ) -> None:
        self._server = server
        self._store = server.store
        self._images = images or {}
        self.batch = Batch(server)
        self.held: Callable[[Object], Object | None] = lambda _: None
        """Returns the status of a pod that is not to start; None for one that is."""
        self._command = tuple(command)
        self._root = root
        self.volumes: dict[str, Path] = {}
        """What is in PersistentVolumeClaims by their names, and in images by their references."""
        self._pods: dict[Key, Running] = {}
        self._numbers = itertools.count(1)
        # Each process of tests has addresses of its own, and so has each of its clusters.
        self._net = f"127.{20 + os.getpid() % 200}.{id(self) // 64 % 250}"
        server.services.append(self.run)

    def pids(self, namespace: str) -> list[int]:
        """Return the processes of a namespace's pods."""
        return [
            one.process.pid
            for key, one in self._pods.items()
            if key[1] == namespace and one.process is not None
        ]

    async def run(self) -> None:
        """Work until cancelled, then end all processes."""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1)) as http:
            try:
                while True:
                    for found in self._store.of("deployments.apps"):
                        self._scale(found)
                    self.batch.turn()
                    self._collect()
                    for found in self._store.of("pods"):
                        await self._tend(found, http)
                    self._sweep()
                    await asyncio.sleep(_LOOK_S)
            finally:
                for one in self._pods.values():
                    if one.process is not None:
                        one.process.kill()
                        one.process.wait()

    def _scale(self, found: Object) -> None:
        """Make and delete pods as the Deployment and ReplicaSet controllers do."""
        home = found["metadata"]["namespace"]
        template = found["spec"]["template"]
        mark = json.dumps(template, sort_keys=True)
        owner = found["metadata"]["uid"]
        pods = [
            one
            for one in self._store.of("pods", home)
            if not _leaving(one) and one["metadata"]["ownerReferences"][0]["uid"] == owner
        ]
        wanted = found["spec"]["replicas"]
        current = [one for one in pods if one["spec"]["nodeName"] == str(hash(mark))]
        old = [one for one in pods if one not in current]
        for _ in range(wanted - len(current)):
            self._make(found, str(hash(mark)))
        for one in current[wanted:]:  # the youngest go first
            self._store.delete(_key(one))
        if sum(map(_ready, current)) >= wanted:
            for one in old:
                self._store.delete(_key(one))

    def _collect(self) -> None:
        """Delete the pods of Deployments and Jobs that are gone, as the garbage collector does."""
        there = {
            one["metadata"]["uid"]
            for collection in ("deployments.apps", "jobs.batch")
            for one in self._store.of(collection)
        }
        for found in self._store.of("pods"):
            if found["metadata"]["ownerReferences"][0]["uid"] not in there:
                self._store.delete(_key(found))

    def _make(self, owner: Object, mark: str) -> None:
        home, template = owner["metadata"]["namespace"], owner["spec"]["template"]
        name = f"polyolo-runtime-{next(self._numbers):05d}"
        metadata = {**template["metadata"], "name": name, "namespace": home}
        metadata["ownerReferences"] = [
            {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "-",
             "uid": owner["metadata"]["uid"]}
        ]  # fmt: skip
        spec = {**template["spec"], "nodeName": mark}
        made = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        self._store.create(("pods", home, name), made, "kube-controller-manager")

    async def _tend(self, found: Object, http: aiohttp.ClientSession) -> None:
        key = _key(found)
        one = self._pods.get(key)
        if _leaving(found):
            self._end(key, found, one)
        elif (status := self.held(found)) is not None:
            self._store.change(key, lambda made: made.update(status=status), "kubelet", "status")
        elif one is None:
            number = next(self._numbers)
            address = f"{self._net}.{number % 250 + 1}"
            one = self._pods[key] = Running(address=address, directory=self._root / key[2])
            self._status(key, one, "starting")
        elif one.process is None:
            again = not one.restarts or not _once(found)
            if again and (time.monotonic() - one.ended_at >= BACKOFF_S or not one.restarts):
                self._start(key, found, one)
        elif (code := one.process.poll()) is not None:
            one.process, one.ended_at = None, time.monotonic()
            self._status(key, one, "over" if _once(found) else "ended", code)
        elif "readinessProbe" not in found["spec"]["containers"][0]:
            self._status(key, one, "ready")
        elif not _ready(found) and time.monotonic() - one.probed_at >= _PROBE_S:
            one.probed_at = time.monotonic()
            try:
                async with http.get(f"http://{one.address}:8080/readyz") as answer:
                    if answer.status == 200:
                        self._status(key, one, "ready")
                    elif not one.started:
                        self._status(key, one, "started")
            except (aiohttp.ClientError, TimeoutError):
                pass

    def _start(self, key: Key, found: Object, one: Running) -> None:
        container = found["spec"]["containers"][0]
        programs = self._images.get(container["image"], Path(sys.executable).parent)
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "POLYOLO_PARENT": str(os.getpid()),
        }
        for variable in container.get("env", ()):
            assert variable["valueFrom"]["fieldRef"]["fieldPath"] == "status.podIP"
            environment[variable["name"]] = one.address
        for source in container.get("envFrom", ()):
            secret = self._store.objects.get(("secrets", key[1], source["secretRef"]["name"]))
            if secret is None:
                return
            environment |= {
                name: base64.b64decode(value).decode() for name, value in secret["data"].items()
            }
        places = {}
        for volume in found["spec"].get("volumes", ()):
            where = one.directory / volume["name"]
            if claim := volume.get("persistentVolumeClaim", {}).get("claimName"):
                if ("persistentvolumeclaims", key[1], claim) not in self._store.objects:
                    self._status(key, one, "unschedulable")
                    return
                places[volume["name"]] = self.volumes[claim]
                continue
            if "image" in volume:
                places[volume["name"]] = self.volumes[volume["image"]["reference"]]
                continue
            where.mkdir(parents=True, exist_ok=True)
            places[volume["name"]] = where
            if "configMap" in volume:
                name = volume["configMap"]["name"]
                documents = self._store.objects.get(("configmaps", key[1], name))
                if documents is None:
                    return
                for file, text in documents["data"].items():
                    (where / file).write_text(text)
        mounts = {one["mountPath"]: str(places[one["name"]]) for one in container["volumeMounts"]}
        arguments = [_outside(part, mounts) for part in container.get("args", ())]
        if "--host" in arguments:
            arguments[arguments.index("--host") + 1] = one.address
        command = container.get("command", self._command)
        program = shutil.which(command[0], path=environment["PATH"])
        assert program is not None, command[0]
        one.restarts += 1
        with (one.directory / "log").open("ab") as log:
            one.process = subprocess.Popen(
                [program, *command[1:], *arguments],
                env={**environment, "TMPDIR": str(places["tmp"])},
                cwd=one.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._status(key, one, "starting")

    def _end(self, key: Key, found: Object, one: Running | None) -> None:
        if one is None or one.process is None or one.process.poll() is not None:
            self._pods.pop(key, None)
            if one is not None:
                shutil.rmtree(one.directory, ignore_errors=True)
            self._store.drop(key)
            self._store.settle()
            return
        now = time.monotonic()
        if not one.stop_by:
            grace = found["metadata"].get(
                "deletionGracePeriodSeconds", found["spec"].get("terminationGracePeriodSeconds", 30)
            )
            one.stop_by = now + grace / HURRY
            one.process.send_signal(signal.SIGTERM)
        elif now >= one.stop_by:
            one.process.kill()

    def _sweep(self) -> None:
        """End the processes of pods that are gone without a word."""
        for key in [key for key in self._pods if key not in self._store.objects]:
            one = self._pods.pop(key)
            if one.process is not None:
                one.process.kill()
                one.process.wait()

    def _status(self, key: Key, one: Running, what: str, code: int = 0) -> None:
        phase = "Running" if one.process else "Pending"
        state: dict[str, Any] = {"running": {}}
        last: dict[str, Any] = {}
        one.started = what in ("started", "ready")
        if what == "ended":
            ended = {"exitCode": code if code >= 0 else 128 - code}
            if code < 0:
                ended["signal"] = -code
            state, last = {"waiting": {"reason": "CrashLoopBackOff"}}, {"terminated": ended}
        elif what == "over":
            phase = "Failed" if code else "Succeeded"
            state = {"terminated": {"exitCode": code if code >= 0 else 128 - code}}
        elif one.process is None:
            state = {"waiting": {"reason": "ContainerCreating"}}
        status = {
            "phase": phase,
            "podIP": one.address,
            "conditions": [
                {
                    "type": "PodScheduled",
                    "status": str(what != "unschedulable"),
                    "message": "a claim is missing" if what == "unschedulable" else "",
                },
                {"type": "Ready", "status": str(what == "ready")},
            ],
            "containerStatuses": [
                {
                    "name": "runtime",
                    "state": state,
                    "lastState": last,
                    "restartCount": one.restarts,
                    "started": one.started,
                }
            ],
        }
        self._store.change(key, lambda made: made.update(status=status), "kubelet", "status")


def _outside(argument: str, mounts: dict[str, str]) -> str:
    """Return an argument with the path of a mount as it is on this machine."""
    for inside, outside in mounts.items():
        if argument == inside or argument.startswith(inside + "/"):
            return outside + argument.removeprefix(inside)
    return argument


def _key(found: Object) -> Key:
    return "pods", found["metadata"]["namespace"], found["metadata"]["name"]


def _once(found: Object) -> bool:
    return found["spec"].get("restartPolicy") == "Never"


def _leaving(found: Object) -> bool:
    return "deletionTimestamp" in found["metadata"]


def _ready(found: Object) -> bool:
    conditions = found.get("status", {}).get("conditions", ())
    return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)
