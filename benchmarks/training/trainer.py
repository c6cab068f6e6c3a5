"""nnU-Net's own trainer for small networks, in pieces that can be cut off."""

from __future__ import annotations

import json
import math
import os
import random
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.training.model_folder import ALL, Progress, check_fold, load_weights, publish
from benchmarks.training.mosaics import POOL, Patch, mix
from benchmarks.training.recipes import CONFIGURATIONS, PLANS, RECIPES, Recipe, small_plans
from canvas import Triple, triple
from coarse2fine.coarse_training.trainer import skip_broken_step, use_adam, use_bfloat16
from coarse2fine.nnunet.checkpoint import read_json

STEPS_PER_EPOCH, VALIDATION_STEPS = 50, 4
FOLDS = ("0", "1")
"""Of cross-fitted models: each is trained on the cases that the other one leaves out."""


def trainer_class(mosaic: bool, rate: float | None, slot: Triple, plain: float, seed: int) -> Any:
    """nnU-Net's default trainer in pieces, perhaps on mosaics of its latest patches; arguments as of ``mix``.

    With a rate, AdamW trains with it instead of stochastic gradient descent, as in nnU-Net's variant
    ``nnUNetTrainerAdam``: where nearly all is background, first objects were found in fewer steps.

    Callers set ``mirror``, ``epochs_before`` and ``after_epoch``.
    """
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    pool, generator = deque[Patch](maxlen=POOL), np.random.default_rng(seed)

    class PiecewiseTrainer(nnUNetTrainer):
        """A piece of a training, with the learning rate of the whole; mirrors along some axes only."""

        mirror: tuple[int, ...] = (0, 1, 2)
        epochs_before: int = 0
        after_epoch: Callable[[], None] = staticmethod(lambda: None)

        def configure_optimizers(self) -> Any:
            return super().configure_optimizers() if rate is None else use_adam(self, rate)

        def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's name
            *rest, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
            self.inference_allowed_mirroring_axes = self.mirror
            return *rest, self.mirror

        def on_train_epoch_start(self) -> None:
            super().on_train_epoch_start()
            self.lr_scheduler.step(self.epochs_before + self.current_epoch)

        def on_epoch_end(self) -> None:
            super().on_epoch_end()
            self.after_epoch()

    class MosaicTrainer(PiecewiseTrainer):
        """Nothing else is different."""

        def train_step(self, batch: dict[str, Any]) -> Any:
            return super().train_step(mix(batch, pool, slot, plain, generator))

    return MosaicTrainer if mosaic else PiecewiseTrainer


def set_folders(data: Path, work: Path) -> Path:
    """Tell nnU-Net, before it is imported, where everything is; returns its folder of preprocessed data."""
    for name, path in (("raw", data), ("preprocessed", work / "pre"), ("results", work / "results")):
        path.mkdir(parents=True, exist_ok=True)
        os.environ[f"nnUNet_{name}"] = str(path.resolve())
    os.environ.setdefault("nnUNet_compile", "f")  # compiling takes longer than it saves in so few steps
    return work / "pre"


def prepare(data: Path, folder: Path, recipe: Recipe, role: str) -> dict[str, Any]:
    """Fingerprint, plan and preprocess a data set, unless it was done; returns the small plans."""
    from nnunetv2.experiment_planning import plan_and_preprocess_api as api

    identity, name = int(recipe.folder[7:10]), CONFIGURATIONS[role]
    ending = read_json(data / recipe.folder / "dataset.json")["file_ending"]
    done, source = folder / f"prepared_{name}", str(data.resolve())
    if not done.exists() or done.read_text() != source:
        api.extract_fingerprint_dataset(identity, num_processes=1, verbose=False)
        api.plan_experiment_dataset(identity)
        plans = small_plans(read_json(folder / "nnUNetPlans.json"), recipe, role)
        (folder / f"{PLANS}.json").write_text(json.dumps(plans, indent=1))
        api.preprocess_dataset(identity, PLANS, (name,), [1])
        cases = sorted(
            path.name.removesuffix(ending) for path in (data / recipe.folder / "labelsTr").glob(f"*{ending}")
        )
        (folder / "splits_final.json").write_text(json.dumps(two_folds(cases)))
        done.write_text(source)
    return small_plans(read_json(folder / "nnUNetPlans.json"), recipe, role)


def two_folds(cases: Sequence[str]) -> list[dict[str, list[str]]]:
    """Every other case is left out, as nnU-Net's ``splits_final.json`` says it."""
    return [{"train": [*cases[1 - int(fold) :: 2]], "val": [*cases[int(fold) :: 2]]} for fold in FOLDS]


