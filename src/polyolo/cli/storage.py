"""`polyolo tenants storage`, `polyolo models register`: model files that stay with their tenant."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from polyolo.cli.door import OPERATOR, TENANT, AsOperator, AsTenant, as_operator, as_tenant
from polyolo.cli.output import fields, say, show, show_json
from polyolo.errors import InvalidValueError
from polyolo.resources import Storage

SECRET = "POLYOLO_STORAGE_SECRET"  # noqa: S105  # the variable's name
_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def storage(
    tenant: str,
    /,
    *,
    directory: Path | None = None,
    bucket: str | None = None,
    claim: str | None = None,
    image: str | None = None,
    endpoint: str = "",
    region: str = "",
    access_key_id: str = "",
    remove: _Flag = False,
    door: AsOperator = OPERATOR,
) -> None:
    """Show, grant or remove a storage of the tenant's own, from which its models are read.

    A bucket's secret key is read from POLYOLO_STORAGE_SECRET, else asked for.

    Args:
        tenant: Name or id.
        directory: A directory of the control plane's machine.
        bucket: s3://bucket/prefix.
        claim: On Kubernetes: a PersistentVolumeClaim of the tenant's namespace.
        image: On Kubernetes: an image with the files, as registry.example/acme/models:3.
        endpoint: URL of the bucket's service. [default: Amazon's]
        region: The bucket's region.
        access_key_id: The tenant's own key for the bucket.
        remove: Read it no longer.
    """
    if sum(one is not None for one in (directory, bucket, claim, image)) + remove > 1:
        raise InvalidValueError("name one of --directory, --bucket, --claim, --image and --remove")
    with as_operator(door) as polyolo:
        if remove:
            polyolo.withdraw_storage(tenant)
            show({"removed": tenant}, lambda: f"{tenant} has no storage now.", json=door.json)
            return
        if directory is not None:
            now = polyolo.grant_storage(tenant, directory.absolute().as_uri())
        elif claim is not None or image is not None:
            uri = f"image://{image}" if claim is None else f"pvc://{claim}"
            now = polyolo.grant_storage(tenant, uri)
        elif bucket is not None:
            now = polyolo.grant_storage(
                tenant,
                bucket,
                endpoint=endpoint,
                region=region,
                access_key_id=access_key_id,
                secret_access_key=os.environ.get(SECRET) or getpass.getpass("secret key: "),
            )
        else:
            now = polyolo.get_storage(tenant)
    show(now, lambda: fields(_pairs(now)), json=door.json)


def register(
    name: str,
    path: str,
    /,
    *,
    sha256: str,
    size: int | None = None,
    classes: str | None = None,
    door: AsTenant = TENANT,
) -> None:
    """Make a file of the tenant's own storage the next version of a model.

    The platform reads and checks it, and keeps its name and sha256; other bytes are not served.
    What is in a volume or an image only the runtime reads, when it is to serve it.

    Args:
        name: What the model is called.
        path: The file's path in the storage, as city/v3.onnx.
        sha256: Of the file, 64 hex digits.
        size: Of the file in bytes; needed where it is in a volume or an image.
        classes: A file with one class name a line. [default: the model file's own]
    """
    names = () if classes is None else tuple(Path(classes).read_text().split("\n"))
    given = [line.strip() for line in names if line.strip()]
    client, tenant = as_tenant(door)
    with client as polyolo:
        version = polyolo.register_model(
            name, path, sha256, size=size, classes=given, tenant=tenant
        )
    if door.json:
        show_json(version)
    elif version.family:
        say(f"{name}:{version.version} is there: {version.family}, {len(version.classes)} classes.")
    else:
        say(
            f"{name}:{version.version} is there; its runtime looks into it when it is to serve it: "
            f"`polyolo models show {name}` tells how it fares."
        )


def _pairs(now: Storage) -> list[tuple[str, object]]:
    pairs = [("storage", now.uri), ("endpoint", now.endpoint), ("region", now.region)]
    return [pair for pair in (*pairs, ("key", now.access_key_id)) if pair[1]]
