"""All pods of a real cluster are replaced under load, for an upgrade or by hand: nobody notices.

`make e2e-cluster`. POLYOLO_NEXT_IMAGES names the images of the release to upgrade to; without it
other pods come from the same images.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest

from polyolo.client.call import trusted
from polyolo.resources import Tenant
from tests.e2e.callers import Callers, callers
from tests.e2e.cluster import PLATFORM, ClusterPlatform, kubectl, listed
from tests.e2e.platform import eventually

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

_GATEWAY = "app.kubernetes.io/component=gateway"
_GONE_S = 240
"""For a gateway to leave: its clients have more than a minute to go elsewhere."""


@pytest.fixture(scope="module")
def platform(cluster_platform: ClusterPlatform) -> ClusterPlatform:
    return cluster_platform


@contextmanager
def untroubled(platform, board) -> Iterator[tuple[list[Tenant], Callers]]:
    """Have two tenants served, and calls of every kind for them go on; yield both. No call is to
    fail meanwhile, and each picture to be billed once."""
    pairs = [platform.tenant(f"untroubled-{number}") for number in (1, 2)]
    (one, first), (two, second) = pairs
    with first, second:
        keys = [str(client.api_key) for client in (first, second)]
        first.detect(board), second.detect(board)
        with callers(platform, keys, board.read_bytes()) as load:
            load.more()
            yield [one, two], load
            load.more()
        assert sorted(set(load.wrong)) == [], f"{len(load.wrong)} of {load.calls} calls failed"
        wanted = 2 + load.pictures
        eventually(
            lambda: first.usage().images + second.usage().images == wanted,
            within=30,
            what=f"{wanted} pictures are billed, each once",
        )


def test_an_upgrade_fails_no_request(platform, board, told):
    """What `helm upgrade` changes: every gateway, control plane and runtime is another one."""
    with untroubled(platform, board) as (tenants, load):
        homes = [PLATFORM, *map(platform.namespace, tenants)]
        before = set[str]().union(*map(platform.running, homes))
        started = time.monotonic()
        platform.upgrade()
        told("until the platform's next release is there", time.monotonic() - started)

        def left() -> set[str]:
            return before & set[str]().union(*map(platform.running, homes))

        eventually(lambda: not left(), within=_GONE_S, what="every pod of before is gone")
        told("until every pod of before is gone", time.monotonic() - started)
    told("calls meanwhile, none failed", load.calls, "")


def test_deleted_pods_take_no_request_with_them(platform, board, told):
    """A gateway, each control plane (the one that holds the lease is among them) and a runtime."""
    with untroubled(platform, board) as (tenants, load):
        home = platform.namespace(tenants[0])
        gateway, controls, runtime = (
            sorted(platform.running(*of))
            for of in ((PLATFORM, "gateway"), (PLATFORM, "control"), (home,))
        )
        kubectl("-n", PLATFORM, "delete", "pod", gateway[0], "--wait=false")
        for pod in controls:
            kubectl("-n", PLATFORM, "delete", "pod", pod, "--wait")
            platform.rolled_out("control")
        kubectl("-n", home, "delete", "pod", *runtime, "--wait")
        eventually(
            lambda: gateway[0] not in platform.running(), within=_GONE_S, what="the gateway is gone"
        )
    told("calls meanwhile, none failed", load.calls, "")


def test_what_is_new_is_known_at_every_gateway(platform, board):
    """A key that has just been made opens each of them, whichever control plane made it."""
    _, client = platform.tenant("known")
    doors = [one["status"]["podIP"] for one in listed("-n", PLATFORM, "pods", "-l", _GATEWAY)]
    assert len(doors) > 1
    known = {"sni_hostname": platform.gateway}
    with client, httpx.Client(verify=trusted(platform.ca), timeout=30) as http:
        client.detect(board)
        for number in range(50):
            key = client.create_key(name=f"key-{number}").key
            for door in doors:
                answer = http.post(
                    f"https://{door}:8700/v1/detect",
                    content=board.read_bytes(),
                    headers={"authorization": f"Bearer {key}"},
                    extensions=known,
                )
                assert answer.status_code == 200, (number, door, answer.text)
