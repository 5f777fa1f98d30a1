"""Model files that stay with their tenant: a directory, a bucket; read, checked, never kept."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import obstore
import pytest
import pytest_asyncio
from obstore.store import S3Store

from polyolo.control import storage
from polyolo.control.bucket import Access
from polyolo.control.storage import OwnStorage
from polyolo.drivers.kubernetes.settings import ClusterSettings
from polyolo.errors import InvalidValueError
from polyolo.models import bundled
from tests.contract.bucket_server import bucket
from tests.integration.control_plane import Api, serving, until
from tests.integration.test_control_real_runtime import real
from tests.unit import hostile_graphs

MODELS = [bundled("pcb", 1).read_bytes(), hostile_graphs.good().SerializeToString()]
DIGESTS = [hashlib.sha256(content).hexdigest() for content in MODELS]


@pytest.fixture(scope="module")
def server() -> Iterator[Access]:
    with bucket() as access:
        yield access


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(real(tmp_path / "home")) as api:
        yield api


async def register(api: Api, key: str, uri: str, sha256: str):
    body = {"uri": uri, "sha256": sha256}
    return await api.ask("POST", "/tenants/me/models/city/versions", key, json=body)


async def state(api: Api, key: str, number: int) -> tuple[str, str]:
    status = (await api.ask("GET", "/tenants/me/runtime", key)).json()
    found = [m for m in status["models"] if (m["name"], m["version"]) == ("city", number)]
    return (found[0]["state"], found[0]["reason"]) if found else ("", "")


async def test_a_directory_of_ones_own(api: Api, tmp_path: Path):
    """Registered by name and sha256, served, in no store; changed afterwards it is not served."""
    tenant, key = await api.tenant("acme")
    mounted = tmp_path / "mounted"
    (mounted / "city").mkdir(parents=True)
    (mounted / "city" / "v1.onnx").write_bytes(MODELS[0])
    assert (await register(api, key, "city/v1.onnx", DIGESTS[0])).status_code == 404  # no storage
    path = f"/tenants/{tenant}/storage"
    granted = {"uri": mounted.as_uri()}
    assert (await api.ask("PUT", path, key, json=granted)).status_code == 403  # the operator's
    assert (await api.ask("PUT", path, json=granted)).status_code == 200
    assert (await api.ask("GET", "/tenants/me/storage", key)).json()["uri"] == mounted.as_uri()

    made = await register(api, key, "city/v1.onnx", DIGESTS[0])
    assert made.status_code == 201, made.text
    assert (made.json()["digest"], made.json()["uri"]) == (DIGESTS[0], "city/v1.onnx")
    assert await state(api, key, 1) == ("ready", "")
    kept = [name for name, *_ in api.control.plane.store.everything() if "platform" not in name]
    assert kept == []
    clear = MODELS[0][2_000_000:2_000_200]
    assert clear not in bundled("pcb", 2).read_bytes()  # which lies open, as the standard model
    home = api.control.settings.home
    assert not [f for f in home.rglob("*") if f.is_file() and clear in f.read_bytes()]

    wrong = await register(api, key, "city/v1.onnx", DIGESTS[1])
    assert (wrong.status_code, "sha256" in wrong.json()["detail"]) == (422, True)
    assert (await api.ask("DELETE", path)).status_code == 409  # a version needs it

    (mounted / "city" / "v2.onnx").write_bytes(MODELS[1])
    assert (await register(api, key, "city/v2.onnx", DIGESTS[1])).status_code == 201
    digest_file = api.control.settings.run / tenant / "models" / f"{DIGESTS[1]}.onnx"
    digest_file.unlink(missing_ok=True)
    (mounted / "city" / "v2.onnx").write_bytes(MODELS[0])  # changed behind the platform's back
    force = {"version": 2, "force": True}
    await api.ask("POST", "/tenants/me/models/city/use", key, json=force)

    async def refused() -> bool:
        seen, reason = await state(api, key, 2)
        return seen == "failed" and "sha256 differs" in reason

    await until(refused)


async def test_a_bucket_of_ones_own(api: Api, server: Access):
    """With the tenant's own key, which is told to nobody and lies nowhere in clear."""
    tenant, key = await api.tenant("acme")
    store = S3Store(
        "models",
        endpoint=server.endpoint,
        access_key_id="x",
        secret_access_key="x",
        region="us-east-1",
        client_options={"allow_http": True},
    )
    obstore.put(store, "acme/v1.onnx", MODELS[0])
    secret = "canary-secret-of-the-bucket"
    granted = {
        "uri": "s3://models/acme",
        "endpoint": server.endpoint,
        "access_key_id": server.access_key_id,
        "secret_access_key": secret,
    }
    answer = await api.ask("PUT", f"/tenants/{tenant}/storage", json=granted)
    assert answer.status_code == 200, answer.text
    assert secret not in answer.text
    made = await register(api, key, "v1.onnx", DIGESTS[0])
    assert made.status_code == 201, made.text
    assert await state(api, key, 1) == ("ready", "")
    missing = await register(api, key, "v9.onnx", DIGESTS[0])
    assert (missing.status_code, "v9.onnx" in missing.json()["detail"]) == (422, True)
    home = api.control.settings.home
    assert not [f for f in home.rglob("*") if f.is_file() and secret.encode() in f.read_bytes()]


