"""Finds out which layers of the sandbox this host gives: by trying, never by assuming."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from polyolo.sandbox import hierarchies, landlock, seccomp
from polyolo.sandbox.cgroups import Groups
from polyolo.sandbox.layers import FIRST_USER, NAMESPACES, USERS, Isolation, Layer
from polyolo.sandbox.trial import fails, interpreter


def probe() -> Isolation:
    """Find out what this host gives, by trying it; takes about 50 ms.

    Runs a few short processes, and moves this one into a cgroup within its own where control
    groups need that (see `hierarchies.find`). Never raises for a host that gives nothing.
    """
    missing: dict[Layer, str] = {}
    if sys.platform != "linux":
        return Isolation(missing=dict.fromkeys(Layer, f"{sys.platform} has none; Linux has"))
    if platform.machine() not in seccomp.architectures():
        missing[Layer.SECCOMP] = f"system calls of {platform.machine()} are not known here"
    elif not Path("/proc/sys/kernel/seccomp").exists():
        missing[Layer.SECCOMP] = "this kernel was built without filters of system calls"
    if landlock.version() == 0:
        missing[Layer.LANDLOCK] = "this kernel has no Landlock, or was started without it"
    if why := _account_missing():
        missing[Layer.ACCOUNT] = why
    bubblewrap = shutil.which("bwrap")
    places, without = hierarchies.find()
    found = Isolation(
        missing={**missing, **without},
        interpreter=interpreter(),
        bubblewrap=bubblewrap or "",
        groups=Groups(places, hierarchies.accounts()),
    )
    if bubblewrap is None:
        found = found.without(NAMESPACES, "bubblewrap is not installed (the program bwrap)")
    found = _working(found)
    if Layer.ACCOUNT in found and (Layer.MOUNT not in found or Layer.USER not in found):
        why = "it needs a mount namespace, or the platform's home is closed to it, and a user's own"
        found = found.without([Layer.ACCOUNT], why)
    return found


def _account_missing() -> str:
    if os.geteuid() != 0:
        return "the platform does not run as root: its runtimes have its own user id outside"
    try:
        lines = Path("/proc/self/uid_map").read_text().splitlines()
    except OSError:
        return "/proc is not mounted"
    for line in lines:
        first, _, count = map(int, line.split())
        if first <= FIRST_USER and first + count > FIRST_USER + USERS:
            return ""
    return "the container of the platform does not have enough user ids"


def _working(found: Isolation) -> Isolation:
    """Return `found` without the layers that turn out to fail beside the others."""
    why = fails(found)
    if not why:
        return found
    # One at a time first.
    suspects: tuple[Sequence[Layer], ...] = (
        [Layer.USER, Layer.ACCOUNT],  # for root it goes without
        [Layer.PID],  # its /proc is what containers without privileges may not mount
        [Layer.NETWORK],
        [Layer.LANDLOCK],
        [Layer.SECCOMP],
        NAMESPACES,
        [Layer.ACCOUNT],
    )
    for layers in suspects:
        fewer = found.without([layer for layer in layers if layer in found], why)
        if not fails(fewer):
            return fewer
    for layers in reversed(suspects):
        found = found.without([layer for layer in layers if layer in found], why)
        if not fails(found):
            return found
    return found
