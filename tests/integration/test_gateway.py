"""The gateway between real sockets: who gets in, where a request goes, what crosses the door."""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from polyolo.types import TenantState
from tests.integration.gateway_parts import (
    Platform,
    bearer,
    entry,
    key,
    platform,
    read,
    respond,
    route,
    until,
)


def exchange(port: int, request: bytes) -> bytes:
    """Send bytes as they are and return all that comes back until the other end closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        connection.sendall(request)
        got = b""
        while piece := connection.recv(65536):
            got += piece
        return got


async def raw(made: Platform, line: bytes, *headers: bytes) -> bytes:
    lines = [line, b"host: x", b"connection: close", *headers, b"", b""]
    return await asyncio.to_thread(exchange, made.port, b"\r\n".join(lines))


async def test_a_detection_goes_to_the_tenants_runtime_and_back():
    """The body arrives whole, the query too; the answer comes back without what is for metering."""
    async with platform() as made:
        answer = await made.detect("a", b"x" * 300_000, params={"model": "pcb"})
        assert answer.status_code == 200
        assert answer.json() == {"from": "a", "bytes": 300_000}
        assert answer.headers["x-request-id"]
        assert not [name for name in answer.headers if name.startswith("polyolo-")]
        assert len(answer.headers.get_list("date")) == 1
        seen = made.runtimes["a"].requests[0]
        assert (seen.method, seen.target) == ("POST", "/v1/detect?model=pcb")
        assert made.runtimes["b"].requests == []
        other = await made.client.post(
            "/v2/models/m%20n/infer", content=b"{}", headers={"x-api-key": key("b")}
        )
        assert other.json()["from"] == "b"
        assert made.runtimes["b"].requests[0].target == "/v2/models/m%20n/infer"


async def test_what_a_request_says_of_itself_stays_at_the_door():
    """No credential, no Polyolo-* and no hop-by-hop header reaches a runtime; the rest does."""
    async with platform() as made:
        sent = {
            "x-api-key": key("a"),
            "cookie": "session=1",
            "polyolo-cold-start": "1",
            "polyolo-model": "evil",
            "connection": "keep-alive, x-for-the-hop",
            "x-for-the-hop": "1",
            "proxy-authorization": "Basic eDp5",
            "te": "trailers",
            "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            "x-request-id": "mine-1",
            "accept": "image/png",
            "content-type": "image/jpeg",
        }
        answer = await made.detect("a", headers=sent)
        assert answer.headers["x-request-id"] == "mine-1"
        seen = made.runtimes["a"].requests[0]
        names = sorted(name.decode() for name, _ in seen.headers)
        assert names == [
            "accept", "accept-encoding", "content-length", "content-type", "host",
            "traceparent", "user-agent", "x-request-id",
        ]  # fmt: skip
        assert seen.values("traceparent") == [sent["traceparent"]]
        assert seen.values("x-request-id") == ["mine-1"]
        assert not any(key("a")[16:].encode() in value for _, value in seen.headers)


async def test_headers_of_the_hop_do_not_come_back():
    """An answer's hop-by-hop headers, and those its Connection names, stay inside."""

    async def behave(seen, receive, send):
        await read(receive, seen)
        head = [(b"connection", b"x-inner"), (b"x-inner", b"1"), (b"x-outer", b"2")]
        await respond(send, 200, b"ok", [*head, (b"set-cookie", b"a=1"), (b"set-cookie", b"b=2")])

    async with platform() as made:
        made.runtimes["a"].behave = behave
        answer = await made.detect("a")
        assert "x-inner" not in answer.headers
        assert answer.headers["x-outer"] == "2"
        assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
        await made.detect("a")
        assert made.runtimes["a"].requests[1].values("cookie") == []


async def test_a_redirect_is_the_clients_business():
    """An answer that points elsewhere is passed on; the gateway asks nobody else for it."""

    async def behave(seen, receive, send):
        await read(receive, seen)
        await respond(send, 307, b"", [(b"location", b"/internal/v1/snapshot")])

    async with platform() as made:
        made.runtimes["a"].behave = made.control.behave = behave
        answer = await made.detect("a")
        assert (answer.status_code, answer.headers["location"]) == (307, "/internal/v1/snapshot")
        assert (await made.client.get("/docs")).status_code == 307
        assert len(made.runtimes["a"].requests) == len(made.control.requests) == 1


