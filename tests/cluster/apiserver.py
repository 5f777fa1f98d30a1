"""An API server over HTTP, small and honest: what a driver may rely on, and every way to fail.

CRUD, server-side apply with owners of fields, label selectors, pages, watches with a bounded
history, strict schemas. Not there: credentials, conversion, quota.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
from aiohttp import web

from tests.cluster import schemas
from tests.cluster.store import RefusalError, Store

KINDS = {
    "namespaces": ("v1", "Namespace"),
    "pods": ("v1", "Pod"),
    "secrets": ("v1", "Secret"),
    "configmaps": ("v1", "ConfigMap"),
    "services": ("v1", "Service"),
    "serviceaccounts": ("v1", "ServiceAccount"),
    "resourcequotas": ("v1", "ResourceQuota"),
    "limitranges": ("v1", "LimitRange"),
    "deployments.apps": ("apps/v1", "Deployment"),
    "jobs.batch": ("batch/v1", "Job"),
    "networkpolicies.networking.k8s.io": ("networking.k8s.io/v1", "NetworkPolicy"),
    "poddisruptionbudgets.policy": ("policy/v1", "PodDisruptionBudget"),
    "horizontalpodautoscalers.autoscaling": ("autoscaling/v2", "HorizontalPodAutoscaler"),
    "scaledobjects.keda.sh": ("keda.sh/v1alpha1", "ScaledObject"),
    "podmonitors.monitoring.coreos.com": ("monitoring.coreos.com/v1", "PodMonitor"),
    "prometheusrules.monitoring.coreos.com": ("monitoring.coreos.com/v1", "PrometheusRule"),
}
KEDA = {"scaledobjects.keda.sh"}
MONITORING = {"podmonitors.monitoring.coreos.com", "prometheusrules.monitoring.coreos.com"}
MUTATING = ("POST", "PUT", "PATCH", "DELETE")


@dataclass(frozen=True)
class Fault:
    """How a request fails. status: answered in its place; 0: the connection breaks off."""

    status: int = 0
    done: bool = False
    """The request is carried out all the same; only its answer is lost."""
    wait_s: float = 0.0
    headers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Asked:
    """One request."""

    method: str
    path: str
    """With the object's name, also where it is created."""
    number: int
    """Of the mutating requests, from 1; 0 for one that only reads."""
    watch: bool = False


