"""`polyolo releases`: which release of the runtimes' program tenants are on."""

from __future__ import annotations

from collections.abc import Sequence

from cyclopts import App
from rich.console import RenderableType

from polyolo.cli.door import OPERATOR, AsOperator, as_operator
from polyolo.cli.output import show, table
from polyolo.resources import Release

app = App(name="releases", help="Releases of the runtimes' program. For the operator.")

OWN = "own"
"""How the platform's own release is written on the command line."""


@app.command(name="list")
def list_(*, door: AsOperator = OPERATOR) -> None:
    """List the releases, with how many tenants are on each."""
    with as_operator(door) as polyolo:
        found = polyolo.list_releases()
    show(found, lambda: _view(found), json=door.json)


@app.command
def move(release: str, /, *, share: float, door: AsOperator = OPERATOR) -> None:
    """Move a share of the tenants to a release, ring by ring: a larger share holds a smaller one.

    Their runtimes are started again. 1 makes it the platform's release; 0 takes everybody back.

    Args:
        release: A release that the platform was started with (--release), or own.
        share: Share of the tenants that are not pinned, 0 to 1.
    """
    with as_operator(door) as polyolo:
        found = polyolo.move_release(as_given(release), share)
    show(found, lambda: _view(found), json=door.json)


def as_given(release: str) -> str:
    """Return a release's name as the service knows it."""
    return "" if release == OWN else release


def _view(found: Sequence[Release]) -> RenderableType:
    rows = (
        (
            one.name or OWN,
            one.tenants,
            one.pinned,
            "platform's" if one.default else f"{one.share:.1%} moved" if one.share else "",
        )
        for one in found
    )
    return table(("release", "tenants#", "pinned#", ""), rows)
