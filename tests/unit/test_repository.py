"""The repository: what is loaded follows the spec, and a request never meets a closed model."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from polyolo.errors import (
    ConflictError,
    InvalidValueError,
    ModelRefusedError,
    NotFoundError,
    NotReadyError,
)
from polyolo.serving.repository import Repository
from polyolo.types import (
    ModelSpec,
    ModelStatus,
    Phase,
    RuntimeSpec,
)
from tests.unit.loads import Loads, model, spec, version


@asynccontextmanager
async def repository(load: Callable) -> AsyncIterator[tuple[Repository, list[str]]]:
    swaps: list[str] = []
    made = Repository(load, swaps.append)
    try:
        yield made, swaps
    finally:
        if isinstance(load, Loads):
            for gate in load.gates.values():
                gate.set()
        await made.close()


async def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        await asyncio.sleep(0.001)


async def in_force(made: Repository, generation: int) -> None:
    await until(lambda: made.status().observed_generation == generation)


def state(made: Repository, name: str, number: int) -> ModelStatus:
    (found,) = (one for one in made.status().models if (one.name, one.version) == (name, number))
    return found


async def answering(made: Repository, *asked) -> str:
    """Return the version that a request gets."""
    lease = await made.acquire(*asked)
    lease.release()
    return str(lease.model.ref)


async def test_current_versions_load_at_once_and_the_default_model_first():
    """Ready means that the default model answers; other versions stay idle until asked for."""
    loads = Loads()
    async with repository(loads) as (made, _):
        assert made.not_ready()
        gate = loads.hold("b:2")
        made.apply(spec(1, model("b", 2), model("a", 1)))
        await until(lambda: loads.asked)
        assert made.status().phase is Phase.STARTING
        assert made.not_ready() == "the default model b:2 is loading"
        gate.set()
        await in_force(made, 1)
        assert loads.opened == ["b:2", "a:1"]
        assert made.status().phase is Phase.READY
        assert state(made, "b", 2).state == "ready"
        assert state(made, "b", 2).family == "yolox"
        assert state(made, "b", 1).state == "idle"
        assert await answering(made) == "b:2"
        assert await answering(made, "a") == "a:1"


async def test_an_unknown_model_or_version_is_not_found():
    """Neither a name nor a version that the spec does not give is ever loaded."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        for asked in (("nope", None), ("a", 7), ("a", 0)):
            with pytest.raises(NotFoundError):
                await made.acquire(*asked)


async def test_a_version_on_demand_loads_once_for_all_who_wait():
    """Requests for a version that is not loaded share one load."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        gate = loads.hold("a:2")
        asked = [asyncio.create_task(answering(made, "a", 2)) for _ in range(5)]
        await until(lambda: "a:2" in loads.asked)
        assert state(made, "a", 2).state == "loading"
        gate.set()
        assert await asyncio.gather(*asked) == ["a:2"] * 5
        assert loads.asked.count("a:2") == 1
        assert await answering(made) == "a:1"


async def test_a_request_that_gives_up_does_not_cost_others_the_load():
    """Cancelling one waiter leaves the load to the others."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        gate = loads.hold("a:2")
        impatient = asyncio.create_task(answering(made, "a", 2))
        patient = asyncio.create_task(answering(made, "a", 2))
        await until(lambda: "a:2" in loads.asked)
        impatient.cancel()
        gate.set()
        assert await patient == "a:2"


async def test_loading_what_is_loaded_is_the_hot_swap():
    """The old version answers until the new one can, and closes with its last request."""
    loads = Loads()
    async with repository(loads) as (made, swaps):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        held = await made.acquire("a")
        gate = loads.hold("a:2")
        made.apply(spec(2, model("a", 2)))
        await until(lambda: "a:2" in loads.asked)
        assert await answering(made) == "a:1"
        assert made.status().phase is Phase.READY
        assert made.status().observed_generation == 1
        gate.set()
        await in_force(made, 2)
        assert await answering(made) == "a:2"
        assert loads.closed == []
        assert swaps == ["a"]
        held.release()
        await until(lambda: loads.closed == ["a:1"])


