"""``c2f-pretrain`` and ``nnUNetv2_train -pretrained_weights``, typed as the page says."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from raw_data import save_case, save_volume
from safetensors.torch import load_file

ROOT = Path(__file__).parents[3]
NAME = "Dataset004_Hippocampus"
SHORT = """
from functools import wraps

from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

plain = nnUNetTrainer.__init__


@wraps(plain)  # nnU-Net asks for the names of its arguments
def short(self, *arguments, **options):
    plain(self, *arguments, **options)
    self.num_epochs = self.num_iterations_per_epoch = self.num_val_iterations_per_epoch = 1
    self.initial_lr = 0.0


nnUNetTrainer.__init__ = short
"""
"""Found as ``sitecustomize.py``, it ends nnU-Net's training after one step that changes nothing.

So the checkpoint holds what was begun with. ``nnUNetv2_train -tr`` with a trainer in ``nnUNet_extTrainer`` looks
through nnU-Net's other trainers first, of which some need packages that may not work here.
"""
MORE = {  # shorter, and without a GPU
    "c2f-pretrain": ["--steps", "2", "--batch", "1", "--device", "cpu"],
    "nnUNetv2_train": ["-device", "cpu"],
}


def documented() -> list[list[str]]:
    """The first commands of the page, but for what installs it."""
    (block, *_) = re.findall(r"```\n(.*?)```", (ROOT / "docs" / "pretraining.md").read_text(), re.DOTALL)
    lines = [shlex.split(line, comments=True) for line in block.splitlines()]
    return [words for words in lines if words and words[0] != "pip"]


def make_raw_data(folder: Path) -> None:
    """Five cases, as five folds need, and two volumes without labels."""
    for number in range(5):
        voxels = blobs((12, 20, 20), seed=number)
        save_case(folder / "nnUNet_raw" / NAME, "Tr", f"case{number}", voxels, voxels > 110)
    labels = {"labels": {"background": 0, "bright": 1}, "channel_names": {"0": "MRI"}}
    document = {**labels, "file_ending": ".nii.gz", "numTraining": 5}
    (folder / "nnUNet_raw" / NAME / "dataset.json").write_text(json.dumps(document))
    for number in range(2):
        save_volume(folder / "unlabelled" / f"u{number}.nii.gz", blobs((12, 20, 20), seed=9 + number))


def run(words: list[str], folder: Path) -> str:
    """Run a command in a folder; returns what it prints."""
    ours = words[0].startswith("c2f-")
    module = ["-m", f"coarse2fine.cli.{words[0].removeprefix('c2f-')}"]
    command = [sys.executable, *module] if ours else [str(Path(sys.executable).parent / words[0])]
    own = {f"nnUNet_{name}": str(folder / f"nnUNet_{name}") for name in ("raw", "preprocessed", "results")}
    fast = {"nnUNet_compile": "f", "nnUNet_def_n_proc": "1", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if words[0] == "nnUNetv2_train":
        fast |= {"PYTHONPATH": str(folder / "short"), "nnUNet_n_proc_DA": "0"}  # data in the same process
    done = subprocess.run(
        [*command, *words[1:]],
        cwd=folder,
        env={**os.environ, **own, **fast},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.long
def test_documented_commands__from_images_to_a_training__begins_with_the_pretrained_weights(tmp_path: Path) -> None:
    """nnU-Net plans, trains, validates and says which file it begins with; all but the outputs' layers are its own."""
    make_raw_data(tmp_path)
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "sitecustomize.py").write_text(SHORT)
    prepare = ["nnUNetv2_plan_and_preprocess", "-d", "4", "-c", "3d_fullres", "-np", "1", "-npfp", "1"]
    run(prepare, tmp_path)
    pretrain, train = documented()
    assert [pretrain[0], train[0]] == list(MORE)
    told = run([*pretrain, *MORE["c2f-pretrain"]], tmp_path)
    assert shlex.split(told.splitlines()[-1]) == train
    told = run([*train, *MORE["nnUNetv2_train"]], tmp_path)
    assert f"Loading pretrained weights from file  {train[-1]}" in told
    assert "Mean Validation Dice" in told
    folder = tmp_path / "nnUNet_results" / NAME / "nnUNetTrainer__nnUNetPlans__3d_fullres" / "fold_0"
    theirs = torch.load(folder / "checkpoint_final.pth", weights_only=False)["network_weights"]
    ours = load_file(tmp_path / "pretrained" / "weights.safetensors")
    known = {name for name in ours if ".seg_layers." not in name}
    assert len(known) > 20
    assert all(torch.equal(theirs[name], ours[name]) for name in known)
    assert all(np.isfinite(value.numpy()).all() for value in theirs.values())
