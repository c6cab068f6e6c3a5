"""Progress bars of the commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def show_bars(
    console: Console, *, width: int = 1, remaining: bool = False, transient: bool = True
) -> Iterator[Progress]:
    """Bars with names, counts and times; nothing unless stderr is a terminal.

    Args:
        console: Where.
        width: Least width of the names in characters, so that bars stand below each other.
        remaining: Whether to say how long it may still take.
        transient: Whether they go when all is done.
    """
    columns = (
        TextColumn(f"{{task.description:<{width}}}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        *([TimeRemainingColumn()] if remaining else []),
    )
    with Progress(*columns, console=console, transient=transient, disable=not console.is_terminal) as bars:
        yield bars
