"""Uploads that can be resumed and watched: over HTTP, broken off, twice at once, bounded."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import threading
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from polyolo.control.arrivals import LEAST_BYTES, MOST_OF_ONE
from polyolo.control.service import uploads
from tests.integration.control_plane import Api, serving, settings, until
from tests.integration.test_control_two import pair

MODEL = b"model " + bytes(range(256)) * 4000  # about 1 MB


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Give one control plane that the tests share; each takes tenants of its own."""
    async with serving(settings(tmp_path_factory.mktemp("uploads") / "home")) as api:
        yield api


async def another(api: Api) -> str:
    """Make a tenant and return its key."""
    _, key = await api.tenant(f"tenant-{secrets.token_hex(4)}")
    return key


@pytest_asyncio.fixture(loop_scope="module")
async def key(api: Api) -> str:
    return await another(api)


async def begin(api: Api, key: str, **asked: Any) -> dict[str, Any]:
    """Open an upload of MODEL and return it."""
    body = {"model": "city", "size": len(MODEL)} | asked
    answer = await api.ask("POST", "/tenants/me/uploads", key, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    assert answer.headers["location"].endswith(f"/uploads/{made['id']}")
    return made


async def send(api: Api, key: str, upload: str, offset: int, content: bytes) -> httpx.Response:
    headers = {
        "authorization": f"Bearer {key}",
        "upload-offset": str(offset),
        "content-type": "application/partial-upload",
    }
    path = f"/api/v1/tenants/me/uploads/{upload}"
    return await api.http.patch(path, headers=headers, content=content)


async def offset(api: Api, key: str, upload: str) -> tuple[int, str]:
    answer = await api.ask("HEAD", f"/tenants/me/uploads/{upload}", key)
    assert (answer.status_code, answer.headers["cache-control"]) == (204, "no-store")
    return int(answer.headers["upload-offset"]), answer.headers["upload-complete"]


async def outcome(api: Api, key: str, upload: str) -> dict[str, Any]:
    answer = await api.ask("GET", f"/tenants/me/uploads/{upload}?wait=20", key)
    return answer.json()


async def stored(api: Api, key: str) -> list[str]:
    """Return what is stored of a tenant."""
    mine = (await api.ask("GET", "/tenants/me", key)).json()["id"]
    return [name for name, tenant, *_ in api.control.plane.store.everything() if tenant == mine]


async def test_a_file_in_three_parts_becomes_a_version(api: Api, key: str):
    """Each part where the one before ended; the states are told, and at last the version."""
    made = await begin(api, key, classes=["a", "b"], sha256=hashlib.sha256(MODEL).hexdigest())
    assert (made["state"], made["received"]) == ("receiving", 0)
    at = 0
    for end in (300_000, 700_000, len(MODEL)):
        assert await offset(api, key, made["id"]) == (at, "?0")
        answer = await send(api, key, made["id"], at, MODEL[at:end])
        assert answer.status_code == 204
        assert answer.headers["upload-offset"] == str(end)
        at = end
    ready = await outcome(api, key, made["id"])
    assert (ready["state"], ready["version"], ready["reason"]) == ("ready", 1, "")
    assert await offset(api, key, made["id"]) == (len(MODEL), "?1")
    version = (await api.ask("GET", "/tenants/me/models/city/versions/1", key)).json()
    assert version["digest"] == hashlib.sha256(MODEL).hexdigest()
    assert version["classes"] == ["a", "b"]
    listed = (await api.ask("GET", "/tenants/me/uploads", key)).json()["uploads"]
    assert [one["state"] for one in listed] == ["ready"]
    assert [name for name in await stored(api, key) if "uploads" in name] == []


async def test_what_is_refused_is_told_and_not_kept(api: Api, key: str):
    """The reason stays to be read, the bytes go; other bytes than announced are refused."""
    refused = [("no model", {}, "this is no model"), ("model", {"sha256": "0" * 64}, "sha256")]
    for content, asked, reason in refused:
        made = await begin(api, key, size=len(content), **asked)
        await send(api, key, made["id"], 0, content.encode())
        seen = await outcome(api, key, made["id"])
        assert (seen["state"], seen["code"]) == ("refused", "model-refused")
        assert reason in seen["reason"]

    async def gone() -> bool:
        return not await stored(api, key)

    await until(gone)
    assert len((await api.ask("GET", "/tenants/me/models", key)).json()["models"]) == 1


async def test_what_is_refused_after_it_was_stored_is_not_kept(api: Api, key: str):
    """A model too many, once its file was judged: nothing of it stays. The file that another
    version has in common with it does."""
    made = [await begin(api, key, model=name) for name in ("one", "two", "three")]
    await send(api, key, made[0]["id"], 0, MODEL)
    assert (await outcome(api, key, made[0]["id"]))["state"] == "ready"
    mine = (await api.ask("GET", "/tenants/me", key)).json()["id"]
    path = f"/tenants/{mine}/limits"
    assert (await api.ask("PATCH", path, json={"max_models": 1})).status_code == 200
    for upload, content in zip(made[1:], (MODEL, MODEL[:-1] + b"!"), strict=True):
        await send(api, key, upload["id"], 0, content)
        assert "allows 1 models" in (await outcome(api, key, upload["id"]))["reason"]

    async def left() -> bool:
        digest = hashlib.sha256(MODEL).hexdigest()
        return [name.rpartition("/")[2] for name in await stored(api, key)] == [digest]

    await until(left)


async def test_only_what_goes_on_is_taken(api: Api, key: str):
    """Another offset is 409 and says the right one; none, too many bytes, too late: refused."""
    made = await begin(api, key)
    await send(api, key, made["id"], 0, MODEL[:200_000])
    for wrong in (0, 100_000, 300_000):
        answer = await send(api, key, made["id"], wrong, MODEL[wrong:])
        assert (answer.status_code, answer.headers["upload-offset"]) == (409, "200000")
        assert answer.json()["type"].endswith("mismatching-upload-offset")
    path = f"/tenants/me/uploads/{made['id']}"
    assert (await api.ask("PATCH", path, key, content=b"x")).status_code == 400
    assert (await send(api, key, made["id"], 200_000, MODEL)).status_code == 413
    assert await offset(api, key, made["id"]) == (200_000, "?0")
    await send(api, key, made["id"], 200_000, MODEL[200_000:])
    late = await send(api, key, made["id"], len(MODEL), b"")
    assert late.status_code == 409
    assert (await outcome(api, key, made["id"]))["state"] == "ready"


async def test_what_cannot_become_a_version_is_not_begun(api: Api, key: str):
    """Size, name and room are judged before a byte is sent."""
    for asked, status in (
        ({"size": 10 << 30}, 413),
        ({"size": 0}, 422),
        ({"model": "-city"}, 422),
        ({"model": "standard"}, 422),
        ({"sha256": "abc"}, 422),
    ):
        body = {"model": "city", "size": 9} | asked
        answer = await api.ask("POST", "/tenants/me/uploads", key, json=body)
        assert answer.status_code == status, asked
    unknown = await send(api, key, "abcdefghijkl", 0, b"x")
    assert unknown.status_code == 404
    assert (await api.ask("GET", "/tenants/me/uploads", key)).json()["uploads"] == []


async def broken_off(api: Api, key: str, upload: str, at: int, content: bytes) -> None:
    """Send a part that says it is longer than it is, and hang up."""
    reader, writer = await asyncio.open_unix_connection(str(api.control.settings.socket))
    writer.write(
        f"PATCH /api/v1/tenants/me/uploads/{upload} HTTP/1.1\r\nHost: control\r\n"
        f"Authorization: Bearer {key}\r\nUpload-Offset: {at}\r\n"
        f"Content-Length: {len(MODEL) - at}\r\n\r\n".encode()
        + content
    )
    await writer.drain()
    writer.close()
    await writer.wait_closed()
    assert await reader.read() == b""


async def test_a_broken_connection_costs_nothing_that_has_come(api: Api, key: str):
    """Every byte that has come is kept; the next part goes on behind it."""
    made = await begin(api, key, sha256=hashlib.sha256(MODEL).hexdigest())
    at = 0
    for size in (100_000, 300_000):
        await broken_off(api, key, made["id"], at, MODEL[at : at + size])
        at += size

        async def kept(wanted: int = at) -> bool:
            return (await offset(api, key, made["id"]))[0] == wanted

        await until(kept)
    assert (await send(api, key, made["id"], at, MODEL[at:])).status_code == 204
    assert (await outcome(api, key, made["id"]))["state"] == "ready"


async def test_crumbs_are_not_kept(api: Api, key: str):
    """Who sends a few bytes at a time does not fill the store with objects; the end is no crumb."""
    made = await begin(api, key, size=LEAST_BYTES + 10)
    content = b"model " + b"x" * (LEAST_BYTES + 4)
    for _ in range(3):
        answer = await send(api, key, made["id"], 0, content[:5])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, "0")
    await send(api, key, made["id"], 0, content[:LEAST_BYTES])
    await send(api, key, made["id"], LEAST_BYTES, content[LEAST_BYTES:])
    assert (await outcome(api, key, made["id"]))["state"] == "ready"


