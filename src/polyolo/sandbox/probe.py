"""Finds out which layers of the sandbox this host gives: by trying, never by assuming."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import polyolo
from polyolo.sandbox import hierarchies, landlock, seccomp
from polyolo.sandbox.cgroups import Groups
from polyolo.sandbox.command import Place, command
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.layers import FIRST_USER, NAMESPACES, USERS, Isolation, Layer

_TRY_S = 20.0
"""Seconds that a trial may take; it takes 20 ms."""


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


def interpreter() -> tuple[Path, ...]:
    """Return the directories that a clean Python of this environment reads, none within another.

    Not the working directory, PYTHONPATH or a user's site: what happens to be on the path of
    the process that asks is nobody's business.
    """
    said = subprocess.run(
        [sys.executable, "-E", "-P", "-s", "-c", "import sys; print(*sys.path, sep='\\n')"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split("\n")
    package = Path(polyolo.__file__).parents[1]
    wanted = {Path(sys.prefix), Path(sys.base_prefix), package, *map(Path, filter(None, said))}
    wanted = {path for path in wanted if path.is_dir()}
    return tuple(sorted(path for path in wanted if not wanted & set(path.parents)))


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
    why = _fails(found)
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
        if not _fails(fewer):
            return fewer
    for layers in reversed(suspects):
        found = found.without([layer for layer in layers if layer in found], why)
        if not _fails(found):
            return found
    return found


def _fails(isolation: Isolation) -> str:
    """Return why a process cannot be started with these layers; nothing when it can."""
    alive, held = os.pipe()
    place = Place(scratch=Path("/"), user=FIRST_USER, alive=alive)
    argv = command(isolation, Confinement(), [sys.executable, "-I", "-S", "-c", ""], place)
    try:
        ended = subprocess.run(  # noqa: S603
            argv,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TRY_S,
            check=False,
            env={},
            pass_fds=(alive,),
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    finally:
        os.close(alive)
        os.close(held)
    if ended.returncode == 0:
        return ""
    said = ended.stderr.decode(errors="replace").strip().splitlines()
    return said[-1][:300] if said else f"a trial ended with status {ended.returncode}"
