"""Runtimes as child processes of the platform: one machine, no container, nothing to set up.

What a runtime is, its directory and the kernel say; the driver holds only what a parent must
hold (`children`), and the processes that are nobody's yet (`warm`).
"""

from __future__ import annotations

import itertools
import math
import os
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from polyolo.drivers import ANSWER_S, SETTLE_MS, replicas
from polyolo.drivers.children import KILLED_S, Children, Fork, kill
from polyolo.drivers.rundir import Put, RunDirectory, made, place
from polyolo.drivers.unixhttp import ask
from polyolo.drivers.warm import WarmPool
from polyolo.sandbox import kernel
from polyolo.sandbox.kernel import Identity
from polyolo.sandbox.layers import UNCONFINED, Isolation
from polyolo.sealedfile import KEY_HEADER, KEY_VARIABLE
from polyolo.types import OUTDATED, Phase, Resources, RuntimeSpec, RuntimeStatus

START_S = 60.0
"""Seconds from a process's start after which one that never answered counts as failed."""
_SILENT_S = 5.0
"""A runtime that was silent so recently is asked once more, not twice."""
_WARM_ANSWER_S = 0.2
"""Seconds that a warm process may take to answer; else a new one is started instead."""
_KEPT_VARIABLES = ("PATH", "LANG", "LC_ALL", "TZ", "LD_LIBRARY_PATH")
"""What a runtime inherits of the environment; all else may hold secrets of the platform."""


