"""A tenant's models as the control API shows them."""

from __future__ import annotations

from dataclasses import dataclass

from polyolo.rollouts import RolloutRecord
from polyolo.types import DetectionSettings

ENGINES = ("", "auto", "onnxruntime", "openvino", "torch")
PRECISIONS = ("exact", "fast")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """An immutable, numbered version of a model, content-addressed by sha256."""

    version: int
    digest: str
    size: int
    """Bytes."""
    family: str
    classes: tuple[str, ...]
    input: tuple[int, ...]
    created_at: float
    created_by: str
    licence: str = ""
    """What the file says of its licence, as `producer` and `opset`; empty if it does not."""
    producer: str = ""
    """The program that wrote it."""
    opset: int = 0
    """Version of the ONNX operators; 0 where it has none."""
    uri: str = ""
    """Where its owner keeps it; empty: the platform does."""
    taken_out: str = ""
    """Why the platform took it out of use, if it did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSettings(DetectionSettings):
    """How a model is served: what counts as a detection, and what computes it.

    Raises ValueError naming field and range.
    """

    input_size: int = 0
    """Side in pixels of the input, 32 to 4096 in steps of 32, for models that leave it open; 0:
    the file's own."""
    engine: str = ""
    """onnxruntime, openvino, torch, or auto, which measures; empty: the file's usual one."""
    precision: str = "exact"
    """exact: float32. fast: also lower, where it finds the same boxes in the golden pictures."""
    tolerance: float | None = None
    """Least agreement, 0 to 1, of a version that is put in use; see GateReport. None: 0.9 on
    golden pictures of one's own, and none on the platform's."""

    def __post_init__(self) -> None:
        DetectionSettings.__post_init__(self)
        if self.input_size and (not 32 <= self.input_size <= 4096 or self.input_size % 32):
            raise ValueError(
                f"input_size must be 32 to 4096 in steps of 32, or 0, not {self.input_size}"
            )
        if self.engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES[1:])}, or empty")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be exact or fast, not {self.precision[:40]!r}")
        if self.tolerance is not None and not 0.0 <= self.tolerance <= 1.0:
            raise ValueError(f"tolerance must lie between 0 and 1, not {self.tolerance}")


@dataclass(frozen=True, slots=True, kw_only=True)
class GoldenPicture:
    """A picture that a model's versions are compared on; it is never shown again."""

    number: int
    size: int
    """Bytes."""
    expected: int | None
    """How many boxes are known to be there; None: what the version in use sees is expected."""
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Release:
    """A release of the runtimes' program that this platform can start."""

    name: str
    """Empty: the platform's own."""
    tenants: int
    """Tenants that are on it."""
    pinned: int
    """Of these, those that were put on it one by one."""
    default: bool
    """Whether tenants are on it that were not moved."""
    share: float = 0.0
    """Share of the others, 0 to 1, that is being moved to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where a tenant keeps model files of its own; the secret is never told."""

    uri: str
    endpoint: str = ""
    region: str = ""
    access_key_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """A model file on its way in."""

    id: str
    model: str
    state: str
    """receiving, received, checking, then ready (it is a version) or refused (see `reason`)."""
    size: int | None
    """Bytes; None where they were not told."""
    sha256: str
    """Of the file, as its owner told; empty if not told."""
    classes: tuple[str, ...]
    created_at: float
    created_by: str
    expires_at: float
    """Unix seconds when it is forgotten, if nothing happens before."""
    received: int = 0
    """Bytes that have come, while it is receiving."""
    version: int | None = None
    """Number of the version that it has become."""
    uri: str = ""
    """Where the file is in the tenant's own storage; empty: it is sent."""
    code: str = ""
    """Of the error that it was refused with."""
    reason: str = ""
    """Why it was refused, and what to do next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A named model of a tenant."""

    name: str
    current: int
    default: bool
    """True for the model that answers when a request names none."""
    settings: ModelSettings
    versions: tuple[ModelVersion, ...]
    state: str = ""
    """How the current version fares in the runtime: ModelStatus.state, or empty if unknown."""
    reason: str = ""
    rollout: RolloutRecord | None = None
    """The last one, running or not."""
    rolled_back_from: int | None = None
    """The version that was left by going back to the current one."""
