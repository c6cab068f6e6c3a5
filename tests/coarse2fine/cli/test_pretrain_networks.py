"""``c2f-pretrain`` with vision transformers, pictures and 2D configurations."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import blobs
from nnunetv2.run.load_pretrained_weights import load_pretrained_weights
from PIL import Image
from raw_data import save_volume
from safetensors.torch import load_file
from tiny_models import TinyModel, network_of

from coarse2fine.cli.pretrain import main
from coarse2fine.networks.vit import ViTShape
from coarse2fine.pretrain.pictures import Intensities, read_picture
from coarse2fine.pretrain.weights import load_vit, read_intensities

pytestmark = pytest.mark.usefixtures("no_board")

SMALL = ("--steps", "2", "--batch", "2", "--device", "cpu")
VIT = ("--network", "vit", "--width", "24", "--depth", "1", "--heads", "2")


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(3):
        pixels = np.random.default_rng(number).integers(1, 255, (30, 40), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def words(images: Path, output: Path, *more: str) -> list[str]:
    return ["--images", str(images), "-o", str(output), *SMALL, *more]


def test_main__transformer_and_pictures__weights_from_which_it_is_made_again(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With how pictures were normalised; the same command again has nothing to do."""
    command = words(pictures, tmp_path / "out", *VIT, "--size", "32", "--patch", "8", "--flip", "--set", "mae.depth=1")
    assert main(command) == 0
    network = load_vit(tmp_path / "out" / "weights.safetensors")
    assert network.shape == ViTShape(1, (32, 32), (8, 8), 24, 1, 2)
    pixels = np.stack([read_picture(pictures / f"{number}.png", (32, 32)) for number in range(3)])
    assert read_intensities(tmp_path / "out" / "weights.safetensors") == Intensities.of(pixels)
    names = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert names == ["curve.json", "pretraining.json", "weights.safetensors"]
    card = json.loads((tmp_path / "out" / "pretraining.json").read_text())
    assert (card["network"]["patch"], card["optimizer"], card["rate"]) == ([8, 8], "adamw", 1.5e-4 * 2 / 256)
    assert main(command) == 0
    assert "finished already" in capsys.readouterr().err
    assert main([*command, "--area", "0.3", "1"]) == 1
    assert "area is [0.5, 1.0] there, [0.3, 1.0] here" in capsys.readouterr().err


def test_main__table_and_archive__are_learned_from_alike(pictures: Path, tmp_path: Path) -> None:
    """The same pictures give the same weights, whichever way they come."""
    table = tmp_path / "table.csv"
    table.write_text("file,patient\n0.png,a\n2.png,b\n")
    pixels = np.stack([read_picture(pictures / f"{number}.png", (32, 32))[0] for number in (0, 2)])
    np.savez(tmp_path / "a.npz", images=pixels, patient=np.array(["a", "b"]))
    size = ("--size", "32", "32", *VIT)
    assert main(words(pictures, tmp_path / "table", "--table", str(table), *size)) == 0
    assert main(words(tmp_path / "a.npz", tmp_path / "archive", *size)) == 0
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("table", "archive"))
    assert all(torch.allclose(first[name], second[name]) for name in first)


