"""Lets detections in and closes each once, whatever protocol carries them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from polyolo import web
from polyolo.errors import OverloadedError, PolyoloError
from polyolo.gateway.auth import authenticate, authorise
from polyolo.gateway.inbound import Leash
from polyolo.gateway.limits import Bound
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.usage import NOTHING, Meter, metered


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

    @contextmanager
    def visit(
        self, headers: Iterable[tuple[bytes, bytes]], log: dict[str, Any], *, billed: bool
    ) -> Iterator[Visit]:
        """Authenticate and admit a request; meter it when the context ends, however it does.

        headers: names in lower case. log: gets fields for the access log. billed: it is a
        detection. In the request's own task, which the visit's leash ends when its time is over.
        Raises UnauthenticatedError, ForbiddenError, OverloadedError, and what a Leash raises.
        """
        started = time.perf_counter()
        directory, meter = self._directory, self._meter
        visit: Visit | None = None
        tenant = name = ""
        status = 500
        try:
            principal = authenticate(headers, directory.keys, time.time())
            route = authorise(principal, directory.tenants)
            tenant, name = route.tenant, route.name
            log["tenant"] = name
            full = OverloadedError("too many requests of this tenant at once; come again shortly")
            with (
                self._inside.admit(tenant, route.plan.max_in_flight, full),
                meter.in_flight(name),
                Leash(self._settings.deadline_s) as leash,
            ):
                visit = Visit(tenant=tenant, leash=leash)
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
            if tenant and billed:
                received = visit.received if visit is not None else 0
                meter.bill(tenant, status, said, bytes_in=received, cold=cold)
