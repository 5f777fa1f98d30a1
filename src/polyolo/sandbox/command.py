"""The command line of a confined process: bubblewrap around `inner` around the program itself."""

from __future__ import annotations

import errno
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import polyolo
from polyolo.sandbox import landlock, seccomp
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.layers import Isolation, Layer

if TYPE_CHECKING:  # pods, to which this is sent, have no use for them
    from polyolo.sandbox.cgroups import Group

SCRATCH = Path("/scratch")
"""Where a process with a mount namespace of its own finds its scratch directory."""

_JOIN = (
    'while [ "$1" != -- ]; do echo 0 > "$1/cgroup.procs" || exit 125; shift; done; shift; exec "$@"'
)
_INNER = "import sys; sys.path.append(sys.argv.pop(1)); from polyolo.sandbox.inner import main; "
_SYSTEM = (Path("/usr"), Path("/lib"), Path("/lib32"), Path("/lib64"))
_HARMLESS = (
    Path("/etc/ld.so.cache"),  # or libraries outside the usual directories are not found
    Path("/sys/devices/system/cpu"),  # how engines learn of caches and cores
    Path("/sys/devices/system/node"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where, and as whom, one process runs."""

    scratch: Path
    """Scratch directory where there is no mount namespace for a private one."""
    directory: Path | None = None
    """Working directory; None: the scratch directory."""
    user: int
    """User id outside, where the layer is there; see `layers.FIRST_USER`."""
    first: bool = False
    """Whether the program is process 1 of its PID namespace, so that signals reach it, and it
    has no default handlers; else a reaper is."""
    told: int | None = None
    """Descriptor that bubblewrap writes the process's pid to, as JSON."""
    group: Group | None = None
    alive: int
    """Read end of a pipe whose other end only the starter holds: it ends when its starter does."""

    def temporary(self, isolation: Isolation) -> Path:
        """Return the scratch directory as the process sees it."""
        return SCRATCH if Layer.MOUNT in isolation else self.scratch


def command(
    isolation: Isolation, confinement: Confinement, argv: Sequence[str], place: Place
) -> list[str]:
    """Return the program and arguments that run `argv` confined, by every layer that is there.

    argv: begins with the path, or the name, of a program that is readable inside. What starts it
    gives it the environment and the descriptors that it is to have, and no others. Raises
    FileNotFoundError when there is no such program.
    """
    if (program := shutil.which(argv[0])) is None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), argv[0])
    source = str(Path(polyolo.__file__).parents[1])
    inner = [sys.executable, "-I", "-S", "-c", _INNER + "main(sys.argv[1:])", source]
    joining = (
        ["/bin/sh", "-c", _JOIN, "sh", *map(str, place.group.mounts), "--"] if (place.group) else []
    )
    return [
        *joining,
        *(_bubblewrap(isolation, confinement, place) if isolation.wrapped else ()),
        *inner,
        *_tokens(isolation, confinement, place),
        "--",
        program,
        *argv[1:],
    ]


def _bubblewrap(isolation: Isolation, confinement: Confinement, place: Place) -> Iterator[str]:
    yield from (isolation.bubblewrap, "--die-with-parent", "--new-session")
    yield from ("--unshare-cgroup-try", "--cap-drop", "ALL")
    if Layer.IPC in isolation:
        yield "--unshare-ipc"
    if Layer.UTS in isolation:
        yield from ("--unshare-uts", "--hostname", "runtime")
    if Layer.NETWORK in isolation and not confinement.network:
        yield "--unshare-net"
    if Layer.PID in isolation:
        yield from ("--unshare-pid", *(("--as-pid-1",) if place.first else ()))
    if Layer.ACCOUNT in isolation:
        # `inner` makes the namespace of users, with another one in it.
        yield from ("--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID")
    elif Layer.USER in isolation:
        yield "--unshare-user"
    if place.told is not None:
        yield from ("--info-fd", str(place.told))
    yield from _files(isolation, confinement, place)
    yield from ("--chdir", "/", "--")


