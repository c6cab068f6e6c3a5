"""What the studies of radiographs have in common: tiny vision transformers, pretrained once for each seed, then tuned.

All arms are tuned on the same shares of the labels, for the same steps.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.pretraining.studies import Setup
from coarse2fine.finetune.examples import Examples
from coarse2fine.finetune.tasks import Task as Labels
from coarse2fine.finetune.tune import Outcome, finetune
from coarse2fine.networks.vit import ViT, ViTShape, new_vit
from coarse2fine.pretrain.loop import pretrain
from coarse2fine.pretrain.methods import Task, method_of
from coarse2fine.pretrain.picture_crops import PictureCrops
from coarse2fine.pretrain.pictures import Intensities, Pixels
from coarse2fine.pretrain.schedule import Schedule
from coarse2fine.pretrain.settings import Settings
from coarse2fine.pretrain.weights import WEIGHTS, load_vit, write_weights

SHAPE = ViTShape(channels=1, image=(64, 64), patch=(8, 8), width=64, depth=4, heads=4)
BATCH = 32
RATE = 1e-3
CENTRE = 0.5
"""Sigma of masks and crops near the centre."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "MAE 0.75": {"objective": "mae", "ratio": 0.75},
    "MAE 0.9": {"objective": "mae", "ratio": 0.9},
    "MAE 0.75, centre": {"objective": "mae", "ratio": 0.75, "centre": CENTRE},
    "rotation": {"objective": "rotation"},
}
"""Ways to pretrain, as ``Settings`` have them."""
SHARES: Mapping[str, float] = {"1 %": 0.01, "10 %": 0.1, "100 %": 1.0}
"""Of the labels."""
TEST_SHARE = 0.3
"""Of the patients, who are held out."""
PRETRAINING_STEPS = 400
DECAY = 0.65
SCRATCH = "scratch"


@dataclass(frozen=True, slots=True)
class Arm:
    """How a network begins to learn from labels.

    Attributes:
        method: One of ``METHODS`` that it was pretrained by; None: from scratch.
        decay: Of rates from layer to layer.
    """

    method: str | None = None
    decay: float = 1.0


def arms_of(*methods: str) -> dict[str, Arm]:
    """From scratch, after each method, and after the first one without layer decay; by names for the page."""
    plain = Arm(methods[0])
    return {SCRATCH: Arm(), **{name: Arm(name, DECAY) for name in methods}, f"{methods[0]}, no layer decay": plain}


@dataclass(frozen=True, slots=True)
class Comparison:
    """Arms on the same labels.

    Attributes:
        arms: By name.
        task: What labels ask for.
        unlabelled: To pretrain on, shape (n, 1, height, width).
        intensities: How all images are normalised.
        few: Labelled images of a share of the labels, for a seed.
        held: To measure on.
        steps, batch: Of each training with labels.
    """

    arms: Mapping[str, Arm]
    task: Labels
    unlabelled: Pixels
    intensities: Intensities
    few: Callable[[float, int], Examples]
    held: Examples
    steps: int
    batch: int

    def outcomes(self, setup: Setup, shares: Mapping[str, float]) -> Iterator[tuple[str, str, int, Outcome]]:
        """Arm, labels, seed and outcome of each training that ``setup`` does not have."""
        for seed in setup.seeds:
            for labels, share in shares.items():
                few = self.few(share, seed)
                for name, arm in self.arms.items():
                    if not setup.has(name, labels, seed):
                        folder = setup.work / f"{name}-{labels}-{seed}".replace(" ", "-")
                        yield name, labels, seed, self._train(setup, arm, few, seed, folder)

    def _train(self, setup: Setup, arm: Arm, few: Examples, seed: int, folder: Path) -> Outcome:
        weights, steps = None, setup.steps or PRETRAINING_STEPS
        if arm.method is not None:
            weights = pretrained(self.unlabelled, self.intensities, arm.method, steps, seed, setup.work)
        folder.mkdir(parents=True, exist_ok=True)
        chosen = schedule(setup.steps or self.steps, seed, self.batch)
        outcome = finetune(begin(weights, seed), self.task, few, self.held, chosen, folder, decay=arm.decay)
        shutil.rmtree(folder)
        return outcome


def schedule(steps: int, seed: int, batch: int = BATCH) -> Schedule:
    """Of pretraining and fine-tuning alike."""
    return Schedule.of_transformers(steps, batch, seed, rate=RATE, piece=max(1, steps))


def pretrained(pixels: Pixels, intensities: Intensities, method: str, steps: int, seed: int, work: Path) -> Path:
    """The weights of a pretraining, which is done unless it was.

    Args:
        pixels: To learn from, shape (n, 1, height, width); crops of them are brought to the transformer's size.
        intensities: How they are normalised.
        method: One of ``METHODS``.
        steps: Of training.
        seed: Of everything random.
        work: Where to; the folder is named after method and seed.
    """
    folder = work / f"{method.replace(' ', '-').replace(',', '')}-{seed}"
    if not (folder / WEIGHTS).exists():
        folder.mkdir(parents=True, exist_ok=True)
        network = new_vit(SHAPE, seed)
        settings = Settings(schedule(steps, seed), **METHODS[method])
        learned = method_of(Task(network, SHAPE.image, settings))
        height, width = SHAPE.image
        crops = PictureCrops(pixels, intensities, (height, width), sigma=settings.sigma)
        pretrain(network, learned, crops, settings.schedule, folder)
        write_weights(folder, network, intensities)
    return folder / WEIGHTS


def begin(weights: Path | None, seed: int, drop_path: float = 0.0) -> ViT:
    """A transformer with these weights, or random ones."""
    return new_vit(SHAPE, seed, drop_path) if weights is None else load_vit(weights, drop_path)
