"""Rollouts in a runtime: who gets the version on trial, and what becomes of one that fails."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from polyolo.errors import ModelRefusedError
from polyolo.rollouts import ClassCounts, Rollout, compared
from polyolo.serving.repository import Repository
from polyolo.serving.rollouts import chosen
from polyolo.types import ModelStatus, RuntimeSpec, VersionSpec
from tests.unit.loads import Loads, model, spec
from tests.unit.test_repository import in_force, until

IDS = [hashlib.md5(str(n).encode()).hexdigest() for n in range(2000)]


@asynccontextmanager
async def trying(
    rollout: Rollout, loads: Loads | None = None, *, fallback: int = 0
) -> AsyncIterator[tuple[Repository, Loads]]:
    """Serve `a:1` with a rollout, once the spec is in force."""
    loads = loads or Loads()
    made = Repository(loads, lambda _: None)
    made.apply(spec(1, replace(model("a", 1), rollout=rollout, fallback=fallback)))
    try:
        await in_force(made, 1)
        yield made, loads
    finally:
        await made.close()


async def versions(made: Repository, ids: list[str], *asked) -> list[int]:
    """Return which version answers each request."""
    found = []
    for request_id in ids:
        lease = await made.acquire(*(asked or (None, None)), request_id)
        found.append(lease.model.ref.version)
        lease.release()
    return found


def on_trial(made: Repository) -> ModelStatus:
    return next(one for one in made.status().models if one.rollout is not None)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.2, 0.5, 1.0])
def test_the_share_is_met_and_an_id_always_gets_the_same(share: float):
    """Of 2,000 ids within 3 points; none of 0, all of 1; a larger share holds the smaller one."""
    taken = {one for one in IDS if chosen(one, share)}
    assert abs(len(taken) / len(IDS) - share) < 0.03
    assert taken == {one for one in IDS if chosen(one, share)}
    assert taken <= {one for one in IDS if chosen(one, min(1.0, share + 0.2))}


def test_the_hash_is_the_documented_one():
    """Clients may work out themselves which version a request will see."""
    fraction = int.from_bytes(hashlib.sha256(b"abc").digest()[:8], "big") / 2**64
    assert chosen("abc", fraction + 1e-9)
    assert not chosen("abc", fraction - 1e-9)


async def test_a_canary_answers_its_share_of_those_who_name_no_version():
    """Who names a version gets that one; the counts tell what the share was."""
    async with trying(Rollout(version=2, share=0.2)) as (made, loads):
        assert loads.opened == ["a:1", "a:2"]
        found = await versions(made, IDS)
        assert found == [2 if chosen(one, 0.2) else 1 for one in IDS]
        assert set(await versions(made, IDS, "a", 1)) == {1}
        assert set(await versions(made, IDS, "a", 3)) == {3}
        status = on_trial(made)
        assert (status.version, status.state) == (2, "ready")
        assert status.rollout is not None
        assert (status.rollout.seen, status.rollout.requests) == (2000, found.count(2))


async def test_a_shadow_is_opened_apart_and_answers_nobody():
    """The current version answers everything; those chosen are marked for a copy."""
    async with trying(Rollout(version=2, share=1.0, shadow=True)) as (made, loads):
        assert set(await versions(made, IDS[:50])) == {1}
        lease = await made.acquire("a", 2)
        lease.release()
        assert loads.opened == ["a:1", "a:2", "a:2"]  # by name: another process, at full speed
        lease = await made.acquire(None, None, "x")
        assert lease.chosen
        assert not lease.canary
        lease.release()


async def test_a_canary_that_cannot_load_takes_no_part():
    """Nobody notices but the status, which says why; it is in force as far as it can be."""
    loads = Loads()
    loads.refuse["a:2"] = ModelRefusedError("it has no head")
    for shadow in (False, True):
        async with trying(Rollout(version=2, share=1.0, shadow=shadow), loads) as (made, _):
            assert set(await versions(made, IDS[:50])) == {1}
            status = on_trial(made)
            assert status.state == "failed"
            assert "it has no head" in status.reason


async def test_a_canary_whose_process_ends_is_out():
    """One crash is enough: the current version answers from then on, and the status says why."""
    async with trying(Rollout(version=2, share=1.0)) as (made, _):
        lease = await made.acquire(None, None, "x")
        assert lease.canary
        lease.model.crashes = 1
        lease.model.last_end = "it was ended by signal SIGSEGV"
        lease.release()
        assert set(await versions(made, IDS[:50])) == {1}
        assert on_trial(made).state == "failed"
        assert "SIGSEGV" in on_trial(made).reason


async def test_no_request_waits_for_a_canary_to_load():
    """Until it is open, the current version answers, and nothing is counted."""
    loads = Loads()
    gate = loads.hold("a:2")
    made = Repository(loads, lambda _: None)
    try:
        made.apply(spec(1, replace(model("a", 1), rollout=Rollout(version=2, share=1.0))))
        await until(lambda: "a:2" in loads.asked)
        assert await versions(made, IDS[:3]) == [1, 1, 1]
        assert made.status().observed_generation == 0
        gate.set()
        await in_force(made, 1)
        assert await versions(made, IDS[:3]) == [2, 2, 2]
        rollout = on_trial(made).rollout
        assert rollout is not None
        assert rollout.seen == 3
    finally:
        await made.close()


@pytest.mark.parametrize("shadow", [False, True])
async def test_an_aborted_rollout_ends_at_once(shadow: bool):
    """The next request is the current version's; a shadow's process goes."""
    async with trying(Rollout(version=2, share=1.0, shadow=shadow)) as (made, loads):
        made.apply(spec(2, model("a", 1)))
        assert await versions(made, ["x"]) == [1]
        assert not any(one.rollout for one in made.status().models)
        await in_force(made, 2)
        if shadow:
            await until(lambda: loads.closed == ["a:2"])


async def test_a_promoted_canary_is_in_force_without_another_load():
    """Its process goes on as the current one's; a shadow's is replaced by one at full speed."""
    async with trying(Rollout(version=2, share=0.5)) as (made, loads):
        made.apply(spec(2, model("a", 2)))
        await in_force(made, 2)
        assert loads.opened == ["a:1", "a:2"]
        assert set(await versions(made, IDS[:50])) == {2}
    async with trying(Rollout(version=2, share=0.5, shadow=True)) as (made, loads):
        made.apply(spec(2, model("a", 2)))
        await in_force(made, 2)
        assert loads.opened == ["a:1", "a:2", "a:2"]
        await until(lambda: sorted(loads.closed) == ["a:1", "a:2"])


async def test_another_share_keeps_the_counts_and_another_rollout_does_not():
    """`since` tells the same rollout from the next one of the same version."""
    async with trying(Rollout(version=2, share=1.0, since=1)) as (made, _):
        await versions(made, IDS[:10])
        made.apply(spec(2, replace(model("a", 1), rollout=Rollout(version=2, share=0.0, since=1))))
        await versions(made, IDS[:10])
        rollout = on_trial(made).rollout
        assert rollout is not None
        assert (rollout.seen, rollout.requests) == (20, 10)
        made.apply(spec(3, replace(model("a", 1), rollout=Rollout(version=2, share=1.0, since=3))))
        await in_force(made, 3)
        rollout = on_trial(made).rollout
        assert rollout is not None
        assert rollout.seen == 0


def grown(version: VersionSpec) -> VersionSpec:
    return replace(version, input_size=320)


async def test_a_change_of_engine_or_size_swaps_current_and_canary_behind():
    """Another VersionSpec under the same number is opened beside the old one."""
    async with trying(Rollout(version=2, share=1.0)) as (made, loads):
        before = replace(model("a", 1), rollout=Rollout(version=2, share=1.0))
        after = replace(before, versions=tuple(grown(one) for one in before.versions))
        gate = loads.hold("a:1")
        made.apply(spec(2, after))
        await until(lambda: loads.asked.count("a:1") == 2)
        assert await versions(made, ["x"]) == [1]
        assert await versions(made, ["x"], "a", 1) == [1]
        gate.set()
        await in_force(made, 2)
        assert loads.opened == ["a:1", "a:2", "a:1", "a:2"]
        lease = await made.acquire(None, None, "x")
        assert lease.canary
        assert lease.model.version.input_size == 320
        lease.release()


async def test_what_keeps_crashing_is_taken_out_and_the_fallback_serves():
    """Requests wait for it, no longer; the status keeps reason and crashes; a spec that makes
    another version current forgives, one that changes settings does not."""
    loads = Loads()
    made = Repository(loads, lambda _: None)

    def wanted(generation: int, current: int, **settings) -> RuntimeSpec:
        return spec(generation, replace(model("a", current, **settings), fallback=1))

    try:
        made.apply(wanted(1, 2))
        await in_force(made, 1)
        lease = await made.acquire()
        lease.release()
        lease.model.crashes, lease.model.down = 5, "its process ended 5 times"
        lease.model.on_down(lease.model)
        assert await versions(made, ["x"]) == [1]
        await until(lambda: loads.closed == ["a:2"])
        (second,) = (one for one in made.status().models if one.version == 2)
        assert (second.state, second.crashes) == ("failed", 5)
        assert second.reason == "its process ended 5 times"
        assert made.not_ready() == ""
        assert made.why_not("a") == ""
        made.apply(wanted(2, 2, confidence=0.9))
        await in_force(made, 2)
        assert await versions(made, ["x"]) == [1]
        assert loads.opened == ["a:2", "a:1"]
        made.apply(spec(3, model("a", 1)))
        made.apply(wanted(4, 2))
        await in_force(made, 4)
        assert await versions(made, ["x"]) == [2]
    finally:
        await made.close()


async def test_without_a_fallback_what_keeps_crashing_stays():
    """It is tried again when its pause is over; meanwhile the status says why it is down."""
    loads = Loads()
    made = Repository(loads, lambda _: None)
    try:
        made.apply(spec(1, model("a", 2)))
        await in_force(made, 1)
        lease = await made.acquire()
        lease.release()
        lease.model.crashes, lease.model.down = 5, "its process ended 5 times"
        lease.model.on_down(lease.model)
        again = await made.acquire()
        again.release()
        assert again.model is lease.model
        (second,) = (one for one in made.status().models if one.version == 2)
        assert (second.state, second.crashes) == ("failed", 5)
    finally:
        await made.close()


async def test_a_current_version_that_cannot_load_at_the_start_is_stood_in_for():
    """A runtime that starts with a broken current version serves the one before it."""
    loads = Loads()
    loads.refuse["a:2"] = ModelRefusedError("its sha256 differs")
    made = Repository(loads, lambda _: None)
    try:
        made.apply(spec(1, replace(model("a", 2), fallback=1)))
        await in_force(made, 1)
        assert made.not_ready() == ""
        assert await versions(made, ["x"]) == [1]
        (second,) = (one for one in made.status().models if one.version == 2)
        assert second.reason == "its sha256 differs"
        assert second.crashes == 0
    finally:
        await made.close()


def test_counts_of_a_class_add_up():
    """Agreement is what both have as a part of all; where there is nothing they agree."""
    both = compared(
        2,
        [
            ClassCounts(name="dog", both=3),
            ClassCounts(name="cat", missing=1),
            ClassCounts(name="dog", both=3, extra=1),
            ClassCounts(name="cow"),
        ],
    )
    assert both.agreement == 0.75
    assert both.boxes == 8
    assert [one.name for one in both.classes] == ["cat", "dog"]
    assert both.classes[1] == ClassCounts(name="dog", both=6, extra=1)
    assert compared(1, []).agreement == 1.0


def test_a_share_out_of_range_is_refused():
    """Naming field and range."""
    for share in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="share must lie between 0 and 1"):
            Rollout(version=1, share=share)


async def test_closing_ends_a_shadow_too():
    """Nothing is left behind."""
    async with trying(Rollout(version=2, share=1.0, shadow=True)) as (_, loads):
        pass
    assert sorted(loads.closed) == ["a:1", "a:2"]
    await asyncio.sleep(0)
