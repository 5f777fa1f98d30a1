"""The processes that a driver has started: begun by a thread that lives as long, seen to end.

A child is killed by the kernel when the thread that started it is gone, so all are started by one
thread that lives as long as they do: that of the caller's choice, which is the first one where
they are to outlive a change of the program. A parent must hold a handle of each to learn of its
end; everything else that is known of a process stands in its directory.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import select
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from polyolo.drivers.inherited import Inherited
from polyolo.drivers.precedence import Precedence
from polyolo.drivers.rundir import Exit, RunDirectory
from polyolo.sandbox import kernel
from polyolo.sandbox.cgroups import Group
from polyolo.sandbox.command import Place, command
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.kernel import Identity
from polyolo.sandbox.layers import FIRST_USER, UNCONFINED, USERS, Isolation, Layer
from polyolo.types import Resources

KILLED_S = 2.0
"""Seconds that the kernel is given to end a process after SIGKILL."""
_FILE_BYTES = 16 << 20
"""Of each file that a runtime writes: those in its scratch directory, and its log."""
_OPEN_FILES = 8192
"""A connection takes one; the gateway lets a tenant have a few hundred requests in flight."""

Handle = subprocess.Popen[bytes] | Inherited
Fork = Callable[[Callable[[], Handle]], Handle]
"""Makes a call that starts a process, on a thread that lives as long as it does."""


@dataclass(slots=True)
class Child:
    """One process, until its end has been seen."""

    directory: RunDirectory
    """Another one once a warm process has got its tenant."""
    process: Identity
    """The runtime's: within a sandbox, a child of `handle`'s."""
    handle: Handle
    group: Group | None


class Children:
    """The processes that run, or whose end has not been seen yet. Any thread may use it."""

    def __init__(self, isolation: Isolation = UNCONFINED, fork: Fork | None = None) -> None:
        """Begin with none. fork: None for a thread of its own."""
        self._isolation = isolation
        self._alive, self._held = os.pipe()  # the other end of it is this process's alone,
        os.set_inheritable(self._held, True)  # whatever program it goes on as
        self._by_descriptor: dict[int, Child] = {}
        self._ends = select.epoll()
        self._reaping = threading.Lock()
        self._precedence = Precedence(len(os.sched_getaffinity(0)))
        self._weighing = threading.Lock()
        self._starter = ThreadPoolExecutor(1, "runtime-starter")
        self._fork = fork or (lambda begin: self._starter.submit(begin).result())

    def start(
        self,
        directory: RunDirectory,
        program: Sequence[str],
        environment: Mapping[str, str],
        resources: Resources,
    ) -> None:
        """Start a process in its directory and record there which one it is. Raises OSError."""
        named = [Path(word) for word in program if word.startswith("/") and Path(word).exists()]
        confinement = Confinement(
            readable=(directory.path, *named),
            sockets=(directory.io,),
            memory_bytes=resources.memory_bytes,
            processes=resources.processes,
            cpus=resources.cpus,
            background=directory.tenant is None,
            file_bytes=_FILE_BYTES,
            open_files=_OPEN_FILES,
        )
        user = FIRST_USER + secrets.randbelow(USERS)
        with ExitStack() as undo, ExitStack() as opened:
            group = self._isolation.group(confinement)
            if group is not None:
                undo.callback(group.remove)
            if Layer.ACCOUNT in self._isolation:
                for place in (directory.path, directory.io):
                    os.chown(place, user, user)
            told, tell = os.pipe()
            opened.callback(os.close, told)
            telling = opened.enter_context(open(tell, "wb"))  # noqa: PTH123
            log = opened.enter_context(directory.log.open("ab"))
            where = Place(
                scratch=directory.path / "tmp",
                directory=directory.path,
                user=user,
                first=True,
                told=tell,
                alive=self._alive,
                group=group,
            )
            temporary = where.temporary(self._isolation)
            if temporary.is_relative_to(directory.path):  # which may get another name
                temporary = temporary.relative_to(directory.path)
            argv = command(self._isolation, confinement, program, where)
            variables = {"PYTHONSAFEPATH": "1", "TMPDIR": str(temporary)}

            def begin() -> Handle:
                return subprocess.Popen(  # noqa: S603  # the operator's own command
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=directory.path,
                    env={**variables, **environment},
                    pass_fds=(self._alive, *((tell,) if self._isolation.wrapped else ())),
                    start_new_session=True,  # a Ctrl-C at the platform's terminal is not for it
                )

            handle = self._fork(begin)
            undo.pop_all()
            telling.close()
            process = self._inside(handle.pid, told)
            self._hold(Child(directory, process, handle, group))
            directory.write_process(process)

    def inherit(self, directory: RunDirectory, process: Identity) -> None:
        """Take over a runtime that the program which this process was before has started."""
        outer = kernel.parent(process.pid)
        handle = Inherited(process.pid if outer == os.getpid() else outer)
        self._hold(Child(directory, process, handle, self._isolation.group_of(handle.pid)))

    def bound(self, process: Identity | None, resources: Resources) -> None:
        """Have a running process and all that it started use so much and no more.

        Does nothing where there are no control groups. Raises OSError.
        """
        for child in list(self._by_descriptor.values()):
            if child.process == process and child.group is not None:
                try:
                    child.group.limit(
                        memory_bytes=resources.memory_bytes,
                        processes=resources.processes,
                        cpus=resources.cpus,
                    )
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    kill(child.process)  # it uses more memory than it may now: it starts afresh

    def weigh(self) -> None:
        """Give the processor to those first who have used little of it since the last call."""
        with self._weighing:
            present = list(self._by_descriptor.values())
            with suppress(OSError):  # one has just ended
                self._precedence.look(
                    [(one.directory.tenant, one.group) for one in present if one.group is not None]
                )

    def defer(self, tenant: str) -> None:
        """Let all others go first: this tenant's processes are about to do what takes time."""
        with self._weighing:
            self._precedence.spend(tenant)
        self.weigh()

    def of(self, tenant: str | None) -> list[Identity]:
        """Return the processes of a tenant, or those that are nobody's yet."""
        present = list(self._by_descriptor.values())
        return [child.process for child in present if child.directory.tenant == tenant]

    def moved(self, process: Identity | None, directory: RunDirectory) -> None:
        """Note that a process's directory has got another name."""
        with self._reaping:
            for child in self._by_descriptor.values():
                if child.process == process:
                    child.directory = directory
        self.weigh()

    def reap(self, timeout: float) -> set[str]:
        """Learn of ended processes for up to so many seconds; return whose they were.

        A process's end is on record in its directory before it leaves the process table.
        """
        tenants = set()
        with suppress(ValueError):  # closed meanwhile
            for descriptor, _ in self._ends.poll(timeout):
                with self._reaping:
                    child = self._by_descriptor.get(descriptor)
                    # None, or still running under a reused descriptor: another thread was first.
                    if child is None or (code := child.handle.poll()) is None:
                        continue
                    reason = _worded(code, child.group)
                    child.directory.write_exit(Exit(process=child.process, reason=reason))
                    if child.group is not None:
                        child.group.remove()
                    self._ends.unregister(descriptor)
                    del self._by_descriptor[descriptor]
                    os.close(descriptor)
                    if child.directory.tenant is not None:
                        tenants.add(child.directory.tenant)
        return tenants

    def see_end(self, process: Identity | None) -> None:
        """Have the end of a process that no longer runs be on record, if it is one of these."""
        for child in list(self._by_descriptor.values()):
            if child.process == process:
                with suppress(subprocess.TimeoutExpired):  # what is around it ends with it
                    child.handle.wait(KILLED_S)
        self.reap(0.0)

    def close(self) -> None:
        """Kill what is left, and start nothing any more."""
        self._starter.shutdown()
        for child in list(self._by_descriptor.values()):
            kill(child.process)
            with suppress(subprocess.TimeoutExpired):  # the sandbox's own process sees it, and ends
                child.handle.wait(KILLED_S)
        self.reap(0.0)
        self._ends.close()
        os.close(self._alive)
        os.close(self._held)

    def _hold(self, child: Child) -> None:
        descriptor = os.pidfd_open(child.handle.pid)
        self._by_descriptor[descriptor] = child
        self._ends.register(descriptor, select.EPOLLIN)

    def _inside(self, outer: int, told: int) -> Identity:
        """Return the runtime's own process, which a sandbox's process has started.

        told: what that writes its pid to, and closes. Where it could not, it is about to end, and
        stands for the runtime.
        """
        process = kernel.identify(outer)  # there, even if dead: nobody has waited for it
        if process is None:
            raise OSError("the process table cannot be read; is /proc mounted?")
        if not self._isolation.wrapped:
            return process
        said = b""
        while b"}" not in said and (data := os.read(told, 4096)):
            said += data
        if not said:
            return process
        return kernel.child_of(outer, int(json.loads(said)["child-pid"])) or process


def kill(process: Identity) -> None:
    """End a process at once, if it runs. Raises OSError when it does not die."""
    if not kernel.send(process, signal.SIGKILL, wait_s=KILLED_S):
        raise OSError(f"process {process.pid} does not die")


def _worded(code: int, group: Group | None) -> str:
    """Say how a process ended. code: as subprocess counts it; a sandbox's process, like a shell,
    ends with 128 + N for a signal N inside."""
    number = -code if code < 0 else code - 128 if 128 < code < 128 + signal.NSIG else 0
    if not number:
        return f"its process exited with status {code}"
    if number == signal.SIGKILL and group is not None and group.killed_for_memory():
        return "it was ended at its limit on memory"
    with suppress(ValueError):
        return f"its process was killed by {signal.Signals(number).name}"
    return f"its process was killed by signal {number}"
