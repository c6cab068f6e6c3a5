"""Runs in parts over one work folder: together they do what a run in one does, whoever is slow or dies."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from store_bench import EXPECTED, SETTINGS, Bench

from coarse2fine.config.reader import load_config
from coarse2fine.errors import OutputError
from coarse2fine.large.execution.engine import in_process
from coarse2fine.large.output import plan_output
from coarse2fine.large.parts import PartDone, segment_part
from coarse2fine.large.phases import Settings
from coarse2fine.large.source import Source
from coarse2fine.system.timing import silent

pytestmark = pytest.mark.usefixtures("small_chunks", "bright_networks")


def part(bench: Bench, number: int, count: int, *, wait_s: float = 0.05, overrides: Sequence[str] = ()) -> PartDone:
    source, work = Source(str(bench.image)), bench.work("out.zarr")
    output = plan_output(bench.where("out.zarr"), objects=False, overwrite=False, inputs=source.where, work=work)
    config = load_config(None, [*SETTINGS, *overrides])
    with in_process() as engine:
        return segment_part(config, source, output, work, engine, Settings(retries=0), silent, (number, count), wait_s)


def test_segment_part__one_after_the_other__a_last_command_ends_the_run(bench: Bench, calls: dict[str, Any]) -> None:
    """The first part does what nobody else does for it, but only its own blocks of the segmentation."""
    assert part(bench, 1, 3) == PartDone(2, 4)
    assert calls["count"]["segment"] == 2
    assert part(bench, 2, 3) == PartDone(3, 4)
    assert not (bench.folder / "out.zarr").exists()
    bench()
    assert (calls["count"]["scan"], calls["count"]["segment"]) == (4, 4)
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.long
def test_segment_part__at_the_same_time__nobody_does_what_others_have_done(bench: Bench, calls: dict[str, Any]) -> None:
    """Two parts that begin together; the result is that of one run."""
    done: list[PartDone] = []
    threads = [threading.Thread(target=lambda n=n: done.append(part(bench, n, 2, wait_s=1.0))) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(done) == 2
    assert max(found.done for found in done) == 4
    assert calls["count"]["segment"] == 4
    bench()
    assert calls["count"]["segment"] == 4
    np.testing.assert_array_equal(bench.labels() != 0, EXPECTED)


@pytest.mark.long
def test_segment_part__other_settings_or_a_run_of_its_own_meanwhile__are_refused(bench: Bench) -> None:
    """Parts share the folder with each other only, and only if they are of one run."""
    part(bench, 1, 2)
    with pytest.raises(OutputError, match="threshold"):
        part(bench, 2, 2, overrides=["rois.threshold=0.9"])
    seen: list[str] = []

    def at_once(phase: str, *_: int) -> None:
        if phase == "segment" and not seen:
            with pytest.raises(OutputError, match="in use by process") as refused:
                part(bench, 2, 2)
            seen.append(str(refused.value))

    bench.progress = at_once
    bench()
    assert seen
