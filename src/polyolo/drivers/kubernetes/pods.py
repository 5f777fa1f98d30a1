"""The pods of a runtime: what Kubernetes says of each, and what each says of itself."""

from __future__ import annotations

import http.client
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from polyolo.drivers import ANSWER_S, SETTLE_MS, replicas
from polyolo.drivers.kubernetes.naming import FILES, HTTP, RELEASE, Object
from polyolo.types import Phase, RuntimeStatus

TOKEN = "POLYOLO_RUNTIME_TOKEN"  # noqa: S105  # a variable's name
"""Variable with what proves to a runtime that it is control that speaks."""
_ANSWER_BYTES = 1 << 20
_AT_ONCE = 16  # pods asked, of one runtime
_HOPELESS = {
    "CrashLoopBackOff": "its container ends by itself",
    "ImagePullBackOff": "its image cannot be pulled",
    "ErrImagePull": "its image cannot be pulled",
    "InvalidImageName": "its image has no valid name",
    "CreateContainerConfigError": "its container cannot be made",
    "CreateContainerError": "its container cannot be made",
    "RunContainerError": "its container cannot be started",
}
"""Reasons for which a container waits that time alone does not cure."""
_QUOTED = 200
"""Characters of others' words that are passed on."""


T = TypeVar("T")


class State(StrEnum):
    """Where one pod stands."""

    STARTING = "starting"
    READY = "ready"
    FAILED = "failed"
    LEAVING = "leaving"


@dataclass(frozen=True, slots=True, kw_only=True)
class Pod:
    """One replica of a runtime."""

    name: str
    state: State
    address: str = ""
    reason: str = ""
    made: str = ""
    """When, RFC 3339."""
    release: str = ""
    files: str = ""
    """The disk and the storage that it has for model files, see `volumes.fits`."""
    started: bool = False
    """Whether its runtime has begun to answer, be it ready or not."""

    @property
    def answers(self) -> bool:
        """Whether it can be asked."""
        return self.state is State.READY or (self.state is State.STARTING and self.started)

    @property
    def endpoint(self) -> str:
        """Return where requests are sent."""
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"http://{host}:{HTTP}"


def read_pod(found: Object) -> Pod:
    """Return what Kubernetes says of a pod."""
    metadata, status = found["metadata"], found.get("status", {})
    pod = Pod(
        name=metadata["name"],
        state=State.STARTING,
        address=status.get("podIP", ""),
        made=metadata.get("creationTimestamp", ""),
        release=metadata.get("annotations", {}).get(RELEASE, ""),
        files=metadata.get("annotations", {}).get(FILES, ""),
        started=any(one.get("started") for one in status.get("containerStatuses", ())),
    )
    if metadata.get("deletionTimestamp"):
        return replace(pod, state=State.LEAVING)
    if status.get("phase") == "Failed":
        reason = status.get("reason") or "its pod failed"
        return replace(pod, state=State.FAILED, reason=f"its pod failed: {reason}")
    for container in status.get("containerStatuses", ()):
        if reason := _failure(container):
            return replace(pod, state=State.FAILED, reason=reason)
    conditions = {one["type"]: one for one in status.get("conditions", ())}
    if pod.address and conditions.get("Ready", {}).get("status") == "True":
        return replace(pod, state=State.READY)
    scheduled = conditions.get("PodScheduled", {})
    why = "its container is being started"
    if scheduled.get("status") == "False":
        why = _quoting("no node takes it", scheduled.get("message", ""))
    return replace(pod, reason=why)


def _failure(container: Mapping[str, Any]) -> str:
    state = container.get("state", {})
    words = state.get("waiting", {}).get("message", "")
    waiting = state.get("waiting", {}).get("reason", "")
    ended = state.get("terminated") or (
        container.get("lastState", {}).get("terminated") if waiting == "CrashLoopBackOff" else None
    )
    if ended:
        if ended.get("reason") == "OOMKilled":
            return "it used more memory than its plan gives, and was stopped"
        if ended.get("signal"):
            return f"its process was killed by signal {ended['signal']}"
        last = ended.get("message", "").strip().rpartition("\n")[2]  # of its log
        return _quoting(f"its process exited with status {ended.get('exitCode', 0)}", last)
    return _quoting(_HOPELESS[waiting], words) if waiting in _HOPELESS else ""


def _quoting(ours: str, theirs: str) -> str:
    return f"{ours}: {theirs[:_QUOTED]}" if theirs else ours


