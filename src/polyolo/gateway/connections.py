"""Bounds the connections that are held open: who holds many and asks nothing loses them first.

Before a request has been read nobody knows whose it is, so this goes by where it comes from. What
is asked over a connection is bounded elsewhere, by tenant.
"""

from __future__ import annotations

import asyncio
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from ipaddress import IPv6Address, ip_address
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 75.0
"""Seconds for a request's head, from the connection's beginning or the answer before it: what the
server gives to connections that say nothing, so that trickling gains no time."""
_HEAD_BYTES = 64 * 1024  # credentials and a trace make 2 KB; the parser itself has no bound
_SWEEP_S = 5.0
_MOST_FILES = 65_536  # 32,000 connections take 100 MB
_OTHER_FILES = 256  # descriptors for everything but connections and what is asked behind them


@dataclass(slots=True)
class _Source:
    """The connections from one place, oldest first."""

    idle: dict[Connection, float] = field(default_factory=dict)
    """Those that wait for a request's head, since when."""
    busy: dict[Connection, None] = field(default_factory=dict)

    @property
    def number(self) -> int:
        return len(self.idle) + len(self.busy)


class Connections:
    """All open connections of a server. On the event loop's thread."""

    def __init__(
        self,
        most: int,
        *,
        head_s: float = HEAD_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Keep at most so many open."""
        self._most = most
        self._head_s = head_s
        self._clock = clock
        self._sources: dict[str, _Source] = {}
        self._number = 0

    def __len__(self) -> int:
        return self._number

    def protocol(self, **more: Any) -> asyncio.Protocol:
        """Return the protocol of a new connection; for uvicorn, which says what it needs."""
        return Connection(self, **more)

    def opened(self, connection: Connection) -> bool:
        """Take a new connection in, and close another one where there are too many; False if
        there is none to close."""
        if self._number >= self._most and not self._make_room():
            return False
        source = self._sources.setdefault(connection.source, _Source())
        source.idle[connection] = self._clock()
        self._number += 1
        return True

    def closed(self, connection: Connection) -> None:
        """Forget a connection."""
        source = self._sources.get(connection.source)
        if source is None:
            return
        before = source.number
        source.idle.pop(connection, None)
        source.busy.pop(connection, None)
        self._number -= before - source.number
        if not source.number:
            del self._sources[connection.source]

    def asked(self, connection: Connection) -> None:
        """Note that a request's head has come."""
        source = self._sources.get(connection.source)
        if source is not None and source.idle.pop(connection, None) is not None:
            source.busy[connection] = None

    def answered(self, connection: Connection) -> None:
        """Note that the connection waits for the next request."""
        source = self._sources.get(connection.source)
        if source is not None and connection in source.busy:
            del source.busy[connection]
            source.idle[connection] = self._clock()

    def is_idle(self, connection: Connection) -> bool:
        """Say whether the connection waits for a request's head."""
        source = self._sources.get(connection.source)
        return source is not None and connection in source.idle

    async def sweep(self) -> None:
        """Close connections whose head does not come, every few seconds, until cancelled."""
        while True:
            await asyncio.sleep(min(_SWEEP_S, self._head_s))
            late = self._clock() - self._head_s
            for source in list(self._sources.values()):
                for connection, since in list(source.idle.items()):
                    if since > late:
                        break
                    connection.drop()

    def _make_room(self) -> bool:
        """Close the connection that has waited longest, of the source that holds the most.

        One that has its answer and goes on sending goes next; of one that is served, none.
        """
        for source in sorted(self._sources.values(), key=lambda one: one.number, reverse=True):
            found = next(iter(source.idle), None)
            if found is None:
                found = next((one for one in source.busy if one.lingers), None)
            if found is not None:
                found.drop()
                return True
        return False


class Connection(HttpToolsProtocol):
    """One connection, which tells of itself."""

    def __init__(self, book: Connections, **more: Any) -> None:
        super().__init__(**more)
        self._book = book
        self._head = 0
        self.source = ""
        """Where it comes from: an address, or the network that one IPv6 client has."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin."""
        super().connection_made(transport)
        self.source = _source(self.client[0] if self.client else "")
        if not self._book.opened(self):
            self.drop()

    def connection_lost(self, exc: Exception | None) -> None:
        """End."""
        self._book.closed(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Read what came; a head that is too long ends the connection."""
        super().data_received(data)
        if self._book.is_idle(self):
            self._head += len(data)
            if self._head > _HEAD_BYTES:
                self.drop()

    def on_headers_complete(self) -> None:
        """Begin a request."""
        self._head = 0
        self._book.asked(self)
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """End a request."""
        super().on_response_complete()
        if self.cycle is None or self.cycle.response_complete:  # else the next one has begun
            self._book.answered(self)

    @property
    def lingers(self) -> bool:
        """True when the answer has gone out and the request's body still comes."""
        return self.cycle is not None and self.cycle.response_started and self.cycle.more_body

    def drop(self) -> None:
        """Close the connection at once, and count it no more."""
        self._book.closed(self)
        self.transport.abort()


def room() -> int:
    """Raise this process's bound on open files as far as it may, and return how many connections
    that is enough for: each request needs a second one behind it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = _MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, _MOST_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, hard))
    return max(64, (files - _OTHER_FILES) // 2)


def _source(host: str) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return address.packed[:8].hex()  # a client has a /64 to itself
    return host
