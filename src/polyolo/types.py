"""The nouns of polyolo: what its processes say to each other and to clients.

Frozen, slotted, keyword-only dataclasses that import nothing but each other. They cross process
borders as JSON (msgspec reads and writes them as they are), so a field is added with a default and
is never renamed or given another meaning. A value out of range is a ValueError at construction,
worded for the person who sent it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from polyolo.rollouts import Rollout as Rollout
from polyolo.rollouts import RolloutStatus as RolloutStatus

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STANDARD = "standard"
"""Name under which every tenant may call the platform's own model."""
MOUNTED = "storage:"  # begins the uri of a file in RuntimeSpec.storage


# --- Detections: what a picture gives ---------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionSettings:
    """What counts as a detection; a model's own settings or one request's.

    Every field may be overridden by a request. Raises ValueError naming field and range.
    """

    confidence: float = 0.25
    """Least confidence of a detection, 0 to 1. Default 0.25, the field's usual threshold."""
    iou: float = 0.45
    """Overlap (intersection over union), 0 to 1, above which NMS keeps only the better box."""
    classes: tuple[int | str, ...] | None = None
    """Only these classes, by id or by name; None means all."""
    max_detections: int = 300
    """At most this many detections a picture, 1 to 1000, the most confident ones."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.confidence <= 1.0:  # also refuses NaN
            raise ValueError(f"confidence must lie between 0 and 1, not {self.confidence}")
        if not 0.0 <= self.iou <= 1.0:
            raise ValueError(f"iou must lie between 0 and 1, not {self.iou}")
        if not 1 <= self.max_detections <= 1000:
            raise ValueError(f"max_detections must be 1 to 1000, not {self.max_detections}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Detections:
    """The boxes of one picture as a struct of arrays, most confident first.

    xyxy: float32 [N,4], pixels of the upright picture, clipped to it.
    confidence: float32 [N], 0 to 1. class_id: int32 [N].
    """

    xyxy: NDArray[np.float32]
    confidence: NDArray[np.float32]
    class_id: NDArray[np.int32]

    def __len__(self) -> int:
        return len(self.confidence)


@dataclass(frozen=True, slots=True, kw_only=True)
class Detection:
    """One box of an answer, as clients see it."""

    class_id: int
    class_name: str
    confidence: float
    bbox: tuple[float, float, float, float]
    """x1, y1, x2, y2 in pixels of the upright picture."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelRef:
    """A model version by name, as in `city:3`."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSize:
    """Size of the upright picture in pixels."""

    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Where the runtime spent a request's time, milliseconds of wall clock."""

    queue: float
    decode: float
    inference: float
    postprocess: float
    total: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectAnswer:
    """The answer of `POST /v1/detect`."""

    request_id: str
    model: ModelRef
    image: ImageSize
    detections: tuple[Detection, ...]
    timing_ms: Timing
    cold_start: bool = False


