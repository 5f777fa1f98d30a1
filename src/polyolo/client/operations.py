"""Every operation of the service, defined once: from arguments to a `Call`.

Pure functions (an open file handed in is read, nothing else happens); the two clients send what
they return. `tenant` is an id or a name, or `me`, the tenant that the key belongs to; only the
operator may name another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar
from urllib.parse import quote

import msgspec

from polyolo.client.call import Call, File, Progress
from polyolo.errors import InvalidValueError
from polyolo.types import (
    ApiKey,
    DetectAnswer,
    DetectionSettings,
    Model,
    ModelVersion,
    RuntimeStatus,
    Tenant,
    TenantState,
    Usage,
)

T = TypeVar("T")

_JSON = {"content-type": "application/json"}

Image = bytes | str | os.PathLike[str] | BinaryIO
"""An encoded picture (JPEG, PNG, WebP, BMP): its bytes, its path, or an open binary file."""


# --- Detections -------------------------------------------------------------------------------


def detect(
    image: Image,
    *,
    model: str | None = None,
    confidence: float | None = None,
    iou: float | None = None,
    classes: Sequence[int | str] | None = None,
    max_detections: int | None = None,
) -> Call[DetectAnswer]:
    """Detect objects in a picture; what is left out, the model's settings decide.

    model: `name` or `name:version`; None: the tenant's default model.
    confidence, iou: 0 to 1. classes: only these, by id or name. max_detections: 1 to 1000.
    Raises NotFoundError (no such model), UnsupportedImageError, UndecodableImageError,
    InvalidValueError, TooLargeError; OverloadedError and NotReadyError after some tries.
    """
    query = _detect_query(model, confidence, iou, classes, max_detections)
    return _detection(image, query, "application/json", _a(DetectAnswer))


def detect_annotated(
    image: Image,
    *,
    model: str | None = None,
    confidence: float | None = None,
    iou: float | None = None,
    classes: Sequence[int | str] | None = None,
    max_detections: int | None = None,
    format: Literal["jpeg", "png"] = "jpeg",  # noqa: A002 - the word that imaging libraries use
) -> Call[bytes]:
    """Return the picture with its detections drawn in, as JPEG or PNG; else like `detect`."""
    query = _detect_query(model, confidence, iou, classes, max_detections)
    return _detection(image, query, f"image/{format}", bytes)


# --- Tenants (operator) -----------------------------------------------------------------------


def create_tenant(name: str, *, plan: str | None = None) -> Call[Tenant]:
    """Create a tenant; its first API key is in the answer, this once. Operator only."""
    return _post("/api/v1/tenants", {"name": name, "plan": plan}, _a(Tenant))


def list_tenants() -> Call[list[Tenant]]:
    """Return all tenants. Operator only."""
    return _get("/api/v1/tenants", _each(Tenant, "tenants"))


def get_tenant(tenant: str = "me") -> Call[Tenant]:
    """Return a tenant with the state of its runtime."""
    return _get(_tenant_path(tenant), _a(Tenant))


def suspend_tenant(tenant: str) -> Call[Tenant]:
    """Close the door to a tenant (403); it keeps its data. Operator only."""
    return _patch(_tenant_path(tenant), {"state": TenantState.SUSPENDED}, _a(Tenant))


def resume_tenant(tenant: str) -> Call[Tenant]:
    """Open the door to a suspended tenant again. Operator only."""
    return _patch(_tenant_path(tenant), {"state": TenantState.ACTIVE}, _a(Tenant))


def delete_tenant(tenant: str) -> Call[None]:
    """Delete a tenant with its keys and models. Operator only."""
    return _delete(_tenant_path(tenant))


# --- Keys -------------------------------------------------------------------------------------


def create_key(
    *,
    name: str | None = None,
    scopes: Sequence[str] = (),
    expires_in: str | int | None = None,
    tenant: str = "me",
) -> Call[ApiKey]:
    """Create an API key; the key itself is in the answer, this once.

    scopes: what it may do; none given: all. expires_in: `90d`, `12h` or seconds; None: never.
    """
    fields = {"name": name, "scopes": list(scopes) or None, "expires_in": expires_in}
    return _post(f"{_tenant_path(tenant)}/keys", fields, _a(ApiKey))


def list_keys(tenant: str = "me") -> Call[list[ApiKey]]:
    """Return a tenant's keys, without what makes them usable."""
    return _get(f"{_tenant_path(tenant)}/keys", _each(ApiKey, "keys"))


