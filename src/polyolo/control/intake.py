"""Judges a model file before anything else opens it: in a child that may die in any way.

The child has limits on memory, processor time, time and files, no secret in its environment and
an empty directory to be in. `confined` is the place where a sandbox is put around it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from polyolo import telemetry
from polyolo.errors import ModelRefusedError

MEMORY_BYTES = 4 << 30
"""Address space of the child: twice the largest file that a plan allows, twice over, and the
1.5 GiB that an inference engine's libraries and thread stacks reserve."""
CPU_S = 60
"""Seconds of processor time; YOLOv8x loads in 2."""
TIME_S = 60.0
"""Seconds on the clock before the child is killed."""
_OUTPUT_BYTES = 1 << 20
"""Bytes that the child may write to any file, its answer included; 80 class names are 1 kB."""

# Runs first in the child: limits that its successor, in the same process, can only lower.
_LIMITER = """
import json, os, resource, sys
for name, value in json.loads(sys.argv[1]).items():
    resource.setrlimit(getattr(resource, name), (value, value))
os.execvp(sys.argv[2], sys.argv[2:])
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found in a model file."""

    family: str
    classes: tuple[str, ...] = ()
    """Class names by id; empty when the file does not tell."""
    input: tuple[int, ...] = ()


def judge(
    file: Path, classes: Sequence[str], command: Sequence[str], *, time_s: float = TIME_S
) -> Facts:
    """Return what is in `file`, or raise ModelRefusedError with the reason, for its owner to read.

    classes: names by id that its owner gave beside it. command: the program that looks into the
    file; the file's path and `--classes=NAME` for each are added, and it prints one JSON object,
    `{"family": …, "classes": […], "input": […]}` or `{"refused": "…"}`. Blocks up to `time_s`.
    """
    named = [f"--classes={name}" for name in classes]  # joined, so that no name is an option
    with (
        tempfile.TemporaryDirectory(prefix="polyolo-intake-") as empty,
        tempfile.TemporaryFile() as answer,
    ):
        try:
            code = subprocess.run(  # noqa: S603  # the operator's own command
                confined([*command, str(file), *named]),
                stdin=subprocess.DEVNULL,
                stdout=answer,  # a file, so that the limit on files bounds it
                stderr=subprocess.DEVNULL,
                cwd=empty,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "LANG": "C.UTF-8",
                    "TMPDIR": empty,
                    "POLYOLO_PARENT": str(os.getpid()),
                },
                start_new_session=True,
                timeout=time_s,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            raise ModelRefusedError(
                f"the file took longer than {time_s:.0f} s to look into; "
                "is it a plain ONNX export of a YOLO model?"
            ) from None
        answer.seek(0)
        text = answer.read(_OUTPUT_BYTES)
    return _read(code, text)


def confined(argv: Sequence[str]) -> list[str]:
    """Return the command line that runs `argv` within limits; the seam for a sandbox."""
    limits = {
        "RLIMIT_AS": MEMORY_BYTES,
        "RLIMIT_CPU": CPU_S,
        "RLIMIT_FSIZE": _OUTPUT_BYTES,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
    }
    return [sys.executable, "-I", "-S", "-c", _LIMITER, json.dumps(limits), *argv]


def _read(code: int, text: bytes) -> Facts:
    try:
        said = msgspec.json.decode(text, type=dict[str, object])
        if isinstance(reason := said.get("refused"), str):
            raise ModelRefusedError(reason[:1000])
        if code == 0:
            return msgspec.convert(said, Facts)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        pass
    telemetry.logger("intake").warning("the inspection gave no answer", exit_code=code)
    raise ModelRefusedError(
        "the file could not be looked into: it made the program that reads it end early; "
        "export the model again as plain ONNX"
    )
