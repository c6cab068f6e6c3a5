"""c2f-infer --dry-run: says what a run will take, and writes nothing but the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from conftest import blobs
from infer_runs import SHAPE, Models, run, save, snapshot, use
from large_volumes import write_image


def test_main__dry_run_of_a_store__tells_and_writes_only_the_report(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lines for people on the standard output, JSON for programs; the run itself then finds nothing in its way."""
    monkeypatch.chdir(tmp_path)
    image = write_image(tmp_path / "in.zarr", blobs(SHAPE), spacing=(2, 0.8, 0.9))
    arguments = ["-i", image, "-o", "new/out.zarr", *use(models), "--dry-run", "--workers", 2]
    before = snapshot(tmp_path)
    assert run(*arguments, "--report", "r.json") == 0
    told = capsys.readouterr().out
    report = json.loads((tmp_path / "r.json").read_text())
    (tmp_path / "r.json").unlink()
    assert snapshot(tmp_path) == before
    assert report["blocks"] == {"all": 1, "looked_at": 1}
    assert report["workers"] == 2
    assert [line.split()[0] for line in told.splitlines()] == [
        "volume", "blocks", "to", "result", "memory", "measured", "time", "nothing",
    ]  # fmt: skip
    assert "12 x 28 x 30 uint8, 1 levels, 10.1 kB" in told


def test_main__dry_run_of_a_file__is_refused(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is for volumes in stores."""
    scan = save(tmp_path / "scan.nii.gz")
    assert run("-i", scan, "-o", tmp_path / "out.nii.gz", *use(models), "--dry-run") == 1
    assert "--dry-run needs a volume that is read by region" in " ".join(capsys.readouterr().err.split())


def test_main__dry_run_with_a_wrong_name__is_refused_as_the_run_is(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """What a run would find out at once, its rehearsal does, too."""
    image = write_image(tmp_path / "in.zarr", blobs(SHAPE))
    assert run("-i", image, "-o", tmp_path / "out.txt", *use(models), "--dry-run") == 1
    assert "no format for the result" in " ".join(capsys.readouterr().err.split())
