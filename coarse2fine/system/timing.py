"""Where the time goes, and who is told how far a run is."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Generic, TypeVar

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total)."""
Ticks = Callable[[int, int], None]
"""Called with (done, total) after every step of one stage."""


class Stage(StrEnum):
    """The stages of a run over a volume, in the order in which they begin; together they are all of its time.

    What each of them spends in network passes is booked under ``passes`` as well, and is part of it. Only ``PACK`` runs
    inside of another one, ``FINE``.
    """

    READ = "read"
    COARSE = "coarse"
    ROIS = "rois"
    ASSIGN = "assign"
    PACK = "pack"
    FINE = "fine"
    WRITE = "write"
    ACCOUNT = "account"

    @property
    def passes(self) -> Aside:
        """Under what name network passes of the stage are booked, if it has any."""
        return Aside(f"{self}.network")


class Aside(StrEnum):
    """What a run books beside its stages: network passes inside of them, all of it, and what comes after it."""

    COARSE_NETWORK = "coarse.network"
    ASSIGN_NETWORK = "assign.network"
    FINE_NETWORK = "fine.network"
    TOTAL = "total"
    MEASURE = "measure"


Name = TypeVar("Name", bound=str)
"""What a clock books under."""


class Clock(Generic[Name]):
    """Seconds by name, added up over all uses of the name, and since the clock was started.

    Args:
        now: Tells the time in seconds; only differences count.

    >>> clock = Clock[Stage]()
    >>> with clock.time(Stage.READ):
    ...     pass
    >>> list(clock.rounded())
    ['read']
    """

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds: defaultdict[Name, float] = defaultdict(float)
        self.now, self._began = now, now()

    @property
    def elapsed(self) -> float:
        """Seconds since the clock was made, which is when a run begins."""
        return self.now() - self._began

    @contextmanager
    def time(self, name: Name) -> Iterator[None]:
        """Book the time that the block takes."""
        start = self.now()
        try:
            yield
        finally:
            self.seconds[name] += self.now() - start

    def named(self) -> dict[str, float]:
        """Seconds by plain names."""
        return {str(name): value for name, value in self.seconds.items()}

    def rounded(self) -> dict[str, float]:
        """Seconds by plain names, for JSON."""
        return {name: round(value, 4) for name, value in self.named().items()}


RunClock = Clock[Stage | Aside]
"""The clock of a run, on which a wrong name is an error of types."""


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True, eq=False)
class Run:
    """What the stages of a run share beside data.

    Attributes:
        clock: They book their time on it.
        progress: Told after every step.
        notes: What users should know of how it went, each once.
    """

    clock: RunClock = field(default_factory=RunClock)
    progress: Progress = silent
    notes: list[str] = field(default_factory=list)

    def note(self, *texts: str) -> None:
        """Keep what is new of some texts, for the warnings of the report."""
        self.notes.extend(text for text in texts if text not in self.notes)

    @contextmanager
    def stage(self, name: Stage) -> Iterator[None]:
        """Book the time of a stage of one step, and tell that it begins and ends."""
        self.progress(name, 0, 1)
        with self.clock.time(name):
            yield
        self.progress(name, 1, 1)

    def ticks(self, stage: str) -> Ticks:
        """Tells of the steps of one stage."""
        return lambda done, total: self.progress(stage, done, total)
