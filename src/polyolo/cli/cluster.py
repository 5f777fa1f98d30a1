"""What `up` and `control` are told about a Kubernetes cluster."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from polyolo.drivers.kubernetes.settings import read_settings
from polyolo.errors import InvalidValueError


def in_cluster(driver: str, document: Path | None) -> dict[str, Any]:
    """Return the settings of a control plane whose runtimes live where `driver` says.

    document: what is known of the cluster, JSON. Model files are handed out on the port that its
    `artifacts` names. Raises InvalidValueError, OSError.
    """
    if driver == "process":
        if document is not None:
            raise InvalidValueError("--cluster is for --driver kubernetes")
        return {}
    if document is None:
        raise InvalidValueError(
            "--driver kubernetes needs --cluster, a file that says what the cluster is like; "
            "docs/operations.md shows one"
        )
    cluster = read_settings(document)
    cluster = replace(cluster, artifacts=_by_address(cluster.artifacts))
    return {"cluster": cluster, "hand_out": ("", urlsplit(cluster.artifacts).port or 80)}


def _by_address(url: str) -> str:
    """Return a URL with what the environment says in the place of $NAME, its host: Kubernetes
    tells a service's address only there."""

    def said(found: re.Match[str]) -> str:
        value = os.environ.get(found[1], "")
        if not value:
            raise InvalidValueError(
                f"`artifacts` names {found[0]}, which is not set; is its service there?"
            )
        return f"[{value}]" if ":" in value else value

    return re.sub(r"\$([A-Z0-9_]+)", said, url)
