"""Tries, from inside a runtime's sandbox, what an attacker would: run by the driver as a runtime.

Prints one line, `REPORT {"what was tried": true where it worked, …}`. What to look for is in the
environment, as the attacker might know or guess it: ATTACK, a JSON object. Needs nothing installed.
Nothing here may do harm where it works: a layer of the sandbox is missing then, on a real machine.
"""

import ctypes
import errno
import json
import mmap
import os
import resource
import shutil
import signal
import socket
import stat
import sys
import time
from contextlib import suppress
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
X86 = os.uname().machine == "x86_64"
AIM = json.loads(os.environ["ATTACK"])
IO = Path(sys.argv[sys.argv.index("--socket") + 1]).parent
SCRATCH = Path(os.environ["TMPDIR"])


def call(x86, arm, *arguments):
    """Return whether the kernel would do it: whatever it says but that it may not be."""
    done = LIBC.syscall(x86 if X86 else arm, *arguments) >= 0
    return done or ctypes.get_errno() not in (errno.EPERM, errno.EACCES, errno.ENOSYS)


def may_write(path):
    """Return whether a file can be opened for writing; nothing is written."""
    with Path(path).open("ab") as file:
        return bool(file)


def connects(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(address)
        return True


def child(work, within=20.0):
    """Return whether a child does all of its work and lives."""
    pid = os.fork()
    if pid == 0:
        try:
            # Rather this one ends than the one that tells of it.
            Path("/proc/self/oom_score_adj").write_text("1000")
            work()
        except (OSError, MemoryError):
            os._exit(1)
        os._exit(0)
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return False


# --- Files and sockets ---


def host_files():
    return Path("/etc/passwd").exists() or Path("/etc/hostname").exists()


def neighbours_directory():
    return any(Path(AIM["neighbour"]).iterdir())


def neighbours_directory_is_there():
    return Path(AIM["neighbour"]).exists()


def neighbours_spec():
    return bool((Path(AIM["neighbour"]) / "spec.json").read_bytes())


def neighbours_socket():
    return connects(socket.AF_UNIX, str(Path(AIM["neighbour"]) / "io/runtime.sock"))


def operators_key():
    return bool((Path(AIM["home"]) / "operator.key").read_bytes())


def database():
    return bool((Path(AIM["home"]) / "polyolo.db").read_bytes())


def controls_socket():
    return connects(socket.AF_UNIX, str(Path(AIM["home"]) / "run/control.sock"))


def write_system():
    return may_write("/usr/bin/env")


def write_package():
    return may_write(shutil.__file__)


def write_own_spec():
    return may_write("spec.json")


def write_own_model():
    return may_write(next(Path("models").iterdir()))


def file_among_sockets():
    (IO / "file").write_text("x")
    return True


def lead_the_gateway_astray():
    (IO / "other.sock").symlink_to(Path(AIM["home"]) / "run/control.sock")
    return True


def run_what_was_written():
    program = SCRATCH / "true"
    shutil.copyfile("/usr/bin/true", program)
    program.chmod(0o755)
    return child(lambda: os.execv(program, ["true"]))


def device():
    os.mknod(SCRATCH / "device", stat.S_IFBLK | 0o666, os.makedev(254, 0))
    return True


def disks():
    found = [e for e in os.scandir("/dev") if stat.S_ISBLK(e.stat(follow_symlinks=False).st_mode)]
    return bool(found) or Path("/dev/mem").exists() or Path("/dev/kmsg").exists()


# --- Processes ---


def process_list():
    for entry in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended since
            if AIM["marker"].encode() in (entry / "cmdline").read_bytes():
                return True
    return False


def signal_neighbour():
    os.kill(AIM["pid"], 0)
    return Path(f"/proc/{AIM['pid']}").exists()


def signal_platform():
    os.kill(AIM["platform"], 0)
    return Path(f"/proc/{AIM['platform']}").exists()


def memory_of_neighbour():
    with Path(f"/proc/{AIM['pid']}/mem").open("rb") as file:
        return bool(file)


def environment_of_platform():
    return b"ATTACK-SECRET" in Path(f"/proc/{AIM['platform']}/environ").read_bytes()


def own_environment():
    return "ATTACK-SECRET" in "".join(os.environ.values())


def descriptors():
    """Anything open but the standard three and what this listing itself needs."""
    found = [int(entry.name) for entry in Path("/proc/self/fd").iterdir()]
    return any(number > 2 and _there(number) for number in found)


def _there(descriptor):
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


def trace():
    return child(lambda: os._exit(not call(101, 117, 0, 0, 0, 0)))


def read_other_memory():
    return call(310, 270, os.getpid(), 0, 0, 0, 0, 0)  # of nothing


# --- Network ---


def gateway():
    return connects(socket.AF_INET, ("127.0.0.1", AIM["port"]))


def interfaces():
    lines = Path("/proc/net/dev").read_text().splitlines()
    return any(":" in line and line.split(":")[0].strip() != "lo" for line in lines)


def abstract_socket():
    return connects(socket.AF_UNIX, "\0" + AIM["abstract"])


def netlink():
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW):
        return True