# --- Runtimes: what one tenant's service unit should be, and is -------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpec:
    """One immutable model version that a runtime may serve."""

    version: int
    digest: str
    """sha256 of the file, 64 hex digits; the runtime refuses other bytes."""
    uri: str
    """A path, absolute or relative to the spec document; or MOUNTED and a path in `storage`."""
    size: int = 0  # bytes of the file; 0: not told
    classes: tuple[str, ...] = ()
    """Class names by id; empty: the file's metadata, else class_0 …."""
    family: str | None = None
    """Head family to decode with; None: recognised from the graph."""
    engine: str = ""
    """onnxruntime, openvino, torch, or auto, which measures; empty: the file's usual one."""
    precision: str = "exact"
    """exact: float32. fast: also lower, once it has found the same boxes in `golden`."""
    golden: tuple[str, ...] = ()  # pictures, read as `uri` is
    input_size: int = 0
    """Side in pixels of the input, where the graph leaves it open; 0: its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """One model of a tenant: its current version, those still callable, its settings."""

    name: str
    current: int
    """The version that answers when a request names none; loaded before the runtime is ready."""
    versions: tuple[VersionSpec, ...]
    """Every callable version; those that are not current load on their first request."""
    settings: DetectionSettings = field(default_factory=DetectionSettings)
    rollout: Rollout | None = None
    fallback: int = 0
    """Version that answers while the current one cannot: it crashes, or does not load. 0: none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What one replica of a runtime may use of its machine, all its processes together."""

    cpus: float = 0.0
    """Cores; 0: whatever is free."""
    memory_bytes: int = 2 << 30
    """A YOLOv8x in float32 with its activations takes about 1.1 GB; a swap holds two versions."""
    processes: int = 128
    """Processes and threads."""
    gpus: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    """Desired state of one tenant's runtime: the document read at boot and pushed on change."""

    tenant: str
    generation: int
    """Grows with every change; the runtime reports the one it has put in force."""
    default_model: str
    """Name of the model that answers when a request names none."""
    models: tuple[ModelSpec, ...]
    replicas: int = 1  # copies of the runtime, 0: asleep
    max_replicas: int = 0
    """Most copies where the place itself adds some by load; up to `replicas`: no more."""
    resources: Resources = field(default_factory=Resources)
    release: str = ""  # of the runtime's program; empty: the platform's own
    storage: str = ""
    """The tenant's own that the runtime mounts: `pvc://CLAIM`, `image://REFERENCE`; empty: none."""


class Phase(StrEnum):
    """Where a runtime stands, as observed."""

    ABSENT = "absent"  # no process, none wanted or not started yet
    ASLEEP = "asleep"  # no process, one is started for the next request
    STARTING = "starting"  # on its way to a first answer: the gateway holds requests
    READY = "ready"
    FAILED = "failed"  # crashed or hung; started again after a back-off: requests get 503
    STOPPING = "stopping"  # draining


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    """How one model version fares inside a runtime."""

    name: str
    version: int
    state: str
    """loading, ready, failed, or idle (callable, loaded on demand)."""
    reason: str = ""
    """Why it failed, for the tenant to read; else empty."""
    family: str = ""
    input: tuple[int, ...] = ()
    """Input shape N,C,H,W (or N,H,W,C), 0 where dynamic."""
    engine: str = ""
    device: str = ""
    precision: str = ""  # what it computes in: float32, bfloat16, float16
    speed: str = ""
    """Pictures a second of each choice, where there was one to make."""
    quality: str = ""
    """How the boxes of faster arithmetic compare with float32's, or why none is used."""
    crashes: int = 0  # times that its process ended by itself since it was loaded
    memory_bytes: int = 0  # what its process keeps for itself
    rollout: RolloutStatus | None = None  # while it is on trial


OUTDATED = -1
"""The generation of a runtime that the platform's program before an upgrade has started: it
serves until another one takes its place."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatus:
    """Observed state of one tenant's runtime."""

    tenant: str
    phase: Phase
    observed_generation: int = 0
    """Generation of the spec in force: loaded, or reported in `models` as failed; or OUTDATED."""
    endpoints: tuple[str, ...] = ()
    """Where to send requests: `unix:/path/to/socket` or `http://host:port`."""
    models: tuple[ModelStatus, ...] = ()
    reason: str = ""
    """Why the phase is not ready, for a person to read; else empty."""
    release: str = ""  # of its program, as in the spec that it was started with
    retry_at: int = 0
    """Unix time of the next start of one that has failed; 0: it is being started."""


