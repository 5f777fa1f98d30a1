"""How exact rates are: ten times the limit, offered to two gateway processes by 200 keys.

    python -m tests.bench.limits [--seconds 30] [--rate 50]

With Redis, where a redis-server is installed, and without; in peace, and with gateways killed and
started again meanwhile. Printed is how many requests were let in, of how many the plans allow (the
rate over the time, and the burst where the tenant may still have it), of all tenants together and
of the worst single one. Control's own code keeps the tenants; the runtime behind the gateways
answers with nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import msgspec
import uvloop
from rich.console import Console
from rich.table import Table
from starlette.applications import Starlette

from polyolo import web
from polyolo.control import db, internal, names
from polyolo.control import secrets as sealing
from polyolo.control.changes import Changes
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.service import audit
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.signing import Signer
from polyolo.control.service.vault import Vault
from polyolo.types import Phase, Plan, RuntimeStatus
from tests.e2e.platform import free_port
from tests.integration.gateway_parts import served
from tests.integration.redis_server import redis

TENANTS, KEYS = 2, 100  # keys of each
TOKEN = "gateway-token"


async def runtime(scope: Any, receive: Any, send: Any) -> None:
    """Answer every detection with nothing."""
    while (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


class Bench:
    """Control's internal side over a database of tenants, and two gateways as processes."""

    def __init__(self, home: Path, rate: float) -> None:
        self.home = home
        self.rate = rate
        engine = db.open_engine(f"sqlite:///{home / 'bench.db'}")
        migrate(engine)
        vault = Vault(sealing.master(home))
        self.ledger = Ledger(engine, audit.opened(engine, vault))
        self.changes = Changes(self.ledger.revision())
        self.ledger.listeners.append(self.changes.publish)
        plane: Any = SimpleNamespace(
            changes=self.changes,
            ledger=self.ledger,
            token_signer=Signer(self.ledger, vault, "http://x"),
            settings=SimpleNamespace(
                plans=(Plan(name="limited", requests_per_second=rate),), gateway_token=TOKEN
            ),
            leader=SimpleNamespace(look_at=lambda _: None),
        )
        self.app = web.Service(Starlette(routes=internal.routes(plane)), access_log=False)
        self.ports = [free_port(), free_port()]
        self.gateways: dict[int, subprocess.Popen[bytes]] = {}
        self.redis: str | None = None

    def fill(self) -> list[list[str]]:
        """Make the tenants anew; return the keys of each."""
        every = [[names.api_key(names.key_id()) for _ in range(KEYS)] for _ in range(TENANTS)]
        status = {"phase": Phase.READY, "endpoints": (f"unix:{self.home}/runtime.sock",)}
        with self.ledger.changing() as transaction:
            put = transaction.connection.execute
            for table in (db.api_keys, db.runtimes, db.tenants, db.touched):
                put(table.delete())
            for keys in every:
                tenant = names.tenant_id()
                seen = msgspec.to_builtins(RuntimeStatus(tenant=tenant, **status))
                whose = {"tenant": tenant, "created_at": 0.0, "name": "", "scopes": ["detect"]}
                row = {"id": tenant, "name": tenant, "plan": "limited", "state": "active"}
                put(db.tenants.insert().values(**row, created_at=0.0))
                put(db.runtimes.insert().values(tenant=tenant, generation=1, status=seen))
                put(
                    db.api_keys.insert(),
                    [
                        whose | {"id": names.key_id_of(key), "digest": names.digest(key)}
                        for key in keys
                    ],
                )
            transaction.touch(None)
        return every

    async def start(self, number: int) -> None:
        """Start a gateway, and wait until it is ready."""
        environment = os.environ | {"POLYOLO_GATEWAY_TOKEN": TOKEN}
        if self.redis:
            environment["POLYOLO_REDIS"] = self.redis
        control = f"unix:{self.home}/control.sock"
        port = self.ports[number]
        self.gateways[number] = subprocess.Popen(  # noqa: ASYNC220  # takes a millisecond
            [sys.executable, "-m", "polyolo.gateway", "--control", control, "--port", str(port)],
            env=environment,
            stderr=subprocess.DEVNULL,
        )
        async with httpx.AsyncClient() as client, asyncio.timeout(20):
            while True:
                try:
                    if (await client.get(f"http://127.0.0.1:{port}/readyz")).status_code == 200:
                        return
                except httpx.HTTPError:
                    pass
                await asyncio.sleep(0.02)

    async def end(self, number: int, how: signal.Signals) -> None:
        gateway = self.gateways.pop(number)
        gateway.send_signal(how)
        await asyncio.to_thread(gateway.wait)

    async def offer(
        self, every: list[list[str]], seconds: float, *, restarts: bool
    ) -> tuple[list[int], float]:
        """Offer ten times the rate, half of it to each gateway; return what each tenant got, and
        in how many seconds."""
        picture = self.home / "picture"
        picture.write_bytes(b"x")
        keys = [key for column in zip(*every, strict=True) for key in column]  # tenants in turns
        at = time.perf_counter() + 3.0
        going = [
            asyncio.create_task(self._stream(port, keys, picture, seconds, at))
            for port in self.ports
        ]
        await asyncio.sleep(3.0)
        if restarts:
            for turn, how in enumerate((signal.SIGKILL, signal.SIGTERM, signal.SIGKILL)):
                await asyncio.sleep(seconds / 5)
                await self.end(turn % 2, how)
                await self.start(turn % 2)
        found = await asyncio.gather(*going)
        got = [0] * TENANTS
        for one in found:
            for which, number in one["good"].items():
                got[int(which) % TENANTS] += number
        # The clock of all processes of a machine is one.
        return got, max(one["last"] for one in found) - min(one["begun"] for one in found)

    async def _stream(
        self, port: int, keys: list[str], picture: Path, seconds: float, at: float
    ) -> Any:
        more = [word for key in keys for word in ("--key", key)]
        rate = self.rate * 10 * TENANTS / 2
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.bench.traffic", "steady", picture, *more),
            *("--url", f"http://127.0.0.1:{port}", "--rate", str(rate)),
            *("--connections", "100", "--seconds", str(seconds), "--at", str(at)),
            stdout=asyncio.subprocess.PIPE,
        )
        out, _ = await process.communicate()
        return json.loads(out)

    async def measure(self, seconds: float, *, restarts: bool) -> tuple[float, float]:
        """Return what was let in of what may be: of all together, and of the worst tenant."""
        for number in self.gateways.copy():
            await self.end(number, signal.SIGTERM)
        keys = self.fill()  # before the gateways start: so nobody has a burst without Redis
        for number in (0, 1):
            await self.start(number)
        await asyncio.sleep(1.0)
        got, took = await self.offer(keys, seconds, restarts=restarts)
        # What a gateway that starts has granted nobody piles up until the traffic begins.
        allowed = max(1.0, self.rate) + self.rate * took
        ratios = [number / allowed for number in got]
        return sum(ratios) / TENANTS, max(ratios, key=lambda one: abs(one - 1))


