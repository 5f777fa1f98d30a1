"""The settings of one serving process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a runtime is told at its start; everything else is in its spec document."""

    spec: Path
    """File with the RuntimeSpec to serve, as JSON; its models' uris are relative to its place."""
    ahead: bool = False
    """Start ahead of the spec: the first one that is sent decides whose runtime this is."""
    socket: Path | None = None
    """Unix socket to listen on, with grpc.sock beside it for gRPC; without one, host and port."""
    key: str = field(default="", repr=False)
    """Opens the tenant's sealed model files, in hex (POLYOLO_ARTIFACT_KEY); empty: there are
    none, as on a machine of one's own."""
    settings: Path | None = None
    """File with settings of models, JSON: `{"*": {"confidence": 0.4}, "city": {"iou": 0.6}}`. In
    force over the environment (POLYOLO_CONFIDENCE and the like) and the spec, and within a second
    of a change."""
    host: str = "127.0.0.1"
    """Address to listen on."""
    port: int = 8800
    """TCP port to listen on; gRPC listens on the port behind it."""
    models: Path | None = None
    """Directory for model files that the spec names by URL, as in a cluster; made when missing."""
    storage: Path | None = None
    """Directory where the tenant's own storage is mounted, as in a cluster."""
    token: str = field(default="", repr=False)
    """What control and this runtime know each other by (POLYOLO_RUNTIME_TOKEN); empty: whoever
    reaches its socket may tell it what to serve, as on one machine."""
    stuck_after_s: float = 10.0
    """Seconds on one batch after which a model counts as hung: the batch fails and the model's
    process is started again. Several times what the largest YOLO takes on one slow core."""
