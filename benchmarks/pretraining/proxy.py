"""Study 6: proxy tasks on radiographs of patients that were not learned from, and DiRA's discriminator."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from benchmarks.common.registry import MissingDataError
from benchmarks.pretraining.rows import Row
from benchmarks.pretraining.studies import Setup
from coarse2fine.networks.features import pooled
from coarse2fine.networks.vit import seeded
from coarse2fine.pretrain.exemplar import Exemplar
from coarse2fine.pretrain.jigsaw import Jigsaw
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.picture_crops import PictureCrops
from coarse2fine.pretrain.pictures import Intensities, Pictures, read_arrays
from coarse2fine.pretrain.rotation import Rotation
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings

FEATURES = (8, 16, 32, 64)
HELD_OUT = 1 / 3  # of the patients
ORDERS = 24  # of tiles
BATCH, RATE = 32, 3e-3
STEPS = {"rotation": 60, "jigsaw": 100, "exemplar": 100}
DIRA_BATCH, DIRA_STEPS = 8, 60
TESTED = 64  # held-out images that the discriminator sees at most
GALLERY = 100  # held-out images among which the other look at one is to be found
OWN = {"rotation": {}, "jigsaw": {"jigsaw.orders": str(ORDERS)}, "exemplar": {"exemplar.least": "0.5"}}
CHANCE, COVERED, SEEN = "chance", "border covered", "border seen"
MEASURES = {
    "rotation": "rotation: accuracy",
    "jigsaw": f"jigsaw: accuracy, {ORDERS} orders",
    "exemplar": f"exemplar: found first of {GALLERY}",
}
GUESSING = {"rotation": 1 / 4, "jigsaw": 1 / ORDERS, "exemplar": 1 / GALLERY}
DISCRIMINATOR = "discriminator: accuracy"
DIRA = {"dira": {}, "dira, adversarial weight 1": {"dira.adversarial": "1"}}
NONE = "none"  # labels that were seen

TITLE = "Proxy tasks and a discriminator"
ABOUT = f"""
1,000 radiographs of NIH ChestX-ray14 at 64 x 64, a third of the patients held out. nnU-Net's 2D U-Net with \
{FEATURES} channels learns from crops of 0.5 to 1.0 of the area (AdamW, {RATE:g}, {BATCH} images a step, \
{", ".join(f"{name} {steps}" for name, steps in STEPS.items())} steps). Measured on whole held-out images, the mean \
over patients: by which right angle an image was turned, in which of {ORDERS} orders nine tiles are, which of \
{GALLERY} images another look is of (two crops of at least half of the image). With the border covered, as is usual, \
and seen. Then DiRA ({DIRA_STEPS} steps, {DIRA_BATCH} images each) with the weights for 2D, 1, 10 and 0.001, and with \
an adversarial weight of 1: how often its discriminator is right about places of restored and of clean held-out \
images, of which it sees as many.
"""
BASELINES = dict.fromkeys(MEASURES.values(), (CHANCE,))


@dataclass(frozen=True, slots=True)
class Split:
    """Images to learn from, and those of other patients.

    Attributes:
        source: Crops of the former.
        held: The latter, normalised; shape (n, 1, *shape).
        patients: Of each of the latter.
    """

    source: PictureCrops
    held: torch.Tensor
    patients: NDArray[np.str_]

    @classmethod
    def of(cls, pictures: Pictures) -> Split:
        """A third of the patients is held out, always the same."""
        patients = np.array(pictures.table.patients)
        names = np.random.default_rng(0).permutation(np.unique(patients))
        out = np.isin(patients, names[: max(1, round(HELD_OUT * len(names)))])
        intensities = Intensities.of(pictures.pixels[~out])
        held = torch.from_numpy(intensities.normalise(pictures.pixels[out]))
        return cls(PictureCrops(pictures.pixels[~out], intensities), held, patients[out])

    @property
    def shape(self) -> tuple[int, ...]:
        """Of images."""
        return tuple(self.held.shape[2:])

    def by_patient(self, right: NDArray[np.bool_]) -> tuple[float, ...]:
        """The mean of each patient's images, of as many looks at all of them as there are rows of answers."""
        return tuple(float(right[:, self.patients == one].mean()) for one in np.unique(self.patients))


