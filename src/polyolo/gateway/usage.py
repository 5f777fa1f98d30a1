"""Closes each request once: usage record, metrics and log fields are projections of it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import Any

import msgspec
from prometheus_client import Counter as Metric

from polyolo import telemetry
from polyolo.errors import OverloadedError
from polyolo.gateway.quotas import Quotas
from polyolo.gateway.settings import Settings
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.resources import UsageTaken
from polyolo.types import Principal, UsageRecord

_SEND_S = 10.0  # for one batch
_MODELS_A_TENANT = 64  # series of one tenant; a runtime is not trusted to name few models

_log = telemetry.logger("usage")
_decode = msgspec.json.Decoder(UsageTaken).decode


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


def record(who: Principal, source: str, status: int, **more: Any) -> UsageRecord:
    """Return a usage record of now. source: the client's address."""
    return UsageRecord(
        id=telemetry.new_id(),
        tenant=who.tenant or "",
        at=time.time(),
        status=status,
        principal=f"{who.kind}:{who.id}",
        source=source,
        **more,
    )


def _taken(body: bytes) -> UsageTaken:
    try:
        return _decode(body)
    except (msgspec.DecodeError, ValueError) as error:
        raise UpstreamError(f"control's answer to a batch of usage: {error}") from None


class Ledger:
    """Keeps usage records until control has them. On the loop's thread.

    A batch is handed over again with the same ids until control has confirmed it, and control
    counts an id once. Records still here when the process is killed are lost; a durable spool
    would take this class's place, behind `close`.
    """

    def __init__(
        self, settings: Settings, control: Upstream, metrics: telemetry.Metrics, quotas: Quotas
    ) -> None:
        self._quotas = quotas
        self._settings = settings
        self._control = control
        self._records: deque[UsageRecord] = deque()
        self._refused: Counter[tuple[Principal, str, int]] = Counter()
        self._some = asyncio.Event()
        self._full = asyncio.Event()
        self._lost = 0
        self._sending = asyncio.Lock()
        self._dropped = Metric(
            "polyolo_usage_dropped",
            "Usage records lost because control was away for too long.",
            registry=metrics.registry,
        )

    def __len__(self) -> int:
        return len(self._records)

    def refuse(self, who: Principal, source: str, status: int) -> None:
        """Take a request that was refused at the door. Those of a second are one record: a flood
        of them must not become a flood of records."""
        self._refused[who, source, status] += 1
        self._some.set()
        if len(self._refused) >= self._settings.usage_batch:
            self._sum_up()

    def _sum_up(self) -> None:
        refused, self._refused = self._refused, Counter()
        for (who, source, status), number in refused.items():
            self.close(record(who, source, status, requests=number))

    def close(self, record: UsageRecord) -> None:
        """Take the record of a request that is over."""
        if len(self._records) >= self._settings.usage_buffer:
            self._quotas.lose(self._records.popleft())
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
        self._sum_up()
        async with self._sending:
            while self._records:
                batch = list(islice(self._records, self._settings.usage_batch))
                async with asyncio.timeout(_SEND_S):
                    status, body = await self._control.call(
                        "POST",
                        "/internal/v1/usage",
                        headers={
                            "authorization": f"Bearer {self._settings.token}",
                            "content-type": "application/json",
                        },
                        body=msgspec.json.encode(batch),
                    )
                if status != 200:
                    raise UpstreamError(f"control answered {status} to a batch of usage")
                self._quotas.confirm(batch, _taken(body))
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
        self._waiting: dict[str, Any] = {}
        self._shed = Metric(
            "polyolo_shed",
            "Requests refused while they waited for their turn, or because it would come too late.",
            ("tenant", "reason"),
            registry=metrics.registry,
        )

    def waits(self, name: str, change: int) -> None:
        """Count one more (+1) or one less (-1) of the tenant's (by name) that wait their turn."""
        gauge = self._waiting.get(name)
        if gauge is None:
            gauge = self._waiting[name] = self._metrics.queue_depth.labels(name, "")
        gauge.inc(change)

    def shed(self, name: str, reason: str) -> None:
        """Count one of the tenant's (by name) that was refused. reason: full or hopeless."""
        self._shed.labels(name, reason).inc()

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
            if self._waiting.pop(tenant, None) is not None:
                metrics.queue_depth.remove(tenant, "")
            for reason in ("full", "hopeless"):
                with suppress(KeyError):
                    self._shed.remove(tenant, reason)
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
        """Close the usage record of one detection that was let in. source: the client's address."""
        self._ledger.close(
            record(
                who,
                source,
                status,
                model=said.model,
                version=said.version,
                images=said.images,
                engine_ms=said.engine_ms,
                bytes_in=bytes_in,
                cold_start=cold,
            )
        )

    def refuse(self, who: Principal, source: str, status: int) -> None:
        """Count a detection that was refused at the door. source: the client's address."""
        self._ledger.refuse(who, source, status)
