"""What a tenant may use: `polyolo limits` shows it, the operator changes it below `tenants`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Annotated

from cyclopts import Group, Parameter
from rich.console import RenderableType

from polyolo.cli.door import OPERATOR, TENANT, AsOperator, AsTenant, as_operator, as_tenant
from polyolo.cli.output import fields, show
from polyolo.resources import Limits

_IN_RESOURCES = ("cpus", "memory_bytes", "processes", "gpus")


@Parameter(name="*", group=Group("Limits of the tenant's own", sort_key=8))
@dataclass(frozen=True, kw_only=True)
class Own:
    """What may be put in place of the plan's."""

    requests_per_second: float | None = None
    """Detections a second, over any longer time; 0: as many as there are."""
    burst: int | None = None
    """Detections at once before the rate counts; 0: one second's worth."""
    max_in_flight: int | None = None
    """Requests inside the platform at once."""
    images_per_month: int | None = None
    """Pictures in a calendar month (UTC); 0: as many as there are."""
    max_models: int | None = None
    """Models."""
    max_model_bytes: int | None = None
    """Size of one model file."""
    weight: float | None = None
    """Share of the machine against other tenants' when there is not enough for all."""
    min_replicas: int | None = None
    """Copies of the runtime that are always there; 0: it sleeps when idle."""
    max_replicas: int | None = None
    """Copies of the runtime at most."""
    idle_s: float | None = None
    """Seconds without a request until the runtime is put to sleep."""
    cpus: float | None = None
    """Cores of one copy; 0: whatever is free."""
    memory_bytes: int | None = None
    """Memory of one copy."""
    processes: int | None = None
    """Processes and threads of one copy."""
    gpus: float | None = None
    """GPUs of one copy."""


NOTHING = Own()


def limits(*, door: AsTenant = TENANT) -> None:
    """Show what a tenant may use, and what it has used of this month."""
    client, tenant = as_tenant(door)
    with client as polyolo:
        found = polyolo.get_limits(tenant)
    show(found, lambda: _view(found), json=door.json)


def change(
    tenant: str,
    /,
    *,
    own: Own = NOTHING,
    reset: Annotated[tuple[str, ...], Parameter(negative="")] = (),
    door: AsOperator = OPERATOR,
) -> None:
    """Show what a tenant may use, or put limits of its own in place of its plan's.

    Args:
        tenant: Its name or id.
        reset: Put this limit back to the plan's, `burst` for example; repeat for more.
    """
    given = {name: value for name, value in asdict(own).items() if value is not None}
    given |= dict.fromkeys(name.replace("-", "_").removeprefix("resources.") for name in reset)
    resources = {name: given.pop(name) for name in _IN_RESOURCES if name in given}
    with as_operator(door) as polyolo:
        if given or resources:
            found = polyolo.change_limits(tenant, given, resources)
        else:
            found = polyolo.get_limits(tenant)
    show(found, lambda: _view(found), json=door.json)


def plan(tenant: str, name: str, /, *, door: AsOperator = OPERATOR) -> None:
    """Give a tenant another plan. Limits of its own stay.

    Args:
        tenant: Its name or id.
        name: The plan.
    """
    with as_operator(door) as polyolo:
        found = polyolo.change_plan(tenant, name)
    show(found, lambda: f"{found.name} has the plan {found.plan}.", json=door.json)


def _view(found: Limits) -> RenderableType:
    values = asdict(found)
    resources = values.pop("resources")
    pairs: list[tuple[str, object]] = [("plan", values.pop("name"))]
    own = set(values.pop("own"))
    month, used = values.pop("month"), values.pop("images_used")
    for name, value in values.items():
        pairs.append(_line(name, value, name in own))
    for name, value in resources.items():
        pairs.append(_line(name, value, f"resources.{name}" in own))
    pairs.append((f"pictures in {month}", f"{used:,}"))
    return fields(pairs)


def _line(name: str, value: float, own: bool) -> tuple[str, str]:  # noqa: FBT001  # of a table
    text = f"{value:,.15g}"
    return name.replace("_", " "), f"{text}  (its own)" if own else text
