"""What a child process does first: dies with its parent, and keeps its memory to itself."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE = 1, 4  # linux/prctl.h


def die_with_parent() -> None:
    """Have the kernel kill this process when the thread that started it is gone (Linux).

    `POLYOLO_PARENT` carries the parent's pid, so that a parent that died before this call is
    noticed too. Does nothing for a process started by hand.
    """
    parent = os.environ.get("POLYOLO_PARENT")
    if parent is None or sys.platform != "linux":
        return
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != int(parent):
        os._exit(1)


def keep_memory_private() -> None:
    """Leave no core dump: the memory of a process that decodes pictures holds pictures."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        _prctl(_PR_SET_DUMPABLE, 0)  # the limit alone does not stop a core that goes to a pipe


def _prctl(option: int, value: int) -> None:
    ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0)
