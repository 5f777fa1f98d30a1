"""What a runtime's headers are believed, and what bounds there are on its series."""

from __future__ import annotations

import pytest
from prometheus_client import generate_latest

from polyolo.gateway.usage import NOTHING, Meter, Metered, metered
from polyolo.telemetry import Metrics


def test_metering_headers_are_read():
    """Model, version, pictures and engine time come from the answer's headers."""
    said = {
        b"polyolo-model": b"city:3",
        b"polyolo-images": b"2",
        b"polyolo-engine-ms": b"8.25",
    }
    assert metered(said) == Metered(model="city", version=3, images=2, engine_ms=8.25)


@pytest.mark.parametrize(
    "said",
    [
        {},
        {b"polyolo-model": b"city:x"},
        {b"polyolo-model": b"\xff:1"},
        {b"polyolo-images": b"many"},
        {b"polyolo-images": b"-1"},
        {b"polyolo-engine-ms": b""},
        {b"polyolo-engine-ms": b"nan"},
        {b"polyolo-engine-ms": b"-5"},
        {b"polyolo-engine-ms": b"inf"},
    ],
)
def test_nonsense_counts_as_nothing(said):
    """A runtime that says what cannot be is not believed, and breaks nothing."""
    assert metered(said) == NOTHING


def test_a_runtime_cannot_make_series_without_end():
    """Models beyond a bound share one label; series of tenants that are gone are dropped."""
    metrics = Metrics()
    meter = Meter(None, metrics)  # type: ignore[arg-type]  # counts only
    for number in range(200):
        meter.count("noisy", f"m{number}", 200, 0.01, cold=True)
        meter.count("quiet", "m", 200, 0.01, cold=False)
    text = generate_latest(metrics.registry).decode()
    assert text.count("polyolo_requests_total{") == 66
    assert 'polyolo_requests_total{code="200",model="other",tenant="noisy"} 136.0' in text
    meter.keep({"quiet"})
    text = generate_latest(metrics.registry).decode()
    assert "noisy" not in text
    assert 'polyolo_requests_total{code="200",model="m",tenant="quiet"} 200.0' in text
