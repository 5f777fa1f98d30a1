"""What a process tells about itself: structured logs, request ids, and its metric registry.

Nothing here ever sees a body. A log line is built from named fields only, so a secret or a
picture can reach it only if somebody names it; none of the callers do. Plain `logging` below:
structlog would bring rich into every runtime, 55 ms of its start and 4 MB.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from datetime import UTC, datetime

import msgspec
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


class Log:
    """Writes one module's lines: an event, and named fields. Safe in any thread."""

    def __init__(self, module: str) -> None:
        self._logger = logging.getLogger(f"polyolo.{module}")

    def info(self, event: str, **fields: object) -> None:
        """Tell of something that is as it should be."""
        self._logger.info(event, extra={"fields": fields})

    def warning(self, event: str, **fields: object) -> None:
        """Tell of something that somebody should know."""
        self._logger.warning(event, extra={"fields": fields})

    def error(self, event: str, **fields: object) -> None:
        """Tell of something that somebody should act on."""
        self._logger.error(event, extra={"fields": fields})

    def exception(self, event: str, **fields: object) -> None:
        """Tell of an unexpected error, with its traceback; called where it is handled."""
        self._logger.error(event, exc_info=True, extra={"fields": fields})


def logger(module: str) -> Log:
    """Return a log that names its module in every line."""
    return Log(module)


def configure_logging(process: str) -> None:
    """Send this process's log to stderr: JSON lines, or plain text on a terminal.

    process: named in every line (control, gateway, serving). Called once, by a composition root.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Plain() if sys.stderr.isatty() else _Json(process))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("polyolo").setLevel(logging.INFO)  # of libraries, warnings only


class _Json(logging.Formatter):
    """One JSON object a line."""

    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "module": record.name.removeprefix("polyolo."),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line, enc_hook=repr).decode()


class _Plain(logging.Formatter):
    """A line for a person: time, level, module, event, fields."""

    def format(self, record: logging.LogRecord) -> str:
        fields = "  ".join(
            f"{name}={value}" for name, value in getattr(record, "fields", {}).items()
        )
        module = record.name.removeprefix("polyolo.")
        clock = datetime.fromtimestamp(record.created).astimezone().strftime("%H:%M:%S")
        line = f"{clock} {record.levelname.lower():7} {module:10} {record.getMessage()}  {fields}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


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

        self.rollout_requests = Counter(
            "polyolo_rollout_requests",
            "Requests given to a version on trial: answered, copied, skipped (busy), failed.",
            (*labels, "outcome"),
            registry=self.registry,
        )
        self.rollout_boxes = Counter(
            "polyolo_rollout_boxes",
            "Boxes of a shadow and of the current version: both, missing in the shadow, extra.",
            (*labels, "found"),
            registry=self.registry,
        )

    def observe(self, tenant: str, model: str, timing: Timing) -> None:
        """Count where one picture's time went."""
        self.inference_duration.labels(tenant, model).observe(timing.inference / 1e3)
        for stage in ("queue", "decode", "postprocess"):
            seconds = getattr(timing, stage) / 1e3
            self.stage_duration.labels(tenant, model, stage).observe(seconds)
