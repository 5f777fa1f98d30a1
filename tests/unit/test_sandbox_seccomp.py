"""The filter of system calls, judged by an interpreter of its own: both machines, every kind."""

from __future__ import annotations

import errno
import socket
import struct

import pytest

from polyolo.sandbox import seccomp

ALLOW, KILL = 0x7FFF0000, 0x80000000
REFUSED, UNKNOWN = 0x50000 | errno.EPERM, 0x50000 | errno.ENOSYS
ARCHITECTURE = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
I386 = 0x40000003
NEW_USER, THREAD = 0x10000000, 0x003D0F00
NUMBERS = {  # on x86-64, on arm64
    "read": (0, 63), "execve": (59, 221), "bind": (49, 200), "ptrace": (101, 117),
    "mount": (165, 40), "unshare": (272, 97), "bpf": (321, 280), "keyctl": (250, 219),
    "clone": (56, 220), "clone3": (435, 435), "socket": (41, 198), "ioctl": (16, 29),
    "io_uring_setup": (425, 425), "landlock_restrict_self": (446, 446),
}  # fmt: skip


def answer(program: bytes, architecture: int, number: int, *arguments: int) -> int:
    """Run a program as the kernel does (net/core/filter.c), and return its verdict."""
    padded = [*arguments, *[0] * (6 - len(arguments))]
    data = struct.pack("=iIQ6Q", number, architecture, 0, *padded)
    steps = list(struct.iter_unpack("=HBBI", program))
    at = held = 0
    while True:
        code, if_true, if_false, value = steps[at]
        at += 1
        if code == 0x20:
            held = struct.unpack_from("=I", data, value)[0]
        elif code == 0x06:
            return value
        else:
            hit = {0x15: held == value, 0x25: held > value, 0x45: bool(held & value)}[code]
            at += if_true if hit else if_false


@pytest.mark.parametrize("machine", seccomp.architectures())
def test_what_is_allowed(machine: str):
    """Ordinary calls and threads pass; an attacker's do not; what is newer is not there."""
    program = seccomp.program(machine, network=False)
    assert len(program) // 8 < 4096  # BPF_MAXINSNS

    def ask(name: str, *arguments: int) -> int:
        number = NUMBERS[name][seccomp.architectures().index(machine)]
        return answer(program, ARCHITECTURE[machine], number, *arguments)

    for name in ("read", "execve", "bind", "landlock_restrict_self"):
        assert ask(name) == ALLOW, name
    for name in ("ptrace", "mount", "unshare", "bpf", "keyctl", "io_uring_setup"):
        assert ask(name) == REFUSED, name
    assert ask("clone", THREAD) == ask("clone", 17) == ALLOW
    assert ask("clone", NEW_USER | 17) == REFUSED
    assert ask("clone3") == UNKNOWN
    assert ask("ioctl", 1, 0x5401) == ALLOW
    assert ask("ioctl", 1, 0x5412) == ask("ioctl", 1, 1 << 32 | 0x5412) == REFUSED
    for newer in (463, 9999, 0x40000000 | 1):
        assert answer(program, ARCHITECTURE[machine], newer) == UNKNOWN
    for other in {I386, *ARCHITECTURE.values()} - {ARCHITECTURE[machine]}:
        assert answer(program, other, 0) == KILL


@pytest.mark.parametrize("network", [False, True])
def test_sockets(network: bool):
    """Unix sockets always, Internet sockets where there is a network, others never."""
    program = seccomp.program("x86_64", network=network)

    def ask(family: int) -> int:
        return answer(program, ARCHITECTURE["x86_64"], 41, family)

    assert ask(socket.AF_UNIX) == ALLOW
    assert ask(socket.AF_INET) == ask(socket.AF_INET6) == (ALLOW if network else REFUSED)
    for family in (socket.AF_NETLINK, socket.AF_PACKET, 38, 40):  # AF_ALG, AF_VSOCK
        assert ask(family) == REFUSED
