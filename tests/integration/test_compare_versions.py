"""The comparison of two versions, by real models in a real sandbox."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec
import pytest

from polyolo.comparejob import ExpectedBox, Result, Sight, Subject, Task, packed
from polyolo.control.memfile import gathered
from polyolo.models import bundled, sample_boards
from polyolo.sandbox.confinement import Confinement
from polyolo.sandbox.job import Ending, run_job
from polyolo.sandbox.probe import probe
from polyolo.types import DetectionSettings
from tests.integration import troubled
from tests.integration.runtime import slow, yolov8
from tests.integration.test_serving_rollouts import without_light

GREY, WHITE = troubled.picture(white=False), troubled.picture(white=True)
COMMAND = [sys.executable, "-m", "polyolo.serving", "compare"]


def pieces(
    reference: bytes | None,
    candidate: bytes,
    pictures: Sequence[bytes],
    expected: Sequence[tuple[ExpectedBox, ...] | None] = (),
    **task: object,
) -> Iterator[bytes]:
    known = [*expected, *[None] * len(pictures)]
    subjects = [] if reference is None else [reference]
    return packed(
        Task(
            reference=None if reference is None else Subject(size=len(reference)),
            candidate=Subject(size=len(candidate)),
            pictures=tuple(
                Sight(size=len(picture), name=str(number), expected=boxes)
                for number, (picture, boxes) in enumerate(
                    zip(pictures, known, strict=False), start=1
                )
            ),
            **task,
        ),
        [[one] for one in (*subjects, candidate, *pictures)],
    )


def compared(tmp_path: Path, *of: object, **task: object) -> Result:
    """Run the comparison as a plain process."""
    file = tmp_path / "task"
    file.write_bytes(b"".join(pieces(*of, **task)))
    done = subprocess.run([*COMMAND, str(file)], capture_output=True, check=False)
    assert done.stdout, done.stderr.decode()
    result = msgspec.json.decode(done.stdout, type=Result)
    assert done.returncode == bool(result.refused)
    return result


def counts(result: Result) -> dict[str, tuple[int, int, int]]:
    assert result.candidate is not None
    classes = result.candidate.comparison.classes
    return {one.name: (one.both, one.missing, one.extra) for one in classes}


def test_in_the_sandbox_of_the_gate():
    """Confined as control confines it: two versions of the bundled model on the sample boards."""
    boards = [path.read_bytes() for path in sample_boards()]
    models = [bundled("pcb", number).read_bytes() for number in (1, 2)]
    with gathered(pieces(*models, boards)) as file:
        outcome = run_job(
            [*COMMAND, f"/proc/self/fd/{file.descriptor}"],
            Confinement(memory_bytes=6 << 30, cpus=1.0, processes=128, file_bytes=1 << 20),
            probe(),
            time_s=60,
            passed_fds=(file.descriptor,),
        )
    assert (outcome.ending, outcome.code) == (Ending.EXITED, 0), outcome.errors
    result = msgspec.json.decode(outcome.output, type=Result)
    assert result.candidate is not None
    assert result.reference is not None
    assert result.candidate.comparison.pictures == len(boards)
    assert 0.3 < result.candidate.comparison.agreement < 0.8
    assert result.reference.comparison.agreement == 1.0
    for showing in (result.candidate, result.reference):
        assert showing.milliseconds > 0
        assert showing.memory_bytes > 10_000_000


def test_known_boxes_say_which_version_is_better(tmp_path: Path):
    """Of the bundled ones, on the boards whose true boxes ship with them."""
    truth = json.loads((sample_boards()[0].parent / "truth.json").read_text())
    known = [
        tuple(
            ExpectedBox(class_name=one["class"], bbox=tuple(one["xyxy"]))
            for one in board["defects"]
        )
        for board in truth
    ]
    models = [bundled("pcb", number).read_bytes() for number in (1, 2)]
    boards = [(sample_boards()[0].parent / board["file"]).read_bytes() for board in truth]
    result = compared(tmp_path, *models, boards, known)
    assert result.candidate is not None
    assert result.reference is not None
    assert result.candidate.comparison.agreement > 0.95
    assert result.reference.comparison.agreement < 0.7


def test_what_is_missing_and_extra_is_counted_by_class(tmp_path: Path):
    """With what the reference sees, and with what is known: both on the same scene."""
    result = compared(tmp_path, yolov8(), without_light(), [GREY, GREY])
    assert counts(result) == {"dog": (2, 0, 0), "traffic light": (0, 2, 0), "cat": (0, 0, 2)}
    dog = ExpectedBox(class_name="dog", bbox=(8, 16, 40, 48))
    cow = ExpectedBox(class_name="cow", bbox=(1, 1, 9, 9))
    result = compared(tmp_path, None, yolov8(), [GREY], [(dog, cow)])
    assert counts(result) == {"dog": (1, 0, 0), "traffic light": (0, 0, 1), "cow": (0, 1, 0)}
    assert result.reference is None


def test_the_models_settings_count(tmp_path: Path):
    """Its classes and its threshold; a class that the new version lacks is a reason."""
    settings = DetectionSettings(classes=("dog",))
    result = compared(tmp_path, yolov8(), without_light(), [GREY], settings=settings)
    assert counts(result) == {"dog": (1, 0, 0)}
    settings = DetectionSettings(classes=("bird",))
    assert (
        "no class 'bird'" in compared(tmp_path, None, yolov8(), [GREY], settings=settings).refused
    )


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (b"no model", "the new version cannot be opened: the file is not an ONNX model"),
        (troubled.dies(), "the new version ended its process on the picture 2"),
        (troubled.no_numbers(), "the picture 2: the model gave values"),
    ],
)
def test_a_candidate_that_fails_is_refused(tmp_path: Path, candidate: bytes, said: str):
    """Whatever it does to its process, the comparison says what."""
    refused = compared(tmp_path, yolov8(), candidate, [GREY, WHITE]).refused
    assert refused.startswith(said), refused


def test_a_reference_that_fails_only_stands_aside(tmp_path: Path):
    """What is broken must not keep what is better from taking its place."""
    result = compared(tmp_path, troubled.dies(), yolov8(), [GREY, WHITE, GREY])
    assert result.refused == ""
    assert result.without_reference == "the version in use ended its process on the picture 2"
    assert counts(result) == {"dog": (1, 0, 0), "traffic light": (1, 0, 0)}


def test_pictures_beyond_the_time_are_left_out(tmp_path: Path):
    """One is looked at in any case; the result says how many were not."""
    result = compared(tmp_path, None, slow(50), [GREY] * 5, within_s=0.0)
    assert result.left_out == 4


def test_a_picture_that_is_none_is_named(tmp_path: Path):
    """Its owner can put another one in its place."""
    refused = compared(tmp_path, None, yolov8(), [GREY, GREY[:40]]).refused
    assert refused.startswith("the picture 2: ")


def test_an_input_size_that_a_graph_does_not_have_is_refused(tmp_path: Path):
    """Named as the field that is to blame."""
    model = yolov8()
    task = Task(candidate=Subject(size=len(model), input_size=320))
    (tmp_path / "task").write_bytes(b"".join(packed(task, [[model]])))
    done = subprocess.run([*COMMAND, str(tmp_path / "task")], capture_output=True, check=False)
    said = msgspec.json.decode(done.stdout, type=Result).refused
    assert "input_size: its input is fixed at 64 x 64" in said
