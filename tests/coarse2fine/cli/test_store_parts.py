"""c2f-infer --part on stores: real processes, and what does not go with parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from conftest import blobs
from infer_runs import SHAPE, Models, run, use
from large_volumes import write_image

import coarse2fine

COMMAND = "import sys; from coarse2fine.cli.infer import main; sys.exit(main())"


@pytest.mark.alone
def test_main__two_processes_and_a_last_one__write_what_one_does(tmp_path: Path, models: Models) -> None:
    """With the same options, of which only the last command's report and table are written."""
    image = write_image(tmp_path / "in.zarr", blobs((8, 32, 160)), chunk=32)
    arguments = ["-i", image, *use(models), "--instances", "--set", "rois.threshold=0.55"]
    assert run(*arguments, "-o", tmp_path / "one.zarr") == 0
    arguments += ["-o", tmp_path / "out.zarr", "--report", tmp_path / "r.json", "--table", tmp_path / "t.csv"]
    environment = os.environ | {"PYTHONPATH": str(Path(coarse2fine.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    parts = [
        subprocess.Popen([sys.executable, "-c", COMMAND, *map(str, arguments), "--part", part], env=environment)
        for part in ("1/2", "2/2")
    ]
    assert [process.wait(300) for process in parts] == [0, 0]
    assert not (tmp_path / "out.zarr").exists()
    assert not (tmp_path / "r.json").exists()
    assert run(*arguments) == 0
    one, out = (zarr.open_group(tmp_path / f"{name}.zarr", mode="r")["0"][:] for name in ("one", "out"))
    np.testing.assert_array_equal(one, out)
    assert one.any()
    report = json.loads((tmp_path / "r.json").read_text())
    assert report["counts"]["objects"] == len((tmp_path / "t.csv").read_text().splitlines()) - 1
    assert not (tmp_path / "out.zarr.c2f-work").exists()


def test_main__part_that_is_alone__says_what_to_do_and_that_works(
    tmp_path: Path, models: Models, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options that would change what other parts rely on are refused, with what to do instead."""
    image = write_image(tmp_path / "in.zarr", blobs(SHAPE), spacing=(2, 0.8, 0.9))
    arguments = ["-i", image, "-o", tmp_path / "out.zarr", *use(models), "--set", "rois.threshold=0.5"]
    for option, remedy in (("--restart", "out.zarr.c2f-work before"), ("--skip-failed", "to the last command")):
        assert run(*arguments, "--part", "1/2", option) == 1
        assert remedy in " ".join(capsys.readouterr().err.split())
    assert run(*arguments, "--part", "1/2") == 0
    assert "1 of 1 blocks are segmented. Run the same command without --part" in " ".join(
        capsys.readouterr().err.split()
    )
    assert run(*arguments, "--skip-failed") == 0
    assert (tmp_path / "out.zarr" / "zarr.json").exists()