def rotate_key(key_id: str, *, tenant: str = "me") -> Call[ApiKey]:
    """Replace a key by a new one with the same rights; the new key is in the answer, this once."""
    return _post(f"{_tenant_path(tenant)}/keys/{_quoted(key_id)}/rotate", {}, _a(ApiKey))


def revoke_key(key_id: str, *, tenant: str = "me") -> Call[None]:
    """Revoke a key: requests that carry it are answered 401 from now on."""
    return _delete(f"{_tenant_path(tenant)}/keys/{_quoted(key_id)}")


# --- Models -----------------------------------------------------------------------------------


def push_model(
    name: str,
    file: str | os.PathLike[str],
    *,
    classes: Sequence[str] = (),
    tenant: str = "me",
    progress: Progress | None = None,
) -> Call[ModelVersion]:
    """Upload a model file as the next version of `name`.

    classes: class names by id, for a file that carries none. progress: told of (bytes sent,
    bytes in all); the async client calls it from a thread. The first model that a tenant pushes
    becomes its default; later versions answer once `use_model` says so.
    Raises ModelRefusedError when the file cannot be served, with the reason.
    """
    return Call(
        method="POST",
        path=f"{_model_path(tenant, name)}/versions",
        query=tuple(("classes", label) for label in classes),
        headers={"content-type": "application/octet-stream"},
        body=File(Path(file), progress),
        read=_a(ModelVersion),
    )


def list_models(tenant: str = "me") -> Call[list[Model]]:
    """Return the models that a tenant may call, the platform's `standard` one included."""
    return _get(f"{_tenant_path(tenant)}/models", _each(Model, "models"))


def get_model(name: str, *, tenant: str = "me") -> Call[Model]:
    """Return a model with its versions and settings."""
    return _get(_model_path(tenant, name), _a(Model))


def get_version(name: str, version: int, *, tenant: str = "me") -> Call[ModelVersion]:
    """Return one version of a model."""
    return _get(f"{_model_path(tenant, name)}/versions/{version}", _a(ModelVersion))


def use_model(name: str, version: int, *, tenant: str = "me") -> Call[Model]:
    """Have a version answer from now on; the change is in force when this returns."""
    return _post(
        f"{_model_path(tenant, name)}/use", {"version": version}, _a(Model), repeatable=True
    )


def rollback_model(name: str, *, tenant: str = "me") -> Call[Model]:
    """Return to the version that answered before the current one."""
    return _post(f"{_model_path(tenant, name)}/rollback", {}, _a(Model))


def delete_model(name: str, *, tenant: str = "me") -> Call[None]:
    """Delete a model with all its versions."""
    return _delete(_model_path(tenant, name))


def get_settings(name: str, *, tenant: str = "me") -> Call[DetectionSettings]:
    """Return what counts as a detection where a request does not say."""
    return _get(f"{_model_path(tenant, name)}/settings", _a(DetectionSettings))


