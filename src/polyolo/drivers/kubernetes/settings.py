"""What an operator sets once for all runtimes of a cluster."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec

from polyolo.errors import InvalidValueError

_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,18}[a-z0-9])?")


class Use(StrEnum):
    """Whether to use a part that a cluster may lack."""

    AUTO = "auto"  # where its CustomResourceDefinition is installed
    ON = "on"
    OFF = "off"


class Scaling(StrEnum):
    """Who decides how many replicas there are, between none and the plan's most."""

    CONTROL = "control"  # by what the gateways report; needs nothing else in the cluster
    HPA = "hpa"  # control wakes and puts to sleep, a HorizontalPodAutoscaler does the rest
    KEDA = "keda"  # KEDA, which the gateways push to wake up


class Load(StrEnum):
    """What a HorizontalPodAutoscaler looks at."""

    CPU = "cpu"  # needs metrics-server, which nearly every cluster has
    IN_FLIGHT = "in-flight"  # needs an adapter that serves the runtimes' metrics as Pods metrics


@dataclass(frozen=True, slots=True, kw_only=True)
class Egress:
    """A network that runtimes may reach, for models that a tenant keeps itself."""

    cidr: str
    port: int = 443


@dataclass(frozen=True, slots=True, kw_only=True)
class JobSettings:
    """The pods in which strangers' files are opened, one for each file; see `jobs`."""

    converter_image: str = ""
    """Image with Python 3.11 or newer, as `python3`, and ultralytics (AGPL-3.0), which turns .pt
    files into ONNX. Nothing of polyolo need be in it. Default: .pt files are refused."""
    runtime_class: str = ""
    """RuntimeClass of these pods (gVisor, Kata). Default: that of the runtimes."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes that they may run on. Default: any node."""
    tolerations: tuple[Mapping[str, Any], ...] = ()
    """Taints of nodes that they may run on all the same."""
    start_s: float = 120.0
    """Seconds for a pod to start, its image to be pulled included; then it is tried again."""
    least_cpus: float = 0.25
    """Cores that one is sure of; it may use as many as its work is given, which is 1."""
    least_memory_bytes: int = 512 << 20
    """Memory that one is sure of; what it may use is several GiB, for a file as large as plans
    allow. Default 512 MiB: twice what looking into a YOLOv8x takes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSettings:
    """Everything about a cluster that is not about one tenant. Read from a JSON document."""

    image: str
    """Image of the runtimes; by digest where the supply chain matters."""
    artifacts: str
    """URL below which runtimes fetch model files by digest. By address, not by name: runtimes
    resolve no names."""
    releases: Mapping[str, str] = field(default_factory=dict)
    """Image of each other release that a runtime may be pinned to."""
    pull_policy: str = "IfNotPresent"
    """Default: a node that has the image starts a runtime without asking its registry."""
    platform: str = "polyolo"
    """Name of this platform, 1 to 20 characters: several may share a cluster, and none touches
    what another made."""
    namespace: str = "polyolo"
    """Namespace in which gateways and control run; only from there runtimes are reached."""
    pod_security: str = "v1.31"
    """Version of the Pod Security Standards that is enforced: pinned, so that an upgrade of the
    cluster never refuses a runtime that ran before."""
    runtime_class: str = ""
    """RuntimeClass of the runtimes (gVisor, Kata). Default: the cluster's own."""
    image_volumes: bool = False
    """Whether the cluster mounts images as volumes (ImageVolume: on from Kubernetes 1.35 on, and
    with a container runtime that can). Default: not, an older one refuses the whole pod."""
    user_namespaces: bool = False
    """Whether runtimes get user namespaces of their own. Default: not, older nodes lack them."""
    priority_class: str = ""
    """PriorityClass of the runtimes. Default: the cluster's own."""
    node_selector: Mapping[str, str] = field(default_factory=dict)
    """Labels of the nodes that runtimes may run on. Default: any node."""
    tolerations: tuple[Mapping[str, Any], ...] = ()
    """Taints of nodes that runtimes may run on all the same."""
    gpu_node_selector: Mapping[str, str] = field(default_factory=dict)
    """More labels for runtimes with a GPU."""
    gpu_tolerations: tuple[Mapping[str, Any], ...] = ()
    """More tolerations for runtimes with a GPU."""
    gpu_resource: str = "nvidia.com/gpu"
    """What the device plugin calls a whole GPU."""
    gpu_slices: Mapping[str, str] = field(default_factory=dict)
    """What it calls parts of one, by the part: {"0.5": "nvidia.com/mig-3g.40gb"} (MIG)."""
    least_cpus: float = 0.25
    """Cores that a runtime is sure of when its plan names none."""
    most_cpus: float = 4.0
    """Cores that it may use at most then; YOLO gains little from more for one picture."""
    tmp_bytes: int = 64 << 20
    """Size of /tmp, in memory. Default 64 MiB: what the engine writes there is under 1 MiB."""
    disk_bytes: int = 4 << 30
    """Least disk of a pod for model files and logs, doubled as often as a tenant's files need it.
    Default 4 GiB: 18 models of 200 MB."""
    drain_s: int = 30
    """Seconds that a runtime is given to finish what it has in flight."""
    leave_s: int = 3
    """Seconds between a runtime's leaving the endpoints and its SIGTERM: gateways hear of it
    within one, so no request is sent to one that drains."""
    scaling: Scaling = Scaling.CONTROL
    """Who decides how many replicas there are. Default: control, which knows the requests in
    flight at all gateways and waits for no one's polling."""
    scaler: str = ""
    """Where KEDA asks the gateways, `dns:///host:port` of a headless service."""
    in_flight: float = 4.0
    """Requests in flight for which a replica is there. Default 4: two streams, one picture in
    work and one waiting for each."""
    load: Load = Load.CPU
    """What the HorizontalPodAutoscaler looks at."""
    cpu_percent: int = 70
    """Of the requested CPU, above which it adds a replica."""
    monitors: Use = Use.AUTO
    """Whether runtimes get a PodMonitor and a PrometheusRule."""
    monitoring_namespace: str = ""
    """Namespace whose pods may read the runtimes' metrics. Default: nobody."""
    egress: tuple[Egress, ...] = ()
    """Networks that runtimes may reach besides control. Default: none."""
    jobs: JobSettings | None = None
    """How strangers' files are opened in pods of their own, in a namespace that the operator has
    made (the chart does). Default: in the sandbox of the host that control runs on."""
    answer_s: float = 5.0
    """Seconds that the API server may take for one answer."""

    @property
    def jobs_namespace(self) -> str:
        """Return where those pods run: no tenant's, whose names end in a digest."""
        return f"{self.platform}-jobs"

    def __post_init__(self) -> None:
        if not _LABEL.fullmatch(self.platform):
            raise InvalidValueError(
                "platform has 1 to 20 small letters, digits and hyphens and begins with a letter, "
                f"not {self.platform!r}"
            )
        if self.disk_bytes < 1 << 20:
            raise InvalidValueError(f"disk_bytes is at least a MiB, not {self.disk_bytes}")
        if self.scaling is Scaling.KEDA and not self.scaler:
            raise InvalidValueError(
                "KEDA is to scale the runtimes, but `scaler` does not say where gateways answer it"
            )


def read_settings(path: Path) -> ClusterSettings:
    """Read the document. Raises OSError, and InvalidValueError saying what does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=ClusterSettings)
    except (msgspec.DecodeError, ValueError) as error:
        raise InvalidValueError(f"{path} holds no settings of a cluster: {error}") from None
