"""A gateway between a control plane and runtimes made for tests, all on real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import msgspec

from polyolo import months, web
from polyolo.gateway.app import Gateway, gateway
from polyolo.gateway.settings import Settings
from polyolo.resources import UsageTaken
from polyolo.types import (
    KeyEntry,
    Phase,
    Plan,
    RuntimeStatus,
    Snapshot,
    TenantRoute,
    TenantState,
    UsageRecord,
)
from tests.e2e.platform import free_port

TOKEN = "gateway-token"
SCOPES = ("detect", "models:read")
METERING = [
    (b"polyolo-model", b"pcb:2"),
    (b"polyolo-images", b"1"),
    (b"polyolo-engine-ms", b"8.5"),
]


def key(letter: str) -> str:
    """Return a tenant's API key, made of one letter."""
    return f"pk_{letter * 12}_{letter.upper() * 43}"


def bearer(letter: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key(letter)}"}


def entry(letter: str, **changes: Any) -> KeyEntry:
    """Return the snapshot's entry of `key(letter)`, for tenant `t_<letter>`."""
    made = KeyEntry(
        id=letter * 12,
        digest=hashlib.sha256(key(letter).encode()).hexdigest(),
        tenant=f"t_{letter}",
        scopes=SCOPES,
    )
    return replace(made, **changes)


def route(
    letter: str,
    socket: Path | None,
    phase: Phase = Phase.READY,
    used: int = 0,
    month: str = "",
    **plan: Any,
) -> TenantRoute:
    """Return the route of tenant `t_<letter>`, whose runtime is at `socket`.

    used, month: the pictures of that month, as control knows them.
    """
    return TenantRoute(
        tenant=f"t_{letter}",
        name=f"tenant-{letter}",
        state=TenantState.ACTIVE,
        plan=Plan(name="test", **plan),
        phase=phase,
        endpoints=(f"unix:{socket}",) if socket else (),
        images_used=used,
        month=month,
    )


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until the condition holds; fail after the deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the condition did not come true in time"
        await asyncio.sleep(0.005)


@dataclass
class Seen:
    """A request as an upstream saw it."""

    method: str
    target: str
    headers: list[tuple[bytes, bytes]]
    body: bytes = b""
    hung_up: bool = False

    def values(self, name: str) -> list[str]:
        return [v.decode() for n, v in self.headers if n == name.encode()]