async def run(args: argparse.Namespace) -> None:
    table = Table(
        title=f"{TENANTS} tenants at {args.rate:g}/s, ten times that offered, two gateways"
    )
    for column in ("counted in", "meanwhile", "let in, of what may be", "the worst tenant"):
        table.add_column(column)
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch)
        bench = Bench(home, args.rate)
        try:
            async with AsyncExitStack() as stack:
                ways: list[tuple[str, str | None]] = [("gateways", None)]
                if shutil.which("redis-server"):
                    stack.enter_context(redis(home))
                    ways.append(("Redis", f"unix://{home}/redis.sock"))
                stop = asyncio.Event()
                await stack.enter_async_context(served(bench.app, stop, path=home / "control.sock"))
                await stack.enter_async_context(served(runtime, stop, path=home / "runtime.sock"))
                stack.callback(bench.changes.close)
                for name, url in ways:
                    bench.redis = url
                    for restarts in (False, True):
                        whole, worst = await bench.measure(args.seconds, restarts=restarts)
                        what = "three restarts" if restarts else ""
                        table.add_row(name, what, f"{whole:.2%}", f"{worst:.2%}")
        finally:
            for number in bench.gateways.copy():
                await bench.end(number, signal.SIGTERM)
    Console(width=100).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--rate", type=float, default=50.0, help="of each tenant, a second")
    uvloop.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
