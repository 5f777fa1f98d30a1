"""What commands print: tables for people, JSON for programs, failures as one sentence.

Results go to stdout; progress, advice on failures and failures go to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import msgspec
from rich import box
from rich.console import Console, RenderableType
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

_PIPED_WIDTH = 200  # columns: nobody wraps what a program or a file reads


def console() -> Console:
    """Return what prints to stdout. Text is printed as it is: names may hold any character."""
    width = None if sys.stdout.isatty() else _PIPED_WIDTH
    return Console(markup=False, highlight=False, emoji=False, width=width)


def show(value: object, view: Callable[[], RenderableType], *, json: bool) -> None:
    """Print `value` as JSON, or its view for people."""
    if json:
        show_json(value)
    else:
        console().print(view())


def show_json(value: object) -> None:
    """Print a JSON document, and nothing else, to stdout."""
    document = msgspec.json.format(msgspec.json.encode(value), indent=2)
    sys.stdout.write(document.decode() + "\n")


def say(text: str) -> None:
    """Print a line for people to stdout; long ones are not broken, so keys can be copied."""
    console().print(text, soft_wrap=True)


def complain(text: str) -> int:
    """Print why a command failed to stderr, and return its exit status."""
    sys.stderr.write(f"polyolo: {text}\n")
    return 1


def table(columns: Iterable[str], rows: Iterable[Iterable[object]], *, title: str = "") -> Table:
    """Return a table; a column whose name ends in `#` is right-aligned."""
    grid = Table(box=box.SIMPLE_HEAD, pad_edge=False, title=title or None, title_justify="left")
    for column in columns:
        right = column.endswith("#")
        grid.add_column(
            column.removesuffix("#"), justify="right" if right else "left", overflow="fold"
        )
    for row in rows:
        grid.add_row(*("" if cell is None else str(cell) for cell in row))
    return grid


def fields(pairs: Iterable[tuple[str, object]]) -> Table:
    """Return one thing's properties, a line each."""
    grid = Table(box=None, show_header=False, pad_edge=False)
    grid.add_column(style="dim")
    grid.add_column(overflow="fold")
    for name, value in pairs:
        grid.add_row(name, "" if value is None else str(value))
    return grid


def moment(seconds: float | None) -> str:
    """Return unix seconds as a person reads them, local time; empty for None."""
    if seconds is None:
        return ""
    return datetime.fromtimestamp(seconds, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def size(count: int) -> str:
    """Return a number of bytes as a person reads it."""
    return f"{count / 1e6:.1f} MB" if count >= 1e5 else f"{count / 1e3:.1f} kB"


@contextmanager
def progress(text: str, total: int, *, of_bytes: bool) -> Iterator[Callable[[int], None]]:
    """Show a progress bar on stderr, where that is a terminal; give what sets how far it is.

    total: bytes or things. May be called from any thread.
    """
    counter: ProgressColumn = DownloadColumn() if of_bytes else MofNCompleteColumn()
    bar = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        counter,
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task(text, total=total)
        yield lambda done: bar.update(task, completed=done)
