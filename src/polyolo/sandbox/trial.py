"""Tries a set of layers out: what a Python reads, and whether a process starts with them at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import polyolo
from polyolo.sandbox.command import Place, command
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.layers import FIRST_USER, Isolation

_TRY_S = 20.0
"""Seconds that a trial may take; it takes 20 ms."""


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


def fails(isolation: Isolation) -> str:
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
