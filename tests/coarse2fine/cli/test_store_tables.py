"""c2f-infer --table on stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from conftest import blobs
from infer_runs import SHAPE, Models, run, snapshot, use
from large_volumes import write_image


def test_main__table_of_a_store__needs_objects_and_a_name_for_tables(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused before anything is written; with the remedy it is."""
    image = write_image(tmp_path / "in.zarr", blobs(SHAPE), spacing=(2, 0.8, 0.9))
    arguments = ["-i", image, "-o", tmp_path / "out.zarr", *use(models), "--set", "rois.threshold=0.5"]
    before = snapshot(tmp_path)
    assert run(*arguments, "--table", tmp_path / "t.csv") == 1
    assert "Add --instances." in " ".join(capsys.readouterr().err.split())
    assert run(*arguments, "--table", tmp_path / "t.txt", "--instances") == 1
    assert ".csv" in " ".join(capsys.readouterr().err.split())
    assert run(*arguments, "--report", tmp_path / "t.csv", "--table", tmp_path / "t.csv", "--instances") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "t.csv is an input or another result of this run Choose another name with --table." in said
    assert snapshot(tmp_path) == before
    assert run(*arguments, "--table", tmp_path / "t.csv", "--instances") == 0
    assert (tmp_path / "t.csv").read_text().startswith("object,label,name,voxels,volume_ml,")
