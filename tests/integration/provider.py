"""An OpenID Connect provider for tests of sign-in, and the browser that goes between it and us.

The provider checks what a good one checks (client, redirect URI, PKCE, that a code is used once),
and lies where a test tells it to.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import secrets
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote_plus, urlencode, urlsplit

import httpx
import sqlalchemy as sa
from joserfc import jwt
from joserfc.jwk import ECKey
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from polyolo import web
from polyolo.control import db
from polyolo.control.provider import IdentityProvider
from tests.integration.control_plane import Api

NAME = "Example & Co"
CLIENT, SECRET = "polyolo", "a/secret+of:the client"
REDIRECT = "http://127.0.0.1:8700/api/v1/sign-in/oidc/callback"
START = "/api/v1/sign-in/oidc"
ANN = {"sub": "ann-at-provider", "email": "ann@example.com", "email_verified": True}


def new_key() -> ECKey:
    """Return a key with its id."""
    key = ECKey.generate_key("P-256")
    return ECKey.import_key({**key.as_dict(private=True), "kid": key.thumbprint()})


@dataclass
class Provider:
    """What the provider says, to be changed by a test."""

    url: str = ""
    person: dict[str, Any] = field(default_factory=lambda: dict(ANN))
    """Who signs in next."""
    key: ECKey = field(default_factory=new_key)
    listed: list[dict[str, Any]] | None = None
    """The keys that it lists; None: its own."""
    metadata: dict[str, Any] = field(default_factory=dict)
    answer: dict[str, str] = field(default_factory=dict)
    """Changes of what the browser brings back."""
    claims: dict[str, Any] = field(default_factory=dict)
    """Changes of the ID token's claims; None leaves one out."""
    sign: Callable[[dict[str, Any]], Any] | None = None
    """Makes the ID token instead."""
    userinfo: dict[str, Any] | None = None
    instead: dict[str, Response] = field(default_factory=dict)
    """Answers in place of its own, by path."""
    checks_pkce: bool = True
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    """Paths, in the order in which they were asked for."""
    proofs: list[tuple[bytes, str | None]] = field(default_factory=list)
    """Forms and Authorization headers that came to the token endpoint."""

    def settings(self, **changes: Any) -> IdentityProvider:
        """Return what the operator configures."""
        values = {"issuer": self.url, "client_id": CLIENT, "client_secret": SECRET}
        return IdentityProvider(**{**values, "name": NAME, **changes})

    def token(self, query: dict[str, str], access_token: str) -> Any:
        """Return an ID token for the request that `query` was."""
        now = int(time.time())
        half = hashlib.sha256(access_token.encode()).digest()[:16]
        said = {
            "iss": self.url,
            "aud": CLIENT,
            "iat": now,
            "exp": now + 300,
            "nonce": query["nonce"],
            "at_hash": base64.urlsafe_b64encode(half).rstrip(b"=").decode(),
            **self.person,
            **self.claims,
        }
        said = {name: value for name, value in said.items() if value is not None}
        if self.sign is not None:
            return self.sign(said)
        return jwt.encode({"alg": "ES256", "kid": self.key.kid}, said, self.key, ["ES256"])

    async def __call__(self, request: Request) -> Response:
        """Answer any request."""
        path = request.url.path
        self.asked.append(path)
        if path == "/token":
            self.proofs.append((await request.body(), request.headers.get("authorization")))
        if path in self.instead:
            return self.instead[path]
        return await {
            "/.well-known/openid-configuration": self._describe,
            "/jwks": self._jwks,
            "/authorize": self._authorize,
            "/token": self._token,
            "/userinfo": self._userinfo,
        }[path](request)

    async def _describe(self, _: Request) -> Response:
        said = {
            "issuer": self.url,
            "authorization_endpoint": f"{self.url}/authorize?tenant=example",
            "token_endpoint": f"{self.url}/token",
            "jwks_uri": f"{self.url}/jwks",
            "userinfo_endpoint": f"{self.url}/userinfo",
            "id_token_signing_alg_values_supported": ["ES256", "HS256", "none"],
            "authorization_response_iss_parameter_supported": True,
        }
        return JSONResponse(said | self.metadata)

    async def _jwks(self, _: Request) -> Response:
        own = [self.key.as_dict(private=False)]
        return JSONResponse({"keys": own if self.listed is None else self.listed})

    async def _authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        assert query.pop("tenant") == "example", "the endpoint's own query is kept"
        assert query["client_id"] == CLIENT
        assert query["redirect_uri"] == REDIRECT
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        assert "openid" in query["scope"].split()
        code = secrets.token_urlsafe(16)
        self.codes[code] = query
        back = {"code": code, "state": query["state"], "iss": self.url} | self.answer
        return RedirectResponse(f"{REDIRECT}?{urlencode(back)}", 302)

    async def _token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        basic = request.headers.get("authorization", "Basic ").partition(" ")[2]
        name, _, secret = base64.b64decode(basic).decode().partition(":")
        if (unquote_plus(name), unquote_plus(secret)) != (CLIENT, SECRET):
            return JSONResponse({"error": "invalid_client"}, 401)
        query = self.codes.pop(form["code"], None)
        made = hashlib.sha256(form["code_verifier"].encode()).digest()
        challenge = base64.urlsafe_b64encode(made).rstrip(b"=").decode()
        if (
            query is None
            or form["redirect_uri"] != query["redirect_uri"]
            or (self.checks_pkce and challenge != query["code_challenge"])
        ):
            return JSONResponse({"error": "invalid_grant"}, 400)
        access_token = secrets.token_urlsafe(16)
        said = {"access_token": access_token, "token_type": "Bearer", "expires_in": 300}
        return JSONResponse(said | {"id_token": self.token(query, access_token)})

    async def _userinfo(self, request: Request) -> Response:
        assert request.headers["authorization"].startswith("Bearer ")
        return JSONResponse(self.userinfo or {"sub": self.person["sub"]})


