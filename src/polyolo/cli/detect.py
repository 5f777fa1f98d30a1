"""`polyolo detect`: pictures in, boxes out."""

from __future__ import annotations

import asyncio
import glob
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import httpx
import msgspec
from cyclopts import Parameter
from cyclopts.types import PositiveInt
from rich.console import RenderableType

from polyolo.cli.door import KEY, AsKey, key_of_tenant
from polyolo.cli.models import parse_classes
from polyolo.cli.output import complain, console, progress, say, show_json, table
from polyolo.client import AsyncClient
from polyolo.errors import ForbiddenError, PolyoloError, UnauthenticatedError
from polyolo.types import DetectAnswer

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}  # what a folder is searched for


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture's result: an answer, or why there is none."""

    file: Path
    answer: DetectAnswer | None = None
    annotated: Path | None = None
    error: str = ""


def detect(
    *images: Annotated[str, Parameter(required=True)],
    model: str | None = None,
    confidence: float | None = None,
    iou: float | None = None,
    classes: str | None = None,
    max_detections: int | None = None,
    save: Path | None = None,
    in_flight: PositiveInt = 4,
    door: AsKey = KEY,
) -> int:
    """Detect objects in pictures (JPEG, PNG, WebP, BMP).

    A picture that fails does not stop the others; the exit status is 1 at the end then.

    Args:
        images: Files, folders, or patterns such as 'shots/**/*.jpg'.
        model: NAME or NAME:VERSION. [default: the tenant's default model]
        confidence: Least confidence, 0 to 1. [default: the model's setting]
        iou: Overlap above which only the better box is kept. [default: the model's setting]
        classes: Only these, by id or name, with commas between.
        max_detections: At most this many a picture.
        save: Directory for pictures with the boxes drawn in; made if missing.
        in_flight: Pictures sent at once.
    """
    options: dict[str, Any] = {
        "model": model,
        "confidence": confidence,
        "iou": iou,
        "classes": parse_classes(classes),
        "max_detections": max_detections,
    }
    files = list(find_pictures(images))
    client = AsyncClient(door.url, key_of_tenant(door), ca=door.ca)
    if save is not None:
        save.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    with progress("detecting", len(files), of_bytes=False) as at:
        pictures = asyncio.run(_detect_all(client, files, options, save, in_flight, at))
    took = time.monotonic() - started
    if door.json:
        show_json([_document(picture) for picture in pictures])
    elif any(picture.answer for picture in pictures):
        console().print(detections_table(pictures))
        say(_summary(pictures, took))
        if save is not None and any(picture.annotated for picture in pictures):
            say(f"Annotated pictures are in {save}.")
    failed = [picture for picture in pictures if picture.error]
    for picture in failed:
        complain(f"{picture.file}: {picture.error}")
    if len(pictures) > 1 and failed:
        complain(f"{len(failed)} of {len(pictures)} pictures failed")
    return 1 if failed else 0


def find_pictures(arguments: Iterable[str]) -> Iterator[Path]:
    """Yield the pictures that files, folders and patterns mean, each once, in order.

    A name that means nothing comes out as it is, to fail under that name.
    """
    seen = set()
    for argument in arguments:
        path = Path(argument)
        if path.is_dir():
            found = sorted(p for p in path.iterdir() if p.suffix.lower() in _SUFFIXES)
        elif not path.exists() and glob.has_magic(argument):
            names = glob.glob(argument, recursive=True)  # noqa: PTH207 - takes absolute ones too
            found = sorted(p for p in map(Path, names) if p.is_file())
        else:
            found = []
        for picture in found or [path]:
            if picture not in seen:
                seen.add(picture)
                yield picture


def annotated_names(files: Sequence[Path], folder: Path) -> dict[Path, Path]:
    """Return where each picture's annotated copy goes: never over an original or another copy."""
    taken = {file.resolve() for file in files}
    names = {}
    for file in files:
        name, count = folder / f"{file.stem}.jpg", 1
        while name.resolve() in taken:
            count += 1
            name = folder / f"{file.stem}-{count}.jpg"
        taken.add(name.resolve())
        names[file] = name
    return names


def detections_table(pictures: Iterable[Picture]) -> RenderableType:
    """Return a table with a row a detection."""
    columns = ("picture", "model", "class", "confidence#", "box x1 y1 x2 y2", "ms#")
    rows: list[tuple[object, ...]] = []
    for picture in pictures:
        if (answer := picture.answer) is None:
            continue
        head: tuple[object, ...] = (picture.file, answer.model)
        time_spent = f"{answer.timing_ms.total:.1f}"
        for found in answer.detections:
            box = " ".join(f"{edge:.0f}" for edge in found.bbox)
            rows.append((*head, found.class_name, f"{found.confidence:.3f}", box, time_spent))
            head, time_spent = ("", ""), ""  # said once a picture
        if not answer.detections:
            rows.append((*head, "nothing found", "", "", time_spent))
    return table(columns, rows)


async def _detect_all(
    client: AsyncClient,
    files: Sequence[Path],
    options: dict[str, Any],
    save: Path | None,
    in_flight: int,
    at: Callable[[int], None],
) -> list[Picture]:
    """Detect in all files, `in_flight` at once, and return the results in their order.

    Raises what concerns all of them alike (a key that is refused, a service out of reach).
    """
    names = {} if save is None else annotated_names(files, save)
    results: dict[Path, Picture] = {}
    left = deque(files)

    async def work() -> None:
        while left:
            file = left.popleft()
            results[file] = await _detect_one(client, file, options, names.get(file))
            at(len(results))

    async with client:
        tasks = [asyncio.create_task(work()) for _ in range(min(in_flight, len(files)))]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return [results[file] for file in files]


async def _detect_one(
    client: AsyncClient, file: Path, options: dict[str, Any], annotated: Path | None
) -> Picture:
    try:
        answer = await client.detect(file, **options)
        if annotated is not None:
            drawn = await client.detect_annotated(file, **options)
            await asyncio.to_thread(annotated.write_bytes, drawn)
    except (UnauthenticatedError, ForbiddenError):
        raise  # the same for every picture
    except PolyoloError as error:
        if isinstance(error.__cause__, httpx.ConnectError):
            raise  # so is a service out of reach
        return Picture(file=file, error=error.detail)
    except IsADirectoryError:
        return Picture(file=file, error="holds no picture (.jpg, .png, .webp, .bmp)")
    except OSError as error:
        return Picture(file=file, error=error.strerror or str(error))
    return Picture(file=file, answer=answer, annotated=annotated)


def _document(picture: Picture) -> dict[str, Any]:
    if picture.answer is None:
        return {"file": str(picture.file), "error": picture.error}
    document = {"file": str(picture.file), **msgspec.to_builtins(picture.answer)}
    if picture.annotated is not None:
        document["annotated"] = str(picture.annotated)
    return document


def _summary(pictures: Sequence[Picture], took: float) -> str:
    answers = [picture.answer for picture in pictures if picture.answer is not None]
    found = sum(len(answer.detections) for answer in answers)
    return (
        f"{len(answers)} picture{'s' * (len(answers) != 1)}, "
        f"{found} detection{'s' * (found != 1)}, {took:.2f} s"
    )
