"""Has .pt files turned into ONNX, where the operator wants that: locked in, or not at all.

A .pt file is a Python pickle, a program that runs while it is read. So it is read by another
Python, of an environment that holds nothing else, in a pod of its own or where no layer of this
host's sandbox is missing that could let it out. Only the bytes that it writes into one descriptor
are kept, and those are judged like any file that a stranger sends.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

import polyolo
from polyolo import telemetry
from polyolo.control.memfile import MemoryFile, gathered
from polyolo.errors import ModelRefusedError
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome
from polyolo.sandbox.layers import Isolation, Layer
from polyolo.sandbox.programs import Local, Program

TIME_S = 300.0
"""Seconds for one conversion: importing PyTorch takes 5, a YOLOv8x 40 on a slow core."""
NEEDED = (
    *(Layer.MOUNT, Layer.PID, Layer.NETWORK, Layer.IPC, Layer.UTS),
    *(Layer.SECCOMP, Layer.RLIMITS),
)
"""Layers without which nothing is converted on this host; and one of the next two."""
_UNPRIVILEGED = (Layer.USER, Layer.ACCOUNT)
_PROGRAM = Path(polyolo.__file__).with_name("converter.py")
_ASK = "import sys; print(sys.prefix, sys.base_prefix, sep='\\n')"
_HELP = (
    "export it where you trained it (with ultralytics: yolo export model=FILE format=onnx) and "
    "push the .onnx file"
)
_WHAT = "the file is a PyTorch checkpoint (.pt), a program that would run while it is read"
_NOBODY = (
    f"{_WHAT}: {_HELP}. The operator of this platform can have such files converted, in a "
    "sandbox, with --converter"
)
_ENDED = {
    Ending.SIGNALLED: "it was ended by a signal",
    Ending.TIME: "it took longer than {time_s:.0f} s",
    Ending.CPU: "it took more processor time than it may",
    Ending.MEMORY: "it took more memory than it may",
    Ending.OUTPUT: "it said more than it may",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Converter:
    """What converts, or why nothing does."""

    program: Program | None = None
    refusal: str = _NOBODY
    """What is said where there is no program."""
    time_s: float = TIME_S


def anywhere() -> tuple[str, ...]:
    """Return the command that converts by a Python with ultralytics, be polyolo there or not."""
    return ("python3", "-I", "-c", _PROGRAM.read_text())


def here(command: str, isolation: Isolation) -> Converter:
    """Return the converter of this host; for an empty command one that refuses.

    command: the Python of an environment with ultralytics, or any command that takes the paths of
    an input and an output. Raises OSError when there is no such program.
    """
    words = shlex.split(command)
    if not words:
        return Converter()
    program = shutil.which(words[0])
    if program is None:
        raise OSError(f"the converter {words[0]} is not a program; see --converter")
    missing = [layer for layer in NEEDED if layer not in isolation]
    if not any(layer in isolation for layer in _UNPRIVILEGED):
        missing.append(Layer.USER)
    if missing:
        return Converter(
            refusal=f"{_WHAT}, and this platform's host cannot lock it in ({', '.join(missing)} "
            f"missing): {_HELP}"
        )
    # Not resolved: an environment's Python is a link, and knows its environment by its own path.
    python = Path(program).absolute()
    if len(words) == 1:
        words = [str(python), "-I", str(_PROGRAM)]
    named = (Path(word) for word in words[1:])
    files = [path for path in named if path.is_absolute() and path.exists()]
    return Converter(
        program=Local(
            command=(str(python), *words[1:]),
            isolation=isolation,
            readable=tuple({*_prefixes(python), *files}),
        )
    )


@contextmanager
def converted(file: MemoryFile, converter: Converter, limit: int) -> Iterator[MemoryFile]:
    """Yield what a checkpoint becomes, not judged yet. limit: its bytes at most.

    Raises ModelRefusedError with the reason, and what the program does when it cannot be run.
    Blocks, up to the converter's time and more.
    """
    if converter.program is None:
        raise ModelRefusedError(converter.refusal)
    result = os.memfd_create("converted", os.MFD_CLOEXEC)
    try:
        outcome = converter.program(
            file.descriptor,
            _confinement(converter, limit),
            time_s=converter.time_s,
            result=result,
            output_bytes=64 << 10,
        )
        size = os.fstat(result).st_size
        if outcome.ending is not Ending.EXITED or outcome.code != 0 or not 0 < size <= limit:
            raise ModelRefusedError(_failed(outcome, converter.time_s))
        # A copy, which nobody else has a descriptor of.
        with gathered(_pieces(result)) as onnx:
            yield onnx
    finally:
        os.close(result)


def _confinement(converter: Converter, limit: int) -> Confinement:
    return Confinement(
        memory_bytes=6 << 30,
        address_bytes=16 << 30,  # PyTorch's libraries reserve several GiB
        cpu_s=int(converter.time_s),
        cpus=1.0,
        background=True,
        processes=64,
        file_bytes=limit,
        scratch_bytes=2 * limit + (64 << 20),  # the checkpoint, what it becomes, settings
        open_files=256,
    )


def _failed(outcome: Outcome, time_s: float) -> str:
    telemetry.logger("conversion").warning(
        "a conversion failed", ending=outcome.ending.value, code=outcome.code
    )
    how = _ENDED.get(outcome.ending, "").format(time_s=time_s)
    try:
        said = msgspec.json.decode(outcome.output, type=dict[str, str]).get("refused", "")
    except (msgspec.MsgspecError, UnicodeDecodeError):
        said = ""
    line = " ".join("".join(c if c.isprintable() else " " for c in said).split())[:300]
    why = how or (f"the converter says: {line!r}" if line else "it gave no ONNX file")
    return f"the .pt file could not be converted, {why}; {_HELP}"


def _pieces(descriptor: int) -> Iterator[bytes]:
    at = 0
    while piece := os.pread(descriptor, 1 << 20, at):
        yield piece
        at += len(piece)


def _prefixes(python: Path) -> tuple[Path, ...]:
    """Return where a Python keeps its libraries; its own file for what is none."""
    try:
        said = subprocess.run(  # noqa: S603  # the operator's own command
            [str(python), "-I", "-c", _ASK],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20.0,
            check=True,
        ).stdout.splitlines()
    except (subprocess.SubprocessError, UnicodeDecodeError):
        return (python,)
    return tuple({path for path in map(Path, said) if path.is_dir()} | {python.parent})