async def respond(send: Any, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    length = [] if status == 204 else [(b"content-length", str(len(body)).encode())]
    start = {"type": "http.response.start", "status": status, "headers": [*headers, *length]}
    await send(start)
    await send({"type": "http.response.body", "body": body})


async def read(receive: Any, seen: Seen) -> None:
    """Read the whole body of a request, or note that its client hung up."""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            seen.hung_up = True
            return
        seen.body += message.get("body", b"")
        if not message.get("more_body"):
            return


@dataclass
class Upstream:
    """Remembers what it was asked; `behave` may answer in another way."""

    name: str
    requests: list[Seen] = field(default_factory=list)
    behave: Callable[[Seen, Any, Any], Awaitable[None]] | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        query = scope["query_string"].decode()
        target = scope["raw_path"].decode() + (f"?{query}" if query else "")
        seen = Seen(scope["method"], target, list(scope["headers"]))
        self.requests.append(seen)
        if self.behave is not None:
            await self.behave(seen, receive, send)
            return
        await read(receive, seen)
        body = msgspec.json.encode({"from": self.name, "bytes": len(seen.body)})
        head = [(b"content-type", b"application/json"), *METERING]
        await respond(send, 200, body, head)


@dataclass
class Control(Upstream):
    """Speaks the internal protocol; anything else it answers as an upstream."""

    snapshot: Snapshot | None = None
    batches: list[list[UsageRecord]] = field(default_factory=list)
    usage_status: int = 200
    used_before: dict[str, int] = field(default_factory=dict)
    activity: list[dict[str, float]] = field(default_factory=list)
    wakes: list[str] = field(default_factory=list)
    """Tenants that a gateway asked to be woken, in order."""
    awake: Callable[[str], Awaitable[RuntimeStatus]] | None = None
    """Answers such a call."""
    polls: list[str] = field(default_factory=list)
    questions: int = 0
    """How often a gateway asked what the newest revision is."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    closed: bool = False

    def close(self) -> None:
        """Send the polls home."""
        self.closed = True
        self.changed.set()

    def publish(self, routes: list[TenantRoute], keys: list[KeyEntry], **more: Any) -> None:
        revision = self.snapshot.revision + 1 if self.snapshot else 1
        self.snapshot = Snapshot(revision=revision, tenants=tuple(routes), keys=tuple(keys), **more)
        self.tell()

    def tell(self) -> None:
        """Have the polls look at the snapshot."""
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if not scope["path"].startswith("/internal/"):
            await super().__call__(scope, receive, send)
            return
        seen = Seen(scope["method"], scope["path"], list(scope["headers"]))
        assert seen.values("authorization") == [f"Bearer {TOKEN}"]
        await read(receive, seen)
        if scope["path"] == "/internal/v1/usage":
            self.batches.append(msgspec.json.decode(seen.body, type=list[UsageRecord]))
            await respond(send, self.usage_status, msgspec.json.encode(self.taken()), [])
            return
        query = scope["query_string"].decode()
        if scope["path"] == "/internal/v1/activity":
            self.activity.append(msgspec.json.decode(seen.body))
            await respond(send, 204, b"", [])
            return
        if scope["path"] == "/internal/v1/wake":
            tenant = query.removeprefix("tenant=")
            self.wakes.append(tenant)
            asleep = RuntimeStatus(tenant=tenant, phase=Phase.ASLEEP)
            status = await self.awake(tenant) if self.awake else asleep
            await respond(send, 200, msgspec.json.encode(status), [])
            return
        if scope["path"] == "/internal/v1/revision":
            self.questions += 1
            await respond(send, 200, b"%d" % (self.snapshot.revision if self.snapshot else 0), [])
            self.tell()
            return
        self.polls.append(query)
        after = int(query.split("&")[0].removeprefix("after="))
        while self.snapshot is None or self.snapshot.revision <= after:
            if self.closed:
                await respond(send, 204, b"", [])
                return
            await self.changed.wait()
        await respond(send, 200, msgspec.json.encode(self.snapshot), [])

    def taken(self) -> UsageTaken:
        """Return what control would say it has counted: `used_before`, and each record once."""
        images = Counter(self.used_before)
        for record in self.usage.values():
            images[record.tenant] += record.images
        return UsageTaken(month=months.label(time.time()), images=dict(images))

    @property
    def usage(self) -> dict[str, UsageRecord]:
        """Usage by record id: what control would have counted."""
        return {record.id: record for batch in self.batches for record in batch}


@asynccontextmanager
async def served(
    app: Any, stop: asyncio.Event | None = None, *, protocol: Any = None, **where: Any
) -> AsyncIterator[Any]:
    """Serve an application on a socket while the context lasts; yields the listening socket.

    stop: shared by servers that may stop at the same time. protocol: as `web.serve` takes it.
    """
    listener = web.bind(**where)
    stop = stop or asyncio.Event()
    task = asyncio.create_task(web.serve(app, listener, stop=stop, drain_s=1, protocol=protocol))
    try:
        yield listener
    finally:
        stop.set()
        await task


@dataclass
class Platform:
    """What a test talks to."""

    home: Path
    control: Control
    runtimes: dict[str, Upstream]
    port: int = 0
    client: httpx.AsyncClient = field(init=False)
    doors: Gateway = field(init=False)

    def socket(self, letter: str) -> Path:
        return self.home / f"{letter}.sock"

    def publish(
        self, *changed: TenantRoute, keys: list[KeyEntry] | None = None, **more: Any
    ) -> None:
        """Publish both tenants as ready, but for the routes given. more: of the snapshot."""
        routes = {f"t_{n}": route(n, self.socket(n)) for n in self.runtimes}
        routes |= {r.tenant: r for r in changed}
        entries = [entry(n) for n in self.runtimes] if keys is None else keys
        self.control.publish(list(routes.values()), entries, **more)

    async def revision(self) -> None:
        """Wait until the gateway has the newest snapshot."""
        assert self.control.snapshot is not None
        after = f"after={self.control.snapshot.revision}&"
        await until(lambda: any(poll.startswith(after) for poll in self.control.polls))

    async def metrics(self) -> str:
        return (await self.client.get("/metrics")).text

    async def in_flight(self, letter: str, number: int) -> None:
        """Wait until the gateway counts so many requests of the tenant in flight."""
        wanted = f'in_flight{{model="",tenant="tenant-{letter}"}} {number}.0'
        for _ in range(500):
            if wanted in await self.metrics():
                return
        raise AssertionError(f"never had {number} requests in flight")

    async def detect(self, letter: str, content: Any = b"picture", **extra: Any) -> httpx.Response:
        headers = bearer(letter) | extra.pop("headers", {})
        return await self.client.post("/v1/detect", content=content, headers=headers, **extra)


@asynccontextmanager
async def platform(*, ready: bool = True, **changes: Any) -> AsyncIterator[Platform]:
    """Run control, the runtimes of tenants a and b, and a gateway.

    ready: with a snapshot from the start. changes: the gateway's settings.
    """
    home = Path(tempfile.mkdtemp(prefix="polyolo-"))  # short: a socket's path has 107 bytes
    made = Platform(home, Control("control"), {n: Upstream(n) for n in "ab"})
    try:
        async with AsyncExitStack() as stack:
            stop = asyncio.Event()
            await stack.enter_async_context(served(made.control, stop, path=home / "control.sock"))
            for name, runtime in made.runtimes.items():
                await stack.enter_async_context(served(runtime, stop, path=made.socket(name)))
            if ready:
                made.publish()
            settings = Settings(
                control=f"unix:{home}/control.sock", token=TOKEN, access_log=False, **changes
            )
            made.doors = await stack.enter_async_context(gateway(settings))
            listener = await stack.enter_async_context(
                served(made.doors.http, host="127.0.0.1", port=free_port())
            )
            made.port = listener.getsockname()[1]
            made.client = await stack.enter_async_context(
                httpx.AsyncClient(base_url=f"http://127.0.0.1:{made.port}", timeout=20)
            )
            stack.callback(made.control.close)
            if ready:
                await made.revision()
            yield made
    finally:
        shutil.rmtree(home)
