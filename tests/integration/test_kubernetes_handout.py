"""What a runtime in a cluster reaches of the platform: its own model files, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from polyolo import sealedfile, web
from polyolo.control import handout
from polyolo.control.app import build
from polyolo.control.calls import Recorder
from polyolo.drivers.kubernetes.pods import TOKEN
from polyolo.errors import NotReadyError
from polyolo.sealedfile import KEY_VARIABLE, SealedFileError
from polyolo.serving.fetch import Files
from polyolo.types import ModelSpec, VersionSpec
from tests.cluster.clusters import SETTINGS, spec_of
from tests.integration.control_plane import Api, serving, settings, until


@pytest.fixture
async def api(tmp_path: Path):
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def pushed(api: Api, name: str, *, again: bool = False) -> tuple[str, str]:
    """Make a tenant with a model; return its id and the digest of the model's file.

    again: the tenant is there; another version.
    """
    if again:
        tenant = (await api.ask("GET", f"/tenants/{name}")).json()["id"]
    else:
        tenant, _ = await api.tenant(name)
    body = f"model {name}{' again' * again}".encode()
    answer = await api.ask("POST", f"/tenants/{tenant}/models/city/versions", content=body)
    assert answer.status_code == 201, answer.text
    return tenant, answer.json()["digest"]


def secrets(api: Api, tenant: str) -> Mapping[str, str]:
    return handout.keys(api.control.plane.ledger, api.control.plane.vault)(tenant)


async def ask(api: Api, file: str, bearer: str | None) -> httpx.Response:
    transport = httpx.ASGITransport(app=api.control.files)
    headers = {"authorization": f"Bearer {bearer}"} if bearer is not None else {}
    async with httpx.AsyncClient(transport=transport, base_url="http://files") as client:
        return await client.get(f"/models/{file}", headers=headers)


@asynccontextmanager
async def handing_out(api: Api) -> AsyncIterator[str]:
    """Serve files on a port; yield the URL below which they are."""
    listener, stop = web.bind(host="127.0.0.1", port=0), asyncio.Event()
    server = asyncio.create_task(web.serve(api.control.files, listener, stop=stop))
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/models"
    finally:
        stop.set()
        await server


def version(uri: str, *golden: str) -> VersionSpec:
    digest = uri.rpartition("/")[2]
    return VersionSpec(version=1, digest=digest, uri=uri, golden=golden)


async def test_a_runtime_gets_its_own_files_sealed(api):
    """Its key opens them; another tenant's look as if they did not exist, to whoever knows them."""
    mine, my_file = await pushed(api, "mine")
    theirs, their_file = await pushed(api, "theirs")
    sealed = (await ask(api, f"{mine}/{my_file}", secrets(api, mine)[TOKEN])).content
    key = bytes.fromhex(secrets(api, mine)[KEY_VARIABLE])
    assert b"model mine" not in sealed
    assert b"".join(sealedfile.unseal(key, my_file, [sealed])) == b"model mine"
    for file in (f"{theirs}/{their_file}", f"{mine}/{their_file}", f"{mine}/{'a' * 64}"):
        refused = await ask(api, file, secrets(api, mine)[TOKEN])
        assert (refused.status_code, refused.json()["detail"]) == (404, "there is no such file")
    with pytest.raises(SealedFileError):
        b"".join(sealedfile.unseal(bytes.fromhex(secrets(api, theirs)[KEY_VARIABLE]), my_file,
                                   [sealed]))  # fmt: skip


async def test_the_standard_model_is_everybodys(api):
    """It lies open, as it does on one machine."""
    mine, _ = await pushed(api, "mine")
    standard = api.spec(mine)["models"][-1]["versions"][0]["digest"]
    found = await ask(api, f"platform/{standard}", secrets(api, mine)[TOKEN])
    assert (found.status_code, found.content) == (200, b"model standard")


async def test_without_a_tenants_token_there_is_nothing(api):
    """No credential, a made-up one, another's proof, the operator's key, a path: refused."""
    mine, digest = await pushed(api, "mine")
    theirs, _ = await pushed(api, "theirs")
    token = secrets(api, mine)[TOKEN]
    proof = secrets(api, theirs)[TOKEN].rpartition(".")[2]
    for bearer in (None, "", "x", f"{mine}.x", f"{mine}.{proof}", api.control.operator_key):
        assert (await ask(api, f"{mine}/{digest}", bearer)).status_code == 401, bearer
    for path in ("..%2f..%2foperator.key", f"{mine}/..%2foperator.key", "../internal/v1/snapshot"):
        assert (await ask(api, path, token)).status_code == 404
    assert (await ask(api, f"{mine}/uploads/{digest}", token)).status_code == 404


