"""Where the time of a run went: stages account for all of it, and ``--profile`` shows them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType

import pytest
from conftest import blobs
from infer_runs import Models, run, save, use
from large_volumes import write_image

from coarse2fine.cli.profile import Spent, add_up, highest, spent
from coarse2fine.config.reader import load_config
from coarse2fine.pipeline import Pipeline
from coarse2fine.report import Boxes, Canvases, Coverage, NetworkTime, RunReport, Timing
from coarse2fine.system.timing import Clock, Stage

TIMING = Timing(read=1.0, coarse=2.0, fine=4.0, write=0.5, total=8.0, measure=3.0, account=0.5)
NETWORK = NetworkTime(coarse=1.5, fine=3.0)


@contextmanager
def counted_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A clock that goes on with every call of a function, whatever the machine; a microsecond each."""
    calls = 0

    def count(frame: FrameType, event: str, argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    monkeypatch.setattr(Clock.__init__, "__defaults__", (lambda: calls * 1e-6,))
    before = sys.getprofile()
    sys.setprofile(count)
    try:
        yield
    finally:
        sys.setprofile(before)


@pytest.mark.parametrize(
    "settings",
    [
        ["mode=accelerated"],
        ["mode=accelerated", "deadline=100h"],
        ["mode=two-stage"],
        ["mode=one-stage"],
        ["mode=accelerated", "rois.threshold=0.999999", "rois.empty=one-stage"],
    ],
    ids=["accelerated", "deadline", "two-stage", "one-stage", "empty"],
)
def test_run_files__any_mode__books_all_of_its_time(
    settings: list[str], models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the calls of a run less than 2 % happen in no stage."""
    source, mask = save(tmp_path / "a.nii.gz"), save(tmp_path / "mask.nii.gz")
    folders = [f"coarse.model={models['coarse']}", f"fine.model={models['fine']}", "device=cpu"]
    pipeline = Pipeline.from_config(load_config(None, [*folders, *settings]))
    with counted_calls(monkeypatch):
        report = pipeline.run_files([source], tmp_path / "b.nii.gz", mask=mask).report
    timing = report.timing_s
    assert timing.total > 1e-3
    assert 0.98 * timing.total < sum(timing.stages.values()) <= 1.000001 * timing.total


def test_spent__stages__have_their_share_of_the_total_and_what_is_left_is_named() -> None:
    """Measures come after the total; stages that took no time are left out."""
    assert spent(TIMING, NETWORK) == (
        Spent(Stage.READ, 1.0, 0.125, 0.0),
        Spent(Stage.COARSE, 2.0, 0.25, 1.5),
        Spent(Stage.FINE, 4.0, 0.5, 3.0),
        Spent(Stage.WRITE, 0.5, 0.0625, 0.0),
        Spent(Stage.ACCOUNT, 0.5, 0.0625, 0.0),
    )
    assert spent(Timing(fine=3.0, total=4.0), NETWORK)[-1] == Spent(None, 1.0, 0.25, 0.0)
    assert spent(Timing(fine=8.0, total=4.0), NETWORK) == (Spent(Stage.FINE, 8.0, 2.0, 3.0),)


def test_add_up__two_runs__is_the_sum_of_each_time() -> None:
    """Of stages, networks, and totals."""
    report = RunReport("a", "two-stage", TIMING, NETWORK, Boxes(), Canvases(), Coverage(), {}, (), "cpu", {})
    timing, network = add_up([report, report])
    assert timing == Timing(read=2.0, coarse=4.0, fine=8.0, write=1.0, total=16.0, measure=6.0, account=1.0)
    assert network == NetworkTime(coarse=3.0, fine=6.0)
    peaks = [{"resident": 5.0}, {"resident": 4.0, "gpu": 2.0}]
    assert highest([replace(report, peak_memory_mb=peak) for peak in peaks]) == {"resident": 5.0, "gpu": 2.0}


def rows_of(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_main__profile__shows_a_table_for_each_case_and_one_for_all(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where there is no terminal."""
    for name in "ab":
        save(tmp_path / "in" / f"{name}.nii.gz")
    capfd.readouterr()
    assert run("-i", tmp_path / "in", "-o", tmp_path / "out", "--profile", *use(models)) == 0
    rows = rows_of(capfd.readouterr().err)
    for title in (["a:"], ["b:"], ["2", "cases:"]):
        assert [*title, "where", "the", "time", "went"] in rows
    assert rows.count(["stage", "seconds", "share", "in", "networks"]) == 3
    peaks = [float(row[3]) for row in rows if row[:3] == ["peak", "memory,", "resident"]]
    assert peaks[2] == max(peaks) > 10
    totals = [float(row[1]) for row in rows if row[:1] == ["total"]]
    assert totals[2] == pytest.approx(totals[0] + totals[1], abs=0.02)
    shares = [float(row[2].rstrip("%")) for row in rows if row[:1] in (["coarse"], ["fine"])]
    assert len(shares) == 6
    assert all(0 < share < 100 for share in shares)


def test_main__profile_of_a_store__shows_one_table(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """Of blocks together, and what passes between them."""
    source = write_image(tmp_path / "a.zarr", blobs((12, 28, 30)))
    capfd.readouterr()
    assert run("-i", source, "-o", tmp_path / "b.zarr", "--profile", *use(models)) == 0
    rows = rows_of(capfd.readouterr().err)
    assert ["a.zarr:", "where", "the", "time", "went"] in rows
    assert {"coarse", "fine", "total"} <= {row[0] for row in rows if row}
