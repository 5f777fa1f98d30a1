"""A platform that is lost is installed again from its backup: its tenants' pods never notice.

`make e2e-cluster`; as docs/operations.md tells it, "Back up and restore".
"""

from __future__ import annotations

import time

import pytest

from polyolo.models import bundled
from tests.e2e.cluster import PLATFORM, ClusterPlatform, found
from tests.e2e.platform import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def platform(cluster_platform: ClusterPlatform) -> ClusterPlatform:
    return cluster_platform


def test_a_restored_platform_adopts_what_it_made(platform, board, told):
    """Same key, same model, same pod; who came after the backup is not known, and goes."""
    tenant, client = platform.tenant("restored")
    home = platform.namespace(tenant)
    with client:
        client.push_model("city", bundled("pcb", 1))
        before = client.detect(board)
        key = client.api_key
    backup = platform.database.directory / "polyolo.dump"
    platform.database.run("pg_dump", "--format=custom", f"--file={backup}", "postgres")
    late, client = platform.tenant("late")
    with client:
        client.detect(board)
    pods = platform.running(home)
    namespace = found("namespace", home)["metadata"]["uid"]

    started = time.monotonic()
    platform.uninstall()
    assert found("namespace", PLATFORM) is None
    platform.database.run("createdb", "restored")
    platform.database.run("pg_restore", "--exit-on-error", "--dbname=restored", backup)
    listen = "UPDATE runtimes SET generation = generation + 1000000"
    platform.database.run("psql", "restored", "-c", listen)
    platform.begin("restored")
    told("from uninstalling to an open door", time.monotonic() - started)
    with platform.client(key) as client:
        after = client.detect(board)
        assert (after.model, after.detections) == (before.model, before.detections)
        client.push_model("city", bundled("pcb", 2))
        client.use_model("city", 2)
        eventually(
            lambda: client.detect(board).model.version == 2,
            within=30,  # the lease that stood in the backup is waited out
            what="what is changed reaches the adopted pod",
        )
    assert found("namespace", home)["metadata"]["uid"] == namespace
    assert platform.running(home) == pods
    left = platform.namespace(late)
    eventually(
        lambda: left not in platform.left(), within=60, what="the one that is not known goes"
    )
