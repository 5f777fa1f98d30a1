"""Models through the control API: pushed, used, rolled back, tuned, deleted, refused."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from tests.integration.control_plane import Api, serving, settings, until


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


@pytest_asyncio.fixture
async def acme(api: Api) -> tuple[str, str]:
    tenant, key = await api.tenant("acme")
    await api.ready(tenant)
    return tenant, key


async def push(api: Api, key: str, name: str, content: bytes, query: str = ""):
    return await api.ask("POST", f"/tenants/me/models/{name}/versions{query}", key, content=content)


def stored(api: Api) -> set[str]:
    return {name for name, *_ in api.control.plane.store.everything()}


async def stores(api: Api, count: int) -> None:
    """Wait until so many files are stored: pieces go after the answer, files that are not needed
    too."""

    async def look() -> bool:
        return len(stored(api)) == count

    await until(look)


async def in_spec(api: Api, tenant: str) -> dict:
    """Return name → (current, versions) of what the runtime was told."""
    document = await asyncio.to_thread(api.spec, tenant)
    return {
        model["name"]: (model["current"], [version["version"] for version in model["versions"]])
        for model in document["models"]
    }


async def test_the_first_push_becomes_default_and_current(api: Api, acme):
    """201 with what was found; in force in the running runtime when the answer comes."""
    tenant, key = acme
    answer = await push(api, key, "city", b"model one")
    made = answer.json()
    assert answer.status_code == 201
    assert (made["version"], made["family"], made["classes"]) == (1, "yolox", ["cat", "dog"])
    assert made["size"] == len(b"model one")
    status = (await api.ask("GET", "/tenants/me/runtime", key)).json()
    assert {model["name"] for model in status["models"]} == {"city", "standard"}
    assert (await api.ask("GET", "/tenants/me", key)).json()["default_model"] == "city"
    listed = (await api.ask("GET", "/tenants/me/models", key)).json()["models"]
    assert [(m["name"], m["default"], m["state"]) for m in listed] == [
        ("city", True, "ready"),
        ("standard", False, "ready"),
    ]
    assert await in_spec(api, tenant) == {"city": (1, [1]), "standard": (1, [1])}


async def test_later_versions_wait_for_use(api: Api, acme):
    """A second version is callable, current only by use; going back twice goes back once."""
    tenant, key = acme
    for content in (b"model one", b"model two", b"model three"):
        assert (await push(api, key, "city", content)).status_code == 201
    assert (await in_spec(api, tenant))["city"] == (1, [1, 2, 3])
    for number in (3, 3, 2):
        used = await api.ask("POST", "/tenants/me/models/city/use", key, json={"version": number})
        assert used.json()["current"] == number
        assert (await in_spec(api, tenant))["city"][0] == number
    for _ in range(2):
        back = await api.ask("POST", "/tenants/me/models/city/rollback", key)
        assert (back.json()["current"], back.json()["rolled_back_from"]) == (3, 2)
    missing = await api.ask("POST", "/tenants/me/models/city/use", key, json={"version": 9})
    assert missing.status_code == 404
    third = (await api.ask("GET", "/tenants/me/models/city/versions/3", key)).json()
    assert third["size"] == len(b"model three")


async def test_settings_are_changed_field_by_field(api: Api, acme):
    """What is left out stays, null goes back to the default, out of range is 422 with the range."""
    tenant, key = acme
    await push(api, key, "city", b"model one")
    path = "/tenants/me/models/city/settings"
    assert (await api.ask("GET", path, key)).json()["confidence"] == 0.25
    others = {"input_size": 0, "engine": "", "precision": "exact", "tolerance": None}
    changed = await api.ask("PATCH", path, key, json={"confidence": 0.5, "classes": ["dog", 0]})
    assert changed.json() == others | {
        "confidence": 0.5,
        "iou": 0.45,
        "classes": ["dog", 0],
        "max_detections": 300,
    }
    document = await asyncio.to_thread(api.spec, tenant)
    assert document["models"][0]["settings"]["confidence"] == 0.5
    partly = await api.ask("PATCH", path, key, json={"confidence": None, "max_detections": 5})
    assert partly.json() == others | {
        "confidence": 0.25,
        "iou": 0.45,
        "classes": ["dog", 0],
        "max_detections": 5,
    }


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"confidence": 1.5}, "confidence must lie between 0 and 1"),
        ({"iou": -0.1}, "iou must lie between 0 and 1"),
        ({"max_detections": 0}, "1 to 1000"),
        ({"max_detections": 2**70}, "1 to 1000"),
        ({"classes": ["bird"]}, "bird"),
        ({"classes": [2]}, "0 to 1"),
        ({"confidence": "high"}, "confidence"),
        ({"treshold": 0.5}, "treshold"),
        ({"tolerance": 1.5}, "tolerance must lie between 0 and 1"),
        ({"input_size": 100}, "input_size must be 32 to 4096 in steps of 32"),
        ({"engine": "magic"}, "engine must be one of"),
        ({"precision": "int8"}, "precision must be exact or fast"),
    ],
)
async def test_settings_out_of_range(api: Api, acme, change, said: str):
    """422 naming field and range; the old settings stay."""
    _, key = acme
    await push(api, key, "city", b"model one")
    path = "/tenants/me/models/city/settings"
    before = (await api.ask("GET", path, key)).json()
    answer = await api.ask("PATCH", path, key, json=change)
    assert answer.status_code == 422
    assert said in answer.json()["detail"]
    assert (await api.ask("GET", path, key)).json() == before


async def test_deleting_the_default_falls_back(api: Api, acme):
    """To the oldest model left, in the end to the standard one; files go with the last user."""
    tenant, key = acme
    alone = stored(api)
    await push(api, key, "city", b"model one")
    await push(api, key, "farm", b"model one")
    await push(api, key, "port", b"model two")
    await stores(api, len(alone) + 2)  # a tenant's same bytes are one file
    for name, default, files in (("city", "farm", 2), ("farm", "port", 1), ("port", "standard", 0)):
        assert (await api.ask("DELETE", f"/tenants/me/models/{name}", key)).status_code == 204
        assert (await api.ask("GET", "/tenants/me", key)).json()["default_model"] == default
        await stores(api, len(alone) + files)
    assert await in_spec(api, tenant) == {"standard": (1, [1])}
    assert (await api.ask("DELETE", "/tenants/me/models/city", key)).status_code == 404

    async def dropped() -> bool:
        models = api.control.settings.run / tenant / "models"
        return len(list(models.iterdir())) == 1

    await until(dropped)


async def test_two_tenants_share_neither_bytes_nor_fate(api: Api, acme):
    """The same file under the same name: each has its own, and deleting one leaves the other's."""
    _, key = acme
    _, other = await api.tenant("other")
    await push(api, key, "city", b"model shared")
    await stores(api, 2)
    files = stored(api)
    await push(api, other, "city", b"model shared")
    await stores(api, 3)
    sealed = [api.control.settings.artifacts / name for name in stored(api) if "t_" in name]
    one, two = (file.read_bytes() for file in sealed)
    assert one[8:] != two[8:]
    assert b"shared" not in one + two
    assert (await api.ask("DELETE", "/tenants/other")).status_code == 204
    await stores(api, 2)
    assert stored(api) == files
    assert (await api.ask("GET", "/tenants/me/models/city", key)).status_code == 200


