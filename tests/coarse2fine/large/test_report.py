"""The report of a run over a store, from what its blocks say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from large_volumes import pipeline_of

from coarse2fine.large.report import ESTIMATE, EXACT, make_report
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import NetworkTime, Timing


@pytest.fixture(scope="module")
def pipeline(model_folder: Callable[..., Path]) -> Pipeline:
    """Any."""
    return pipeline_of((model_folder(seed=1), model_folder(seed=2)), ["mode=one-stage"])


@pytest.mark.parametrize(
    ("where", "case"),
    [
        ("/data/em/in.zarr", "in.zarr"),
        ("/data/em/in.zarr/", "in.zarr"),
        ("https://host/bucket/em", "em"),
        ("in.hdf", "in.hdf"),
    ],
)
def test_make_report__blocks__times_are_summed_and_packing_is_no_part_of_the_fine_stage(
    where: str, case: str, pipeline: Pipeline
) -> None:
    """Stages do not overlap, so that they add up; the case has the last part of the input's name."""
    blocks = [
        {"seconds": {"read": 1.0, "fine": 5.0, "pack": 2.0, "fine.network": 2.5}},
        {"seconds": {"read": 0.5, "fine": 3.0, "pack": 0.5, "fine.network": 2.0}},
    ]
    report = make_report(
        pipeline,
        blocks,
        {"1": 7},
        (),
        1000,
        None,
        volume={"where": where},
        layout={"cells": [[0, 10], [0, 10], [0, 5, 10]]},
        seconds={"segment": 6.0, "total": 7.0},
        failures=(),
    )
    assert report.timing_s == Timing(read=1.5, pack=2.5, fine=5.5, total=7.0)
    assert report.network_s == NetworkTime(fine=4.5)
    assert report.case == case
    assert report.coverage_is == ESTIMATE != EXACT
