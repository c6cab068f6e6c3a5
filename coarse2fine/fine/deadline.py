"""Time that runs out: which canvas is next, and whether it will be finished in time.

Without a deadline canvases run as they were packed. With one, those come first that promise most for their time, and
none begins that would not be finished by an upper estimate of what it takes. That is measured: on small ones before
the first canvas, and then from canvas to canvas. Should one take longer all the same, its pass is abandoned between two
layers of the network.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from math import ceil, prod

from torch import nn

from canvas import Box, Canvas, Triple
from coarse2fine.errors import DeadlineError
from coarse2fine.fine.fallback import Fallback
from coarse2fine.fine.growth import Edges, Region
from coarse2fine.system.timing import RunClock

Worth = Callable[[Box, Box], float]
"""What segmenting a part of a region is expected to gain, in any unit: (part, region) -> gain."""

FIRST = 1.0
"""How much longer than a small one says the first canvas is taken to last, for its size: small ones take 1.4 to 1.7
times as long per voxel (EM and lung on the CPU), which is what a size that is new to the network costs."""
SURE = 1.15
"""How much longer than the slowest of the last canvases, for its size, the next one is taken to last."""
RECENT = 4
"""Canvases that tell how long the next one lasts; the first one is forgotten as soon as there is another."""
AHEAD = 32
"""Canvases among which those are looked for that can run together: neighbours, whose outputs are blended soon."""
TOLERANCE, TOLERANCE_S = 0.05, 0.5
"""A deadline is kept if the run ends no more than this share, or these seconds, too late."""
MORE, MORE_S = 1.25, 0.1
"""A deadline that is named as possible is longer than what was measured by this factor and these seconds."""


@dataclass(frozen=True, slots=True, eq=False)
class Deadline:
    """When a run has to be over.

    Attributes:
        asked_s: Seconds after the clock was made.
        clock: The run's.
        closing_s: What comes after the last canvas takes so long, whatever was segmented.
        worth: What segmenting a part of a region gains.
    """

    asked_s: float
    clock: RunClock
    closing_s: float
    worth: Worth

    @property
    def left_s(self) -> float:
        """Seconds that are left for canvases."""
        return self.asked_s - self.clock.elapsed - self.closing_s

    @property
    def grace_s(self) -> float:
        """By how much a pass may be late before it is abandoned: half of what is tolerated."""
        return max(TOLERANCE * self.asked_s, TOLERANCE_S) / 2

    def check(self) -> None:
        """Refuse a deadline that leaves no time even for what comes before and after canvases.

        Raises:
            DeadlineError: Naming one that is possible.
        """
        if self.left_s >= -self.grace_s:
            return
        needed = self.clock.elapsed + self.closing_s
        possible = MORE * needed + MORE_S
        possible = ceil(10 * possible) / 10 if possible < 10 else ceil(possible)
        raise DeadlineError(
            f"the deadline of {self.asked_s:.4g} s is too short: until the fine network can begin, and for writing the "
            f"result, {needed:.2g} s are needed",
            f"Allow at least {possible:g} s: --deadline {possible:g}s.",
        )


class OutOfTime(Exception):  # noqa: N818  # no error, but what ends a pass
    """A network pass was abandoned."""


@contextmanager
def abandoned_when(is_over: Callable[[], bool]) -> Iterator[None]:
    """Networks that run inside, in this thread, stop before the layer at which time is over.

    Raises:
        OutOfTime: If that happened.
    """
    thread = threading.get_ident()

    def check(module: nn.Module, inputs: object) -> None:
        if threading.get_ident() == thread and is_over():
            raise OutOfTime

    handle = nn.modules.module.register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A canvas to run.

    Attributes:
        canvas: What lies where.
        regions: What was packed with it, in the order that its crops count.
        covered: All boxes that somebody segments, shape (n, 6).
    """

    canvas: Canvas
    regions: Sequence[Region]
    covered: Edges

    @property
    def voxels(self) -> int:
        """Of the network's input."""
        return prod(self.canvas.shape)

    @property
    def parts(self) -> Iterator[tuple[Box, Box]]:
        """What is segmented: parts of regions, and these as they were before they were cut."""
        return ((placement.box, self.regions[placement.crop].whole) for placement in self.canvas.placements)

    def promise(self, worth: Worth) -> float:
        """What it gains for its time: time goes with the voxels of the input."""
        return sum(worth(part, region) for part, region in self.parts) / self.voxels