async def test_a_failed_load_leaves_the_old_version_serving_and_says_why():
    """The spec counts as observed; the status names the version and the reason."""
    loads = Loads()
    loads.refuse["a:2"] = ModelRefusedError("it has no head")
    loads.refuse["a:3"] = OSError(11, "Resource temporarily unavailable", "/secret/place")
    loads.refuse["b:1"] = ZeroDivisionError()
    async with repository(loads) as (made, swaps):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        made.apply(spec(2, model("a", 2), model("b", 1)))
        await in_force(made, 2)
        assert await answering(made) == "a:1"
        assert made.not_ready() == ""
        assert state(made, "a", 2).state == "failed"
        assert state(made, "a", 2).reason == "it has no head"
        assert state(made, "b", 1).reason == "loading failed unexpectedly (ZeroDivisionError)"
        for asked, reason in ((("a", 2), "it has no head"), (("a", 3), "cannot be started: Res")):
            with pytest.raises(NotReadyError, match=reason):
                await made.acquire(*asked)
        assert "secret" not in state(made, "a", 3).reason
        assert swaps == []
        assert loads.closed == []


async def test_a_default_model_that_fails_from_the_start_is_reported_not_ready():
    """The reason reaches whoever asks for readiness, and the same spec again tries again."""
    loads = Loads()
    loads.refuse["a:1"] = ModelRefusedError("its sha256 differs")
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        assert made.not_ready() == "the default model a:1 failed to load: its sha256 differs"
        assert made.status().reason == made.not_ready()
        with pytest.raises(NotReadyError, match="sha256"):
            await made.acquire()
        loads.refuse.clear()
        made.apply(spec(1, model("a", 1)))
        await until(lambda: made.status().phase is Phase.READY)


async def test_settings_change_without_a_load():
    """A spec that differs in settings alone is in force for the next request."""
    loads = Loads()
    async with repository(loads) as (made, swaps):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        made.apply(spec(2, model("a", 1, confidence=0.9)))
        lease = await made.acquire()
        lease.release()
        assert lease.settings.confidence == 0.9
        await in_force(made, 2)
        assert (loads.opened, swaps) == (["a:1"], [])


async def test_a_newer_spec_wins_over_one_that_is_still_loading():
    """A version that nobody wants any more is never put in force; an older spec is ignored."""
    loads = Loads()
    async with repository(loads) as (made, swaps):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        gate = loads.hold("a:2")
        made.apply(spec(2, model("a", 2)))
        await until(lambda: "a:2" in loads.asked)
        made.apply(spec(3, model("a", 3)))
        made.apply(spec(2, model("a", 2)))
        gate.set()
        await in_force(made, 3)
        assert await answering(made) == "a:3"
        assert swaps == ["a"]


async def test_new_bytes_under_an_old_number_are_another_version():
    """A model deleted and pushed again is loaded again, by its digest."""
    loads = Loads()
    async with repository(loads) as (made, _):
        again = [
            ModelSpec(name="a", current=1, versions=(version(1, digest),)) for digest in ("x", "y")
        ]
        made.apply(spec(1, again[0]))
        await in_force(made, 1)
        made.apply(spec(2, again[1]))
        await in_force(made, 2)
        await until(lambda: loads.closed)
        assert (loads.opened, loads.closed) == (["a:1", "a:1"], ["a:1"])


async def test_what_the_spec_no_longer_names_is_closed():
    """A deleted model goes, and with it what was loaded of it on demand."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1), model("b", 1)))
        await in_force(made, 1)
        assert await answering(made, "b", 2) == "b:2"
        made.apply(spec(2, model("a", 1)))
        await in_force(made, 2)
        await until(lambda: sorted(loads.closed) == ["b:1", "b:2"])
        with pytest.raises(NotFoundError):
            await made.acquire("b")


async def test_the_least_recently_used_version_on_demand_goes_first():
    """Four versions on demand stay loaded; the fifth closes the one unused for longest."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1, versions=6)))
        await in_force(made, 1)
        for number in (2, 3, 4, 5, 2, 6):
            assert await answering(made, "a", number) == f"a:{number}"
        await until(lambda: loads.closed == ["a:3"])
        assert await answering(made) == "a:1"


async def test_a_version_loaded_on_demand_is_put_in_force_without_another_load():
    """Making current what is already loaded costs nothing."""
    loads = Loads()
    async with repository(loads) as (made, swaps):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        await answering(made, "a", 2)
        made.apply(spec(2, model("a", 2)))
        await in_force(made, 2)
        assert await answering(made) == "a:2"
        await until(lambda: loads.closed)
        assert (loads.opened, loads.closed, swaps) == (["a:1", "a:2"], ["a:1"], ["a"])


