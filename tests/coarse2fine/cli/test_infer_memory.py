"""Runs that need more memory than there is: what the message tells to do makes them pass, in the same memory."""

from __future__ import annotations

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from infer_runs import OBLIQUE, Models, assert_same_grid, run, save, use, voxels
from large_volumes import write_image

STATUS = Path("/proc/self/status")
pytestmark = pytest.mark.skipif(not STATUS.exists(), reason="what a process uses is read as on Linux")


@contextmanager
def at_most(more: int) -> Iterator[None]:
    """Let this process allocate so many bytes and no more."""
    used = re.search(r"VmData:\s+(\d+) kB", STATUS.read_text())
    assert used is not None
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(used[1]) * 1024 + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))


PROGRAM = """
import resource, sys
import coarse2fine.cli.infer_run
from coarse2fine.cli.infer import main
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmData"))
resource.setrlimit(resource.RLIMIT_DATA, (used * 1024 + int(sys.argv[1]), resource.RLIM_INFINITY))
sys.exit(main(sys.argv[2:]))
"""


def run_within(more: int, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run c2f-infer in a process of its own, where nothing that others have freed can be used again."""
    command = [sys.executable, "-c", PROGRAM, str(more), *map(str, arguments), "--device", "cpu"]
    threads = {"OMP_NUM_THREADS": "1"}  # each of more takes memory, too
    return subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **threads})


@pytest.fixture(scope="module")
def models(model_folder: Callable[..., Path]) -> Models:
    return {"coarse": model_folder(spacing=(4.0, 2.0, 2.0), seed=5), "fine": model_folder(seed=6)}


def test_main__spacing_in_another_unit__remedy_works_and_other_cases_are_done(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """Voxels that are said to be a hundred times as large make a working grid of gigabytes."""
    wrong = replace(OBLIQUE, spacing=tuple(100 * step for step in OBLIQUE.spacing))
    save(tmp_path / "in" / "a.nii.gz", grid=wrong)
    good = save(tmp_path / "in" / "b.nii.gz")
    arguments = ["-i", tmp_path / "in", "-o", tmp_path / "out", *use(models)]
    with at_most(700_000_000):
        assert run(*arguments) == 1
        said = capfd.readouterr().err
        assert "error: a: out of memory\n  Check that the spacing in the file's header has the unit of the mod" in said
        assert "1 of 2 cases failed: a" in said
        assert_same_grid(tmp_path / "out" / "b.nii.gz", good)
        save(tmp_path / "in" / "a.nii.gz")
        assert run(*arguments, "--overwrite") == 0
    np.testing.assert_array_equal(*(voxels(tmp_path / "out" / f"{name}.nii.gz") for name in "ab"))


@pytest.mark.alone
def test_main__volume_too_large__cropped_or_as_a_store_it_runs(tmp_path: Path, models: Models) -> None:
    """Of a store only parts are in memory."""
    image = np.random.default_rng(0).integers(1, 200, (96, 1700, 1700), np.uint8)  # with labels more than the limit
    part = image[:, 400:600, 400:600].copy()
    for name, array in (("whole", image), ("part", part)):
        save(tmp_path / f"{name}.nii", array)
    write_image(tmp_path / "store.zarr", image, spacing=OBLIQUE.spacing, chunk=64)
    del image
    quick = ["--set", "coarse.spacing=[20, 20, 20]", "--set", "rois.threshold=0.999", *use(models)]
    failed = run_within(480_000_000, "-i", tmp_path / "whole.nii", "-o", tmp_path / "whole.nii.gz", *quick)
    assert failed.returncode == 1
    assert failed.stderr.startswith("error: out of memory\n")
    assert "crop the volume, or convert it to a store, such as OME-Zarr, which is read by region" in failed.stderr
    some = ("--region", "0:24,:,:")  # to save time; a region needs as much memory as all of them
    for source, target, more in (("part.nii", "part.nii.gz", ()), ("store.zarr", "labels.zarr", some)):
        done = run_within(480_000_000, "-i", tmp_path / source, "-o", tmp_path / target, *quick, *more)
        assert done.returncode == 0, done.stderr
