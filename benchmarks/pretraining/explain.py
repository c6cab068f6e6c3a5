"""Do maps of trained networks equal those of other libraries, and do they point at what they should?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from captum.attr import LayerGradCam
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from monai.visualize import GradCAM
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.common.registry import MissingDataError
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.studies import Setup
from coarse2fine.explain.conserving import conserving
from coarse2fine.explain.gradcam import Method, grad_cam
from coarse2fine.explain.statistics import agreement
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.shares import hold_out
from coarse2fine.finetune.tasks import Classification, Segmentation, Task
from coarse2fine.finetune.tune import Outcome, finetune
from coarse2fine.networks.vit import ViT, ViTShape
from coarse2fine.pretrain.pictures import Intensities, load_pictures
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.table import read_table

TITLE = "Maps that explain (Grad-CAM)"
ABOUT = (
    "Networks trained from scratch. Planted: noise of standard deviation 1, 48 x 48 pixels or 24 x 24 x 24 voxels, "
    "with or without a ball of radius 5 that is 1.5 brighter; 400 to learn from, 40 others with a ball to explain. "
    "Hit: the map's maximum lies in the ball; expected of a map that is the same everywhere is the ball's share of the "
    "image. Accuracy and Dice are those of 80 images that were held out, half of them with a ball. CNN: the encoder of "
    "one of nnU-Net's networks (8, 16, 32, 64 features) as a classifier, without any normalisation or with its "
    "instance normalisation. U-Net: the whole network, with instance normalisation, as a segmentation network of which "
    "the voxels are explained in which it finds the ball. ViT: 48 wide, 4 blocks, patches of 6 pixels, mean of all "
    "tokens, as a classifier; conserving: gradients pass layer norms and attention as if linear, as they do in "
    "c2f-explain. Radiographs: at 64 x 64, taken from the front (AP) against from the back (PA), a third of the "
    "patients held out; of held-out AP radiographs with lung masks the share of the map inside of the lungs, against "
    "the lungs' share of the image. How a radiograph was taken is seen on shoulder blades, heart and arms as well as "
    "on lungs, so that share says where networks look, not whether they are right to. Differences to captum and MONAI "
    "are shares of the highest value."
)
FLAT = "same everywhere"
HITS, INSIDE = "planted objects that are hit", "share of the map inside of the lungs"
ACCURACY, DICE, AUROC = "accuracy of classifiers", "Dice of segmentation", "AUROC of AP against PA"
CAPTUM, MONAI = "largest difference to captum", "largest difference to MONAI"
BASELINES = {HITS: (FLAT,), INSIDE: (FLAT,)}
SHAPES = {"planted, 2D": (48, 48), "planted, 3D": (24, 24, 24)}
RADIOGRAPHS, SIDE = "radiographs", 64
EDGE, RADIUS, BRIGHTER = 6, 5, 1.5
EDGE_OF_RADIOGRAPHS = 8
TRAIN, EXPLAINED = 400, 40
TEST_SEED = 1_000_000  # cases are the same for all seeds
STEPS = 300

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class View:
    """How a network is explained: a layer, and what ``grad_cam`` is told."""

    layer: str
    method: Method = "grad-cam"
    conserve: bool = False

    def map(self, network: nn.Module, images: torch.Tensor, target: int) -> torch.Tensor:
        """Shape (n, 1, *image) to (n, *image)."""
        return grad_cam(network, images, self.layer, target, method=self.method, conserve=self.conserve)


@dataclass(frozen=True, slots=True)
class Arm:
    """A network that is trained and explained.

    Attributes:
        name: What it is called.
        views: How it is explained, with what is added to the name.
        transformer: Whether it is a ViT, not a CNN.
        norm: Whether a CNN has instance normalisation.
        dense: Whether it segments.
    """

    name: str
    views: Mapping[str, View]
    transformer: bool = False
    norm: bool = False
    dense: bool = False

    @property
    def names(self) -> list[str]:
        """Of its rows."""
        return [self.name + added for added in self.views]


SECOND, THIRD, LAST = (f"network.encoder.stages.{number}" for number in (1, 2, 3))
FIRST_BLOCK, LAST_BLOCK = "network.blocks.0", "network.blocks.3.norm1"
ARMS = (
    Arm("CNN", {", third stage": View(THIRD)}),
    Arm(
        "CNN, instance norm",
        {
            ", third stage": View(THIRD),
            ", third stage, HiResCAM": View(THIRD, "hires-cam"),
            ", second stage, HiResCAM": View(SECOND, "hires-cam"),
            ", last stage, HiResCAM": View(LAST, "hires-cam"),
        },
        norm=True,
    ),
    Arm(
        "U-Net",
        {
            ", second stage, HiResCAM": View(SECOND, "hires-cam"),
            ", third stage, HiResCAM": View(THIRD, "hires-cam"),
            ", last stage, HiResCAM": View(LAST, "hires-cam"),
        },
        norm=True,
        dense=True,
    ),
    Arm(
        "ViT",
        {
            ", first block, conserving": View(FIRST_BLOCK, conserve=True),
            ", first block, conserving, HiResCAM": View(FIRST_BLOCK, "hires-cam", conserve=True),
            ", last block, conserving": View(LAST_BLOCK, conserve=True),
            ", first block": View(FIRST_BLOCK),
            ", last block": View(LAST_BLOCK),
        },
        transformer=True,
    ),
)


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Planted objects in 2D and 3D, then lungs; a network at a time."""
    for seed in setup.seeds:
        for arm in ARMS:
            for where, shape in SHAPES.items():
                if not setup.has(arm.names[0], where, seed):
                    yield planted_rows(arm, where, shape, seed, setup)
        for arm in ARMS:
            if not arm.dense and not setup.has(arm.names[0], RADIOGRAPHS, seed):
                yield lung_rows(arm, seed, setup)


