"""Do maps of trained networks equal those of other libraries, and do they point at what they should?"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
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
    "image. CNN: the encoder of one of nnU-Net's networks (8, 16, 32, 64 features) as a classifier, without any "
    "normalisation, or with its instance normalisation; explained at its third stage by Grad-CAM. U-Net: the whole "
    "network, with instance normalisation, as a segmentation network of which the voxels are explained in which it "
    "finds the ball; at the encoder's third stage by HiResCAM, as c2f-explain does. ViT: 48 wide, 4 blocks, patches of "
    "6 pixels, mean of all tokens, as a classifier; by Grad-CAM at the first norm of each block. Lungs: radiographs at "
    "96 x 96, COVID-19 against all other findings, a third of the patients held out; of held-out radiographs that show "
    "it and have lung masks, the share of the map inside of the lungs, against the lungs' share of the image. "
    "Differences to captum and MONAI are shares of the highest value."
)
FLAT = "same everywhere"
HITS, INSIDE, QUALITY = "planted objects that are hit", "share of the map inside of the lungs", "AUROC of COVID-19"
CAPTUM, MONAI = "largest difference to captum", "largest difference to MONAI"
BASELINES = {HITS: (FLAT,), INSIDE: (FLAT,)}
SHAPES = {"planted, 2D": (48, 48), "planted, 3D": (24, 24, 24)}
RADIOGRAPHS, SIDE = "radiographs", 96
EDGE, RADIUS, BRIGHTER = 6, 5, 1.5
TRAIN, EXPLAINED = 400, 40
TEST_SEED = 1_000_000  # cases are the same for all seeds
STEPS = {"CNN": 150, "ViT": 300}

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Arm:
    """A network that is trained and explained.

    Attributes:
        name: What it is called.
        kind: ``CNN`` or ``ViT``.
        layers: Where it is explained, with what is added to the name.
        norm: Whether a CNN has instance normalisation.
        dense: Whether it segments; then HiResCAM explains it.
    """

    name: str
    kind: str
    layers: Mapping[str, str]
    norm: bool = False
    dense: bool = False

    @property
    def names(self) -> list[str]:
        """Of its rows."""
        return [self.name + added for added in self.layers]


STAGE = {"": "network.encoder.stages.2"}
BLOCKS = {f", block {number + 1}": f"network.blocks.{number}.norm1" for number in range(4)}
ARMS = (
    Arm("CNN", "CNN", STAGE),
    Arm("CNN, instance norm", "CNN", STAGE, norm=True),
    Arm("U-Net, segmentation", "CNN", STAGE, norm=True, dense=True),
    Arm("ViT", "ViT", BLOCKS),
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
    trained = learn(arm, task, train, test, f"{arm.name} {where}", seed, setup).tuned
    chosen = range(0, 2 * EXPLAINED, 2)  # those that have one
    rows = []
    for added, layer in arm.layers.items():
        found = [agreement(explain(trained, arm, layer, test.images[index]), places[index]) for index in chosen]
        hits, areas = [float(one.hit) for one in found], [one.area for one in found]
        rows += compared(arm, arm.name + added, where, seed, HITS, hits, areas)
        if not arm.dense:  # of which MONAI has none
            images = torch.from_numpy(np.stack([test.images[index] for index in chosen[:4]]))
            for measure, difference in zip((CAPTUM, MONAI), differences(trained, arm, layer, images), strict=True):
                rows.append(Row(arm.name + added, where, seed, measure, difference, less=True))
    return rows


def lung_rows(arm: Arm, seed: int, setup: Setup) -> list[Row]:
    """Train on radiographs; how well, and how much of the maps lies inside of lungs."""
    every, masks = radiographs(setup.data / "radiographs")
    chosen, held = hold_out(every.patients, 1 / 3, TEST_SEED)
    task = Classification(("COVID-19",))
    outcome = learn(arm, task, every.take(chosen), every.take(held), f"{arm.name} lungs", seed, setup)
    shown = [index for index in held.tolist() if index in masks and every.targets[index][0]]
    rows = [Row(arm.names[0], RADIOGRAPHS, seed, QUALITY, outcome.measures["auroc"].value)]
    for added, layer in arm.layers.items():
        found = [agreement(explain(outcome.tuned, arm, layer, every.images[index]), masks[index]) for index in shown]
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
    """Pictures, whether they show COVID-19, and by their numbers the lung masks of those that have one.

    Raises:
        MissingDataError: If they are not there.
    """
    if not (folder / "table.csv").is_file():
        raise MissingDataError(f"{folder} holds no radiographs", "Name the folder of the data sets (--data).")
    table = read_table(folder / "table.csv")
    pixels = load_pictures(table.files, (SIDE, SIDE))
    images = Intensities.of(pixels).normalise(pixels)
    targets = [np.array(["COVID-19" in finding], np.float32) for finding in table.column("finding")]
    files = {index: folder / "lung_masks" / f"{file.stem}.png" for index, file in enumerate(table.files)}
    there = {index: file for index, file in files.items() if file.is_file()}
    masks = load_pictures(list(there.values()), (SIDE, SIDE), smooth=False)[:, 0] > 0
    names = [row.name for row in table.rows]
    return Examples(list(images), targets, table.patients, names), dict(zip(there, masks, strict=True))


def learn(arm: Arm, task: Task, train: Examples, test: Examples, name: str, seed: int, setup: Setup) -> Outcome:
    """A network trained from scratch."""
    rate = 3e-3 if arm.kind == "CNN" else 1e-3
    schedule = Schedule(
        setup.steps or STEPS[arm.kind], 16, seed, rate, optimizer="adamw", decay=0.01, fall="cosine", warm_up=0.1
    )
    network = new_network(arm, train.images[0].shape[1:], seed)
    folder = setup.work / f"{name} {seed}"
    folder.mkdir(parents=True, exist_ok=True)
    return finetune(network, task, train, test, schedule, folder)


def new_network(arm: Arm, shape: tuple[int, ...], seed: int) -> nn.Module:
    """With weights that a training begins with."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        if arm.kind == "ViT":
            edge = EDGE if max(shape) < SIDE else 2 * EDGE
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


def explain(network: nn.Module, arm: Arm, layer: str, image: Array) -> Array:
    """The map of the object."""
    method: Method = "hires-cam" if arm.dense else "grad-cam"
    return grad_cam(network, torch.from_numpy(image)[None], layer, int(arm.dense), method=method)[0].numpy()


def differences(network: nn.Module, arm: Arm, layer: str, images: torch.Tensor) -> tuple[float, float]:
    """The largest difference of maps to captum's and to MONAI's, as a share of the highest value."""
    ours = grad_cam(network, images, layer, 0)
    network, layer = with_map(network, layer) if arm.kind == "ViT" else (network, layer)
    raw = LayerGradCam(network, network.get_submodule(layer)).attribute(images, 0, relu_attributions=True)
    mode = {2: "bilinear", 3: "trilinear"}[images.ndim - 2]
    captums = F.interpolate(raw.detach(), images.shape[2:], mode=mode)
    monais = torch.as_tensor(GradCAM(network, layer, postprocessing=lambda found: found)(images, class_idx=0))
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
