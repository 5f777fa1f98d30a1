"""Versions through the control API: compared before use, put on trial, taken out, deleted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.control_plane import Api, serving, settings, until
from tests.integration.versions_parts import MODEL, PNG, events, golden, model, report, use

pytestmark = pytest.mark.asyncio(loop_scope="module")
NAMES = (f"acme-{number}" for number in count())


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def api(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Api]:
    """Give one control plane that the tests share; each takes a tenant of its own."""
    async with serving(settings(tmp_path_factory.mktemp("v") / "home")) as api:
        yield api


@pytest_asyncio.fixture(loop_scope="module")
async def acme(api: Api) -> tuple[str, str]:
    """Give a tenant with three versions: the first in use, the second bad, the third good."""
    tenant, key = await api.tenant(next(NAMES))
    await api.ready(tenant)
    for content in (b"model one", b"model bad", b"model three"):
        answer = await api.ask("POST", f"{MODEL}/versions", key, content=content)
        assert answer.status_code == 201, answer.text
    return tenant, key


async def test_below_the_tolerance_use_is_refused_with_the_table(api: Api, acme):
    """409 with the comparison as a member of the problem; the version in use stays."""
    _, key = acme
    await golden(api, key)
    refused = await use(api, key, 2)
    assert refused.status_code == 409
    problem = refused.json()
    assert problem["type"] == "urn:polyolo:error:below-tolerance"
    assert "agrees on 0.100 of the boxes, and 0.900 is asked for" in problem["detail"]
    comparison = problem["comparison"]
    assert (comparison["version"], comparison["reference"], comparison["passed"]) == (2, 1, False)
    assert comparison["comparison"]["classes"] == [
        {"name": "cat", "both": 1, "missing": 9, "extra": 0}
    ]
    assert (await model(api, key))["current"] == 1
    assert (await use(api, key, 3)).json()["current"] == 3
    action, _, detail = next(one for one in await events(api, key) if one[0] == "model.use")
    assert action == "model.use"
    assert detail == "agreement 1.000 on 1 golden picture, time x1.00, memory x1.00"


async def test_force_is_allowed_and_audited(api: Api, acme):
    """What the comparison showed stands in the event."""
    _, key = acme
    await golden(api, key)
    assert (await use(api, key, 2, force=True)).json()["current"] == 2
    detail = next(one[2] for one in await events(api, key) if one[0] == "model.use")
    assert "agreement 0.100 on 1 golden picture (cat 9 missing, 0 extra)" in detail
    assert detail.endswith("forced")


async def test_the_tolerance_is_the_tenants(api: Api, acme):
    """A lower one lets a version in; one of one's own counts on the platform's pictures too."""
    _, key = acme
    await golden(api, key)
    await api.ask("PATCH", f"{MODEL}/settings", key, json={"tolerance": 0.1})
    assert (await use(api, key, 2)).status_code == 200
    await api.ask("DELETE", f"{MODEL}/golden/1", key)
    await api.ask("POST", f"{MODEL}/rollback", key)
    await api.ask("PATCH", f"{MODEL}/settings", key, json={"tolerance": 0.5})
    assert (await use(api, key, 2)).status_code == 409
    await api.ask("PATCH", f"{MODEL}/settings", key, json={"tolerance": None})
    shown = (await api.ask("GET", f"{MODEL}/versions/2/comparison", key)).json()
    assert (shown["passed"], shown["pictures"], shown["tolerance"]) == (True, "samples", None)
    assert "the platform's sample pictures" in shown["note"]
    assert (await use(api, key, 2)).status_code == 200


async def test_known_boxes_let_a_better_version_in(api: Api, acme):
    """Against what is known, as good as the version in use is good enough, the tolerance apart."""
    _, key = acme
    await golden(api, key, expected=[{"class_name": "cat", "bbox": [1, 2, 3, 4]}])
    await use(api, key, 2, force=True)
    assert (await api.ask("POST", f"{MODEL}/versions", key, content=b"model half")).is_success
    better = await use(api, key, 4)  # 0.5 of what is known, and 0.1 before
    assert better.json()["current"] == 4, better.text
    assert (await use(api, key, 2)).status_code == 409


async def test_a_version_that_ends_the_comparison_is_refused(api: Api, acme):
    """Whatever a file does to who looks at it: 409, and the version in use stays."""
    _, key = acme
    await api.ask("POST", f"{MODEL}/versions", key, content=b"model abort")
    refused = await use(api, key, 4)
    assert refused.status_code == 409
    assert "did not come to an end" in refused.json()["detail"]


async def test_concurrent_uses_compare_once_and_end_alike(api: Api, acme):
    """Four at once: no error, one winner in force, each change of the history one event."""
    _, key = acme
    answers = await asyncio.gather(*(use(api, key, 3) for _ in range(4)))
    assert {answer.status_code for answer in answers} == {200}
    uses = [one for one in await events(api, key) if one[0] == "model.use"]
    assert len(uses) == 1


async def test_golden_pictures_are_bounded_sealed_and_never_shown(api: Api, acme):
    """Numbers, sizes and counts are told; pictures lie sealed in the store and go with the row."""
    tenant, key = acme

    def stored() -> dict[str, bytes]:
        folder = api.control.settings.artifacts / tenant
        return {one.name: one.read_bytes() for one in folder.glob("*") if one.is_file()}

    before = set(stored())
    first = await golden(api, key)
    assert first.json() == {
        "number": 1,
        "size": len(PNG),
        "expected": None,
        "created_at": first.json()["created_at"],
    }
    boxes = [{"class_name": "cat", "bbox": [1, 2, 3, 4]}]
    assert (await golden(api, key, 2, expected=boxes)).json()["expected"] == 1
    assert (await golden(api, key, 3, expected=[])).json()["expected"] == 0
    listed = (await api.ask("GET", f"{MODEL}/golden", key)).json()["golden"]
    assert [one["number"] for one in listed] == [1, 2, 3]
    assert len(set(stored()) - before) == 1  # the same bytes three times
    assert not any(b"canary" in data for data in stored().values())
    for number in (1, 2):
        assert (await api.ask("DELETE", f"{MODEL}/golden/{number}", key)).status_code == 204
        assert len(set(stored()) - before) == 1
    assert (await api.ask("DELETE", f"{MODEL}/golden/3", key)).status_code == 204
    assert set(stored()) == before
    assert (await api.ask("DELETE", f"{MODEL}/golden/3", key)).status_code == 404
    await golden(api, key)
    await api.ask("DELETE", MODEL, key)
    assert not any(name for name in stored() if name not in before)


NO_GOLDEN = [
    (0, {}, 422, "1 to 100"),
    (101, {}, 422, "1 to 100"),
    (1, {"expected": [{"class_name": "cat", "bbox": [3, 2, 1, 4]}]}, 422, "x1 < x2"),
    (1, {"expected": [{"class_name": "cat", "bbox": [1, 2, 3]}]}, 422, "expected"),
    (1, {"expected": "cat"}, 422, "expected"),
    (1, {"treshold": 1}, 400, "picture"),
]


async def test_what_is_no_golden_picture(api: Api, acme):
    """A sentence that names the field; nothing is kept."""
    _, key = acme
    for number, document, status, said in NO_GOLDEN:
        answer = await golden(api, key, number, **document)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["detail"]
    text = await api.ask("PUT", f"{MODEL}/golden/1", key, content=b"plain text")
    assert text.status_code == 415
    large = await api.ask("PUT", f"{MODEL}/golden/1", key, content=PNG + bytes(9 << 20))
    assert large.status_code == 413
    assert (await api.ask("GET", f"{MODEL}/golden", key)).json()["golden"] == []


async def test_a_rollout_is_begun_changed_and_aborted(api: Api, acme):
    """The runtime is told; the same again changes nothing; abort twice is once."""
    tenant, key = acme
    body = {"version": 3, "share": 0.2}
    begun = (await api.ask("PUT", f"{MODEL}/rollout", key, json=body)).json()["rollout"]
    assert (begun["state"], begun["share"], begun["shadow"]) == ("running", 0.2, False)
    told = api.spec(tenant)
    assert told["models"][0]["rollout"]["share"] == 0.2
    since = told["models"][0]["rollout"]["since"]
    assert since == told["generation"]
    await api.ask("PUT", f"{MODEL}/rollout", key, json=body)
    assert api.spec(tenant)["generation"] == since
    await api.ask("PUT", f"{MODEL}/rollout", key, json=body | {"share": 0.5})
    assert api.spec(tenant)["models"][0]["rollout"] == told["models"][0]["rollout"] | {"share": 0.5}
    assert (await api.ask("DELETE", f"{MODEL}/versions/3", key)).status_code == 409
    for _ in range(2):
        ended = (await api.ask("DELETE", f"{MODEL}/rollout", key)).json()["rollout"]
        assert (ended["state"], ended["reason"]) == ("aborted", "by hand")
    assert api.spec(tenant)["models"][0]["rollout"] is None
    aborts = [one for one in await events(api, key) if one[0] == "model.rollout-abort"]
    assert len(aborts) == 1
    assert (await api.ask("POST", f"{MODEL}/rollout/promote", key)).status_code == 409


NO_ROLLOUT = [
    ({"version": 3, "share": 1.5}, 422, "share must lie between 0 and 1"),
    ({"version": 1, "share": 0.5}, 409, "in use already"),
    ({"version": 9, "share": 0.5}, 404, "version 9"),
    ({"version": 3, "share": 0.5, "rule": {"after": 0}}, 422, "after must be 1 to"),
    ({"version": 3, "share": 0.5, "rule": {"after": 5, "agreement": 0.9}}, 422, "shadow"),
    ({"version": 3, "share": 0.5, "rule": {"after": 5, "errors": 2}}, 422, "errors must lie"),
]


async def test_a_rollout_that_makes_no_sense(api: Api, acme):
    """Named field and range; nothing is begun."""
    _, key = acme
    for body, status, said in NO_ROLLOUT:
        answer = await api.ask("PUT", f"{MODEL}/rollout", key, json=body)
        assert answer.status_code == status, answer.text
        assert said in answer.json()["detail"]
    assert (await api.ask("GET", f"{MODEL}/rollout", key)).json() is None


def shown(version: int, **counts: Any) -> dict[str, Any]:
    return {"name": "city", "version": version, "state": "ready", "rollout": counts}


async def rollout(api: Api, key: str, state: str) -> dict[str, Any]:
    async def look() -> Any:
        found = (await api.ask("GET", f"{MODEL}/rollout", key)).json()
        return found if found["state"] == state else None

    return await until(look)


async def test_a_rule_promotes_what_is_good_enough(api: Api, acme):
    """By what the runtime reports, over its restarts; compared like any other before use."""
    tenant, key = acme
    body = {"version": 3, "share": 0.5, "rule": {"after": 100}}
    await api.ask("PUT", f"{MODEL}/rollout", key, json=body)
    await report(api, tenant, shown(3, seen=120, requests=60))

    async def counted() -> bool:
        return (await api.ask("GET", f"{MODEL}/rollout", key)).json()["status"]["requests"] == 60

    await until(counted)
    await report(api, tenant, shown(3, seen=90, requests=45))  # fewer: the runtime was restarted
    ended = await rollout(api, key, "promoted")
    assert ended["status"]["requests"] == 105
    assert (await model(api, key))["current"] == 3
    action, actor, detail = next(one for one in await events(api, key) if one[0] == "model.use")
    assert (action, actor) == ("model.use", "platform")
    assert detail.startswith("0 errors in 105 requests; agreement 1.000")


async def test_a_rule_aborts_what_is_not(api: Api, acme):
    """A shadow below the agreement that was asked for; the version in use stays."""
    tenant, key = acme
    rule = {"after": 10, "agreement": 0.9}
    body = {"version": 3, "share": 1, "shadow": True, "rule": rule}
    await api.ask("PUT", f"{MODEL}/rollout", key, json=body)
    comparison = {"pictures": 10, "agreement": 0.8, "classes": [{"name": "cat", "both": 8}]}
    comparison["classes"][0]["missing"] = 2
    await report(api, tenant, shown(3, seen=10, requests=10, comparison=comparison))
    ended = await rollout(api, key, "aborted")
    assert "agreement 0.800 after 10 pictures is below 0.9" in ended["reason"]
    assert ended["status"]["comparison"]["classes"][0]["missing"] == 2
    assert (await model(api, key))["current"] == 1


async def test_a_promotion_by_rule_goes_through_the_gate(api: Api, acme):
    """What answers without errors, but disagrees with the golden pictures, is aborted."""
    tenant, key = acme
    await golden(api, key)
    body = {"version": 2, "share": 0.5, "rule": {"after": 10}}
    await api.ask("PUT", f"{MODEL}/rollout", key, json=body)
    await report(api, tenant, shown(2, seen=20, requests=10))
    ended = await rollout(api, key, "aborted")
    assert "agrees on 0.100" in ended["reason"]
    assert (await model(api, key))["current"] == 1


async def test_a_canary_that_fails_is_aborted_without_a_rule(api: Api, acme):
    """Its process ended, or it does not load: the reason is the tenant's to read."""
    tenant, key = acme
    await api.ask("PUT", f"{MODEL}/rollout", key, json={"version": 3, "share": 0.5})
    failed = shown(3) | {"state": "failed", "reason": "its process ended: SIGSEGV", "crashes": 1}
    await report(api, tenant, failed)
    ended = await rollout(api, key, "aborted")
    assert ended["reason"] == "its process ended: SIGSEGV"
    found = await events(api, key)
    assert ("model.rollout-abort", "platform", "its process ended: SIGSEGV") in found


