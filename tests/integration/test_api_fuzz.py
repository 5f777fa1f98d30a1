"""Requests made up from the OpenAPI document: whatever is sent, the control plane never fails."""

from __future__ import annotations

import asyncio
import time
import warnings
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from hypothesis import HealthCheck, Phase, given, seed, strategies
from hypothesis import settings as settings_of_a_run
from hypothesis.errors import Unsatisfiable

from tests.integration.control_plane import Api, serving, settings
from tests.integration.people import register

with warnings.catch_warnings():  # of what it imports, not ours to mend
    warnings.simplefilter("ignore")
    import schemathesis

WITHIN_S = 60.0
EXAMPLES = {"sqlite": 25, "postgresql": 6}
"""For each operation, of requests that fit its schema and of those that do not. What the second
database may answer differently shows soon: it refuses texts and numbers that the first keeps."""


@pytest_asyncio.fixture
async def api(tmp_path: Path, database: str) -> AsyncIterator[Api]:
    async with serving(settings(tmp_path / "home")) as api:
        yield api


def broken(
    http: httpx.Client, document: dict[str, Any], credentials: list[str], examples: int
) -> list[str]:
    """Send made-up requests for a while; return those that were answered with a 5xx."""
    rules = settings_of_a_run(
        max_examples=examples,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    operations = [
        result.ok() for result in schemathesis.openapi.from_dict(document).get_all_operations()
    ]
    found: list[str] = []
    answered: Counter[int] = Counter()
    for operation in operations:
        until = time.monotonic() + WITHIN_S / len(operations)
        for mode in schemathesis.GenerationMode:

            def send(case: Any, until: float) -> None:
                if time.monotonic() > until:
                    return
                status = answer_of(http, case, credentials[answered.total() % len(credentials)])
                answered[status] += 1
                if status >= 500:
                    found.append(f"{status} {case.as_curl_command()}")

            made_up = given(
                case=operation.as_strategy(generation_mode=mode), until=strategies.just(until)
            )
            with suppress(Unsatisfiable):  # there may be no request that does not fit
                seed(20260101)(rules(made_up(send)))()
    assert answered.total() - answered[0] > 300, answered
    assert answered[200] > 10, answered  # it does not bounce off authentication alone
    return found


def answer_of(http: httpx.Client, case: Any, credential: str) -> int:
    """Send one request; return the status of its answer, 0 for one that cannot be written down."""
    if credential.startswith("pk_") and "tenant" in (case.path_parameters or {}):
        case.path_parameters["tenant"] = "me"  # else no request would get past the 404
    asked = case.as_transport_kwargs(base_url="http://control")
    left_out = ("authorization", "x-api-key", "content-length")
    headers = {k: v for k, v in dict(asked["headers"]).items() if k.lower() not in left_out}
    headers["authorization"] = f"Bearer {credential}"
    content = asked.get("data")
    body = {"data" if isinstance(content, dict) else "content": content}
    if "json" in asked:
        body = {"json": asked["json"]}
    try:
        request = http.build_request(
            asked["method"], asked["url"], params=asked.get("params"), headers=headers, **body
        )
    except (httpx.InvalidURL, ValueError, TypeError, AttributeError):
        return 0
    try:
        return http.send(request).status_code
    except (httpx.LocalProtocolError, UnicodeEncodeError):
        return 0


@pytest.mark.timeout(240)
@pytest.mark.parametrize("database", EXAMPLES, indirect=True)
async def test_whatever_is_sent_nothing_is_answered_with_a_5xx(api: Api, database: str):
    """Every operation, with requests that fit its schema and that do not, as several callers."""
    made = await register(api, "ann@example.com")
    key = made["api_key"]["key"]
    credentials = [key, api.control.operator_key, key, "pk_nobody"]
    document = (await api.http.get("/openapi.json")).json()
    transport = httpx.HTTPTransport(uds=str(api.control.settings.socket))

    def fuzz() -> list[str]:
        with httpx.Client(transport=transport, base_url="http://control", timeout=30) as http:
            return broken(http, document, credentials, EXAMPLES[database])

    assert await asyncio.to_thread(fuzz) == []
    assert (await api.http.get("/readyz")).status_code == 200
