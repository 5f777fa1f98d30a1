"""What tests of versions ask a control plane with small runtimes, as the holder of a key."""

from __future__ import annotations

import asyncio
import base64
import json
from typing import Any

from tests.integration.control_plane import Api

MODEL = "/tenants/me/models/city"
PNG = b"\x89PNG\r\n\x1a\n golden canary"


async def golden(api: Api, key: str, number: int = 1, **document: Any):
    if not document:
        return await api.ask("PUT", f"{MODEL}/golden/{number}", key, content=PNG)
    body = {"picture": base64.b64encode(PNG).decode(), **document}
    return await api.ask("PUT", f"{MODEL}/golden/{number}", key, json=body)


async def use(api: Api, key: str, version: int, **more: Any):
    return await api.ask("POST", f"{MODEL}/use", key, json={"version": version, **more})


async def model(api: Api, key: str) -> dict[str, Any]:
    return (await api.ask("GET", MODEL, key)).json()


async def events(api: Api, key: str) -> list[tuple[str, str, str]]:
    answer = await api.ask("GET", "/tenants/me/audit?kind=change", key)
    return [(one["action"], one["actor"], one["detail"]) for one in answer.json()["entries"]]


async def report(api: Api, tenant: str, *models: dict[str, Any]) -> None:
    """Have the runtime report this of its models, and be looked at."""
    file = api.control.settings.run / tenant / "report.json"
    await asyncio.to_thread(file.write_text, json.dumps(models))
    api.control.leader._work[0][0].look_at([tenant])
