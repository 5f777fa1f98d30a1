"""What a process may: one value that every layer of the sandbox reads its own part of."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

BACKGROUND = 1 / 4
"""The weight of what nobody waits for at this moment, where the kernel knows no groups that yield:
small enough to be hardly felt, and large enough to come to its end on a machine that is never
idle."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confinement:
    """What a confined process, with all that it starts, may reach and use.

    It always may read Python, the package and the system's libraries, and write to a private
    scratch directory, its TMPDIR. Nothing else of the machine is there.
    """

    readable: tuple[Path, ...] = ()
    """More files and directories that it may read."""
    writable: tuple[Path, ...] = ()
    """Directories that it may write to, what it writes stays. Nothing bounds their size."""
    sockets: tuple[Path, ...] = ()
    """Directories in which it may make Unix sockets, and nothing else."""
    network: bool = False
    """Whether it sees the host's network; else it has one of its own with nobody in it."""
    scratch_bytes: int = 64 << 20
    """Size of the scratch directory, which lives in memory."""
    memory_bytes: int = 2 << 30
    """Of all its processes together, what they write to memory file systems included."""
    address_bytes: int | None = None
    """Address space of each process, for those that do not reserve more than they use."""
    processes: int = 128
    """Processes and threads."""
    cpus: float = 0.0
    """Cores; 0: whatever is free."""
    background: bool = False
    """Whether nobody waits for it at this moment: it yields the processor to who does not."""
    cpu_s: int | None = None
    """Seconds of processor time of each process."""
    file_bytes: int | None = None
    """Size of each file that it writes."""
    open_files: int = 1024
    """File descriptors of each process."""
