"""`polyolo demo`: the main job end to end, where everybody can watch and nothing stays behind."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import RenderableType

from polyolo import models
from polyolo.cli.detect import Picture, detections_table
from polyolo.cli.output import console, say, table
from polyolo.cli.temporary import Platform, platform
from polyolo.cli.usage import usage_table
from polyolo.client import Client
from polyolo.errors import PolyoloError
from polyolo.resources import Tenant, Usage
from polyolo.types import Detection

_USAGE_LIMIT = 15.0  # seconds until usage has come in; the gateway hands it over every second or so
_POLL = 0.1  # seconds
_SAME = 0.5  # intersection over union from which two boxes mean one thing, as mAP50 counts

Box = tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Customer:
    """One of the demo's tenants, with a client that holds its key."""

    tenant: Tenant
    polyolo: Client


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Something that must hold, and what was seen."""

    what: str
    expected: str
    got: str

    @property
    def holds(self) -> bool:
        """Whether what was seen is what must be."""
        return self.got == self.expected


def demo(*, output: Path = Path("out")) -> None:
    """Watch two tenants get their pictures detected through one door, then clean up.

    Starts the whole platform in a temporary home, creates two tenants with different model
    versions, detects sample pictures of circuit boards as both, tries to reach one with the
    other's key, shows what both have used, and takes everything down.

    Args:
        output: Directory for the annotated picture.
    """
    name, version = models.STANDARD
    with platform(f"{name}:{version}") as running:
        _story(running, output)
    say("Down again: no process is left, the temporary home is removed.")


def _story(running: Platform, output: Path) -> None:
    say(f"The platform is up at {running.url} after {running.took:.1f} s.")
    with Client(running.url, running.operator_key) as operator:
        tenants = [operator.create_tenant(name) for name in ("acme", "globex")]
    acme, globex = (_customer(running, tenant) for tenant in tenants)
    with acme.polyolo, globex.polyolo:
        globex.polyolo.push_model("boards", models.bundled("pcb", 1))
        say("acme answers with the platform's standard model, pcb:2.")
        say("globex pushed a model of its own, `boards`: pcb:1, from early in the same training.")

        boards = models.sample_boards()
        seen = {who.tenant.name: _detect(who, boards) for who in (acme, globex)}
        for customer, pictures in seen.items():
            _section(f"{customer}: {len(pictures)} pictures", detections_table(pictures))
        _section("Found by each, of what was drawn on the boards", _comparison(boards, seen))

        picture = _annotate(acme, boards[0], output)
        say(f"{boards[0].name} with its detections drawn in: {picture}")

        checks = [*_real(seen), *_isolation(running, acme, globex)]
        used, counted = _usage({acme: len(boards) + 1, globex: len(boards)})
        _section("Usage", usage_table(used))
        checks += counted
    rows = ((c.what, c.expected, c.got, "ok" if c.holds else "FAILED") for c in checks)
    _section("Checks", table(("check", "must be", "is", ""), rows))
    if not all(check.holds for check in checks):
        raise PolyoloError("not everything was as it must be; see the checks above")


def _section(title: str, content: RenderableType) -> None:
    screen = console()
    screen.print(f"\n{title}", style="bold")
    screen.print(content)


def _customer(running: Platform, tenant: Tenant) -> Customer:
    key = tenant.api_key.key if tenant.api_key else None
    if key is None:
        raise PolyoloError(f"tenant {tenant.name} was created without a key")
    return Customer(tenant=tenant, polyolo=Client(running.url, key))


def _detect(who: Customer, boards: Sequence[Path]) -> list[Picture]:
    return [Picture(file=Path(board.name), answer=who.polyolo.detect(board)) for board in boards]


def _annotate(who: Customer, board: Path, output: Path) -> Path:
    output.mkdir(parents=True, exist_ok=True)
    target = output / f"{board.stem}-detected.jpg"
    target.write_bytes(who.polyolo.detect_annotated(board))
    return target


def _comparison(boards: Sequence[Path], seen: dict[str, list[Picture]]) -> RenderableType:
    """Return a table of what the script that drew the boards put there, and who found it."""
    drawn = json.loads((boards[0].parent / "truth.json").read_text())
    there = {
        board["file"]: [(d["class"], tuple(d["xyxy"])) for d in board["defects"]] for board in drawn
    }
    truth = Counter(kind for defects in there.values() for kind, _ in defects)
    right: dict[str, Counter[str]] = {}
    wrong: dict[str, int] = {}
    for customer, pictures in seen.items():
        answers = {p.file.name: p.answer.detections for p in pictures if p.answer}
        found = {file: _found(there[file], detections) for file, detections in answers.items()}
        right[customer] = Counter(kind for kinds in found.values() for kind in kinds)
        wrong[customer] = sum(map(len, answers.values())) - right[customer].total()
    rows = [(kind, truth[kind], *(r[kind] for r in right.values())) for kind in sorted(truth)]
    rows.append(("all", truth.total(), *(r.total() for r in right.values())))
    rows.append(("false alarms", 0, *wrong.values()))
    return table(("defect", "drawn#", *(f"{customer} found#" for customer in seen)), rows)


def _found(defects: Sequence[tuple[str, Box]], detections: Sequence[Detection]) -> list[str]:
    """Return the classes of the defects that were found: right class, half or more in common."""
    left = list(defects)
    kinds = []
    for detection in detections:
        for kind, box in left:
            if kind == detection.class_name and _overlap(box, detection.bbox) >= _SAME:
                left.remove((kind, box))
                kinds.append(kind)
                break
    return kinds


def _overlap(a: Box, b: Box) -> float:
    """Return intersection over union."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(0.0, width) * max(0.0, height)
    return common / (sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (a, b)) - common)