async def test_who_is_not_known_or_not_allowed_gets_no_further():
    """401 with a challenge, or 403, as a problem document; no runtime is touched."""
    async with platform() as made:
        made.publish(
            replace(route("b", made.socket("b")), state=TenantState.SUSPENDED),
            keys=[
                entry("a", expires_at=time.time() - 1),
                entry("b"),
                entry("c", tenant="t_a", scopes=("models:read",)),
            ],
        )
        await made.revision()
        wanted = [
            ({}, 401),
            ({"authorization": "Bearer"}, 401),
            ({"authorization": "Basic eDp5"}, 401),
            (bearer("a"), 401),  # expired
            (bearer("d"), 401),  # unknown
            ({"x-api-key": key("b")[:-1] + "x"}, 401),  # another secret
            (bearer("b") | {"x-api-key": key("c")}, 401),  # two that differ
            (bearer("b"), 403),  # suspended
            (bearer("c"), 403),  # lacks the scope
        ]
        for headers, status in wanted:
            for path in ("/v1/detect", "/v2/models/m/infer"):
                answer = await made.client.post(path, content=b"picture", headers=headers)
                assert answer.status_code == status, headers
                if path == "/v1/detect":
                    assert answer.headers["content-type"] == "application/problem+json"
                    assert answer.json()["status"] == status
                else:
                    assert list(answer.json()) == ["error"]
                assert answer.headers.get("www-authenticate") == (
                    "Bearer" if status == 401 else None
                )
        assert made.runtimes["a"].requests == made.runtimes["b"].requests == []
        assert made.control.requests == []
        assert made.control.batches == []


TRICKS = [
    b"/internal/v1/snapshot?after=-1",
    b"//internal/v1/snapshot",
    b"/api/../internal/v1/snapshot",
    b"/api/%2e%2e/internal/v1/snapshot",
    b"/api/..%2finternal/v1/snapshot",
    b"/api/%252e%252e/internal/v1/snapshot",
    b"/api/.%2e/internal/v1/snapshot",
    b"/api//internal/v1/snapshot",
    b"/%69nternal/v1/snapshot",
    b"/api/..\\internal/v1/snapshot",
    b"/api/%5c..%5cinternal",
    b"/./internal/v1/usage",
    b"/apix",
    b"/runtime/status",
    b"/v1/../runtime/spec",
    b"/v1/detect/../../runtime/spec",
    b"/v2/../runtime/spec",
    b"/v2/%2e%2e/runtime/spec",
    b"/v1/models",
    b"/",
    b"http://127.0.0.1/internal/v1/snapshot",
    b"http://control/api/../internal/v1/snapshot",
    b"*",
]


async def test_no_path_leads_to_what_is_internal():
    """Whatever a target looks like, control's /internal and the runtime's /runtime stay closed."""
    async with platform() as made:
        for target in TRICKS:
            for method in (b"GET", b"POST", b"PUT"):
                got = await raw(
                    made,
                    b"%s %s HTTP/1.1" % (method, target),
                    b"authorization: Bearer " + key("a").encode(),
                    b"content-length: 0",
                )
                assert got.split(b" ", 2)[1] in (b"404", b"400"), (target, got)
        assert made.control.requests == made.runtimes["a"].requests == []


async def test_control_gets_its_paths_as_they_are():
    """The public paths of control pass, credentials, host and large uploads included."""
    async with platform() as made:
        upload = b"m" * 3_000_000
        headers = {"authorization": "Bearer po_operator", "polyolo-forged": "1"}
        answer = await made.client.post(
            "/api/v1/tenants/me/models/m%2Dn/versions?classes=a&classes=b%20c",
            content=upload,
            headers=headers,
        )
        assert answer.json() == {"from": "control", "bytes": len(upload)}
        seen = made.control.requests[0]
        assert seen.target == "/api/v1/tenants/me/models/m%2Dn/versions?classes=a&classes=b%20c"
        assert seen.body == upload
        assert seen.values("authorization") == ["Bearer po_operator"]
        assert seen.values("host") == [f"127.0.0.1:{made.port}"]
        assert seen.values("polyolo-forged") == []
        for path in ("/openapi.json", "/docs", "/oauth2/token", "/.well-known/jwks.json"):
            assert (await made.client.get(path)).json()["from"] == "control"
        assert (await made.client.head("/openapi.json")).status_code == 200
        assert made.control.requests[-1].method == "HEAD"