@dataclass(frozen=True, slots=True)
class Training:
    """What is asked for.

    Attributes:
        dataset: Key of ``RECIPES``.
        model: Role, key of ``CONFIGURATIONS``.
        out: Model folder to write; one that holds a part of this training is gone on with.
        steps: Training steps in all; whole epochs, so a few more at most.
        every: Epochs from one writing of the model folder to the next.
        start: Model folder whose weights to start from.
        oversample: Share of patches centred on foreground.
        plain: Share of inputs that are left as they are, for mosaics.
        device: ``cpu`` or ``cuda``.
        bf16: Whether to compute in bfloat16 on the CPU.
        adam: Learning rate of AdamW; None trains by nnU-Net's default, gradient descent with momentum.
        seed: Of all random numbers.
        fold: ``all``, or the one of ``FOLDS`` whose cases are left out.
    """

    dataset: str
    model: str
    out: Path
    steps: int
    every: int = 10
    start: Path | None = None
    oversample: float = 0.33
    plain: float = 0.25
    device: str = "cpu"
    bf16: bool = False
    adam: float | None = None
    seed: int = 0
    fold: str = ALL

    @property
    def recipe(self) -> Recipe:
        """Of its data set."""
        return RECIPES[self.dataset]

    @property
    def epoch_steps(self) -> int:
        """Steps of each epoch, all alike."""
        return math.ceil(self.steps / self.epochs)

    @property
    def epochs(self) -> int:
        """Of the whole training."""
        return math.ceil(self.steps / STEPS_PER_EPOCH)


def train(plans: Mapping[str, Any], dataset: Mapping[str, Any], training: Training) -> Progress:
    """Run nnU-Net's trainer with small plans and ``dataset.json``, and write its model; returns how far it came."""
    check_fold(training.out, training.fold)
    total = training.epochs * training.epoch_steps
    progress = Progress.of(training.out, total, training.fold)
    trainer = make_trainer(plans, dataset, training, progress.steps)
    if progress.steps:
        load_weights(trainer.network, training.out, training.fold)
    elif training.start and load_weights(trainer.network, training.start):
        progress = Progress.of(training.out, total, training.fold, training.start)  # goes on with that one's curve
    before = time.perf_counter()

    def after_epoch() -> None:
        nonlocal before, progress
        now, pseudo = time.perf_counter(), float(trainer.logger.get_value("mean_fg_dice", step=-1))
        progress, before = progress.after(training.epoch_steps, pseudo, now - before), now
        if trainer.current_epoch % training.every == 0 or trainer.current_epoch == trainer.num_epochs:
            latest = Path(trainer.output_folder) / "checkpoint_latest.pth"
            trainer.current_epoch -= 1  # nnU-Net notes the epoch after the one that it takes for the current
            trainer.save_checkpoint(str(latest))
            trainer.current_epoch += 1
            publish(Path(trainer.output_folder_base), training.out, latest, progress, training.fold)

    trainer.after_epoch = after_epoch
    if trainer.num_epochs:
        trainer.run_training()
    return progress


def make_trainer(plans: Mapping[str, Any], dataset: Mapping[str, Any], training: Training, steps: int) -> Any:
    """The trainer of what is left after so many steps, its network with random weights."""
    os.environ.update(nnUNet_n_proc_DA="0" if training.device == "cpu" else "8")  # the planner does not work with 0
    recipe, seed = training.recipe, training.seed + steps  # a later piece does not see the first one's patches again
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net's loaders draw from it
    torch.manual_seed(seed)
    slot = triple(np.array(recipe.fine.patch) // 2)  # as in canvases: need not be a network's input
    trainer = trainer_class(training.model == "mosaic", training.adam, slot, training.plain, seed)(
        plans={**plans, "continue_training": False},
        configuration=CONFIGURATIONS[training.model],
        fold=ALL if training.fold == ALL else int(training.fold),
        dataset_json=dict(dataset),
        device=torch.device(training.device),
    )
    trainer.num_epochs = training.epochs  # the learning rate is planned for all of them
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = training.epoch_steps, VALIDATION_STEPS
    trainer.oversample_foreground_percent, trainer.probabilistic_oversampling = training.oversample, True
    trainer.mirror, trainer.epochs_before = recipe.mirror, steps // training.epoch_steps
    trainer.initialize()
    trainer.num_epochs -= trainer.epochs_before
    trainer.optimizer.register_step_pre_hook(skip_broken_step)
    if training.bf16:
        use_bfloat16(trainer)
    return trainer
