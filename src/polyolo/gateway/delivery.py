"""Has a request's runtime asked, whatever protocol carries it; again where nobody answered."""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from polyolo.gateway.endpoints import OutOfReachError
from polyolo.gateway.reception import Visit
from polyolo.gateway.routing import Directory

T = TypeVar("T")


async def deliver(directory: Directory, visit: Visit, ask: Callable[[str], Awaitable[T]]) -> T:
    """Return what `ask` gets from an endpoint of the visitor's runtime.

    Where nobody answered (it crashed, or has just been put to sleep or replaced) the next endpoint
    is asked, as soon as there is one, for as long as one that starts is waited for: word of it may
    be late. Once only where somebody may have got the request, since it may be what they died of;
    a detection done twice does no harm. Raises what `ask` and `Directory.pick_endpoint` raise.
    """
    begun, give_up = False, math.inf
    while True:
        endpoint, waited = await directory.pick_endpoint(visit.tenant)
        visit.cold |= waited
        try:
            with directory.endpoints.asking(endpoint):
                return await ask(endpoint)
        except OutOfReachError as error:
            directory.endpoints.lost(endpoint)
            now = time.monotonic()
            give_up = min(give_up, now + directory.hold_s)
            if now >= give_up or (error.begun and begun):
                raise
            begun |= error.begun
