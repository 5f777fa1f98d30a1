"""A program that opens a stranger's file: the one thing that intake, gate and conversion ask for.

Whether it runs in this host's sandbox or in a pod of its own is nothing that they know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Outcome, run_job
from polyolo.sandbox.layers import Isolation

OUTPUT_BYTES = 1 << 20
"""Of stdout, where nobody says otherwise."""


class Program(Protocol):
    """Runs one program on one file after another, each time from nothing. Any thread may call."""

    def __call__(
        self,
        file: int,
        confinement: Confinement,
        *,
        time_s: float,
        words: Sequence[str] = (),
        result: int | None = None,
        output_bytes: int = OUTPUT_BYTES,
    ) -> Outcome:
        """Run it confined, and return what became of it; all of that is foreign.

        Its arguments are the path of what it reads, of what it writes if it writes, and `words`.
        file: descriptor of a sealed file in memory. time_s: seconds that it may take. result:
        descriptor of an empty file in memory, which gets what it wrote, at most `file_bytes` of
        the confinement. Blocks, a while longer than `time_s` where it has to wait for a place.
        Raises NotReadyError when it cannot be run at the moment, OSError when it never can.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Local:
    """A Program in the sandbox that this host gives."""

    command: tuple[str, ...]
    isolation: Isolation
    readable: tuple[Path, ...] | None = None
    """What it may read besides Python and the package. None: the files that its command names."""

    def __call__(
        self,
        file: int,
        confinement: Confinement,
        *,
        time_s: float,
        words: Sequence[str] = (),
        result: int | None = None,
        output_bytes: int = OUTPUT_BYTES,
    ) -> Outcome:
        """Run it (see Program)."""
        descriptors = [file] if result is None else [file, result]
        readable = _named(self.command) if self.readable is None else self.readable
        return run_job(
            [*self.command, *(f"/proc/self/fd/{one}" for one in descriptors), *words],
            replace(confinement, readable=readable),
            self.isolation,
            time_s=time_s,
            passed_fds=descriptors,
            output_bytes=output_bytes,
        )


def _named(command: Sequence[str]) -> tuple[Path, ...]:
    """Return the files of the operator's that a command names besides its program."""
    return tuple(path for path in map(Path, command[1:]) if path.is_absolute() and path.is_file())
