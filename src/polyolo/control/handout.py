"""Gives runtimes in a cluster their model files, each tenant's own and the standard one.

A listener of its own: what a runtime can reach of the platform is this and nothing else. The token
that a runtime shows names its tenant, and is known from the platform's data key alone.
"""

from __future__ import annotations

import hmac
import re
from collections.abc import Callable, Mapping

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp

from polyolo import web
from polyolo.control import access
from polyolo.control.artifacts import ArtifactStore
from polyolo.control.service import artifacts
from polyolo.control.service.ledger import Ledger
from polyolo.control.service.vault import Vault
from polyolo.drivers.kubernetes.pods import TOKEN
from polyolo.errors import NotFoundError, UnauthenticatedError

_PURPOSE = "runtime token"
_DIGEST = re.compile(r"[0-9a-f]{64}")


def keys(ledger: Ledger, vault: Vault) -> Callable[[str], Mapping[str, str]]:
    """Return what gives a tenant's runtime its secrets, by environment variable."""
    with ledger.changing() as transaction:
        vault.prepare(transaction.connection)

    def of(tenant: str) -> Mapping[str, str]:
        with ledger.reading() as connection:
            proof = vault.fingerprint(connection, tenant, _PURPOSE)
        return {TOKEN: f"{tenant}.{proof}"}

    return of


def app(ledger: Ledger, vault: Vault, store: ArtifactStore) -> ASGIApp:
    """Return the application that serves files by digest."""
    keys_of = keys(ledger, vault)

    def judge(request: Request) -> str:
        token = access.presented(request.headers)
        tenant = token.rpartition(".")[0]
        if not hmac.compare_digest(token.encode(), keys_of(tenant)[TOKEN].encode()):
            raise UnauthenticatedError("this is for runtimes only")
        digest: str = request.path_params["digest"]
        if not _DIGEST.fullmatch(digest) or not artifacts.serves(ledger, tenant, digest):
            raise NotFoundError("there is no such file")
        return digest

    async def give(request: Request) -> Response:
        digest = await run_in_threadpool(judge, request)
        path = store.path(digest)
        if not path.is_file():
            raise NotFoundError("there is no such file")
        return FileResponse(path, media_type="application/octet-stream")

    routes = [Route("/models/{digest}", give, methods=["GET"])]
    return web.Service(Router(routes, redirect_slashes=False), access_log=True)
