"""A small real HTTP service for tests of the SDK and the command line: says what it is told to."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from polyolo.client import AsyncClient, Client

ANSWER = {
    "request_id": "r1",
    "model": {"name": "city", "version": 3},
    "image": {"width": 640, "height": 426},
    "detections": [
        {
            "class_id": 62,
            "class_name": "tv",
            "confidence": 0.8996,
            "bbox": [5.86, 165.78, 155.77, 264.61],
        }
    ],
    "timing_ms": {"queue": 0.4, "decode": 2.1, "inference": 8.2, "postprocess": 0.3, "total": 11.4},
    "cold_start": False,
}
KEY = {
    "id": "abcdefghijkl",
    "name": "first",
    "scopes": ["detect"],
    "created_at": 1.7e9,
    "expires_at": None,
    "revoked_at": None,
    "key": "pk_abcdefghijkl_" + "s" * 43,
    "last_used_at": None,
    "sources": [],
    "replaced_by": None,
}
CLIENT = {
    "id": "oc_abcdefghijkl",
    "name": "ci",
    "scopes": ["detect"],
    "created_at": 1.7e9,
    "client_id": "oc_abcdefghijkl",
    "client_secret": "cs_" + "s" * 43,
    "revoked_at": None,
    "last_used_at": 1.7e9,
}
TOKEN = {
    "access_token": "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln",
    "token_type": "Bearer",
    "expires_in": 900,
    "scope": "detect",
}
TENANT = {
    "id": "t_0123456789",
    "name": "acme",
    "plan": "standard",
    "state": "active",
    "created_at": 1.7e9,
    "default_model": "standard",
    "runtime": {"tenant": "t_0123456789", "phase": "starting"},
    "api_key": None,
}
VERSION = {
    "version": 2,
    "digest": "ab" * 32,
    "size": 3_659_407,
    "family": "yolox",
    "classes": ["tv", "cat"],
    "input": [1, 3, 416, 416],
    "created_at": 1.7e9,
    "created_by": "key abcdefghijkl",
    "licence": "Apache-2.0",
    "producer": "pytorch 2.9",
    "opset": 18,
    "uri": "",
    "taken_out": "",
}
UPLOAD = {
    "id": "uuuuuuuuuuuu",
    "model": "city",
    "state": "receiving",
    "size": 5,
    "sha256": "",
    "classes": [],
    "created_at": 1.7e9,
    "created_by": "key abcdefghijkl",
    "expires_at": 1.8e9,
    "received": 0,
}
SETTINGS = {
    "confidence": 0.25,
    "iou": 0.45,
    "classes": None,
    "max_detections": 300,
    "input_size": 0,
    "engine": "",
    "precision": "exact",
    "tolerance": None,
}
ROLLOUT = {
    "version": 2,
    "share": 0.2,
    "shadow": True,
    "rule": {"after": 1000, "errors": 0.01, "agreement": 0.9},
    "state": "running",
    "reason": "",
    "began_at": 1.7e9,
    "began_by": "key:abcdefghijkl",
    "ended_at": None,
    "status": {
        "seen": 100,
        "requests": 20,
        "failed": 1,
        "skipped": 2,
        "milliseconds": 12.5,
        "current_milliseconds": 10.0,
        "comparison": {
            "pictures": 17,
            "agreement": 0.75,
            "classes": [{"name": "cat", "both": 3, "missing": 1, "extra": 0}],
        },
    },
}
REPORT = {
    "version": 2,
    "reference": 1,
    "passed": False,
    "note": "it agrees on 0.750 of the boxes",
    "pictures": "golden",
    "tolerance": 0.9,
    "comparison": ROLLOUT["status"]["comparison"],
    "reference_comparison": None,
    "milliseconds": 12.5,
    "reference_milliseconds": 10.0,
    "memory_bytes": 50_000_000,
    "reference_memory_bytes": 40_000_000,
}
GOLDEN = {"number": 1, "size": 1000, "expected": 2, "created_at": 1.7e9}
RELEASE = {"name": "0.1", "tenants": 3, "pinned": 1, "default": False, "share": 0.1}
MODEL = {
    "name": "city",
    "current": 1,
    "default": True,
    "settings": SETTINGS,
    "versions": [VERSION | {"version": 1}, VERSION],
    "state": "ready",
    "reason": "",
    "rollout": None,
    "rolled_back_from": None,
}
USAGE = {
    "tenant": "t_0123456789",
    "name": "acme",
    "since": 1.7e9,
    "until": 1.8e9,
    "requests": 9,
    "images": 8,
    "errors": 1,
    "engine_ms": 1234.5,
    "bytes_in": 123_456_789,
    "models": [{"model": "city", "requests": 8, "images": 8, "engine_ms": 1234.5}],
}


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    query: list[tuple[str, str]]
    headers: dict[str, str]
    body: bytes
    length: int
    """Bytes of the body; more than `body` has when the service was told to throw it away."""

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Says:
    """One answer. body: bytes, or something to send as JSON. hang: never answer, until stopped."""

    status: int = 200
    body: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    hang: bool = False


def problem(status: int, code: str, detail: str, **headers: str) -> Says:
    """Return the answer that tells of an error."""
    document = {"type": f"urn:polyolo:error:{code}", "title": "T", "status": status}
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Says(status, document | {"detail": detail}, named)


class Service:
    """Answers what `on` was told; keeps every request."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[Seen] = []
        self.keep_bodies = True
        self.stopped = threading.Event()
        self.most_at_once = 0
        self._answers: dict[tuple[str, str], list[Says]] = {}
        self._lock = threading.Condition()
        self._inside = 0
        self._wanted = 0

    def on(self, method: str, path: str, *answers: Says) -> None:
        """Answer so, one after the other; the last one again and again."""
        self._answers[method, path] = list(answers)

    def hold_until(self, requests: int) -> None:
        """Hold the first answers back until so many requests are here at once."""
        self._wanted = requests

    def on_push(self, tenant: str = "me", **outcome: Any) -> str:
        """Take in an upload of the model city, as version 2 unless told; give its path."""
        path = f"/api/v1/tenants/{tenant}/uploads"
        decided = UPLOAD | {"state": "ready", "version": 2} | outcome
        self.on("GET", path, Says(body={"uploads": []}))
        self.on("POST", path, Says(201, UPLOAD))
        self.on("PATCH", f"{path}/{UPLOAD['id']}", Says(204))
        self.on("GET", f"{path}/{UPLOAD['id']}", Says(body=decided))
        self.on("GET", f"/api/v1/tenants/{tenant}/models/city/versions/2", Says(body=VERSION))
        return f"{path}/{UPLOAD['id']}"

    def answer(self, seen: Seen) -> Says:
        """Record a request and return what to say."""
        with self._lock:
            self.seen.append(seen)
            self._inside += 1
            self.most_at_once = max(self.most_at_once, self._inside)
            self._lock.notify_all()
            self._lock.wait_for(lambda: self.most_at_once >= self._wanted, timeout=10)
            self._inside -= 1
            answers = self._answers.get((seen.method, seen.path))
            if not answers:
                return problem(404, "not-found", f"nothing at {seen.method} {seen.path}")
            return answers.pop(0) if len(answers) > 1 else answers[0]


