"""Runtimes as Deployments, a namespace for each tenant: what is rendered is brought about.

All that is known is read from the cluster. A pass over what is as it should be writes nothing.
"""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping

from polyolo import telemetry
from polyolo.drivers.kubernetes import contents, fences, volumes
from polyolo.drivers.kubernetes.cluster import (
    AUTOSCALER,
    BY_NAME,
    DEPLOYMENT,
    NAMESPACE,
    OPTIONAL,
    POD,
    POD_MONITOR,
    QUOTA,
    RULE,
    SCALED_OBJECT,
    SECRET,
    WATCHED,
    Cluster,
    Kind,
)
from polyolo.drivers.kubernetes.compare import MANAGER, STARTER, foreign, lacks, without
from polyolo.drivers.kubernetes.mirror import Key, Mirror, Seen
from polyolo.drivers.kubernetes.naming import (
    OBJECT,
    TENANT,
    Object,
    Place,
    place,
    tenant_of,
)
from polyolo.drivers.kubernetes.pods import Pod, State, statuses, tell, together
from polyolo.drivers.kubernetes.render import Features, render
from polyolo.drivers.kubernetes.settings import ClusterSettings, Scaling, Use
from polyolo.drivers.kubernetes.workload import document
from polyolo.types import Phase, RuntimeSpec, RuntimeStatus

SYNC_S = 30.0
"""Seconds for the first list of everything: 10,000 tenants are 120,000 objects."""
SECRET_S = 300.0
"""Between two looks at a Secret, which is not watched (see cluster.WATCHED)."""
_KILL_S = 5
"""Seconds that a pod is given which is replaced because it failed."""

Keys = Callable[[str], Mapping[str, str]]
"""Returns a tenant's secrets for its runtime, by variable."""


