"""The first code inside a sandbox: gives up, for itself and all that follows, what is left to.

`main(tokens, program)` is started as a process of its own and becomes `program` at the end. Each
token is one thing to give up, in this order: `user=ID` (being root), `orphan=FD` (living on without
who started it), `directory=PATH` (being elsewhere), `limit=NAME:N`, `landlock=` and
`path=RIGHTS:PATH`, `calls=HEX` (seccomp). Imports little: it is paid for at every start.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import signal
import sys

from polyolo.sandbox import landlock

_PDEATHSIG, _DUMPABLE, _SECCOMP, _NO_NEW_PRIVS = 1, 4, 22, 38  # PR_SET_* of linux/prctl.h
_FILTER = 2  # SECCOMP_MODE_FILTER
_NEW_USER = 0x10000000  # CLONE_NEWUSER


class _Program(ctypes.Structure):
    """struct sock_fprog of linux/filter.h."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def main(arguments: list[str]) -> None:
    """Give up what the tokens before `--` say and become the program behind it.

    Ends with status 125 and a sentence on stderr when something cannot be given up.
    """
    here = arguments.index("--")
    try:
        _give_up([token.partition("=")[::2] for token in arguments[:here]])
        program = arguments[here + 1 :]
        os.execv(program[0], program)  # noqa: S606  # the operator's own command
    except OSError as error:
        sys.stderr.write(f"polyolo.sandbox: {error}\n")
        os._exit(125)


def _give_up(tokens: list[tuple[str, str]]) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    paths: list[tuple[int, str]] = []
    calls = b""
    restricted = False
    network = True
    for name, value in tokens:
        if name == "user":
            _become(libc, int(value))
        elif name == "orphan":
            libc.prctl(_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # a change of user would forget it
            _end_if_orphaned(int(value))
        elif name == "directory":
            os.chdir(value)
        elif name == "limit":
            kind, _, most = value.partition(":")
            _limit(getattr(resource, kind), int(most))
        elif name == "landlock":
            restricted, network = True, value == "network"
        elif name == "path":
            rights, _, path = value.partition(":")
            paths.append((int(rights), path))
        elif name == "calls":
            calls = bytes.fromhex(value)
    if restricted:
        landlock.restrict(paths, network=network, scoped=True)
    if calls:
        libc.prctl(_NO_NEW_PRIVS, 1, 0, 0, 0)
        program = _Program(len(calls) // 8, calls)
        if libc.prctl(_SECCOMP, _FILTER, ctypes.byref(program), 0, 0) < 0:
            raise _failed("the filter of system calls")


def _end_if_orphaned(descriptor: int) -> None:
    """End where who started this died before the kernel was asked to tell; else let go."""
    if select.select([descriptor], [], [], 0)[0]:  # the other end of the pipe is closed
        os._exit(1)
    os.close(descriptor)


def _limit(kind: int, most: int) -> None:
    _, hard = resource.getrlimit(kind)
    later = most + 1 if kind == resource.RLIMIT_CPU else most  # a signal of its own comes first
    if hard != resource.RLIM_INFINITY:
        most, later = min(most, hard), min(later, hard)
    resource.setrlimit(kind, (most, later))


def _become(libc: ctypes.CDLL, user: int) -> None:
    """Become a user, the only one in a user namespace of its own.

    The namespace is still root's: so its processes may be ended by root's without capabilities,
    as bubblewrap's are, and die with them.
    """
    waiting, go = os.pipe()
    helper = os.fork()
    if helper == 0:  # stays outside: from within, nobody but root could be let in
        os.close(go)
        os.read(waiting, 1)
        for name in ("uid_map", "gid_map"):
            with open(f"/proc/{os.getppid()}/{name}", "w") as file:  # noqa: PTH123
                file.write(f"{user} {user} 1")
        os._exit(0)
    os.close(waiting)
    if libc.unshare(_NEW_USER) < 0:
        raise _failed("a user namespace")
    os.close(go)
    if os.waitpid(helper, 0)[1] != 0:
        raise OSError("a user namespace: its user could not be named")
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    libc.prctl(_DUMPABLE, 1, 0, 0, 0)  # else its own /proc entries would be root's


def _failed(what: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{what}: {os.strerror(number)}")