def planted_rows(arm: Arm, where: str, shape: tuple[int, ...], seed: int, setup: Setup) -> list[Row]:
    """Train on planted objects; hits, and differences to other libraries."""
    train, masks = planted(shape, TRAIN, np.random.default_rng(seed))
    test, places = planted(shape, 2 * EXPLAINED, np.random.default_rng(TEST_SEED))
    if arm.dense:
        train, test = (replace(one, targets=list(of)) for one, of in ((train, masks), (test, places)))
    task = Segmentation(("background", "object")) if arm.dense else Classification(("object",))
    outcome = learn(arm, task, train, test, f"{arm.name} {where}", seed, setup)
    trained, good = outcome.tuned, outcome.measures["dice" if arm.dense else "accuracy"].value
    chosen = range(0, 2 * EXPLAINED, 2)  # those that have one
    images = torch.from_numpy(np.stack([test.images[index] for index in chosen]))
    rows = [Row(arm.name, where, seed, DICE if arm.dense else ACCURACY, good)]
    for added, view in arm.views.items():
        maps = view.map(trained, images, int(arm.dense)).numpy()
        found = [agreement(one, places[index]) for one, index in zip(maps, chosen, strict=True)]
        hits, areas = [float(one.hit) for one in found], [one.area for one in found]
        rows += compared(arm, arm.name + added, where, seed, HITS, hits, areas)
        if view.method == "grad-cam":
            for measure, difference in zip((CAPTUM, MONAI), differences(trained, arm, view, images[:4]), strict=True):
                rows.append(Row(arm.name + added, where, seed, measure, difference, less=True))
    return rows


def lung_rows(arm: Arm, seed: int, setup: Setup) -> list[Row]:
    """Train on radiographs; how well, and how much of the maps lies inside of lungs."""
    every, masks = radiographs(setup.data / "radiographs")
    chosen, held = hold_out(every.patients, 1 / 3, TEST_SEED)
    outcome = learn(
        arm, Classification(("AP",)), every.take(chosen), every.take(held), f"{arm.name} lungs", seed, setup
    )
    shown = [index for index in held.tolist() if index in masks and every.targets[index][0]]
    images = torch.from_numpy(np.stack([every.images[index] for index in shown]))
    rows = [Row(arm.name, RADIOGRAPHS, seed, AUROC, outcome.measures["auroc"].value)]
    for added, view in arm.views.items():
        maps = view.map(outcome.tuned, images, 0).numpy()
        found = [agreement(one, masks[index]) for one, index in zip(maps, shown, strict=True)]
        shares, areas = [one.energy or 0.0 for one in found], [one.area for one in found]
        rows += compared(arm, arm.name + added, RADIOGRAPHS, seed, INSIDE, shares, areas)
    return rows


def compared(
    arm: Arm, name: str, where: str, seed: int, measure: str, values: Sequence[float], areas: Sequence[float]
) -> list[Row]:
    """A row of maps, and one of maps that are the same everywhere, which is written once for all networks."""
    rows = [Row(name, where, seed, measure, float(np.mean(values)), tuple(values))]
    if arm == ARMS[0]:
        rows.append(Row(FLAT, where, seed, measure, float(np.mean(areas)), tuple(areas)))
    return rows


def planted(shape: tuple[int, ...], count: int, generator: np.random.Generator) -> tuple[Examples, list[Array]]:
    """Noise, and in every second image a brighter ball; and where these are."""
    images, targets, masks = [], [], []
    places = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), -1)
    for index in range(count):
        centre = generator.uniform(RADIUS, np.subtract(shape, RADIUS))
        ball = (np.linalg.norm(places - centre, axis=-1) <= RADIUS) & (index % 2 == 0)
        images.append((generator.normal(size=shape) + BRIGHTER * ball)[None].astype(np.float32))
        targets.append(np.array([ball.any()], np.float32))
        masks.append(ball)
    names = [str(index) for index in range(count)]
    return Examples(images, targets, names, names), masks