async def test_promotion_by_hand_and_use_end_a_rollout(api: Api, acme):
    """The one that is on trial: promoted; another one: aborted, since it has no ground any more."""
    _, key = acme
    await api.ask("PUT", f"{MODEL}/rollout", key, json={"version": 3, "share": 0.5})
    promoted = (await api.ask("POST", f"{MODEL}/rollout/promote", key)).json()
    assert (promoted["current"], promoted["rollout"]["state"]) == (3, "promoted")
    await api.ask("PUT", f"{MODEL}/rollout", key, json={"version": 2, "share": 0.5})
    used = (await use(api, key, 1)).json()
    assert (used["current"], used["rollout"]["state"]) == (1, "aborted")
    assert used["rollout"]["reason"] == "another version was put in use"


async def test_what_keeps_crashing_is_rolled_back_by_the_platform(api: Api, acme):
    """The tenant sees why; going back by hand after that goes no further; use needs force."""
    tenant, key = acme
    await use(api, key, 2)
    await use(api, key, 3)
    reason = "its process ended 5 times within 600 s: it was ended by signal SIGSEGV"
    crashed = {"name": "city", "version": 3, "state": "failed", "reason": reason, "crashes": 5}
    await report(api, tenant, crashed)

    async def back() -> Any:
        found = await model(api, key)
        return found if found["current"] == 2 else None

    found = await until(back)
    assert found["rolled_back_from"] == 3
    assert found["versions"][2]["taken_out"] == reason
    assert (
        "model.rollback",
        "platform",
        f"from 3: {reason}",
    ) in await events(api, key)
    told = api.spec(tenant)["models"][0]
    assert (told["current"], told["fallback"]) == (2, 1)
    again = await api.ask("POST", f"{MODEL}/rollback", key)
    assert again.json()["current"] == 2
    refused = await use(api, key, 3)
    assert refused.status_code == 409
    assert "was taken out of use: its process ended 5 times" in refused.json()["detail"]
    (api.control.settings.run / tenant / "report.json").unlink()
    forced = (await use(api, key, 3, force=True)).json()
    assert forced["current"] == 3
    assert forced["versions"][2]["taken_out"] == ""


