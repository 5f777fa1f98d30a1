"""A runtime of one release works with a control plane of the next one, and the other way round."""

from __future__ import annotations

import dataclasses
from typing import Any

import msgspec

from polyolo.rollouts import ClassCounts, Rollout, RolloutStatus, compared
from polyolo.types import (
    DetectionSettings,
    ModelSpec,
    ModelStatus,
    Phase,
    Resources,
    RuntimeSpec,
    RuntimeStatus,
    VersionSpec,
)
from tests.unit import release_0_1 as old


def known(value: Any) -> Any:
    """Return a dataclass with all that it holds as plain values."""
    return msgspec.json.decode(msgspec.json.encode(value))


def within(small: Any, large: Any) -> bool:
    """Say whether everything in one document stands in the other one, with the same value."""
    if isinstance(small, dict):
        return all(within(value, large[name]) for name, value in small.items())
    if isinstance(small, list):
        return len(small) == len(large) and all(map(within, small, large))
    return bool(small == large)


def test_documents_of_the_last_release_are_read_whole():
    """What it says is understood as it was meant; what it does not know has its default."""
    spec = msgspec.json.decode(old.SPEC, type=RuntimeSpec)
    assert within(msgspec.json.decode(old.SPEC), known(spec))
    assert spec.models[0].rollout is None
    assert spec.models[0].fallback == 0
    assert spec.models[0].versions[0].input_size == 0
    status = msgspec.json.decode(old.STATUS, type=RuntimeStatus)
    assert within(msgspec.json.decode(old.STATUS), known(status))
    assert status.models[0].rollout is None


def test_documents_of_this_release_are_read_by_the_last_one():
    """It overlooks what it does not know, and finds all that it does."""
    spec = RuntimeSpec(
        tenant="t_0123456789",
        generation=8,
        default_model="city",
        models=(
            ModelSpec(
                name="city",
                current=2,
                versions=(
                    VersionSpec(version=1, digest="aa", uri="a"),
                    VersionSpec(version=2, digest="bb", uri="b", input_size=320, golden=("g",)),
                ),
                settings=DetectionSettings(confidence=0.4),
                rollout=Rollout(version=1, share=0.2, shadow=True, since=8),
                fallback=1,
            ),
        ),
        replicas=2,
        resources=Resources(cpus=2.0),
        release="0.1",
    )
    seen = msgspec.json.decode(msgspec.json.encode(spec), type=old.RuntimeSpec)
    assert within(known(seen), known(spec))
    status = RuntimeStatus(
        tenant="t_0123456789",
        phase=Phase.READY,
        observed_generation=8,
        models=(
            ModelStatus(
                name="city",
                version=2,
                state="ready",
                crashes=3,
                memory_bytes=5,
                rollout=RolloutStatus(
                    seen=5, comparison=compared(1, [ClassCounts(name="cat", both=1)])
                ),
            ),
        ),
        release="0.2",
    )
    told = msgspec.json.decode(msgspec.json.encode(status), type=old.RuntimeStatus)
    assert within(known(told), known(status))


def test_no_field_of_the_last_release_was_dropped_or_made_to_be_told():
    """A field is added with a default and is never renamed."""
    for before, now in (
        (old.VersionSpec, VersionSpec),
        (old.ModelSpec, ModelSpec),
        (old.RuntimeSpec, RuntimeSpec),
        (old.ModelStatus, ModelStatus),
        (old.RuntimeStatus, RuntimeStatus),
        (old.DetectionSettings, DetectionSettings),
    ):
        names = {field.name for field in dataclasses.fields(before)}
        fields = {field.name: field for field in dataclasses.fields(now)}
        assert names <= fields.keys(), now
        for name in fields.keys() - names:
            field = fields[name]
            told = (field.default, field.default_factory)
            assert told != (dataclasses.MISSING, dataclasses.MISSING), f"{now}.{name}"
    assert {phase.value for phase in old.Phase} <= {phase.value for phase in Phase}