async def test_the_standard_model_is_read_only(api: Api, acme):
    """Shown like any other, with who chose it; pushes and changes are refused."""
    _, key = acme
    shown = (await api.ask("GET", "/tenants/me/models/standard", key)).json()
    assert shown["default"] is True
    assert "pcb:2" in shown["versions"][0]["created_by"]
    path = "/tenants/me/models/standard"
    assert (await push(api, key, "standard", b"model")).status_code == 422
    assert (await api.ask("DELETE", path, key)).status_code == 403
    assert (await api.ask("POST", f"{path}/use", key, json={"version": 1})).status_code == 403
    assert (await api.ask("PATCH", f"{path}/settings", key, json={"iou": 0.5})).status_code == 403


async def test_class_names_are_given_beside_the_file(api: Api, acme):
    """As query parameters; a later push of the same file without them finds the file's own."""
    _, key = acme
    given = await push(api, key, "city", b"model one", "?classes=a&classes=b%20c")
    assert given.json()["classes"] == ["a", "b c"]
    plain = await push(api, key, "city", b"model one")
    assert plain.json()["classes"] == ["cat", "dog"]
    assert (await api.ask("GET", "/tenants/me/models/city/versions/1", key)).json() == given.json()


@pytest.mark.parametrize(
    ("name", "content", "status", "said"),
    [
        ("city", b"no", 422, "this is no model"),
        ("city", b"abort", 422, "could not be looked into"),
        ("city", b"", 400, "empty"),
        ("city", b"model" + b"x" * 3_000_000, 413, "3,000,000"),
        ("-city", b"model", 422, "letters"),
        ("standard", b"model", 422, "reserved"),
    ],
)
async def test_a_refused_push_leaves_nothing(api: Api, acme, name, content, status: int, said: str):
    """No model, no file, no new generation."""
    tenant, key = acme
    before = stored(api), api.spec(tenant)
    answer = await push(api, key, name, content)
    assert answer.status_code == status
    assert said in answer.json()["detail"]
    await stores(api, len(before[0]))
    assert (stored(api), api.spec(tenant)) == before
    assert len((await api.ask("GET", "/tenants/me/models", key)).json()["models"]) == 1


