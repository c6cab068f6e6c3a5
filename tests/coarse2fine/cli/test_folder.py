"""Folders: several devices, what is read ahead, and what is told at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import blobs
from infer_runs import SHAPE, Models, run, save, use, voxels

from coarse2fine.cli import folder as folder_module
from coarse2fine.cli.cases import Job, Work
from coarse2fine.cli.devices import Failure, on_devices
from coarse2fine.cli.folder import read_ahead
from coarse2fine.config.reader import load_config
from coarse2fine.io import Case
from coarse2fine.report import RunReport


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Four cases that differ; the third is damaged."""
    for index in range(4):
        save(tmp_path / "in" / f"case{index}_0000.nii.gz", blobs(SHAPE, seed=index))
    broken = tmp_path / "in" / "case2_0000.nii.gz"
    broken.write_bytes(broken.read_bytes()[:400])
    return tmp_path / "in"


def work_of(models: Models, *overrides: str) -> Work:
    names = [f"coarse.model={models['coarse']}", f"fine.model={models['fine']}", "device=cpu"]
    return Work(load_config(None, [*names, *overrides]))


@pytest.mark.alone
def test_main__two_devices__give_what_one_gives_and_tell_the_same(
    images: Path, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Labels, reports in the order of the cases, the summary, and the exit code."""
    told, reports = {}, {}
    for name, device in (("one", "cpu"), ("two", "cpu,cpu")):
        report = tmp_path / f"{name}.json"
        options = [*use(models)[2:], "--device", device, "--report", report]
        assert run("-i", images, "-o", tmp_path / name, *options) == 1
        told[name], reports[name] = capsys.readouterr().err, json.loads(report.read_text())
        assert "1 of 4 cases failed: case2" in told[name]
        assert "failed: " in told[name].split("remarks")[1]
    for index in (0, 1, 3):
        one, two = (voxels(tmp_path / name / f"case{index}.nii.gz") for name in ("one", "two"))
        np.testing.assert_array_equal(one, two)
        assert one.any()
    assert [one["case"] for one in reports["two"]] == ["case0", "case1", "case3"]
    assert [one["labels"] for one in reports["two"]] == [one["labels"] for one in reports["one"]]
    lines = [line for line in told["two"].splitlines() if "on cpu" in line]
    assert len(lines) == 3
    (images / "case2_0000.nii.gz").unlink()
    assert run("-i", images, "-o", tmp_path / "two", *options[:-2], "--skip-existing") == 0
    assert "nothing to do" in capsys.readouterr().err


def test_main__folder__ends_with_a_line_for_each_case(
    images: Path, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that failed say why; seconds are those of the report."""
    report = tmp_path / "report.json"
    assert run("-i", images, "-o", tmp_path / "out", "--report", report, *use(models)) == 1
    rows = {line.split()[0]: line.split() for line in capsys.readouterr().err.splitlines() if line.strip()}
    for one in json.loads(report.read_text()):
        row = rows[one["case"]]
        assert row[1] == f"{one['timing_s']['total']:.1f}"
        assert row[3:5] == ["1:", str(one["labels"]["1"])]
    assert "failed:" in rows["case2"]
    assert "3 of 4" in " ".join(rows["3"])


KILLED = """
import os, signal, sys
from coarse2fine.cli import devices
before = devices.segment_case
def segment_case(pipeline, job, work):
    if job.case.name == "case1":
        os.kill(os.getpid(), signal.SIGKILL)
    return before(pipeline, job, work)
devices.segment_case = segment_case
"""


@pytest.mark.alone
def test_on_devices__process_killed__its_case_fails_and_others_go_on(
    images: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new process takes its place; the message says what happened."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(KILLED)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path / 'patch'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    jobs = [
        Job(Case(f"case{index}", (images / f"case{index}_0000.nii.gz",), ".nii.gz"), tmp_path / f"{index}.nii.gz")
        for index in range(4)
    ]
    outcomes = {job.case.name: outcome for job, outcome in on_devices(jobs, work_of(models), ["cpu"])}
    assert isinstance(outcomes["case0"], RunReport)
    assert isinstance(outcomes["case3"], RunReport)
    killed, damaged = outcomes["case1"], outcomes["case2"]
    assert isinstance(killed, Failure)
    assert "its process on cpu was killed (exit code -9), perhaps because memory was full" in killed.problem
    assert isinstance(damaged, Failure)
    assert "case2_0000.nii.gz" in damaged.problem
    assert sorted(path.name for path in tmp_path.glob("*.nii.gz")) == ["0.nii.gz", "3.nii.gz"]


@pytest.mark.alone
def test_main__two_devices_and_sigterm__ends_both_processes(images: Path, models: Models, tmp_path: Path) -> None:
    """No process and no half-written file stays."""
    for index in range(4, 40):
        (images / f"case{index}_0000.nii.gz").write_bytes((images / "case0_0000.nii.gz").read_bytes())
    code = "import sys; from coarse2fine.cli.infer import main; sys.exit(main())"
    options = ["-i", images, "-o", tmp_path / "out", *use(models)[2:], "--device", "cpu,cpu"]
    command = [sys.executable, "-c", code, *map(str, options)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("*.nii.gz")) and time.monotonic() < deadline:
        time.sleep(0.05)
    children = [int(name) for name in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert len(children) >= 2
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=30)
    assert process.returncode == 143
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(Path(f"/proc/{child}").exists() for child in children)
    for path in (tmp_path / "out").iterdir():
        assert voxels(path).shape == SHAPE


def test_read_ahead__next_case__is_read_while_one_is_in_work(
    images: Path, models: Models, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file once and in order; where memory has no room, only when it is asked for; errors come when it is."""
    pipeline = work_of(models).pipeline()
    before, seen, second = pipeline.read, list[str](), threading.Event()

    def watched(files: tuple[Path, ...]) -> object:
        seen.append(files[0].name[:5])
        if len(seen) == 2:
            second.set()
        return before(files)

    monkeypatch.setattr(pipeline, "read", watched)
    cases = [Case(f"case{index}", (images / f"case{index}_0000.nii.gz",), ".nii.gz") for index in range(4)]
    jobs = [Job(case, tmp_path / case.name) for case in cases]
    with read_ahead(pipeline, jobs) as reader:
        assert reader(cases[0].files).grid.shape == SHAPE
        assert second.wait(10)
        assert reader(cases[1].files).name == "case1"
        with pytest.raises(Exception, match="case2"):
            reader(cases[2].files)
        assert reader(cases[3].files).name == "case3"
    assert seen == ["case0", "case1", "case2", "case3"]
    monkeypatch.setattr(folder_module, "available_bytes", lambda: 1000)
    with read_ahead(pipeline, jobs) as reader:
        reader(cases[0].files)
        time.sleep(0.2)
        assert seen[4:] == ["case0"]


@pytest.mark.parametrize(
    ("device", "says"),
    [
        ("cpu,nonsense", "device"),
        ("cpu,cuda:99", "device cuda:99 is not available on this machine"),
        ("cpu,", "device"),
    ],
)
def test_main__devices_that_cannot_be__are_refused(
    images: Path, models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str], device: str, says: str
) -> None:
    """Before anything is written; one that exists can be named twice."""
    assert run("-i", images, "-o", tmp_path / "out", *use(models)[2:], "--device", device) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_main__devices_for_a_store__are_refused_with_what_works(
    model_folder: Callable[..., Path], models: Models, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Workers share the GPUs there."""
    (tmp_path / "in.zarr").mkdir()
    assert (
        run("-i", tmp_path / "in.zarr", "-o", tmp_path / "o.zarr", *use(models)[2:], "--device", "cuda:0,cuda:1") == 1
    )
    said = capsys.readouterr().err
    assert "--device cuda:0,cuda:1 is for folders of volumes" in said
    assert "Give --workers 2 instead" in said
