"""Knows where each tenant's runtime is: the snapshot, held, pulled, and asked for an endpoint."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace

import msgspec

from polyolo import telemetry
from polyolo.errors import NotReadyError, OverloadedError
from polyolo.gateway.endpoints import Endpoints
from polyolo.gateway.entries import Entries
from polyolo.gateway.limits import Bound
from polyolo.gateway.newest import Ask, Newest
from polyolo.gateway.newest import nobody as nobody_to_ask
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import Networks, networks
from polyolo.gateway.tokens import TokenBook
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.gateway.waking import Wake, Waker, nobody
from polyolo.types import KeyEntry, Phase, RuntimeStatus, Snapshot, TenantRoute

_LOOK_S = 0.25  # between two looks of a request that waits, at most
_POLL_S = 30.0  # control answers a long poll after 20 s at the latest
_PUT_OFF_S = 30.0  # control puts a start off for so long at most; its clock may be another one
_CATCH_UP_S = 1.0  # in which a control plane follows what another one has changed
_BACK_OFF_S = (0.05, 5.0)  # first and longest pause while control is away

_decode = msgspec.json.Decoder(Snapshot).decode
_log = telemetry.logger("routing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Swap:
    """What another snapshot has changed."""

    lost: bool
    """Whether a tenant, or an endpoint of one, is gone."""
    changed: tuple[str, ...] = ()
    """Tenants that are in another phase or state, those that are new or gone included."""


class Directory:
    """The snapshot in force, indexed, and who waits for the next one. On the loop's thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        wake: Wake = nobody,
        newest: Ask = nobody_to_ask,
        on_swap: Callable[[Directory, Swap], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._waker = Waker(wake, self._woken)
        self._newest = Newest(newest, clock)
        self.endpoints = Endpoints(clock)
        self._settings = settings
        self._on_swap = on_swap
        self._clock = clock
        self._holding = Bound()
        self._changed = asyncio.Event()
        self._confirmed: float | None = None
        self.revision = -1
        self.gateways = 1
        self.book = TokenBook()
        self._entries: Entries[KeyEntry] = Entries()
        self.ranges: dict[str, Networks] = {}
        """Where keys may be used from, by key id; only of those that are bound."""
        self.tenants: dict[str, TenantRoute] = {}

    @property
    def hold_s(self) -> float:
        """Return the seconds that a request waits for a runtime to answer."""
        return self._settings.hold_s

    @property
    def keys(self) -> Mapping[str, KeyEntry]:
        """Return all API keys by id."""
        return self._entries.by_id

    def swap(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force, or what it adds, at once and as a whole, and wake the requests
        that wait for a runtime. Raises ValueError for what adds to another revision than this."""
        if snapshot.since is not None and snapshot.since != self.revision:
            raise ValueError(f"a change of revision {snapshot.since}, not of {self.revision}")
        whole = snapshot.since is None
        routes = {route.tenant: route for route in snapshot.tenants}
        changed = None if whole else {*routes, *snapshot.gone}
        those = self.tenants.keys() if changed is None else changed & self.tenants.keys()
        before = [self.tenants[tenant] for tenant in those]
        if whole:
            self.tenants = routes
        else:
            self.tenants.update(routes)
            for tenant in snapshot.gone:
                self.tenants.pop(tenant, None)
        for replaced in self._entries.put(snapshot.keys, changed):
            self.ranges.pop(replaced, None)
        self.ranges |= {e.id: networks(e.sources) for e in snapshot.keys if e.sources}
        self.book.swap(snapshot, changed)
        self.revision = snapshot.revision
        self.gateways = max(1, snapshot.gateways)
        self.confirm()
        self._tell()
        if self._on_swap is not None:
            moved = {*routes, *(route.tenant for route in before)}
            for route in before:
                now = self.tenants.get(route.tenant)
                if now and (now.phase, now.state) == (route.phase, route.state):
                    moved.discard(route.tenant)
            lost = any(self._lost(route) for route in before)
            self._on_swap(self, Swap(lost=lost, changed=tuple(moved)))

    def _lost(self, before: TenantRoute) -> bool:
        """Say whether a tenant, or an endpoint of it, is gone."""
        now = self.tenants.get(before.tenant)
        return now is None or not set(before.endpoints) <= set(now.endpoints)

    def _tell(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    def _woken(self, status: RuntimeStatus) -> bool:
        """Put control's answer to a call to wake a runtime in force; say whether it helps.

        Only one that settles it: the snapshot, too, says who is on the way, and may be newer.
        """
        tenant = status.tenant
        route = self.tenants.get(tenant)
        if route is None:
            return True
        if status.phase not in (Phase.READY, Phase.FAILED):
            return False
        self.tenants[tenant] = replace(
            route, phase=status.phase, endpoints=status.endpoints, retry_at=status.retry_at
        )
        self._tell()
        try:
            return self._endpoint(tenant) is not None
        except NotReadyError:  # whoever waits is told
            return True

    def close(self) -> None:
        """Wake nothing any more, and ask nothing."""
        self._waker.close()
        self._newest.close()

    async def informed(self, seconds: float) -> None:
        """Wait for the first snapshot, or for so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while self.revision < 0:
                    await self._changed.wait()

    async def catch_up(self) -> bool:
        """Wait for a snapshot no older than this call, or for so long; say whether it is another
        one than before."""
        before = self.revision
        with suppress(TimeoutError):
            async with asyncio.timeout(_CATCH_UP_S):
                newest = await self._newest.revision()
                while newest is not None and self.revision < newest:
                    await self._changed.wait()
        return self.revision != before

    def confirm(self) -> None:
        """Note that control has just said that the snapshot in force is the newest."""
        self._confirmed = self._clock()

    def age_s(self) -> float | None:
        """Return the seconds since control last confirmed the snapshot; None before the first."""
        return None if self._confirmed is None else self._clock() - self._confirmed

    def distrust(self) -> str:
        """Return why no credential can be confirmed now; empty when they can.

        The gateway serves from the last snapshot while control is away, but not for ever: what
        was revoked meanwhile would go on working here. After `confirm_s` it fails closed, for
        every credential alike.
        """
        age = self.age_s()
        if age is None:
            return "no snapshot from control yet"
        if age > self._settings.confirm_s:
            return "control has been away too long to confirm credentials"
        return ""

    async def pick_endpoint(self, tenant: str) -> tuple[str, bool]:
        """Return where to send the tenant's request, and whether it had to wait for a start.

        Waits for a runtime that starts, as long and for as many requests as the settings say, and
        has one that sleeps woken. Raises NotReadyError for a runtime that is not about to answer,
        OverloadedError when too many wait already.
        """
        endpoint = self._endpoint(tenant)
        if endpoint is not None:
            return endpoint, False
        full = OverloadedError("too many requests wait for this runtime to start; come again")
        with self._holding.admit(tenant, self._settings.hold_requests, full):
            try:
                async with asyncio.timeout(self._settings.hold_s):
                    while endpoint is None:
                        await self._news(tenant)
                        endpoint = self._endpoint(tenant)
            except TimeoutError:
                raise NotReadyError("the runtime is still starting; come again shortly") from None
        return endpoint, True

    async def _news(self, tenant: str) -> None:
        """Wait for word from control, which learns that somebody waits; or for a moment.

        One that starts may stand in line behind others, for which nobody waits.
        """
        self._waker.want(tenant)
        with suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_S):
                await self._changed.wait()

    def _endpoint(self, tenant: str) -> str | None:
        """Return the endpoint, or None while the runtime is on its way. Raises NotReadyError."""
        route = self.tenants.get(tenant)
        if route is None:
            raise NotReadyError("the tenant's runtime is gone")
        if route.phase is Phase.READY and route.endpoints:
            return self.endpoints.least_busy(route.endpoints)
        if route.phase in (Phase.FAILED, Phase.STOPPING):
            # Nobody waits for one that fails: the circuit is open until it has answered again.
            put_off = min(max(1.0, route.retry_at - time.time()), _PUT_OFF_S)
            raise NotReadyError(
                "the tenant's runtime is restarting; come again shortly", retry_after=put_off
            )
        return None


async def pull(directory: Directory, control: Upstream, token: str, name: str = "") -> None:
    """Keep the directory up to date from control's long poll, until cancelled.

    name: this gateway's, behind that of its door and a dot, while it is one of those that share
    the rates.
    While control is away the last snapshot stays in force, and control is asked again after a
    pause that grows, with jitter so that several gateways do not ask at the same moment.
    """
    pause, longest = _BACK_OFF_S
    away = False
    while True:
        try:
            async with asyncio.timeout(_POLL_S):
                # After a break everything anew: control may have come back with another past.
                known = -1 if away else directory.revision
                asked = f"after={known}&gateway={name}&gateways={directory.gateways}"
                fresh = await _poll(asked, control, token)
            if fresh is not None:
                directory.swap(fresh)
            elif known >= 0:  # else there was nothing to confirm
                directory.confirm()
        except (UpstreamError, OverloadedError, TimeoutError, msgspec.DecodeError, ValueError) as e:
            if not away:
                _log.warning("control is away, serving from the last snapshot", reason=str(e))
            away = True
            await asyncio.sleep(pause * random.uniform(0.5, 1.0))  # noqa: S311  # jitter, no secret
            pause = min(pause * 2, longest)
        else:
            if away:
                _log.info("control is back", revision=directory.revision)
            pause, away = _BACK_OFF_S[0], False


async def _poll(query: str, control: Upstream, token: str) -> Snapshot | None:
    """Return the next snapshot, None if there is none yet. Raises UpstreamError."""
    status, body = await control.call(
        "GET", f"/internal/v1/snapshot?{query}", headers={"authorization": f"Bearer {token}"}
    )
    if status == 204:
        return None
    if status != 200:
        raise UpstreamError(f"control answered {status} to the gateway's poll")
    return _decode(body)
