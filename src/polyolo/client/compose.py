"""How a call is put together: paths that names cannot leave, JSON out, dataclasses back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import msgspec

from polyolo.client.call import Call
from polyolo.errors import InvalidValueError

T = TypeVar("T")

_JSON = {"content-type": "application/json"}


def tenant_path(tenant: str) -> str:
    """Return the path of a tenant."""
    return f"/api/v1/tenants/{quoted(tenant)}"


def quoted(name: str) -> str:
    """Keep a name one path segment, whatever is in it."""
    if not name.strip("."):
        raise InvalidValueError(f"{name!r} is not a name")  # it would be another path
    return quote(name, safe="")


def get(
    path: str, read: Callable[[bytes], T], *, query: tuple[tuple[str, str], ...] = ()
) -> Call[T]:
    """Return a call that reads."""
    return Call(method="GET", path=path, query=query, read=read, repeatable=True)


def post(
    path: str, fields: Mapping[str, Any], read: Callable[[bytes], T], *, repeatable: bool = False
) -> Call[T]:
    """Return a call that makes something, or does; fields that are None are left out."""
    given = {key: value for key, value in fields.items() if value is not None}
    return Call(
        method="POST",
        path=path,
        headers=_JSON,
        body=msgspec.json.encode(given),
        read=read,
        repeatable=repeatable,
    )


def patch(path: str, fields: Mapping[str, Any], read: Callable[[bytes], T]) -> Call[T]:
    """Return a call that changes something."""
    return Call(
        method="PATCH",
        path=path,
        headers=_JSON,
        body=msgspec.json.encode(fields),
        read=read,
        repeatable=True,
    )


def delete(path: str) -> Call[None]:
    """Return a call that deletes something."""
    return Call(method="DELETE", path=path, read=lambda _: None)


def one(kind: type[T]) -> Callable[[bytes], T]:
    """Return what reads one `kind` from JSON."""
    return lambda body: msgspec.json.decode(body, type=kind)


def each(kind: type[T], field: str) -> Callable[[bytes], list[T]]:
    """Return what reads a list of `kind` from the field of that name."""

    def read(body: bytes) -> list[T]:
        fields = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        if field not in fields:
            raise msgspec.ValidationError(f"no field `{field}`")
        return msgspec.json.decode(fields[field], type=list[kind])  # type: ignore[valid-type]

    return read
