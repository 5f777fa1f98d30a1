"""Judges a model file before anything else opens it: in a sandbox, by a process that may die in
any way. The file is handed in as a descriptor; no name on any disk leads to it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from polyolo import telemetry
from polyolo.control.memfile import MemoryFile
from polyolo.errors import ModelRefusedError
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, Outcome
from polyolo.sandbox.programs import Program

TIME_S = 60.0
"""Seconds on the clock before the look is broken off."""
CONFINEMENT = Confinement(
    # Twice the largest file that a plan allows, twice over, and the 1.5 GiB that an inference
    # engine's libraries and thread stacks reserve.
    memory_bytes=4 << 30,
    address_bytes=4 << 30,
    cpu_s=60,  # of processor time; YOLOv8x loads in 2
    cpus=1.0,
    background=True,
    processes=64,  # threads; an engine starts one for each core that it sees
    file_bytes=1 << 20,
    scratch_bytes=1 << 20,
    open_files=256,
)
"""What a look into a file may use."""
_ENDED = {
    Ending.SIGNALLED: "it makes the engine that opens it crash",
    Ending.TIME: "it took longer than {time_s:.0f} s",
    Ending.CPU: "it took more processor time than it may",
    Ending.MEMORY: "it took more memory than it may",
    Ending.OUTPUT: "it said more than it may",
}


class CheckpointError(ModelRefusedError):
    """The file is a PyTorch checkpoint, which can be served only as what it is converted to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What was found in a model file."""

    family: str
    classes: tuple[str, ...] = ()
    """Class names by id; empty when the file does not tell."""
    input: tuple[int, ...] = ()
    licence: str = ""
    producer: str = ""
    opset: int = 0


def judge(
    file: MemoryFile, classes: Sequence[str], inspect: Program, *, time_s: float = TIME_S
) -> Facts:
    """Return what is in `file`, or raise ModelRefusedError with the reason, for its owner to read.

    classes: names by id that its owner gave beside it. inspect: looks into the file; besides its
    path it is given `--classes=NAME` for each name, and it prints one JSON object, Facts or
    `{"refused": "…", "checkpoint": true}`. Blocks up to `time_s` and more, and raises what the
    program does when it cannot be run.
    """
    named = [f"--classes={name}" for name in classes]  # joined, so that no name is an option
    outcome = inspect(file.descriptor, CONFINEMENT, time_s=time_s, words=named)
    return _read(outcome, time_s)


def _read(outcome: Outcome, time_s: float) -> Facts:
    try:
        said = msgspec.json.decode(outcome.output, type=dict[str, object])
        if isinstance(reason := said.get("refused"), str):
            if said.get("checkpoint") is True:
                raise CheckpointError(reason[:1000])
            raise ModelRefusedError(reason[:1000])
        if outcome.ending is Ending.EXITED and outcome.code == 0:
            return msgspec.convert(said, Facts)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        pass
    telemetry.logger("intake").warning(
        "a look into a file gave no answer", ending=outcome.ending.value, code=outcome.code
    )
    how = _ENDED.get(outcome.ending, "the program that reads it ended early")
    raise ModelRefusedError(
        f"the file could not be looked into: {how.format(time_s=time_s)}; "
        "export the model again as plain ONNX"
    )
