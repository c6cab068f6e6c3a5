"""The fine stage on a device that is not the host: what is computed where, and how often the host waits."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import blobs
from other_device import CPU, THERE, OtherDevice, moved
from torch import nn

import coarse2fine
from canvas import Box
from coarse2fine.coarse.heatmap import CoarseResult
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.reader import load_config
from coarse2fine.fine.inputs import VolumeNorm
from coarse2fine.fine.segment import FineStage, segment_boxes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import open_view
from coarse2fine.system.device import most_at_once, upload

SPACING = (2.5, 1.3, 0.8)  # the tiny models' is 2, 1, 1
SHAPE = (20, 50, 70)
PACKAGE = Path(coarse2fine.__file__).parent
THREE = {"background": 0, "a": 1, "b": 2}


def scene_of(model: Model, *, cascade: bool = False) -> Scene:
    """Blobs, and a heatmap that says that growing is worth it everywhere."""
    view = open_view([blobs(SHAPE, seed=seed).astype(">i2") for seed in range(model.channels)], SPACING, model)
    shape = tuple(-(-edge // 4) for edge in view.shape)
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(model.labels.heads, *shape)).astype(np.float16))
    return Scene(
        view.uploaded(), CoarseResult(logits.to(model.device) if cascade else None, np.ones(shape, np.float32), model)
    )


def boxes_of(scene: Scene, count: int) -> list[Box]:
    """Small boxes, apart from each other."""
    places = list(product(*(range(1, edge - 6, 12) for edge in scene.view.shape)))
    return [Box.of(places[index * len(places) // count], (4, 6, 6)) for index in range(count)]


def segmented(model: Model, count: int, settings: list[str], *, cascade: bool = False) -> tuple[np.ndarray, int, int]:
    """Labels, canvases and boxes that were added, of some boxes that get a canvas each."""
    scene, config = scene_of(model, cascade=cascade), load_config(None, ["canvas.norm=canvas", *settings])
    writer = LabelWriter(scene.view, model)
    stage, norm = FineStage.of(model, config), VolumeNorm(alone=True)
    result = segment_boxes(stage, scene, boxes_of(scene, count), writer, norm=norm)
    return writer.finish(), len(result.canvases), result.grown


CASES: dict[str, tuple[dict[str, Any], list[str]]] = {
    "not grown": ({}, ["fine.grow=0"]),
    "grown": ({}, ["fine.grow=1", "fine.grow_step=[8, 16, 16]"]),
    "several channels, turned": ({"channels": 2, "transpose": (1, 2, 0)}, ["fine.grow=0"]),
    "cascade": ({"cascade": True}, ["fine.grow=0", "fine.use_prior=true"]),
    "mask": ({"masked": True}, ["fine.grow=0"]),
    "shrunk": ({}, ["fine.grow=0", "fine.postprocess=resize_only", "canvas.packing=same_size"]),
}


@pytest.mark.parametrize("case", CASES)
def test_segment_boxes__other_device__gives_the_hosts_labels_and_waits_no_more_for_more_canvases(
    case: str, model_folder: Callable[..., Path]
) -> None:
    """Everything between the volume and its labels is there: once for each round masks come back, and once labels."""
    options, settings = CASES[case]
    model = load_model(model_folder(**{"labels": THREE} | options))
    waits: list[Counter[str]] = []
    for count in (2, 6):
        expected = segmented(model, count, settings, cascade=model.cascade)
        with OtherDevice() as device:
            found = segmented(moved(model), count, settings, cascade=model.cascade)
        assert (found[0] != expected[0]).mean() < 1e-4
        assert found[0].any()
        assert found[1:] == expected[1:]
        assert found[1] >= count
        assert not (case == "grown" and not found[2]), "boxes were added"
        waits.append(device.waits)
    assert waits[0] == waits[1] == {"_to_copy": 2 + (case == "grown")}


class Full(nn.Module):
    """A network on a device whose memory has no room for more than two inputs at once.

    Attributes:
        sizes: Inputs of each pass.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.sizes = network, list[int]()

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """As the network's."""
        self.sizes.append(len(batch))
        if len(batch) > 2:
            raise torch.OutOfMemoryError("no room")
        result: torch.Tensor = self.network(batch)
        return result


def test_run__canvases_of_one_shape__go_through_the_network_together(model_folder: Callable[..., Path]) -> None:
    """After the first one, whose feature maps tell how many have room; where they have none after all, in parts."""
    model = load_model(model_folder(labels=THREE))
    settings = ["fine.grow=0", "fine.mirroring=false"]
    expected, canvases, _ = segmented(model, 6, settings)
    with OtherDevice():
        there = moved(model)
        full = Full(there.networks[0])
        found, _, _ = segmented(replace(there, networks=(full,)), 6, settings)
    assert (found != expected).mean() < 1e-4
    assert canvases == 6
    assert full.sizes == [1, 5, 2, 3, 1, 2]


def test_most_at_once__any_device__as_many_as_have_room() -> None:
    """One at a time on the CPU; elsewhere no more than memory has room for, and no more than is faster."""
    assert most_at_once(1, CPU) == 1
    assert most_at_once(1, THERE) == 8
    assert most_at_once(1 << 60, THERE) == 1


@pytest.mark.parametrize("dtype", [">i2", "<u2", "float64", "uint8"])
def test_upload__array_as_files_give_them__has_its_values(dtype: str) -> None:
    """Whatever byte order, direction and right to write; on the CPU what PyTorch can read is not copied."""
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    array.setflags(write=False)
    for given in (array, array[::-1, :, ::-1], array.transpose(2, 0, 1)):
        np.testing.assert_array_equal(upload(given, CPU), given)
    own = np.zeros(3, np.int16)
    upload(own, CPU)[1] = 7
    assert own[1] == 7


ROOMS = ("canvas", "coarse2fine/resampling", "coarse2fine/preprocessing", "coarse2fine/coarse", "coarse2fine/fine")
"""What voxels pass between the volume and the labels, beside the network itself."""


@pytest.mark.parametrize("room", ROOMS)
def test_main_path__devices__are_the_business_of_one_module(room: str) -> None:
    """Nobody else asks what kind of device it is, or takes anything to the host."""
    found = [
        f"{path.name}:{node.lineno} {node.attr}"
        for path in (PACKAGE.parent / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in {"cpu", "cuda", "mps", "numpy", "pin_memory", "type"}
    ]
    assert found == []
