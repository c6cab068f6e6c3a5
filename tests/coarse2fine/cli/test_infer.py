"""c2f-infer with tiny models: what it writes and reports, in this process and as one of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs, write_agent
from infer_runs import OBLIQUE, SHAPE, Models, assert_same_grid, run, save, use, voxels, write

import coarse2fine
from coarse2fine.config.reader import load_config
from coarse2fine.io import read_volume
from coarse2fine.pipeline import Pipeline, preset

RULE = {"accelerated": "greedy", "two-stage": "all_parents"}
NOTHING = ["--set", "rois.threshold=0.999999"]  # networks with random weights are never that sure


def expected_labels(files: list[Path], overrides: list[str]) -> np.ndarray:
    """What the pipeline gives in memory."""
    return Pipeline.from_config(load_config(None, ["device=cpu", *overrides]))(read_volume(files)).labels


# --- what works ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("suffix", "mode"), [(".nii.gz", "accelerated"), (".nrrd", "one-stage"), (".mha", "two-stage"), (".nii", None)]
)
def test_main__file_to_file__writes_labels_in_its_geometry_and_a_report(
    tmp_path: Path, models: Models, suffix: str, mode: str | None, capfd: pytest.CaptureFixture[str]
) -> None:
    """Labels equal those of the pipeline in memory, on the input's oblique grid; nothing else is said or written."""
    source, target, report_file = save(tmp_path / f"a{suffix}"), tmp_path / f"out{suffix}", tmp_path / "report.json"
    options = [*use(models), *(["--mode", mode] if mode else []), "--set", "rois.threshold=0.4"]
    capfd.readouterr()
    assert run("-i", source, "-o", target, "--report", report_file, *options) == 0
    assert capfd.readouterr() == ("", "")
    assert sorted(tmp_path.iterdir()) == sorted([source, target, report_file])

    settings = [f"coarse.model={models['coarse']}", f"fine.model={models['fine']}", "rois.threshold=0.4"]
    settings += [f"mode={mode}"] if mode else []
    labels = voxels(target)
    np.testing.assert_array_equal(labels, expected_labels([source], settings), strict=True)
    assert 0 < np.count_nonzero(labels) < labels.size
    assert_same_grid(target, source)

    report = json.loads(report_file.read_text())
    assert (report["case"], report["mode"], report["device"]) == ("a", mode or "accelerated", "cpu")
    assert report["labels"] == {"1": np.count_nonzero(labels)}
    assert report["config"] == preset(load_config(None, ["device=cpu", *settings])).to_dict()
    assert report["warnings"] == []
    assert report["peak_memory_mb"]["resident"] > 1
    # A build for CUDA calls itself 2.13.0+cu130, and what pip knows of it 2.13.0.
    assert report["versions"]["torch"].partition("+")[0] == torch.__version__.partition("+")[0]
    assert {"python", "coarse2fine", "nnunetv2", "numpy", "SimpleITK"} <= set(report["versions"])


@pytest.mark.parametrize("mode", ["accelerated", "two-stage", "one-stage"])
def test_main__report__accounts_for_time_boxes_and_coverage(tmp_path: Path, models: Models, mode: str) -> None:
    """Stages add up to the total, and counts and shares are within their bounds and fit each other."""
    source, report_file = save(tmp_path / "a.nii.gz"), tmp_path / "report.json"
    assert run("-i", source, "-o", tmp_path / "b.nii.gz", "--report", report_file, "--mode", mode, *use(models)) == 0
    report = json.loads(report_file.read_text())

    timing = report["timing_s"]
    assert list(timing) == ["read", "coarse", "rois", "assign", "pack", "fine", "write", "total", "measure", "account"]
    total, measure = timing.pop("total"), timing.pop("measure")
    assert measure > 0
    assert all(seconds >= 0 for seconds in timing.values())
    assert 0.9 * total - 0.05 < sum(timing.values()) <= total
    assert 0 < sum(report["network_s"].values()) < timing["coarse"] + timing["fine"]

    boxes, canvases, coverage = report["boxes"], report["canvases"], report["coverage"]
    assert {"children", "parents", "selected", "dropped", "grown"} <= set(boxes)
    assert report["agent"] == ({} if mode == "one-stage" else {"name": RULE[mode], "kind": "rule"})
    assert set(canvases) == {"count", "voxels", "network_voxels", "fill"}
    assert set(coverage) == {"volume", "heatmap_mass"}
    assert all(0 < share <= 1 for share in coverage.values())
    if mode == "one-stage":
        assert not any(boxes.values())
        assert coverage == {"volume": 1, "heatmap_mass": 1}
        assert not timing["coarse"]
    else:
        assert boxes["children"] >= boxes["parents"] > 0
        assert boxes["selected"] >= boxes["parents"]
        assert canvases["count"] > 0
        assert 0 < canvases["fill"] <= 1
        assert min(timing["coarse"], timing["rois"], timing["fine"]) > 0


