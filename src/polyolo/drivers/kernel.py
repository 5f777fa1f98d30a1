"""Who a process is: a pid alone may belong to another process by now."""

from __future__ import annotations

import os
import select
import signal
import time
from dataclasses import dataclass
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """One process, for ever: no other one has this pid and this start time until a reboot."""

    pid: int
    started: int
    """Field 22 of /proc/PID/stat: clock ticks between boot and the process's start."""

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
    return bool(fields) and int(fields[19]) == process.started and fields[0] not in (b"Z", b"X")


def is_child(process: Identity) -> bool:
    """Say whether this process, if it runs, is a child of ours."""
    fields = _stat(process.pid)
    return bool(fields) and int(fields[1]) == os.getpid()


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


def _stat(pid: int) -> list[bytes]:
    """Return the fields of /proc/PID/stat from the third one, the state, on; [] for no process."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return []
    # The command's name stands in parentheses and may itself hold spaces and parentheses.
    return text.rpartition(b")")[2].split()