def study(setup: Setup) -> Iterator[Sequence[Row]]:
    """Train and measure what is not there yet."""
    path = setup.data / "radiographs" / "nih1000_64.npz"
    if not path.is_file():
        raise MissingDataError(f"{path} does not exist", "Name the folder of the data sets (--data).")
    split = Split.of(read_arrays(path))
    patients = len(np.unique(split.patients))
    for seed in setup.seeds:
        for task, measure in MEASURES.items():
            for method in (COVERED, SEEN):
                if not setup.has(f"{method}, {task}", NONE, seed):
                    cases = accuracy(setup, split, task, method, seed)
                    guessed = Row(CHANCE, NONE, seed, measure, GUESSING[task], (GUESSING[task],) * patients)
                    found = Row(f"{method}, {task}", NONE, seed, measure, float(np.mean(cases)), cases)
                    yield [found, *([guessed] if method == COVERED else [])]
        for method in DIRA:
            if not setup.has(method, NONE, seed):
                yield [Row(method, NONE, seed, DISCRIMINATOR, judged(setup, split, method, seed))]


def accuracy(setup: Setup, split: Split, task: str, method: str, seed: int) -> tuple[float, ...]:
    """Of each held-out patient, after a training."""
    own = {f"{task}.border": "none"} if method == SEEN else {}
    own |= OWN[task]
    schedule = _schedule(setup.steps or STEPS[task], BATCH, seed)
    network, objective = learned(split, Settings(schedule, task, own=own), setup.work / f"{task}-{seed}")
    generator = np.random.default_rng(1000 + seed)
    with torch.no_grad():
        rows = [answers(network, objective, split.held, generator) for _ in range(2)]
    return split.by_patient(np.stack(rows))


def answers(
    network: nn.Module, objective: Rotation | Jigsaw | Exemplar, images: torch.Tensor, generator: np.random.Generator
) -> NDArray[np.bool_]:
    """Which images a network is right about; shape (n,)."""
    views = objective.views({"images": images}, generator)
    if isinstance(objective, Exemplar):
        first, second = (objective.head(pooled(network, views[look])) for look in ("first", "second"))
        return found_again(first, second, generator)
    wanted = views["turn" if isinstance(objective, Rotation) else "order"]
    return np.asarray(objective.logits(network, views["image"]).argmax(1) == wanted)


def found_again(first: torch.Tensor, second: torch.Tensor, generator: np.random.Generator) -> NDArray[np.bool_]:
    """Which looks are most like the other ones at their images, among these and 99 at others; shape (n,).

    Args:
        first: Features of a look at each image, shape (n, width).
        second: Of another look.
        generator: Chooses the others.
    """
    count = len(first)
    place = torch.from_numpy(generator.permutation(count))
    ahead = (place[None] - place[:, None]) % count  # of an image, in a random circle of all
    alike = F.normalize(first, dim=1) @ F.normalize(second, dim=1).T
    best = alike.masked_fill(ahead >= GALLERY, -torch.inf).argmax(1)
    return np.asarray(best == torch.arange(count))


def judged(setup: Setup, split: Split, method: str, seed: int) -> float:
    """How often DiRA's discriminator is right about held-out images."""
    schedule = _schedule(setup.steps or DIRA_STEPS, DIRA_BATCH, seed)
    settings = Settings(schedule, "dira", own=DIRA[method])
    network, objective = learned(split, settings, setup.work / f"{method}-{seed}".replace(" ", ""))
    views = objective.views({"images": split.held[:TESTED]}, np.random.default_rng(1000 + seed))
    with torch.no_grad():
        _, restored = objective.see(network, views["first"])
    return objective.discriminator.accuracy(restored, views["clean"], objective.form)


def learned(split: Split, settings: Settings, folder: Path) -> tuple[nn.Module, Any]:
    """A network after a training, and what it learned; nothing is left in the folder."""
    network = unet(settings.schedule.seed)
    method = method_of(Task(network, split.shape, settings))
    folder.mkdir(parents=True, exist_ok=True)
    pretrain(network, method, split.source, settings.schedule, folder)
    shutil.rmtree(folder)
    return network.eval(), method.objectives[settings.objective]


def unet(seed: int) -> nn.Module:
    """nnU-Net's U-Net in 2D with one channel in and out."""
    stages = len(FEATURES)
    with seeded(seed):
        network = PlainConvUNet(
            input_channels=1,
            n_stages=stages,
            features_per_stage=FEATURES,
            conv_op=nn.Conv2d,
            kernel_sizes=3,
            strides=[1, *[2] * (stages - 1)],
            n_conv_per_stage=[1, 1, 2, 2],  # most of the time goes into the finest stages
            num_classes=1,
            n_conv_per_stage_decoder=1,
            conv_bias=True,
            norm_op=nn.InstanceNorm2d,
            norm_op_kwargs={"eps": 1e-5, "affine": True},
            nonlin=nn.LeakyReLU,
            nonlin_kwargs={"inplace": True},
        )
        made: nn.Module = network.apply(network.initialize)
    return made


def _schedule(steps: int, batch: int, seed: int) -> Schedule:
    return Schedule(
        steps, batch, seed, RATE, optimizer="adamw", decay=0.05, warm_up=0.1, fall="cosine", piece=max(1, steps // 4)
    )