class ApiServer:
    """Serves from a thread of its own until `close`."""

    def __init__(self, *, without: set[str] = frozenset(), strict: str = "1.36") -> None:
        """Listen. without: collections that it does not know. strict: release of the schemas
        that objects are held to; empty for none."""
        self.store = Store(self._check if strict else lambda _: None)
        self.writes: list[Asked] = []
        self.used: set[tuple[str, str, str]] = set()
        """Every (verb, collection, object's name where the verb has one) that was asked for."""
        self.fault: Callable[[Asked], Fault | None] = lambda _: None
        self._strict = strict
        self._kinds = {name: kind for name, kind in KINDS.items() if name not in without}
        self._wakes: set[asyncio.Event] = set()
        self._watches: set[asyncio.Task[Any]] = set()
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._stop = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="apiserver", daemon=True)
        self.url = ""
        self.services: list[Callable[[], Any]] = []
        """Coroutine functions that run beside the server: controllers."""
        self.store.listeners.append(lambda _: self._wake())

    def start(self) -> ApiServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    @property
    def kubeconfig(self) -> dict[str, Any]:
        """Return the document by which clients find this server."""
        return {
            "clusters": [{"name": "here", "cluster": {"server": self.url}}],
            "users": [{"name": "me", "user": {}}],
            "contexts": [{"name": "here", "context": {"cluster": "here", "user": "me"}}],
            "current-context": "here",
        }

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._loop.close()

    def do(self, work: Callable[[], Any]) -> Any:
        """Do something with the store in the server's thread, and return what comes of it."""

        async def run() -> Any:
            return work()

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    def drop_watches(self) -> None:
        """Break off all watches."""
        self.do(lambda: [task.cancel() for task in self._watches])

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        app = web.Application(client_max_size=4 << 20)
        app.router.add_route("*", "/{path:.*}", self._handle)
        runner = web.AppRunner(
            app, access_log=None, handler_cancellation=True, shutdown_timeout=0.1
        )
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        tasks = [asyncio.create_task(service()) for service in self.services]
        self._ready.set()
        await self._stop.wait()
        for task in (*tasks, *self._watches):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await runner.cleanup()
        for transport in list(self._loop._transports.values()):  # those it had no time to know
            transport.abort()
        await asyncio.sleep(0)  # closing is done in the loop's next turn

    def _check(self, made: dict[str, Any]) -> None:
        if made["kind"] != "Pod" and (said := schemas.complaint(made, self._strict)):
            raise RefusalError(422, "Invalid", said)

    def _wake(self) -> None:
        for wake in self._wakes:
            wake.set()

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        number = 0
        if request.method in MUTATING:
            number = len(self.writes) + 1
        watching = request.query.get("watch") == "true"
        path = request.path
        if path == "/writes":  # for benches, whose server is another process
            return _json(len(self.writes))
        if request.method == "POST":
            path += "/" + msgspec.json.decode(await request.read())["metadata"]["name"]
        asked = Asked(request.method, path, number, watching)
        if number:
            self.writes.append(asked)
        fault = self.fault(asked)
        if fault is not None and fault.wait_s:
            await asyncio.sleep(fault.wait_s)
        if fault is not None and not fault.done:
            return self._failing(request, fault)
        try:
            answer = await self._answer(request, watching=watching)
        except RefusalError as error:
            answer = _status(error)
        if fault is not None:
            return self._failing(request, fault)
        return answer

    def _failing(self, request: web.Request, fault: Fault) -> web.StreamResponse:
        if fault.status:
            answer = _status(RefusalError(fault.status, "Injected", "a fault of the test"))
            answer.headers.update(fault.headers)
            return answer
        assert request.transport is not None
        request.transport.abort()
        raise asyncio.CancelledError

    async def _answer(self, request: web.Request, *, watching: bool) -> web.StreamResponse:
        collection, namespace, name = self._parse(request.path)
        self._note(request.method, (collection, namespace, name), watching=watching)
        if name:
            return await self._one(request, (collection, namespace, name))
        if request.method == "POST":
            made = msgspec.json.decode(await request.read())
            key = (collection, namespace, made["metadata"]["name"])
            kept = self.store.create(key, made, request.query["fieldManager"])
            return _json(kept, status=201)
        if watching:
            return await self._watch(request, collection, namespace)
        return self._list(request, collection, namespace)

    def _note(self, method: str, key: tuple[str, str, str], *, watching: bool) -> None:
        """Remember which verb a role would have to allow."""
        verbs = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
        reading = "get" if key[2] else "watch" if watching else "list"
        self.used.add((verbs.get(method, reading), key[0], key[2]))
        if method == "PATCH" and key not in self.store.objects:
            self.used.add(("create", key[0], ""))

    def _parse(self, path: str) -> tuple[str, str, str]:
        parts = path.strip("/").split("/")
        if parts[0] == "api":
            version, rest, group = parts[1], parts[2:], ""
        else:
            version, rest, group = f"{parts[1]}/{parts[2]}", parts[3:], parts[1]
        namespace = ""
        if rest[0] == "namespaces" and len(rest) > 2:
            namespace, rest = rest[1], rest[2:]
        collection = f"{rest[0]}.{group}" if group else rest[0]
        if self._kinds.get(collection, ("", ""))[0] != version:
            raise RefusalError(404, "NotFound", "the server could not find the requested resource")
        return collection, namespace, rest[1] if len(rest) > 1 else ""

    async def _one(self, request: web.Request, key: tuple[str, str, str]) -> web.Response:
        store, query = self.store, request.query
        match request.method:
            case "GET":
                return _json(store.get(key))
            case "PUT":
                made = msgspec.json.decode(await request.read())
                return _json(store.replace(key, made, query["fieldManager"]))
            case "PATCH":
                assert request.content_type == "application/apply-patch+yaml"
                patch = msgspec.json.decode(await request.read())
                force = query.get("force") == "true"
                kept = store.apply(key, patch, query["fieldManager"], force=force)
                return _json(kept)
            case _:
                grace = query.get("gracePeriodSeconds")
                kept = store.delete(key, grace_s=int(grace) if grace else None)
                return _json(kept)

    def _list(self, request: web.Request, collection: str, namespace: str) -> web.Response:
        picked = _selector(request.query.get("labelSelector", ""))
        found = [one for one in self.store.of(collection, namespace or None) if picked(one)]
        limit, start = int(request.query.get("limit", 0)), int(request.query.get("continue", 0))
        page = found[start : start + limit] if limit else found
        metadata = {"resourceVersion": str(self.store.version)}
        if limit and start + limit < len(found):
            metadata["continue"] = str(start + limit)
        items = [{k: v for k, v in one.items() if k not in ("apiVersion", "kind")} for one in page]
        version, kind = self._kinds[collection]
        body = {"apiVersion": version, "kind": f"{kind}List", "metadata": metadata, "items": items}
        return _json(body)

    async def _watch(
        self, request: web.Request, collection: str, namespace: str
    ) -> web.StreamResponse:
        picked = _selector(request.query.get("labelSelector", ""))
        version = int(request.query["resourceVersion"])
        self.store.since(collection, version)
        stream = web.StreamResponse(headers={"content-type": "application/json"})
        await stream.prepare(request)
        wake = asyncio.Event()
        self._wakes.add(wake)
        task = asyncio.current_task()
        assert task is not None
        self._watches.add(task)
        try:
            while True:
                wake.clear()
                for at, event, found in self.store.since(collection, version):
                    version = at
                    if picked(found) and namespace in ("", found["metadata"].get("namespace")):
                        line = msgspec.json.encode({"type": event, "object": found})
                        await stream.write(line + b"\n")
                await wake.wait()
        except RefusalError as error:
            gone = {"type": "ERROR", "object": _document(error)}
            await stream.write(msgspec.json.encode(gone) + b"\n")
        finally:
            self._wakes.discard(wake)
            self._watches.discard(task)
        return stream


def _selector(written: str) -> Callable[[dict[str, Any]], bool]:
    wanted = [tuple(part.replace("==", "=").split("=")) for part in written.split(",") if part]

    def picked(found: dict[str, Any]) -> bool:
        labels = found["metadata"].get("labels", {})
        return all(labels.get(name) == value for name, value in wanted)

    return picked


def _document(error: RefusalError) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "message": str(error),
        "reason": error.reason,
        "code": error.status,
    }


def _json(content: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(content),
        status=status,
        headers={"content-type": "application/json"},
    )


def _status(error: RefusalError) -> web.Response:
    return _json(_document(error), status=error.status)


def main() -> None:
    """Serve until standard input ends: an API server in a process of its own, for benches."""
    server = ApiServer(strict="").start()
    print(server.url, flush=True)
    sys.stdin.read()
    server.close()


if __name__ == "__main__":
    main()
