"""Files that mean harm: each is refused with a reason, and nobody outside the sandbox notices."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from polyolo import models
from polyolo.control import intake
from polyolo.control.intake import judge
from polyolo.control.memfile import gathered
from polyolo.errors import ModelRefusedError
from polyolo.sandbox.job import Ending, run_job
from polyolo.sandbox.layers import Isolation
from polyolo.sandbox.probe import probe
from polyolo.sandbox.programs import Local
from polyolo.serving.onnxfile import refuse_unless_self_contained
from tests.integration.control_plane import Api, serving, until
from tests.integration.test_control_real_runtime import SAMPLES, real
from tests.unit import hostile_graphs as hostile

INSPECT = (sys.executable, "-m", "polyolo.serving", "inspect")
MUTANTS = Path(__file__).with_name("mutants.py")


@pytest.fixture(scope="module")
def isolation() -> Isolation:
    return probe()


def inspect(isolation: Isolation) -> Local:
    return Local(command=INSPECT, isolation=isolation)


def refusal(content: bytes, isolation: Isolation, time_s: float = 30.0) -> str:
    """Return why a file is refused."""
    with gathered([content]) as file, pytest.raises(ModelRefusedError) as caught:
        judge(file, (), inspect(isolation), time_s=time_s)
    return caught.value.detail


def test_the_graph_under_the_hostile_ones_is_good(isolation: Isolation):
    """What is refused below is refused for what was added to it."""
    for content in (hostile.good().SerializeToString(), hostile.with_tail([], [hostile.constant("tail", 1)])):  # noqa: E501  # fmt: skip
        with gathered([content]) as file:
            facts = judge(file, (), inspect(isolation))
        assert (facts.family, facts.classes) == ("yolov8", ("cat", "dog", "bird"))


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (hostile.crashing, "crash"),
        (lambda: hostile.terabytes(known_ahead=True), "fails on a test picture"),
        (lambda: hostile.terabytes(known_ahead=False), "fails on a test picture"),
        (hostile.custom, "'Operator' of 'evil'"),
        (hostile.custom_in_a_branch, "'Operator' of 'evil'"),
        (lambda: hostile.custom("com.microsoft", "EPContext"), "'EPContext' of 'com.microsoft'"),
        (hostile.zip_bomb, "a zip archive"),
        (hostile.zipped, "a zip archive"),
        (hostile.gzipped, "gzip-compressed"),
    ],
)
def test_refused_with_a_reason(make: Callable[[], bytes], reason: str, isolation: Isolation):
    """By the real inspection in the real sandbox."""
    assert reason in refusal(make(), isolation)


@pytest.mark.parametrize("make", [hostile.endless, hostile.exploding])
def test_what_has_no_end_is_ended(make: Callable[[], bytes], isolation: Isolation):
    """A loop without end, and functions that call each other 10^12 times."""
    assert "longer than 2 s" in refusal(make(), isolation, time_s=2.0)


def test_weights_in_other_files_wherever_they_hide(isolation: Isolation):
    """Each place is found before an engine opens the file; through the sandbox for some."""
    hidden = hostile.hidden("/etc/passwd")
    assert len(hidden) == 16
    for where, content in hidden.items():
        with pytest.raises(ModelRefusedError) as caught:
            refuse_unless_self_contained(content)
        assert "lie in other files" in caught.value.detail, where
    for location in ("../../../../etc/passwd", "passwd"):
        content = hostile.hidden(location)["six graphs deep"]
        assert "lie in other files" in refusal(content, isolation)


def test_a_thousand_damaged_models(isolation: Isolation):
    """Cut off, bits flipped, bytes lost and doubled: facts or a reason for each, no crash."""
    count, came = 1000, Counter[str]()
    with gathered([hostile.good().SerializeToString()]) as model:
        outcome = run_job(
            [sys.executable, str(MUTANTS), *map(str, (model.descriptor, 20261, 0, count))],
            replace(intake.CONFINEMENT, readable=(MUTANTS,)),
            isolation,
            time_s=60.0,
            passed_fds=(model.descriptor,),
        )
    assert (outcome.ending, outcome.code) == (Ending.EXITED, 0), outcome.errors.decode()
    for line in outcome.output.decode().splitlines():
        came[line.split(" ", 2)[1]] += 1
    assert came.total() == count
    assert came["refused"] > count / 2
    assert set(came) == {"refused", "accepted"}  # a weight's bit flipped is a model too


@pytest_asyncio.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    async with serving(real(tmp_path / "home")) as api:
        yield api


async def test_a_hostile_tenant_beside_another_one(api: Api):
    """While its files are refused one after the other, its neighbour detects and pushes."""
    tenant, key = await api.tenant("hostile")
    neighbour, good_key = await api.tenant("neighbour")
    status = await api.ready(neighbour)
    await api.ready(tenant)
    picture = min(SAMPLES.glob("*.jpg")).read_bytes()
    standing, running = files(api.control.settings.home), api.pid(neighbour)
    over = asyncio.Event()

    async def detects() -> Counter[int]:
        codes: Counter[int] = Counter()
        endpoint = status["endpoints"][0].removeprefix("unix:")
        transport = httpx.AsyncHTTPTransport(uds=endpoint)
        async with httpx.AsyncClient(transport=transport, base_url="http://runtime") as runtime:
            while not over.is_set():
                codes[(await runtime.post("/v1/detect", content=picture)).status_code] += 1
                await asyncio.sleep(0.01)
        return codes

    detecting = asyncio.create_task(detects())
    contents = [
        hostile.crashing(),
        hostile.terabytes(known_ahead=False),
        hostile.custom(),
        hostile.zip_bomb(),
        hostile.hidden("/etc/passwd")["a loop's body"],
        *(hostile.good().SerializeToString()[:end] for end in (1, 100, 1500, 2800)),
    ]
    path = "/tenants/me/models/{}/versions"
    answers = await asyncio.gather(
        *(api.ask("POST", path.format("evil"), key, content=content) for content in contents),
        api.ask(
            "POST",
            path.format("mine"),
            good_key,
            content=models.bundled("pcb", 1).read_bytes(),
        ),
    )
    over.set()
    codes = await detecting
    assert [answer.status_code for answer in answers] == [422] * len(contents) + [201]
    for answer in answers[:-1]:
        assert answer.json()["type"] == "urn:polyolo:error:model-refused"
        assert "/" not in answer.json()["detail"].replace("and/or", "")  # no path of this machine
    assert set(codes) == {200}
    assert codes.total() > 3
    assert api.pid(neighbour) == running

    async def only_the_neighbours() -> bool:
        new = files(api.control.settings.home) - standing
        return len(new) == 2  # the model, and the runtime's link to it

    await until(only_the_neighbours)
    names = [m["name"] for m in (await api.ask("GET", "/tenants/me/models", key)).json()["models"]]
    assert names == ["standard"]


def files(home: Path) -> set[str]:
    """Return the model files of a platform."""
    found = (file for file in home.rglob("*") if file.is_file())
    return {str(file) for file in found if "artifacts" in file.parts or file.suffix == ".onnx"}


async def test_a_file_exchanged_before_the_swap_is_not_served(api: Api):
    """Whoever can write to the store: other bytes, another version, another tenant's are refused
    by the runtime, and what served before goes on."""
    tenant, key = await api.tenant("acme")
    await api.ready(tenant)
    good = [models.bundled("pcb", number).read_bytes() for number in (1, 2)]
    versions = []
    for content in (*good, hostile.good().SerializeToString()):
        answer = await api.ask("POST", "/tenants/me/models/city/versions", key, content=content)
        versions.append(answer.json())
    folders = (
        api.control.settings.artifacts / tenant,
        api.control.settings.run / tenant / "models",
    )

    def exchange(digest: str, content: bytes) -> None:
        for name in (digest, f"{digest}.onnx"):
            for folder in folders:
                if (folder / name).exists():
                    (folder / name).unlink()
                    (folder / name).write_bytes(content)

    sealed = (folders[0] / versions[0]["digest"]).read_bytes()
    flipped = bytearray((folders[0] / versions[2]["digest"]).read_bytes())
    flipped[len(flipped) // 2] ^= 1
    for number, content in ((2, sealed), (2, good[0]), (3, bytes(flipped))):
        exchange(versions[number - 1]["digest"], content)
        path = "/tenants/me/models/city/use?force=true"
        await api.ask("POST", path, key, json={"version": number, "force": True})
        status = (await api.ask("GET", "/tenants/me/runtime", key)).json()
        state = next(m for m in status["models"] if (m["name"], m["version"]) == ("city", number))
        assert state["state"] == "failed", status
        assert "its file" in state["reason"]
