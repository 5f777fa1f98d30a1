"""How long a tenant that sleeps waits for its first answer, and that a crowd starts one runtime.

`python -m tests.bench.wake [--rounds 25] [--warm 2] [--model FILE] PICTURE` runs `polyolo up` and
prints one JSON object. Between two rounds the runtime falls asleep, and the pool of warm processes
is full again.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import json
import statistics
import time
from pathlib import Path

import httpx

from polyolo.models import STANDARD, bundled, sample_boards
from tests.e2e.platform import SHARED, Platform, eventually


def quantiles(seconds: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    milliseconds = {"p50": cuts[49], "p99": cuts[98], "most": max(seconds)}
    return {name: round(value * 1e3, 1) for name, value in milliseconds.items()}


class Sleeper:
    """A tenant that falls asleep at once, and the clock on its first answers."""

    def __init__(self, platform: Platform, name: str, warm: int) -> None:
        self.platform = platform
        self.warm = warm
        tenant, client = platform.tenant(name)
        client.close()
        assert tenant.api_key is not None
        self.id, self.key = tenant.id, tenant.api_key.key
        self.http = httpx.Client(
            base_url=platform.url, headers={"authorization": f"Bearer {platform.operator_key}"}
        )

    def sleeps_soon(self) -> None:
        """Have it sleep after the least time that there is, a few seconds."""
        answer = self.http.patch(f"/api/v1/tenants/{self.id}/limits", json={"idle_s": 0.1})
        assert answer.status_code == 200, answer.text

    def asleep(self) -> None:
        """Wait until no process of it is left, and the pool is full."""
        run = self.platform.home / "run"
        eventually(lambda: not list(run.glob(f"{self.id}*")), within=20, what="it sleeps")
        eventually(
            lambda: len(list(run.glob("~*/io/runtime.sock"))) == self.warm,
            within=30,
            what="warm processes",
        )
        time.sleep(0.7)  # until the last one has imported what it needs

    def first(self, picture: bytes) -> tuple[float, dict]:
        """Return the seconds until the first answer, and the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self.platform.port, timeout=30)
        connection.connect()
        headers = {"authorization": f"Bearer {self.key}", "content-type": "image/jpeg"}
        started = time.perf_counter()
        connection.request("POST", "/v1/detect", picture, headers)
        answer = connection.getresponse()
        body = answer.read()
        took = time.perf_counter() - started
        connection.close()
        assert answer.status == 200, body
        return took, json.loads(body)

    def starts(self) -> int:
        """Return how often its runtime became ready so far."""
        events = self.http.get(f"/api/v1/tenants/{self.id}/audit", params={"limit": 1000}).json()
        return sum(entry["action"] == "runtime.ready" for entry in events["entries"])


async def crowd(url: str, key: str, picture: bytes, number: int) -> dict[str, int]:
    """Send so many requests at once; return the statuses, and how many answers were cold."""
    limits = httpx.Limits(max_connections=number)
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=url, headers=headers, limits=limits, timeout=60) as http:
        answers = await asyncio.gather(
            *(http.post("/v1/detect", content=picture) for _ in range(number))
        )
    seen = {str(one.status_code): 0 for one in answers}
    for one in answers:
        seen[str(one.status_code)] += 1
    return seen | {"cold": sum(one.json().get("cold_start", False) for one in answers)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", nargs="?", type=Path)
    parser.add_argument("--model", type=Path, help="[default: YOLOX-Nano, or pcb:2]")
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--warm", type=int, default=2)
    parser.add_argument("--option", action="append", default=[], help="more for polyolo up")
    args = parser.parse_args()
    nano = SHARED / "models/yolox_nano.onnx"
    model = args.model or (nano if nano.exists() else bundled(*STANDARD))
    picture = args.picture or min((SHARED / "photos").glob("*.jpg"), default=sample_boards()[0])
    platform = Platform()
    figures: dict[str, object] = {}
    try:
        platform.start("--standard-model", str(model), "--warm", str(args.warm), *args.option)
        created = time.perf_counter()
        sleeper = Sleeper(platform, "sleeper", args.warm)
        sleeper.first(picture.read_bytes())
        figures["create_and_detect_s"] = round(time.perf_counter() - created, 3)
        sleeper.sleeps_soon()
        took, totals = [], []
        for _ in range(args.rounds):
            sleeper.asleep()
            seconds, answer = sleeper.first(picture.read_bytes())
            assert answer["cold_start"], answer
            took.append(seconds)
            totals.append(answer["timing_ms"]["total"])
        figures["wake_ms"] = quantiles(took)
        figures["of_that_detection_ms"] = round(statistics.median(totals), 1)
        awake = [sleeper.first(picture.read_bytes())[0] for _ in range(20)]
        figures["awake_ms"] = quantiles(awake)
        sleeper.asleep()
        fresh = Sleeper(platform, "fresh", args.warm)
        figures["crowd_of_100"] = asyncio.run(
            crowd(platform.url, fresh.key, picture.read_bytes(), 100)
        )
        figures["starts_for_the_crowd"] = fresh.starts()
    finally:
        platform.close()
    print(json.dumps(figures))


if __name__ == "__main__":
    main()
