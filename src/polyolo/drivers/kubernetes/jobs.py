"""Programs that open strangers' files, each time in a pod of its own that reaches nothing.

A Job for each file: it has a deadline and goes by itself, should control be killed; else control
deletes it. Control connects to the pod, hands the file over and hears what became of it, so the pod
needs no way out, no right in the cluster and no key of anybody's. The connection is its lifeline:
when control is gone, it ends.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from polyolo import telemetry
from polyolo.drivers.kubernetes.cluster import JOB, POD, Cluster, ClusterError
from polyolo.drivers.kubernetes.exchange import Request, UnfitError, hear, met, tell
from polyolo.drivers.kubernetes.job import BY, JOB_NAME, MOVE_S, Task, ended, render
from polyolo.drivers.kubernetes.naming import FIRST_USER, USERS, Object
from polyolo.drivers.kubernetes.pods import State, read_pod
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.errors import NotReadyError
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome
from polyolo.sandbox.programs import OUTPUT_BYTES, Program

_MANAGER = "polyolo-jobs"
_PAUSE_S = (0.1, 1.0)  # between two looks at a pod: at first, and at last
_CONNECT_S = 5.0
_SAID_S = 10.0
"""Seconds for Kubernetes to tell how a pod ended that said nothing."""
_CLOSE_S = 10.0


def mine(name: str) -> str:
    """Return the label selector of what a control plane made. name: its identity."""
    return f"{BY}={_label(name)}"


class Jobs:
    """Runs programs until `close`. Any thread may."""

    def __init__(self, cluster: Cluster, settings: ClusterSettings, name: str) -> None:
        """Prepare; nothing is asked. name: of this control plane, and of no other that lives.

        The settings have `jobs`. The cluster's connections are closed with this.
        """
        assert settings.jobs is not None
        self._cluster = cluster
        self._settings = settings
        self._jobs = settings.jobs
        self._by = _label(name)
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._running = 0
        self._connections: set[socket.socket] = set()
        self._log = telemetry.logger("jobs")

    def program(self, image: str, command: Sequence[str]) -> Program:
        """Return a Program that runs a command in pods of an image, which has `python3`."""
        return partial(self._run, image, tuple(command))

    def sweep(self) -> None:
        """Delete the Jobs that a process before this one, of the same name, left behind."""
        try:
            for found in self._cluster.list(JOB, self._settings.jobs_namespace)[0]:
                self._delete(found["metadata"]["name"])
        except OSError as error:  # they have a deadline too
            self._log.warning("jobs that may be left over are not looked for", reason=str(error))

    def close(self) -> None:
        """End what runs, each with NotReadyError, and the connections. Again does nothing."""
        with self._changed:
            self._closing.set()
            for connection in self._connections:
                with suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self._changed.wait_for(lambda: not self._running, _CLOSE_S)
        self._cluster.close()

    def _run(
        self,
        image: str,
        command: tuple[str, ...],
        file: int,
        confinement: Confinement,
        *,
        time_s: float,
        words: Sequence[str] = (),
        result: int | None = None,
        output_bytes: int = OUTPUT_BYTES,
    ) -> Outcome:
        """Run a command (see Program)."""
        size = os.fstat(file).st_size
        request = Request(
            file=file,
            size=size,
            command=command,
            words=words,
            confinement=confinement,
            time_s=time_s,
            output_bytes=output_bytes,
            result=result,
        )
        task = Task(
            name=f"job-{secrets.token_hex(8)}",
            by=self._by,
            image=image,
            key=secrets.token_hex(32),
            user=FIRST_USER + secrets.randbelow(USERS),
            size=size + (confinement.file_bytes or 0 if result is not None else 0),
            time_s=time_s,
            confinement=confinement,
        )
        try:
            with self._counted(), self._made(task), self._met(task) as connection:
                return self._outcome(connection, request, task.name)
        except OSError as error:
            self._log.warning("a program was not run", job=task.name, reason=str(error))
            raise NotReadyError(
                "the platform cannot look into it at the moment; try again in a minute"
            ) from None

    @contextmanager
    def _counted(self) -> Iterator[None]:
        with self._changed:
            self._check_open()
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def _made(self, task: Task) -> Iterator[None]:
        """Have the Job be there, and gone afterwards."""
        try:
            # Nobody else's has its name: one that is there is of an earlier try.
            self._cluster.create(render(task, self._settings, self._jobs), _MANAGER)
            yield
        finally:
            self._delete(task.name)

    @contextmanager
    def _met(self, task: Task) -> Iterator[socket.socket]:
        """Give the connection to the Job's pod, once it runs. Raises OSError."""
        connection = self._reached(task)
        try:
            with self._changed:
                self._connections.add(connection)
            self._check_open()
            yield connection
        finally:
            with self._changed:
                self._connections.discard(connection)
            connection.close()

    def _reached(self, task: Task) -> socket.socket:
        deadline = time.monotonic() + self._jobs.start_s
        pause, why = _PAUSE_S[0], ""
        while time.monotonic() < deadline:
            self._check_open()
            found = self._pods(task.name)
            if not found:
                why = "no pod is made for it; does its namespace's quota, or its limits, forbid it?"
            else:
                pod = read_pod(found[0])
                if pod.state in (State.FAILED, State.LEAVING):
                    raise OSError(pod.reason or "its pod was deleted")
                why = pod.reason
                if pod.state is State.READY:
                    try:
                        return met(pod.address, task.key, _CONNECT_S)
                    except OSError as error:  # it does not listen yet, perhaps
                        why = f"its pod cannot be reached: {error}"
            self._closing.wait(pause)
            pause = min(pause * 1.2, _PAUSE_S[1])
        raise OSError(f"it did not start within {self._jobs.start_s:.0f} s: {why}")

    def _outcome(self, connection: socket.socket, request: Request, name: str) -> Outcome:
        try:
            tell(connection, request, time.monotonic() + MOVE_S / 2)
            return _heard(connection, request)
        except (UnfitError, TimeoutError):
            raise
        except OSError:
            return self._explained(name)

    def _explained(self, name: str) -> Outcome:
        """Return what became of a program whose pod broke off. Raises OSError."""
        deadline = time.monotonic() + _SAID_S
        while time.monotonic() < deadline:
            self._check_open()
            if (outcome := ended(self._pods(name))) is not None:
                return outcome
            self._closing.wait(_PAUSE_S[0])
        raise OSError("the connection to its pod broke off")

    def _pods(self, name: str) -> list[Object]:
        """Return the Job's own pods."""
        home = self._settings.jobs_namespace
        found, _ = self._cluster.list(POD, home, f"{JOB_NAME}={name}")
        return [one for one in found if _owned(one, name)]

    def _delete(self, name: str) -> None:
        try:
            self._cluster.delete(JOB, self._settings.jobs_namespace, name)
        except ClusterError as error:
            self._log.warning("a job is left to its deadline", job=name, reason=str(error))

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise OSError("this control plane ends")


def _owned(pod: Object, name: str) -> bool:
    """Say whether a pod was made for the Job of that name, which is nobody else's ever."""
    owners = pod["metadata"].get("ownerReferences", ())
    return any(one["kind"] == "Job" and one["name"] == name for one in owners)


def _label(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:32]


def _heard(connection: socket.socket, request: Request) -> Outcome:
    """Return what the pod says. Raises OSError when it breaks off, or cannot confine."""
    try:
        return hear(connection, request, time.monotonic() + request.time_s + MOVE_S / 2)
    except TimeoutError:
        return _silent(Ending.TIME)
    except ValueError:  # a program's own words, where ours should be
        return _silent(Ending.OUTPUT)


def _silent(ending: Ending) -> Outcome:
    return Outcome(ending=ending, code=0, output=b"", errors=b"")
