"""Operations by which versions of a model are tried, and releases of the runtimes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from typing import Any, TypeVar

import msgspec

from polyolo.client.call import Call
from polyolo.client.compose import delete, each, get, one, post, quoted, tenant_path
from polyolo.comparejob import ExpectedBox
from polyolo.resources import GoldenPicture, Model, Release, Tenant
from polyolo.rollouts import GateReport, RolloutRule

T = TypeVar("T")

_JSON = {"content-type": "application/json"}


def begin_rollout(
    name: str,
    version: int,
    *,
    share: float,
    shadow: bool = False,
    rule: RolloutRule | None = None,
    tenant: str = "me",
) -> Call[Model]:
    """Put a version on trial beside the one in use, or change the share or rule of its trial.

    share: of the requests that name no version, 0 to 1. shadow: it sees copies, and answers
    nobody. rule: when it is promoted or aborted by itself. Raises InvalidValueError,
    ConflictError.
    """
    fields = {"version": version, "share": share, "shadow": shadow, "rule": rule}
    return _put(f"{_model(tenant, name)}/rollout", fields, Model)


def abort_rollout(name: str, *, tenant: str = "me") -> Call[Model]:
    """End a model's rollout; the version in use answers everything again."""
    path = f"{_model(tenant, name)}/rollout"
    return Call(method="DELETE", path=path, read=one(Model), repeatable=True)


def promote_rollout(name: str, *, force: bool = False, tenant: str = "me") -> Call[Model]:
    """Put the version on trial in use. Raises BelowToleranceError as `use_model` does."""
    path = f"{_model(tenant, name)}/rollout/promote"
    return post(path, {"force": force}, one(Model), repeatable=True)


def compare_version(name: str, version: int, *, tenant: str = "me") -> Call[GateReport]:
    """Compare a version with the one in use, as before it is put in use; changes nothing."""
    return get(f"{_model(tenant, name)}/versions/{version}/comparison", one(GateReport))


def delete_version(name: str, version: int, *, tenant: str = "me") -> Call[None]:
    """Delete one version of a model. Raises ConflictError when it is in use or on trial."""
    return delete(f"{_model(tenant, name)}/versions/{version}")


def list_golden(name: str, *, tenant: str = "me") -> Call[list[GoldenPicture]]:
    """Return the pictures that a model's versions are compared on, without the pictures."""
    return get(f"{_model(tenant, name)}/golden", each(GoldenPicture, "golden"))


def put_golden(
    name: str,
    number: int,
    picture: bytes,
    *,
    expected: Sequence[ExpectedBox] | None = None,
    tenant: str = "me",
) -> Call[GoldenPicture]:
    """Keep a picture to compare versions on.

    number: 1 to 100, of a picture that it replaces, or a new one. expected: the boxes that are
    known to be in it; None: what the version in use sees is expected.
    """
    fields: dict[str, Any] = {"picture": base64.b64encode(picture).decode(), "expected": expected}
    return _put(f"{_model(tenant, name)}/golden/{number}", fields, GoldenPicture)


def delete_golden(name: str, number: int, *, tenant: str = "me") -> Call[None]:
    """Delete a golden picture."""
    return delete(f"{_model(tenant, name)}/golden/{number}")


def list_releases() -> Call[list[Release]]:
    """Return the releases of runtimes that there are. Operator only."""
    return get("/api/v1/releases", each(Release, "releases"))


def move_release(release: str, share: float) -> Call[list[Release]]:
    """Have a share of the tenants that are not pinned on a release. Operator only.

    release: empty for the platform's own. share: 1 makes it the platform's, 0 takes all back.
    """
    fields = {"release": release, "share": share}
    return Call(
        method="PUT",
        path="/api/v1/releases",
        headers=_JSON,
        body=msgspec.json.encode(fields),
        read=each(Release, "releases"),
        repeatable=True,
    )


def set_release(tenant: str, release: str | None) -> Call[Tenant]:
    """Put a tenant's runtime on a release; None: it follows the platform again. Operator only."""
    return _put(f"{tenant_path(tenant)}/release", {"release": release}, Tenant)


def _put(path: str, fields: object, kind: type[T]) -> Call[T]:
    return Call(
        method="PUT",
        path=path,
        headers=_JSON,
        body=msgspec.json.encode(fields),
        read=one(kind),
        repeatable=True,
    )


def _model(tenant: str, name: str) -> str:
    return f"{tenant_path(tenant)}/models/{quoted(name)}"
