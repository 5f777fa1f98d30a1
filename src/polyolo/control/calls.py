"""Writes every API call into the audit log, before its answer leaves, refused ones too.

Calls that end at the same time share a transaction: one write to the disk for all of them.
"""

from __future__ import annotations

import asyncio
import re
import threading
from concurrent.futures import Future

from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from polyolo.control.api.asking import about, declared
from polyolo.control.audit import Entry, cleaned
from polyolo.control.service import credentials
from polyolo.control.service.ledger import SOURCE, Ledger, actor
from polyolo.errors import NotReadyError
from polyolo.types import Principal
from polyolo.web import CLIENT_CLOSED_REQUEST, as_polyolo_error

_AUDITED = ("/api/", "/oauth2/")
"""Paths of calls. Probes, metrics and documents say nothing about anybody, and are not."""
_SECRET = re.compile(r"[A-Za-z0-9_\-.~+=]{40,}")
"""What may be a key or a token, put into a path by mistake; names that long are masked too."""


class Recorder:
    """A thread that writes what calls hand it. `close` before the database is closed."""

    def __init__(self, ledger: Ledger) -> None:
        """Start the thread."""
        self._ledger = ledger
        self._some = threading.Condition()
        self._waiting: list[tuple[Entry, Future[None]]] = []
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="audit", daemon=True)
        self._thread.start()

    def write(self, entry: Entry) -> Future[None]:
        """Return what is done once the entry is committed. Any thread."""
        done: Future[None] = Future()
        with self._some:
            if self._closed:
                done.set_exception(NotReadyError("the platform is stopping"))
                return done
            self._waiting.append((entry, done))
            self._some.notify()
        return done

    def close(self) -> None:
        """Write what is waiting, and end the thread."""
        with self._some:
            self._closed = True
            self._some.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._some:
                self._some.wait_for(lambda: self._waiting or self._closed)
                batch, self._waiting = self._waiting, []
            if not batch:
                return
            failure: Exception | None = None
            try:
                with self._ledger.changing() as transaction:
                    for entry, _ in batch:
                        transaction.record(entry)
                    credentials.used(transaction)
            except Exception as error:  # noqa: BLE001  # whoever waits for the entry is told
                failure = error
            for _, done in batch:
                if not done.set_running_or_notify_cancel():
                    continue
                if failure is None:
                    done.set_result(None)
                else:
                    done.set_exception(failure)


class Audited:
    """An ASGI layer: no call is answered before its entry is committed.

    When it cannot be written the call fails: nobody reads unseen. Sets `ledger.SOURCE` for the
    changes that the call makes.
    """

    def __init__(self, app: ASGIApp, recorder: Recorder, ledger: Ledger) -> None:
        self._app = app
        self._recorder = recorder
        self._ledger = ledger

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http" or not scope["path"].startswith(_AUDITED):
            await self._app(scope, receive, send)
            return
        # Written by the gateway, which drops what a client calls so; see `asking.source_of`.
        source = dict(scope["headers"]).get(b"polyolo-client-address", b"").decode("latin-1")
        SOURCE.set(cleaned(source, 64))
        begun = False
        unwritten: Exception | None = None

        async def record(status: int) -> None:
            entry = _entry(scope, status, self._ledger.clock(), SOURCE.get())
            await asyncio.wrap_future(self._recorder.write(entry))

        async def send_after_record(message: Message) -> None:
            nonlocal begun, unwritten
            if message["type"] == "http.response.start":
                try:
                    await record(message["status"])
                except Exception as error:
                    unwritten = error
                    raise
                begun = True
            await send(message)

        try:
            await self._app(scope, receive, send_after_record)
        except ClientDisconnect:
            if not begun:
                await record(CLIENT_CLOSED_REQUEST)
            raise
        except Exception as error:  # raised on, to the layer that answers it
            if unwritten is not None:  # the layers between took its answer for begun
                raise unwritten from None
            if not begun:
                known = as_polyolo_error(error)
                await record(500 if known is None else known.status)
            raise


def _entry(scope: Scope, status: int, now: float, source: str) -> Entry:
    state = scope["state"]
    who: Principal | None = state.get("who")
    method, path = scope["method"], _SECRET.sub("[masked]", scope["path"])
    return Entry(
        at=now,
        kind="call",
        actor=cleaned("nobody" if who is None else actor(who), 100),
        action=declared(scope.get("route")) or "unknown",
        tenant=about(state),
        resource=cleaned(f"{method} {path}", 200),
        detail=cleaned(state.get("why", ""), 300),
        source=source,
        status=status,
    )
