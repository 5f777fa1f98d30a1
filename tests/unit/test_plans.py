"""Plans and limits: what a file or a change may say, and what a tenant may use in the end."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import pytest

from polyolo.control import plans
from polyolo.control.plans import OFFERED, RANGES, RESOURCES
from polyolo.errors import InvalidValueError
from polyolo.types import Plan, Resources


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plans.toml"
    path.write_text(text)
    return path


def test_every_limit_has_a_range():
    """Each field of Plan and of Resources, so that none can be set to nonsense."""
    assert set(RANGES) == {f.name for f in fields(Plan)} - {"name", "resources"}
    assert set(RESOURCES) == {f.name for f in fields(Resources)}


def test_the_plans_that_are_offered_are_in_range():
    """And the usual one, the first, limits nothing but what protects the platform."""
    for plan in OFFERED:
        plans.checked({name: getattr(plan, name) for name in RANGES})
        assert plan.min_replicas <= plan.max_replicas
    assert OFFERED[0] == Plan(name="default")


@pytest.mark.parametrize("name", RANGES)
@pytest.mark.parametrize("value", [-1, 10**15, float("nan"), float("inf"), "5", True, [1]])
def test_a_value_out_of_range_is_named(name, value):
    """The refusal names the field and what it may be."""
    with pytest.raises(InvalidValueError, match=f"^{name} must be a.* number, .* to "):
        plans.checked({name: value})


def test_zero_is_allowed_where_it_means_something():
    """No rate, no burst, no quota; but no weight and no runtime's memory of 0."""
    for name in ("requests_per_second", "burst", "images_per_month", "min_replicas"):
        assert plans.checked({name: 0}) == {name: 0}
    with pytest.raises(InvalidValueError):
        plans.checked({"weight": 0})
    with pytest.raises(InvalidValueError, match=r"resources\.memory_bytes"):
        plans.checked({"resources": {"memory_bytes": 0}})


@pytest.mark.parametrize("values", [{"rate": 1}, {"name": "x"}, {"resources": {"ram": 1}}])
def test_what_is_no_limit_is_refused(values):
    """A misspelt field is an error that lists the fields."""
    with pytest.raises(InvalidValueError, match="there are"):
        plans.checked(values)


def test_own_limits_take_the_place_of_the_plans():
    """Single fields, also of the resources; None takes one back; nothing else moves."""
    plan = Plan(name="p", burst=3, weight=2.0, resources=Resources(cpus=2, processes=40))
    own = plans.merged({}, {"burst": 9, "resources": {"cpus": 1}})
    own = plans.merged(own, {"idle_s": 5, "resources": {"gpus": 0.5}})
    assert plans.effective(plan, own) == Plan(
        name="p",
        burst=9,
        weight=2.0,
        idle_s=5,
        resources=Resources(cpus=1, processes=40, gpus=0.5),
    )
    assert set(plans.own_fields(own)) == {"burst", "idle_s", "resources.cpus", "resources.gpus"}
    own = plans.merged(own, {"burst": None, "idle_s": None, "resources": {"cpus": None}})
    own = plans.merged(own, {"resources": {"gpus": None}})
    assert own == {}
    assert plans.effective(plan, own) is plan


def test_a_plan_that_shrinks_keeps_its_tenants_whole():
    """Own limits that the plan's new bounds contradict are brought within them."""
    plan = Plan(name="p", max_replicas=2)
    assert plans.effective(plan, {"min_replicas": 3}).min_replicas == 2


def test_plans_are_read_from_a_file(tmp_path):
    """The first table is the usual plan; what is left out is as in a plan without limits."""
    path = written(
        tmp_path,
        """
        [[plan]]
        name = "small"
        requests_per_second = 0.5
        resources = { cpus = 0.5 }

        [[plan]]
        name = "large"
        weight = 8
        """,
    )
    small, large = plans.read(path)
    assert small == Plan(name="small", requests_per_second=0.5, resources=Resources(cpus=0.5))
    assert large == Plan(name="large", weight=8)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[[plan]]\nname = 'a'\nburst = -1", "plan 'a': burst must be"),
        ("[[plan]]\nname = 'a'\nrate = 1", "there is no limit rate"),
        ("[[plan]]\nname = 'a'\nresources = 3", "resources must be"),
        ("[[plan]]\nname = 'a'\nmin_replicas = 2", "min_replicas must not be more"),
        ("[[plan]]\nburst = 1", "needs a name"),
        ("[[plan]]\nname = '../a'", "the name of a plan"),
        ("[[plan]]\nname = 'a'\n[[plan]]\nname = 'a'", "two plans 'a'"),
        ("plan = 'a'", "must hold tables"),
        ("[[plans]]\nname = 'a'", "must hold tables"),
        ("", "must hold tables"),
        ("plan = [", "is no TOML"),
    ],
)
def test_a_file_that_says_something_else_is_refused(tmp_path, text, says):
    """With the file's name and what is wrong in it; nothing starts on half a file."""
    path = written(tmp_path, text)
    with pytest.raises(InvalidValueError, match=says) as refused:
        plans.read(path)
    assert str(path) in refused.value.detail
    with pytest.raises(InvalidValueError, match="No such file"):
        plans.read(tmp_path / "missing")
