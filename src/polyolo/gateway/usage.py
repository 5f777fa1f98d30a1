"""Closes each request once: usage record, metrics and log fields are projections of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from prometheus_client import Counter

from polyolo import telemetry
from polyolo.errors import OverloadedError
from polyolo.gateway.settings import Settings
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.types import Principal, UsageRecord

_SEND_S = 10.0  # for one batch
_MODELS_A_TENANT = 64  # series of one tenant; a runtime is not trusted to name few models

_log = telemetry.logger("usage")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metered:
    """What a runtime says about one request, in its answer's Polyolo-* headers."""

    model: str = ""
    version: int = 0
    images: int = 0
    engine_ms: float = 0.0


NOTHING = Metered()


def metered(headers: Mapping[bytes, bytes]) -> Metered:
    """Return what a runtime's answer headers say; what cannot be read counts as nothing."""
    try:
        name, _, version = headers.get(b"polyolo-model", b"").decode("ascii").partition(":")
        said = Metered(
            model=name[:64],
            version=int(version or 0),
            images=int(headers.get(b"polyolo-images", 0)),
            engine_ms=float(headers.get(b"polyolo-engine-ms", 0.0)),
        )
    except ValueError:
        return NOTHING
    believable = said.version >= 0 and said.images >= 0 and 0 <= said.engine_ms < math.inf
    return said if believable else NOTHING


class Ledger:
    """Keeps usage records until control has them. On the loop's thread.

    A batch is handed over again with the same ids until control has confirmed it, and control
    counts an id once. Records still here when the process is killed are lost; a durable spool
    would take this class's place, behind `close`.
    """

    def __init__(self, settings: Settings, control: Upstream, metrics: telemetry.Metrics) -> None:
        self._settings = settings
        self._control = control
        self._records: deque[UsageRecord] = deque()
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._lost = 0
        self._sending = asyncio.Lock()
        self._dropped = Counter(
            "polyolo_usage_dropped",
            "Usage records lost because control was away for too long.",
            registry=metrics.registry,
        )

    def __len__(self) -> int:
        return len(self._records)

    def close(self, record: UsageRecord) -> None:
        """Take the record of a request that is over."""
        if len(self._records) >= self._settings.usage_buffer:
            self._records.popleft()
            self._dropped.inc()
            if self._lost % 1000 == 0:  # loud, but not a line a request
                _log.error("usage is lost: control has been away too long", lost=self._lost + 1)
            self._lost += 1
        self._records.append(record)
        self._some.set()
        if len(self._records) >= self._settings.usage_batch:
            self._full.set()

    async def run(self) -> None:
        """Hand records over every second or every full batch, until cancelled."""
        away = False
        while True:
            await self._some.wait()
            with suppress(TimeoutError):
                async with asyncio.timeout(self._settings.usage_flush_s):
                    await self._full.wait()
            self._some.clear()
            self._full.clear()
            try:
                await self.flush()
            except (UpstreamError, OverloadedError, TimeoutError) as error:
                if not away:
                    _log.warning("usage is kept: control does not take it", reason=str(error))
                away = True
                self._some.set()
                await asyncio.sleep(self._settings.usage_flush_s)
            else:
                away = False

    async def flush(self) -> None:
        """Hand over all records. Raises UpstreamError or TimeoutError; what is left stays here."""
        async with self._sending:
            while self._records:
                batch = list(islice(self._records, self._settings.usage_batch))
                async with asyncio.timeout(_SEND_S):
                    status, _ = await self._control.call(
                        "POST",
                        "/internal/v1/usage",
                        headers={
                            "authorization": f"Bearer {self._settings.token}",
                            "content-type": "application/json",
                        },
                        body=msgspec.json.encode(batch),
                    )
                if status != 204:
                    raise UpstreamError(f"control answered {status} to a batch of usage")
                sent = {record.id for record in batch}
                while self._records and self._records[0].id in sent:  # some may have been dropped
                    self._records.popleft()


class Meter:
    """Projects each closed request on metrics, usage and the access log."""

    def __init__(self, ledger: Ledger, metrics: telemetry.Metrics) -> None:
        self._ledger = ledger
        self._metrics = metrics
        self._models: dict[str, set[str]] = {}
        self._requests: dict[tuple[str, str, int], Any] = {}
        self._durations: dict[tuple[str, str], Any] = {}
        self._cold_starts: dict[tuple[str, str], Any] = {}
        self._in_flight: dict[str, Any] = {}

    @contextmanager
    def in_flight(self, tenant: str) -> Iterator[None]:
        """Count a request of the tenant (by name) as in flight while the context lasts."""
        gauge = self._in_flight.get(tenant)
        if gauge is None:
            gauge = self._in_flight[tenant] = self._metrics.in_flight.labels(tenant, "")
        gauge.inc()
        try:
            yield
        finally:
            gauge.dec()

    def count(self, tenant: str, model: str, status: int, seconds: float, *, cold: bool) -> None:
        """Count a request in the metrics. tenant: its name, empty if it is not known."""
        known = self._models.setdefault(tenant, set())
        if model not in known:
            if len(known) >= _MODELS_A_TENANT:
                model = "other"
            known.add(model)
        counter = self._requests.get((tenant, model, status))
        if counter is None:
            counter = self._metrics.requests.labels(tenant, model, str(status))
            self._requests[tenant, model, status] = counter
        counter.inc()
        duration = self._durations.get((tenant, model))
        if duration is None:
            duration = self._metrics.request_duration.labels(tenant, model)
            self._durations[tenant, model] = duration
        duration.observe(seconds)
        if cold:
            child = self._metrics.cold_starts.labels(tenant, model)
            self._cold_starts[tenant, model] = child
            child.inc()

    def keep(self, tenants: set[str]) -> None:
        """Drop the series of tenants (by name) that are gone."""
        metrics = self._metrics
        for tenant in self._models.keys() - tenants - {""}:
            models = self._models.pop(tenant)
            if self._in_flight.pop(tenant, None) is not None:
                metrics.in_flight.remove(tenant, "")
            for model in models:
                if self._durations.pop((tenant, model), None) is not None:
                    metrics.request_duration.remove(tenant, model)
                if self._cold_starts.pop((tenant, model), None) is not None:
                    metrics.cold_starts.remove(tenant, model)
            for series in [s for s in self._requests if s[0] == tenant]:
                del self._requests[series]
                metrics.requests.remove(series[0], series[1], str(series[2]))

    def bill(
        self,
        who: Principal,
        source: str,
        status: int,
        said: Metered,
        *,
        bytes_in: int,
        cold: bool,
    ) -> None:
        """Close the usage record of one detection. source: the client's address."""
        self._ledger.close(
            UsageRecord(
                id=telemetry.new_id(),
                tenant=who.tenant or "",
                at=time.time(),
                status=status,
                model=said.model,
                version=said.version,
                images=said.images,
                engine_ms=said.engine_ms,
                bytes_in=bytes_in,
                cold_start=cold,
                principal=f"{who.kind}:{who.id}",
                source=source,
            )
        )
