"""The layers of the sandbox, what each guards, and which of them a host gives."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from polyolo.sandbox.confinement import BACKGROUND, Confinement

if TYPE_CHECKING:  # they know the layers
    from polyolo.sandbox.cgroups import Group, Groups


class Layer(StrEnum):
    """One thing that a kernel can hold between a confined process and all else."""

    MOUNT = "mount namespace"
    PID = "PID namespace"
    NETWORK = "network namespace"
    IPC = "IPC namespace"
    UTS = "UTS namespace"
    USER = "user namespace"
    ACCOUNT = "own user id"
    SECCOMP = "seccomp"
    LANDLOCK = "Landlock"
    RLIMITS = "rlimits"
    MEMORY = "memory cgroup"
    PROCESSES = "pids cgroup"
    CPU = "cpu cgroup"


NAMESPACES = (Layer.MOUNT, Layer.PID, Layer.NETWORK, Layer.IPC, Layer.UTS, Layer.USER)
CGROUPS = (Layer.MEMORY, Layer.PROCESSES, Layer.CPU)

GUARDS: Mapping[Layer, str] = MappingProxyType(
    {
        Layer.MOUNT: "the platform's and other tenants' files and sockets; the disk",
        Layer.PID: "other processes: not seen, not signalled; all of its own end with it",
        Layer.NETWORK: "the network, loopback and abstract Unix sockets",
        Layer.IPC: "shared memory, semaphores and queues of other processes",
        Layer.UTS: "the host's name",
        Layer.USER: "capabilities: it has none over anything outside",
        Layer.ACCOUNT: "the platform's user: not root, and none that another runtime has",
        Layer.SECCOMP: "system calls that only an attack needs",
        Layer.LANDLOCK: "files outside its own; anything but sockets where its sockets are",
        Layer.RLIMITS: "file sizes, file descriptors, core dumps",
        Layer.MEMORY: "memory, of all its processes together",
        Layer.PROCESSES: "processes and threads",
        Layer.CPU: "processor time",
    }
)
"""What each layer keeps from harm."""

FIRST_USER, USERS = 0x70000000, 0x0FFFFFFF
"""User ids that no distribution and no container runtime gives to anybody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Isolation:
    """What this host gives to confined processes; `polyolo.sandbox.probe` finds it out."""

    missing: Mapping[Layer, str] = field(
        default_factory=lambda: dict.fromkeys(Layer, "not asked for")
    )
    """Why, for each layer that is not there."""
    interpreter: tuple[Path, ...] = ()
    """Where Python, the package and its libraries lie."""
    bubblewrap: str = ""
    groups: Groups | None = None
    """Where control groups are made, if they can be."""

    def __contains__(self, layer: Layer) -> bool:
        """Say whether the layer is there."""
        return layer not in self.missing

    @property
    def wrapped(self) -> bool:
        """Whether bubblewrap starts the processes: it makes the namespaces."""
        made = [one for one in NAMESPACES if one is not Layer.USER or Layer.ACCOUNT not in self]
        return bool(self.bubblewrap) and any(layer in self for layer in made)

    def group(self, confinement: Confinement) -> Group | None:
        """Return a new control group with the limits of a confinement; None: none can be made.

        The caller removes it. Raises OSError.
        """
        layers = [layer for layer in CGROUPS if layer in self]
        if self.groups is None or not layers:
            return None
        group = self.groups.make(layers)
        group.limit(
            memory_bytes=confinement.memory_bytes,
            processes=confinement.processes,
            cpus=confinement.cpus,
        )
        if confinement.background:
            group.weigh(BACKGROUND, yields=True)
        return group

    def group_of(self, pid: int) -> Group | None:
        """Return the control group that was made for a process; None without one."""
        return None if self.groups is None else self.groups.of(pid)

    def without(self, layers: Iterable[Layer], why: str = "switched off") -> Isolation:
        """Return the same without some layers."""
        return replace(self, missing={**self.missing, **dict.fromkeys(layers, why)})


UNCONFINED = Isolation()
"""No layer at all."""
