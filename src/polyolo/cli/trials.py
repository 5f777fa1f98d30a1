"""`polyolo models rollout`, `promote`, `abort`, `compare`, `golden`: versions that are tried."""

from __future__ import annotations

import json as json_
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import msgspec
from cyclopts import App, Parameter
from cyclopts.types import ExistingFile
from rich.console import Console, Group, RenderableType

from polyolo.cli.door import TENANT, AsTenant, as_tenant
from polyolo.cli.output import fields, moment, say, show, show_json, size, table
from polyolo.comparejob import ExpectedBox
from polyolo.errors import BelowToleranceError, InvalidValueError
from polyolo.resources import Model, ModelVersion
from polyolo.rollouts import Comparison, GateReport, RolloutRule

golden = App(name="golden", help="Pictures that versions of a model are compared on.")

_Flag = Annotated[bool, Parameter(negative="", show_default=False)]


def name_and_version(model: str) -> tuple[str, int]:
    """Take NAME:VERSION apart; raise ValueError, which the command line reports as wrong usage."""
    name, _, version = model.rpartition(":")
    if not name or not version.isdecimal():
        raise ValueError("write NAME:VERSION, as in city:2")
    return name, int(version)


VersionOf = Annotated[str, Parameter(validator=lambda _, model: name_and_version(model))]


def rollout(
    model: VersionOf,
    /,
    *,
    share: float,
    shadow: _Flag = False,
    after: int | None = None,
    errors: float = 0.01,
    agreement: float | None = None,
    door: AsTenant = TENANT,
) -> None:
    """Try a version on a share of the requests that name no version.

    Which requests is decided by their id, so that the same one always gets the same version. Ends
    with `polyolo models promote` or `abort`, or by itself with --after.

    Args:
        model: NAME:VERSION, as in city:2.
        share: Share of the requests, 0 to 1.
        shadow: Only show it copies: the version in use answers, and the boxes are compared.
        after: Decide after so many requests by --errors and --agreement.
        errors: Most of them, 0 to 1, that it may fail on.
        agreement: Least agreement with the version in use, 0 to 1; for a shadow.
    """
    name, version = name_and_version(model)
    rule = None
    if after is not None:
        try:
            rule = RolloutRule(after=after, errors=errors, agreement=agreement)
        except ValueError as error:
            raise InvalidValueError(str(error)) from None
    elif agreement is not None:
        raise InvalidValueError("say with --after how many requests --agreement is judged by")
    client, tenant = as_tenant(door)
    with client as polyolo:
        now = polyolo.begin_rollout(
            name, version, share=share, shadow=shadow, rule=rule, tenant=tenant
        )
    what = "sees copies of" if shadow else "answers"
    said = f"{model} {what} {share:.1%} of the requests that name no version."
    show(now, lambda: f"{said}\nSee how it does: polyolo models show {name}", json=door.json)


def promote(name: str, /, *, force: _Flag = False, door: AsTenant = TENANT) -> None:
    """Put the version on trial in use; it is compared first, as by `use`.

    Args:
        name: The model.
        force: Even if it is below the model's tolerance.
    """
    client, tenant = as_tenant(door)
    with client as polyolo, refusal_shown(door.json):
        now = polyolo.promote_rollout(name, force=force, tenant=tenant)
    show(now, lambda: f"{now.name}:{now.current} answers now.", json=door.json)


def abort(name: str, /, *, door: AsTenant = TENANT) -> None:
    """End a model's rollout; the version in use answers everything again.

    Args:
        name: The model.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        now = polyolo.abort_rollout(name, tenant=tenant)
    show(now, lambda: f"{now.name}:{now.current} answers everything.", json=door.json)


def compare(model: VersionOf, /, *, door: AsTenant = TENANT) -> None:
    """Compare a version with the one in use, on golden pictures; changes nothing.

    Args:
        model: NAME:VERSION, as in city:2.
    """
    name, version = name_and_version(model)
    client, tenant = as_tenant(door)
    with client as polyolo:
        report = polyolo.compare_version(name, version, tenant=tenant)
    show(report, lambda: report_view(report), json=door.json)


@golden.command
def add(
    name: str,
    pictures: Annotated[tuple[ExistingFile, ...], Parameter(negative="")],
    /,
    *,
    expected: ExistingFile | None = None,
    door: AsTenant = TENANT,
) -> None:
    """Keep pictures to compare versions on. They are sealed, and never shown again.

    Args:
        name: The model.
        pictures: JPEG, PNG, WebP or BMP files.
        expected: JSON file with the boxes that are known to be there, by file name:
            {"a.jpg": [{"class_name": "cat", "bbox": [x1, y1, x2, y2]}]}.
    """
    known = {} if expected is None else _expected(expected)
    client, tenant = as_tenant(door)
    made = []
    with client as polyolo:
        taken = {one.number for one in polyolo.list_golden(name, tenant=tenant)}
        for picture in pictures:
            number = next(n for n in range(1, len(taken) + 2) if n not in taken)
            taken.add(number)
            boxes = known.get(picture.name)
            made.append(
                polyolo.put_golden(
                    name, number, picture.read_bytes(), expected=boxes, tenant=tenant
                )
            )
    if door.json:
        show_json(made)
    for picture, one in zip(pictures, made, strict=True):
        if not door.json:
            boxes_known = "" if one.expected is None else f", {one.expected} boxes expected"
            say(f"{picture} is golden picture {one.number} of {name}{boxes_known}.")


@golden.command(name="list")
def list_(name: str, /, *, door: AsTenant = TENANT) -> None:
    """List a model's golden pictures.

    Args:
        name: The model.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        found = polyolo.list_golden(name, tenant=tenant)
    rows = (
        (
            one.number,
            size(one.size),
            "" if one.expected is None else one.expected,
            moment(one.created_at),
        )
        for one in found
    )
    columns = ("number#", "size#", "boxes expected#", "since")
    show(found, lambda: table(columns, rows), json=door.json)


