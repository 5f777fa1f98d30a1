"""Talks to a cluster's API server: the only module that knows lightkube.

Calls are tried again for as long as that is harmless and short; whatever else goes wrong is an
OSError. Any thread may call.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2
import msgspec
from lightkube import Client
from lightkube.config.client_adapter import verify_cluster
from lightkube.config.kubeconfig import KubeConfig, SingleConfig
from lightkube.config.models import User
from lightkube.core.exceptions import ApiError, ConfigError
from lightkube.generic_resource import (
    GenericGlobalResource,
    GenericNamespacedResource,
    create_api_info,
)
from lightkube.types import CascadeType, PatchType

from polyolo.drivers.kubernetes.naming import Object

T = TypeVar("T")

TRIES = 4
"""Of one call: the first fault of a server that restarts or sheds load is rarely the last."""
_PAUSE_S = 0.05  # before the second try; doubles, with jitter
_LONGEST_PAUSE_S = 1.0  # also where the server asks for more: the caller comes again
_PASSING = (429, 500, 502, 503, 504)
_PAGE = 500  # objects of one page of a list, as kubectl asks for
_WATCH_S = 290  # after which the server ends a watch, and we begin the next
_QUOTED = 200  # characters of a server's message that are passed on

_BROKEN = (RuntimeError, ValueError, KeyError, msgspec.MsgspecError)
"""What else the library raises: its client is closed, or what came is no answer of Kubernetes."""
_ALIVE = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 15),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
)
"""A watch waits for ever; a peer that is gone without a word is found out within 30 s."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """A kind of object, and how its collection is called."""

    api_version: str
    kind: str
    plural: str
    namespaced: bool = True


NAMESPACE = Kind(api_version="v1", kind="Namespace", plural="namespaces", namespaced=False)
POD = Kind(api_version="v1", kind="Pod", plural="pods")
QUOTA = Kind(api_version="v1", kind="ResourceQuota", plural="resourcequotas")
SECRET = Kind(api_version="v1", kind="Secret", plural="secrets")
JOB = Kind(api_version="batch/v1", kind="Job", plural="jobs")
DEPLOYMENT = Kind(api_version="apps/v1", kind="Deployment", plural="deployments")
CONFIG_MAP = Kind(api_version="v1", kind="ConfigMap", plural="configmaps")
AUTOSCALER = Kind(
    api_version="autoscaling/v2",
    kind="HorizontalPodAutoscaler",
    plural="horizontalpodautoscalers",
)
SCALED_OBJECT = Kind(api_version="keda.sh/v1alpha1", kind="ScaledObject", plural="scaledobjects")
POD_MONITOR = Kind(api_version="monitoring.coreos.com/v1", kind="PodMonitor", plural="podmonitors")
RULE = Kind(api_version="monitoring.coreos.com/v1", kind="PrometheusRule", plural="prometheusrules")
WATCHED = (
    NAMESPACE,
    QUOTA,
    Kind(api_version="v1", kind="LimitRange", plural="limitranges"),
    Kind(api_version="networking.k8s.io/v1", kind="NetworkPolicy", plural="networkpolicies"),
    Kind(api_version="v1", kind="ServiceAccount", plural="serviceaccounts"),
    CONFIG_MAP,
    Kind(api_version="v1", kind="Service", plural="services"),
    Kind(api_version="policy/v1", kind="PodDisruptionBudget", plural="poddisruptionbudgets"),
    DEPLOYMENT,
    AUTOSCALER,
    POD,
)
"""What is known of without asking. Not Secrets: who may watch them may read the whole cluster's."""
OPTIONAL = (SCALED_OBJECT, POD_MONITOR, RULE)
"""Watched where the cluster knows them."""

BY_NAME = {one.kind: one for one in (*WATCHED, SECRET, JOB, *OPTIONAL)}