def test_main__folder_to_folder__names_results_after_cases(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """Channels are put together by number, results keep their case's format, and the report lists all."""
    other = replace(OBLIQUE, shape=(12, 28, 24), spacing=(3.0, 1.0, 1.0))
    for channel in range(2):
        save(tmp_path / "in" / f"a_000{channel}.nii.gz", blobs(SHAPE, seed=channel))
        save(tmp_path / "in" / f"b_000{channel}.nrrd", blobs(other.shape, seed=7 + channel), other)
    write(tmp_path / "in" / "notes.txt", b"no volume")
    report_file = tmp_path / "reports" / "all.json"
    capfd.readouterr()
    options = use(models, "coarse2", "fine2")
    assert run("-i", tmp_path / "in", "-o", tmp_path / "new" / "out", "--report", report_file, *options) == 0
    out, told = capfd.readouterr()
    assert (out, [line.split()[0] for line in told.splitlines() if line.strip()]) == ("", ["case", "a", "b", "2"])

    names = ("a.nii.gz", "b.nrrd")
    results = [tmp_path / "new" / "out" / name for name in names]
    assert sorted((tmp_path / "new" / "out").iterdir()) == results
    settings = [f"coarse.model={models['coarse2']}", f"fine.model={models['fine2']}"]
    for result in results:
        stem, _, suffix = result.name.partition(".")
        files = [tmp_path / "in" / f"{stem}_000{channel}.{suffix}" for channel in range(2)]
        assert_same_grid(result, files[0])
        np.testing.assert_array_equal(voxels(result), expected_labels(files, settings))
        assert (expected_labels(files[::-1], settings) != voxels(result)).any()
    assert [report["case"] for report in json.loads(report_file.read_text())] == ["a", "b"]


def test_main__file_to_existing_folder__names_the_result_after_the_case(tmp_path: Path, models: Models) -> None:
    """A folder is as good a target for one file as for many."""
    (tmp_path / "out").mkdir()
    assert run("-i", save(tmp_path / "a_0000.nrrd"), "-o", tmp_path / "out", *use(models)) == 0
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out" / "a.nrrd"]


def test_main__one_stage_with_a_fine_model_only__runs(tmp_path: Path, models: Models) -> None:
    """The coarse model is only demanded where it is used."""
    target = tmp_path / "b.nii.gz"
    options = use(models, coarse=None)
    assert run("-i", save(tmp_path / "a.nii.gz"), "-o", target, "--mode", "one-stage", *options) == 0
    expected = expected_labels([tmp_path / "a.nii.gz"], ["mode=one-stage", f"fine.model={models['fine']}"])
    np.testing.assert_array_equal(voxels(target), expected)


ODD_VOLUMES: dict[str, np.ndarray] = {
    "one slice": blobs(SHAPE)[5:6],
    "one row": blobs(SHAPE)[:, 10:11],
    "one voxel": blobs(SHAPE)[5:6, 10:11, 10:11],
    "smaller than a slot": blobs(SHAPE)[5:7, 10:13, 10:14],
    "smaller than a patch": blobs(SHAPE)[3:9, 5:19, 5:20],
    "constant": np.full(SHAPE, 7, np.int16),
    "all zero": np.zeros(SHAPE, np.uint8),
    "one bright voxel": np.pad(np.full((1, 1, 1), 100, np.float32), [(5, 6), (14, 13), (2, 27)]),
    "unsigned 64 bit": blobs(SHAPE, dtype=np.uint64),
    "negative": blobs(SHAPE, dtype=np.float64) - 5000.5,
}


@pytest.mark.parametrize("mode", ["accelerated", "one-stage"])
@pytest.mark.parametrize("name", ODD_VOLUMES)
def test_main__unusual_volume__is_segmented(
    tmp_path: Path, models: Models, name: str, mode: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Whatever is a 3D volume of finite numbers gets labels of its shape; at most remarks that it is thin or empty."""
    source, target = save(tmp_path / "a.nrrd", ODD_VOLUMES[name]), tmp_path / "b.nrrd"
    capfd.readouterr()
    assert run("-i", source, "-o", target, "--mode", mode, *use(models)) == 0
    labels, said = voxels(target), capfd.readouterr()
    assert labels.shape == ODD_VOLUMES[name].shape
    assert_same_grid(target, source)
    assert said.out == ""
    lines = said.err.splitlines()
    if not labels.any():
        assert lines.pop() == "a: nothing was found: every voxel is background"
    if mode == "accelerated" and lines:
        assert "thinner than a patch of the fine model" in lines.pop()
    assert not lines


def test_main__nothing_found__writes_background_and_says_so(
    tmp_path: Path, models: Models, capfd: pytest.CaptureFixture[str]
) -> None:
    """An empty result is a result, but one to hear about, on stderr and in the report."""
    target, report_file = tmp_path / "b.nii.gz", tmp_path / "r.json"
    source = save(tmp_path / "a.nii.gz")
    capfd.readouterr()
    assert run("-i", source, "-o", target, "--report", report_file, *NOTHING, *use(models)) == 0
    assert capfd.readouterr() == ("", "a: nothing was found: every voxel is background\n")
    assert voxels(target).shape == SHAPE
    assert not voxels(target).any()
    report = json.loads(report_file.read_text())
    assert report["warnings"] == ["nothing was found: every voxel is background"]
    assert report["labels"] == {}
    assert report["boxes"]["selected"] == report["canvases"]["count"] == report["coverage"]["volume"] == 0

    options = ["--overwrite", "--set", "rois.empty=one-stage"]
    assert run("-i", source, "-o", target, "--report", report_file, *NOTHING, *options, *use(models)) == 0
    assert capfd.readouterr() == ("", "a: the heatmap is empty: ran one-stage instead\n")
    assert json.loads(report_file.read_text())["mode"] == "one-stage"
    assert voxels(target).any()


def test_main__somebody_watches__shows_bars_and_a_table(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In a terminal stderr tells what happens; names with brackets and colons are shown as they are."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "300")
    name = "[red]scan[1] :smile:"
    assert run("-i", save(tmp_path / f"{name}.nii.gz"), "-o", tmp_path / "out.nii.gz", *use(models)) == 0
    said = capfd.readouterr()
    assert said.out == ""
    for text in (
        f"1/1 {name}",
        "coarse",
        "fine",
        f"{name}: accelerated",
        "of the volume",
        "rule greedy",
        str(tmp_path / "out.nii.gz"),
    ):
        assert text in said.err


def test_main__trained_agent__chooses_the_boxes(
    tmp_path: Path, models: Models, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An agent's folder relative to the current one works, warns where it should, and is refused for other models."""
    folders, report_file = (models["coarse"], models["fine"]), tmp_path / "report.json"
    write_agent(tmp_path / "mine" / "agent", folders)
    monkeypatch.chdir(tmp_path / "mine")
    arguments = ["-i", save(tmp_path / "a.nii.gz"), "-o", tmp_path / "b.nii.gz", "--report", report_file]
    options = ["--set", "assign.agent=agent", "--set", "assign.lambda=0.9", "--overwrite"]
    capfd.readouterr()
    assert run(*arguments, *options, *use(models)) == 0
    said = capfd.readouterr()
    assert (said.out, said.err.splitlines()) == ("", [said.err.strip()])
    assert said.err.startswith("a: assign.lambda 0.9 is outside of 0.01 to 0.5, for which the agent ")
    report = json.loads(report_file.read_text())
    assert report["agent"] == {"name": str(tmp_path / "mine" / "agent"), "kind": "gains"}
    assert report["config"]["assign"]["agent"] == report["agent"]["name"]
    assert report["boxes"]["selected"] > 0

    assert run(*arguments, *options, *use(models | {"coarse": models["fine"]})) == 1
    error, remedy = capfd.readouterr().err.splitlines()
    assert f"agent {tmp_path / 'mine' / 'agent'} does not fit this run" in error
    assert f"another coarse model than {models['fine']}" in error
    assert remedy.startswith("  Use it with the models")


def test_main__trust_checkpoint__is_what_lets_code_run(
    tmp_path: Path, model_folder: Callable[..., Path], capfd: pytest.CaptureFixture[str]
) -> None:
    """A checkpoint with code is refused, names the option, and runs only with it."""

    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch '{tmp_path / 'canary'}'",)

    folder = model_folder()
    path = folder / "fold_all" / "checkpoint_final.pth"
    torch.save(torch.load(path, weights_only=False) | {"bomb": Runs()}, path)
    options = ["--mode=one-stage", *use({"fine": folder}, coarse=None)]
    arguments = ["-i", save(tmp_path / "a.nii.gz"), "-o", tmp_path / "b.nii.gz", *options]
    assert run(*arguments) == 1
    assert "--trust-checkpoint" in capfd.readouterr().err
    assert not (tmp_path / "canary").exists()
    assert run(*arguments, "--trust-checkpoint") == 0
    assert (tmp_path / "canary").exists()


# --- as a process ----------------------------------------------------------------------------------------------------


SMALL_FILES = """
import resource, sys
from coarse2fine.cli import infer as cli
resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))
sys.exit(cli.main())
"""
WAITS = """
import contextlib, signal, sys, time
from coarse2fine.cli import infer as cli
from coarse2fine.cli import folder
signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent may have switched it off
@contextlib.contextmanager
def show_progress(console, title):
    def progress(stage, done, total):
        if stage == STAGE and done:
            print("waiting", flush=True)
            time.sleep(60)
    yield progress
folder.show_progress = show_progress
sys.exit(cli.main())
"""


def start(code: str, folder: Path, arguments: list[object]) -> subprocess.Popen[str]:
    """A process of its own that runs ``code`` with these arguments, with ``folder/tmp`` for temporary files."""
    (folder / "tmp").mkdir()
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(coarse2fine.__file__).parents[1],
        env=os.environ | {"TMPDIR": str(folder / "tmp"), "OMP_NUM_THREADS": "1"},
    )


@pytest.mark.long
def test_main__as_a_process__is_quiet_and_exits_with_0(tmp_path: Path, models: Models) -> None:
    """No import, warning or library writes anything when all is well and nobody watches."""
    source, target = save(tmp_path / "a.nii.gz"), tmp_path / "b.nii.gz"
    process = start("import sys; from coarse2fine.cli.infer import main; sys.exit(main())", tmp_path,
                    ["-i", source, "-o", target, *use(models)])  # fmt: skip
    assert process.communicate(timeout=120) == ("", "")
    assert process.returncode == 0
    assert_same_grid(target, source)
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to run into")
def test_main__disk_full_while_writing__keeps_the_old_result(tmp_path: Path, models: Models) -> None:
    """The message says how much is needed; the old file is whole and nothing else is left behind."""
    source, target = save(tmp_path / "a.nii.gz"), write(tmp_path / "out" / "b.nii", b"old")
    process = start(SMALL_FILES, tmp_path, ["-i", source, "-o", target, "--overwrite", *use(models)])
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (1, "")
    assert err.startswith(f"error: cannot write {target}: File too large\n  0.0 MB are needed, ")
    assert {path: path.read_bytes() for path in target.parent.iterdir()} == {target: b"old"}
    assert list((tmp_path / "tmp").iterdir()) == []


@pytest.mark.alone
@pytest.mark.skipif(sys.platform == "win32", reason="signals are another thing there")
@pytest.mark.parametrize(("stage", "number"), [("coarse", signal.SIGINT), ("fine", signal.SIGTERM)])
def test_main__interrupted__says_so_and_writes_nothing(
    tmp_path: Path, models: Models, stage: str, number: signal.Signals
) -> None:
    """A signal in the middle of a run ends it with one line, without a result or a temporary file."""
    source, target = save(tmp_path / "a.nii.gz"), tmp_path / "out" / "b.nii.gz"
    arguments = ["-i", source, "-o", target, "--report", tmp_path / "out" / "r.json", *use(models)]
    process = start(f"STAGE = {stage!r}{WAITS}", tmp_path, arguments)
    assert process.stdout is not None
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert (process.returncode, out) == (128 + number, "")
    assert err == "interrupted: finished results are kept, the one in progress was not written\n"
    assert list(target.parent.iterdir()) == list((tmp_path / "tmp").iterdir()) == []