def _real(seen: dict[str, list[Picture]]) -> list[Check]:
    """Return the checks that both were answered, each by a model of its own."""
    checks = []
    models_seen = set()
    for customer, pictures in seen.items():
        answers = [picture.answer for picture in pictures if picture.answer]
        models_seen |= {str(answer.model) for answer in answers}
        found = "detections" if any(answer.detections for answer in answers) else "nothing"
        checks.append(Check(what=f"{customer} finds", expected="detections", got=found))
    checks.append(Check(what="models that answered", expected="2", got=f"{len(models_seen)}"))
    return checks


def _isolation(running: Platform, acme: Customer, globex: Customer) -> list[Check]:
    """Return the checks that one tenant's key opens nothing of another, nor a made-up one."""
    board = models.sample_boards()[0]
    other = globex.tenant
    with Client(running.url, f"pk_{'0' * 12}_{'A' * 43}") as stranger:
        attempts: dict[str, tuple[str, Callable[[], Any]]] = {
            "acme's key, globex's tenant": ("404", lambda: acme.polyolo.get_tenant(other.id)),
            "acme's key, globex's models": ("404", lambda: acme.polyolo.list_models(other.name)),
            "acme's key, globex's usage": ("404", lambda: acme.polyolo.usage(tenant=other.id)),
            "acme's key, a tenant that never was": (
                "404",
                lambda: acme.polyolo.get_tenant("nobody"),
            ),
            "acme's key, a picture for globex's model": (
                "404",
                lambda: acme.polyolo.detect(board, model="boards"),
            ),
            "a made-up key, a picture": ("401", lambda: stranger.detect(board)),
        }
        return [
            Check(what=what, expected=expected, got=_status(attempt))
            for what, (expected, attempt) in attempts.items()
        ]


def _status(attempt: Callable[[], Any]) -> str:
    try:
        attempt()
    except PolyoloError as error:
        return str(error.status)
    return "200"


def _usage(images: dict[Customer, int]) -> tuple[list[Usage], list[Check]]:
    """Return both tenants' usage, once their pictures have arrived in it, and whether they did."""
    deadline = time.monotonic() + _USAGE_LIMIT
    while True:
        used = {who: who.polyolo.usage() for who in images}
        arrived = all(use.images >= images[who] for who, use in used.items())
        if arrived or time.monotonic() > deadline:
            break
        time.sleep(_POLL)
    checks = [
        Check(
            what=f"pictures that {who.tenant.name} is billed for",
            expected=str(images[who]),
            got=str(use.images),
        )
        for who, use in used.items()
    ]
    return list(used.values()), checks
