"""Knows where each tenant's runtime is: the snapshot, held, pulled, and asked for an endpoint."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable

import msgspec

from polyolo import telemetry
from polyolo.errors import NotReadyError, OverloadedError
from polyolo.gateway.limits import Bound
from polyolo.gateway.settings import Settings
from polyolo.gateway.source import Networks, networks
from polyolo.gateway.tokens import TokenBook
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.types import KeyEntry, Phase, Snapshot, TenantRoute

_POLL_S = 30.0  # control answers a long poll after 20 s at the latest
_BACK_OFF_S = (0.05, 5.0)  # first and longest pause while control is away

_decode = msgspec.json.Decoder(Snapshot).decode
_log = telemetry.logger("routing")


class Directory:
    """The snapshot in force, indexed, and who waits for the next one. On the loop's thread."""

    def __init__(
        self,
        settings: Settings,
        *,
        on_swap: Callable[[Directory], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._settings = settings
        self._on_swap = on_swap
        self._clock = clock
        self._holding = Bound()
        self._changed = asyncio.Event()
        self._confirmed: float | None = None
        self.revision = -1
        self.book = TokenBook()
        self.keys: dict[str, KeyEntry] = {}
        self.ranges: dict[str, Networks] = {}
        """Where keys may be used from, by key id; only of those that are bound."""
        self.tenants: dict[str, TenantRoute] = {}

    def swap(self, snapshot: Snapshot) -> None:
        """Put a snapshot in force as a whole and wake the requests that wait for a runtime."""
        self.keys = {entry.id: entry for entry in snapshot.keys}
        self.ranges = {
            entry.id: networks(entry.sources) for entry in snapshot.keys if entry.sources
        }
        self.tenants = {route.tenant: route for route in snapshot.tenants}
        self.book.swap(snapshot)
        self.revision = snapshot.revision
        self.confirm()
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self._on_swap is not None:
            self._on_swap(self)

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

        Waits for a runtime that starts, as long and for as many requests as the settings say.
        Raises NotReadyError for a runtime that is not about to answer, OverloadedError when too
        many wait already.
        """
        endpoint = self._endpoint(tenant)
        if endpoint is not None:
            return endpoint, False
        full = OverloadedError("too many requests wait for this runtime to start; come again")
        with self._holding.admit(tenant, self._settings.hold_requests, full):
            try:
                async with asyncio.timeout(self._settings.hold_s):
                    while endpoint is None:
                        await self._changed.wait()
                        endpoint = self._endpoint(tenant)
            except TimeoutError:
                raise NotReadyError("the runtime is still starting; come again shortly") from None
        return endpoint, True

    def _endpoint(self, tenant: str) -> str | None:
        """Return the endpoint, or None while the runtime is on its way. Raises NotReadyError."""
        route = self.tenants.get(tenant)
        if route is None:
            raise NotReadyError("the tenant's runtime is gone")
        if route.phase is Phase.READY and route.endpoints:
            return route.endpoints[0]
        if route.phase in (Phase.STARTING, Phase.ABSENT):  # absent: created a moment ago
            return None
        raise NotReadyError("the tenant's runtime is restarting; come again shortly")


async def pull(directory: Directory, control: Upstream, token: str) -> None:
    """Keep the directory up to date from control's long poll, until cancelled.

    While control is away the last snapshot stays in force, and control is asked again after a
    pause that grows, with jitter so that several gateways do not ask at the same moment.
    """
    pause, longest = _BACK_OFF_S
    away = False
    name = telemetry.new_id()[:12]  # control waits for the gateways that it knows
    while True:
        try:
            async with asyncio.timeout(_POLL_S):
                # After a break everything anew: control may have come back with another past.
                known = -1 if away else directory.revision
                fresh = await _poll(f"after={known}&gateway={name}", control, token)
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
