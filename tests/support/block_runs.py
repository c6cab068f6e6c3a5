"""What tests of the engines share: the blocks that are run, and what came of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

COUNT = 12
KEYS = [(number,) for number in range(COUNT)]
FILES = {f"{number}.txt": str(number**2) for number in range(COUNT)}
SOON_S = 120.0  # how long to wait for what takes a second on an idle machine


def silent(done: int, total: int) -> None:
    """No progress."""


def results(out: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in out.glob("*.txt")}


def begun(out: Path, number: int) -> list[str]:
    """The processes that began a block."""
    path = out / f"{number}.begun"
    return path.read_text().split() if path.exists() else []


def wait(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)
