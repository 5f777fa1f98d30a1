"""`polyolo bench`: what is sent, what is counted, and what a refusal does to the figures."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from polyolo.cli import bench, main
from polyolo.cli.bench import Spread, spread
from polyolo.models import sample_boards
from tests.unit.recorded_service import ANSWER, Says, Service, problem, running_service


@pytest.fixture
def service(monkeypatch) -> Iterator[Service]:
    with running_service() as service:
        monkeypatch.setenv("POLYOLO_URL", service.url)
        monkeypatch.setenv("POLYOLO_API_KEY", "pk_tenant")
        yield service


def test_each_request_but_the_first_is_counted(capsys, service):
    """Without pictures the bundled ones are sent in turns, to the model that is named."""
    service.on("POST", "/v1/detect", Says(body=ANSWER | {"cold_start": True}))
    assert main(["bench", "--requests", "9", "--in-flight", "3", "--model", "city", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 9
    assert report["model"] == "city:3"
    assert report["cold_start"] is True
    assert report["refused"] == {}
    assert report["runtime_ms"]["inference"] == {"p50": 8.2, "p90": 8.2, "p99": 8.2, "most": 8.2}
    assert report["images_per_second"] == pytest.approx(9 / report["seconds"], rel=0.02)
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["most"]
    assert len(service.seen) == 10
    boards = {path.read_bytes() for path in sample_boards()}
    assert {one.body for one in service.seen} == boards
    assert {tuple(one.query) for one in service.seen} == {(("model", "city"),)}


def test_figures_for_people(capsys, service, tmp_path):
    """A person sees the same, as a table."""
    (tmp_path / "a.jpg").write_bytes(b"picture")
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    assert main(["bench", str(tmp_path), "--requests", "2"]) == 0
    said = capsys.readouterr().out
    for part in ("city:3", "8 at once", "2 images", "images/s", "p99", "in the runtime: decode"):
        assert part in said
    assert {one.body for one in service.seen} == {b"picture"}


def test_a_rate_is_kept(capsys, service):
    """Requests are due at equal times, whether or not the one before was answered."""
    service.on("POST", "/v1/detect", Says(body=ANSWER))
    assert main(["bench", "--rate", "50", "--seconds", "0.4", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["images"] + sum(report["refused"].values()) == 20
    assert report["rate"] == 50
    assert report["seconds"] >= 19 / 50


def test_a_refusal_is_counted_and_never_tried_again(capsys, service):
    """What is beyond the plan's limit is part of the outcome; without an answer it has failed."""
    over = problem(429, "rate-limited", "too many", **{"retry-after": "0"})
    service.on("POST", "/v1/detect", Says(body=ANSWER), over)
    assert main(["bench", "--requests", "5", "--in-flight", "1", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert report["images"] == 0
    assert report["latency_ms"] is None
    assert sum(report["refused"].values()) == 5
    assert all(why.startswith("429") for why in report["refused"])
    assert len(service.seen) == 6


def test_what_concerns_all_requests_ends_it(capsys, service):
    """A key that is unknown, or a model: one sentence, and one request."""
    service.on("POST", "/v1/detect", problem(401, "unauthenticated", "this key is unknown"))
    assert main(["bench"]) == 1
    assert capsys.readouterr().err == "polyolo: this key is unknown\n"
    assert len(service.seen) == 1


def test_pictures_are_read_before_the_first_is_sent(capsys, service, tmp_path, monkeypatch):
    """A folder that would not fit into memory is refused, and so is a file that is not there."""
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / name).write_bytes(b"1234")
    monkeypatch.setattr(bench, "_MOST_BYTES", 7)
    assert main(["bench", str(tmp_path)]) == 1
    assert "name fewer of them" in capsys.readouterr().err
    missing = tmp_path / "no.jpg"
    assert main(["bench", str(missing)]) == 1
    assert str(missing) in capsys.readouterr().err
    assert service.seen == []


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([5.0], Spread(p50=5.0, p90=5.0, p99=5.0, most=5.0)),
        ([4.0, 1.0, 3.0, 2.0], Spread(p50=2.0, p90=4.0, p99=4.0, most=4.0)),
        (list(range(1, 201)), Spread(p50=100, p90=180, p99=198, most=200)),
    ],
)
def test_percentiles_are_values_that_were_seen(values, expected):
    """Nearest rank: a 99th percentile of few values is the largest one."""
    assert spread(values) == expected
