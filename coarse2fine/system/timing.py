"""Where the time goes, and who is told how far a run is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
Ticks = Callable[[int, int], None]
"""Called with (done, total) after every step of one stage."""


class Clock:
    """Seconds by name, added up over all uses of the name.

    >>> clock = Clock()
    >>> with clock.time("read"):
    ...     pass
    >>> list(clock.seconds)
    ['read']
    """

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, name: str) -> Iterator[None]:
        """Book the time that the block takes."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] += time.perf_counter() - start

    def rounded(self) -> dict[str, float]:
        """Seconds by name, for JSON."""
        return {name: round(value, 4) for name, value in self.seconds.items()}


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What the stages of a run share beside data.

    Attributes:
        clock: They book their time on it.
        progress: Told after every step.
    """

    clock: Clock = field(default_factory=Clock)
    progress: Progress = silent

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Book the time of a stage of one step, and tell that it begins and ends."""
        self.progress(name, 0, 1)
        with self.clock.time(name):
            yield
        self.progress(name, 1, 1)

    def ticks(self, stage: str) -> Ticks:
        """Tells of the steps of one stage."""
        return lambda done, total: self.progress(stage, done, total)
