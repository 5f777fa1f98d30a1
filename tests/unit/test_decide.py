"""The reconciler's decision as a table: desired, observed, remembered; step, status, next look."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyolo.control.decide import Decision, Desired, Memory, Verb, Wanted, decide, failed
from polyolo.types import Phase, RuntimeStatus

NOW = 1000.0
RUNNING = Desired(tenant="t", wanted=Wanted.RUNNING, generation=3)
STOPPED = replace(RUNNING, wanted=Wanted.STOPPED)
GONE = replace(RUNNING, wanted=Wanted.GONE)
ASLEEP = replace(RUNNING, replicas=0)
TWO = replace(RUNNING, replicas=2)
ELASTIC = replace(RUNNING, max_replicas=3)
APPLIED = Memory(applied_at=NOW - 1, applied_generation=3, applied_replicas=1)
BOTH = replace(APPLIED, applied_replicas=2)


def seen(phase: Phase, generation: int = 0, reason: str = "", copies: int = 1) -> RuntimeStatus:
    return RuntimeStatus(
        tenant="t",
        phase=phase,
        observed_generation=generation,
        reason=reason,
        endpoints=tuple(f"unix:/{number}" for number in range(copies)),
    )


def withdrawn(seconds: float) -> Memory:
    """Return what is remembered so long after gateways were told of fewer copies."""
    return replace(APPLIED, withdrawn_at=NOW - seconds)


def decided(desired: Desired, observed: RuntimeStatus | None, memory: Memory) -> Decision:
    return decide(desired, observed, memory, NOW)


@pytest.mark.parametrize(
    ("desired", "observed", "memory", "verb", "phase", "again_in"),
    [
        # A tenant just made, or a platform just started.
        (RUNNING, None, Memory(), Verb.APPLY, Phase.STARTING, 0.02),
        (RUNNING, seen(Phase.ABSENT), Memory(), Verb.APPLY, Phase.STARTING, 0.02),
        # On its way.
        (RUNNING, seen(Phase.STARTING), APPLIED, Verb.NOTHING, Phase.STARTING, 0.1),
        # Well: look again in a while.
        (RUNNING, seen(Phase.READY, 3), APPLIED, Verb.NOTHING, Phase.READY, 5.0),
        (RUNNING, seen(Phase.READY, 3), Memory(), Verb.NOTHING, Phase.READY, 5.0),
        # Well, with a spec to be told; told, and on its way; told long ago.
        (
            RUNNING,
            seen(Phase.READY, 2),
            replace(APPLIED, applied_generation=2),
            Verb.APPLY,
            Phase.READY,
            0.02,
        ),
        (RUNNING, seen(Phase.READY, 2), APPLIED, Verb.NOTHING, Phase.READY, 0.1),
        (
            RUNNING,
            seen(Phase.READY, 2),
            replace(APPLIED, applied_at=NOW - 6),
            Verb.APPLY,
            Phase.READY,
            0.02,
        ),
        (RUNNING, seen(Phase.READY, 2), Memory(), Verb.APPLY, Phase.READY, 0.02),
        # Crashed for the first time: again at once.
        (RUNNING, seen(Phase.FAILED), APPLIED, Verb.APPLY, Phase.FAILED, 0.02),
        # Crashed again: wait for the back-off, and say FAILED while it starts.
        (
            RUNNING,
            seen(Phase.FAILED),
            replace(APPLIED, failures=1),
            Verb.NOTHING,
            Phase.FAILED,
            0.25,
        ),
        (
            RUNNING,
            seen(Phase.FAILED),
            replace(APPLIED, failures=2, restart_at=NOW + 0.2),
            Verb.NOTHING,
            Phase.FAILED,
            pytest.approx(0.2),
        ),
        (
            RUNNING,
            seen(Phase.FAILED),
            replace(APPLIED, failures=2, restart_at=NOW),
            Verb.APPLY,
            Phase.FAILED,
            0.02,
        ),
        (
            RUNNING,
            seen(Phase.STARTING),
            replace(APPLIED, failures=1),
            Verb.NOTHING,
            Phase.FAILED,
            0.1,
        ),
        # It could not even be started: the same back-off.
        (
            RUNNING,
            None,
            replace(APPLIED, failures=2, restart_at=NOW + 0.2),
            Verb.NOTHING,
            Phase.FAILED,
            pytest.approx(0.2),
        ),
        # A changed spec may be the cure: no waiting.
        (
            RUNNING,
            seen(Phase.FAILED),
            replace(APPLIED, failures=9, restart_at=NOW + 25, applied_generation=2),
            Verb.APPLY,
            Phase.FAILED,
            0.02,
        ),
        # Resumed or woken while the old one still drains: another one at once.
        (RUNNING, seen(Phase.STOPPING), APPLIED, Verb.APPLY, Phase.STARTING, 0.02),
        # Nobody needs it: first out of the gateways' sight, then ended.
        (ASLEEP, None, APPLIED, Verb.NOTHING, Phase.ASLEEP, None),
        (ASLEEP, seen(Phase.ASLEEP), APPLIED, Verb.NOTHING, Phase.ASLEEP, None),
        (ASLEEP, seen(Phase.READY, 3), APPLIED, Verb.NOTHING, Phase.ASLEEP, 0.5),
        (ASLEEP, seen(Phase.READY, 3), withdrawn(0.4), Verb.NOTHING, Phase.ASLEEP, 0.5),
        (ASLEEP, seen(Phase.READY, 3), withdrawn(0.6), Verb.APPLY, Phase.ASLEEP, 0.25),
        (ASLEEP, seen(Phase.FAILED, copies=0), APPLIED, Verb.APPLY, Phase.ASLEEP, 0.25),
        (ASLEEP, seen(Phase.STOPPING), APPLIED, Verb.APPLY, Phase.ASLEEP, 0.25),
        (ASLEEP, seen(Phase.ABSENT), APPLIED, Verb.APPLY, Phase.ASLEEP, 0.25),
        # More copies are wanted, or fewer.
        (TWO, seen(Phase.READY, 3), APPLIED, Verb.APPLY, Phase.READY, 0.02),
        (TWO, seen(Phase.READY, 3), BOTH, Verb.NOTHING, Phase.READY, 0.1),
        (TWO, seen(Phase.READY, 3, copies=2), BOTH, Verb.NOTHING, Phase.READY, 5.0),
        (RUNNING, seen(Phase.READY, 3, copies=2), BOTH, Verb.NOTHING, Phase.READY, 0.5),
        (RUNNING, seen(Phase.READY, 3, copies=2), withdrawn(1), Verb.APPLY, Phase.READY, 0.25),
        # An autoscaler has made more: none is too many up to the most, all are when nobody asks.
        (ELASTIC, seen(Phase.READY, 3, copies=3), APPLIED, Verb.NOTHING, Phase.READY, 5.0),
        (ELASTIC, seen(Phase.READY, 3, copies=4), withdrawn(1), Verb.APPLY, Phase.READY, 0.25),
        (
            replace(ELASTIC, replicas=0),
            seen(Phase.READY, 3, copies=3),
            withdrawn(1),
            Verb.APPLY,
            Phase.ASLEEP,
            0.25,
        ),
        # One of two is lost: at once the first time, later after the back-off.
        (TWO, seen(Phase.READY, 3, "killed"), BOTH, Verb.APPLY, Phase.READY, 0.02),
        (
            TWO,
            seen(Phase.READY, 3, "killed"),
            replace(BOTH, failures=2, restart_at=NOW + 0.2),
            Verb.NOTHING,
            Phase.READY,
            pytest.approx(0.2),
        ),
        # Suspended.
        (STOPPED, seen(Phase.READY, 3), APPLIED, Verb.REMOVE, Phase.STOPPING, 0.25),
        (STOPPED, seen(Phase.STARTING), APPLIED, Verb.REMOVE, Phase.STOPPING, 0.25),
        (STOPPED, seen(Phase.FAILED), APPLIED, Verb.REMOVE, Phase.STOPPING, 0.25),
        (STOPPED, seen(Phase.STOPPING), APPLIED, Verb.REMOVE, Phase.STOPPING, 0.25),
        (STOPPED, seen(Phase.ABSENT), APPLIED, Verb.REMOVE, Phase.STOPPING, 0.25),
        (STOPPED, None, APPLIED, Verb.NOTHING, Phase.ABSENT, None),
        # Deleted.
        (GONE, seen(Phase.READY, 3), APPLIED, Verb.REMOVE, Phase.STOPPING, 0.25),
        (GONE, seen(Phase.ABSENT), Memory(), Verb.REMOVE, Phase.STOPPING, 0.25),
        (GONE, None, APPLIED, Verb.FORGET, Phase.ABSENT, None),
    ],
)
def test_the_table(desired, observed, memory, verb, phase, again_in):
    """Each row: what is done, what is told, when to look again."""
    decision = decided(desired, observed, memory)
    assert (decision.verb, decision.status.phase, decision.again_in) == (verb, phase, again_in)


def test_the_reason_of_a_failure_is_told_until_it_is_ready():
    """While it is started again the tenant reads why; once it is ready, nothing."""
    first = decided(RUNNING, seen(Phase.FAILED, reason="its process was killed"), APPLIED)
    starting = decided(RUNNING, seen(Phase.STARTING), first.memory)
    ready = decided(RUNNING, seen(Phase.READY, 3), starting.memory)
    assert first.status.reason == starting.status.reason
    assert starting.status.reason.startswith("its process was killed")
    assert ready.status.reason == ""


def test_a_failure_counts_once_however_often_it_is_seen():
    """Looks during the back-off do not lengthen it."""
    memory = replace(APPLIED, failures=3)
    for moment in (0.0, 0.1, 0.2, 0.3):
        decision = decide(RUNNING, seen(Phase.FAILED), memory, NOW + moment)
        memory = decision.memory
        assert decision.verb is Verb.NOTHING
    assert memory.failures == 4
    assert decide(RUNNING, seen(Phase.FAILED), memory, NOW + 1.0).verb is Verb.APPLY


def test_the_backoff_doubles_up_to_thirty_seconds():
    """0, 0.25, 0.5, 1, … 30, 30; and never an overflow."""
    memory, delays = Memory(), []
    for _ in range(11):
        memory = failed(memory, "crash", NOW)
        assert memory.restart_at is not None
        delays.append(memory.restart_at - NOW)
    assert delays == [0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert failed(replace(memory, failures=10**6), "crash", NOW).restart_at == NOW + 30


def test_a_minute_of_being_ready_makes_good():
    """The first crash after 60 s ready is a first crash again; after 59 s it is not."""
    bad = Memory(failures=8)
    stable = failed(replace(bad, ready_since=NOW - 60), "crash", NOW)
    shaky = failed(replace(bad, ready_since=NOW - 59), "crash", NOW)
    assert (stable.failures, stable.restart_at) == (1, NOW)
    assert (shaky.failures, shaky.restart_at) == (9, NOW + 30)


def test_ready_since_is_the_first_moment_of_this_start():
    """Later looks do not move it, a restart forgets it."""
    first = decide(RUNNING, seen(Phase.READY, 3), APPLIED, NOW).memory
    later = decide(RUNNING, seen(Phase.READY, 3), first, NOW + 50).memory
    assert (first.ready_since, later.ready_since) == (NOW, NOW)
    crashed = decide(RUNNING, seen(Phase.FAILED), later, NOW + 51).memory
    assert crashed.ready_since is None


def test_a_copy_goes_when_no_gateway_asks_it_any_more():
    """It waits for the word of each, but not for ever; those that stay are the first ones."""
    three = seen(Phase.READY, 3, copies=3)
    first = decide(TWO, three, BOTH, NOW, told=True)
    assert first.status.endpoints == ("unix:/0", "unix:/1")
    for seconds, told, verb in (
        (0.6, False, Verb.NOTHING),
        (2.9, False, Verb.NOTHING),
        (0.6, True, Verb.APPLY),
        (3.1, False, Verb.APPLY),
    ):
        decision = decide(TWO, three, first.memory, NOW + seconds, told=told)
        assert (decision.verb, decision.status.endpoints) == (verb, ("unix:/0", "unix:/1"))


def test_of_an_autoscalers_copies_gateways_keep_as_many_as_it_may_make():
    """Where the most has become less, only those above it are out of sight."""
    decision = decided(ELASTIC, seen(Phase.READY, 3, copies=5), APPLIED)
    assert decision.status.endpoints == ("unix:/0", "unix:/1", "unix:/2")


def test_a_runtime_that_is_needed_again_before_it_was_ended_goes_on():
    """Gateways are told of it again, and the next time it has the whole time again."""
    first = decided(ASLEEP, seen(Phase.READY, 3), APPLIED)
    again = decide(RUNNING, seen(Phase.READY, 3), first.memory, NOW + 0.2)
    assert (again.verb, again.status.phase) == (Verb.NOTHING, Phase.READY)
    later = decide(ASLEEP, seen(Phase.READY, 3), again.memory, NOW + 9)
    assert later.verb is Verb.NOTHING


@given(
    replicas=st.integers(0, 3),
    copies=st.integers(0, 3),
    told=st.booleans(),
    wanted=st.sampled_from(Wanted),
    phase=st.none() | st.sampled_from(Phase),
    observed_generation=st.integers(0, 5),
    failures=st.integers(0, 2000),
    restart_in=st.none() | st.floats(-100, 100),
    ready_for=st.none() | st.floats(0, 1000),
    applied_ago=st.none() | st.floats(0, 1000),
    applied_generation=st.integers(0, 5),
)
def test_no_state_is_a_dead_end(
    replicas,
    copies,
    told,
    wanted,
    phase,
    observed_generation,
    failures,
    restart_in,
    ready_for,
    applied_ago,
    applied_generation,
):
    """Whatever is remembered: it looks again unless nothing is left to do, soon, not in a spin."""
    memory = Memory(
        failures=failures,
        restart_at=None if restart_in is None else NOW + restart_in,
        ready_since=None if ready_for is None else NOW - ready_for,
        applied_at=None if applied_ago is None else NOW - applied_ago,
        applied_generation=applied_generation,
    )
    observed = None if phase is None else seen(phase, observed_generation, copies=copies)
    desired = replace(RUNNING, wanted=wanted, replicas=replicas)
    decision = decide(desired, observed, memory, NOW, told=told)
    if decision.again_in is None:
        assert observed is None or observed.phase is Phase.ASLEEP
        assert wanted is not Wanted.RUNNING or replicas == 0
    else:
        assert 0 < decision.again_in <= 100
    if wanted is not Wanted.RUNNING:
        assert decision.verb is not Verb.APPLY
    else:
        assert decision.verb not in (Verb.FORGET, Verb.REMOVE)
        assert len(decision.status.endpoints) <= max(replicas, 0) or copies <= replicas
