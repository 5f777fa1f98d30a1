"""Operations on a tenant's data as a whole: exported, erased."""

from __future__ import annotations

import os
from pathlib import Path

from polyolo.client.call import Call
from polyolo.client.compose import each, get, one, post, quoted, tenant_path
from polyolo.resources import Erasure


def export_tenant(file: str | os.PathLike[str], *, tenant: str = "me") -> Call[Path]:
    """Write everything about a tenant into a zip archive, and return its path.

    The file is there whole or not at all. For the operator; owners do it in the console.
    """
    target = Path(file)
    return Call(
        method="GET",
        path=f"{tenant_path(tenant)}/export",
        read=lambda _: target,
        into=target,
        repeatable=True,
    )


def erase_tenant(tenant: str, *, confirm: str) -> Call[Erasure]:
    """Have a tenant erased with everything but what has to be kept. There is no way back.

    confirm: its name; its id if it was deleted before. The answer's `id` leads to the certificate
    (see get_erasure). Doing it again returns the same erasure.
    """
    fields = {"confirm": confirm}
    return post(f"{tenant_path(tenant)}/erasure", fields, one(Erasure), repeatable=True)


def get_erasure(erasure: str) -> Call[Erasure]:
    """Return an erasure by its id, with its certificate once it is done."""
    return get(f"/api/v1/erasures/{quoted(erasure)}", one(Erasure))


def list_erasures() -> Call[list[Erasure]]:
    """Return all erasures, oldest first. Operator only."""
    return get("/api/v1/erasures", each(Erasure, "erasures"))
