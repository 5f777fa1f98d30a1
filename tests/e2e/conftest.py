"""Fixtures of the end to end tests."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from polyolo.models import sample_boards
from tests.e2e.cluster import ClusterPlatform
from tests.e2e.platform import SHARED, Platform
from tests.e2e.pods import pods_of


@pytest.fixture
def fresh_platform() -> Iterator[Platform]:
    """Give a platform of the test's own, not yet started: to kill, to restart."""
    platform = Platform()
    try:
        yield platform
    finally:
        platform.close()


@pytest.fixture(scope="session")
def process_platform() -> Iterator[Platform]:
    """Give one running platform that the tests share; each takes tenants of its own."""
    platform = Platform()
    try:
        platform.start()
        yield platform
    finally:
        platform.close()


@pytest.fixture(scope="session")
def pod_platform(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Platform]:
    """Give one whose runtimes are the pods of an emulated cluster, with real processes in them."""
    with pods_of(tmp_path_factory.mktemp("node")) as (kubeconfig, options):
        platform = Platform(environment={"KUBECONFIG": str(kubeconfig)})
        try:
            platform.start(*options)
            yield platform
        finally:
            platform.close()


@pytest.fixture(scope="session")
def cluster_platform() -> Iterator[ClusterPlatform]:
    """Give one that is installed on a real cluster, where there is one (`make e2e-cluster`)."""
    platform = ClusterPlatform()
    try:
        platform.start()
        yield platform
    finally:
        platform.close()


@pytest.fixture(autouse=True)
def room(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have a test's tenants end with it where they share one node's room."""
    used = request.getfixturevalue("platform") if "platform" in request.fixturenames else None
    yield
    if isinstance(used, ClusterPlatform):
        used.empty()


@pytest.fixture(scope="session")
def platform(process_platform: Platform) -> Platform:
    """Give the shared platform; a suite may choose another one."""
    return process_platform


@pytest.fixture(scope="session")
def yolox_nano() -> Path:
    """Give the path of YOLOX-Nano, which is not part of the project."""
    path = SHARED / "models/yolox_nano.onnx"
    if not path.exists():
        pytest.skip("needs ../shared/models/yolox_nano.onnx, which is not part of the project")
    return path


@pytest.fixture(scope="session")
def expected(yolox_nano: Path) -> dict:
    """Give what YOLOX-Nano finds in the 40 photos of ../shared."""
    return json.loads((SHARED / "expected/yolox_nano.json").read_text())


@pytest.fixture(scope="session")
def board() -> Path:
    """Give one of the sample boards that ship with polyolo."""
    return sample_boards()[0]


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., None]:
    """Print a figure, whatever else is captured."""

    def say(what: str, figure: float, unit: str = " s") -> None:
        with capsys.disabled():
            print(f"\n{what}: {figure:,.2f}{unit}", flush=True)

    return say
