"""Routes of OAuth2: tokens for programs (RFC 6749), and a tenant's clients that may get them."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, unquote_plus

from fastapi import APIRouter, Request
from starlette.concurrency import run_in_threadpool
from starlette.responses import Response

from polyolo.control import names
from polyolo.control.api.asking import Asked, on_platform, on_tenant
from polyolo.control.api.bodies import NewOAuthClient, OAuthClientList, Rotation, duration
from polyolo.control.idempotency import OnceRoute
from polyolo.control.plane import Plane
from polyolo.control.service import oauth
from polyolo.control.service.oauth import Known, RefusedError
from polyolo.resources import OAuthClient
from polyolo.types import Principal
from polyolo.web import json_response, read_body

_FORM_BYTES = 16 << 10
"""Bytes of a form; a token has about 600."""
_NOT_KEPT = {"cache-control": "no-store", "pragma": "no-cache"}

F = TypeVar("F", bound=Callable[..., Any])

routes = APIRouter(
    prefix="/tenants/{tenant}/oauth-clients", tags=["oauth-clients"], route_class=OnceRoute
)
platform = APIRouter(prefix="/signing-keys", tags=["oauth-clients"], route_class=OnceRoute)
public = APIRouter(tags=["oauth2"])


@routes.post("", status_code=201, response_model=OAuthClient)
async def create_client(
    body: NewOAuthClient, asked: Annotated[Asked, on_tenant("keys:write")]
) -> Response:
    """Make an OAuth client. The answer holds its secret, and is the only one that does."""
    scopes = None if body.scopes is None else tuple(body.scopes)
    ledger, who, tenant = asked.plane.ledger, asked.who, asked.tenant
    made = await run_in_threadpool(oauth.create, ledger, who, tenant, body.name, scopes)
    await asked.plane.told()
    return json_response(made, 201, _NOT_KEPT)


@routes.get("", response_model=OAuthClientList)
def list_clients(asked: Annotated[Asked, on_tenant("keys:read")]) -> Response:
    """List the tenant's OAuth clients, without their secrets."""
    clients = oauth.every(asked.plane.ledger, asked.tenant)
    return json_response(OAuthClientList(clients=clients))


@routes.post("/{client}/rotate", status_code=201, response_model=OAuthClient)
async def rotate_client(
    client: str, asked: Annotated[Asked, on_tenant("keys:write")], body: Rotation | None = None
) -> Response:
    """Give an OAuth client a new secret; the old one stops, now or soon, its tokens stay good."""
    overlap = duration(body.overlap if body else None, "overlap") or 0.0

    def rotate() -> OAuthClient:
        return oauth.rotate(asked.plane.ledger, asked.who, asked.tenant, client, overlap=overlap)

    return json_response(await run_in_threadpool(rotate), 201, _NOT_KEPT)


@routes.delete("/{client}", status_code=204)
async def delete_client(client: str, asked: Annotated[Asked, on_tenant("keys:write")]) -> Response:
    """Revoke an OAuth client; it gets no more tokens, and those that it has stop working."""
    plane = asked.plane
    await run_in_threadpool(oauth.revoke, plane.ledger, asked.who, asked.tenant, client)
    await plane.told()
    return Response(status_code=204)


@platform.post("/rotate", status_code=204)
async def rotate_signing_keys(
    asked: Annotated[Asked, on_platform("signing-keys:rotate")],
) -> Response:
    """Sign access tokens with a new key at once, as after a leak; all there are stop working.

    Without being asked the platform changes its key every month, and no token suffers from it.
    """
    plane = asked.plane
    await run_in_threadpool(plane.token_signer.renew, by=asked.who)
    await plane.told()
    return Response(status_code=204)


def _declaring(action: str) -> Callable[[F], F]:
    """Name the action of a route that asks for no credential of a tenant (see permissions)."""

    def mark(endpoint: F) -> F:
        endpoint.__dict__["action"] = action
        return endpoint

    return mark


def _form(required: str, says: str, **more: str) -> dict[str, Any]:
    """Return how the OpenAPI document describes a form with one required field."""
    fields = {required: says, **more}
    fields |= {"client_id": "Unless by HTTP Basic.", "client_secret": "Unless by HTTP Basic."}
    properties = {k: {"type": "string", "description": v} for k, v in fields.items()}
    schema = {"type": "object", "required": [required], "properties": properties}
    content = {"application/x-www-form-urlencoded": {"schema": schema}}
    refusal = {"description": "Refused, as RFC 6749 words it.", "content": {"application/json": {}}}
    return {
        "requestBody": {"required": True, "content": content},
        "responses": {"400": refusal, "401": refusal},
    }


@public.post(
    "/oauth2/token",
    openapi_extra=_form(
        "grant_type", "client_credentials", scope="Space-separated. Default: all of the client's."
    ),
)
@_declaring("oauth2:client")
async def token(request: Request) -> Response:
    """Exchange a client's id and secret for an access token."""

    def act(plane: Plane, client: Known, fields: dict[str, str]) -> Response:
        grant = _needed(fields, "grant_type")
        if grant != "client_credentials":
            raise RefusedError("unsupported_grant_type", "the grant is: client_credentials")
        issued = oauth.issue(plane.ledger, plane.token_signer, client, fields.get("scope"))
        said = {
            "access_token": issued.access_token,
            "token_type": "Bearer",
            "expires_in": issued.expires_in,
            "scope": " ".join(issued.scopes),
        }
        return json_response(said, 200, _NOT_KEPT)

    return await _answer(request, act)


