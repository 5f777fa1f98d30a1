"""`polyolo bench`: how many pictures a second a service answers, and how long each takes."""

from __future__ import annotations

import asyncio
import itertools
import math
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import httpx
from cyclopts import Parameter
from cyclopts.types import PositiveFloat, PositiveInt
from cyclopts.validators import Number

from polyolo import models
from polyolo.cli.detect import find_pictures
from polyolo.cli.door import KEY, AsKey, key_of_tenant
from polyolo.cli.output import console, fields, progress, say, show_json, table
from polyolo.client import AsyncClient
from polyolo.errors import InvalidValueError, PolyoloError
from polyolo.types import DetectAnswer

_MOST_BYTES = 256 << 20
"""Of pictures, which are read before the first is sent."""
_STAGES = ("queue", "decode", "inference", "postprocess", "total")


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """How long something took, milliseconds."""

    p50: float
    p90: float
    p99: float
    most: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a load test has found."""

    model: str
    in_flight: int
    rate: float | None
    """Requests a second that were asked for; None for as many as there are answers."""
    seconds: float
    """From the first request to the last answer."""
    images: int
    """Answered."""
    images_per_second: float
    latency_ms: Spread | None
    """As seen from here; from when a request was due, where there is a rate. None: no answers."""
    runtime_ms: dict[str, Spread]
    """Where the runtime spent its part of that."""
    refused: dict[str, int]
    """Requests without an answer, by what there was instead."""
    first_ms: float
    """The first request, which is not counted: it opens the connection, and wakes the runtime."""
    cold_start: bool
    """Whether it had to."""


@dataclass(slots=True)
class _Seen:
    """What comes in while the load runs."""

    latency: list[float] = field(default_factory=list)  # seconds
    stages: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _STAGES})
    refused: Counter[str] = field(default_factory=Counter)

    def note(self, seconds: float, answer: DetectAnswer) -> None:
        self.latency.append(seconds)
        for name, values in self.stages.items():
            values.append(getattr(answer.timing_ms, name))


def bench(
    *images: str,
    model: str | None = None,
    seconds: PositiveFloat = 10.0,
    requests: PositiveInt | None = None,
    in_flight: Annotated[int, Parameter(validator=Number(gte=1, lte=100))] = 8,
    rate: PositiveFloat | None = None,
    door: AsKey = KEY,
) -> int:
    """Load-test a service: images a second, 50th and 99th percentile.

    It counts as use of the tenant, and within its limits: what goes beyond is refused, and shown.

    Args:
        images: Files, folders, or patterns, sent in turns. [default: the bundled sample boards]
        model: NAME or NAME:VERSION. [default: the tenant's default model]
        seconds: How long requests are sent.
        requests: End after so many requests, if that is sooner.
        in_flight: Requests at once, each on a connection of its own, up to 100.
        rate: Requests a second, each timed from when it was due. [default: the next one follows
            an answer]
    """
    pictures = _read(find_pictures(images) if images else models.sample_boards())
    client = AsyncClient(door.url, key_of_tenant(door), ca=door.ca)
    with progress("asking", math.ceil(seconds), of_bytes=False) as at:
        report = asyncio.run(_ask(client, pictures, model, seconds, requests, in_flight, rate, at))
    if door.json:
        show_json(report)
    else:
        _print(report)
    return 0 if report.images else 1


def _read(files: Iterable[Path]) -> list[bytes]:
    """Return the pictures. Raises OSError, and InvalidValueError for too many bytes."""
    pictures: list[bytes] = []
    left = _MOST_BYTES
    for file in files:
        left -= file.stat().st_size
        if left < 0:
            raise InvalidValueError(
                f"the pictures are more than {_MOST_BYTES >> 20} MiB, and all are read before the "
                "first is sent; name fewer of them"
            )
        pictures.append(file.read_bytes())
    return pictures


async def _ask(
    client: AsyncClient,
    pictures: Sequence[bytes],
    model: str | None,
    seconds: float,
    requests: int | None,
    in_flight: int,
    rate: float | None,
    at: Callable[[int], None],
) -> Report:
    """Ask for so long. Raises what the first request does: it would concern all of them."""
    seen = _Seen()
    async with client:
        began = time.perf_counter()
        first = await client.detect(pictures[0], model=model)
        start = time.perf_counter()
        client.retries = 0  # from now on, what is refused is part of what is measured
        numbers = itertools.count() if requests is None else iter(range(requests))

        async def work() -> None:
            for number in numbers:
                now = time.perf_counter()
                due = now if rate is None else start + number / rate
                if due >= start + seconds:
                    return
                if now >= start + seconds:
                    seen.refused["not sent: as many as may be were waiting for an answer"] += 1
                    continue
                await asyncio.sleep(due - now)
                try:
                    answer = await client.detect(pictures[number % len(pictures)], model=model)
                except PolyoloError as error:
                    seen.refused[_why(error)] += 1
                    if rate is None:  # else it would ask as fast as it is turned away
                        left = start + seconds - time.perf_counter()
                        await asyncio.sleep(min(error.retry_after or 0.0, left))
                else:
                    seen.note(time.perf_counter() - due, answer)
                at(min(math.ceil(seconds), int(time.perf_counter() - start)))

        await asyncio.gather(*(work() for _ in range(in_flight)))
        took = time.perf_counter() - start
    return Report(
        model=str(first.model),
        in_flight=in_flight,
        rate=rate,
        seconds=round(took, 3),
        images=len(seen.latency),
        images_per_second=round(len(seen.latency) / took, 2),
        latency_ms=spread([1e3 * one for one in seen.latency]) if seen.latency else None,
        runtime_ms={name: spread(values) for name, values in seen.stages.items() if values},
        refused=dict(seen.refused.most_common()),
        first_ms=round(1e3 * (start - began), 2),
        cold_start=first.cold_start,
    )


def spread(values: Sequence[float]) -> Spread:
    """Return the percentiles of some values, each one of them (nearest rank)."""
    ranked = sorted(values)

    def at(part: float) -> float:
        return round(ranked[math.ceil(part * len(ranked)) - 1], 2)

    return Spread(p50=at(0.5), p90=at(0.9), p99=at(0.99), most=at(1.0))


def _why(error: PolyoloError) -> str:
    if isinstance(error.__cause__, httpx.TransportError):
        return "no answer"
    return f"{error.status} {error.title}"


def _print(report: Report) -> None:
    pace = f"at {report.rate:g} a second" if report.rate else f"{report.in_flight} at once"
    first = f"{report.first_ms:.0f} ms" + (", it woke the runtime" if report.cold_start else "")
    refused = ", ".join(f"{count} x {why}" for why, count in report.refused.items())
    console().print(
        fields(
            (
                ("model", report.model),
                ("asked", f"{pace}, for {report.seconds:.1f} s"),
                ("answered", f"{report.images} images, {report.images_per_second:g} images/s"),
                ("not answered", refused or "none"),
                ("first request", f"{first} (not counted)"),
            )
        )
    )
    if report.latency_ms is None:
        return
    rows = [("a request, seen from here", report.latency_ms)]
    rows += [(f"in the runtime: {name}", times) for name, times in report.runtime_ms.items()]
    columns = ("ms", "p50#", "p90#", "p99#", "most#")
    console().print(
        table(
            columns,
            (
                (name, *(f"{one:.1f}" for one in (it.p50, it.p90, it.p99, it.most)))
                for name, it in rows
            ),
        )
    )
    say(
        "The service, the network and this program are in it; give the latter a machine of its own."
    )
