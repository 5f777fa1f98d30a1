"""Has a request's runtime asked, whatever protocol carries it; once more where nobody answered."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TypeVar

from polyolo.gateway.endpoints import OutOfReachError
from polyolo.gateway.reception import Visit
from polyolo.gateway.routing import Directory

T = TypeVar("T")


async def deliver(directory: Directory, visit: Visit, ask: Callable[[str], Awaitable[T]]) -> T:
    """Return what `ask` gets from an endpoint of the visitor's runtime.

    Where nobody answered (it crashed, or has just been put to sleep) the next endpoint is asked,
    once, as soon as there is one: a detection done twice does no harm. Raises what `ask` and
    `Directory.pick_endpoint` raise.
    """

    async def once() -> T:
        endpoint, waited = await directory.pick_endpoint(visit.tenant)
        visit.cold |= waited
        try:
            with directory.endpoints.asking(endpoint):
                return await ask(endpoint)
        except OutOfReachError:
            directory.endpoints.lost(endpoint)
            raise

    try:
        return await once()
    except OutOfReachError:
        return await once()