class ClusterError(OSError):
    """What the API server refused, or that it did not answer. status: HTTP's, 0 without one."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Transport(httpx2.HTTPTransport):
    """Remembers each thread's last answer: the library leaves those of watches open when they
    break off, and a connection with them."""

    def __init__(self, **options: Any) -> None:
        super().__init__(socket_options=_ALIVE, **options)
        self._own = threading.local()

    def handle_request(self, request: httpx2.Request) -> httpx2.Response:
        """Return the answer to a request."""
        self._own.last = super().handle_request(request)
        answer: httpx2.Response = self._own.last
        return answer

    def let_go(self) -> None:
        """Close this thread's last answer."""
        last = getattr(self._own, "last", None)
        if last is not None:
            with suppress(Exception):  # closed with the client, most likely
                last.stream.close()


class Cluster:
    """Connections to one API server, until `close`."""

    def __init__(self, config: SingleConfig, *, answer_s: float, selector: str) -> None:
        """Prepare; nothing is sent. answer_s: seconds for one answer. selector: labels of what
        lists and watches are about. Raises OSError for credentials that cannot be read."""
        self._selector = _pairs(selector)
        self._classes: dict[Kind, Any] = {}
        try:
            assert config.user is not None
            tls = verify_cluster(config.cluster, config.user, config.abs_file)
            limits = httpx2.Limits(max_connections=100, max_keepalive_connections=50)
            self._transport = _Transport(verify=tls, limits=limits)
            self._client = Client(
                config, timeout=httpx2.Timeout(answer_s), transport=self._transport
            )
        except (ConfigError, OSError) as error:
            raise ClusterError(0, f"the cluster's credentials cannot be used: {error}") from None

    def close(self) -> None:
        """End all connections, watches too."""
        with suppress(Exception):  # threads may be in the middle of a call
            self._client.close()

    def get(self, kind: Kind, namespace: str | None, name: str) -> Object | None:
        """Return an object, None when there is none."""
        try:
            found = _tried(
                lambda: self._client.get(self._class(kind), name, **_in(kind, namespace))
            )
        except ClusterError as error:
            if error.status == 404:
                return None
            raise
        return dict(found)

    def list(
        self, kind: Kind, namespace: str = "*", selector: str = ""
    ) -> tuple[list[Object], str]:
        """Return all objects of a kind that carry the labels, and the version of that moment.

        selector: other labels than all that this is about.
        """
        labels = _pairs(selector) or self._selector

        def ask() -> tuple[list[Object], str]:
            answer = self._client.list(
                self._class(kind), chunk_size=_PAGE, labels=labels, **_in(kind, namespace)
            )
            return [dict(one) for one in answer], answer.resourceVersion

        return _tried(ask)

    def watch(self, kind: Kind, version: str) -> Iterator[tuple[str, Object]]:
        """Yield what happens to these objects after `version`: ADDED, MODIFIED or DELETED, and
        the object. Ends with ClusterError; 410: the version is too old, list again."""
        try:
            for event, found in self._client.watch(
                self._class(kind),
                labels=self._selector,
                resource_version=version,
                server_timeout=_WATCH_S,
                **_in(kind, "*"),
            ):
                yield event, dict(found)
        except httpx2.HTTPError as error:
            raise _translated(error) from None
        except (*_BROKEN, OSError) as error:
            raise ClusterError(0, f"the watch broke off: {error}") from None
        finally:
            self._transport.let_go()

    def create(self, made: Object, manager: str) -> bool:
        """Create an object; say whether it was not there before."""
        try:
            _tried(lambda: self._client.create(self._object(made), field_manager=manager))
        except ClusterError as error:
            if error.status == 409:
                return False
            raise
        return True

    def apply(self, made: Object, manager: str) -> Object:
        """Make an object's fields so (server-side apply), whoever else may have set them."""
        metadata = made["metadata"]
        kind = BY_NAME[made["kind"]]
        return dict(
            _tried(
                lambda: self._client.patch(
                    self._class(kind),
                    metadata["name"],
                    dict(made),
                    patch_type=PatchType.APPLY,
                    field_manager=manager,
                    force=True,
                    **_in(kind, metadata.get("namespace")),
                ),
                conflicts=True,
            )
        )

    def replace(self, made: Object, manager: str) -> Object:
        """Put an object in the place of the same version of it."""
        return dict(_tried(lambda: self._client.replace(self._object(made), field_manager=manager)))

    def delete(
        self, kind: Kind, namespace: str | None, name: str, *, grace_s: int | None = None
    ) -> None:
        """Have an object deleted with all that belongs to it; nothing for one that is not there."""
        try:
            _tried(
                lambda: self._client.delete(
                    self._class(kind),
                    name,
                    grace_period=grace_s,
                    cascade=CascadeType.BACKGROUND,
                    **_in(kind, namespace),
                )
            )
        except ClusterError as error:
            if error.status != 404:
                raise

    def knows(self, kind: Kind) -> bool:
        """Say whether the cluster has such objects at all."""
        try:
            self.list(kind)
        except ClusterError as error:
            if error.status == 404:
                return False
            raise
        return True

    def _class(self, kind: Kind) -> Any:
        found = self._classes.get(kind)
        if found is None:
            group, _, version = kind.api_version.rpartition("/")
            parent = GenericNamespacedResource if kind.namespaced else GenericGlobalResource
            info = create_api_info(group, version, kind.kind, kind.plural)
            # Ours, not registered with the library's own models: objects stay plain JSON.
            found = self._classes[kind] = type(kind.kind, (parent,), {"_api_info": info})
        return found

    def _object(self, made: Object) -> Any:
        return self._class(BY_NAME[made["kind"]])(made)