class KubernetesDriver:
    """The Driver whose runtimes are pods (see `polyolo.drivers.Driver`)."""

    def __init__(self, cluster: Cluster, settings: ClusterSettings, keys: Keys) -> None:
        """Begin to follow the cluster. Raises OSError when it cannot be asked, or lacks a part
        that the settings demand."""
        self._cluster = cluster
        self._settings = settings
        self._keys = keys
        self._log = telemetry.logger("kubernetes")
        self._locks: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
        self._news = threading.Condition()
        self._changed: set[str] = set()
        self._busy: set[str] = set()
        self._well: dict[str, int] = {}
        self._yielded: dict[tuple[str, Key], tuple[int, str]] = {}
        self._secret_seen: dict[str, float] = {}
        self._mirror = Mirror(cluster, self._notice)
        try:
            has = [kind for kind in OPTIONAL if self._has(kind)]
            self.features = Features(monitors=POD_MONITOR in has and RULE in has)
            self._mirror.start((*WATCHED, *has), SYNC_S)
        except OSError:
            self.close()
            raise

    def _has(self, kind: Kind) -> bool:
        """Say whether the cluster has an optional part that is to be used."""
        if kind is SCALED_OBJECT:
            use = Use.ON if self._settings.scaling is Scaling.KEDA else Use.AUTO
        else:
            use = self._settings.monitors
        if use is Use.OFF:
            return False
        known = self._cluster.knows(kind)
        if not known and use is Use.ON:
            raise OSError(
                f"this cluster knows no {kind.kind}; install what brings {kind.api_version}, or "
                "let the platform do without"
            )
        return known

    def close(self) -> None:
        """Stop following. The runtimes stay as they are: another control plane goes on."""
        self._mirror.close()
        self._cluster.close()

    def observe(self, tenants: Collection[str] | None = None) -> dict[str, RuntimeStatus]:
        """Return the state of the runtimes (see Driver)."""
        if tenants is None:
            tenants = [
                tenant
                for name in self._mirror.namespaces()
                if (tenant := self._owner(name)) is not None
            ]
        found = ((tenant, self._observe(tenant)) for tenant in tenants)
        return {tenant: status for tenant, status in found if status is not None}

    def apply(self, spec: RuntimeSpec) -> None:
        """Bring about what is rendered, and tell the pods (see Driver)."""
        where = place(spec.tenant, self._settings.platform)
        contents.check_files(spec)
        keys = self._keys(spec.tenant)
        objects = render(spec, self._settings, self.features, keys)
        with self._locks[spec.tenant]:
            _, seen = self._mirror.read(where.namespace)
            if contents.going(seen, (NAMESPACE.kind, where.namespace)):
                return  # what is made there now would go with it
            self._busy.add(spec.tenant)  # what watches tell of it meanwhile is our own doing
            try:
                fresh = self._claim(where, seen)
                for one in objects:
                    self._bring(one, spec, seen, fresh=fresh)
                for kind, name in contents.left_over(seen, objects):
                    self._cluster.delete(kind, where.namespace, name)
                    self._mirror.lost(kind, where.namespace, name)
            finally:
                self._busy.discard(spec.tenant)
            self._secret_seen[where.namespace] = time.monotonic()
            _, seen = self._mirror.read(where.namespace)
            self._to_pods(spec, where, seen, keys)

    def remove(self, tenant: str) -> None:
        """Drain, then delete everything, one step a call (see Driver)."""
        where = place(tenant, self._settings.platform)
        with self._locks[tenant]:
            _, seen = self._mirror.read(where.namespace)
            if self._owner(where.namespace) != tenant:
                return
            for kind in (SCALED_OBJECT, AUTOSCALER):  # or they would start pods again
                if (kind.kind, OBJECT) in seen:
                    self._delete(kind, where.namespace, OBJECT)
            found = contents.pods(seen)
            if (DEPLOYMENT.kind, OBJECT) in seen:
                self._delete(DEPLOYMENT, where.namespace, OBJECT)
            elif not found:  # the fences stand until the last pod has ended
                self._delete(NAMESPACE, where.namespace, where.namespace)
                self._secret_seen.pop(where.namespace, None)
                self._well.pop(where.namespace, None)
            for pod in found:
                if pod.state is not State.LEAVING:
                    self._delete(POD, where.namespace, pod.name)

    def wait(self, timeout: float) -> set[str]:
        """Wait for something to change that we did not do, and return whose (see Driver)."""
        with self._news:
            self._news.wait_for(lambda: self._changed, timeout)
            changed, self._changed = self._changed, set()
        return changed

    def _notice(self, namespace: str) -> None:
        tenant = self._owner(namespace)
        if tenant is not None and tenant not in self._busy:
            with self._news:
                self._changed.add(tenant)
                self._news.notify_all()

    def _owner(self, namespace: str) -> str | None:
        """Return whose a namespace is; None when it is not ours, or gone."""
        _, seen = self._mirror.read(namespace)
        found = seen.get((NAMESPACE.kind, namespace))
        return None if found is None else tenant_of(found.object(), self._settings.platform)

    def _observe(self, tenant: str) -> RuntimeStatus | None:
        where = place(tenant, self._settings.platform)
        with self._news:
            self._changed.discard(tenant)  # the caller is looking
        turn, seen = self._mirror.read(where.namespace)
        if self._owner(where.namespace) != tenant:
            return None
        found = contents.pods(seen)
        there = (DEPLOYMENT.kind, OBJECT) in seen
        if contents.going(seen, (NAMESPACE.kind, where.namespace)) or (found and not there):
            return RuntimeStatus(tenant=tenant, phase=Phase.STOPPING, reason="draining")
        if not there:
            return RuntimeStatus(tenant=tenant, phase=Phase.ABSENT, reason="left behind")
        keys = self._keys(tenant)
        spec = contents.document(seen)
        whole = spec is not None and self._is_whole(spec, where, turn, seen, keys)
        in_force = spec.generation if spec is not None and whole else 0
        if spec is not None and spec.replicas == 0:
            if not found:
                return RuntimeStatus(
                    tenant=tenant, phase=Phase.ASLEEP, observed_generation=in_force, reason="asleep"
                )
            if all(pod.state is State.LEAVING for pod in found):
                return RuntimeStatus(tenant=tenant, phase=Phase.STOPPING, reason="draining")
        said = statuses(found, tenant, keys)
        status = together(tenant, found, said, in_force, spec.release if spec else "")
        if status.phase is Phase.STARTING and not found:
            return self._explained(status, where)
        return status

    def _explained(self, status: RuntimeStatus, where: Place) -> RuntimeStatus:
        """Return why no pod is made, where Kubernetes says so."""
        found = self._cluster.get(DEPLOYMENT, where.namespace, OBJECT) or {}
        for one in found.get("status", {}).get("conditions", ()):
            if one.get("type") == "ReplicaFailure" and one.get("status") == "True":
                reason = str(one.get("message", ""))[:200]
                return RuntimeStatus(tenant=status.tenant, phase=Phase.FAILED, reason=reason)
        return status

    def _is_whole(
        self,
        spec: RuntimeSpec,
        where: Place,
        turn: int,
        seen: Mapping[Key, Seen],
        keys: Mapping[str, str],
    ) -> bool:
        """Say whether everything is as it is rendered from the document that is there."""
        due = time.monotonic() - self._secret_seen.get(where.namespace, -SECRET_S) >= SECRET_S
        if self._well.get(where.namespace) == turn and not due:
            return True
        try:
            objects = render(spec, self._settings, self.features, keys)
        except OSError:
            return False
        for one in objects:
            if one["kind"] == SECRET.kind:
                if due and lacks(self._cluster.get(SECRET, where.namespace, OBJECT), one):
                    return False
                continue
            found = seen.get(contents.key(one))
            if found is None or not self._fine(where.namespace, found, one):
                return False
        if contents.left_over(seen, objects):
            return False
        self._well[where.namespace] = turn
        if due:
            self._secret_seen[where.namespace] = time.monotonic()
        return True

    def _claim(self, where: Place, seen: Mapping[Key, Seen]) -> bool:
        """Have the namespace be there and ours; say whether it is new, and so empty."""
        found = seen.get((NAMESPACE.kind, where.namespace))
        marks = {
            "name": where.namespace,
            "labels": dict(where.labels),
            "annotations": {TENANT: where.tenant},
        }
        if found is None:
            bare = {"apiVersion": "v1", "kind": "Namespace", "metadata": marks}
            if self._cluster.create(bare, STARTER):
                return True
        there = found.object() if found else self._cluster.get(NAMESPACE, None, where.namespace)
        if there is None or tenant_of(there, self._settings.platform) != where.tenant:
            raise contents.not_ours("Namespace", where.namespace)
        return False

    def _bring(
        self, one: Object, spec: RuntimeSpec, seen: Mapping[Key, Seen], *, fresh: bool
    ) -> None:
        """Have one object be as it is rendered; do nothing when it is."""
        kind = BY_NAME[one["kind"]]
        found = seen.get(contents.key(one))
        home = place(spec.tenant, self._settings.platform).namespace
        if found is not None and self._fine(home, found, one):
            return
        if found is not None and kind is QUOTA:
            live = self._cluster.get(kind, home, OBJECT) or {}  # with what is used of it
            one = fences.passable(one, live)
            if live and not lacks(live, one) and not foreign(live):
                return
        if found is None and not fresh and kind is not NAMESPACE:
            metadata = one["metadata"]
            there = self._cluster.get(kind, metadata["namespace"], metadata["name"])
            if there is not None and tenant_of(there, self._settings.platform) != spec.tenant:
                raise contents.not_ours(one["kind"], f"{metadata['namespace']}/{metadata['name']}")
            if (
                there is not None
                and kind is SECRET
                and not lacks(there, one)
                and not foreign(there)
            ):
                return
            absent = there is None
        else:
            absent = found is None
        if absent and kind is DEPLOYMENT and "replicas" not in one["spec"]:
            self._start(one, spec)
        there = self._cluster.apply(one, MANAGER)
        if theirs := foreign(there):
            cleaned = without(there, theirs, one)
            if lacks(cleaned, there):  # what is empty says nothing: KEDA writes some of it
                self._log.warning("undoing a change by hand", kind=one["kind"], tenant=spec.tenant)
                there = self._cluster.replace(cleaned, MANAGER)
        if lacks(there, one):
            # An admission webhook, most likely; it would go on for ever.
            self._log.warning("somebody changes what is applied", kind=one["kind"], namespace=home)
            self._yielded[home, contents.key(one)] = (
                int(there["metadata"]["resourceVersion"]),
                contents.digest(one),
            )
        if kind is not SECRET:
            self._mirror.put(there)

    def _fine(self, home: str, found: Seen, one: Object) -> bool:
        """Say whether an object is as it is rendered, or as near as the cluster lets it come."""
        live = found.object()
        if lacks(live, one):
            yielded = (found.version, contents.digest(one))
            return self._yielded.get((home, contents.key(one))) == yielded
        return not found.foreign or not lacks(without(live, found.foreign, one), live)

    def _start(self, one: Object, spec: RuntimeSpec) -> None:
        """Make a Deployment with its first number of replicas, which nobody owns but STARTER:
        left out of what we apply later, it stays what an autoscaler makes of it."""
        number = {"replicas": spec.replicas}
        self._cluster.apply({**one, "spec": {**one["spec"], **number}}, MANAGER)
        metadata = {name: one["metadata"][name] for name in ("name", "namespace")}
        bare = {"apiVersion": one["apiVersion"], "kind": one["kind"], "metadata": metadata}
        self._cluster.apply({**bare, "spec": number}, STARTER)

    def _to_pods(
        self, spec: RuntimeSpec, where: Place, seen: Mapping[Key, Seen], keys: Mapping[str, str]
    ) -> None:
        """Tell ready pods of the spec, and have failed ones replaced."""
        found = contents.pods(seen)
        said = statuses(found, spec.tenant, keys)
        body, behind = document(spec, self._settings), list[Pod]()
        for pod in found:
            told = said.get(pod.name)
            if pod.state is State.FAILED or (pod.state is State.READY and told is None):
                self._delete(POD, where.namespace, pod.name, grace_s=_KILL_S)
            elif (
                told is not None
                and told.observed_generation < spec.generation
                and pod.files == volumes.fits(spec, self._settings)
            ):
                behind.append(pod)
        tell(behind, body, keys)

    def _delete(self, kind: Kind, namespace: str, name: str, *, grace_s: int | None = None) -> None:
        """Begin to delete an object, and know at once that it goes."""
        home = namespace if kind.namespaced else None
        there = self._cluster.get(kind, home, name)
        if there is not None and not there["metadata"].get("deletionTimestamp"):
            self._cluster.delete(kind, home, name, grace_s=grace_s)
            there = self._cluster.get(kind, home, name)
        if there is None:
            self._mirror.lost(kind, namespace, name)
        else:
            self._mirror.put(there)