@contextmanager
def running_service() -> Iterator[Service]:
    """Run a service on a free port of 127.0.0.1."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_one_request(self) -> None:
            self.raw_requestline = self.rfile.readline(65537)
            if not self.raw_requestline or not self.parse_request():
                self.close_connection = True
                return
            length, body = int(self.headers.get("content-length", 0)), b""
            left = length
            while left:
                chunk = self.rfile.read(min(left, 1 << 16))
                left -= len(chunk)
                if service.keep_bodies:
                    body += chunk
            url = urlsplit(self.path)
            headers = {name.lower(): value for name, value in self.headers.items()}
            query = parse_qsl(url.query, keep_blank_values=True)
            says = service.answer(Seen(self.command, url.path, query, headers, body, length))
            if says.hang:
                service.stopped.wait(30)
                self.close_connection = True
                return
            content = says.body if isinstance(says.body, bytes) else json.dumps(says.body).encode()
            self.send_response(says.status)
            for name, value in says.headers.items():
                self.send_header(name, value)
            if says.status != 204:
                self.send_header("content-length", str(len(content)))
            self.end_headers()
            if says.status != 204:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Keep the tests' output clean."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True  # a client's idle connection must not hold the end up
    service = Service(f"http://127.0.0.1:{server.server_address[1]}")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield service
    finally:
        service.stopped.set()
        server.shutdown()
        thread.join()
        server.server_close()


def blocking(url, operation, *args, key="pk_a_b", timeout=5.0, retries=3, **kwargs):
    """Call one operation of the blocking client."""
    with Client(url, key, timeout=timeout, retries=retries) as client:
        return getattr(client, operation)(*args, **kwargs)


def awaiting(url, operation, *args, key="pk_a_b", timeout=5.0, retries=3, **kwargs):
    async def run():
        async with AsyncClient(url, key, timeout=timeout, retries=retries) as client:
            return await getattr(client, operation)(*args, **kwargs)

    return asyncio.run(run())
