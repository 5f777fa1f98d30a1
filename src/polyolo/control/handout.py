"""Gives runtimes in a cluster their model files, each tenant's own and the platform's.

A listener of its own: what a runtime can reach of the platform is this and nothing else. The token
that a runtime shows names its tenant, and is known from the platform's data key alone. Files go as
they lie in the store, sealed; the key to them is in the runtime's environment.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from itertools import chain

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from polyolo import web
from polyolo.control import access
from polyolo.control.artifacts import PLATFORM, PLATFORM_FOLDER, Artifacts
from polyolo.control.service import artifacts
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.drivers.kubernetes.pods import TOKEN
from polyolo.errors import NotFoundError, UnauthenticatedError
from polyolo.sealedfile import KEY_VARIABLE

_PURPOSE = "runtime token"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def keys(ledger: Ledger, vault: Vault) -> Callable[[str], Mapping[str, str]]:
    """Return what gives a tenant's runtime its secrets, by environment variable.

    What it is known by, and what opens its files; of a tenant that is no more, only the first.
    """
    token_of = _tokens(ledger, vault)

    def of(tenant: str) -> Mapping[str, str]:
        found = {TOKEN: token_of(tenant)}
        with suppress(NotFoundError):
            found[KEY_VARIABLE] = artifacts.key_of(ledger, vault, tenant).hex()
        return found

    return of


def app(ledger: Ledger, vault: Vault, store: Artifacts) -> ASGIApp:
    """Return the application that serves files by tenant and digest."""
    token_of = _tokens(ledger, vault)

    def judge(request: Request) -> tuple[str, str]:
        token = access.presented(request.headers)
        tenant = token.rpartition(".")[0]
        if not hmac.compare_digest(token.encode(), token_of(tenant).encode()):
            raise UnauthenticatedError("this is for runtimes only")
        folder, digest = (request.path_params[name] for name in ("folder", "digest"))
        owner = PLATFORM if folder == PLATFORM_FOLDER else folder
        if owner not in (PLATFORM, tenant) or not _DIGEST.fullmatch(digest):
            raise NotFoundError("there is no such file")
        return owner, digest

    def begun(owner: str, digest: str) -> Iterator[bytes]:
        pieces = store.handed_out(owner, digest)
        try:
            first = next(pieces, b"")
        except FileNotFoundError:
            raise NotFoundError("there is no such file") from None
        return chain([first], pieces)

    async def give(request: Request) -> Response:
        owner, digest = await run_in_threadpool(judge, request)
        pieces = await run_in_threadpool(begun, owner, digest)
        return StreamingResponse(pieces, media_type="application/octet-stream")

    routes = [Route("/models/{folder}/{digest}", give, methods=["GET"])]
    return web.Service(Router(routes, redirect_slashes=False), access_log=True)


def _tokens(ledger: Ledger, vault: Vault) -> Callable[[str], str]:
    with ledger.changing() as transaction:
        vault.prepare(transaction.connection)

    def of(tenant: str) -> str:
        with ledger.reading() as connection:
            return f"{tenant}.{vault.fingerprint(connection, tenant, _PURPOSE)}"

    return of
