"""Tells control every second who is busy, and how much: who is not, may be put to sleep."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import msgspec

from polyolo import telemetry
from polyolo.errors import OverloadedError
from polyolo.gateway.upstream import Upstream, UpstreamError

_EVERY_S = 1.0
_SEND_S = 5.0


@dataclass(slots=True)
class _Load:
    in_flight: int = 0
    area: float = 0.0
    """Of the curve of `in_flight` over time since the last report."""
    since: float = 0.0


class Activity:
    """Requests in flight by tenant, averaged between two reports. On the loop's thread."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._loads: dict[str, _Load] = {}
        self._taken = clock()
        self._some = asyncio.Event()
        self._heard: Callable[[tuple[str]], None] = lambda _: None

    def listen(self, heard: Callable[[tuple[str]], None]) -> None:
        """Have `heard` told of a tenant whose first request has come in, or whose last has gone."""
        self._heard = heard

    def in_flight(self, tenant: str) -> int:
        """Return how many requests a tenant has here now, those that are held too."""
        load = self._loads.get(tenant)
        return load.in_flight if load is not None else 0

    def all_in_flight(self) -> dict[str, int]:
        """Return the same of each tenant that has any."""
        return {tenant: load.in_flight for tenant, load in self._loads.items() if load.in_flight}

    @contextmanager
    def of(self, tenant: str) -> Iterator[None]:
        """Count a request of the tenant while the context lasts."""
        self._change(tenant, 1)
        try:
            yield
        finally:
            self._change(tenant, -1)

    def _change(self, tenant: str, by: int) -> None:
        now = self._clock()
        load = self._loads.get(tenant)
        if load is None:
            if not self._loads:
                self._taken = now
            load = self._loads[tenant] = _Load(since=now)
            self._some.set()
        load.area += load.in_flight * (now - load.since)
        load.in_flight += by
        load.since = now
        if load.in_flight == max(by, 0):  # the first one, or none is left
            self._heard((tenant,))

    def take(self) -> dict[str, float]:
        """Return the mean in flight since the last call, of all who had any."""
        now = self._clock()
        span = max(now - self._taken, 1e-3)
        self._taken = now
        means: dict[str, float] = {}
        for tenant, load in list(self._loads.items()):
            means[tenant] = (load.area + load.in_flight * (now - load.since)) / span
            load.area, load.since = 0.0, now
            if not load.in_flight:
                del self._loads[tenant]
        if not self._loads:
            self._some.clear()
        return means

    async def run(self, control: Upstream, token: str) -> None:
        """Report every second while anybody is busy, until cancelled. What is lost is lost."""
        name = telemetry.new_id()[:12]
        while True:
            await self._some.wait()
            await asyncio.sleep(_EVERY_S)
            with suppress(UpstreamError, OverloadedError, TimeoutError):  # then the next one
                async with asyncio.timeout(_SEND_S):
                    await control.call(
                        "POST",
                        f"/internal/v1/activity?gateway={name}",
                        headers={
                            "authorization": f"Bearer {token}",
                            "content-type": "application/json",
                        },
                        body=msgspec.json.encode(self.take()),
                    )