@golden.command
def delete(name: str, number: int, /, *, door: AsTenant = TENANT) -> None:
    """Delete a golden picture.

    Args:
        name: The model.
        number: The picture's number.
    """
    client, tenant = as_tenant(door)
    with client as polyolo:
        polyolo.delete_golden(name, number, tenant=tenant)
    show({"deleted": number}, lambda: f"Golden picture {number} is deleted.", json=door.json)


@contextmanager
def refusal_shown(json: bool) -> Iterator[None]:  # noqa: FBT001 - the one option of its kind
    """Print the comparison, for people, that a version is refused with; the error goes on."""
    try:
        yield
    except BelowToleranceError as error:
        if not json and "comparison" in error.extensions:
            report = msgspec.convert(error.extensions["comparison"], GateReport)
            Console(stderr=True, markup=False, highlight=False).print(report_view(report))
        raise


def report_view(report: GateReport) -> RenderableType:
    """Return a comparison as a person reads it."""
    kind = "golden pictures" if report.pictures == "golden" else "the platform's sample pictures"
    pairs: list[tuple[str, object]] = [
        ("version", report.version),
        ("compared with", "nothing" if report.reference is None else report.reference),
        ("on", f"{report.comparison.pictures} of {kind}"),
        ("agreement", f"{report.comparison.agreement:.3f}"),
        ("tolerance", "none" if report.tolerance is None else report.tolerance),
        ("good enough", "yes" if report.passed else "no"),
        ("time", _pair(report.milliseconds, report.reference_milliseconds, "ms")),
        (
            "memory",
            _pair(report.memory_bytes / 1e6, report.reference_memory_bytes / 1e6, "MB"),
        ),
    ]
    if report.note:
        pairs.append(("note", report.note))
    return Group(fields(pairs), _classes(report.comparison))


def about_rollout(model: Model) -> list[tuple[str, object]]:
    """Return what there is to say of a model's last rollout."""
    record = model.rollout
    if record is None:
        return []
    kind = "shadow" if record.shadow else "canary"
    shown = record.status
    said = f"{model.name}:{record.version} {kind} {record.share:.1%}, {record.state}"
    pairs: list[tuple[str, object]] = [("rollout", f"{said} {record.reason}".rstrip())]
    counts = f"{shown.requests} of {shown.seen} requests, {shown.failed} failed"
    if record.shadow:
        counts += f", {shown.skipped} skipped"
    pairs.append(("", f"{counts}, {_pair(shown.milliseconds, shown.current_milliseconds, 'ms')}"))
    if shown.comparison is not None:
        comparison = shown.comparison
        pairs.append(
            ("", f"agreement {comparison.agreement:.3f} in {comparison.pictures} pictures")
        )
    if record.rule is not None and record.state == "running":
        rule = record.rule
        least = "" if rule.agreement is None else f", agreement at least {rule.agreement:g}"
        pairs.append(("", f"decided after {rule.after}: errors at most {rule.errors:.1%}{least}"))
    return pairs


def about_version(model: Model, version: ModelVersion) -> str:
    """Return what is special about a version."""
    if version.taken_out:
        return f"taken out: {version.taken_out}"
    if version.version == model.current:
        return "in use"
    record = model.rollout
    if record is not None and record.state == "running" and record.version == version.version:
        return "on trial"
    return ""


def _classes(comparison: Comparison) -> RenderableType:
    rows = ((one.name, one.both, one.missing, one.extra) for one in comparison.classes)
    return table(("class", "both#", "missing#", "extra#"), rows)


def _pair(value: float, reference: float, unit: str) -> str:
    if not reference:
        return f"{value:.1f} {unit}"
    return f"{value:.1f} {unit} against {reference:.1f} {unit}"


def _expected(path: Path) -> dict[str, tuple[ExpectedBox, ...]]:
    try:
        return msgspec.convert(
            json_.loads(path.read_text()), dict[str, tuple[ExpectedBox, ...]], strict=False
        )
    except ValueError as error:
        raise InvalidValueError(f"{path}: {error}") from None
