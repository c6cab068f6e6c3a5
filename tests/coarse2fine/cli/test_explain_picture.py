"""``c2f-explain`` of pictures, with networks that ``c2f-finetune`` made."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from picture_tables import EDGE, save_picture, save_set
from PIL import Image
from torch.nn import functional as F

from coarse2fine.cli.explain import main as explain_main
from coarse2fine.cli.finetune import main as finetune_main
from coarse2fine.errors import ModelError
from coarse2fine.explain.gradcam import grad_cam
from coarse2fine.finetune.load import load_tuned
from coarse2fine.pretrain.pictures import read_picture
from coarse2fine.pretrain.weights import read_tensors, write_tensors

TINY = ("--size", f"{EDGE}", "--patch", "4", "--width", "24", "--depth", "2", "--heads", "2")
SHORT = ("--steps", "8", "--batch", "8", "--rate", "3e-3", "--augment", "none", "--device", "cpu")
WHAT = {"label": ("--labels", "bright"), "class": ("--classes", "kind", "--frozen"), "mask": ("--masks", "set/masks")}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of pictures in the working directory."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.chdir(tmp_path)
    save_set(tmp_path / "set")
    return tmp_path


def tune(*what: str, steps: tuple[str, ...] = SHORT) -> Path:
    assert finetune_main(["--table", "set/table.csv", *what, "-o", "tuned", *TINY, *steps]) == 0
    return Path("tuned")


def explain(*words: object) -> int:
    return explain_main([str(word) for word in ("--device", "cpu", *words)])


@pytest.mark.parametrize("what", [pytest.param(what, marks=pytest.mark.long) for what in WHAT])
def test_load_tuned__any_task__gives_what_the_fine_tuning_predicted(place: Path, what: str) -> None:
    """Network, head, and how pictures are normalised."""
    loaded = load_tuned(tune(*WHAT[what]))
    rows = list(csv.DictReader((place / "tuned" / "predictions.csv").open(encoding="utf-8")))
    for row in rows:
        pixels = read_picture(place / "set" / "images" / row["file"], loaded.size)
        with torch.no_grad():
            outputs = loaded.network(torch.from_numpy(loaded.intensities.normalise(pixels))[None])
        found = loaded.task.probabilities(outputs)[0]
        if what == "mask":
            wanted = np.asarray(Image.open(place / "set" / "masks" / row["file"])) > 0
            hits = found.argmax(0).numpy() == 1
            dice = 2 * (hits & wanted).sum() / max(hits.sum() + wanted.sum(), 1)
            assert float(row["dice foreground"]) == pytest.approx(dice, abs=1e-5)
        else:
            assert [float(row[name]) for name in loaded.outputs] == pytest.approx(found.tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("what", "label"),
    [("label", "bright"), pytest.param("class", "bright", marks=pytest.mark.long), ("mask", "foreground")],
)
def test_main__picture__has_its_map_in_its_own_size(place: Path, what: str, label: str) -> None:
    """It is HiResCAM at the first block, with gradients that conserve the score, brought to the picture's size."""
    large = save_picture(place / "large.png", np.kron(np.asarray(Image.open("set/images/p02.png")), np.ones((3, 2))))
    folder = tune(*WHAT[what])
    words = ("-i", large, "-o", "map.png", "--model", folder, "--label", label)
    assert explain(*words, "--png", "over.png") == 0
    found = np.asarray(Image.open("map.png"))
    assert (found.dtype, found.shape) == (np.uint16, (3 * EDGE, 2 * EDGE))
    loaded = load_tuned(folder)
    inputs = torch.from_numpy(loaded.intensities.normalise(read_picture(large, loaded.size)))[None]
    expected = F.interpolate(
        grad_cam(loaded.network, inputs, "network.blocks.0", loaded.outputs[label], method="hires-cam", conserve=True)[
            None
        ],
        found.shape,
        mode="bilinear",
    )[0, 0]
    assert expected.max() > 0
    np.testing.assert_allclose(found / 65535, expected / expected.max(), atol=2e-5)
    with Image.open("over.png") as picture:
        assert picture.width == 1200


def test_main__picture_that_cannot_be_explained__is_one_clear_line(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each names the value and a remedy."""
    folder = tune("--labels", "bright", steps=("--steps", "1", "--batch", "2", "--device", "cpu"))
    colour = save_picture(place / "colour.png", np.random.default_rng(0).integers(0, 255, (EDGE, EDGE, 3)))
    words = {"-i": "set/images/p00.png", "-o": "map.png", "--model": folder, "--label": "bright"}
    for changes, problem in (
        ({"--label": "brigth"}, "'brigth' is no label that tuned tells; did you mean 'bright'?"),
        ({"--layer": "network.block"}, "the network has no layer 'network.block'"),
        ({"--mask": "set/masks/p00.png"}, "--mask is for volumes"),
        ({"-i": colour}, "has 3 channel(s), the network takes 1"),
        ({"-i": "set/table.csv"}, "is no picture that can be read"),
        ({"-o": "set/images/p00.png"}, "is the input or another result of this run"),
        ({"-o": "map.jpg"}, "map.jpg"),
    ):
        assert explain(*(part for pair in {**words, **changes}.items() for part in pair)) == 1, changes
        assert problem in capsys.readouterr().err.replace("\n", " "), changes
        assert not Path("map.png").exists()
    (folder / "head.safetensors").rename(place / "kept")
    assert explain(*(part for pair in words.items() for part in pair)) == 1
    assert "Run the fine-tuning to its end." in capsys.readouterr().err
    (place / "kept").rename(folder / "head.safetensors")
    assert explain(*(part for pair in words.items() for part in pair)) == 0


@pytest.mark.long
@pytest.mark.parametrize("about", ["{}", '{"labels": 3}', '{"labels": ["a", "b"]}', "nothing"])
def test_load_tuned__head_of_another_task__is_refused(place: Path, about: str) -> None:
    """Whatever a stranger's file says of itself."""
    folder = tune("--labels", "bright", steps=("--steps", "1", "--batch", "2", "--device", "cpu"))
    tensors, known = read_tensors(folder / "head.safetensors")
    assert json.loads(known["classification"])["labels"] == ["bright"]
    write_tensors(folder / "head.safetensors", tensors, {"classification": about})
    with pytest.raises(ModelError, match=r"head\.safetensors (does not say|is of another network)"):
        load_tuned(folder)
