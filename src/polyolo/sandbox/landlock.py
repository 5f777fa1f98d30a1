"""Landlock: a process gives up reach over files, sockets and signals, for itself and for good.

Written from linux/landlock.h; what an older kernel does not know is left out of the request. A
second layer: it holds where a mount or a namespace was forgotten.
"""

from __future__ import annotations

import ctypes
import os
import stat
import struct
from collections.abc import Iterable
from contextlib import suppress

_CREATE, _ADD, _RESTRICT = 444, 445, 446  # the same numbers everywhere
_ABI_VERSION = 1  # flag of landlock_create_ruleset
_PATH_BENEATH = 1
_NO_NEW_PRIVS = 38  # PR_SET_NO_NEW_PRIVS

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_DIR, REMOVE_FILE = 1 << 4, 1 << 5
MAKE_DIR, MAKE_REG, MAKE_SOCK = 1 << 7, 1 << 8, 1 << 9
REFER, TRUNCATE, IOCTL_DEV = 1 << 13, 1 << 14, 1 << 15

READ = EXECUTE | READ_FILE | READ_DIR
USE = READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE
"""What is in /proc and /dev: read, and written where a file's own permissions let it."""
KEEP = (
    READ_FILE | READ_DIR | WRITE_FILE | TRUNCATE | REFER
    | REMOVE_FILE | REMOVE_DIR | MAKE_REG | MAKE_DIR | MAKE_SOCK
)  # fmt: skip
"""Files and directories of one's own; never device nodes, pipes, links, or programs to run."""
SOCKETS = READ_DIR | MAKE_SOCK | REMOVE_FILE
MAKE = 0x1FC0 | REFER
"""Whatever puts a new name into a directory."""

_OF_A_FILE = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
_KNOWN = {1: 0x1FFF, 2: 0x3FFF, 3: 0x7FFF, 4: 0x7FFF, 5: 0xFFFF}
"""Rights over files that each version of the interface knows; later ones know those of 5."""
_TCP, _SCOPES = 0b11, 0b11  # bind and connect, version 4; abstract sockets and signals, version 6


def version() -> int:
    """Return the version of the kernel's Landlock, 0 where it has none or does not use it."""
    said: int = ctypes.CDLL(None).syscall(_CREATE, None, 0, _ABI_VERSION)
    return max(0, said)


def restrict(
    rules: Iterable[tuple[int, str]],
    *,
    handled: int = 0xFFFF,
    network: bool = True,
    scoped: bool = False,
) -> None:
    """Take from the calling thread, and from all that it starts, what no rule allows.

    rules: rights over everything beneath a path; one that is not there allows nothing. handled:
    the rights that are taken. network: whether TCP is left. scoped: take signals and abstract
    sockets to and from processes outside too. Does nothing on a kernel without Landlock. Raises
    OSError.
    """
    kernel = version()
    if kernel == 0:
        return
    libc = ctypes.CDLL(None, use_errno=True)
    handled &= _KNOWN[min(kernel, 5)]
    tcp = 0 if network else _TCP
    attributes = struct.pack("=QQQ", handled, tcp, _SCOPES if scoped else 0)
    size = 8 if kernel < 4 else 16 if kernel < 6 else 24
    ruleset = libc.syscall(_CREATE, attributes, ctypes.c_size_t(size), 0)
    if ruleset < 0:
        raise _failed("landlock_create_ruleset")
    for rights, path in rules:
        try:
            place = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        if not stat.S_ISDIR(os.fstat(place).st_mode):
            rights &= _OF_A_FILE
        beneath = struct.pack("=Qi", rights & handled, place)
        if rights & handled and libc.syscall(_ADD, ruleset, _PATH_BENEATH, beneath, 0) < 0:
            raise _failed("landlock_add_rule")
        os.close(place)
    if libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 or libc.syscall(_RESTRICT, ruleset, 0) < 0:
        raise _failed("landlock_restrict_self")
    os.close(ruleset)


def make_nothing() -> None:
    """Give up making files, directories, links and sockets anywhere but in TMPDIR.

    Does nothing where that cannot be given up. For good, as all here; before threads are started.
    """
    temporary = os.environ.get("TMPDIR", "/tmp")  # noqa: S108  # what tempfile uses too
    with suppress(OSError):
        restrict([(MAKE, temporary)], handled=MAKE)


def _failed(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")
