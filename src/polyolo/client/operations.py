"""Every operation of the service, defined once: from arguments to a `Call`.

Pure functions (an open file handed in is read, nothing else happens); the two clients send what
they return. `tenant` is an id or a name, or `me`, the tenant that the key belongs to; only the
operator may name another one.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Literal, TypeVar

from polyolo.client.call import Call, File
from polyolo.client.compose import delete, each, get, one, patch, post, quoted, tenant_path
from polyolo.resources import (
    Model,
    ModelSettings,
    ModelVersion,
    Tenant,
    Usage,
)
from polyolo.types import DetectAnswer, RuntimeStatus, TenantState

T = TypeVar("T")

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
    return _detection(image, query, "application/json", one(DetectAnswer))


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
    return post("/api/v1/tenants", {"name": name, "plan": plan}, one(Tenant))


def list_tenants() -> Call[list[Tenant]]:
    """Return all tenants. Operator only."""
    return get("/api/v1/tenants", each(Tenant, "tenants"))


def get_tenant(tenant: str = "me") -> Call[Tenant]:
    """Return a tenant with the state of its runtime."""
    return get(tenant_path(tenant), one(Tenant))


def suspend_tenant(tenant: str) -> Call[Tenant]:
    """Close the door to a tenant (403); it keeps its data. Operator only."""
    return patch(tenant_path(tenant), {"state": TenantState.SUSPENDED}, one(Tenant))


def resume_tenant(tenant: str) -> Call[Tenant]:
    """Open the door to a suspended tenant again. Operator only."""
    return patch(tenant_path(tenant), {"state": TenantState.ACTIVE}, one(Tenant))


def delete_tenant(tenant: str) -> Call[None]:
    """Delete a tenant with its keys and models. Operator only."""
    return delete(tenant_path(tenant))


def render_tenant(tenant: str) -> Call[dict[str, Any]]:
    """Return every Kubernetes object of a tenant as a `List`, its keys hidden. For the operator.

    Raises NotFoundError, and ConflictError when the platform's runtimes are no pods.
    """
    return get(f"{tenant_path(tenant)}/manifests", read=one(dict[str, Any]))


# --- Models -----------------------------------------------------------------------------------


def list_models(tenant: str = "me") -> Call[list[Model]]:
    """Return the models that a tenant may call, the platform's `standard` one included."""
    return get(f"{tenant_path(tenant)}/models", each(Model, "models"))


def get_model(name: str, *, tenant: str = "me") -> Call[Model]:
    """Return a model with its versions and settings."""
    return get(_model_path(tenant, name), one(Model))


def get_version(name: str, version: int, *, tenant: str = "me") -> Call[ModelVersion]:
    """Return one version of a model."""
    return get(f"{_model_path(tenant, name)}/versions/{version}", one(ModelVersion))


def use_model(name: str, version: int, *, force: bool = False, tenant: str = "me") -> Call[Model]:
    """Have a version answer from now on; the change is in force when this returns.

    It is compared with the one in use before. Raises BelowToleranceError with the comparison in
    its `extensions` when it is not good enough; force: put it in use all the same.
    """
    fields = {"version": version, "force": force or None}
    return post(f"{_model_path(tenant, name)}/use", fields, one(Model), repeatable=True)


def rollback_model(name: str, *, tenant: str = "me") -> Call[Model]:
    """Return to the last good version; does nothing when that was done already."""
    return post(f"{_model_path(tenant, name)}/rollback", {}, one(Model), repeatable=True)


def delete_model(name: str, *, tenant: str = "me") -> Call[None]:
    """Delete a model with all its versions."""
    return delete(_model_path(tenant, name))


def get_settings(name: str, *, tenant: str = "me") -> Call[ModelSettings]:
    """Return how a model is served where a request does not say."""
    return get(f"{_model_path(tenant, name)}/settings", one(ModelSettings))


def change_settings(
    name: str,
    *,
    confidence: float | None = None,
    iou: float | None = None,
    classes: Sequence[int | str] | None = None,
    max_detections: int | None = None,
    input_size: int | None = None,
    engine: str | None = None,
    precision: str | None = None,
    tolerance: float | None = None,
    tenant: str = "me",
) -> Call[ModelSettings]:
    """Change a model's settings; None leaves one as it is, no classes (`()`) means all again.

    input_size, engine and precision take effect by opening the model anew; see ModelSettings.
    """
    fields: dict[str, Any] = {
        "confidence": confidence,
        "iou": iou,
        "max_detections": max_detections,
        "input_size": input_size,
        "engine": engine,
        "precision": precision,
        "tolerance": tolerance,
    }
    given = {key: value for key, value in fields.items() if value is not None}
    if classes is not None:
        given["classes"] = list(classes) or None
    return patch(f"{_model_path(tenant, name)}/settings", given, one(ModelSettings))


# --- Runtime and usage ------------------------------------------------------------------------


def get_runtime(tenant: str = "me") -> Call[RuntimeStatus]:
    """Return how a tenant's runtime and its models fare."""
    return get(f"{tenant_path(tenant)}/runtime", one(RuntimeStatus))


def usage(
    *, since: float | None = None, until: float | None = None, tenant: str = "me"
) -> Call[Usage]:
    """Return what a tenant used. since, until: unix seconds; None: the server's default."""
    return get(f"{tenant_path(tenant)}/usage", one(Usage), query=_period(since, until))


def list_usage(*, since: float | None = None, until: float | None = None) -> Call[list[Usage]]:
    """Return what every tenant used. Operator only."""
    return get("/api/v1/usage", each(Usage, "usage"), query=_period(since, until))


# --- How a call is put together ---------------------------------------------------------------


def _model_path(tenant: str, name: str) -> str:
    return f"{tenant_path(tenant)}/models/{quoted(name)}"


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
