"""OAuth2 at the control plane: clients, tokens, their revocation and what is said of them."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from joserfc import jwt
from joserfc.jwk import KeySet

from polyolo import tokens
from polyolo.types import Snapshot
from polyolo.web import decode_json
from tests.integration.control_plane import GATEWAY, Api, serving, settings


async def client_of(api: Api, tenant: str, key: str | None = None, **body: Any) -> dict[str, Any]:
    """Make an OAuth client and return it with its secret."""
    answer = await api.ask("POST", f"/tenants/{tenant}/oauth-clients", key, json=body)
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def proof(client: dict[str, Any]) -> dict[str, str]:
    return {"client_id": client["client_id"], "client_secret": client["client_secret"]}


async def form(api: Api, path: str, client: dict[str, Any], **fields: str) -> httpx.Response:
    return await api.http.post(path, data=proof(client) | fields)


async def token_of(api: Api, client: dict[str, Any], **fields: str) -> str:
    answer = await form(api, "/oauth2/token", client, grant_type="client_credentials", **fields)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["access_token"])


async def snapshot(api: Api) -> Snapshot:
    answer = await api.http.get("/internal/v1/snapshot?after=-1", headers=GATEWAY)
    return decode_json(answer.content, Snapshot)


async def test_a_client_exchanges_its_secret_for_a_token_that_anybody_can_verify(tmp_path):
    """By form and by HTTP Basic; the answer, the claims and the keys are as the RFCs say."""
    async with serving(settings(tmp_path / "home")) as api:
        tenant, key = await api.tenant("acme")
        made = await client_of(api, "me", key, name="ci", scopes=["detect", "models:read"])
        assert (made["id"], made["name"]) == (made["client_id"], "ci")
        grant = {"grant_type": "client_credentials", "scope": "detect"}
        by_form = await form(api, "/oauth2/token", made, **grant)
        by_basic = await api.http.post(
            "/oauth2/token", data=grant, auth=(made["client_id"], made["client_secret"])
        )
        for answer in (by_form, by_basic):
            assert answer.status_code == 200
            assert answer.headers["cache-control"] == "no-store"
            body = answer.json()
            assert (body["token_type"], body["expires_in"]) == ("Bearer", 900)
            assert body["scope"] == "detect"
        metadata = (await api.http.get("/.well-known/oauth-authorization-server")).json()
        assert metadata["issuer"] == "http://127.0.0.1:8700"
        assert metadata["token_endpoint"] == "http://127.0.0.1:8700/oauth2/token"
        jwks = (await api.http.get("/.well-known/jwks.json")).json()
        assert all(not {"d", "k"} & set(one) for one in jwks["keys"])
        token = jwt.decode(
            by_form.json()["access_token"], KeySet.import_key_set(jwks), [tokens.ALGORITHM]
        )
        assert token.header["typ"] == tokens.TYPE
        assert token.claims["sub"] == made["client_id"]
        assert token.claims["tenant"] == tenant
        assert (token.claims["iss"], token.claims["aud"]) == (metadata["issuer"],) * 2
        assert token.claims["exp"] - token.claims["iat"] == 900
        listed = (await api.ask("GET", "/tenants/me/oauth-clients", key)).json()["clients"]
        assert [one["id"] for one in listed] == [made["id"]]
        assert made["client_secret"] not in str(listed)


BASIC = base64.b64encode(b"oc_abcdefghijkl:wrong").decode()
GRANT = {"grant_type": "client_credentials"}


@pytest.mark.parametrize(
    ("data", "headers", "status", "error"),
    [
        (GRANT, {}, 401, "invalid_client"),
        (GRANT, {"authorization": "Basic !!"}, 401, "invalid_client"),
        (GRANT, {"authorization": f"Basic {BASIC}"}, 401, "invalid_client"),
        (GRANT, {"authorization": "Bearer x"}, 401, "invalid_client"),
        (GRANT | {"client_id": "x", "client_secret": "\0"}, {}, 401, "invalid_client"),
        (GRANT | {"client_id": "\0é", "client_secret": "y"}, {}, 401, "invalid_client"),
        (
            GRANT | {"client_id": "x", "client_secret": "y"},
            {"authorization": f"Basic {BASIC}"},
            400,
            "invalid_request",
        ),
        ("a=1&a=2", {"content-type": "application/x-www-form-urlencoded"}, 400, "invalid_request"),
        ("a=%ff", {"content-type": "application/x-www-form-urlencoded"}, 400, "invalid_request"),
        ('{"grant_type":"x"}', {"content-type": "application/json"}, 400, "invalid_request"),
        ("", {}, 400, "invalid_request"),
    ],
)
async def test_refusals_are_worded_as_oauth2_has_it(shared_api, data, headers, status, error):
    """RFC 6749 section 5.2: JSON with error and description; 401 with a challenge."""
    content = {"data": data} if isinstance(data, dict) else {"content": data}
    answer = await shared_api.http.post("/oauth2/token", headers=headers, **content)
    assert (answer.status_code, answer.json()["error"]) == (status, error)
    assert answer.json()["error_description"]
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.fixture
async def shared_api(tmp_path, database):
    async with serving(settings(tmp_path / "home")) as api:
        yield api


async def test_grants_and_scopes_that_a_client_may_not_have(shared_api):
    """Another grant, a foreign scope and a wrong secret are refused; a key cannot give more."""
    api = shared_api
    _, key = await api.tenant("acme")
    made = await client_of(api, "me", key, scopes=["detect"])
    for fields, error in (
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({}, "invalid_request"),
        ({"grant_type": "client_credentials", "scope": "keys:write"}, "invalid_scope"),
        ({"grant_type": "client_credentials", "scope": "detect nonsense"}, "invalid_scope"),
    ):
        answer = await form(api, "/oauth2/token", made, **fields)
        assert (answer.status_code, answer.json()["error"]) == (400, error)
    wrong = made | {"client_secret": made["client_secret"][:-1] + "!"}
    answer = await form(api, "/oauth2/token", wrong, **GRANT)
    assert (answer.status_code, answer.json()["error"]) == (401, "invalid_client")
    weak = await api.ask("POST", "/tenants/me/keys", key, json={"scopes": ["keys:write"]})
    asked = {"scopes": ["detect"]}
    refused = await api.ask("POST", "/tenants/me/oauth-clients", weak.json()["key"], json=asked)
    assert refused.status_code == 403


async def test_a_token_opens_the_control_api_within_its_scopes(shared_api):
    """A token is a credential like a key: its scopes, its tenant, and nothing of others."""
    api = shared_api
    tenant, key = await api.tenant("acme")
    other, _ = await api.tenant("other")
    made = await client_of(api, "me", key)
    token = await token_of(api, made, scope="models:read")
    assert (await api.ask("GET", "/tenants/me", token)).json()["id"] == tenant
    assert (await api.ask("GET", "/tenants/me/models", token)).status_code == 200
    assert (await api.ask("GET", "/tenants/me/keys", token)).status_code == 403
    assert (await api.ask("GET", f"/tenants/{other}", token)).status_code == 404
    forged = await api.ask("GET", "/tenants/me", token[:-8] + "AAAAAAAA")
    assert forged.status_code == 401
    assert forged.headers["www-authenticate"] == 'Bearer error="invalid_token"'
    await api.ask("PATCH", f"/tenants/{tenant}", json={"state": "suspended"})
    assert (await api.ask("GET", "/tenants/me/models", token)).status_code == 403
    answer = await form(api, "/oauth2/token", made, **GRANT)
    assert (answer.status_code, answer.json()["error"]) == (400, "unauthorized_client")
    await api.ask("DELETE", f"/tenants/{tenant}")
    assert (await api.ask("GET", "/tenants/me", token)).status_code == 401
    assert (await form(api, "/oauth2/token", made, **GRANT)).status_code == 401


async def test_a_revoked_token_stops_and_only_its_own_client_can_revoke_it(shared_api):
    """RFC 7009: 200 whatever the token is; the gateways hear of it with the next snapshot."""
    api = shared_api
    _, key = await api.tenant("acme")
    made, neighbour = [await client_of(api, "me", key) for _ in range(2)]
    token, kept = [await token_of(api, made) for _ in range(2)]
    for client, text in ((neighbour, token), (made, "nonsense")):
        assert (await form(api, "/oauth2/revoke", client, token=text)).status_code == 200
        assert (await api.ask("GET", "/tenants/me", token)).status_code == 200
    for _ in range(2):  # the second time there is nothing left to do
        assert (await form(api, "/oauth2/revoke", made, token=token)).status_code == 200
        assert (await api.ask("GET", "/tenants/me", token)).status_code == 401
    assert (await api.ask("GET", "/tenants/me", kept)).status_code == 200
    rules = (await snapshot(api)).tokens
    assert rules is not None
    assert len(rules.revoked) == 1
    assert (await form(api, "/oauth2/revoke", made)).json()["error"] == "invalid_request"


async def test_introspection_tells_only_of_the_clients_own_tenant(shared_api):
    """RFC 7662: what is in a live token; inactive for a revoked, broken or foreign one."""
    api = shared_api
    tenant, key = await api.tenant("acme")
    _, foreign = await api.tenant("other")
    made = await client_of(api, "me", key)
    stranger = await client_of(api, "me", foreign)
    token = await token_of(api, made, scope="detect")
    seen = (await form(api, "/oauth2/introspect", made, token=token)).json()
    assert seen["active"] is True
    assert (seen["client_id"], seen["tenant"], seen["scope"]) == (made["id"], tenant, "detect")
    for client, text in ((stranger, token), (made, token + "x"), (made, key)):
        answer = await form(api, "/oauth2/introspect", client, token=text)
        assert answer.json() == {"active": False}
    await form(api, "/oauth2/revoke", made, token=token)
    answer = await form(api, "/oauth2/introspect", made, token=token)
    assert answer.json() == {"active": False}


async def test_a_deleted_client_takes_its_tokens_along(shared_api):
    """Deleting is revoking all at once; another tenant's client is not there."""
    api = shared_api
    _, key = await api.tenant("acme")
    _, foreign = await api.tenant("other")
    made = await client_of(api, "me", key)
    token = await token_of(api, made)
    path = f"/tenants/me/oauth-clients/{made['id']}"
    assert (await api.ask("DELETE", path, foreign)).status_code == 404
    assert [one.id for one in (await snapshot(api)).clients] == [made["id"]]
    assert (await api.ask("DELETE", path, key)).status_code == 204
    assert (await api.ask("DELETE", path, key)).status_code == 404
    assert (await api.ask("GET", "/tenants/me", token)).status_code == 401
    assert (await snapshot(api)).clients == ()
    assert (await form(api, "/oauth2/token", made, **GRANT)).status_code == 401


