"""A running `polyolo up` goes on as the program that is installed now: same process, same doors.

Executing another program keeps the process, so its children live on, and the sockets whose
descriptors it is told. Everything else is begun anew from the home.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import NoReturn

import msgspec

from polyolo.cli.gateways import Door

_VARIABLE = "POLYOLO_SUCCEEDS"
_REHEARSAL = "rehearsal"
_REHEARSAL_S = 300.0
"""For a start without the start; migrating the database takes most of it."""
_HELD = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
"""Signals that wait while one program goes and the next one does not listen to them yet."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Handed:
    """What one program hands to the next."""

    door: Door
    control: int
    """Descriptor of the socket that the control API listens on."""
    stopping: bool = False
    """Whether the platform was told to stop meanwhile: then the next program is who does."""


def received() -> Handed | None:
    """Return what the program before this one has handed over; None at a start of its own.

    Call it first of all: no child is to see it.
    """
    if rehearses():
        return None
    given = os.environ.pop(_VARIABLE, None)
    return msgspec.json.decode(given, type=Handed) if given else None


def rehearses() -> bool:
    """Say whether this start is only to see whether one would succeed."""
    return os.environ.get(_VARIABLE) == _REHEARSAL


def rehearse() -> None:
    """See the program that is installed now go through a start. Raises OSError if it fails."""
    environment = {_VARIABLE: _REHEARSAL, "POLYOLO_PARENT": str(os.getpid())}
    try:
        seen = subprocess.run(  # noqa: S603  # what this process was started with
            _program(),
            env=os.environ | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            timeout=_REHEARSAL_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise OSError(f"the new program has not started within {_REHEARSAL_S:.0f} s") from None
    if seen.returncode:
        last = seen.stdout.strip().rpartition("\n")[2]
        raise OSError(f"the new program does not start: {last or seen.returncode}")


def hold_signals() -> None:
    """Have signals wait for the next program. When other threads have ended: they get them else."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)


def take_signals() -> None:
    """Let signals come again; before any thread or child is started, which would not get them."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


def go_on(handed: Handed) -> NoReturn:
    """Become the program that is installed now. On the thread that children were started on."""
    for descriptor in (handed.door.socket, handed.control):
        os.set_inheritable(descriptor, True)
    program = _program()
    environment = os.environ | {_VARIABLE: msgspec.json.encode(handed).decode()}
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(program[0], program, environment)  # noqa: S606  # what this was started with


def _program() -> list[str]:
    """Return the command line of this process, as whoever started it gave it."""
    script = sys.argv[0]
    if os.access(script, os.X_OK) and not script.endswith(".py"):
        return [script, *sys.argv[1:]]  # names its interpreter itself: another one by now, perhaps
    return [sys.executable, *sys.orig_argv[1:]]
