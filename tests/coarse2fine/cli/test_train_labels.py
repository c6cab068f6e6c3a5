"""c2f-train with a coarse model of several labels, of which some count: the card says which, and runs must agree."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import SimpleITK as sitk
from conftest import blobs

from assignnet.learn.agent import load_agent
from coarse2fine.cli import infer as cli
from coarse2fine.cli import train as train_cli
from coarse2fine.cli import train_run as training

SHAPE = (12, 32, 32)
SMALL = ["--variants", "1", "--regions", "1", "--steps", "2", "--warm-start", "1"]


@dataclass(frozen=True)
class Lab:
    """Labelled cases, and the options that name the models."""

    data: Path
    models: list[str]

    @property
    def image(self) -> Path:
        return self.data / "imagesTr" / "c0_0000.nii.gz"

    def train(self, output: Path, *options: str) -> int:
        return train_cli.main(["--cases", str(self.data), "-o", str(output), *self.models, *SMALL, *options])


@pytest.fixture
def lab(model_folder: Callable[..., Path], tmp_path: Path) -> Lab:
    """A coarse model of two labels, a fine one of one."""
    coarse = model_folder(seed=5, spacing=(4.0, 2.0, 2.0), labels={"background": 0, "a": 1, "b": 2})
    models = ["--coarse-model", str(coarse), "--fine-model", str(model_folder(seed=10)), "--device", "cpu"]
    made = Lab(tmp_path / "raw", [*models, "--set", "rois.threshold=0.6", "--set", "canvas.packing=same_size"])
    for seed in (0, 1):
        image = blobs(SHAPE, seed=seed)
        for name, array in ((f"imagesTr/c{seed}_0000", image), (f"labelsTr/c{seed}", (image > 90).astype(np.uint8))):
            path = made.data / f"{name}.nii.gz"
            path.parent.mkdir(parents=True, exist_ok=True)
            written = sitk.GetImageFromArray(array)
            written.SetSpacing((1.0, 1.0, 2.0))
            sitk.WriteImage(written, str(path))
    return made


def test_train__labels_that_count__reach_the_card(lab: Lab, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card is told which of the coarse model's labels made the heatmap; of all, that it was all."""
    told: list[Any] = []

    def stop(*arguments: Any, features: dict[str, Any], **options: Any) -> Any:
        told.append(features["foreground"])
        raise ValueError("that is enough")

    monkeypatch.setattr(training, "find_instances", lambda *arguments: ({}, []))
    monkeypatch.setattr(training, "split_instances", lambda instances: ([0], [1]))
    monkeypatch.setattr(training, "train_agent", stop)
    for names in ("[b]", "[b, a]", "null"):
        assert lab.train(tmp_path / "agent", "--set", f"coarse.foreground={names}") == 1
    assert told == [["b"], None, None]


@pytest.mark.long
def test_main__labels_that_count__are_asked_for_in_runs(
    lab: Lab, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """An agent of some of the coarse model's labels serves runs with these labels only; the remedy works."""
    agent, some = tmp_path / "agent", ["--set", "coarse.foreground=[b]"]
    assert lab.train(agent, *some) == 0
    assert load_agent(agent).card.features["foreground"] == ["b"]
    command = ["-i", str(lab.image), *lab.models, "--set", f"assign.agent={agent}", "-o"]
    capfd.readouterr()
    assert cli.main([*command, str(tmp_path / "all.nii.gz")]) == 1
    error = capfd.readouterr().err
    assert "it was trained with coarse.foreground: ['b'], this run has coarse.foreground: null (all labels)" in error
    assert cli.main([*command, str(tmp_path / "some.nii.gz"), *some]) == 0