async def test_the_key_of_a_tenant_that_is_gone_does_not_come_back(api):
    """What is left of it is known by its token still, and opens nothing."""
    mine, _ = await pushed(api, "mine")
    assert (await api.ask("DELETE", f"/tenants/{mine}")).status_code == 204

    async def forgotten() -> bool:
        return KEY_VARIABLE not in secrets(api, mine)

    await until(forgotten)
    assert TOKEN in secrets(api, mine)


async def test_a_runtime_fetches_what_its_document_names(api, tmp_path):
    """Once, whole, as it lies in the store, golden pictures too; what is no longer named goes."""
    mine, digest = await pushed(api, "mine")
    _, other = await pushed(api, "mine", again=True)
    folder = tmp_path / "models"
    files = Files(folder, secrets(api, mine)[TOKEN])
    async with handing_out(api) as url:
        both = version(f"{url}/{mine}/{digest}", f"{url}/{mine}/{other}")
        await files.bring(both)
    await files.bring(both)  # they are there already
    key = secrets(api, mine)[KEY_VARIABLE]
    assert sealedfile.read(files.path(both.uri), key, digest) == b"model mine"
    assert sorted(file.name for file in folder.iterdir()) == sorted([digest, other])
    model = ModelSpec(name="city", current=1, versions=(version(both.uri),))
    files.keep(spec_of(mine, models=(model,)))
    assert [file.name for file in folder.iterdir()] == [digest]
    assert Files().path("models/x") == Path("models/x")


async def test_a_file_that_cannot_be_had_is_told_in_a_sentence(api, tmp_path):
    """Another's, none at all, no directory to put it in."""
    mine, _ = await pushed(api, "mine")
    async with handing_out(api) as url:
        for file, token, why in (
            (f"{mine}/{'a' * 64}", secrets(api, mine)[TOKEN], "answers 404"),
            (f"{mine}/{'b' * 64}", "wrong", "answers 401"),
        ):
            with pytest.raises(NotReadyError, match=why):
                await Files(tmp_path / "models", token).bring(version(f"{url}/{file}"))
    with pytest.raises(NotReadyError, match="no directory"):
        await Files().bring(version("http://127.0.0.1:1/x"))


async def test_a_runtime_waits_for_a_store_that_is_away(api, tmp_path):
    """Control is restarted while a pod starts: the pod goes on as soon as it is back."""
    mine, digest = await pushed(api, "mine")
    files = Files(tmp_path / "models", secrets(api, mine)[TOKEN])
    with web.bind(host="127.0.0.1") as free:
        port = free.getsockname()[1]
    wanted = version(f"http://127.0.0.1:{port}/models/{mine}/{digest}")
    waiting = asyncio.create_task(files.bring(wanted))
    await asyncio.sleep(0)
    assert not waiting.done()
    stop, listener = asyncio.Event(), web.bind(host="127.0.0.1", port=port)
    server = asyncio.create_task(web.serve(api.control.files, listener, stop=stop))
    await asyncio.wait_for(waiting, 10)
    assert files.path(wanted.uri).is_file()
    stop.set()
    await server


async def test_the_operator_reads_what_a_tenant_is_made_of(tmp_path):
    """`tenants render` shows every object, without keys; no tenant may, and no process platform."""
    async with serving(settings(tmp_path / "home")) as api:
        tenant, key = await api.tenant("mine")
        assert (await api.ask("GET", f"/tenants/{tenant}/manifests")).status_code == 409
        plane = api.control.plane
        with_pods = replace(plane, settings=replace(plane.settings, cluster=SETTINGS))
        recorder = Recorder(plane.ledger)
        transport = httpx.ASGITransport(app=build(with_pods, api.control.leader, recorder))
        async with httpx.AsyncClient(transport=transport, base_url="http://control") as http:
            elsewhere = Api(api.control, http)
            shown = (await elsewhere.ask("GET", f"/tenants/{tenant}/manifests")).json()
            refused = await elsewhere.ask("GET", "/tenants/me/manifests", key)
        recorder.close()
        kinds = {one["kind"] for one in shown["items"]}
        assert {"Namespace", "Deployment", "NetworkPolicy", "Secret"} <= kinds
        secret = next(one for one in shown["items"] if one["kind"] == "Secret")
        assert secret["data"] == {"hidden": ""}
        assert refused.status_code == 403
