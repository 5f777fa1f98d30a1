"""Runs a throw-away process in a sandbox: it may die in any way, and leaves nothing but its words.

For what opens a stranger's file: looking into an upload, converting it, comparing two versions.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from polyolo.sandbox.command import Place, command
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.layers import FIRST_USER, USERS, Isolation, Layer

_ERRORS_BYTES = 64 << 10
"""Bytes of its stderr that are kept, the last ones."""
_CHUNK = 1 << 16


class Ending(StrEnum):
    """How a job came to its end."""

    EXITED = "exited"
    SIGNALLED = "signalled"
    TIME = "time"  # longer than it was given, on the clock
    CPU = "cpu"  # more processor time than it was given
    MEMORY = "memory"  # stopped by its limit on memory
    OUTPUT = "output"  # said more than it may


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job. Every word in it is foreign: a hostile program chose it."""

    ending: Ending
    code: int
    """Exit status of one that exited, number of the signal of one that was signalled, else 0."""
    output: bytes
    """What it wrote to stdout, cut where it was too much."""
    errors: bytes
    """The end of what it wrote to stderr, the sandbox's own complaints included; for a log."""


def run_job(
    argv: Sequence[str],
    confinement: Confinement,
    isolation: Isolation,
    *,
    time_s: float,
    environment: Mapping[str, str] | None = None,
    passed_fds: Sequence[int] = (),
    output_bytes: int = 1 << 20,
) -> Outcome:
    """Run a program confined, in an empty directory, and return what became of it.

    argv: the path of a program and its arguments. time_s: seconds on the clock until all of it
    is killed. environment: its variables besides PATH, LANG and TMPDIR; it gets no others.
    passed_fds: descriptors that it gets under the same numbers (see `memory_file`). output_bytes:
    of stdout; one more ends it. Blocks; any thread. Raises OSError when it cannot be started.
    """
    user = FIRST_USER + secrets.randbelow(USERS)
    output, errors = bytearray(), bytearray()
    killed_for_memory = 0
    with ExitStack() as stack:
        alive, held = os.pipe()
        stack.callback(os.close, alive)
        stack.callback(os.close, held)
        scratch = "/"  # there is one inside
        if Layer.MOUNT not in isolation:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="polyolo-job-", ignore_cleanup_errors=True)
            )
        group = isolation.group(confinement)
        if group is not None:
            stack.callback(group.remove)
        place = Place(scratch=Path(scratch), user=user, alive=alive, group=group)
        process = subprocess.Popen(  # noqa: S603  # the operator's own command
            command(isolation, confinement, argv, place),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            cwd=scratch,
            env={
                "PATH": os.defpath,
                "LANG": "C.UTF-8",
                "PYTHONSAFEPATH": "1",
                "TMPDIR": str(place.temporary(isolation)),
                **(environment or {}),
            },
            pass_fds=(*passed_fds, alive),
            start_new_session=True,
        )
        try:
            stopped = _watch(process, time.monotonic() + time_s, output, errors, output_bytes)
        finally:
            status = _kill(process)
        if group is not None:
            killed_for_memory = group.killed_for_memory()
    ending, code = (stopped, 0) if stopped else _ending(status)
    if ending is Ending.SIGNALLED and killed_for_memory:
        ending, code = Ending.MEMORY, 0
    return Outcome(
        ending=ending, code=code, output=bytes(output[:output_bytes]), errors=bytes(errors)
    )


@contextmanager
def memory_file(chunks: Iterable[bytes], name: str = "input") -> Iterator[int]:
    """Give the descriptor of a file that is in memory only and cannot be changed any more.

    For `passed_fds`: the job opens it as `/proc/self/fd/NUMBER`, as often as it likes. Raises
    OSError when there is no room.
    """
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    with open(os.memfd_create(name, flags), "wb", buffering=0) as file:  # noqa: PTH123
        for chunk in chunks:
            left = memoryview(chunk)
            while left:
                left = left[file.write(left) :]
        fcntl.fcntl(
            file.fileno(),
            fcntl.F_ADD_SEALS,
            fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL,
        )
        yield file.fileno()


def _watch(
    process: subprocess.Popen[bytes],
    deadline: float,
    output: bytearray,
    errors: bytearray,
    output_bytes: int,
) -> Ending | None:
    """Read what the job says until it ends; return why it must be ended, if it must."""
    assert process.stdout is not None
    assert process.stderr is not None
    pipes = {process.stdout.fileno(): output, process.stderr.fileno(): errors}
    ended = os.pidfd_open(process.pid)
    poll = select.poll()
    running = True
    try:
        for descriptor in (*pipes, ended):
            poll.register(descriptor, select.POLLIN)
        while running or pipes:
            # Of one that has ended, what stands in the pipes; what it left behind may hold them.
            left = max(0.0, deadline - time.monotonic()) if running else 0.0
            ready = {descriptor for descriptor, _ in poll.poll(left * 1000)}
            if not ready:
                return Ending.TIME if running else None
            for descriptor in ready & pipes.keys():
                data = os.read(descriptor, _CHUNK)
                if not data:
                    poll.unregister(descriptor)
                    del pipes[descriptor]
                    continue
                pipes[descriptor] += data
                del errors[:-_ERRORS_BYTES]
                if len(output) > output_bytes:
                    return Ending.OUTPUT
            if ended in ready:
                poll.unregister(ended)
                running = False
    finally:
        os.close(ended)
    return None


def _ending(status: int) -> tuple[Ending, int]:
    # A sandbox's outer process ends with 128 + N for a signal N inside, as a shell does.
    number = -status if status < 0 else status - 128 if 128 < status < 128 + 65 else 0
    if number == signal.SIGXCPU:
        return Ending.CPU, 0
    return (Ending.SIGNALLED, number) if number else (Ending.EXITED, status)


def _kill(process: subprocess.Popen[bytes]) -> int:
    """End the job with all that it started, and return the status that it ended with."""
    with suppress(ProcessLookupError):  # not reaped yet: the group is its own
        os.killpg(process.pid, signal.SIGKILL)
    for pipe in (process.stdout, process.stderr):
        assert pipe is not None
        pipe.close()
    return process.wait()