class Queue:
    """Canvases in the order in which they were packed; nobody is in a hurry.

    Args:
        jobs: The first ones.

    Attributes:
        waiting: Canvases that nobody has taken.
        patient: Whether nobody wants to know how long a canvas takes, so that many can be looked at together.
    """

    patient = True

    def __init__(self, jobs: Iterable[Job] = ()) -> None:
        self.waiting: list[Job] = []
        self.add(jobs)

    @property
    def is_over(self) -> bool:
        """Whether there is no time for anything."""
        return False

    @property
    def parts(self) -> Iterator[Box]:
        """Boxes, or tiles of them, that wait."""
        return (part for job in self.waiting for part, _ in job.parts)

    def add(self, jobs: Iterable[Job]) -> None:
        """Let further canvases wait."""
        self.waiting += jobs

    def take(self) -> Job | None:
        """The next canvas, which no longer waits; None if none waits for which there is time."""
        return self.waiting.pop(0) if self.waiting else None

    def take_alike(self, job: Job, most: int) -> list[Job]:
        """Up to so many further canvases of a job's shape, of those that are next, to run along with it."""
        alike = [one for one in self.waiting[:AHEAD] if one.canvas.shape == job.canvas.shape][: max(most, 0)]
        self.waiting = [one for one in self.waiting if one not in alike] if alike else self.waiting
        return alike

    def allows(self, voxels: float) -> bool:
        """Whether there is time for inputs of so many voxels in all, before any canvas has run."""
        return True

    def preparing(self, voxels: float) -> AbstractContextManager[None]:
        """Inside, inputs of so many voxels run before the first canvas.

        That goes on as long as there is time; then the block ends where it is, without an error.
        """
        return nullcontext()

    def running(self, job: Job) -> AbstractContextManager[None]:
        """The same for a canvas that was taken; if it ends early, the canvas waits again."""
        return nullcontext()

    def close(self) -> None:
        """Take nothing any more."""

    def give_up(self, late: Sequence[Box] = ()) -> tuple[Box, ...]:
        """Do without what waits, and without boxes for which it was too late to pack them.

        Returns:
            The regions that are not segmented, or not as a whole.
        """
        return tuple(dict.fromkeys([*(region for job in self.waiting for _, region in job.parts), *late]))


@dataclass(slots=True)
class Pace:
    """How long canvases take, as a rule and at most.

    Attributes:
        trial_s: Seconds per voxel of what was run to find out.
        recent: The same of the last canvases.
        count: Canvases that were measured.
    """

    trial_s: float = 0.0
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    count: int = 0

    def prepare(self, voxels: float, seconds: float) -> None:
        """Learn from inputs that are no canvases: what they cost was not all, but the size is no longer new."""
        self.recent.append(max(self.trial_s, seconds / voxels))
        self.count = 1

    def note(self, voxels: int, seconds: float) -> None:
        """Learn from a canvas."""
        if self.count == 1:  # the first one was slower than any that follow will be
            self.recent.clear()
        self.recent.append(seconds / voxels)
        self.count += 1

    def at_most(self, voxels: float) -> float:
        """Seconds that a canvas of so many voxels will take at most, as far as can be told."""
        return voxels * (SURE * max(self.recent) if self.recent else FIRST * self.trial_s)


