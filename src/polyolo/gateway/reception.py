"""Lets detections in and closes each once, whatever protocol carries them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from polyolo import web
from polyolo.errors import NotReadyError, OverloadedError, PolyoloError
from polyolo.gateway.auth import authenticate, authorise, presented
from polyolo.gateway.inbound import Leash
from polyolo.gateway.limits import Bound
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import Address
from polyolo.gateway.usage import NOTHING, Meter, metered
from polyolo.types import Principal


@dataclass(slots=True)
class Visit:
    """A request that was let in; who serves it notes here what becomes of it."""

    tenant: str
    """The tenant's id."""
    leash: Leash
    status: int = 500
    """HTTP status of the answer, or the one that its gRPC status stands for."""
    received: int = 0
    """Bytes of the request's body."""
    said: Mapping[bytes, bytes] = field(default_factory=dict)
    """The Polyolo-* headers of the runtime's answer."""
    cold: bool = False
    """The request waited for its runtime to start."""


class Reception:
    """The one place where a request for a runtime comes in. On the loop's thread."""

    def __init__(self, settings: Settings, directory: Directory, meter: Meter) -> None:
        self._settings = settings
        self._directory = directory
        self._meter = meter
        self._inside = Bound()
        self.changed: Callable[[str], None] = lambda _: None
        """Is told the tenant whose first request has come in, or whose last one has gone."""

    def in_flight(self) -> dict[str, int]:
        """Return how many requests of each tenant are inside, those that are held too."""
        return self._inside.counts()

    @contextmanager
    def visit(
        self,
        headers: Iterable[tuple[bytes, bytes]],
        source: Address | None,
        log: dict[str, Any],
        *,
        billed: bool,
    ) -> Iterator[Visit]:
        """Authenticate and admit a request; meter it when the context ends, however it does.

        headers: names in lower case. source: where it came from. log: gets fields for the access
        log. billed: it is a detection. In the request's own task, which the visit's leash ends
        when its time is over.
        Raises UnauthenticatedError, ForbiddenError, OverloadedError, NotReadyError when control
        has not confirmed the credentials for too long, and what a Leash raises.
        """
        started = time.perf_counter()
        directory, meter = self._directory, self._meter
        visit: Visit | None = None
        who: Principal | None = None
        name = ""
        status = 500
        try:
            credential = presented(headers)
            if why := directory.distrust():
                raise NotReadyError(f"{why}; come again shortly")
            principal = authenticate(credential, directory.keys, directory.book, time.time())
            ranges = directory.ranges.get(principal.id, ())
            route = authorise(principal, directory.tenants, ranges=ranges, source=source)
            who, tenant, name = principal, route.tenant, route.name
            log["tenant"] = name
            full = OverloadedError("too many requests of this tenant at once; come again shortly")
            with (
                self._inside.admit(tenant, route.plan.max_in_flight, full),
                meter.in_flight(name),
                Leash(self._settings.deadline_s) as leash,
            ):
                visit = Visit(tenant=tenant, leash=leash)
                if self._inside.inside(tenant) == 1:
                    self.changed(tenant)
                yield visit
            status = visit.status
        except PolyoloError as error:
            status = error.status
            raise
        except (ClientDisconnect, asyncio.CancelledError):
            status = web.CLIENT_CLOSED_REQUEST
            raise
        finally:
            said = metered(visit.said) if visit is not None and visit.said else NOTHING
            cold = visit is not None and visit.cold
            if said.model:
                log["model"] = f"{said.model}:{said.version}"
            meter.count(name, said.model, status, time.perf_counter() - started, cold=cold)
            if visit is not None and not self._inside.inside(visit.tenant):
                self.changed(visit.tenant)
            if who and billed:
                received = visit.received if visit is not None else 0
                meter.bill(who, str(source or ""), status, said, bytes_in=received, cold=cold)