async def test_the_operator_ends_all_tokens_by_a_new_signing_key(shared_api):
    """After a leak: another key at once, told to gateways; nobody else may."""
    api = shared_api
    _, key = await api.tenant("acme")
    made = await client_of(api, "me", key)
    token = await token_of(api, made)
    before = (await snapshot(api)).tokens
    assert (await api.ask("POST", "/signing-keys/rotate", key)).status_code == 403
    assert (await api.ask("GET", "/tenants/me", token)).status_code == 200
    assert (await api.ask("POST", "/signing-keys/rotate")).status_code == 204
    after = (await snapshot(api)).tokens
    assert before is not None
    assert after is not None
    assert not {one["kid"] for one in before.keys} & {one["kid"] for one in after.keys}
    assert (await api.ask("GET", "/tenants/me", token)).status_code == 401
    assert (await api.ask("GET", "/tenants/me", await token_of(api, made))).status_code == 200


async def test_no_private_key_and_no_secret_is_in_the_database_in_clear(tmp_path):
    """Neither the signing key nor a client's secret nor a token can be read from the files."""
    async with serving(settings(tmp_path / "home")) as api:
        _, key = await api.tenant("acme")
        made = await client_of(api, "me", key)
        token = await token_of(api, made)
        signer = api.control.plane.token_signer
        private = [str(one.as_dict(private=True)["d"]) for one in signer._private.values()]
        assert private
    files = [path.read_bytes() for path in (tmp_path / "home").glob("polyolo.db*")]
    for canary in (*private, made["client_secret"], token):
        assert not any(canary.encode() in content for content in files)