def _files(isolation: Isolation, confinement: Confinement, place: Place) -> Iterator[str]:
    """Yield bubblewrap's options for a root with nothing in it but what may be seen."""
    own = "--proc /proc" if Layer.PID in isolation else "--bind /proc /proc"
    if Layer.ACCOUNT not in isolation and os.geteuid() == 0:
        # The machine's own switches obey this user, whatever its capabilities.
        for name in ("sys", "sysrq-trigger", "irq", "bus"):
            own += f" --ro-bind-try /proc/{name} /proc/{name}"
    if Layer.MOUNT not in isolation:
        yield from f"--dev-bind / / {own}".split()
        return
    readable = {*isolation.interpreter, *confinement.readable}
    read = {path: path for path in sorted(readable) if not readable & set(path.parents)}
    written = [*confinement.writable, *confinement.sockets]
    if place.group:  # its own limits, where the kernel says that they are
        read |= place.group.mounts
    # Else they would get the permissions that the host's have, and /root is closed to others.
    seen = (*_HARMLESS, *read.values(), *written)
    parents = {parent for path in seen for parent in path.parents}
    for parent in sorted(parents)[1:]:
        yield from ("--perms", "0755", "--dir", str(parent))
    for path in _SYSTEM:
        if path.is_symlink():
            yield from ("--symlink", str(path.readlink()), str(path))
        else:
            yield from ("--ro-bind-try", str(path), str(path))
    for path in _HARMLESS:
        yield from ("--ro-bind-try", str(path), str(path))
    yield from f"{own} --dev /dev --remount-ro /dev".split()
    size = str(confinement.scratch_bytes)
    yield from ("--perms", "1777", "--size", size, "--tmpfs", str(SCRATCH))
    for path, seen_at in read.items():
        yield from ("--ro-bind", str(path), str(seen_at))
    for path in written:
        yield from ("--bind", str(path), str(path))
    yield from ("--remount-ro", "/")


def _tokens(isolation: Isolation, confinement: Confinement, place: Place) -> Iterator[str]:
    """Yield what `inner` is to give up."""
    if Layer.ACCOUNT in isolation:
        yield f"user={place.user}"
    yield f"orphan={place.alive}"
    yield f"directory={place.directory or place.temporary(isolation)}"
    for name, most in _limits(isolation, confinement):
        yield f"limit={name}:{most}"
    if Layer.LANDLOCK in isolation:
        yield f"landlock={'network' if confinement.network else ''}"
        for rights, path in _rules(isolation, confinement, place):
            yield f"path={rights}:{path}"
    if Layer.SECCOMP in isolation:
        program = seccomp.program(platform.machine(), network=confinement.network)
        yield f"calls={program.hex()}"


def _limits(isolation: Isolation, confinement: Confinement) -> Iterator[tuple[str, int]]:
    if Layer.RLIMITS not in isolation:
        return
    yield "RLIMIT_CORE", 0
    yield "RLIMIT_NOFILE", confinement.open_files
    for name, most in (
        ("RLIMIT_CPU", confinement.cpu_s),
        ("RLIMIT_AS", confinement.address_bytes),
        ("RLIMIT_FSIZE", confinement.file_bytes),
    ):
        if most is not None:
            yield name, most
    # For what a control group bounds better: of each process, and of all of this user's.
    if Layer.MEMORY not in isolation:
        yield "RLIMIT_DATA", confinement.memory_bytes
    if Layer.PROCESSES not in isolation and (Layer.ACCOUNT in isolation or Layer.USER in isolation):
        yield "RLIMIT_NPROC", confinement.processes


def _rules(
    isolation: Isolation, confinement: Confinement, place: Place
) -> Iterator[tuple[int, Path]]:
    for path in (*_SYSTEM, *isolation.interpreter, *confinement.readable):
        yield landlock.READ, path
    for path in (*_HARMLESS, Path("/sys/fs/cgroup")):
        yield landlock.READ_FILE | landlock.READ_DIR, path
    for path in (Path("/proc"), Path("/dev")):
        yield landlock.USE, path
    for path in (*confinement.writable, place.temporary(isolation)):
        yield landlock.KEEP, path
    for path in confinement.sockets:
        yield landlock.SOCKETS, path
