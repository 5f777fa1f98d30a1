"""Load of every kind at one door, and what of it went wrong: for what must not fail a request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import numpy as np
import tritonclient.grpc

from polyolo.client.call import trusted
from tests.e2e.cluster import ClusterPlatform
from tests.e2e.platform import Platform, eventually

_PAUSE_S = 0.05
"""Between two calls of one caller: in it, its connection is idle."""


class Callers:
    """Threads that call one thing each, again and again, and what went wrong."""

    def __init__(self) -> None:
        self.calls = 0
        self.pictures = 0
        self.wrong: list[str] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []

    def add(self, call: Callable[[], str], *, pictures: int = 0) -> None:
        """Call it until the end; it returns what is wrong, if anything. pictures: in each call."""

        def run() -> None:
            while not self._stop.is_set():
                try:
                    wrong = call()
                except Exception as error:  # noqa: BLE001  # of every library there is
                    wrong = f"{type(error).__name__}: {error}"
                with self._lock:
                    self.calls += 1
                    self.pictures += pictures
                    self.wrong += [wrong] if wrong else []
                self._stop.wait(_PAUSE_S)

        thread = threading.Thread(target=run)
        thread.start()
        self._threads.append(thread)

    def more(self) -> None:
        """See each of them go on for a while."""
        enough = self.calls + 10 * len(self._threads)
        eventually(lambda: self.calls > enough, within=60, what="calls go on")

    def end(self) -> None:
        """Have all of them stop."""
        self._stop.set()
        for thread in self._threads:
            thread.join()


@contextmanager
def callers(
    platform: Platform | ClusterPlatform, keys: list[str], picture: bytes
) -> Iterator[Callers]:
    """Have two tenants' pictures detected by HTTP and gRPC, over kept and new connections; and ask
    the control API, for something and to change something."""
    found = Callers()
    trust = trusted(platform.ca)
    kept = [_http(platform, trust) for _ in range(4)]
    stubs = [_grpc(platform)]
    image = tritonclient.grpc.InferInput("image", [1], "BYTES")
    image.set_data_from_numpy(np.array([picture], dtype=np.object_))

    def by_grpc(stub: tritonclient.grpc.InferenceServerClient, key: str) -> str:
        number = stub.infer("standard", [image], headers=_bearer(key)).as_numpy("num_dets")
        return "" if number[0, 0] > 0 else "nothing found"

    def detect(http: httpx.Client, key: str) -> str:
        return _wrong(http.post("/v1/detect", content=picture, headers=_bearer(key)))

    def anew(key: str) -> str:
        with _http(platform, trust) as http:
            return detect(http, key)

    def anew_by_grpc(key: str) -> str:
        with _grpc(platform) as stub:
            return by_grpc(stub, key)

    def change() -> str:
        keys_of_one = "/api/v1/tenants/me/keys"
        made = kept[3].post(keys_of_one, json={"name": "passing"}, headers=_bearer(keys[0]))
        if not made.is_success:
            return _wrong(made)
        made_id = made.json()["id"]
        return _wrong(kept[3].delete(f"{keys_of_one}/{made_id}", headers=_bearer(keys[0])))

    try:
        for http, key in zip(kept, keys, strict=False):
            found.add(lambda http=http, key=key: detect(http, key), pictures=1)  # type: ignore[misc]
            found.add(lambda key=key: by_grpc(stubs[0], key), pictures=1)  # type: ignore[misc]
        found.add(lambda: anew(keys[0]), pictures=1)
        found.add(lambda: anew_by_grpc(keys[1]), pictures=1)
        found.add(lambda: _wrong(kept[2].get("/api/v1/tenants/me", headers=_bearer(keys[1]))))
        found.add(change)
        yield found
    finally:
        found.end()
        for client in (*kept, *stubs):
            client.close()


def _http(platform: Platform | ClusterPlatform, trust: Any) -> httpx.Client:
    return httpx.Client(base_url=platform.url, timeout=30, verify=trust)


def _grpc(platform: Platform | ClusterPlatform) -> tritonclient.grpc.InferenceServerClient:
    ca = platform.ca
    return tritonclient.grpc.InferenceServerClient(
        platform.grpc, ssl=ca is not None, root_certificates=None if ca is None else str(ca)
    )


def _bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def _wrong(answer: httpx.Response) -> str:
    return "" if answer.is_success else f"{answer.status_code} {answer.text}"
