"""Lets detections in and closes each once, whatever protocol carries them."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from starlette.requests import ClientDisconnect

from polyolo import web
from polyolo.errors import (
    NotReadyError,
    OverloadedError,
    PolyoloError,
    RateLimitedError,
    UnauthenticatedError,
)
from polyolo.gateway.activity import Activity
from polyolo.gateway.auth import authenticate, authorise, presented
from polyolo.gateway.headers import timeout_s
from polyolo.gateway.inbound import Leash
from polyolo.gateway.limits import Bound, Memory
from polyolo.gateway.quotas import Quotas
from polyolo.gateway.rates import CALLS, DETECTIONS, Rates
from polyolo.gateway.routing import Directory
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import Address
from polyolo.gateway.turns import Turn, Turns
from polyolo.gateway.usage import NOTHING, Meter, metered
from polyolo.types import Principal, TenantRoute


@dataclass(slots=True)
class Visit:
    """A request that was let in; who serves it notes here what becomes of it."""

    tenant: str
    """The tenant's id."""
    leash: Leash
    turn: Turn
    """To be waited for once the body is there and the runtime is ready, before it is asked."""
    memory: Memory
    deadline: float | None
    """Until when its client wants the answer, on the monotonic clock; None if it did not say."""
    told: Mapping[str, str]
    """Headers for the answer: how the tenant stands with its rate."""
    status: int = 500
    """HTTP status of the answer, or the one that its gRPC status stands for."""
    received: int = 0
    """Bytes of the request's body."""
    said: Mapping[bytes, bytes] = field(default_factory=dict)
    """The Polyolo-* headers of the runtime's answer."""
    cold: bool = False
    """The request waited for its runtime to start."""
    held: int = 0
    """Bytes of the body in memory."""

    def left_s(self) -> float | None:
        """Return what is left of the seconds that the client gave; None if it gave none."""
        return None if self.deadline is None else self.deadline - time.monotonic()

    async def reserve(self, size: int) -> None:
        """Wait for room for so many bytes, and keep it while the visit lasts."""
        await self.memory.reserve(self.tenant, size)
        self.held += size

    def hold(self, size: int) -> None:
        """Keep so many bytes more in memory while the visit lasts. Raises OverloadedError."""
        self.memory.grow(self.tenant, size)
        self.held += size


class Reception:
    """The one place where a request for a runtime comes in. On the loop's thread."""

    def __init__(
        self,
        settings: Settings,
        directory: Directory,
        meter: Meter,
        *,
        rates: Rates,
        quotas: Quotas,
        turns: Turns,
        activity: Activity,
    ) -> None:
        self._settings = settings
        self._directory = directory
        self._meter = meter
        self._rates = rates
        self._quotas = quotas
        self._turns = turns
        self._activity = activity
        self._inside = Bound()
        self._memory = Memory(settings.held_bytes, settings.all_held_bytes)

    @asynccontextmanager
    async def visit(
        self,
        headers: Sequence[tuple[bytes, bytes]],
        source: Address | None,
        log: dict[str, Any],
        *,
        billed: bool,
        given_s: float | None = None,
    ) -> AsyncIterator[Visit]:
        """Authenticate and admit a request; meter it when the context ends, however it does.

        headers: names in lower case. source: where it came from. log: gets fields for the access
        log. billed: it is a detection. given_s: seconds that the client gives it, besides what its
        headers say. In the request's own task, which the visit's leash ends
        when its time is over.
        Raises UnauthenticatedError, ForbiddenError, RateLimitedError, QuotaUsedUpError,
        OverloadedError, NotReadyError when control has not confirmed the credentials for too
        long, and what a Leash raises.
        """
        started = time.perf_counter()
        meter = self._meter
        visit: Visit | None = None
        who: Principal | None = None
        name = ""
        told: dict[str, str] = {}
        counted = False
        status = 500
        try:
            who, route = await self._known(headers, source)
            tenant, name = route.tenant, route.name
            log["tenant"] = name
            await self._within_rate(route, told, billed=billed)
            counted = billed and self._quotas.enter(route)
            with self._admitted(route, given_s or timeout_s(headers), told) as visit:
                yield visit
            status = visit.status
        except PolyoloError as error:
            status = error.status
            error.added.update(told)
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
            if who and billed and visit is None:
                meter.refuse(who, str(source or ""), status)
            elif who and billed and visit is not None:
                received = visit.received
                meter.bill(who, str(source or ""), status, said, bytes_in=received, cold=cold)
            if counted:
                self._quotas.leave(tenant, said.images)

    def tenant_of(self, headers: Sequence[tuple[bytes, bytes]]) -> str | None:
        """Return the id of the tenant whose key or token a request carries; None without."""
        directory = self._directory
        try:
            credential = presented(headers)
            return authenticate(credential, directory.keys, directory.book, time.time()).tenant
        except PolyoloError:
            return None

    async def _known(
        self, headers: Sequence[tuple[bytes, bytes]], source: Address | None
    ) -> tuple[Principal, TenantRoute]:
        """Return who asks, and the route of their tenant."""
        credential = presented(headers)
        if why := self._directory.distrust():
            raise NotReadyError(f"{why}; come again shortly")
        try:
            return self._found(credential, source)
        except UnauthenticatedError:  # it may have been made a moment ago
            if not await self._directory.catch_up():
                raise
        return self._found(credential, source)

    def _found(self, credential: bytes, source: Address | None) -> tuple[Principal, TenantRoute]:
        """Return whose credential this is, by the snapshot in force."""
        directory = self._directory
        principal = authenticate(credential, directory.keys, directory.book, time.time())
        ranges = directory.ranges.get(principal.id, ())
        return principal, authorise(principal, directory.tenants, ranges=ranges, source=source)

    async def _within_rate(self, route: TenantRoute, told: dict[str, str], *, billed: bool) -> None:
        """Count the request against the plan's rate. told: gets the headers for the answer.

        What is no detection is counted apart, at the same rate: it costs something too.
        """
        what = DETECTIONS if billed else CALLS
        grant = await self._rates.take(route.tenant, route.plan, what)
        if grant is None:
            return
        told.update(grant.headers)
        if grant.limited:
            raise RateLimitedError(
                f"over the {route.plan.requests_per_second:g} requests a second of this tenant; "
                "come again later, or get another plan",
                retry_after=grant.retry_s,
            )

    @contextmanager
    def _admitted(
        self,
        route: TenantRoute,
        given_s: float | None,
        told: Mapping[str, str],
    ) -> Iterator[Visit]:
        """Hold a place inside, and what the request takes of memory and time, while it lasts."""
        tenant, name, plan = route.tenant, route.name, route.plan
        seconds = min(given_s or math.inf, self._settings.deadline_s)
        full = OverloadedError("too many requests of this tenant at once; come again shortly")
        with (
            self._inside.admit(tenant, plan.max_in_flight, full, self._turns.shed),
            self._meter.in_flight(name),
            self._activity.of(tenant),
            Leash(seconds) as leash,
        ):
            deadline = time.monotonic() + seconds
            visit = Visit(
                tenant=tenant,
                leash=leash,
                turn=self._turns.turn(tenant, name, plan.weight, deadline),
                memory=self._memory,
                deadline=None if given_s is None else deadline,
                told=told,
            )
            try:
                yield visit
            finally:
                self._memory.shrink(tenant, visit.held)
