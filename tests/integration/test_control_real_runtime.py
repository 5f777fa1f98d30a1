"""The control plane with the real runtime and a shipped model: what the stand-ins stand for."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import httpx
import pytest

from polyolo import models
from polyolo.control.settings import ControlSettings
from polyolo.types import Plan
from tests.integration.control_plane import serving, settings

SAMPLES = Path(models.__file__).parent / "samples"


def real(home: Path) -> ControlSettings:
    serving_module = (sys.executable, "-m", "polyolo.serving")
    return settings(
        home,
        standard=models.bundled(*models.STANDARD),
        plans=(Plan(name="default", min_replicas=1),),
        runtime_command=serving_module,
        inspect_command=(*serving_module, "inspect"),
    )


async def test_a_tenant_detects_seconds_after_it_was_made(tmp_path: Path):
    """Made, ready, answering; a push is in force when it is answered; killed, it is back."""
    async with serving(real(tmp_path / "home")) as api:
        started = time.monotonic()
        tenant, key = await api.tenant("acme")
        status = await api.ready(tenant)
        assert time.monotonic() - started < 5  # 0.5 s on an idle machine
        assert status["models"][0]["state"] == "ready"

        endpoint = status["endpoints"][0].removeprefix("unix:")
        picture = next(
            path for path in sorted(SAMPLES.iterdir()) if path.suffix in (".png", ".jpg")
        )
        transport = httpx.AsyncHTTPTransport(uds=endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://runtime") as runtime:
            first = await runtime.post("/v1/detect", content=picture.read_bytes())
            assert first.json()["model"] == {"name": "standard", "version": 1}
            pushed = await api.ask(
                "POST",
                "/tenants/me/models/mine/versions",
                key,
                content=models.bundled("pcb", 1).read_bytes(),
            )
            assert pushed.status_code == 201, pushed.text
            assert pushed.json()["classes"][0] == "missing_hole"
            second = await runtime.post("/v1/detect", content=picture.read_bytes())
            assert second.json()["model"] == {"name": "mine", "version": 1}

        os.kill(api.pid(tenant), signal.SIGKILL)
        await api.phase(tenant, "failed")
        started = time.monotonic()
        await api.ready(tenant)
        assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    "content", [b"text", b"\x08\x07" + b"\0" * 5000, b"\xff" * 100_000], ids=["text", "zeros", "ff"]
)
async def test_what_is_no_model_is_refused_with_a_reason(tmp_path: Path, content: bytes):
    """The real inspection says why, and its limits leave it room to work."""
    async with serving(real(tmp_path / "home")) as api:
        _, key = await api.tenant("acme")
        answer = await api.ask("POST", "/tenants/me/models/city/versions", key, content=content)
        assert answer.status_code == 422
        assert answer.json()["type"] == "urn:polyolo:error:model-refused"
        assert "could not be looked into" not in answer.json()["detail"]
