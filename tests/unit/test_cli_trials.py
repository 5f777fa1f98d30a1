"""The command line of versions on trial: what is refused is shown, pictures get numbers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest

from tests.unit.recorded_service import (
    GOLDEN,
    MODEL,
    REPORT,
    ROLLOUT,
    Says,
    Service,
    problem,
    running_service,
)
from tests.unit.test_cli import API, run


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    """Give a service that the environment names, with a tenant's key."""
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.setenv("POLYOLO_API_KEY", "pk_tenant")
        yield service


def test_a_refused_version_is_shown_with_its_comparison(capsys, service):
    """The table goes to stderr, then one sentence; programs get the sentence alone."""
    refusal = problem(409, "below-tolerance", "city:2 is not put in use.")
    refusal.body["comparison"] = REPORT
    service.on("POST", f"{API}/me/models/city/use", refusal)
    status, out, err = run(capsys, "models", "use", "city:2")
    assert (status, out) == (1, "")
    assert re.search(r"cat +3 +1 +0", err)
    assert err.endswith("polyolo: city:2 is not put in use.\n")
    assert run(capsys, "models", "use", "city:2", "--json") == (
        1,
        "",
        "polyolo: city:2 is not put in use.\n",
    )
    service.on("POST", f"{API}/me/models/city/use", Says(body=MODEL))
    assert run(capsys, "models", "use", "city:2", "--force")[0] == 0
    assert service.seen[-1].json == {"version": 2, "force": True}


def test_golden_pictures_take_the_numbers_that_are_free(capsys, service, tmp_path):
    """With the boxes that a file names for them."""
    service.on("GET", f"{API}/me/models/city/golden", Says(body={"golden": [GOLDEN]}))
    for number in (2, 3):
        service.on(
            "PUT",
            f"{API}/me/models/city/golden/{number}",
            Says(body=GOLDEN | {"number": number}),
        )
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"picture")
    boxes = [{"class_name": "cat", "bbox": [1, 2, 3, 4]}]
    (tmp_path / "known.json").write_text(json.dumps({"a.jpg": boxes}))
    pictures = [str(tmp_path / "a.jpg"), str(tmp_path / "b.jpg")]
    known = ["--expected", str(tmp_path / "known.json")]
    status, out, _ = run(capsys, "models", "golden", "add", "city", *pictures, *known)
    assert status == 0
    assert "golden picture 3 of city" in out
    assert service.seen[1].json == {"picture": "cGljdHVyZQ==", "expected": boxes}
    assert service.seen[2].json["expected"] is None


def test_a_rollout_has_a_rule_or_none(capsys, service):
    """--after makes one; --agreement alone is explained and nothing is sent."""
    tried = MODEL | {"rollout": ROLLOUT}
    service.on("PUT", f"{API}/me/models/city/rollout", Says(body=tried))
    begin = ["models", "rollout", "city:2", "--share", "0.2"]
    assert run(capsys, *begin, "--agreement", "0.9")[0] == 1
    assert run(capsys, *begin, "--after", "0")[0] == 1
    assert service.seen == []
    rule = ["--shadow", "--after", "1000", "--agreement", "0.9"]
    assert "sees copies of 20.0%" in run(capsys, *begin, *rule)[1]
    assert service.seen[0].json == {
        "version": 2,
        "share": 0.2,
        "shadow": True,
        "rule": {"after": 1000, "errors": 0.01, "agreement": 0.9},
    }