async def test_the_platforms_store_in_a_bucket(
    tmp_path: Path, server: Access, monkeypatch: pytest.MonkeyPatch
):
    """Configured by a URL and the usual variables: pushed, served, restarted, deleted."""
    for name, value in (
        ("AWS_ENDPOINT_URL", server.endpoint),
        ("AWS_ACCESS_KEY_ID", "key"),
        ("AWS_SECRET_ACCESS_KEY", "secret"),
        ("AWS_REGION", "us-east-1"),
    ):
        monkeypatch.setenv(name, value)
    chosen = replace(real(tmp_path / "home"), store="s3://models/platform")
    async with serving(chosen) as api:
        tenant, key = await api.tenant("acme")
        path = "/tenants/me/models/city/versions"
        pushed = await api.ask("POST", path, key, content=MODELS[0])
        assert pushed.status_code == 201, pushed.text
        assert await state(api, key, 1) == ("ready", "")
    assert not list((tmp_path / "home" / "artifacts").glob("*"))
    async with serving(chosen) as api:
        await api.ready(tenant)
        assert await state(api, key, 1) == ("ready", "")
        assert (await api.ask("DELETE", "/tenants/me/models/city", key)).status_code == 204

        async def gone() -> bool:
            return len(list(api.control.plane.store.everything())) == 1

        await until(gone)


def test_a_directory_lets_nobody_out(tmp_path: Path):
    """Links, dots, devices, pipes: only files that lie in the storage are read."""
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    inside.mkdir()
    outside.write_text("secret")
    (inside / "good").write_text("good")
    (inside / "also").symlink_to("good")
    (inside / "link").symlink_to(outside)
    (inside / "up").symlink_to("..")
    (inside / "null").symlink_to("/dev/null")
    os.mkfifo(inside / "pipe")
    own = OwnStorage(uri=inside.as_uri())
    assert b"".join(storage.opened(own, "good")) == b"good"
    assert b"".join(storage.opened(own, "also")) == b"good"
    for path in ("link", "up/outside", "null", "pipe", "none", "."):
        with pytest.raises(OSError):  # noqa: PT011
            list(storage.opened(own, path))
    for path in ("../outside", "/etc/passwd", "", "a/../../outside", "x" * 600):
        with pytest.raises(InvalidValueError):
            list(storage.opened(own, path))
    for uri in ("http://x", "s3://b", "file:///none/of/this", "/etc"):
        with pytest.raises(InvalidValueError):
            storage.checked(OwnStorage(uri=uri))


def test_what_pods_mount_is_named_as_kubernetes_does():
    """On a cluster only, an image only where it can be mounted; nobody but a pod reads it."""
    old = ClusterSettings(image="x", artifacts="http://10.0.0.1/models")
    new = replace(old, image_volumes=True)
    digest = "@sha256:" + "a" * 64
    images = ("models:3", "registry.example:5000/acme/models" + digest, "a/b_c/d--e:V1.0" + digest)
    for uri in ("pvc://models", "pvc://a-1.b", *(f"image://{one}" for one in images)):
        own = OwnStorage(uri=uri)
        assert storage.checked(own, new) == own
        with pytest.raises(InvalidValueError, match="are processes"):
            storage.checked(own)
        with pytest.raises(FileNotFoundError):
            list(storage.opened(own, "city/v1.onnx"))
        with pytest.raises(InvalidValueError, match="endpoint"):
            storage.checked(replace(own, secret_access_key="x"), new)
    with pytest.raises(InvalidValueError, match="image_volumes"):
        storage.checked(OwnStorage(uri="image://models:3"), old)
    claims = ("", "Models", "a/b", "-a", "a-", "a..b", "a_b", "a\nb", "x" * 254)
    names = ("", "Models", "a b", "a:", "a@sha256:1", "http://a", "a//b", "-a", "a" * 256, "a\n")
    for uri in (*(f"pvc://{one}" for one in claims), *(f"image://{one}" for one in names)):
        with pytest.raises(InvalidValueError):
            storage.checked(OwnStorage(uri=uri), new)
