"""Who may tell a runtime what to serve: whoever reaches its socket, in a cluster only control."""

from __future__ import annotations

from dataclasses import dataclass, field

import httpx
import msgspec
import pytest
from starlette.routing import Router

from polyolo import web
from polyolo.serving import rest
from polyolo.types import Phase, RuntimeSpec, RuntimeStatus
from tests.cluster.clusters import spec_of


@dataclass
class Shelf:
    """Stands for a repository of models."""

    told: list[RuntimeSpec] = field(default_factory=list)

    def apply(self, spec: RuntimeSpec) -> None:
        self.told.append(spec)

    def status(self) -> RuntimeStatus:
        return RuntimeStatus(tenant="t_a", phase=Phase.READY)

    async def settled(self, *_: object) -> None:
        """Wait for nothing."""


@dataclass
class Runtime:
    repository: Shelf = field(default_factory=Shelf)


async def ask(token: str, bearer: str | None) -> tuple[list[int], int]:
    """Return how both routes answer, and how often the repository was told."""
    runtime = Runtime()
    app = web.Service(Router(rest.routes(runtime, token)), access_log=False)
    headers = {"authorization": f"Bearer {bearer}"} if bearer is not None else {}
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://runtime") as client:
        body = msgspec.json.encode(spec_of("t_a"))
        put = await client.put("/runtime/spec", content=body, headers=headers)
        got = await client.get("/runtime/status", headers=headers)
    return [put.status_code, got.status_code], len(runtime.repository.told)


async def test_control_is_known_by_the_token():
    """With it both routes answer; without one of its own a runtime trusts its socket."""
    assert await ask("t_a.secret", "t_a.secret") == ([202, 200], 1)
    assert await ask("", None) == ([202, 200], 1)


@pytest.mark.parametrize("bearer", [None, "", "t_b.secret", "t_a.secret ", "T_A.SECRET"])
async def test_nobody_else_is(bearer):
    """Whatever another pod says, it tells nothing and is told nothing."""
    assert await ask("t_a.secret", bearer) == ([401, 401], 0)
