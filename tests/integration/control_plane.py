"""A control plane with small runtimes, served on its Unix socket, for tests of its API."""

from __future__ import annotations

import asyncio
import functools
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from argon2 import PasswordHasher

from polyolo import web
from polyolo.control import db
from polyolo.control.app import Control, opened
from polyolo.control.migrations.upgrade import migrate
from polyolo.control.passwords import Passwords
from polyolo.control.settings import ControlSettings
from polyolo.sandbox import kernel
from polyolo.types import Plan
from tests.integration import postgres

PARTS = Path(__file__).parents[1] / "contract"
GATEWAY = {"authorization": "Bearer gateway-token"}
BARE = (sys.executable, "-I", "-S")  # Python without other people's packages starts faster
CHEAP = Passwords(PasswordHasher(time_cost=1, memory_cost=64, parallelism=1))


@dataclass
class Api:
    """A client of one control plane."""

    control: Control
    http: httpx.AsyncClient

    async def ask(
        self, method: str, path: str, key: str | None = None, **more: Any
    ) -> httpx.Response:
        """Ask as the holder of `key`, the operator by default."""
        on_server = self.control.settings.database.startswith("postgresql")
        assert on_server == (postgres.VARIABLE in os.environ), "not on the database of the test"
        headers = {"authorization": f"Bearer {key or self.control.operator_key}"}
        return await self.http.request(method, f"/api/v1{path}", headers=headers, **more)

    async def tenant(self, name: str) -> tuple[str, str]:
        """Make a tenant; return its id and its key."""
        answer = await self.ask("POST", "/tenants", json={"name": name})
        assert answer.status_code == 201, answer.text
        return answer.json()["id"], answer.json()["api_key"]["key"]

    async def ready(self, tenant: str) -> dict[str, Any]:
        """Wait for a tenant's runtime."""
        return await self.phase(tenant, "ready")

    async def phase(self, tenant: str, phase: str) -> dict[str, Any]:
        """Wait for a phase of a tenant's runtime."""

        async def look() -> dict[str, Any] | None:
            status = (await self.ask("GET", f"/tenants/{tenant}/runtime")).json()
            return status if status["phase"] == phase else None

        return await until(look)

    def spec(self, tenant: str) -> dict[str, Any]:
        """Return the spec document that the runtime was given last."""
        file = self.control.settings.run / tenant / "spec.json"
        document: dict[str, Any] = json.loads(file.read_text())
        return document

    def pid(self, tenant: str) -> int:
        """Return the pid of the tenant's runtime, of its newest copy."""
        files = self.control.settings.run.glob(f"{tenant}*/runtime.json")
        file = max(files, key=lambda one: one.stat().st_mtime_ns)
        return int(json.loads(file.read_text())["pid"])


async def until(look: Callable[[], Awaitable[Any]], within: float = 15.0) -> Any:
    """Return what `look` sees once it is true."""
    async with asyncio.timeout(within):
        while not (seen := await look()):  # what is looked at is another process
            await asyncio.sleep(0.02)
        return seen


def settings(home: Path, **changes: Any) -> ControlSettings:
    """Return settings for small runtimes, and a standard model beside `home`.

    The database is there already, as the migrations make it: they are tested by themselves.
    """
    standard = home.parent / "standard.bin"
    if not standard.exists():
        standard.write_text("model standard")
    values: dict[str, Any] = {
        "home": home,
        "standard": standard,
        "standard_label": "pcb:2",
        "plans": (
            Plan(name="default", max_models=3, max_model_bytes=3_000_000, min_replicas=1),
            Plan(name="pro", min_replicas=1),
        ),
        "gateway_token": "gateway-token",
        "runtime_command": (sys.executable, str(PARTS / "small_runtime.py")),
        "inspect_command": (*BARE, str(PARTS / "small_inspect.py")),
        "compare_command": (*BARE, str(PARTS / "small_compare.py")),
        "passwords": CHEAP,
        "drain_s": 1.0,
        "warm": 0,
    }
    if "database" not in changes:
        values["database"] = database_url(home, like=migrated)
        if not values["database"] and not (home / "polyolo.db").exists():
            home.mkdir(mode=0o700, exist_ok=True)
            (home / "polyolo.db").write_bytes(migrated_file())
    return ControlSettings(**(values | changes))


def database_url(home: Path, like: Callable[[str], str] | None = None) -> str:
    """Return the database of `home`: always the same one; empty for SQLite in the home.

    like: given the server's directory, the database that a new one begins as a copy of.
    """
    directory = os.environ.get(postgres.VARIABLE)
    if not directory:
        return ""
    return postgres.url(directory, str(home), *((like(directory),) if like else ()))


@functools.cache
def migrated(directory: str) -> str:
    """Return the name of a database with all tables, made once a session."""
    name = f"migrated {os.getpid()}"
    engine = db.open_engine(postgres.url(directory, name))
    migrate(engine)
    engine.dispose()
    return postgres.database_of(name)


@functools.cache
def migrated_file() -> bytes:
    """Return an SQLite database with all tables, made once a session."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "polyolo.db"
        engine = db.open_engine(f"sqlite:///{file}")
        migrate(engine)
        engine.dispose()
        return file.read_bytes()


@asynccontextmanager
async def serving(chosen: ControlSettings) -> AsyncIterator[Api]:
    """Run a control plane and yield its client."""
    stop = asyncio.Event()
    async with opened(chosen) as control:
        listener = web.bind(path=chosen.socket)
        server = asyncio.create_task(web.serve(control.app, listener, stop=stop))
        transport = httpx.AsyncHTTPTransport(uds=str(chosen.socket))
        async with httpx.AsyncClient(
            transport=transport, base_url="http://control", timeout=30
        ) as http:
            yield Api(control=control, http=http)
        stop.set()
        control.release()
        await server


def running(pid: int) -> bool:
    """Say whether a process runs."""
    process = kernel.identify(pid)
    return process is not None and kernel.runs(process)
