"""Runtimes as child processes of the platform: one machine, no container, nothing to set up.

What a runtime is, its directory and the kernel say; the driver holds only the handles that a
parent must hold to learn of its children's end. A child is killed by the kernel when the
thread that started it is gone, so all are started by one thread that lives as long as the
driver.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from polyolo.drivers import kernel
from polyolo.drivers.kernel import Identity
from polyolo.drivers.rundir import Exit, RunDirectory, is_tenant
from polyolo.drivers.unixhttp import ask
from polyolo.types import Phase, RuntimeSpec, RuntimeStatus

ANSWER_S = 1.5
"""Seconds that a runtime may take to tell its status. Its event loop does nothing heavy, so this
is long even on a machine under full load; asked twice, and found by a look every 5 s, a hung
runtime is known as such within 8 s."""
START_S = 60.0
"""Seconds from a process's start after which one that never answered counts as failed."""
_KILLED_S = 2.0
"""Seconds that the kernel is given to end a process after SIGKILL."""
_SUN_PATH = 107
"""Bytes in the path of a Unix socket (sun_path, 108 with its closing zero)."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
"""What a runtime inherits of the environment; all else may hold secrets of the platform."""


@dataclass(frozen=True, slots=True)
class _Child:
    tenant: str
    process: Identity
    handle: subprocess.Popen[bytes]


class ProcessDriver:
    """The Driver whose runtimes are children of this process (see `polyolo.drivers.Driver`)."""

    def __init__(
        self,
        root: Path,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        drain_s: float = 30.0,
    ) -> None:
        """Hold the runtimes under `root`, one directory each.

        command: starts a runtime; `--spec FILE --socket PATH` is added. environment: more
        variables for it. drain_s: seconds between SIGTERM and SIGKILL. Raises OSError when
        `root` cannot be used.
        """
        self._root = root.absolute()
        self._command = tuple(command)
        self._environment = dict(environment or {})
        self._drain_s = drain_s
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        longest = len(os.fsencode(self._root / "t_1234567890" / "runtime.sock"))
        if longest > _SUN_PATH:
            raise OSError(
                f"the path {self._root} is {longest - _SUN_PATH} bytes too long for the sockets "
                "in it; choose a home with a shorter path"
            )
        self._closed = False
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._children: dict[int, _Child] = {}  # by the process descriptor that is polled
        self._ends = select.epoll()
        self._reaping = threading.Lock()
        self._starter = ThreadPoolExecutor(1, "runtime-starter")

    def observe(self, tenants: Collection[str] | None = None) -> dict[str, RuntimeStatus]:
        """Return the state of the runtimes (see Driver)."""
        self._reap(0.0)
        if tenants is None:
            tenants = [entry.name for entry in self._root.iterdir() if is_runtime(entry)]
        found = ((tenant, self._observe(RunDirectory(self._root, tenant))) for tenant in tenants)
        return {tenant: status for tenant, status in found if status is not None}

    def apply(self, spec: RuntimeSpec) -> None:
        """Start the runtime, tell it its spec, or replace it (see Driver)."""
        directory = RunDirectory(self._root, spec.tenant)
        with self._locks[spec.tenant]:
            if self._closed:
                raise OSError("the platform is stopping")
            observed = self._observe(directory)
            if observed is not None and observed.phase is Phase.STOPPING:
                return
            process = directory.process()
            if process is not None and kernel.runs(process):
                mine = kernel.is_child(process)
                if mine and observed is not None and observed.phase is not Phase.FAILED:
                    directory.write_spec(spec)
                    self._tell(directory)
                    return
                # Hung, or left by a platform that could not take it along: make room.
                _kill(process)
            self._kill_strays(spec.tenant)
            directory.prepare()
            directory.write_spec(spec)
            self._starter.submit(self._start, directory).result()

    def remove(self, tenant: str) -> None:
        """Drain, then kill, then clean up, one step a call (see Driver)."""
        directory = RunDirectory(self._root, tenant)
        with self._locks[tenant]:
            if directory.exists() and self._end(directory):
                self._kill_strays(tenant)
                directory.delete()

    def wait(self, timeout: float) -> set[str]:
        """Wait for runtimes to end on their own, and return whose (see Driver)."""
        return self._reap(timeout)

    def close(self) -> None:
        """End all runtimes at once, each with its time to drain; nothing starts afterwards."""
        self._closed = True
        while tenants := [e.name for e in self._root.iterdir() if is_runtime(e)]:
            for tenant in tenants:
                self.remove(tenant)
            self._reap(0.05)
        for child in list(self._children.values()):
            self._kill_strays(child.tenant)
        self._starter.shutdown()
        self._reap(0.0)
        self._ends.close()

    def command_line(self, directory: RunDirectory) -> list[str]:
        """Return the program and arguments of a runtime; the place to wrap it in a sandbox."""
        spec, listen = str(directory.spec_file), str(directory.socket)
        return [*self._command, "--spec", spec, "--socket", listen]

    def _observe(self, directory: RunDirectory) -> RuntimeStatus | None:
        if not directory.exists():
            return None
        tenant = directory.path.name
        if directory.kill_at() is not None:
            return RuntimeStatus(tenant=tenant, phase=Phase.STOPPING, reason="draining")
        process = directory.process()
        if process is None or not kernel.runs(process) or not kernel.is_child(process):
            ended = directory.exit()
            if ended is not None and ended.process == process:
                return RuntimeStatus(tenant=tenant, phase=Phase.FAILED, reason=ended.reason)
            return RuntimeStatus(tenant=tenant, phase=Phase.ABSENT, reason="left behind")
        directory.cut_log()
        overdue = directory.was_ready() or process.age() > START_S
        status = self._ask(directory) or (self._ask(directory) if overdue else None)
        if status is None:
            phase = Phase.FAILED if overdue else Phase.STARTING
            return RuntimeStatus(tenant=tenant, phase=phase, reason="it does not answer")
        if status.phase is Phase.READY:
            directory.write_ready()
            self._drop_models(directory, status.observed_generation)
        return status

    def _ask(self, directory: RunDirectory) -> RuntimeStatus | None:
        """Return what the runtime says of itself; None when it does not answer in time."""
        try:
            code, body = ask(directory.socket, "GET", "/runtime/status", timeout=ANSWER_S)
            status = msgspec.json.decode(body, type=RuntimeStatus) if code == 200 else None
        except (OSError, msgspec.DecodeError, ValueError):
            return None
        if status is None:
            return None
        return replace(  # a runtime speaks for itself only, and cannot say where it is reached
            status,
            tenant=directory.path.name,
            phase=Phase.READY if status.phase is Phase.READY else Phase.STARTING,
            endpoints=(f"unix:{directory.socket}",),
        )

    def _tell(self, directory: RunDirectory) -> None:
        """Push the spec document; a runtime that is still starting is told by a later call."""
        try:
            code, _ = ask(
                directory.socket,
                "PUT",
                "/runtime/spec",
                directory.spec_file.read_bytes(),
                timeout=ANSWER_S,
            )
        except OSError as error:
            if directory.was_ready():
                raise OSError(f"the runtime did not take its spec: {error}") from None
            return
        if code >= 300:
            raise OSError(f"the runtime refused its spec with status {code}")

    def _drop_models(self, directory: RunDirectory, in_force: int) -> None:
        lock = self._locks[directory.path.name]
        if not lock.acquire(blocking=False):  # `apply` is putting new files in place
            return
        try:
            spec = directory.spec()
            if spec is not None and spec.generation == in_force:
                directory.drop_models(spec)
        finally:
            lock.release()

    def _start(self, directory: RunDirectory) -> None:
        """Start the process, in the one thread that outlives it."""
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        with directory.log.open("ab") as log:
            handle = subprocess.Popen(  # noqa: S603  # the operator's own command
                self.command_line(directory),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=directory.path,
                env={
                    "LANG": "C.UTF-8",
                    **kept,
                    "TMPDIR": str(directory.path / "tmp"),
                    "POLYOLO_PARENT": str(os.getpid()),
                    **self._environment,
                },
                start_new_session=True,  # a Ctrl-C at the platform's terminal is not for it
            )
        process = kernel.identify(handle.pid)  # there, even if dead: nobody has waited for it
        if process is None:
            raise OSError("the process table cannot be read; is /proc mounted?")
        directory.write_process(process)
        descriptor = os.pidfd_open(handle.pid)
        self._children[descriptor] = _Child(directory.path.name, process, handle)
        self._ends.register(descriptor, select.EPOLLIN)

    def _end(self, directory: RunDirectory) -> bool:
        """Take the next step to the process's end, and say whether it has ended."""
        process = directory.process()
        if process is None or not kernel.runs(process):
            return True
        if not kernel.is_child(process):
            return kernel.send(process, signal.SIGKILL, wait_s=_KILLED_S)
        now, kill_at = time.monotonic(), directory.kill_at()
        if kill_at is None:
            directory.write_kill_at(now + self._drain_s)
            return kernel.send(process, signal.SIGTERM)
        if now >= kill_at:
            return kernel.send(process, signal.SIGKILL, wait_s=_KILLED_S)
        return False

    def _kill_strays(self, tenant: str) -> None:
        """Kill children that no record names any more: their directory was tampered with."""
        for child in list(self._children.values()):
            if child.tenant == tenant:
                _kill(child.process)
        self._reap(0.0)

    def _reap(self, timeout: float) -> set[str]:
        """Learn of ended children; a child's end is on record before it leaves the table."""
        tenants = set()
        with suppress(ValueError):  # closed meanwhile
            for descriptor, _ in self._ends.poll(timeout):
                with self._reaping:
                    child = self._children.get(descriptor)
                    # None, or still running under a reused descriptor: another thread was first.
                    if child is None or (code := child.handle.poll()) is None:
                        continue
                    ended = Exit(process=child.process, reason=_worded(code))
                    RunDirectory(self._root, child.tenant).write_exit(ended)
                    self._ends.unregister(descriptor)
                    del self._children[descriptor]
                    os.close(descriptor)
                    tenants.add(child.tenant)
        return tenants


def is_runtime(entry: Path) -> bool:
    """Say whether a directory's entry can be a runtime's directory."""
    return is_tenant(entry.name) and entry.is_dir() and not entry.is_symlink()


def _kill(process: Identity) -> None:
    if not kernel.send(process, signal.SIGKILL, wait_s=_KILLED_S):
        raise OSError(f"process {process.pid} does not die")


def _worded(code: int) -> str:
    if code >= 0:
        return f"its process exited with status {code}"
    with suppress(ValueError):
        return f"its process was killed by {signal.Signals(-code).name}"
    return f"its process was killed by signal {-code}"
