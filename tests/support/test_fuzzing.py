"""The harness that feeds damaged files to readers."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

from fuzzing import damaged, outcomes

from coarse2fine.errors import VolumeError


def misbehave(path: Path) -> str:
    """A reader that does what the file's name says."""
    match path.name:
        case "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "hang":
            time.sleep(60)
        case "refuse":
            raise VolumeError("no", "remedy")
        case "fail":
            raise ValueError("a bug")
    print("some library talks")  # noqa: T201
    return path.name


def test_outcomes__each_fault__is_told_apart_and_the_rest_goes_on() -> None:
    """Neither a crash nor an endless reader keeps the other files from being read."""
    names = ["good", "crash", "refuse", "hang", "fail", "last"]
    found = outcomes("test_fuzzing:misbehave", [Path(name) for name in names], limit_s=1)
    assert [outcome.kind for outcome in found] == ["read", "crash", "refused", "hang", "traceback", "read"]
    assert [found[0].detail, found[1].detail, found[5].detail] == ["good", "SIGSEGV", "last"]
    assert "a bug" in found[4].detail


def test_damaged__each_seed__changes_the_head_and_is_repeatable() -> None:
    """A seed names one damaged file; what follows the head stays unless the file is cut or shifted."""
    content = bytes(range(256)) * 2
    made = [damaged(content, random.Random(seed), head=64) for seed in range(50)]
    assert made == [damaged(content, random.Random(seed), head=64) for seed in range(50)]
    assert len({*made, content}) > 45
    assert sum(data.endswith(content[80:]) for data in made) > 40
