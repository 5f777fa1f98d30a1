"""The system calls that a confined process may not make, as a program for the kernel's filter.

Written from linux/seccomp.h and linux/filter.h: a classic BPF program of a hundred instructions
needs no library. It answers EPERM to the calls below, and ENOSYS to those that are newer than
this list, so that what a future kernel adds is closed until somebody has looked at it.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Sequence

# linux/bpf_common.h and linux/filter.h
_LOAD, _EQUAL, _GREATER, _ANY_BIT, _RETURN = 0x20, 0x15, 0x25, 0x45, 0x06
# linux/seccomp.h
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data

_AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}  # linux/audit.h
_LAST_KNOWN = 462
"""mseal, Linux 6.10. From 424 on the numbers are the same everywhere; those of x86-64's second
set of calls (x32), which nothing here uses, lie far above."""

_NEW_NAMESPACES = 0x7E020000  # CLONE_NEW* of linux/sched.h, those that clone takes
_TERMINAL = (0x5412, 0x541C)  # TIOCSTI, TIOCLINUX: type into the terminal of somebody else

# Number on x86-64, number on arm64 (None: there is none); asm/unistd_64.h, asm-generic/unistd.h.
_FORBIDDEN: dict[str, tuple[int, int | None]] = {
    # Into other processes.
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "process_madvise": (440, 440),
    "kcmp": (312, 272),
    "pidfd_getfd": (438, 438),
    # Mounts, roots and namespaces.
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fspick": (433, 433),
    "mount_setattr": (442, 442),
    "statmount": (457, 457),
    "listmount": (458, 458),
    "mknod": (133, None),
    "mknodat": (259, 33),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    # Large parts of the kernel that a model has no use for, and where its holes were found.
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "keyctl": (250, 219),
    "fanotify_init": (300, 262),
    "move_pages": (279, 239),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "personality": (135, 92),
    # The machine itself.
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "delete_module": (176, 106),
    "create_module": (174, None),
    "kexec_load": (246, 104),
    "kexec_file_load": (320, 294),
    "reboot": (169, 142),
    "swapon": (167, 224),
    "swapoff": (168, 225),
    "acct": (163, 89),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "syslog": (103, 116),
    "sethostname": (170, 161),
    "setdomainname": (171, 162),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "adjtimex": (159, 171),
    "clock_adjtime": (305, 266),
    "vhangup": (153, 58),
    "ioperm": (173, None),
    "iopl": (172, None),
    "uselib": (134, None),
    "ustat": (136, None),
    "sysfs": (139, None),
    "lookup_dcookie": (212, 18),
    "nfsservctl": (180, 42),
}
_CLONE, _SOCKET, _IOCTL = (56, 220), (41, 198), (16, 29)
_CLONE3 = 435
"""Its flags are out of a filter's sight; libc falls back to clone when it is not there."""


def architectures() -> tuple[str, ...]:
    """Return the machines, as uname names them, whose system calls are known here."""
    return tuple(_AUDIT)


def program(machine: str, *, network: bool) -> bytes:
    """Return the filter as an array of struct sock_filter.

    machine: one of `architectures`. network: whether Internet sockets may be made; sockets other
    than Unix and Internet ones never. A call by another architecture's numbers ends the process.
    """
    column = list(_AUDIT).index(machine)
    steps: list[bytes] = []

    def step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> None:
        steps.append(struct.pack("=HBBI", code, if_true, if_false, value))

    def forbid(number: int, answer: int = errno.EPERM) -> None:
        step(_EQUAL, number, 0, 1)
        step(_RETURN, _ERRNO | answer)

    def judge(
        numbers: tuple[int, int],
        argument: int,
        test: int,
        values: Sequence[int],
        hit: int,
        miss: int,
    ) -> None:
        """Answer one call by a test of the low 32 bits of an argument."""
        step(_EQUAL, numbers[column], 0, 2 + 2 * len(values))
        step(_LOAD, _ARGUMENTS + 8 * argument)  # both machines are little-endian
        for value in values:
            step(test, value, 0, 1)
            step(_RETURN, hit)
        step(_RETURN, miss)

    step(_LOAD, _ARCHITECTURE)
    step(_EQUAL, _AUDIT[machine], 1, 0)
    step(_RETURN, _KILL)
    step(_LOAD, _NUMBER)
    step(_GREATER, _LAST_KNOWN, 0, 1)
    step(_RETURN, _ERRNO | errno.ENOSYS)
    for numbers in _FORBIDDEN.values():
        number = numbers[column]
        if number is not None:
            forbid(number)
    forbid(_CLONE3, errno.ENOSYS)
    refused = _ERRNO | errno.EPERM
    judge(_CLONE, 0, _ANY_BIT, [_NEW_NAMESPACES], refused, _ALLOW)
    judge(_IOCTL, 1, _EQUAL, _TERMINAL, refused, _ALLOW)
    families = [socket.AF_UNIX, *([socket.AF_INET, socket.AF_INET6] if network else [])]
    judge(_SOCKET, 0, _EQUAL, families, _ALLOW, refused)
    step(_RETURN, _ALLOW)
    return b"".join(steps)