# --- The door: what a gateway knows, and what it reports --------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a tenant may use; one value object for quota, rate limit and price.

    A plan gives the defaults, a tenant's own limits replace single fields.
    """

    name: str
    requests_per_second: float = 0.0
    """Of detections, over any longer time; more are answered 429. 0: as many as there are."""
    burst: int = 0
    """Detections that may come at once before the rate counts; 0: one second's worth."""
    max_in_flight: int = 256
    """Requests of the tenant inside the platform at once; more are answered 503 at the door.
    256 keeps a hundred busy connections clear of it, and bounds the memory of held pictures."""
    images_per_month: int = 0
    """Pictures in a calendar month (UTC); more are answered 402. 0: as many as there are."""
    max_models: int = 20
    max_model_bytes: int = 512 * 1024 * 1024
    """Size of one uploaded file; a YOLOv8x in float32 is 261 MB."""
    weight: float = 1.0
    """Share of the machine against other tenants' when there is not enough for all."""
    min_replicas: int = 0
    """0: sleeps when idle."""
    max_replicas: int = 1
    idle_s: float = 900.0
    """Seconds without a request after which the runtime is put to sleep."""
    resources: Resources = field(default_factory=Resources)


class TenantState(StrEnum):
    """What the operator wants of a tenant."""

    ACTIVE = "active"
    SUSPENDED = "suspended"  # keeps its data, answers 403


@dataclass(frozen=True, slots=True, kw_only=True)
class TenantRoute:
    """All that a gateway needs to know of one tenant."""

    tenant: str
    name: str
    state: TenantState
    plan: Plan
    phase: Phase
    endpoints: tuple[str, ...] = ()
    retry_at: int = 0  # as in the runtime's status
    images_used: int = 0  # as control knew then; only where the plan has images_per_month
    month: str = ""  # of images_used, UTC: 2026-01


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyEntry:
    """One API key as a gateway knows it: enough to check it, not enough to use it."""

    id: str
    digest: str
    """sha256 of the whole key, hex."""
    tenant: str
    scopes: tuple[str, ...]
    expires_at: float | None = None
    """Unix seconds; None: never."""
    sources: tuple[str, ...] = ()
    """Networks (CIDR) that it may be used from; empty: from anywhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientEntry:
    """One live OAuth client: its tokens are good for as long as it is in the snapshot."""

    id: str
    tenant: str
    scopes: tuple[str, ...]
    """A token never may more than its client now may, whatever it was issued with."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRules:
    """What makes an access token good; all that is needed to check one without asking."""

    issuer: str
    audience: str
    keys: tuple[dict[str, str], ...] = ()
    """Public keys (JWK, each with a kid), older ones while tokens signed by them may be good."""
    revoked: tuple[str, ...] = ()
    """Ids (jti) of tokens that were revoked before their end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """Everything a gateway needs, immutable, swapped whole."""

    revision: int
    tenants: tuple[TenantRoute, ...]
    keys: tuple[KeyEntry, ...]
    clients: tuple[ClientEntry, ...] = ()
    tokens: TokenRules | None = None
    """None: no access token is good."""
    since: int | None = None
    """None: whole. Else only the tenants changed after this revision, each with all its keys."""
    gone: tuple[str, ...] = ()
    """Tenants that are no more, of those changed."""
    gateways: int = 1  # that ask control at present


@dataclass(frozen=True, slots=True, kw_only=True)
class UsageRecord:
    """One request (or several, refused), once: what is metered and billed. Never what was seen."""

    id: str
    """Unique for ever, given by the gateway: a batch handed over twice counts once."""
    tenant: str
    at: float
    """Unix seconds when the request was closed."""
    status: int
    """HTTP status of the answer; 499 when the client hung up."""
    model: str = ""
    version: int = 0
    images: int = 0
    """Pictures that went through the model."""
    engine_ms: float = 0.0
    bytes_in: int = 0
    cold_start: bool = False
    principal: str = ""
    """Who asked: `key:<id>`, or `token:<id of the client>`."""
    source: str = ""
    """Address that it came from, as far as it is believed."""
    requests: int = 1
    """How many it stands for: what is refused at the door is summed up by the second."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who is asking. The tenant comes from here and from nothing else."""

    kind: str
    """operator, user, key, token (an OAuth client, by its id) or gateway."""
    id: str
    tenant: str | None = None
    """The tenant's id; None for the operator and for a gateway."""
    scopes: tuple[str, ...] = ()