async def test_control_streams_and_is_not_metered():
    """A chunked upload and a chunked answer pass piece by piece; no usage, no tenant's metric."""

    async def behave(seen, receive, send):
        await read(receive, seen)
        await send({"type": "http.response.start", "status": 201, "headers": []})
        for piece in (b"one,", b"two,", b"three"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body", "body": b""})

    async def pieces():
        for _ in range(40):
            yield b"p" * 100_000

    async with platform() as made:
        made.control.behave = behave
        answer = await made.client.post("/api/v1/x", content=pieces())
        assert (answer.status_code, answer.text) == (201, "one,two,three")
        assert len(made.control.requests[0].body) == 4_000_000
    assert made.control.batches == []


async def test_probes_and_metrics():
    """Ready tells the snapshot's age; metrics carry the contract's names and labels."""
    async with platform() as made:
        ready = await made.client.get("/readyz")
        assert ready.status_code == 200
        assert ready.json()["revision"] == 1
        assert 0 <= ready.json()["snapshot_age_s"] < 10
        assert (await made.client.get("/livez")).status_code == 200
        await made.detect("a")
        await made.client.post("/v1/detect")
        text = await made.metrics()
        assert 'polyolo_requests_total{code="200",model="pcb",tenant="tenant-a"} 1.0' in text
        assert 'polyolo_requests_total{code="401",model="",tenant=""} 1.0' in text
        assert 'polyolo_requests_in_flight{model="",tenant="tenant-a"} 0.0' in text
        assert 'polyolo_request_duration_seconds_count{model="pcb",tenant="tenant-a"} 1.0' in text
        made.publish(keys=[])
        made.control.publish([], [])
        await made.revision()
        assert "tenant-a" not in await made.metrics()


async def test_nothing_is_ready_before_the_first_snapshot():
    """Until control has answered, /readyz says no and no key can be confirmed or refused."""
    async with platform(ready=False) as made:
        assert (await made.client.get("/readyz")).status_code == 503
        assert (await made.detect("a")).status_code == 503
        made.control.close()  # now it answers that there is nothing new
        await until(lambda: len(made.control.polls) > 2)
        assert (await made.client.get("/readyz")).status_code == 503
        made.control.closed = False
        made.publish()
        await made.revision()
        assert (await made.client.get("/readyz")).status_code == 200
        assert (await made.detect("a")).status_code == 200


TEXT = st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20).map(str.encode)
HEADERS = st.lists(
    st.sampled_from(
        [
            b"host: b", b"host: tenant-b", b"x-forwarded-host: tenant-b", b"x-tenant: t_b",
            b"polyolo-tenant: t_b", b"x-original-url: /internal/v1/snapshot", b"x-http-method: PUT",
            b"forwarded: host=b", b"connection: authorization", b"connection: x-api-key",
            b"cookie: tenant=t_b", b"transfer-encoding: identity", b"upgrade: h2c",
            b"x-rewrite-url: /runtime/spec", b"polyolo-endpoint: unix:b.sock", b"te: trailers",
        ]
    ),
    max_size=5,
)  # fmt: skip
TARGETS = st.one_of(
    st.sampled_from(
        [b"/v1/detect", b"/v1/detect?tenant=t_b", b"/v2/models/t_b/infer", b"/v2/../b/v1/detect",
         b"http://tenant-b/v1/detect", b"http://t_b@x/v1/detect", b"/v2", b"/v2/t_b",
         b"/v1/detect;tenant=t_b", b"/v1/detect#t_b", b"/v1//detect", b"/v1/detect/"]
    ),
    TEXT.map(b"/v2/".__add__),
    TEXT.map(b"/v1/detect?".__add__),
)  # fmt: skip


async def test_a_key_reaches_its_own_tenants_runtime_only():
    """Whatever host, path and headers come with key A, the runtime of B is never asked."""
    async with platform() as made:

        @settings(
            max_examples=150,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(method=st.sampled_from([b"GET", b"POST", b"PUT"]), target=TARGETS, extra=HEADERS)
        def holds(method: bytes, target: bytes, extra: list[bytes]) -> None:
            lines = [
                method + b" " + target + b" HTTP/1.1",
                b"x-api-key: " + key("a").encode(),
                b"content-length: 0",
                *extra,
                b"connection: close",
                b"",
                b"",
            ]
            exchange(made.port, b"\r\n".join(lines))
            assert made.runtimes["b"].requests == []
            assert made.control.requests == []

        await asyncio.to_thread(holds)
        reached = made.runtimes["a"].requests
        assert len(reached) > 20, "the property was tried on requests that got through"
        for seen in reached:
            assert not any(key("a").encode() in value for _, value in seen.headers)
            assert seen.target.startswith(("/v1/detect", "/v2"))


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
async def test_detect_has_one_method(method: str):
    """Another method than POST is answered 405 at the door."""
    async with platform() as made:
        answer = await made.client.request(method, "/v1/detect", headers=bearer("a"))
        assert answer.status_code == 405
        await until(lambda: made.runtimes["a"].requests == [])
