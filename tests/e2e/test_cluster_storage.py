"""A tenant's own storage on a real cluster: its pods mount the claim, its runtime judges the file.

The volume is a directory of the node that the test runs on; on a cluster of several nodes it is on
one of them only, and the pod is kept there by the volume's affinity.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyolo.errors import PolyoloError
from polyolo.models import bundled
from tests.e2e.cluster import PLATFORM, ClusterPlatform, found, kubectl
from tests.e2e.platform import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

_VOLUME = f"{PLATFORM}-models"
_CLAIM = "models"


@pytest.fixture(scope="module")
def platform(cluster_platform: ClusterPlatform) -> ClusterPlatform:
    return cluster_platform


@pytest.fixture
def directory() -> Iterator[Path]:
    """Give a directory of the node's that every user may read, with a model in it."""
    made = Path(tempfile.mkdtemp(prefix="polyolo-volume-", dir="/var/tmp"))
    made.chmod(0o755)
    (made / "v1.onnx").write_bytes(bundled("pcb", 1).read_bytes())
    (made / "v1.onnx").chmod(0o644)
    yield made
    kubectl("delete", "persistentvolume", _VOLUME, "--ignore-not-found")
    shutil.rmtree(made)


def volume(directory: Path, namespace: str) -> list[dict]:
    """Return a PersistentVolume and the claim that alone may have it."""
    size = {"storage": "1Gi"}
    common = {"accessModes": ["ReadOnlyMany"], "storageClassName": ""}
    claim = {"name": _CLAIM, "namespace": namespace}
    return [
        {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": _VOLUME},
            "spec": {
                **common,
                "capacity": size,
                "persistentVolumeReclaimPolicy": "Retain",
                "hostPath": {"path": str(directory), "type": "Directory"},
                "claimRef": {"apiVersion": "v1", "kind": "PersistentVolumeClaim", **claim},
            },
        },
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": claim,
            "spec": {**common, "volumeName": _VOLUME, "resources": {"requests": size}},
        },
    ]


def test_a_claim_of_the_tenants_is_mounted(platform, board, directory):
    """Without the grant the quota refuses it; with it the file is served, and no request fails on
    the way; taken back, the claim stays; with the tenant it goes, and the files do not."""
    tenant, client = platform.tenant("mounted")
    home = platform.namespace(tenant)
    objects = {"apiVersion": "v1", "kind": "List", "items": volume(directory, home)}

    def claim() -> bool:
        return found("-n", home, "persistentvolumeclaim", _CLAIM) is not None

    def quota(count: str) -> bool:
        seen = found("-n", home, "resourcequota", "polyolo-runtime") or {}
        return seen.get("status", {}).get("hard", {}).get("persistentvolumeclaims") == count

    with client, platform.operator() as operator:
        assert client.detect(board).model.name == "standard"
        eventually(lambda: quota("0"), within=30, what="the quota counts")
        kubectl("apply", "-f", "-", given=objects, check=False)
        assert not claim()
        operator.grant_storage(tenant.id, f"pvc://{_CLAIM}")
        eventually(lambda: quota("1"), within=30, what="the quota allows one claim")
        kubectl("apply", "-f", "-", given=objects)
        assert claim()

        content = (directory / "v1.onnx").read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        version = client.register_model("city", "v1.onnx", digest, size=len(content))
        assert (version.version, version.family) == (1, "")
        eventually(
            lambda: client.detect(board).model.name == "city",
            within=60,
            what="the mounted model answers",
        )
        (pod,) = eventually(lambda: platform.pods(tenant), within=60, what="one pod is left")
        mounts = pod["spec"]["containers"][0]["volumeMounts"]
        assert [one["readOnly"] for one in mounts if one["name"] == "claim"] == [True]

        other = "0" * 64
        client.register_model("other", "v1.onnx", other, size=len(content))

        def refused() -> bool:
            models = operator.get_runtime(tenant.id).models
            states = {one.name: (one.state, one.reason) for one in models}
            state, reason = states.get("other", ("", ""))
            return state == "failed" and "sha256 differs" in reason

        eventually(refused, within=60, what="other bytes are refused by the runtime")
        with pytest.raises(PolyoloError):
            operator.withdraw_storage(tenant.id)  # versions need it
        for name in ("other", "city"):
            client.delete_model(name)
        operator.withdraw_storage(tenant.id)
        eventually(lambda: quota("0"), within=30, what="the quota allows no more claims")
        assert client.detect(board).model.name == "standard"
        assert claim()
        operator.delete_tenant(tenant.id)
    eventually(lambda: not claim(), within=120, what="the claim goes with the namespace")
    assert (directory / "v1.onnx").is_file()
