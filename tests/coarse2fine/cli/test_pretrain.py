"""``c2f-pretrain``: from a folder of images to the file that nnU-Net begins with."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from raw_data import save_volume
from safetensors.torch import load_file
from tiny_models import TinyModel, network_of

from coarse2fine.cli.pretrain import main

pytestmark = pytest.mark.usefixtures("no_board")

SMALL = ("--block", "4", "--steps", "2", "--batch", "1", "--rate", "1e-3", "--device", "cpu")


@pytest.fixture(scope="module")
def plans(model_folder: Callable[..., Path]) -> Path:
    return model_folder() / "plans.json"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b"):
        save_volume(tmp_path / "images" / f"{name}.nii.gz", blobs((12, 24, 24), seed=ord(name)))
    return tmp_path / "images"


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def words(plans: Path, images: Path, output: Path, *more: str) -> list[str]:
    """The command's options; of those that occur twice the last counts."""
    return ["--plans", str(plans), "--images", str(images), "-o", str(output), *SMALL, *more]


def test_main__a_folder_of_images__weights_that_nnunet_takes_and_the_command_for_it(
    plans: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What is printed names the file that nnU-Net's own loader takes; what was only needed on the way is gone."""
    output = tmp_path / "out"
    assert main(words(plans, images, output)) == 0
    command = shlex.split(capsys.readouterr().err.splitlines()[-1])
    assert command[:-1] == [
        "nnUNetv2_train",
        "Dataset999_Tiny",
        "3d_fullres",
        "0",
        *command[4:6],
        "-pretrained_weights",
    ]
    assert command[4:6] == ["-p", "tinyPlans"]
    theirs = network_of(TinyModel(labels={"background": 0, "a": 1, "b": 2}), seed=5)
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(theirs, command[-1])
    ours = load_file(output / "weights.safetensors")
    name = "encoder.stages.1.0.convs.0.conv.weight"
    assert torch.equal(theirs.state_dict()[name], ours[name])
    assert names(output) == ["curve.json", "nnunet.pth", "pretraining.json", "weights.safetensors"]
    assert [point["step"] for point in json.loads((output / "curve.json").read_text())] == [2]


def test_main__the_same_command_again__is_done_and_other_settings_are_refused(
    plans: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The setting that differs is named, an image that was added is noticed, and the remedy works."""
    output = tmp_path / "out"
    assert main(words(plans, images, output)) == 0
    before = (output / "nnunet.pth").stat().st_mtime_ns
    assert main(words(plans, images, output)) == 0
    assert "finished already" in capsys.readouterr().err
    assert main(words(plans, images, output, "--ratio", "0.5")) == 1
    assert "ratio is None there, 0.5 here" in capsys.readouterr().err
    more = ("--ratio", "0.5", "--weights", str(output / "weights.safetensors"))
    assert main(words(plans, images, tmp_path / "other", *more)) == 0
    save_volume(images / "c.nii.gz", blobs((12, 24, 24)))
    assert main(words(plans, images, output)) == 1
    assert "images is ['a', 'b'] there, ['a', 'b', 'c'] here" in capsys.readouterr().err
    assert (output / "nnunet.pth").stat().st_mtime_ns == before


def test_main__weights_to_begin_with__are_begun_with(
    plans: Path, images: Path, tmp_path: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """With next to no learning they stay what they were; those of another network are refused by name."""
    assert main(words(plans, images, tmp_path / "first", "--seed", "3")) == 0
    first = tmp_path / "first" / "weights.safetensors"
    assert main(words(plans, images, tmp_path / "second", "--weights", str(first), "--rate", "1e-12")) == 0
    found, expected = load_file(tmp_path / "second" / "weights.safetensors"), load_file(first)
    assert all(torch.allclose(found[name], tensor, atol=1e-6) for name, tensor in expected.items())
    other = model_folder(channels=2) / "plans.json"
    save_volume(tmp_path / "two" / "a_0000.nii.gz", blobs((12, 24, 24)))
    save_volume(tmp_path / "two" / "a_0001.nii.gz", blobs((12, 24, 24), seed=1))
    capsys.readouterr()
    assert main(words(other, tmp_path / "two", tmp_path / "third", "--weights", str(first))) == 1
    assert "encoder.stages.0.0.convs.0.conv.weight is (4, 1, 3, 3, 3) instead of (4, 2," in capsys.readouterr().err
    assert not (tmp_path / "third").exists()
    assert main(words(other, tmp_path / "two", tmp_path / "third")) == 0


@pytest.mark.parametrize(
    "more",
    [
        ("--mask", "block", "--norm-pix", "--loss-everywhere"),
        ("--mask", "grid"),
        ("--centre", "0.4", "--ratio", "0.9"),
        ("--minutes", "0.0001"),
    ],
    ids=lambda more: more[0] + more[1],
)
def test_main__every_kind_of_mask_and_target__runs(
    plans: Path, images: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    """And a volume that is smaller than the patch."""
    save_volume(images / "thin.nii.gz", np.full((3, 9, 24), 50, np.int16) + blobs((3, 9, 24)))
    assert main(words(plans, images, tmp_path / "out", *more)) == 0
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "out" / "weights.safetensors").values())


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--steps", "0"), "--steps is 0"),
        (("--batch", "-1"), "--batch is -1"),
        (("--block", "0"), "--block is 0"),
        (("--rate", "nan"), "--rate is nan"),
        (("--minutes", "0"), "--minutes is 0"),
        (("--seed", "-1"), "--seed is -1"),
        (("--ratio", "1"), "the mask ratio is 1"),
        (("--block", "99"), "the patch is a single block"),
        (("--device", "gpu"), "--device 'gpu' is unknown"),
        (("-c", "2d"), "has no configuration '2d'"),
        (("--weights", "none.safetensors"), "none.safetensors does not exist"),
        (("--images", "nowhere"), "nowhere does not exist"),
        (("--plans", "none.json"), "none.json does not exist"),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_main__a_value_that_cannot_be__one_line_and_no_folder(
    plans: Path, images: Path, tmp_path: Path, more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is read or written."""
    assert main(words(plans, images, tmp_path / "out", *more)) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert says in told
    assert len(told.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_main__folder_with_other_things__is_left_alone(
    plans: Path, images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody's files, and a card that is damaged."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("all of it")
    assert main(words(plans, images, tmp_path / "out")) == 1
    assert "holds other things, such as 'thesis.txt'" in capsys.readouterr().err
    (tmp_path / "out" / "pretraining.json").write_text("[")
    assert main(words(plans, images, tmp_path / "out")) == 1
    assert "pretraining.json is damaged" in capsys.readouterr().err
    assert names(tmp_path / "out") == ["pretraining.json", "thesis.txt"]
    assert main(words(plans, images, tmp_path / "new")) == 0


@pytest.mark.alone
def test_main__killed__goes_on_to_the_same_weights(plans: Path, images: Path, tmp_path: Path) -> None:
    """By SIGKILL, after the first piece; TensorBoard's curves are there if it is installed."""
    more = ("--steps", "300")
    command = [sys.executable, "-m", "coarse2fine.cli.pretrain", *words(plans, images, tmp_path / "cut", *more)]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not (tmp_path / "cut" / "curve.json").exists():
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "cut" / "nnunet.pth").exists()
    assert len(json.loads((tmp_path / "cut" / "curve.json").read_text())) < 6
    for name in ("cut", "whole"):
        command = [sys.executable, "-m", "coarse2fine.cli.pretrain", *words(plans, images, tmp_path / name, *more)]
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
    cut, whole = (load_file(tmp_path / name / "weights.safetensors") for name in ("cut", "whole"))
    assert all(torch.allclose(cut[name], tensor, rtol=1e-4, atol=1e-6) for name, tensor in whole.items())
    curve = json.loads((tmp_path / "cut" / "curve.json").read_text())
    assert [point["step"] for point in curve] == [50, 100, 150, 200, 250, 300]
    pytest.importorskip("tensorboard")
    assert list((tmp_path / "whole" / "tensorboard").iterdir())