async def test_two_who_send_the_same_upload(api: Api, key: str):
    """Each byte is taken once, from one of them: what comes out is the file."""
    made = await begin(api, key, sha256=hashlib.sha256(MODEL).hexdigest())
    answers = await asyncio.gather(*(send(api, key, made["id"], 0, MODEL) for _ in range(4)))
    assert sorted(answer.status_code for answer in answers) == [204, 409, 409, 409]
    assert (await outcome(api, key, made["id"]))["state"] == "ready"


async def test_a_cancelled_upload_is_gone(api: Api, key: str):
    """With its bytes; who goes on sending it is told."""
    made = await begin(api, key)
    await send(api, key, made["id"], 0, MODEL[:200_000])
    path = f"/tenants/me/uploads/{made['id']}"
    assert (await api.ask("DELETE", path, key)).status_code == 204
    assert (await api.ask("GET", path, key)).status_code == 404
    assert (await send(api, key, made["id"], 200_000, MODEL[200_000:])).status_code == 404
    assert await stored(api, key) == []


async def test_the_same_idempotency_key_opens_one_upload(api: Api, key: str):
    """A client that did not hear the answer asks again and gets the same upload."""
    headers = {"authorization": f"Bearer {key}", "idempotency-key": "once"}
    body = {"model": "city", "size": 9}
    path = "/api/v1/tenants/me/uploads"
    made = [await api.http.post(path, json=body, headers=headers) for _ in range(2)]
    assert made[0].json()["id"] == made[1].json()["id"]
    assert len((await api.ask("GET", "/tenants/me/uploads", key)).json()["uploads"]) == 1