# --- The kernel ---


def shared_memory():
    return LIBC.shmget(AIM["segment"], 0, 0) >= 0


def host_name():
    return os.uname().nodename == AIM["host"]


def new_namespaces():
    return child(lambda: os._exit(not call(272, 97, 0x10000000)))


def new_namespaces_by_clone():
    pid = LIBC.syscall(56 if X86 else 220, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)
    if pid == 0:
        os._exit(0)
    return pid > 0 and bool(os.waitpid(pid, 0))


def mount():
    return call(165, 40, b"none", b"/usr/bin", b"no-such-kind", 0, None)


def unmount():
    return call(166, 39, b"/usr/bin", 0)  # is no mount


def root():
    return child(lambda: os.setuid(0))


def capabilities():
    lines = Path("/proc/self/status").read_text().splitlines()
    return any(int(line.split()[1], 16) for line in lines if line.startswith(("CapEff", "CapPrm")))


def users():
    return Path("/proc/self/uid_map").read_text().split()[2] != "1"


def platforms_user():
    inside, outside, _ = map(int, Path("/proc/self/uid_map").read_text().split())
    return os.getuid() - inside + outside == AIM["user"]


def sysctl():
    return may_write("/proc/sys/kernel/core_pattern")


def io_uring():
    return call(425, 425, 4, ctypes.create_string_buffer(120))


def userfaultfd():
    return call(323, 282, 1)


def keyring():
    return call(250, 219, 0, -3, 0)


def own_limits():
    for name in ("memory/memory.limit_in_bytes", "memory.max"):
        if (file := Path("/sys/fs/cgroup") / name).exists():
            return may_write(file)
    return False


def too_many_descriptors():
    held = []
    try:
        held.extend(os.open("/dev/null", os.O_RDONLY) for _ in range(9000))
    finally:
        for descriptor in held:
            os.close(descriptor)
    return True


def core_dump():
    return resource.getrlimit(resource.RLIMIT_CORE)[1] != 0


# --- More than its share, each in children, so that this process may tell ---


def memory():
    def take():
        area = mmap.mmap(-1, AIM["memory"] * 3 // 2)
        for at in range(0, len(area), mmap.PAGESIZE):
            area[at] = 1

    return child(take)


def disk():
    names = [SCRATCH / f"part{number}" for number in range(8)]
    try:
        for name in names:
            with name.open("wb") as file:
                for _ in range(12):
                    file.write(bytes(1 << 20))
    finally:
        for name in names:
            name.unlink(missing_ok=True)
    return True


def processes():
    started = []
    try:
        for _ in range(AIM["processes"] + 5):
            pid = os.fork()
            if pid == 0:
                time.sleep(60)
            started.append(pid)
    except OSError:
        return False
    else:
        return True
    finally:
        for pid in started:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def processor():
    """Whether four processes that take all they get are never made to wait by the kernel."""

    def spin():
        end = time.monotonic() + 0.3
        while time.monotonic() < end:
            pass
        os._exit(0)

    for _ in range(4):
        if os.fork() == 0:
            spin()
    for _ in range(4):
        os.wait()
    for name in ("cpu/cpu.stat", "cpu.stat"):
        if (file := Path("/sys/fs/cgroup") / name).exists():
            counts = dict(line.split() for line in file.read_text().splitlines())
            return int(counts.get("nr_throttled", 0)) == 0
    return True


SHARES = (memory, disk, processes, processor)
REACHES = (
    host_files, neighbours_directory, neighbours_directory_is_there, neighbours_spec,
    neighbours_socket, operators_key, database, controls_socket, write_system, write_package,
    write_own_spec, write_own_model, file_among_sockets, lead_the_gateway_astray,
    run_what_was_written, device, disks, process_list, signal_neighbour, signal_platform,
    memory_of_neighbour, environment_of_platform, own_environment, descriptors, trace,
    read_other_memory, gateway, interfaces, abstract_socket, netlink, shared_memory, host_name,
    new_namespaces, new_namespaces_by_clone, mount, unmount, root, capabilities, users,
    platforms_user, sysctl, io_uring, userfaultfd, keyring, own_limits, too_many_descriptors,
    core_dump,
)  # fmt: skip


def main():
    found = {}
    for attempt in [*REACHES, *(one for one in SHARES if one.__name__ in AIM["shares"])]:
        try:
            found[attempt.__name__] = bool(attempt())
        except (OSError, ValueError, StopIteration, MemoryError):
            found[attempt.__name__] = False
    print("REPORT", json.dumps(found), flush=True)
    time.sleep(60)


main()