def change_settings(
    name: str,
    *,
    confidence: float | None = None,
    iou: float | None = None,
    classes: Sequence[int | str] | None = None,
    max_detections: int | None = None,
    tenant: str = "me",
) -> Call[DetectionSettings]:
    """Change a model's settings; None leaves one as it is, no classes (`()`) means all again."""
    fields: dict[str, Any] = {
        "confidence": confidence,
        "iou": iou,
        "max_detections": max_detections,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    if classes is not None:
        given["classes"] = list(classes) or None
    return _patch(f"{_model_path(tenant, name)}/settings", given, _a(DetectionSettings))


# --- Runtime and usage ------------------------------------------------------------------------


def get_runtime(tenant: str = "me") -> Call[RuntimeStatus]:
    """Return how a tenant's runtime and its models fare."""
    return _get(f"{_tenant_path(tenant)}/runtime", _a(RuntimeStatus))


def usage(
    *, since: float | None = None, until: float | None = None, tenant: str = "me"
) -> Call[Usage]:
    """Return what a tenant used. since, until: unix seconds; None: the server's default."""
    return _get(f"{_tenant_path(tenant)}/usage", _a(Usage), query=_period(since, until))


def list_usage(*, since: float | None = None, until: float | None = None) -> Call[list[Usage]]:
    """Return what every tenant used. Operator only."""
    return _get("/api/v1/usage", _each(Usage, "usage"), query=_period(since, until))


# --- How a call is put together ---------------------------------------------------------------


def _tenant_path(tenant: str) -> str:
    return f"/api/v1/tenants/{_quoted(tenant)}"


def _model_path(tenant: str, name: str) -> str:
    return f"{_tenant_path(tenant)}/models/{_quoted(name)}"


def _quoted(name: str) -> str:
    """Keep a name one path segment, whatever is in it."""
    if not name.strip("."):
        raise InvalidValueError(f"{name!r} is not a name")  # it would be another path
    return quote(name, safe="")


def _detect_query(
    model: str | None,
    confidence: float | None,
    iou: float | None,
    classes: Sequence[int | str] | None,
    max_detections: int | None,
) -> tuple[tuple[str, str], ...]:
    values = {
        "model": model,
        "confidence": confidence,
        "iou": iou,
        "classes": None if classes is None else ",".join(map(str, classes)),
        "max_detections": max_detections,
    }
    return tuple((name, str(value)) for name, value in values.items() if value is not None)


def _period(since: float | None, until: float | None) -> tuple[tuple[str, str], ...]:
    values = {"since": since, "until": until}
    return tuple((name, str(value)) for name, value in values.items() if value is not None)


def _image_body(image: Image) -> bytes | File:
    if isinstance(image, bytes | bytearray | memoryview):
        return bytes(image)
    if isinstance(image, str | os.PathLike):
        return File(Path(image))
    return image.read()


def _detection(
    image: Image, query: tuple[tuple[str, str], ...], accept: str, read: Callable[[bytes], T]
) -> Call[T]:
    return Call(
        method="POST",
        path="/v1/detect",
        query=query,
        headers={"content-type": "application/octet-stream", "accept": accept},
        body=_image_body(image),
        read=read,
        repeatable=True,  # the same picture gives the same boxes, however often
    )


def _get(
    path: str, read: Callable[[bytes], T], *, query: tuple[tuple[str, str], ...] = ()
) -> Call[T]:
    return Call(method="GET", path=path, query=query, read=read, repeatable=True)


def _post(
    path: str, fields: Mapping[str, Any], read: Callable[[bytes], T], *, repeatable: bool = False
) -> Call[T]:
    given = {key: value for key, value in fields.items() if value is not None}
    return Call(
        method="POST",
        path=path,
        headers=_JSON,
        body=msgspec.json.encode(given),
        read=read,
        repeatable=repeatable,
    )


def _patch(path: str, fields: Mapping[str, Any], read: Callable[[bytes], T]) -> Call[T]:
    return Call(
        method="PATCH",
        path=path,
        headers=_JSON,
        body=msgspec.json.encode(fields),
        read=read,
        repeatable=True,
    )


def _delete(path: str) -> Call[None]:
    return Call(method="DELETE", path=path, read=lambda _: None)


def _a(kind: type[T]) -> Callable[[bytes], T]:
    """Return what reads one `kind` from JSON."""
    return lambda body: msgspec.json.decode(body, type=kind)


def _each(kind: type[T], field: str) -> Callable[[bytes], list[T]]:
    """Return what reads a list of `kind` from the field of that name."""

    def read(body: bytes) -> list[T]:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if field not in fields:
            raise msgspec.ValidationError(f"no field `{field}`")
        return msgspec.json.decode(fields[field], type=list[kind])  # type: ignore[valid-type]

    return read