async def test_a_request_gets_an_open_model_even_when_its_own_was_retired_meanwhile():
    """More versions asked for at once than may stay loaded: each request still gets its own."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1, versions=9)))
        await in_force(made, 1)
        numbers = range(2, 10)
        leases = await asyncio.gather(*[made.acquire("a", number) for number in numbers])
        assert [str(lease.model.ref) for lease in leases] == [f"a:{number}" for number in numbers]
        open_now = [
            one for one in loads.opened if loads.opened.count(one) > loads.closed.count(one)
        ]
        assert {str(lease.model.ref) for lease in leases} <= set(open_now)
        for lease in leases:
            lease.release()


async def test_a_failed_load_is_not_tried_again_by_each_request():
    """Requests for a version that cannot load are refused without another try, until a spec."""
    loads = Loads()
    loads.refuse["a:2"] = ModelRefusedError("it has no head")
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        for _ in range(5):
            with pytest.raises(NotReadyError, match="no head"):
                await made.acquire("a", 2)
        assert loads.asked.count("a:2") == 1
        loads.refuse.clear()
        made.apply(spec(2, model("a", 1)))
        assert await answering(made, "a", 2) == "a:2"


async def test_a_model_that_is_down_is_reported_as_failed_and_costs_no_other_its_readiness():
    """The status has the reason while it lasts; the runtime stays ready for its other models."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1), model("b", 1)))
        await in_force(made, 1)
        lease = await made.acquire("a")
        lease.release()
        lease.model.down = "its process ended 5 times"
        assert state(made, "a", 1).state == "failed"
        assert state(made, "a", 1).reason == "its process ended 5 times"
        assert made.status().phase is Phase.READY
        assert state(made, "b", 1).state == "ready"
        lease.model.down = ""
        assert state(made, "a", 1).state == "ready"


@pytest.mark.parametrize(
    "wrong",
    [
        RuntimeSpec(tenant="t_1", generation=2, default_model="x", models=(model("a", 1),)),
        spec(2, model("a", 9)),
        spec(2, model("a", 1), model("a", 2)),
        spec(2, ModelSpec(name="a", current=1, versions=(version(1), version(1)))),
    ],
)
async def test_a_spec_that_contradicts_itself_changes_nothing(wrong: RuntimeSpec):
    """No default, no current, names or numbers twice: refused in a sentence."""
    async with repository(Loads()) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        with pytest.raises(InvalidValueError):
            made.apply(wrong)
        assert await answering(made) == "a:1"


async def test_another_tenants_spec_is_refused():
    """A runtime serves the tenant it was started for and no other, ever."""
    async with repository(Loads()) as (made, _):
        made.apply(spec(1, model("a", 1)))
        with pytest.raises(ConflictError):
            made.apply(
                RuntimeSpec(tenant="t_2", generation=2, default_model="a", models=(model("a", 2),))
            )


async def test_closing_closes_every_model_once():
    """Models on demand and in force are freed; one that a request holds goes with it."""
    loads = Loads()
    async with repository(loads) as (made, _):
        made.apply(spec(1, model("a", 1)))
        await in_force(made, 1)
        held = await made.acquire("a", 2)
    assert loads.closed == ["a:1"]
    held.release()
    await until(lambda: loads.closed == ["a:1", "a:2"])


async def test_closing_waits_for_what_was_swapped_out_and_stops_a_load():
    """Nothing is left behind: no process that is still closing, none that is still opening."""
    loads = Loads()
    loads.hold("b:2")
    made = Repository(loads, lambda name: None)
    made.apply(spec(1, model("a", 1), model("b", 1)))
    await in_force(made, 1)
    held = await made.acquire("a")
    made.apply(spec(2, model("a", 2), model("b", 2)))
    await until(lambda: "b:2" in loads.asked)
    held.release()
    await made.close()
    assert loads.cancelled == ["b:2"]
    assert sorted(loads.closed) == ["a:1", "a:2", "b:1"]


async def test_the_standard_model_waits_for_its_first_request_where_it_is_not_the_default():
    """A tenant's own default loads ahead; `standard` beside it loads when somebody asks for it."""
    load = Loads()
    async with repository(load) as (made, _):
        made.apply(spec(1, model("own", 1), model("standard", 1, versions=1)))
        await in_force(made, 1)
        assert load.opened == ["own:1"]
        assert state(made, "standard", 1).state == "idle"
        lease = await made.acquire("standard")
        lease.release()
        assert load.opened == ["own:1", "standard:1"]
        assert state(made, "standard", 1).state == "ready"
