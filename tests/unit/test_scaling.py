"""How many copies there should be, as a story on two clocks that the test holds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from polyolo.control.scaling import FEWER_S, IN_FLIGHT, MORE_S, Demand, Scale, looks_again, scaled

DAY = 86_400.0


@dataclass
class Story:
    """A runtime over time."""

    demand: Demand
    scale: Scale = field(default_factory=Scale)
    now: float = 50.0
    wall: float = 1_700_000_000.0

    def after(self, seconds: float, **changes: float) -> int:
        """Let time pass, change what is asked, and return the copies that there should be."""
        self.now += seconds
        self.wall += seconds
        self.demand = replace(self.demand, **changes)
        self.scale = scaled(self.demand, self.scale, now=self.now, wall=self.wall)
        return self.scale.replicas

    def used(self, seconds: float = 0.0, in_flight: float = 0.1) -> int:
        """Let time pass and a request come in."""
        return self.after(seconds, used_at=self.wall + seconds, in_flight=in_flight)


def test_a_runtime_that_nobody_used_sleeps():
    """A new tenant has no process, and nothing to look at again."""
    story = Story(Demand())
    assert story.after(0) == 0
    assert looks_again(story.demand, story.scale, now=story.now) is None


def test_it_wakes_with_its_first_request_and_sleeps_after_its_idle_time():
    """Each request counts anew; the moment to look again is the one at which it may sleep."""
    story = Story(Demand(idle_s=10))
    story.after(0)
    assert story.used(5) == 1
    assert looks_again(story.demand, story.scale, now=story.now) == pytest.approx(10)
    assert story.used(8) == 1
    assert story.after(9, in_flight=0) == 1
    assert looks_again(story.demand, story.scale, now=story.now) == pytest.approx(1)
    assert story.after(1) == 0
    assert story.used(1) == 1


def test_after_a_restart_those_used_lately_run_and_the_others_sleep():
    """The wall clock is asked once: what was used 5 s ago has 5 s left of 10."""
    story = Story(Demand(idle_s=10))
    assert story.after(0, used_at=story.wall - 5) == 1
    assert story.after(4.9) == 1
    assert story.after(0.2) == 0
    other = Story(Demand(idle_s=10))
    assert other.after(0, used_at=other.wall - 11) == 0


@pytest.mark.parametrize("jump", [DAY, -DAY])
def test_a_clock_that_is_set_puts_nobody_to_sleep(jump: float):
    """Neither early nor never: the idle time is measured on the other clock."""
    story = Story(Demand(idle_s=10))
    story.used()
    story.wall += jump
    assert story.after(5, in_flight=0) == 1
    assert story.used() == 1
    assert story.after(9, in_flight=0) == 1
    assert story.after(1) == 0


def test_the_least_are_always_there():
    """`min_replicas` run without a request, and after any idle time."""
    story = Story(Demand(least=2, most=4, idle_s=1))
    assert story.after(0) == 2
    assert story.used(0) == 2
    assert story.after(DAY, in_flight=0) == 2


def test_more_come_with_lasting_load_and_at_once_as_many_as_it_takes():
    """Not for a burst; then up to the most that the plan allows."""
    story = Story(Demand(least=1, most=3))
    story.after(0)
    assert story.used(1, in_flight=9 * IN_FLIGHT) == 1
    assert story.used(MORE_S - 0.1, in_flight=9 * IN_FLIGHT) == 1
    assert story.used(0.1, in_flight=9 * IN_FLIGHT) == 3
    burst = Story(Demand(least=1, most=3))
    burst.after(0)
    for _ in range(5):
        assert burst.used(1, in_flight=9 * IN_FLIGHT) == 1
        assert burst.used(0.5, in_flight=IN_FLIGHT) == 1


def test_fewer_only_one_by_one_and_after_a_long_calm():
    """Less load for a minute each; a moment of load in between begins the minute anew."""
    story = Story(Demand(most=3), Scale(replicas=3))
    assert story.used(0) == 3
    assert story.used(FEWER_S - 1) == 3
    assert story.used(0, in_flight=3 * IN_FLIGHT) == 3
    assert story.used(2) == 3
    assert story.used(FEWER_S) == 2
    assert story.used(1) == 2
    assert story.used(FEWER_S) == 1
    assert story.used(FEWER_S) == 1


def test_load_between_the_marks_changes_nothing():
    """What would bring back the copy that was just taken away takes none away."""
    story = Story(Demand(most=3), Scale(replicas=2))
    for _ in range(100):
        assert story.used(10, in_flight=IN_FLIGHT * 0.9) == 2


@given(
    least=st.integers(0, 5),
    most=st.integers(1, 5),
    steps=st.lists(st.tuples(st.floats(0, 100), st.floats(0, 100), st.booleans()), max_size=30),
)
def test_it_stays_between_the_plans_bounds(least: int, most: int, steps):
    """Whatever is asked when: never below the least, never above the most, 1 while in use."""
    most = max(least, most)
    story = Story(Demand(least=least, most=most, idle_s=50))
    for seconds, in_flight, used in steps:
        if used:
            assert 1 <= story.used(seconds, in_flight) <= most
        else:
            assert least <= story.after(seconds, in_flight=in_flight) <= most
