"""Who a process is: a pid alone may belong to another process by now."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def this_boot() -> str:
    """Return the id that the kernel gave itself when it was started."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, for ever: no other one has this pid and this start time in this boot."""

    pid: int
    started: int
    """Field 22 of /proc/PID/stat: clock ticks between boot and the process's start."""
    boot: str = field(default_factory=this_boot)

    def age(self) -> float:
        """Return the seconds since the process was started."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / _TICKS


def identify(pid: int) -> Identity | None:
    """Return who has `pid`, be it as a zombie; None when nobody has."""
    fields = _stat(pid)
    return Identity(pid=pid, started=int(fields[19])) if fields else None


def runs(process: Identity) -> bool:
    """Say whether exactly this process runs; a zombie does not."""
    fields = _stat(process.pid)
    if not fields or fields[0] in (b"Z", b"X"):
        return False
    return int(fields[19]) == process.started and process.boot == this_boot()


def is_ours(process: Identity) -> bool:
    """Say whether this process, if it runs, is a child of ours, or a child of one."""
    outer = parent(process.pid)
    return outer == os.getpid() or (outer > 1 and parent(outer) == os.getpid())


def child_of(outer: int, pid: int) -> Identity | None:
    """Return who has `pid` if that is a child of a process that has not been waited for."""
    process = identify(pid)
    return process if process is not None and parent(pid) == outer else None


def send(process: Identity, number: signal.Signals, *, wait_s: float = 0.0) -> bool:
    """Send a signal to exactly this process, and say whether it has ended within `wait_s`.

    A reused pid is never signalled: the process is held by a descriptor before it is compared.
    """
    try:
        descriptor = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return True
    try:
        if not runs(process):
            return True
        signal.pidfd_send_signal(descriptor, number)
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)  # readable: the process has ended
        return bool(poll.poll(wait_s * 1000))
    except ProcessLookupError:
        return True
    finally:
        os.close(descriptor)


def parent(pid: int) -> int:
    """Return the process's parent; 0 when nobody has that pid."""
    fields = _stat(pid)
    return int(fields[1]) if fields else 0


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third one, the state, on; [] for no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    return text.rpartition(b")")[2].split()
