"""Model files in an S3-compatible bucket. The only module that knows obstore."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    PermissionDeniedError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from polyolo import telemetry
from polyolo.control.objects import Entry, full_disk_told
from polyolo.errors import NotReadyError

_RETRY_S = 10.0
"""Seconds that one request to the bucket is tried for; somebody waits for the answer."""
_AT_ONCE = 4  # requests of one large object: 5 MiB each in memory
_READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How a bucket is reached, where not by the environment (AWS_…) of this process."""

    endpoint: str = ""
    """URL of the service; empty: Amazon's."""
    region: str = "us-east-1"
    access_key_id: str
    secret_access_key: str = field(repr=False)


class Bucket:
    """An ObjectStore in a bucket (see `polyolo.control.objects.ObjectStore`)."""

    def __init__(self, url: str, access: Access | None = None) -> None:
        """Use `s3://bucket/prefix`; no request is made yet.

        access: None for what the usual variables say (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
        AWS_REGION, AWS_ENDPOINT_URL …). Raises OSError when they do not say enough.
        """
        options: dict[str, Any] = {}
        if access is not None:
            # Not as settings: those left out would be filled from the platform's own environment.
            credential = {
                "access_key_id": access.access_key_id,
                "secret_access_key": access.secret_access_key,
                "token": None,
                "expires_at": None,
            }
            options["credential_provider"] = lambda: credential
            options["region"] = access.region
            options["endpoint"] = access.endpoint or f"https://s3.{access.region}.amazonaws.com"
        try:
            self._store = S3Store.from_url(
                url,
                client_options={"allow_http": True},  # the operator's endpoint says which it is
                retry_config={"max_retries": 5, "retry_timeout": timedelta(seconds=_RETRY_S)},
                **options,
            )
        except (BaseError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise OSError(f"the bucket {url} cannot be used: {reason}") from None

    def put(self, name: str, pieces: Iterable[bytes], *, replace: bool = True) -> bool:
        """Store an object (see ObjectStore)."""
        with _told():
            if replace:
                obstore.put(self._store, name, pieces, max_concurrency=_AT_ONCE)
                return True
            try:
                obstore.put(self._store, name, b"".join(pieces), mode="create")
            except AlreadyExistsError:
                return False
        return True

    def get(self, name: str) -> Iterator[bytes]:
        """Yield an object in pieces (see ObjectStore)."""
        with _told():
            for piece in obstore.get(self._store, name).stream(min_chunk_size=_READ_BYTES):
                yield bytes(piece)

    def entries(self, prefix: str = "") -> Iterator[Entry]:
        """Yield what is stored below a folder (see ObjectStore)."""
        with _told():
            for found in obstore.list(self._store, prefix or None):
                for one in found:
                    yield Entry(one["path"], one["size"], one["last_modified"].timestamp())

    def delete(self, name: str) -> None:
        """Delete an object (see ObjectStore)."""
        with _told(), suppress(FileNotFoundError):
            obstore.delete(self._store, name)

    def place(self, name: str, target: Path) -> None:
        """Fetch an object (see ObjectStore)."""
        fresh = target.with_suffix(".part")
        try:
            with full_disk_told(), fresh.open("wb") as file:
                for piece in self.get(name):
                    file.write(piece)
            fresh.rename(target)
        finally:
            fresh.unlink(missing_ok=True)


@contextmanager
def _told() -> Iterator[None]:
    """Turn the bucket's failures into ours. What it says may hold its address, so it is logged."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (PermissionDeniedError, UnauthenticatedError) as error:
        raise PermissionError(f"the bucket refuses its key: {_line(error)}") from None
    except BaseError as error:
        telemetry.logger("bucket").warning("a request failed", reason=_line(error))
        raise NotReadyError(
            "the storage of the model files does not answer; try again shortly", retry_after=5.0
        ) from None


def _line(error: Exception) -> str:
    return str(error).partition("\n")[0][:500]
