"""What a report says of time and memory, and how it is written."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from coarse2fine.report import Boxes, Canvases, Coverage, NetworkTime, RunReport, Timing, peak_memory_mb, write_report

SECONDS = {
    **{"read": 1.0, "coarse": 2.0, "coarse.network": 1.5, "rois": 0.25, "assign": 0.5, "assign.network": 0.125},
    **{"pack": 0.5, "fine": 4.0, "fine.network": 3.0, "write": 0.75, "total": 9.0, "elsewhere": 100.0},
}
REPORT = RunReport(
    "a", "two-stage", Timing.of(SECONDS), NetworkTime.of(SECONDS), Boxes(), Canvases(), Coverage(), {}, (), "cpu", {}
)


def test_overhead_s__stages_and_passes__is_what_neither_networks_nor_files_took() -> None:
    """Packing was booked inside of the fine stage; all stages but files, less what networks took, plus the rest."""
    assert REPORT.timing_s == Timing(1.0, 2.0, 0.25, 0.5, 0.5, 3.5, 0.75, 9.0)
    assert REPORT.network_s == NetworkTime(1.5, 0.125, 3.0)
    assert REPORT.network_s.total == 4.625
    assert REPORT.overhead_s == 9.0 - 4.625 - 1.0 - 0.75


def test_peak_memory_mb__this_process__is_at_least_what_it_has_now() -> None:
    """In millions of bytes, whatever unit the system counts in; a GPU is only asked where one is used."""
    now = psutil.Process().memory_info().rss / 1e6
    found = peak_memory_mb(torch.device("cpu"))
    assert found.keys() == {"resident"}
    assert 0.9 * now < found["resident"] < 100 * now


@pytest.mark.parametrize("count", [1, 2])
def test_write_report__runs__are_an_object_or_a_list(count: int, tmp_path: Path) -> None:
    """With all that is known of each."""
    write_report([replace(REPORT, case=name) for name in "ab"[:count]], tmp_path / "r.json")
    found = json.loads((tmp_path / "r.json").read_text())
    assert [run["case"] for run in ([found] if count == 1 else found)] == list("ab"[:count])
    assert (found if count == 1 else found[1])["timing_s"]["fine"] == 3.5
