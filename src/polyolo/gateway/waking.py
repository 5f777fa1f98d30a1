"""Has control wake runtimes that sleep: once for all requests that wait, again while any does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import msgspec

from polyolo import telemetry
from polyolo.errors import OverloadedError
from polyolo.gateway.upstream import Upstream, UpstreamError
from polyolo.types import RuntimeStatus

Wake = Callable[[str], Awaitable[RuntimeStatus]]
"""Has a tenant's runtime awake; returns its status once it answers, has failed, or takes long.
Raises UpstreamError, OverloadedError."""

_WAKE_S = 15.0  # control answers after 8 s at the latest
_PAUSE_S = 0.2  # after an answer that did not help

_decode = msgspec.json.Decoder(RuntimeStatus).decode
_log = telemetry.logger("waking")


async def nobody(tenant: str) -> RuntimeStatus:
    """Stand for a control plane that is not there; see Wake."""
    raise UpstreamError(f"there is nobody to wake {tenant}")


async def wake(control: Upstream, token: str, tenant: str) -> RuntimeStatus:
    """Ask control; see Wake."""
    status, body = await control.call(
        "POST",
        f"/internal/v1/wake?tenant={quote(tenant)}",
        headers={"authorization": f"Bearer {token}"},
    )
    if status != 200:
        raise UpstreamError(f"control answered {status} to a call to wake a runtime")
    return _decode(body)


class Waker:
    """The calls under way, one a tenant. On the loop's thread."""

    def __init__(self, wake: Wake, told: Callable[[RuntimeStatus], bool]) -> None:
        """Keep what asks. told: gets each answer, and says whether it helps who waits."""
        self._wake = wake
        self._told = told
        self._calls: dict[str, asyncio.Task[None]] = {}

    def want(self, tenant: str) -> None:
        """See to it that a call is under way."""
        if tenant not in self._calls:
            call = self._calls[tenant] = asyncio.create_task(self._call(tenant))
            call.add_done_callback(lambda _: self._calls.pop(tenant, None))

    async def _call(self, tenant: str) -> None:
        try:
            async with asyncio.timeout(_WAKE_S):
                if self._told(await self._wake(tenant)):
                    return
        except (UpstreamError, OverloadedError, TimeoutError, msgspec.DecodeError) as error:
            _log.warning("a runtime cannot be woken yet", tenant=tenant, reason=str(error))
        await asyncio.sleep(_PAUSE_S)

    def close(self) -> None:
        """Give up what is under way."""
        for call in self._calls.values():
            call.cancel()
