"""What is unloaded where memory is short, and what never is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from polyolo.errors import NotReadyError
from polyolo.serving.memory import Room
from polyolo.serving.repository import Repository
from polyolo.types import Resources, Rollout, VersionSpec
from tests.unit.loads import Loads, model, spec
from tests.unit.test_repository import answering, in_force, state


class Machine:
    """Memory for so many models of size 1: what `weigh` says of it."""

    def __init__(self, fits: int) -> None:
        self.fits = fits

    def __call__(self, _: VersionSpec, __: int, limit: int, pids: Sequence[int]) -> Room:
        assert limit == Resources().memory_bytes
        return Room(needed=1, left=self.fits - (len(pids) - 1))  # the runtime itself takes none


def states(made: Repository) -> dict[str, str]:
    return {f"{one.name}:{one.version}": one.state for one in made.status().models}


async def test_what_was_used_least_recently_is_unloaded_and_loads_again_on_demand():
    """Room for three: the default model stays, the others take turns; none fails."""
    loads = Loads()
    made = Repository(loads, lambda _: None, Machine(3))
    try:
        made.apply(spec(1, *(model(name, 1, versions=1) for name in "abcd")))
        await in_force(made, 1)
        assert loads.opened == ["a:1", "b:1", "c:1"]  # ahead as far as there is room
        assert states(made) == {"a:1": "ready", "b:1": "ready", "c:1": "ready", "d:1": "idle"}
        for name, unloaded in (("d", "b"), ("c", ""), ("b", "d"), ("a", ""), ("d", "c")):
            assert await answering(made, name) == f"{name}:1"
            assert made.why_not(name) == ""
            idle = {"b", "c", "d"} - {
                one[0] for one, state in states(made).items() if state == "ready"
            }
            assert len(idle) == 1
            if unloaded:
                assert idle == {unloaded}
        assert len(loads.opened) - len(loads.closed) == 3
        assert "a:1" not in loads.closed
    finally:
        await made.close()


async def test_what_requests_hold_is_not_unloaded():
    """Where nothing may go, a request is told how much memory is missing; the next one may fit."""
    loads = Loads()
    made = Repository(loads, lambda _: None, Machine(2))
    try:
        made.apply(spec(1, *(model(name, 1, versions=1) for name in "abc")))
        await in_force(made, 1)
        held = await made.acquire("b")
        with pytest.raises(NotReadyError, match="takes about 0 MiB and 0 MiB are left"):
            await made.acquire("c")
        assert states(made)["c:1"] == "idle"
        held.release()
        assert await answering(made, "c") == "c:1"
    finally:
        await made.close()


async def test_a_swap_unloads_others_and_never_what_it_replaces():
    """Old and new version are open side by side; a third model waits for its next request."""
    loads = Loads()
    made = Repository(loads, lambda _: None, Machine(2))
    try:
        made.apply(spec(1, model("a", 1), model("b", 1)))
        await in_force(made, 1)
        made.apply(spec(2, model("a", 2), model("b", 1)))
        await in_force(made, 2)
        assert await answering(made) == "a:2"
        assert loads.closed[0] == "b:1"
        assert await answering(made, "b") == "b:1"
    finally:
        await made.close()


async def test_a_swap_that_does_not_fit_leaves_the_old_version_and_says_so():
    """Alone on the machine: there is nothing to unload but what serves."""
    loads = Loads()
    made = Repository(loads, lambda _: None, Machine(1))
    try:
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        made.apply(spec(2, model("a", 2)))
        await in_force(made, 2)
        assert await answering(made) == "a:1"
        assert "MiB are left: give the runtime more memory" in state(made, "a", 2).reason
    finally:
        await made.close()


async def test_a_shadow_unloads_nothing():
    """A version on trial that does not fit takes no part: nobody pays for it."""
    loads = Loads()
    made = Repository(loads, lambda _: None, Machine(2))
    try:
        tried = replace(model("a", 1), rollout=Rollout(version=2, share=1.0, shadow=True))
        made.apply(spec(1, model("b", 1)))
        await in_force(made, 1)
        made.apply(spec(2, tried, model("b", 1)))
        await in_force(made, 2)
        assert "MiB are left" in state(made, "a", 2).reason
        assert loads.closed == []
    finally:
        await made.close()
