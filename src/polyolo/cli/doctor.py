"""`polyolo doctor`: what isolation this host, or the platform's, really gives."""

from __future__ import annotations

from contextlib import suppress
from typing import Annotated

from cyclopts import Parameter
from rich.console import RenderableType

from polyolo.cli.door import OPERATOR, AsOperator, as_operator
from polyolo.cli.output import say, show, table
from polyolo.errors import NotReadyError, UnauthenticatedError
from polyolo.resources import HostIsolation

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def doctor(*, here: _Flag = False, door: AsOperator = OPERATOR) -> None:
    """Show what keeps tenants apart: each layer of the sandbox, or why it is missing.

    Asks the platform, where there is one and its operator's key is at hand; else it looks at this
    host itself.

    Args:
        here: Look at this host, whatever the platform says.
    """
    found = None if here else _asked(door)
    if found is None:
        found = _looked()
        if not door.json:
            say("What this host gives; a running platform says for itself.\n")
    report = found
    show(report, lambda: _view(report), json=door.json)


def _asked(door: AsOperator) -> HostIsolation | None:
    """Return the platform's answer; None without a platform, or without a key that was named."""
    try:
        client = as_operator(door)
    except UnauthenticatedError:
        if door.operator_key or door.home:
            raise
        return None
    with suppress(NotReadyError), client as polyolo:
        return polyolo.get_isolation()
    return None


def _looked() -> HostIsolation:
    from polyolo.sandbox.probe import probe
    from polyolo.sandbox.report import report

    isolation = probe()
    if isolation.groups is not None:
        isolation.groups.close()
    return report(isolation)


def _view(report: HostIsolation) -> RenderableType:
    rows = ((one.layer, one.state, one.why or one.guards) for one in report.layers)
    return table(("layer", "state", "guards, or why it is missing"), rows)
