"""The routes of an application, and which of them declare no action."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from polyolo.control.api.asking import declared
from polyolo.permissions import OPERATOR_ONLY, PUBLIC, SCOPE_OF

OPEN = {"/livez", "/readyz", "/metrics", "/openapi.json", "/docs", "/docs/oauth2-redirect"}
"""What says nothing of anybody."""


@dataclass(frozen=True)
class Seen:
    """One method of one route."""

    method: str
    path: str
    action: str | None


def routes_of(app: Any) -> Iterator[Seen]:
    """Yield all routes of an ASGI app, whatever is wrapped around it."""
    while not hasattr(app, "routes"):
        app = app._app
    yield from below([*app.routes, *app.default.routes], "")


def below(routes: Any, prefix: str) -> Iterator[Seen]:
    """Yield the routes below a prefix."""
    for route in routes:
        if hasattr(route, "original_router"):
            within = prefix + route.include_context.prefix
            yield from below(route.original_router.routes, within)
        else:
            for method in sorted(route.methods - {"HEAD"}):
                yield Seen(method, prefix + route.path, declared(route))


def undeclared(routes: Iterator[Seen]) -> list[str]:
    """Return the routes that declare no action of the table."""
    known = PUBLIC | OPERATOR_ONLY | SCOPE_OF.keys()
    return [
        f"{route.method} {route.path}"
        for route in routes
        if route.path not in OPEN
        and not route.path.startswith("/internal/")  # a gateway's token alone opens these
        and route.action not in known
    ]
