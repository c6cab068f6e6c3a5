"""How attempts at blocks end."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fractions import Fraction
from typing import Any

from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.large.execution.tasks import Key, Outcome, attempt
from coarse2fine.system.timing import Aside, Run


def read(error: Exception) -> Mapping[str, Any]:
    raise error


class Task:
    """Reads with an error, or counts a block as done."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error

    def __call__(self, key: Key, run: Run) -> Mapping[str, Any]:
        with run.clock.time(Aside.TOTAL):
            return {"key": key, "stages": list(run.clock.rounded())} if self.error is None else read(self.error)


def test_attempt__done__gives_the_payload() -> None:
    """The task gets the block and a run of its own."""
    assert attempt(Task(), (1, 2, 3)) == Outcome({"key": (1, 2, 3), "stages": []})


def test_attempt__unexpected_error__names_the_place_that_raised_it() -> None:
    """The innermost one, wherever the block was begun."""
    line = read.__code__.co_firstlineno + 1
    assert attempt(Task(ValueError("bad")), (0,)).message == f"ValueError: bad (test_tasks.py, line {line})"
    in_library = attempt(lambda key, run: {"ratio": Fraction("half")}, (0,)).message
    assert re.fullmatch(r"ValueError: .*'half' \(fractions\.py, line \d+\)", in_library)


def test_attempt__error_for_people__is_told_in_one_line() -> None:
    """Problem and remedy without a place in the code; where results cannot be written, that ends the run."""
    assert attempt(Task(VolumeError("a chunk\n is broken", "Mend it.")), (0,)) == Outcome(
        message=" ".join(str(VolumeError("a chunk is broken", "Mend it.")).split())
    )
    assert attempt(Task(OutputError("disk full", "Make room.")), (0,)) == Outcome(fatal=("disk full", "Make room."))
