"""Which canvas is next when time is short, how long it is taken to last, and how a pass is abandoned."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from canvas import Box, Canvas, Placement, to_array
from coarse2fine.errors import DeadlineError
from coarse2fine.fine.deadline import FIRST, Deadline, Job, OutOfTime, Pace, TimedQueue, abandoned_when, trial_box
from coarse2fine.fine.fallback import Fallback
from coarse2fine.fine.growth import Region
from coarse2fine.system.timing import RunClock


class Hands:
    """The hands of a clock that tests move."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


class Instant(Fallback):
    """Takes no time."""

    def __init__(self) -> None:
        self.filled: list[Box] = []

    def try_on(self, boxes: Sequence[Box]) -> None:
        pass

    @property
    def settle_s(self) -> float:
        return 0.0

    def fill_s(self, boxes: object) -> float:
        return 0.0

    def fill(self, boxes: object) -> None:
        self.filled += boxes


def job_of(index: int, depth: int) -> Job:
    """A canvas of ``depth`` voxels with one box."""
    box = Box.of((0, index, 0), (depth, 1, 1))
    placement = Placement(0, box, box, Box.whole(box.shape))
    return Job(Canvas(box.shape, (1, 1, 1), (placement,)), [Region(box)], to_array([]))


def queue_of(
    jobs: Sequence[Job], worth: dict[Job, float], asked: float, trial: float, closing: float = 0.0
) -> tuple[TimedQueue, Hands]:
    hands = Hands()
    by_box = {next(job.parts)[0]: worth[job] for job in jobs}
    deadline = Deadline(asked, RunClock(hands), closing, lambda part, region: by_box[part])
    queue = TimedQueue(jobs, deadline, Instant())
    queue.pace.trial_s = trial
    return queue, hands


canvases = st.lists(
    st.tuples(st.integers(1, 50), st.floats(0, 100), st.floats(0.1, 3)), min_size=1, max_size=12
)  # voxels, worth, seconds per voxel


@settings(deadline=None)
@given(canvases, st.floats(0, 300), st.floats(0, 3), st.floats(0, 20), st.floats(1, 10))
def test_timed_queue__any_canvases__ends_in_time_but_for_what_one_estimate_was_wrong_by(
    drawn: list[tuple[int, float, float]], asked: float, trial: float, closing: float, slow: float
) -> None:
    """Of those that fit by the estimate the one with the best rate is next; the first one may be slower than others."""
    jobs = [job_of(index, voxels) for index, (voxels, _, _) in enumerate(drawn)]
    worth = {job: value for job, (_, value, _) in zip(jobs, drawn, strict=True)}
    lasts = {job: voxels * each for job, (voxels, _, each) in zip(jobs, drawn, strict=True)}
    queue, hands = queue_of(jobs, worth, asked, trial, closing)
    error, done = 0.0, 0
    while True:
        left, estimates = asked - closing - hands.time, {job: queue.pace.at_most(job.voxels) for job in queue.waiting}
        best = max((worth[job] / job.voxels for job, at_most in estimates.items() if at_most <= left), default=None)
        job = queue.take()
        if job is None:
            assert best is None
            break
        assert worth[job] / job.voxels == pytest.approx(best)
        with queue.running(job):
            hands.time += lasts[job] * (slow if not done else 1)
        error, done = lasts[job] * (slow if not done else 1) - estimates[job], done + 1
    assert hands.time <= max(0.0, asked - closing) + max(0.0, error) + 1e-9
    lost = queue.give_up()
    assert len(lost) == len(jobs) - done
    assert queue._fallback.filled == list(lost)  # type: ignore[attr-defined]


def test_pace__first_canvas_slow__is_forgotten_with_the_second() -> None:
    """Before any canvas the trial counts, then the first one, and as soon as there are others only these."""
    pace = Pace(trial_s=1.0)
    assert pace.at_most(10) == FIRST * 10
    pace.note(10, 100.0)
    assert pace.at_most(10) >= 100
    pace.note(10, 20.0)
    assert 20 <= pace.at_most(10) < 40
    for seconds in (10.0, 30.0, 10.0):
        pace.note(10, seconds)
    assert 30 <= pace.at_most(10) < 60


def test_running__canvas_slower_than_all_estimates__is_abandoned_and_waits_again() -> None:
    """Its pass ends at the next layer after the last moment; what it would have done does not happen."""
    jobs = [job_of(0, 10)]
    queue, hands = queue_of(jobs, {jobs[0]: 1.0}, asked=10.0, trial=0.1)
    layers, finished = nn.Sequential(*[nn.Identity() for _ in range(100)]), False

    def advance(module: nn.Module, inputs: object) -> None:
        hands.time += 1.0

    for layer in layers:
        layer.register_forward_hook(lambda module, inputs, output: advance(module, inputs))
    job = queue.take()
    assert job is not None
    with queue.running(job):
        layers(torch.zeros(1))
        finished = True
    assert not finished
    assert queue.waiting == [job]
    assert queue.take() is None
    assert 10 < hands.time <= 10.0 + queue.deadline.grace_s + 1.0


def test_abandoned_when__another_thread_and_afterwards__passes_go_on() -> None:
    """Only passes of this thread stop, and only inside."""
    layer, results = nn.Identity(), []
    with abandoned_when(lambda: True):
        thread = threading.Thread(target=lambda: results.append(layer(1)))
        thread.start()
        thread.join()
        with pytest.raises(OutOfTime):
            layer(1)
    assert results == [1]
    assert layer(2) == 2


@pytest.mark.parametrize(("elapsed", "closing"), [(3.0, 2.0), (0.01, 0.0), (100.0, 1.0)])
def test_check__deadline_too_short__names_one_that_passes(elapsed: float, closing: float) -> None:
    """What the message names is more than what is needed, and not much more."""
    hands = Hands()
    hands.time = 7.0
    clock = RunClock(hands)
    hands.time += elapsed
    with pytest.raises(DeadlineError, match="is too short") as caught:
        Deadline(-10.0, clock, closing, lambda part, region: 1.0).check()
    named = float(caught.value.remedy.split()[3])
    assert elapsed + closing <= named <= 1.4 * (elapsed + closing) + 0.3
    Deadline(named, clock, closing, lambda part, region: 1.0).check()


@settings(deadline=None)
@given(st.tuples(*[st.integers(1, 8)] * 3), st.tuples(*[st.sampled_from([1, 2, 4])] * 3), st.integers(1, 4))
def test_trial_box__any_canvas__is_an_input_of_the_network(
    blocks: tuple[int, int, int], divisor: tuple[int, int, int], part: int
) -> None:
    """Its edges are multiples of what the network halves, and no longer than the canvas."""
    edges = tuple(count * by for count, by in zip(blocks, divisor, strict=True))
    shape = trial_box(Box.of((5, 5, 5), (2, 2, 2)), edges, divisor, (40, 40, 40), part).shape
    assert all(edge % by == 0 for edge, by in zip(shape, divisor, strict=True))
    assert prod(shape) <= prod(edges)
    assert all(edge >= min(whole, 2 * by) for edge, whole, by in zip(shape, edges, divisor, strict=True))