@asynccontextmanager
async def providing() -> AsyncIterator[Provider]:
    """Run a provider on a port of this machine."""
    provider = Provider()
    stop, listener = asyncio.Event(), web.bind(host="127.0.0.1", port=0)
    provider.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    app = Starlette(
        routes=[Route("/{path:path}", provider.__call__, methods=["GET", "POST"])],
    )
    server = asyncio.create_task(web.serve(app, listener, stop=stop))
    try:
        yield provider
    finally:
        stop.set()
        await server


@dataclass
class Browser:
    """A browser: it keeps cookies, and goes where it is sent."""

    api: Api
    cookies: dict[str, str] = field(default_factory=dict)

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request of ours, and keep the cookies of the answer."""
        jar = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        headers = {"cookie": jar} | more.pop("headers", {})
        self.api.http.cookies.clear()
        answer = await self.api.http.request(method, path, headers=headers, **more)
        for line in answer.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            if "Max-Age=0" in line:
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value
        return answer

    async def start(self, **body: Any) -> str:
        """Begin to sign in; return the URL at the provider. body: of what else shall come of it."""
        if body:
            answer = await self.ask("POST", START, json=body)
            assert answer.status_code == 200, answer.text
            return str(answer.json()["url"])
        answer = await self.ask("GET", START)
        assert answer.status_code == 303, answer.text
        return str(answer.headers["location"])

    async def visit(self, url: str) -> str:
        """Sign in at the provider; return the path and query that it sends the browser back to."""
        async with httpx.AsyncClient(trust_env=False) as http:
            answer = await http.get(url)
        assert answer.status_code == 302, answer.text
        back = urlsplit(answer.headers["location"])
        assert f"{back.scheme}://{back.netloc}{back.path}" == REDIRECT
        return f"{back.path}?{back.query}"

    async def back(self, path: str, **headers: str) -> httpx.Response:
        """Come back from the provider, as a browser does: from another site."""
        return await self.ask("GET", path, headers={"sec-fetch-site": "cross-site"} | headers)

    async def sign_in(self, **body: Any) -> httpx.Response:
        """Go the whole way; return the last answer."""
        return await self.back(await self.visit(await self.start(**body)))

    async def csrf(self) -> str:
        """Return the token that pages of ours send along."""
        answer = await self.ask("GET", "/api/v1/sessions/current")
        assert answer.status_code == 200, answer.text
        return str(answer.json()["csrf_token"])

    async def act(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request as a page of ours does."""
        headers = {"x-csrf-token": await self.csrf()}
        return await self.ask(method, f"/api/v1{path}", headers=headers, **more)


@dataclass
class Stage:
    """A control plane and its provider."""

    api: Api
    provider: Provider

    def browser(self) -> Browser:
        """Return a browser that was nowhere yet."""
        return Browser(self.api)

    def audited(self, action: str) -> list[Any]:
        """Return what the audit log says of one action."""
        with self.api.control.plane.ledger.reading() as connection:
            rows = connection.execute(sa.select(db.events).where(db.events.c.action == action))
            return list(rows)