async def test_the_plan_bounds_the_number_of_models(api: Api, acme):
    """402 for one too many; another version of one that is there is fine."""
    _, key = acme
    for name in ("a", "b", "c"):
        assert (await push(api, key, name, b"model")).status_code == 201
    assert (await push(api, key, "d", b"model")).status_code == 402
    assert (await push(api, key, "a", b"model new")).status_code == 201


async def test_concurrent_pushes_get_a_number_each(api: Api, acme):
    """Eight at once: versions 1 to 8, none lost, no error."""
    _, key = acme
    answers = await asyncio.gather(*(push(api, key, "city", b"model %d" % n) for n in range(8)))
    assert sorted(answer.json()["version"] for answer in answers) == list(range(1, 9))


async def raw(
    api: Api, key: str, declared: int, sent: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_unix_connection(str(api.control.settings.socket))
    writer.write(
        b"POST /api/v1/tenants/me/models/city/versions HTTP/1.1\r\nHost: control\r\n"
        b"Authorization: Bearer %s\r\nContent-Length: %d\r\n\r\n" % (key.encode(), declared) + sent
    )
    await writer.drain()
    return reader, writer


async def test_ten_gigabytes_are_refused_before_they_come(api: Api, acme):
    """413 by the declared length, at once."""
    _, key = acme
    started = time.monotonic()
    reader, writer = await raw(api, key, 10 << 30, b"")
    assert (await reader.readline()).startswith(b"HTTP/1.1 413")
    assert time.monotonic() - started < 2
    writer.close()
    await writer.wait_closed()


async def test_an_upload_that_breaks_off_leaves_nothing(api: Api, acme):
    """The client goes away in the middle: no file, no upload, and the next push works."""
    _, key = acme
    before = stored(api)
    _, writer = await raw(api, key, 2_000_000, b"model" + b"x" * 1_500_000)

    async def uploads() -> list[dict]:
        return (await api.ask("GET", "/tenants/me/uploads", key)).json()["uploads"]

    async def gone() -> bool:
        return await uploads() == []

    (arriving,) = await until(uploads)
    assert (arriving["state"], arriving["size"]) == ("receiving", 2_000_000)
    writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    writer.close()
    await until(gone)
    await stores(api, len(before))
    assert (await push(api, key, "city", b"model")).json()["version"] == 1
