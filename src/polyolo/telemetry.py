"""What a process tells about itself: structured logs, request ids, and its metric registry.

Nothing here ever sees a body. A log line is built from named fields only, so a secret or a
picture can reach it only if somebody names it; none of the callers do.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from typing import Any

import msgspec
import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from polyolo.types import Timing

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")

_LATENCY_BUCKETS = (
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip  # seconds; from a warm GPU's answer to a request's usual deadline


def new_id() -> str:
    """Return 32 random hex digits: unique without asking anybody."""
    return os.urandom(16).hex()


def request_id(offered: bytes | None) -> str:
    """Return the client's own request id if it is fit to be logged, else a new one."""
    if offered is not None and _REQUEST_ID.fullmatch(offered):
        return offered.decode("ascii")
    return new_id()


def configure_logging(process: str, *, level: str = "info") -> None:
    """Send this process's logs to stderr: JSON lines, or coloured text on a terminal.

    process: named in every line (control, gateway, serving). Called once, by a composition root.
    """
    shared: list[Any] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    if sys.stderr.isatty():
        rendering: list[Any] = [structlog.dev.ConsoleRenderer()]
        factory: Any = structlog.PrintLoggerFactory(sys.stderr)
    else:
        rendering = [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(serializer=_to_json),
        ]
        factory = structlog.BytesLoggerFactory(sys.stderr.buffer)
    structlog.configure(
        processors=[*shared, *rendering],
        wrapper_class=structlog.make_filtering_bound_logger(
            logging.getLevelNamesMapping()[level.upper()]
        ),
        logger_factory=factory,
        cache_logger_on_first_use=True,
    )
    structlog.contextvars.bind_contextvars(process=process)
    # Libraries speak through stdlib logging: their warnings only, in one plain line each.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, force=True)


def _to_json(event: object, **_: Any) -> bytes:
    return msgspec.json.encode(event, enc_hook=repr)


def logger(name: str) -> Any:
    """Return a logger that names its module in every line."""
    return structlog.get_logger(module=name)


class Metrics:
    """The metrics of one process, by the names that the contract gives.

    A process counts what it sees: the gateway requests, a runtime its queue and its engine.
    The series of a process live and die with its registry; nothing is global.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("tenant", "model")
        self.requests = Counter(
            "polyolo_requests",
            "Requests answered, by HTTP status.",
            (*labels, "code"),
            registry=self.registry,
        )
        self.request_duration = Histogram(
            "polyolo_request_duration_seconds",
            "From the request's first byte to the answer's last.",
            labels,
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.inference_duration = Histogram(
            "polyolo_inference_duration_seconds",
            "Inside the engine, one batch.",
            labels,
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.stage_duration = Histogram(
            "polyolo_stage_duration_seconds",
            "Of a detection: waiting in the queue, decoding, postprocessing, one picture.",
            (*labels, "stage"),
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.queue_depth = Gauge(
            "polyolo_queue_depth",
            "Requests waiting for the engine.",
            labels,
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "polyolo_requests_in_flight",
            "Requests received and not yet answered.",
            labels,
            registry=self.registry,
        )
        self.cold_starts = Counter(
            "polyolo_cold_starts",
            "Requests that had to wait for a runtime to start.",
            labels,
            registry=self.registry,
        )
        self.model_swaps = Counter(
            "polyolo_model_swaps",
            "Versions put in the place of another while serving.",
            labels,
            registry=self.registry,
        )

    def observe(self, tenant: str, model: str, timing: Timing) -> None:
        """Count where one picture's time went."""
        self.inference_duration.labels(tenant, model).observe(timing.inference / 1e3)
        for stage in ("queue", "decode", "postprocess"):
            seconds = getattr(timing, stage) / 1e3
            self.stage_duration.labels(tenant, model, stage).observe(seconds)