class TimedQueue(Queue):
    """Canvases in the order of what they gain for their time, as long as there is time.

    Args:
        jobs: The first ones.
        deadline: When it is over.
        fallback: What regions get that are not reached.
    """

    patient = False  # each canvas tells how long the next one takes

    def __init__(self, jobs: Iterable[Job], deadline: Deadline, fallback: Fallback) -> None:
        self.deadline, self.pace, self._fallback, self._closed = deadline, Pace(), fallback, False
        self._rank, self._fill_s = dict[Job, float](), dict[Job, float]()
        jobs = list(jobs)
        fallback.try_on([part for job in jobs for part, _ in job.parts])
        super().__init__(jobs)

    @property
    def left_s(self) -> float:
        """Seconds left for canvases, less what it takes to do without those that wait."""
        return self.deadline.left_s - self._fallback.settle_s - sum(self._fill_s[job] for job in self.waiting)

    @property
    def is_over(self) -> bool:
        """See ``Queue``."""
        return self._closed or self.left_s <= 0

    def add(self, jobs: Iterable[Job]) -> None:
        """Let further canvases wait, among those that wait already."""
        for job in jobs:
            self._rank[job] = -job.promise(self.deadline.worth)
            self._fill_s[job] = self._fallback.fill_s(part for part, _ in job.parts)
            self.waiting.append(job)
        self.waiting.sort(key=self._rank.__getitem__)

    def take(self) -> Job | None:
        """The best canvas that will be finished in time."""
        left = self.left_s
        for index, job in enumerate([] if self._closed else self.waiting):
            if self.pace.at_most(job.voxels) <= left:
                return self.waiting.pop(index)
        return None

    def take_alike(self, job: Job, most: int) -> list[Job]:
        """See ``Queue``; none, as the best one comes alone."""
        return []

    def allows(self, voxels: float) -> bool:
        """See ``Queue``; not at most, but as a rule, for without a canvas nothing is gained."""
        return self.pace.trial_s * voxels <= self.left_s

    def close(self) -> None:
        """See ``Queue``."""
        self._closed = True

    def give_up(self, late: Sequence[Box] = ()) -> tuple[Box, ...]:
        """See ``Queue``; they get what they get otherwise."""
        self._fallback.fill([*self.parts, *late])
        return super().give_up(late)

    @contextmanager
    def preparing(self, voxels: float) -> Iterator[None]:
        """See ``Queue``; measures how long it takes."""
        now = self.deadline.clock.now
        began = now()
        with self._limited():
            yield
        self.pace.prepare(voxels, now() - began)

    @contextmanager
    def running(self, job: Job) -> Iterator[None]:
        """See ``Queue``; measures how long a canvas takes."""
        now, in_time = self.deadline.clock.now, False
        began = now()
        with self._limited():
            yield
            in_time = True
        if not in_time:
            self.add([job])
        self.pace.note(job.voxels, now() - began)

    @contextmanager
    def trying(self, job: Job) -> Iterator[None]:
        """Inside, a small canvas runs, which tells how long others will take."""
        now = self.deadline.clock.now
        began = now()
        with self._limited():
            yield
        self.pace.trial_s = (now() - began) / job.voxels

    @contextmanager
    def _limited(self) -> Iterator[None]:
        """Inside, networks run as long as there is time; then the block ends where it is."""
        now = self.deadline.clock.now
        last = now() + self.left_s + self.deadline.grace_s
        with suppress(OutOfTime), abandoned_when(lambda: now() > last):
            yield


def trial_box(box: Box, canvas: Triple, divisor: Triple, volume: Triple, part: int) -> Box:
    """The surroundings of a box: on each axis one of ``part`` parts of a canvas, and no less than a network needs."""
    edges = zip(canvas, divisor, strict=True)
    z, y, x = (min(edge, by * max(2, edge // (part * by))) for edge, by in edges)
    return box.centred((z, y, x), Box.whole(volume))
