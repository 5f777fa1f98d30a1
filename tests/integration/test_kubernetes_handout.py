"""What a runtime in a cluster reaches of the platform: its own model files, and nothing else."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from polyolo import web
from polyolo.control import handout
from polyolo.drivers.kubernetes.pods import TOKEN
from polyolo.errors import NotReadyError
from polyolo.serving.fetch import located
from tests.cluster.clusters import SETTINGS
from tests.integration.control_plane import Api, serving, settings


@pytest.fixture
async def api(tmp_path: Path):
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def pushed(api: Api, name: str) -> tuple[str, str]:
    """Make a tenant with a model; return its id and the digest of the model's file."""
    tenant, key = await api.tenant(name)
    body = f"model {name}".encode()
    answer = await api.ask("POST", "/tenants/me/models/city/versions", key, content=body)
    assert answer.status_code == 201, answer.text
    return tenant, answer.json()["digest"]


def token(api: Api, tenant: str) -> str:
    return handout.keys(api.control.plane.ledger, api.control.plane.vault)(tenant)[TOKEN]


async def ask(api: Api, digest: str, bearer: str | None) -> httpx.Response:
    transport = httpx.ASGITransport(app=api.control.files)
    headers = {"authorization": f"Bearer {bearer}"} if bearer is not None else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://files") as client:
        return await client.get(f"/models/{digest}", headers=headers)


async def test_a_runtime_gets_its_own_files_and_the_standard_one(api):
    """Another tenant's file looks as if it did not exist, whoever knows its digest."""
    mine, my_file = await pushed(api, "mine")
    _, their_file = await pushed(api, "theirs")
    assert (await ask(api, my_file, token(api, mine))).content == b"model mine"
    foreign = await ask(api, their_file, token(api, mine))
    missing = await ask(api, "a" * 64, token(api, mine))
    assert (foreign.status_code, missing.status_code) == (404, 404)
    assert foreign.json()["detail"] == missing.json()["detail"]
    files = api.control.plane.store.digests() - {my_file, their_file}
    standard = [digest for digest in files if len(digest) == 64]
    assert (await ask(api, standard[0], token(api, mine))).status_code == 200


async def test_without_a_tenants_token_there_is_nothing(api):
    """No credential, a made-up one, another's proof, the operator's key, a path: refused."""
    mine, digest = await pushed(api, "mine")
    theirs, _ = await pushed(api, "theirs")
    proof = token(api, theirs).rpartition(".")[2]
    for bearer in (None, "", "x", f"{mine}.x", f"{mine}.{proof}", api.control.operator_key):
        assert (await ask(api, digest, bearer)).status_code == 401, bearer
    assert (await ask(api, "..%2f..%2foperator.key", token(api, mine))).status_code == 404
    assert (await ask(api, "../internal/v1/snapshot", token(api, mine))).status_code == 404


async def test_a_runtime_fetches_what_its_document_names(api, tmp_path):
    """Once, whole, and told in a sentence when it cannot be had."""
    mine, digest = await pushed(api, "mine")
    listener = web.bind(host="127.0.0.1", port=0)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}/models"
    stop = asyncio.Event()
    server = asyncio.create_task(web.serve(api.control.files, listener, stop=stop))
    folder = tmp_path / "models"
    found = await located(f"{url}/{digest}", tmp_path, folder, token(api, mine))
    assert found.read_bytes() == b"model mine"
    with pytest.raises(NotReadyError, match="answers 404"):
        await located(f"{url}/{'a' * 64}", tmp_path, folder, token(api, mine))
    with pytest.raises(NotReadyError, match="answers 401"):
        await located(f"{url}/{'b' * 64}", tmp_path, folder, "wrong")
    stop.set()
    await server
    assert await located(f"{url}/{digest}", tmp_path, folder, "") == found  # it is there already
    with pytest.raises(NotReadyError, match="cannot be fetched"):
        await located(f"{url}/{'c' * 64}", tmp_path, folder, "")
    assert await located("models/x", tmp_path, None, "") == tmp_path / "models/x"
    assert list(folder.iterdir()) == [found]


async def test_the_operator_reads_what_a_tenant_is_made_of(tmp_path):
    """`tenants render` shows every object, without keys; no tenant may, and no process platform."""
    async with serving(settings(tmp_path / "home")) as api:
        tenant, key = await api.tenant("mine")
        assert (await api.ask("GET", f"/tenants/{tenant}/manifests")).status_code == 409
        plane = api.control.plane
        api.control.app._app._app._app.state.plane = replace(
            plane, settings=replace(plane.settings, cluster=SETTINGS)
        )
        shown = (await api.ask("GET", f"/tenants/{tenant}/manifests")).json()
        kinds = {one["kind"] for one in shown["items"]}
        assert {"Namespace", "Deployment", "NetworkPolicy", "Secret"} <= kinds
        secret = next(one for one in shown["items"] if one["kind"] == "Secret")
        assert secret["data"] == {"hidden": ""}
        assert (await api.ask("GET", "/tenants/me/manifests", key)).status_code == 403
