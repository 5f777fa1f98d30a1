"""What the tests of accounts share: people who register and sign in, as a browser does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from polyolo.control.idtoken import IdentityClaims
from polyolo.control.service import identities, sessions
from tests.integration.control_plane import Api

PASSWORD = "a long enough secret"


@dataclass
class Person:
    """Somebody signed in, by hand: httpx keeps no cookie of its own here."""

    api: Api
    cookie: str
    csrf: str
    tenant: str
    user: str

    async def ask(
        self, method: str, path: str, *, csrf: str | None = None, **more: Any
    ) -> httpx.Response:
        """Ask as this person's browser does, with the right CSRF token unless another is given."""
        headers = {"cookie": self.cookie, "x-csrf-token": self.csrf if csrf is None else csrf}
        headers |= more.pop("headers", {})
        self.api.http.cookies.clear()
        return await self.api.http.request(method, f"/api/v1{path}", headers=headers, **more)


async def post(api: Api, path: str, body: dict[str, Any], **headers: str) -> httpx.Response:
    """Ask without a credential."""
    api.http.cookies.clear()
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return await api.http.post(f"/api/v1{path}", json=body, headers=named)


async def register(api: Api, email: str, organization: str = "Acme Inc.") -> dict[str, Any]:
    """Register somebody; return the answer."""
    body = {"email": email, "password": PASSWORD, "organization": organization}
    answer = await post(api, "/register", body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


async def sign_in(api: Api, email: str, password: str = PASSWORD, **headers: str) -> Person:
    """Sign somebody in."""
    answer = await post(api, "/sessions", {"email": email, "password": password}, **headers)
    assert answer.status_code == 201, answer.text
    said = answer.json()
    cookie = answer.headers["set-cookie"].partition(";")[0]
    return Person(api, cookie, said["csrf_token"], said["tenant"], said["user"]["id"])


async def join(api: Api, owner: Person, email: str, role: str) -> Person:
    """Have an owner invite somebody, who accepts and signs in."""
    invited = await owner.ask("POST", "/tenants/me/invitations", json={"role": role})
    assert invited.status_code == 201, invited.text
    body = {"token": invited.json()["token"], "email": email, "password": PASSWORD}
    answer = await post(api, "/invitations/accept", body)
    assert answer.status_code == 201, answer.text
    return await sign_in(api, email)


def linked(api: Api, person: Person, subject: str) -> str:
    """Give somebody an identity at an external provider; return its id."""
    plane = api.control.plane
    live = sessions.find(plane.ledger, person.cookie.partition("=")[2])
    claims = IdentityClaims(issuer="https://login.example", subject=subject)
    identities.link(plane.ledger, plane.vault, claims, live)
    return identities.every(plane.ledger, plane.vault, live)[-1].id