async def test_what_keeps_crashing_stays_where_there_is_nothing_better(api: Api, acme):
    """Without a version to go back to, the tenant sees it failed, and why."""
    tenant, key = acme
    crashed = {"name": "city", "version": 1, "state": "failed", "reason": "why", "crashes": 5}
    await report(api, tenant, crashed)

    async def seen() -> bool:
        found = await model(api, key)
        return (found["state"], found["reason"]) == ("failed", "why")

    await until(seen)
    assert (await model(api, key))["current"] == 1


async def test_one_version_is_deleted_and_its_number_never_comes_back(api: Api, acme):
    """Not the one in use; the fallback may go; the next push has the next number."""
    tenant, key = acme
    await use(api, key, 3)
    assert (await api.ask("DELETE", f"{MODEL}/versions/3", key)).status_code == 409
    for number in (1, 2):
        assert (await api.ask("DELETE", f"{MODEL}/versions/{number}", key)).status_code == 204
    assert (await api.ask("DELETE", f"{MODEL}/versions/1", key)).status_code == 404
    assert [one["version"] for one in (await model(api, key))["versions"]] == [3]
    assert api.spec(tenant)["models"][0]["fallback"] == 0
    nothing = await api.ask("POST", f"{MODEL}/rollback", key)
    assert nothing.status_code == 409
    pushed = await api.ask("POST", f"{MODEL}/versions", key, content=b"model four")
    assert pushed.json()["version"] == 4


async def test_engine_size_and_precision_reach_every_version_of_the_spec(api: Api, acme):
    """One place for all: the runtime opens each version so; what cannot be opened so is refused."""
    tenant, key = acme
    changed = await api.ask(
        "PATCH",
        f"{MODEL}/settings",
        key,
        json={"engine": "onnxruntime", "input_size": 320, "precision": "fast"},
    )
    assert changed.status_code == 200, changed.text
    await golden(api, key)
    await use(api, key, 3)
    versions = api.spec(tenant)["models"][0]["versions"]
    assert {(one["engine"], one["input_size"], one["precision"]) for one in versions} == {
        ("onnxruntime", 320, "fast")
    }
    refused = await api.ask("PATCH", f"{MODEL}/settings", key, json={"engine": "openvino"})
    assert refused.status_code == 422
    assert "openvino is not installed" in refused.json()["detail"]
    assert (await api.ask("GET", f"{MODEL}/settings", key)).json()["engine"] == "onnxruntime"