def statuses(pods: Iterable[Pod], tenant: str, keys: Mapping[str, str]) -> dict[str, RuntimeStatus]:
    """Ask pods for their status; return it by name, without those that do not answer.

    Also those that are not ready: they know why, and one that cannot load what its document named
    has to hear of another one.
    """
    asked = [pod for pod in pods if pod.answers]
    answers = _of_each(asked, lambda pod: _ask_twice(pod, keys))
    # A runtime speaks for itself only, and cannot say where it is reached.
    return {
        pod.name: replace(said, tenant=tenant, endpoints=(pod.endpoint,), release=pod.release)
        for pod, said in zip(asked, answers, strict=True)
        if said is not None
    }


def tell(pods: Sequence[Pod], document: bytes, keys: Mapping[str, str]) -> None:
    """Push the spec document to pods. Raises OSError when one does not take it."""

    def push(pod: Pod) -> None:
        try:
            code, _ = _ask(pod.address, "PUT", "/runtime/spec", keys, document)
        except OSError as error:
            raise OSError(f"the runtime did not take its spec: {error}") from None
        if code >= 300:
            raise OSError(f"the runtime refused its spec with status {code}")

    _of_each(pods, push)


def _of_each(pods: Sequence[Pod], ask: Callable[[Pod], T]) -> list[T]:
    """Return what each pod answers, asked at once: one that hangs costs the others no time."""
    if len(pods) < 2:
        return [ask(pod) for pod in pods]
    with ThreadPoolExecutor(min(len(pods), _AT_ONCE)) as pool:
        return list(pool.map(ask, pods))


def _ask_twice(pod: Pod, keys: Mapping[str, str]) -> RuntimeStatus | None:
    for _ in range(2):
        try:
            code, body = _ask(pod.address, "GET", "/runtime/status", keys)
            if code == 200:
                return msgspec.json.decode(body, type=RuntimeStatus)
        except (OSError, ValueError, msgspec.DecodeError):
            continue
    return None


def _ask(
    address: str, method: str, target: str, keys: Mapping[str, str], body: bytes | None = None
) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(address, HTTP, timeout=ANSWER_S)
    headers = {
        "content-type": "application/json",
        "authorization": f"Bearer {keys.get(TOKEN, '')}",
        "polyolo-timeout-ms": str(SETTLE_MS),
    }
    try:
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read(_ANSWER_BYTES)
    except http.client.HTTPException as error:
        raise ConnectionError(f"no HTTP answer: {type(error).__name__}") from None
    finally:
        connection.close()


def together(
    tenant: str, pods: list[Pod], said: Mapping[str, RuntimeStatus], in_force: int, release: str
) -> RuntimeStatus:
    """Return what the pods of a runtime are together; those that leave are not asked any more.

    in_force: generation that the objects are of, 0 when they are not as they should be. release:
    that the pods should be of; one that is of another follows no generation.
    """

    def copy(pod: Pod) -> RuntimeStatus:
        told = said.get(pod.name)
        if told is not None:
            bound = in_force if pod.release == release else 0
            ready = told.phase is Phase.READY and pod.state is State.READY
            generation = min(told.observed_generation, bound)
            phase = Phase.READY if ready else Phase.STARTING
            endpoints = told.endpoints if pod.state is State.READY else ()
            return replace(told, phase=phase, observed_generation=generation, endpoints=endpoints)
        if pod.state is State.STARTING:
            return RuntimeStatus(tenant=tenant, phase=Phase.STARTING, reason=pod.reason)
        reason = pod.reason or "it does not answer"
        return RuntimeStatus(tenant=tenant, phase=Phase.FAILED, reason=reason)

    oldest_first = sorted(pods, key=lambda pod: (pod.made, pod.name))
    copies = [copy(pod) for pod in oldest_first if pod.state is not State.LEAVING]
    if not copies:
        reason = "no pod of it is there yet"
        return RuntimeStatus(tenant=tenant, phase=Phase.STARTING, reason=reason)
    return _with_failures(replicas.together(tenant, copies), copies)


def _with_failures(status: RuntimeStatus, copies: Iterable[RuntimeStatus]) -> RuntimeStatus:
    """Return the status with what a copy that is not ready failed to load, and no other one has."""
    known = {(model.name, model.version) for model in status.models}
    failed = {
        (model.name, model.version): model
        for copy in copies
        for model in copy.models
        if model.state == "failed" and (model.name, model.version) not in known
    }
    return replace(status, models=(*status.models, *failed.values()))