def connect(*, answer_s: float, selector: str) -> Cluster:
    """Return the cluster that this process runs in, else the one of KUBECONFIG.

    Raises OSError, saying what is missing.
    """
    try:
        config = KubeConfig.from_env().get()
    except (ConfigError, OSError, KeyError, ValueError) as error:
        raise ClusterError(
            0,
            "there is no cluster: this is no pod with a service account, and KUBECONFIG names no "
            f"file that describes one ({error})",
        ) from None
    assert config is not None
    return Cluster(config, answer_s=answer_s, selector=selector)


def at(url: str, *, answer_s: float, selector: str) -> Cluster:
    """Return the cluster behind an API server that asks for no credentials, for tests."""
    config = KubeConfig.from_server(url).get()
    assert config is not None
    return Cluster(config._replace(user=User()), answer_s=answer_s, selector=selector)


def _pairs(selector: str) -> Any:
    return [tuple(pair.split("=", 1)) for pair in selector.split(",") if pair]


def _in(kind: Kind, namespace: str | None) -> dict[str, Any]:
    return {"namespace": namespace} if kind.namespaced else {}


def _tried(call: Callable[[], T], *, conflicts: bool = False) -> T:
    """Return what a call does, trying again after a fault that passes.

    conflicts: also after 409, where the call does not depend on what was read before.
    """
    for number in range(TRIES):
        try:
            return call()
        except httpx2.HTTPError as error:
            failed = _translated(error)
            again = failed.status in (0, *_PASSING) or (conflicts and failed.status == 409)
            if not again or number == TRIES - 1:
                raise failed from None
            pause = max(_PAUSE_S * 2**number * random.uniform(0.5, 1.5), _asked(error))  # noqa: S311
            time.sleep(min(pause, _LONGEST_PAUSE_S))
        except _BROKEN as error:
            raise ClusterError(0, f"the API server cannot be asked: {error}") from None
    raise AssertionError("unreachable")


def _asked(error: httpx2.HTTPError) -> float:
    """Return the seconds that the server asks us to stay away."""
    answer = getattr(error, "response", None)
    with suppress(ValueError, AttributeError):
        return float(answer.headers.get("retry-after", 0))  # type: ignore[union-attr]
    return 0.0


def _translated(error: httpx2.HTTPError) -> ClusterError:
    if isinstance(error, ApiError):
        status = error.status.code or 0
        return ClusterError(status, f"the API server says {status}: {str(error)[:_QUOTED]}")
    if isinstance(error, httpx2.HTTPStatusError):
        status = error.response.status_code
        return ClusterError(status, f"the API server says {status}")
    return ClusterError(0, f"the API server does not answer: {type(error).__name__}")