class ProcessDriver:
    """The Driver whose runtimes are children of this process (see `polyolo.drivers.Driver`)."""

    def __init__(
        self,
        root: Path,
        command: Sequence[str],
        *,
        environment: Mapping[str, str] | None = None,
        releases: Mapping[str, Sequence[str]] | None = None,
        drain_s: float = 30.0,
        warm: int = 0,
        isolation: Isolation = UNCONFINED,
        put: Put = lambda uri, target: place(Path(uri), target),
        key_of: Callable[[str], str] | None = None,
        fork: Fork | None = None,
        succeeds: bool = False,
    ) -> None:
        """Hold the runtimes under `root`, one directory for each copy.

        command: starts a runtime; `--spec FILE --socket PATH` is added, and `--ahead` where there
        is no spec yet. environment: more variables for it. releases: commands that start runtimes
        of other releases. drain_s: seconds between SIGTERM and SIGKILL. warm: processes kept ready
        for tenants to come. isolation: what they are confined by. put: puts the model file of a
        `uri` in a runtime's directory; a path is linked or copied. key_of: a tenant's key for its
        model files, in hex. fork: see Children. succeeds: this process was another program, whose
        runtimes are OUTDATED but run on. Raises OSError when `root` cannot be used.
        """
        self._root = root.absolute()
        self._commands = {"": tuple(command), **(releases or {})}
        self._environment = dict(environment or {})
        self._drain_s = drain_s
        self._put = put
        self._key_of = key_of
        made(self._root)
        self._closed = False
        self._silent: dict[Path, float] = {}
        """When a copy that should have answered was asked last, and did not."""
        self._ending: dict[Path, RunDirectory] = {}
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._children = Children(isolation, fork)
        self._outdated: set[Identity] = set()
        self._warm = WarmPool(warm, self._start_warm, self._answers)
        for directory in self._directories():
            if succeeds:
                self._inherit(directory)
            if directory.tenant is None:  # of no use, or left by a platform that was killed
                self._kill_in(directory)
                directory.delete()

    def observe(self, tenants: Collection[str] | None = None) -> dict[str, RuntimeStatus]:
        """Return the state of the runtimes (see Driver)."""
        self._children.reap(0.0)
        found: dict[str, list[RuntimeStatus]] = {}
        for directory in self._directories(tenants):
            status = self._observe(directory)
            if status is not None and directory.tenant is not None:
                found.setdefault(directory.tenant, []).append(status)
        return {tenant: replicas.together(tenant, copies) for tenant, copies in found.items()}

    def apply(self, spec: RuntimeSpec) -> None:
        """Start copies, tell them the spec, replace or end them (see Driver)."""
        RunDirectory(self._root, spec.tenant)  # or it is refused here
        with self._locks[spec.tenant]:
            if self._closed:
                raise OSError("the platform is stopping")
            here = {one.number: one for one in self._directories([spec.tenant])}
            looks = {number: self._observe(one) for number, one in here.items()}
            seen = {number: status for number, status in looks.items() if status is not None}
            same = {n: one for n, one in seen.items() if here[n].release() == spec.release}
            stay, go_on = replicas.to_stay(same, seen, spec.replicas)
            refusal: OSError | None = None
            if stay:  # what they are told may be to open models
                self._children.defer(spec.tenant)
            for number in stay:
                try:
                    here[number].write_spec(spec, self._put)
                    self._children.bound(here[number].process(), spec.resources)
                    self._tell(here[number])
                except OSError as error:
                    refusal = error
            missing = spec.replicas - len(stay)
            for number in seen.keys() - stay - go_on:
                if seen[number].phase not in (Phase.FAILED, Phase.ABSENT):
                    self._end_and_delete(here[number])
                elif missing > 0:
                    missing -= 1
                    self._begin(here[number], spec)
                else:
                    self._kill_in(here[number])
                    here[number].delete()
            free = (number for number in itertools.count(1) if number not in here)
            for number in itertools.islice(free, missing):
                self._begin(RunDirectory(self._root, spec.tenant, number), spec)
            if refusal is not None:
                raise refusal

    def remove(self, tenant: str) -> None:
        """Drain, then kill, then clean up, one step a call (see Driver)."""
        RunDirectory(self._root, tenant)  # or it is refused here
        with self._locks[tenant]:
            for directory in self._directories([tenant]):
                self._end_and_delete(directory)
            if not self._directories([tenant]):
                self._kill_strays(tenant)

    def wait(self, timeout: float) -> set[str]:
        """Wait for runtimes to end on their own, and return whose (see Driver).

        Besides, it ends what drains for too long, keeps warm processes ready, and sees to it who
        goes first where there is not enough processor time for all.
        """
        changed = self._children.reap(timeout)
        self._children.weigh()
        for directory in list(self._ending.values()):
            self._go_on_ending(directory)
        if not self._closed:
            self._warm.keep()
        return changed

    def close(self) -> None:
        """End all runtimes at once, each with its time to drain; nothing starts afterwards."""
        self._closed = True
        self._warm.close()
        while found := self._directories():
            for directory in found:
                if directory.tenant is None:
                    self._kill_in(directory)
                    directory.delete()
            for tenant in {one.tenant for one in found if one.tenant is not None}:
                self.remove(tenant)
            self._children.reap(0.05)
        self._children.close()

    def command_line(self, directory: RunDirectory) -> list[str]:
        """Return the program and arguments of a runtime."""
        spec, listen = str(directory.spec_file), str(directory.socket)
        ahead = ["--ahead"] if directory.tenant is None else []
        command = self._commands.get(directory.release(), self._commands[""])
        return [*command, "--spec", spec, "--socket", listen, *ahead]

    def _observe(self, directory: RunDirectory) -> RuntimeStatus | None:
        if not directory.exists():
            return None
        tenant = directory.tenant or ""
        if directory.kill_at() is not None:
            return RuntimeStatus(tenant=tenant, phase=Phase.STOPPING, reason="draining")
        process = directory.process()
        if process is None or not kernel.runs(process) or not kernel.is_ours(process):
            self._children.see_end(process)
            ended = directory.exit()
            if ended is not None and ended.process == process:
                return RuntimeStatus(tenant=tenant, phase=Phase.FAILED, reason=ended.reason)
            return RuntimeStatus(tenant=tenant, phase=Phase.ABSENT, reason="left behind")
        directory.cut_log()
        overdue = directory.was_ready() or process.age() > START_S
        status = self._ask(directory)
        if status is None and overdue:
            if time.monotonic() - self._silent.get(directory.path, -math.inf) > _SILENT_S:
                status = self._ask(directory)
            self._silent[directory.path] = time.monotonic()
        if status is None:
            phase = Phase.FAILED if overdue else Phase.STARTING
            return RuntimeStatus(tenant=tenant, phase=phase, reason="it does not answer")
        self._silent.pop(directory.path, None)
        if status.phase is Phase.READY:
            directory.write_ready()
            self._drop_models(directory, status.observed_generation)
        return status

    def _ask(self, directory: RunDirectory, within_s: float = ANSWER_S) -> RuntimeStatus | None:
        """Return what the runtime says of itself; None when it does not answer in time."""
        try:
            of = process.pid if (process := directory.process()) else 0
            code, body = ask(directory.socket, "GET", "/runtime/status", of=of, timeout=within_s)
            status = msgspec.json.decode(body, type=RuntimeStatus) if code == 200 else None
        except (OSError, msgspec.DecodeError, ValueError):
            return None
        if status is None:
            return None
        outdated = process in self._outdated
        return replace(  # a runtime speaks for itself only, and cannot say where it is reached
            status,
            observed_generation=OUTDATED if outdated else max(0, status.observed_generation),
            tenant=directory.tenant or "",
            phase=Phase.READY if status.phase is Phase.READY else Phase.STARTING,
            endpoints=(f"unix:{directory.socket}",),
            release=directory.release(),
        )

    def _tell(self, directory: RunDirectory) -> None:
        """Push the spec document; a runtime that is still starting is told by a later call."""
        # One that has been ready since its start has its key.
        key = "" if directory.was_ready() else self._key(directory)
        try:
            code, _ = ask(
                directory.socket,
                "PUT",
                "/runtime/spec",
                directory.spec_file.read_bytes(),
                of=process.pid if (process := directory.process()) else 0,
                headers={"polyolo-timeout-ms": str(SETTLE_MS), KEY_HEADER: key},
                timeout=ANSWER_S,
            )
        except OSError as error:
            if directory.was_ready():
                raise OSError(f"the runtime did not take its spec: {error}") from None
            return
        if code >= 300:
            raise OSError(f"the runtime refused its spec with status {code}")

    def _drop_models(self, directory: RunDirectory, in_force: int) -> None:
        lock = self._locks[directory.tenant or ""]
        if not lock.acquire(blocking=False):  # `apply` is putting new files in place
            return
        try:
            spec = directory.spec()
            if spec is not None and spec.generation == in_force:
                directory.drop_models(spec)
        finally:
            lock.release()

    def _begin(self, directory: RunDirectory, spec: RuntimeSpec) -> None:
        """Have a copy run in a directory: a warm process if there is one, else a new one."""
        self._kill_in(directory)
        self._kill_strays(spec.tenant)
        # One that never answered would use them all up.
        hopeful = not spec.release and (directory.exit() is None or directory.was_ready())
        warm = self._warm.take() if hopeful else None
        self._warm.started()
        if warm is not None:
            self._settle(warm, directory, spec)
            return
        directory.prepare()
        directory.write_release(spec.release)
        directory.write_spec(spec, self._put)
        self._start(directory, spec.resources)

    def _settle(self, warm: RunDirectory, directory: RunDirectory, spec: RuntimeSpec) -> None:
        """Give a warm process its tenant, for good. Raises OSError; the process is ended then."""
        try:
            warm.become(directory)
            self._children.moved(directory.process(), directory)
            directory.write_spec(spec, self._put)
            self._children.bound(directory.process(), spec.resources)
            self._tell(directory)
        except OSError:
            for place in (warm, directory):
                self._kill_in(place)
                place.delete()
            raise

    def _start_warm(self, number: int) -> RunDirectory:
        directory = RunDirectory(self._root, None, number)
        directory.prepare()
        self._start(directory, Resources())
        return directory

    def _inherit(self, directory: RunDirectory) -> None:
        """Take over what another program has begun in a directory, when this process was that."""
        process = directory.process()
        if process is None or not kernel.runs(process) or not kernel.is_ours(process):
            return
        self._children.inherit(directory, process)
        self._outdated.add(process)
        if directory.kill_at() is not None:
            self._ending[directory.path] = directory

    def _answers(self, directory: RunDirectory) -> bool:
        return self._ask(directory, _WARM_ANSWER_S) is not None

    def _directories(self, tenants: Collection[str] | None = None) -> list[RunDirectory]:
        """Return the directories that there are, of these tenants or of all, the oldest first."""
        found = []
        for entry in self._root.iterdir():
            name = replicas.read_name(entry.name)
            if name is None or (tenants is not None and name[0] not in tenants):
                continue
            if entry.is_dir() and not entry.is_symlink():
                found.append(RunDirectory(self._root, *name))
        return sorted(found, key=lambda one: (one.tenant or "", one.number))

    def _start(self, directory: RunDirectory, resources: Resources) -> None:
        """Start a process in a directory."""
        kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
        environment = {"LANG": "C.UTF-8", **kept, **self._environment}
        if key := self._key(directory):
            environment[KEY_VARIABLE] = key
        self._children.start(directory, self.command_line(directory), environment, resources)

    def _key(self, directory: RunDirectory) -> str:
        """Return what opens the model files of a directory's tenant; empty where nothing does."""
        if self._key_of is None or directory.tenant is None:
            return ""
        return self._key_of(directory.tenant)

    def _end(self, directory: RunDirectory) -> bool:
        """Take the next step to the process's end, and say whether it has ended."""
        process = directory.process()
        if process is None or not kernel.runs(process):
            return True
        if not kernel.is_ours(process):
            return kernel.send(process, signal.SIGKILL, wait_s=KILLED_S)
        now, kill_at = time.monotonic(), directory.kill_at()
        self._ending[directory.path] = directory
        if kill_at is None:
            directory.write_kill_at(now + self._drain_s)
            # One that has not answered holds no request; nor, perhaps, a handler for signals yet.
            ready = directory.was_ready()
            return kernel.send(process, signal.SIGTERM if ready else signal.SIGKILL)
        if now >= kill_at:
            return kernel.send(process, signal.SIGKILL, wait_s=KILLED_S)
        return False

    def _end_and_delete(self, directory: RunDirectory) -> None:
        if self._end(directory):
            self._ending.pop(directory.path, None)
            # Its end is put on record in its directory for the last time, and its sandbox is gone.
            self._children.see_end(directory.process())
            directory.delete()

    def _go_on_ending(self, directory: RunDirectory) -> None:
        """Kill what has drained for too long, and clean up behind what has ended."""
        lock = self._locks[directory.tenant or ""]
        if not lock.acquire(blocking=False):  # somebody is at it
            return
        try:
            if directory.kill_at() is None:
                self._ending.pop(directory.path, None)
            else:
                self._end_and_delete(directory)
        finally:
            lock.release()

    def _kill_in(self, directory: RunDirectory) -> None:
        """Kill the process of a directory: hung, or left by a platform that is gone."""
        process = directory.process()
        if process is not None and kernel.runs(process):
            kill(process)
        self._silent.pop(directory.path, None)
        self._children.reap(0.0)

    def _kill_strays(self, tenant: str) -> None:
        """Kill children that no record names any more: their directory was tampered with."""
        known = [directory.process() for directory in self._directories([tenant])]
        for process in self._children.of(tenant):
            if process not in known:
                kill(process)
        self._children.reap(0.0)
