"""``c2f-pretrain`` with objectives other than masked autoencoding."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from coarse2fine.cli.pretrain import main

pytestmark = pytest.mark.usefixtures("no_board")

WEIGHTS = "weights.safetensors"
VIT = ("--network", "vit", "--size", "24", "--patch", "8", "--width", "24", "--depth", "1", "--heads", "2")


def words(folder: Path, output: str, objective: str, *more: str) -> list[str]:
    """The command's options; of those that occur twice the last counts."""
    archive = folder / "pictures.npz"
    if not archive.exists():
        images = np.random.default_rng(0).integers(0, 255, (5, 24, 24), np.uint8)
        np.savez(archive, images=images, patient=np.array(list("abcde")))
    fixed = ["--images", str(archive), "-o", str(folder / output), "--objective", objective]
    return [*fixed, *VIT, "--steps", "2", "--batch", "3", "--device", "cpu", *more]


def losses(folder: Path) -> set[str]:
    return set(json.loads((folder / "curve.json").read_text())[-1]["losses"])


def test_main__proxy_tasks_together__are_summed_with_their_options(tmp_path: Path) -> None:
    """Each has its curve; another border gives other weights, and the card says which."""
    names = "rotation+jigsaw+exemplar"
    assert main(words(tmp_path, "a", names, "--set", "jigsaw.orders=6", "--weight", "rotation=0.5")) == 0
    assert losses(tmp_path / "a") == {"rotation", "jigsaw", "exemplar"}
    assert main(words(tmp_path, "b", names, "--set", "jigsaw.orders=6", "--set", "rotation.border=none")) == 0
    assert json.loads((tmp_path / "b" / "pretraining.json").read_text())["own"]["rotation.border"] == "none"
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("a", "b"))
    assert not torch.equal(first["project.weight"], second["project.weight"])


def test_main__dira_in_two_stages__begins_the_second_with_the_first(tmp_path: Path) -> None:
    """The discriminator joins in; nothing of the heads is in the weights."""
    assert main(words(tmp_path, "first", "dira-first")) == 0
    assert losses(tmp_path / "first") == {"dira/discriminative", "dira/restorative"}
    weights = ("--weights", str(tmp_path / "first" / WEIGHTS))
    assert main(words(tmp_path, "second", "dira", *weights, "--set", "dira.form=log", "--set", "dira.queue=4")) == 0
    parts = {"discriminative", "restorative", "adversarial", "discriminator"}
    assert losses(tmp_path / "second") == {f"dira/{part}" for part in parts}
    first, second = (load_file(tmp_path / name / WEIGHTS) for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(torch.allclose(first[name], second[name], atol=1e-4) for name in first)  # two slow steps later
    assert not all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(
    ("objective", "wrong", "says", "right"),
    [
        ("exemplar", "--batch 1", "a batch of 1 image has none to tell it apart from", "--batch 2"),
        ("rotation", "--set rotation.width=0.5", "a border of 0.5 of the edge", "--set rotation.width=0.05"),
        ("rotation", "--set rotation.border=square", "--set rotation.border='square' cannot be", "--seed 0"),
        ("jigsaw", "--set jigsaw.orders=1", "--set jigsaw.orders='1' cannot be", "--set jigsaw.orders=2"),
        ("jigsaw", "--size 8", "images of 8 x 8 are too small for 3 x 3 tiles", "--size 16 --set jigsaw.orders=4"),
        ("exemplar", "--set exemplar.least=0", "--set exemplar.least='0' cannot be", "--seed 0"),
        ("dira", "--set dira.adversarial=-1", "the weights of DiRA's parts are 1, 10, -1", "--set dira.adversarial=1"),
        ("dira", "--set dira.momentum=1", "--set dira.momentum='1' cannot be", "--seed 0"),
        ("dira", "--size 8", "images of 8 x 8 are too small for a discriminator", "--size 16"),
        ("dira+dira-first", "--seed 0", "names dira twice", "--objective dira"),
    ],
    ids=lambda part: part.replace(" ", ""),
)
def test_main__a_value_that_cannot_be__one_line_and_the_remedy_works(
    objective: str, wrong: str, says: str, right: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    assert main(words(tmp_path, "out", objective, *wrong.split())) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert says in told
    assert len(told.splitlines()) == 2
    assert not (tmp_path / "out").exists()
    assert main(words(tmp_path, "out", objective, "--steps", "1", *right.split())) == 0
