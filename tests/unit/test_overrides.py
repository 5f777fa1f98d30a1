"""Settings by file and environment: which one counts, and what is refused."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from polyolo.serving.overrides import Overrides, applied, in_environment, in_file
from polyolo.types import RuntimeSpec
from tests.unit.loads import model, spec

SPEC = spec(1, model("city", 1, confidence=0.3, iou=0.4), model("farm", 1))


def write(path: Path, document: Any) -> Path:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def settings(found: RuntimeSpec, name: str = "city") -> dict[str, Any]:
    one = next(model for model in found.models if model.name == name)
    version = one.versions[0]
    return {
        "confidence": one.settings.confidence,
        "iou": one.settings.iou,
        "classes": one.settings.classes,
        "engine": version.engine,
        "input_size": version.input_size,
    }


def test_the_file_counts_before_the_environment_and_that_before_the_spec(tmp_path: Path):
    """Field by field; a model's own before those of every model."""
    file = write(
        tmp_path / "settings.json",
        {"*": {"iou": 0.6, "classes": ["dog"]}, "farm": {"iou": 0.7, "engine": "openvino"}},
    )
    environment = {"POLYOLO_IOU": "0.5", "POLYOLO_INPUT_SIZE": "320", "POLYOLO_CLASSES": "cat, 3"}
    found = applied(SPEC, in_environment(environment), in_file(file))
    assert settings(found) == {
        "confidence": 0.3,
        "iou": 0.6,
        "classes": ("dog",),
        "engine": "",
        "input_size": 320,
    }
    assert settings(found, "farm")["iou"] == 0.7
    assert settings(found, "farm")["engine"] == "openvino"
    assert settings(applied(SPEC, in_environment(environment)))["classes"] == ("cat", 3)
    assert applied(SPEC, in_environment({}), {}) == SPEC


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"*": {"confidence": 2}}, r"settings of \*: confidence must lie between 0 and 1"),
        ({"city": {"treshold": 0.5}}, "no setting 'treshold' of city; there are confidence, iou"),
        ({"city": {"tolerance": 0.5}}, "no setting 'tolerance'"),
        ({"city": {"input_size": 33}}, "input_size must be 32 to 4096 in steps of 32"),
        ({"city": 7}, "cannot be used"),
        ("{", "cannot be used"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused(tmp_path: Path, document: Any, said: str):
    """Naming file, field and range."""
    file = write(tmp_path / "settings.json", document)
    with pytest.raises(ValueError, match=said) as refused:
        in_file(file)
    assert "settings.json" in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("POLYOLO_CONFIDENCE", "high", "POLYOLO_CONFIDENCE must be a number"),
        ("POLYOLO_CONFIDENCE", "1.5", "confidence must lie between 0 and 1"),
        ("POLYOLO_ENGINE", "magic", "engine must be one of"),
        ("POLYOLO_MAX_DETECTIONS", "0", "1 to 1000"),
    ],
)
def test_a_variable_that_cannot_be_used_is_refused(name: str, text: str, said: str):
    """A process with a typing error in its environment says so at its start."""
    with pytest.raises(ValueError, match=said):
        in_environment({name: text})


async def test_a_change_of_the_file_is_taken_over_and_a_broken_one_is_not(tmp_path: Path):
    """Also where the file is replaced, as a mounted ConfigMap is; what was in force stays."""
    file = write(tmp_path / "settings.json", {"*": {"iou": 0.6}})
    overrides = Overrides(file, {})
    told = asyncio.Event()
    following = asyncio.create_task(overrides.follow(told.set))

    async def taken_over(document: Any) -> float:
        told.clear()
        write(tmp_path / "next", document).rename(file)
        async with asyncio.timeout(5):
            await told.wait()
        return settings(overrides.apply(SPEC))["iou"]

    try:
        assert settings(overrides.apply(SPEC))["iou"] == 0.6
        assert await taken_over({"*": {"iou": 0.7}}) == 0.7
        write(tmp_path / "next", {"*": {"iou": 7}}).rename(file)
        assert await taken_over({"city": {"iou": 0.8}}) == 0.8
        file.unlink()
        assert settings(overrides.apply(SPEC))["iou"] == 0.8
        assert await taken_over({}) == 0.4
    finally:
        following.cancel()


def test_a_process_with_settings_that_cannot_be_used_does_not_start(tmp_path: Path):
    """Neither with a missing file nor with a broken one."""
    with pytest.raises(OSError, match="No such file"):
        Overrides(tmp_path / "none.json", {})
    with pytest.raises(ValueError, match="confidence"):
        Overrides(write(tmp_path / "x.json", {"*": {"confidence": -1}}), {})