def radiographs(folder: Path) -> tuple[Examples, dict[int, Array]]:
    """Pictures, whether they were taken from the front, and by their numbers the lung masks of those that have one.

    Raises:
        MissingDataError: If they are not there.
    """
    if not (folder / "table.csv").is_file():
        raise MissingDataError(f"{folder} holds no radiographs", "Name the folder of the data sets (--data).")
    table = read_table(folder / "table.csv")
    pixels = load_pictures(table.files, (SIDE, SIDE))
    images = Intensities.of(pixels).normalise(pixels)
    targets = [np.array([view.startswith("AP")], np.float32) for view in table.column("view")]
    files = {index: folder / "lung_masks" / f"{file.stem}.png" for index, file in enumerate(table.files)}
    there = {index: file for index, file in files.items() if file.is_file()}
    masks = load_pictures(list(there.values()), (SIDE, SIDE), smooth=False)[:, 0] > 0
    names = [row.name for row in table.rows]
    return Examples(list(images), targets, table.patients, names), dict(zip(there, masks, strict=True))


def learn(arm: Arm, task: Task, train: Examples, test: Examples, name: str, seed: int, setup: Setup) -> Outcome:
    """A network trained from scratch."""
    rate = 1e-3 if arm.transformer else 3e-3
    steps = setup.steps or STEPS
    schedule = Schedule(steps, 16, seed, rate, optimizer="adamw", decay=0.01, fall="cosine", warm_up=0.1)
    network = new_network(arm, train.images[0].shape[1:], seed)
    folder = setup.work / f"{name} {seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return finetune(network, task, train, test, schedule, folder)


def new_network(arm: Arm, shape: tuple[int, ...], seed: int) -> nn.Module:
    """With weights that a training begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arm.transformer:
            edge = EDGE if max(shape) < SIDE else EDGE_OF_RADIOGRAPHS
            return ViT(ViTShape(1, shape, (edge,) * len(shape), width=48, depth=4, heads=3))
        convolution, norm = (nn.Conv3d, nn.InstanceNorm3d) if len(shape) == 3 else (nn.Conv2d, nn.InstanceNorm2d)
        features, strides = (8, 16, 32, 64), (1, 2, 2, 2)
        return PlainConvUNet(
            1,
            len(features),
            features,
            convolution,
            3,
            strides,
            1,
            1 + int(arm.dense),
            1,
            conv_bias=True,
            norm_op=norm if arm.norm else None,
            norm_op_kwargs={"affine": True} if arm.norm else None,
            nonlin=nn.LeakyReLU,
        )


def differences(network: nn.Module, arm: Arm, view: View, images: torch.Tensor) -> tuple[float, float]:
    """The largest difference of maps to captum's and to MONAI's, as a share of the highest value."""
    ours, layer = view.map(network, images, 0), view.layer
    network, layer = with_map(network, layer) if arm.transformer else (network, layer)
    with conserving(network) if view.conserve else nullcontext():
        raw = LayerGradCam(network, network.get_submodule(layer)).attribute(images, 0, relu_attributions=True)
        monais = torch.as_tensor(GradCAM(network, layer, postprocessing=lambda found: found)(images, class_idx=0))
    mode = {2: "bilinear", 3: "trilinear"}[images.ndim - 2]
    captums = F.interpolate(raw.detach(), images.shape[2:], mode=mode)
    highest = float(ours.max()) or 1.0  # of a map that is 0 everywhere, as the others' must be
    captum, monai = (float((ours - theirs[:, 0]).detach().abs().max()) / highest for theirs in (captums, monais))
    return captum, monai


def with_map(network: nn.Module, layer: str) -> tuple[nn.Module, str]:
    """The same transformer with its tokens as a map at one place, for libraries that know no tokens."""
    network = copy.deepcopy(network)
    parent, _, name = layer.rpartition(".")
    as_map = AsMap(network.network)  # type: ignore[arg-type]
    setattr(network.get_submodule(parent), name, nn.Sequential(network.get_submodule(layer), as_map, AsTokens(as_map)))
    return network, f"{layer}.1"


class AsMap(nn.Module):
    """Tokens in their places; that of the class is put aside."""

    def __init__(self, vit: ViT) -> None:
        super().__init__()
        self.to_grid = vit.to_grid

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Shape (n, 1 + patches, width) to (n, width, *grid)."""
        self.aside = tokens[:, :1]
        return self.to_grid(tokens)


class AsTokens(nn.Module):
    """The inverse."""

    def __init__(self, as_map: AsMap) -> None:
        super().__init__()
        self.aside = [as_map]  # in a list, so that it is no part of this one

    def forward(self, found: torch.Tensor) -> torch.Tensor:
        """Shape (n, width, *grid) to (n, 1 + patches, width)."""
        return torch.cat([self.aside[0].aside, found.flatten(2).transpose(1, 2)], 1)