@public.post("/oauth2/revoke", openapi_extra=_form("token", "The access token."))
@_declaring("oauth2:client")
async def revoke(request: Request) -> Response:
    """Have an access token of the client stop working before its end (RFC 7009)."""

    def act(plane: Plane, client: Known, fields: dict[str, str]) -> Response:
        oauth.revoke_token(plane.ledger, plane.token_signer, client, _needed(fields, "token"))
        return Response(status_code=200, headers=_NOT_KEPT)

    answer = await _answer(request, act)
    await request.app.state.plane.told()
    return answer


@public.post("/oauth2/introspect", openapi_extra=_form("token", "The access token."))
@_declaring("oauth2:client")
async def introspect(request: Request) -> Response:
    """Say whether an access token of the client's tenant is good, and for what (RFC 7662)."""

    def act(plane: Plane, client: Known, fields: dict[str, str]) -> Response:
        seen = oauth.introspect(plane.ledger, plane.token_signer, client, _needed(fields, "token"))
        return json_response(seen, 200, _NOT_KEPT)

    return await _answer(request, act)


@public.get("/.well-known/oauth-authorization-server")
@_declaring("oauth2:describe")
async def metadata(request: Request) -> Response:
    """Describe this authorisation server (RFC 8414)."""
    issuer = request.app.state.plane.token_signer.issuer
    ways = ["client_secret_basic", "client_secret_post"]
    document = {
        "issuer": issuer,
        "token_endpoint": f"{issuer}/oauth2/token",
        "revocation_endpoint": f"{issuer}/oauth2/revoke",
        "introspection_endpoint": f"{issuer}/oauth2/introspect",
        "jwks_uri": f"{issuer}/.well-known/jwks.json",
        "scopes_supported": list(names.SCOPES),
        "response_types_supported": [],
        "grant_types_supported": ["client_credentials"],
        "token_endpoint_auth_methods_supported": ways,
        "revocation_endpoint_auth_methods_supported": ways,
        "introspection_endpoint_auth_methods_supported": ways,
    }
    return json_response(document)


@public.get("/.well-known/jwks.json")
@_declaring("oauth2:describe")
def keys(request: Request) -> Response:
    """List the public keys that access tokens are signed with (RFC 7517)."""
    plane: Plane = request.app.state.plane
    with plane.ledger.reading() as connection:
        rules = plane.token_signer.rules(connection)
    return json_response({"keys": rules.keys}, 200, {"cache-control": "public, max-age=300"})


async def _answer(
    request: Request, act: Callable[[Plane, Known, dict[str, str]], Response]
) -> Response:
    """Authenticate the client and have `act` answer its form; refuse in RFC 6749's words."""
    plane: Plane = request.app.state.plane
    declared = request.headers.get("content-length")
    body = await read_body(request.receive, _FORM_BYTES, declared)
    try:
        fields = _fields(request.headers.get("content-type", ""), body)
        identifier, secret = _credentials(request.headers.get("authorization"), fields)
        client = await run_in_threadpool(oauth.authenticate, plane.ledger, identifier, secret)
        request.scope["state"]["log"]["actor"] = f"token:{client.id}"
        who = Principal(kind="token", id=client.id, tenant=client.tenant)
        request.scope["state"]["who"] = who  # for the audit log
        return await run_in_threadpool(act, plane, client, fields)
    except RefusedError as refusal:
        said = {"error": refusal.code, "error_description": refusal.description}
        challenge = {"www-authenticate": 'Basic realm="polyolo", charset="UTF-8"'}
        headers = _NOT_KEPT | (challenge if refusal.status == 401 else {})
        return json_response(said, refusal.status, headers)


def _fields(kind: str, body: bytes) -> dict[str, str]:
    if kind.partition(";")[0].strip().lower() != "application/x-www-form-urlencoded":
        raise RefusedError(
            "invalid_request", "send a form, with Content-Type: application/x-www-form-urlencoded"
        )
    try:
        pairs = parse_qsl(body.decode("ascii"), errors="strict", max_num_fields=20)
    except ValueError:
        raise RefusedError("invalid_request", "the form cannot be read") from None
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise RefusedError("invalid_request", "a field is there more than once")
    return fields


def _credentials(authorization: str | None, fields: dict[str, str]) -> tuple[str, str]:
    """Return the client's id and secret, by HTTP Basic or in the form, not by both."""
    missing = RefusedError(
        "invalid_client", "send client_id and client_secret, by HTTP Basic or in the form", 401
    )
    if authorization is None:
        if not fields.get("client_id") or not fields.get("client_secret"):
            raise missing
        return fields["client_id"], fields["client_secret"]
    if "client_secret" in fields:
        raise RefusedError("invalid_request", "the client proves itself in two ways; use one")
    scheme, _, encoded = authorization.partition(" ")
    try:
        decoded = base64.b64decode(encoded.strip(), validate=True).decode()
    except (binascii.Error, ValueError):
        raise missing from None
    identifier, colon, secret = decoded.partition(":")
    if scheme.lower() != "basic" or not colon:
        raise missing
    return unquote_plus(identifier), unquote_plus(secret)  # RFC 6749 section 2.3.1


def _needed(fields: dict[str, str], name: str) -> str:
    if not fields.get(name):
        raise RefusedError("invalid_request", f"the field {name} is missing")
    return fields[name]
