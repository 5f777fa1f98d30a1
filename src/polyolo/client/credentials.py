"""The operations on what proves who asks: API keys, OAuth clients, access tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from urllib.parse import urlencode

from polyolo.client.call import Call
from polyolo.client.compose import delete, each, get, one, post, quoted, tenant_path
from polyolo.resources import AccessToken, ApiKey, OAuthClient

# --- Keys -------------------------------------------------------------------------------------


def create_key(
    *,
    name: str | None = None,
    scopes: Sequence[str] = (),
    expires_in: str | int | None = None,
    sources: Sequence[str] = (),
    tenant: str = "me",
) -> Call[ApiKey]:
    """Create an API key; the key itself is in the answer, this once.

    scopes: what it may do; none given: all. expires_in: `90d`, `12h` or seconds; None: never.
    sources: networks (CIDR) that it may be used from; none given: from anywhere.
    """
    fields: dict[str, Any] = {"name": name, "expires_in": expires_in}
    fields |= {"scopes": list(scopes) or None, "sources": list(sources) or None}
    return post(f"{tenant_path(tenant)}/keys", fields, one(ApiKey))


def list_keys(tenant: str = "me") -> Call[list[ApiKey]]:
    """Return a tenant's keys, without what makes them usable."""
    return get(f"{tenant_path(tenant)}/keys", each(ApiKey, "keys"))


def rotate_key(
    key_id: str, *, overlap: str | int | None = None, tenant: str = "me"
) -> Call[ApiKey]:
    """Replace a key by a new one with the same rights; the new key is in the answer, this once.

    overlap: `1h`, `30m` or seconds for which the old key goes on working; None: it stops at once.
    """
    path = f"{tenant_path(tenant)}/keys/{quoted(key_id)}/rotate"
    return post(path, {"overlap": overlap}, one(ApiKey))


def revoke_key(key_id: str, *, tenant: str = "me") -> Call[None]:
    """Revoke a key: requests that carry it are answered 401 from now on."""
    return delete(f"{tenant_path(tenant)}/keys/{quoted(key_id)}")


# --- OAuth clients ----------------------------------------------------------------------------


def create_oauth_client(
    *, name: str | None = None, scopes: Sequence[str] = (), tenant: str = "me"
) -> Call[OAuthClient]:
    """Create an OAuth client; its secret is in the answer, this once.

    scopes: what its tokens may do at most; none given: all that the caller may.
    """
    fields = {"name": name, "scopes": list(scopes) or None}
    return post(f"{tenant_path(tenant)}/oauth-clients", fields, one(OAuthClient))


def list_oauth_clients(tenant: str = "me") -> Call[list[OAuthClient]]:
    """Return a tenant's OAuth clients, without their secrets."""
    return get(f"{tenant_path(tenant)}/oauth-clients", each(OAuthClient, "clients"))


def rotate_oauth_client(
    client_id: str, *, overlap: str | int | None = None, tenant: str = "me"
) -> Call[OAuthClient]:
    """Give an OAuth client a new secret, which is in the answer, this once; its tokens stay good.

    overlap: `1h`, `30m` or seconds for which the old secret goes on working; None: it stops at
    once.
    """
    path = f"{tenant_path(tenant)}/oauth-clients/{quoted(client_id)}/rotate"
    return post(path, {"overlap": overlap}, one(OAuthClient))


def revoke_oauth_client(client_id: str, *, tenant: str = "me") -> Call[None]:
    """Revoke an OAuth client: it gets no more tokens, and those that it has stop working."""
    return delete(f"{tenant_path(tenant)}/oauth-clients/{quoted(client_id)}")


def access_token(
    client_id: str, client_secret: str, *, scopes: Sequence[str] = ()
) -> Call[AccessToken]:
    """Exchange an OAuth client's id and secret for a token, to be used in place of an API key.

    scopes: what it may do; none given: all that the client may.
    """
    form = {"grant_type": "client_credentials", "scope": " ".join(scopes)}
    form |= {"client_id": client_id, "client_secret": client_secret}
    return Call(
        method="POST",
        path="/oauth2/token",
        headers={"content-type": "application/x-www-form-urlencoded"},
        body=urlencode({name: value for name, value in form.items() if value}).encode(),
        read=one(AccessToken),
        repeatable=True,
        anonymous=True,
    )


def rotate_signing_keys() -> Call[None]:
    """Sign access tokens with a new key at once; all there are stop working. Operator only."""
    return post("/api/v1/signing-keys/rotate", {}, lambda _: None)
