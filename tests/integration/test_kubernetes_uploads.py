"""Uploads of a platform on a cluster: each file is opened in a pod of its own, or not at all."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import sys
import venv
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from polyolo.control import places
from polyolo.drivers.kubernetes.settings import JobSettings, Scaling
from polyolo.sandbox.layers import UNCONFINED
from tests.cluster.clusters import SETTINGS, Clustered, inhabited, with_namespace
from tests.integration.control_plane import PARTS, Api, serving, until
from tests.integration.test_control_real_runtime import real
from tests.unit import hostile_graphs
from tests.unit.pickle_gadgets import Call

pytestmark = pytest.mark.asyncio(loop_scope="module")

MODEL = hostile_graphs.good().SerializeToString()
KNOWN = replace(
    SETTINGS, scaling=Scaling.CONTROL, jobs=JobSettings(converter_image="ultralytics:1")
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clustered]:
    """Give a cluster with an image of ultralytics' stand-in, and nothing else."""
    root = tmp_path_factory.mktemp("cluster")
    venv.create(root / "converter", symlinks=True, with_pip=False)
    (package,) = (root / "converter/lib").glob("python*/site-packages")
    (package / "ultralytics").mkdir()
    shutil.copy(PARTS / "small_ultralytics.py", package / "ultralytics/__init__.py")
    images = {"ultralytics:1": root / "converter/bin"}
    runtime = (sys.executable, str(PARTS / "small_runtime.py"))
    before = os.environ.get("KUBECONFIG")
    with inhabited(runtime, root / "pods", images) as (made, _):
        kubeconfig = root / "kubeconfig"
        kubeconfig.write_text(json.dumps(made.server.kubeconfig))
        os.environ["KUBECONFIG"] = str(kubeconfig)
        try:
            yield made
        finally:
            os.environ.pop("KUBECONFIG")
            if before is not None:
                os.environ["KUBECONFIG"] = before


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(cluster: Clustered, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    home = tmp_path_factory.mktemp("uploads") / "home"
    compare = (sys.executable, "-m", "polyolo.serving", "compare")
    chosen = replace(real(home), cluster=KNOWN, compare_command=compare)
    async with serving(chosen) as api:
        yield api


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def key(api: Api) -> str:
    _, key = await api.tenant("acme")
    return key


async def push(api: Api, key: str, content: bytes, name: str = "mine") -> httpx.Response:
    return await api.ask("POST", f"/tenants/me/models/{name}/versions", key, content=content)


def made(cluster: Clustered, platform: str = "polyolo") -> list[str]:
    """Return what Jobs have been made."""
    writes = [one for one in cluster.server.writes if one.method == "POST"]
    return [one.path for one in writes if f"/{platform}-jobs/jobs/" in one.path]


async def nothing_left(cluster: Clustered) -> None:
    """See that the Jobs are gone, and their pods soon after."""
    store = cluster.server.store

    def left(collection: str) -> list[Any]:
        return [key for key in store.objects if key[:2] == (collection, "polyolo-jobs")]

    assert cluster.server.do(lambda: left("jobs.batch")) == []

    async def none() -> bool:
        return not cluster.server.do(lambda: left("pods"))

    await until(none)


async def test_an_upload_is_looked_into_in_a_pod(cluster: Clustered, api: Api, key: str):
    """Accepted with what was found; one that means harm refused as on one machine."""
    before = len(made(cluster))
    answer = await push(api, key, MODEL)
    assert answer.status_code == 201, answer.text
    assert (answer.json()["family"], answer.json()["size"]) == ("yolov8", len(MODEL))
    for content, reason in (
        (hostile_graphs.crashing(), "crash"),
        (hostile_graphs.custom(), "'Operator' of 'evil'"),
    ):
        answer = await push(api, key, content)
        assert answer.status_code == 422
        assert reason in answer.json()["detail"]
    assert len(made(cluster)) - before == 3
    await nothing_left(cluster)


async def test_a_pt_file_is_converted_in_a_pod(cluster: Clustered, api: Api, key: str):
    """By the converter that travels there and the library of the operator's image; what it becomes
    is looked into like any other."""
    before = len(made(cluster))
    answer = await push(api, key, pickle.dumps(MODEL), "converted")
    assert answer.status_code == 201, answer.text
    assert (answer.json()["family"], answer.json()["size"]) == ("yolov8", len(MODEL))
    assert len(made(cluster)) - before == 3  # what is it? convert; what is this?
    for content, reason in (
        (pickle.dumps(Call(os.system, "true")), "there is no model in it"),
        (pickle.dumps(b"\x08junk"), "not an ONNX model"),
    ):
        answer = await push(api, key, content, "converted")
        assert answer.status_code == 422
        assert reason in answer.json()["detail"]
    await nothing_left(cluster)


async def test_versions_are_compared_in_a_pod(cluster: Clustered, api: Api, key: str):
    """The gate's comparison is one of the programs."""
    for _ in range(2):
        await push(api, key, MODEL, "twice")
    before = len(made(cluster))
    answer = await api.ask("GET", "/tenants/me/models/twice/versions/2/comparison", key)
    assert answer.status_code == 200, answer.text
    assert len(made(cluster)) - before == 1
    await nothing_left(cluster)


async def test_a_converter_of_this_machine_is_none_for_pods(tmp_path: Path):
    """Whoever names one is told where to name it; nothing starts half."""
    chosen = replace(real(tmp_path / "home"), cluster=KNOWN, converter=sys.executable)
    with pytest.raises(OSError, match="converter_image"):
        places.programs(chosen, UNCONFINED)


async def test_without_an_image_pt_files_are_refused(cluster: Clustered, tmp_path: Path):
    """With the sentence that says what to do; no Job is made for it beside the look."""
    known = replace(KNOWN, platform="other", jobs=JobSettings())
    with_namespace(cluster.server, known.jobs_namespace)
    async with serving(replace(real(tmp_path / "home"), cluster=known)) as api:
        _, key = await api.tenant("other")
        before = len(made(cluster, "other"))
        answer = await push(api, key, pickle.dumps(MODEL))
        assert answer.status_code == 422
        for said in ("yolo export", "--converter", "program"):
            assert said in answer.json()["detail"]
        assert len(made(cluster, "other")) - before == 1