def test_main__weights_of_a_transformer__begin_another(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those of another one are refused by the first name that differs; with its numbers they are taken."""
    size = ("--size", "32", "--patch", "8", *VIT)
    assert main(words(pictures, tmp_path / "first", *size, "--seed", "3")) == 0
    weights = ("--weights", str(tmp_path / "first" / "weights.safetensors"))
    capsys.readouterr()
    assert main(words(pictures, tmp_path / "second", *size, "--width", "48", *weights)) == 1
    assert "is of another network: class_token is (1, 1, 24) instead of (1, 1, 48)" in capsys.readouterr().err
    assert not (tmp_path / "second").exists()
    assert main(words(pictures, tmp_path / "second", *size, *weights, "--rate", "1e-12")) == 0
    first, second = (load_file(tmp_path / name / "weights.safetensors") for name in ("first", "second"))
    assert all(torch.allclose(first[name], second[name], atol=1e-6) for name in first)


@pytest.mark.parametrize("size", [(), ("--size", "8"), ("--size", "16", "16")], ids=["plans", "cube", "slices"])
def test_main__transformer_and_volumes__sees_what_the_plans_show(
    size: tuple[str, ...], model_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Crops as large as the plans' patch, or of another shape."""
    save_volume(tmp_path / "images" / "a.nii.gz", blobs((12, 24, 24)))
    plans = ("--plans", str(model_folder() / "plans.json"))
    assert main(words(tmp_path / "images", tmp_path / "out", *plans, *VIT, *size, "--patch", "4")) == 0
    shape = load_vit(tmp_path / "out" / "weights.safetensors").shape
    assert shape.image == {0: (8, 16, 16), 2: (8, 8, 8), 3: (16, 16)}[len(size)]
    assert set(shape.patch) == {4}


@pytest.mark.parametrize("kind", ["volumes", "pictures"])
def test_main__2d_configuration__weights_that_nnunet_takes(
    kind: str, pictures: Path, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of slices of volumes, and of pictures where the plans name the reader of such."""
    options = {"patch": (16, 16), "spacing": (1.0, 1.0)}
    images = pictures
    if kind == "volumes":
        save_volume(tmp_path / "images" / "a.nii.gz", blobs((12, 24, 24)))
        images = tmp_path / "images"
    reader = {"volumes": "SimpleITKIO", "pictures": "NaturalImage2DIO"}[kind]
    plans = model_folder(**options, reader=reader) / "plans.json"
    assert main(words(images, tmp_path / "out", "--plans", str(plans), "-c", "2d", "--block", "4")) == 0
    assert " 2d 0 " in capsys.readouterr().err.splitlines()[-1]
    theirs = network_of(TinyModel(**options), seed=5)  # type: ignore[arg-type]
    with contextlib.redirect_stdout(io.StringIO()):
        load_pretrained_weights(theirs, str(tmp_path / "out" / "nnunet.pth"))
    ours, name = load_file(tmp_path / "out" / "weights.safetensors"), "encoder.stages.1.0.convs.0.conv.weight"
    assert torch.equal(theirs.state_dict()[name], ours[name])


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("--network", "plans"), "neither --plans nor --model is given"),
        (("--network", "plans", "--plans", "none.json"), "none.json does not exist"),
        (("--block", "8"), "--block has no meaning here, but for nnU-Net's networks"),
        (("--size", "0"), "--size [0, 0] or --patch [] is no size"),
        (("--patch", "-1"), "or --patch [-1] is no size"),
        (("--size", "8", "8", "8"), "--size [8, 8, 8] has 3 numbers"),
        (("--patch", "7"), "images of 32 x 32 are not divisible into patches of 7 x 7"),
        (("--width", "25"), "a width of 25 is not divisible by 2 heads and 4"),
        (("--area", "0", "1"), "--area is 0 1"),
        (("--area", "1", "0.5"), "--area is 1 0.5"),
        (("--table", "none.csv"), "none.csv does not exist"),
        (("--images", "empty"), "empty does not exist"),
        (("--images", "none.npz"), "none.npz does not exist"),
        (("--images", "none.npz", "--table", "t.csv"), "--table has no meaning here"),
        (("--patch", "32"), "the patch is a single block"),
        (("--ratio", "0.99"), "leaves none of 4 blocks visible"),
        (("--objective", "nothing"), "'nothing', which is unknown"),
        (("--weight", "mae"), "--weight 'mae' has no name or no value"),
        (("--weight", "mae=x"), "--weight is 'x', which is no number"),
        (("--set", "=1"), "--set '=1' has no name or no value"),
    ],
    ids=lambda part: part[0] if isinstance(part, tuple) else "",
)
def test_main__a_value_that_cannot_be__one_line_and_no_folder(
    pictures: Path, tmp_path: Path, more: tuple[str, ...], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is written."""
    assert main(words(pictures, tmp_path / "out", *VIT, "--size", "32", *more)) == 1
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert says in told
    assert len(told.splitlines()) == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("option", ["--size 8", "--patch 8", "--width 8", "--area 0.5 1", "--flip", "--table t.csv"])
def test_main__option_without_meaning__is_refused_and_the_rest_works(
    option: str, model_folder: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For nnU-Net's network on volumes."""
    save_volume(tmp_path / "images" / "a.nii.gz", blobs((12, 24, 24)))
    command = words(
        tmp_path / "images", tmp_path / "out", "--plans", str(model_folder() / "plans.json"), "--block", "4"
    )
    assert main([*command, *option.split()]) == 1
    assert f"Leave out {option.split()[0]}." in capsys.readouterr().err
    assert main(command) == 0
