"""What release 0.1 knows of a runtime's spec and status, and documents that it wrote.

A copy, never changed: it stands for programs that are out there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


@dataclass(frozen=True, slots=True, kw_only=True)
class DetectionSettings:
    confidence: float = 0.25
    iou: float = 0.45
    classes: tuple[int | str, ...] | None = None
    max_detections: int = 300


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionSpec:
    version: int
    digest: str
    uri: str
    classes: tuple[str, ...] = ()
    family: str | None = None
    engine: str = ""
    precision: str = "exact"
    golden: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    name: str
    current: int
    versions: tuple[VersionSpec, ...]
    settings: DetectionSettings = field(default_factory=DetectionSettings)


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    tenant: str
    generation: int
    default_model: str
    models: tuple[ModelSpec, ...]


class Phase(StrEnum):
    ABSENT = "absent"
    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    STOPPING = "stopping"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelStatus:
    name: str
    version: int
    state: str
    reason: str = ""
    family: str = ""
    input: tuple[int, ...] = ()
    engine: str = ""
    device: str = ""
    precision: str = ""
    speed: str = ""
    quality: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeStatus:
    tenant: str
    phase: Phase
    observed_generation: int = 0
    endpoints: tuple[str, ...] = ()
    models: tuple[ModelStatus, ...] = ()
    reason: str = ""


SPEC = """{"tenant":"t_0123456789","generation":7,"default_model":"city","models":[{"name":"city",
"current":2,"versions":[{"version":1,"digest":"aa","uri":"models/aa.onnx","classes":["cat","dog"],
"family":"yolox","engine":"","precision":"exact","golden":[]},{"version":2,"digest":"bb",
"uri":"models/bb.onnx","classes":["cat","dog"],"family":"yolox","engine":"","precision":"exact",
"golden":[]}],"settings":{"confidence":0.4,"iou":0.45,"classes":["dog"],"max_detections":300}},
{"name":"standard","current":1,"versions":[{"version":1,"digest":"cc","uri":"models/cc.onnx",
"classes":[],"family":null,"engine":"","precision":"exact","golden":[]}],"settings":
{"confidence":0.25,"iou":0.45,"classes":null,"max_detections":300}}]}"""

STATUS = """{"tenant":"t_0123456789","phase":"ready","observed_generation":7,"endpoints":[],
"models":[{"name":"city","version":2,"state":"ready","reason":"","family":"yolox","input":[0,3,416,416],
"engine":"onnxruntime","device":"cpu","precision":"float32","speed":"","quality":""},{"name":"city",
"version":1,"state":"idle","reason":"","family":"","input":[],"engine":"","device":"",
"precision":"","speed":"","quality":""}],"reason":""}"""
