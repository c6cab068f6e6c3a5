"""c2f-prepare with nothing but a fine model: it trains the coarse one itself, or lets the fine one look coarsely."""

from __future__ import annotations

import html
import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from raw_data import save_case, save_volume

from coarse2fine.cli import infer as infer_cli
from coarse2fine.cli import prepare as prepare_cli
from coarse2fine.coarse_training.job import PROGRESS

CASES, SHAPE = 4, (24, 40, 40)


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright blobs, which a network learns to find within a few steps."""
    folder = tmp_path_factory.mktemp("raw")
    for index in range(CASES):
        image = blobs(SHAPE, seed=index)
        save_case(folder, "Tr", f"case{index}", image, image > 125)
    return folder


def prepare(fine: Path, cases: Path, kit: Path, *options: object) -> int:
    arguments = ["--fine-model", fine, "--cases", cases, "-o", kit, "--device", "cpu", *options]
    return prepare_cli.main([str(argument) for argument in arguments])


@pytest.mark.long
@pytest.mark.parametrize("options", [("--no-search",), ("--no-training",)])
def test_prepare__fine_model_alone__makes_a_kit_that_runs(
    model_folder: Callable[..., Path],
    cases: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two commands; nnU-Net itself loads the coarse model, and the report says what kind of promise it is."""
    fine, kit = model_folder(spacing=(2.0, 1.0, 1.0)), tmp_path / "kit"
    settings = ("--set", "fine.mirroring=false", "--miss", 0.2, "--minutes", 0.5, *options)
    assert prepare(fine, cases, kit, *settings) == 0
    lines = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert [line.partition(":")[0] for line in lines[-5:]] == ["cost", "gain", "promise", "sure", "next"]

    card = json.loads((kit / "card.json").read_text())
    trained = "--no-training" not in options
    assert card["coarse"] == ("trained" if trained else "fine")
    assert ("an estimate, not a guarantee" in card["promise"]) == trained
    for case, model in card["looked_at_by"].items():
        assert case not in card["trained_on"].get(model, [])
    predictor = nnUNetPredictor(perform_everything_on_device=False, device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(kit / "coarse"), ("all",), "checkpoint_final.pth")
    page = html.unescape((kit / "page.html").read_text())
    assert card["promise"] in page
    assert ("one-stage" in page) != trained

    labels, report = tmp_path / "labels.nii.gz", tmp_path / "report.json"
    arguments = ["-i", cases / "imagesTr" / "case0_0000.nii.gz", "-o", labels, "-c", kit, "--report", report]
    assert infer_cli.main([str(argument) for argument in arguments]) == 0
    found: dict[str, Any] = json.loads(report.read_text())
    if found["mode"] == "one-stage":
        assert "looks everywhere" in card["promise"]
    else:
        assert found["promise"]["statement"] == card["promise"]


@pytest.mark.long
def test_prepare__fine_model_and_images_alone__is_about_agreement(
    model_folder: Callable[..., Path], cases: Path, tmp_path: Path
) -> None:
    """Targets of the training, and what may be missed, are what the fine model finds everywhere; every page says so."""
    kit = tmp_path / "kit"
    settings = ("--set", "fine.mirroring=false", "--miss", 0.9, "--minutes", 0.3, "--no-search")
    assert prepare(model_folder(spacing=(2.0, 1.0, 1.0)), cases / "imagesTr", kit, *settings) == 0

    card = json.loads((kit / "card.json").read_text())
    assert card["foreground"] == "one-stage"
    assert "foreground that the fine model finds everywhere" in card["promise"]
    assert "There were no labels" in (kit / "page.html").read_text()


@pytest.mark.alone
def test_prepare__killed_while_training__leaves_no_process_and_goes_on(
    model_folder: Callable[..., Path], cases: Path, tmp_path: Path
) -> None:
    """Trainings end soon after a command that could not tell them, or with it; what they had learned is kept."""
    fine, kit = model_folder(spacing=(2.0, 1.0, 1.0)), tmp_path / "kit"
    work = kit.with_name("kit.c2f-work") / "coarse"
    command = [sys.executable, "-m", "coarse2fine.cli.prepare", "--fine-model", fine, "--cases", cases, "-o", kit]
    command += ["--device", "cpu", "--no-search", "--minutes", "60"]

    def steps() -> list[int]:
        return [json.loads(path.read_text())["steps"] for path in work.glob(f"*/{PROGRESS}")]

    def run_until(there: Callable[[], bool], number: signal.Signals) -> int:
        process = subprocess.Popen([*map(str, command)], stderr=subprocess.DEVNULL)
        wait_for(there)
        process.send_signal(number)
        code = process.wait(60)
        wait_for(lambda: not trainings_in(work))
        return code

    assert run_until(lambda: any(steps()), signal.SIGKILL) == -signal.SIGKILL
    assert not kit.exists()
    before = max(steps())
    assert run_until(lambda: max(steps()) > before, signal.SIGTERM) == 143


def wait_for(there: Callable[[], bool], seconds: float = 180.0) -> None:
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end
        time.sleep(0.1)


def trainings_in(work: Path) -> list[int]:
    """Processes that train for a kit."""
    told = str(work.resolve()).encode()
    lines = ((path, read_quietly(path / "cmdline")) for path in Path("/proc").glob("[0-9]*"))
    return [int(path.name) for path, line in lines if b"coarse_training.trainer" in line and told in line]


def read_quietly(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # of a process that has ended
        return b""


@pytest.mark.parametrize(
    ("model", "options", "problem"),
    [
        ({"cascade": True}, (), "is a cascade (3d_cascade_fullres)"),
        ({}, ("--probability", 0.9), "4 cases cannot support a probability of 0.9"),
        ({}, ("--minutes", 0), "--minutes is 0"),
        ({}, ("--loss", 2), "--loss is 2"),
        ({}, ("--set", "mode=one-stage"), "mode one-stage has no boxes"),
        ({}, ("--no-training", "--coarse-model", "FINE"), "--no-training, but there is the coarse model"),
    ],
)
def test_prepare__what_cannot_be_trained_for__is_said_before_anything_is_done(
    model_folder: Callable[..., Path],
    cases: Path,
    tmp_path: Path,
    model: dict[str, Any],
    options: tuple[object, ...],
    problem: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line and a remedy, nothing is written."""
    fine, kit = model_folder(**model), tmp_path / "new" / "kit"
    given = [fine if option == "FINE" else option for option in options]
    assert prepare(fine, cases, kit, *given) == 1
    assert problem in capsys.readouterr().err.replace("\n", " ")
    assert not kit.exists()


def test_prepare__labels_on_another_grid__are_refused_by_name(
    model_folder: Callable[..., Path], cases: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is trained: pooled labels would lie anywhere."""
    shutil.copytree(cases, tmp_path / "raw")
    save_volume(tmp_path / "raw" / "labelsTr" / "case2.nii.gz", np.ones((24, 40, 39), np.uint8))
    assert prepare(model_folder(), tmp_path / "raw", tmp_path / "kit") == 1
    message = capsys.readouterr().err.replace("\n", " ")
    assert "case2.nii.gz: labels of shape (24, 40, 39) for an image of (24, 40, 40)" in message
    assert not (tmp_path / "kit").exists()