async def test_open_uploads_are_bounded(api: Api, key: str):
    """By number and by what they may hold together; another tenant has room of its own."""
    body = {"model": "city", "size": 3_000_000}
    for _ in range(uploads.MOST_FILES):
        made = await begin(api, key, **body)
    over = await api.ask("POST", "/tenants/me/uploads", key, json=body)
    assert (over.status_code, "retry-after" in over.headers) == (429, True)
    assert (await api.ask("POST", "/tenants/me/models/city/versions", key, content=b"model")
            ).status_code == 429  # fmt: skip
    other = await another(api)
    await begin(api, other)
    await api.ask("DELETE", f"/tenants/me/uploads/{made['id']}", key)
    for _ in range(uploads.MOST_OPEN - uploads.MOST_FILES + 1):
        await begin(api, key, size=1)
    assert (await api.ask("POST", "/tenants/me/uploads", key, json=body | {"size": 1})
            ).status_code == 429  # fmt: skip


async def test_slow_senders_hold_no_threads_and_nobody_up(api: Api, key: str):
    """As many as may: not a thread more, others are served; the next one of this tenant is 429."""
    before = threading.active_count()
    writers = []
    for _ in range(MOST_OF_ONE):
        made = await begin(api, key, size=1000)
        _, writer = await asyncio.open_unix_connection(str(api.control.settings.socket))
        writer.write(
            f"PATCH /api/v1/tenants/me/uploads/{made['id']} HTTP/1.1\r\nHost: control\r\n"
            f"Authorization: Bearer {key}\r\nUpload-Offset: 0\r\nContent-Length: 1000\r\n\r\n"
            "model".encode()
        )
        writers.append(writer)
    one_more = await begin(api, key, size=1000)

    async def full() -> bool:
        answer = await send(api, key, one_more["id"], 0, b"model")
        return answer.status_code == 429

    await until(full)
    assert threading.active_count() <= before + 2  # what the pool keeps for whoever asks
    other = await another(api)
    pushed = await api.ask("POST", "/tenants/me/models/a/versions", other, content=b"model")
    assert pushed.status_code == 201
    for writer in writers:
        writer.close()
        await writer.wait_closed()


async def test_one_tenants_checks_do_not_hold_up_anothers(api: Api, key: str):
    """Six slow files of one tenant are checked one by one; another's is ready before the third."""
    slow = asyncio.gather(
        *(
            api.ask("POST", f"/tenants/me/models/city/versions?n={n}", key, content=b"slow %d" % n)
            for n in range(6)
        )
    )

    async def states() -> list[str]:
        listed = (await api.ask("GET", "/tenants/me/uploads", key)).json()["uploads"]
        return [one["state"] for one in listed]

    async def begun() -> bool:
        seen = await states()
        return len(seen) == 6 and "checking" in seen

    await until(begun)
    assert (await states()).count("checking") == 1
    other = await another(api)
    pushed = await api.ask("POST", "/tenants/me/models/a/versions", other, content=b"model")
    assert pushed.status_code == 201
    assert (await states()).count("ready") < 3
    assert {answer.status_code for answer in await slow} == {201}


async def test_an_upload_through_two_control_planes(tmp_path: Path):
    """Begun at one, sent on through the other, checked by whichever reconciles."""
    one, two = pair(tmp_path)
    command = ("/bin/sh", "-c", "exit 0")  # runtimes are not what is tested here
    settled = [replace(chosen, runtime_command=command) for chosen in (one, two)]
    async with serving(settled[0]) as first, serving(settled[1]) as second:
        _, key = await first.tenant("acme")
        made = await begin(first, key, sha256=hashlib.sha256(MODEL).hexdigest())
        at = 0
        for number, end in enumerate((200_000, 400_000, 600_000, len(MODEL))):
            answer = await send((first, second)[number % 2], key, made["id"], at, MODEL[at:end])
            assert answer.status_code == 204
            at = end
        ready = await outcome(second, key, made["id"])
        assert (ready["state"], ready["version"]) == ("ready", 1)
