"""Who goes first on the processor: decided by what each has used, read from groups on paper."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyolo.drivers.precedence import AHEAD, Precedence
from polyolo.sandbox.cgroups import Group
from polyolo.sandbox.confinement import BACKGROUND
from polyolo.sandbox.layers import Layer

TICK_S = 0.25


class Machine:
    """Two cores and a clock; groups of version 2 whose use is written by hand."""

    def __init__(self, root: Path) -> None:
        self.now = 0.0
        self.root = root
        self.precedence = Precedence(2, clock=lambda: self.now)
        self.groups: dict[str, list[Group]] = {}
        self.used: dict[Group, float] = {}

    def add(self, tenant: str) -> Group:
        path = self.root / str(len(self.used))
        path.mkdir()
        (path / "cpu.weight").write_text("100")
        group = Group({Layer.CPU: path}, {path: self.root})
        self.groups.setdefault(tenant, []).append(group)
        self.use(group, 0.0)
        return group

    def use(self, group: Group, seconds: float) -> None:
        self.used[group] = self.used.get(group, 0.0) + seconds
        usage = round(self.used[group] * 1e6)
        (group.directories[Layer.CPU] / "cpu.stat").write_text(
            f"usage_usec {usage}\nuser_usec {usage}\nsystem_usec 0\n"
        )

    def look(self, seconds: float = TICK_S, **uses: float) -> None:
        """Let time pass in which each tenant uses so many cores, and look."""
        self.now += seconds
        for tenant, cores in uses.items():
            for group in self.groups[tenant]:
                self.use(group, cores * seconds / len(self.groups[tenant]))
        self.precedence.look(
            [(name or None, one) for name, some in self.groups.items() for one in some]
        )

    def weights(self) -> dict[str, list[float]]:
        return {
            name: [
                int((one.directories[Layer.CPU] / "cpu.weight").read_text()) / 100 for one in some
            ]
            for name, some in self.groups.items()
        }


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_who_uses_little_goes_first(machine: Machine):
    """At a third of its share one goes first all the time; who takes the rest never does."""
    machine.add("victim")
    machine.add("flood")
    for number in range(40):
        machine.look(victim=0.33, flood=1.6)
        assert machine.weights()["victim"] == [AHEAD]
        if number > 1:
            assert machine.weights()["flood"] == [1.0]


def test_all_that_ask_for_more_are_equal(machine: Machine):
    """Ten that take what they can get have one weight."""
    for number in range(10):
        machine.add(f"t{number}")
    for _ in range(20):
        machine.look(**{f"t{number}": 0.2 for number in range(10)})
    assert machine.weights() == {f"t{number}": [1.0] for number in range(10)}


def test_nobody_is_kept_from_half_of_the_machine(machine: Machine):
    """Of nine that go first and take what they can, each goes first for a moment only."""
    for number in range(9):
        machine.add(f"t{number}")
    machine.add("behind")
    for _ in range(12):
        machine.look(**{f"t{number}": 0.2 for number in range(9)}, behind=0.2)
    assert all(machine.weights()[f"t{number}"] == [1.0] for number in range(9))


def test_savings_are_bounded_and_come_back(machine: Machine):
    """An hour of rest buys a moment, not an hour; who rests after a flood soon goes first."""
    machine.add("a")
    machine.add("b")
    machine.look(3600.0, b=0.01)
    for _ in range(3):
        machine.look(a=1.6, b=0.1)
    assert machine.weights()["a"] == [1.0]
    for _ in range(3):
        machine.look(a=0.0, b=0.1)
    assert machine.weights()["a"] == [AHEAD]


def test_who_opens_models_waits_for_the_others(machine: Machine):
    """Its savings are gone at once, before it has used anything."""
    machine.add("loads")
    machine.add("victim")
    machine.look(victim=0.3)
    assert machine.weights()["loads"] == [AHEAD]
    machine.precedence.spend("loads")
    machine.look(0.001)
    assert machine.weights() == {"loads": [1.0], "victim": [AHEAD]}


def test_who_has_no_savings_yields(machine: Machine):
    """Where the kernel can, it runs on what the others leave, until it has savings again."""
    yields = {}
    for name in ("flood", "victim", ""):
        yields[name] = machine.add(name).directories[Layer.CPU] / "cpu.idle"
        yields[name].write_text("0")
    for _ in range(4):
        machine.look(victim=0.3, flood=1.6)
    assert {name: file.read_text() for name, file in yields.items()} == {
        "flood": "1",
        "victim": "0",
        "": "1",
    }
    for _ in range(3):
        machine.look(victim=0.3, flood=0.0)
    assert yields["flood"].read_text() == "0"
    assert machine.weights()["flood"] == [AHEAD]


def test_who_gets_nothing_yields_no_longer(machine: Machine):
    """Of equal ones that have no savings, one that was kept waiting runs before the others, and
    one that begins to load yields although it has used nothing yet."""
    yields = {}
    for name in ("a", "b", "starved"):
        yields[name] = machine.add(name).directories[Layer.CPU] / "cpu.idle"
        yields[name].write_text("0")
    for _ in range(20):
        machine.look(a=0.6, b=0.6, starved=0.6)
    assert [file.read_text() for file in yields.values()] == ["1", "1", "1"]
    machine.look(a=1.0, b=0.9, starved=0.0)
    assert [file.read_text() for file in yields.values()] == ["1", "1", "0"]
    assert machine.weights()["starved"] == [1.0], "but it has no savings"
    machine.precedence.spend("starved")
    machine.look(0.001, a=1.0, b=1.0)
    assert yields["starved"].read_text() == "1"
    for _ in range(2):
        machine.look(a=1.0, b=0.9)
    assert yields["starved"].read_text() == "0"


def test_copies_share_one_weight(machine: Machine):
    """Four copies of a tenant weigh as much as another's single one."""
    for _ in range(4):
        machine.add("many")
    machine.add("one")
    for _ in range(5):
        machine.look(many=1.0, one=1.0)
    assert machine.weights() == {"many": [0.25] * 4, "one": [1.0]}


def test_a_copy_that_ends_takes_its_use_with_it(machine: Machine):
    """What is left has not used less than nothing: nothing is saved by ending."""
    machine.add("many")
    last = machine.add("many")
    machine.add("one")
    for _ in range(5):
        machine.look(many=1.0, one=1.0)
    machine.groups["many"].remove(last)
    machine.look(many=1.5, one=0.4)
    assert machine.weights()["many"] == [1.0]


def test_what_is_nobodys_is_in_the_background(machine: Machine):
    """A process that is kept ready weighs less than any tenant's, and has no share."""
    machine.add("")
    machine.add("victim")
    machine.look(victim=0.3, **{"": 1.0})
    assert machine.weights() == {"": [BACKGROUND], "victim": [AHEAD]}


def test_nothing_is_done_where_nobody_counts(machine: Machine):
    """Where the kernel does not tell what a group has used, its weight stays."""
    group = machine.add("blind")
    (group.directories[Layer.CPU] / "cpu.stat").unlink()
    machine.precedence.look([("blind", group)])
    assert machine.weights() == {"blind": [1.0]}
