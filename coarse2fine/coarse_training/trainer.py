"""nnU-Net's own trainer, with a loss that favours finding over being right, for as long as there is time.

Run as a process of its own, because nnU-Net reads its folders from environment variables, draws from global random
numbers and prints: ``python -m coarse2fine.coarse_training.trainer JOB.json PARENT``. It ends when that process has.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.loss.robust_ce_loss import RobustCrossEntropyLoss
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn

from coarse2fine.coarse_training.job import CONFIGURATION, EPOCH, PROGRESS, STATE, Job
from coarse2fine.io import atomic_write
from coarse2fine.nnunet.checkpoint import read_json
from coarse2fine.system.device import autocast, has_bfloat16

MISSED, FALSE = 0.7, 0.3
"""What a missed voxel costs in the loss, and one that is found where nothing is."""


class Tversky(nn.Module):
    """The Tversky index, with a minus: Dice in which the two kinds of errors cost differently.

    After Salehi, Erdogmus and Gholipour, Machine Learning in Medical Imaging 2017, over all patches of a batch.

    Args:
        nonlinearity: From outputs to probabilities.
        background: Whether the first output counts, too.
    """

    def __init__(self, nonlinearity: Callable[[torch.Tensor], torch.Tensor], background: bool) -> None:
        super().__init__()
        self.nonlinearity, self.first = nonlinearity, 0 if background else 1

    def forward(self, x: torch.Tensor, y: torch.Tensor, loss_mask: torch.Tensor | None = None) -> torch.Tensor:
        """The loss of outputs (n, heads, z, y, x) and labels (n, 1 or heads, z, y, x)."""
        axes = [0, *range(2, x.ndim)]
        hits, false, missed, _ = get_tp_fp_fn_tn(self.nonlinearity(x), y, axes, loss_mask)
        index = (hits + 1e-5) / (hits + FALSE * false + MISSED * missed + 1e-5)
        return -index[self.first :].mean()


def skip_broken_step(optimizer: torch.optim.Optimizer, *_: Any) -> None:
    """Before a step: forget gradients that are not finite, as nnU-Net's gradient scaler does on a GPU only.

    Instance norm makes them where a patch is constant.
    """
    gradients = [value.grad for group in optimizer.param_groups for value in group["params"] if value.grad is not None]
    if not all(bool(gradient.isfinite().all()) for gradient in gradients):
        optimizer.zero_grad(set_to_none=True)


def use_bfloat16(trainer: Any) -> None:
    """Run the network in bfloat16 on the CPU, as nnU-Net does in float16 on a GPU; the loss stays in float32."""
    loss, device = trainer.loss, trainer.device

    def rounded(step: Callable[..., Any]) -> Callable[..., Any]:
        def run(*batch: Any) -> Any:
            with autocast(device, torch.bfloat16):
                return step(*batch)

        return run

    trainer.loss = lambda outputs, targets: loss([output.float() for output in outputs], targets)
    trainer.train_step, trainer.validation_step = rounded(trainer.train_step), rounded(trainer.validation_step)


def use_adam(trainer: nnUNetTrainer, rate: float) -> tuple[torch.optim.Optimizer, PolyLRScheduler]:
    """What ``configure_optimizers`` returns in nnU-Net's variant ``nnUNetTrainerAdam``, with the rate as its first.

    Where nearly all is background it finds the first objects in fewer steps than gradient descent with momentum does.
    """
    trainer.initial_lr = rate
    adam = torch.optim.AdamW(trainer.network.parameters(), rate, weight_decay=trainer.weight_decay, amsgrad=True)
    return adam, PolyLRScheduler(adam, rate, trainer.num_epochs)


class TimeIsUp(Exception):  # noqa: N818 - no error
    """Ends a training."""


class RecallTrainer(nnUNetTrainer):
    """nnU-Net's default trainer but for the loss, the optimiser, and for how long it trains on what.

    Callers set ``job`` and ``parent``, and of a training that goes on how many epochs and seconds are behind it.
    """

    job: Job
    parent: int
    before = 0  # epochs of earlier pieces
    spent = 0.0
    began = 0.0

    def _build_loss(self) -> nn.Module:
        wrapped = super()._build_loss()
        loss = wrapped.loss
        regions = self.label_manager.has_regions
        loss.dc = Tversky(torch.sigmoid if regions else lambda x: torch.softmax(x, 1), background=regions)
        weights = torch.full((self.label_manager.num_segmentation_heads,), self.job.foreground, device=self.device)
        if regions:
            loss.ce.pos_weight = weights.reshape(-1, 1, 1, 1)
        else:
            weights[0] = 1
            ignore = self.label_manager.ignore_label
            loss.ce = RobustCrossEntropyLoss(weight=weights, **({} if ignore is None else {"ignore_index": ignore}))
        return wrapped

    def configure_optimizers(self) -> Any:
        """AdamW and its schedule."""
        return use_adam(self, self.job.rate)

    def do_split(self) -> tuple[list[str], list[str]]:
        """Train and look on the job's cases."""
        return [*self.job.cases], [*self.job.cases]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> Any:  # noqa: N802 - nnU-Net's name
        """Mirror along the job's axes only."""
        *rest, _ = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        self.inference_allowed_mirroring_axes = self.job.mirror_axes
        return *rest, self.job.mirror_axes

    def print_to_log_file(self, *arguments: Any, **options: Any) -> None:
        """Into the file alone."""
        super().print_to_log_file(*arguments, **options | {"also_print_to_console": False})

    def plot_network_architecture(self) -> None:
        """A drawing that nobody looks at."""

    def _save_debug_information(self) -> None:
        """Of the machine, which is nobody's business."""

    def on_train_epoch_start(self) -> None:
        """Let the learning rate fall with the steps or with the time, whichever is nearer to its end."""
        super().on_train_epoch_start()
        done = self.before + self.current_epoch
        part = max(done * EPOCH / self.job.steps, self.spent / self.job.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = self.initial_lr * (1 - min(part, 0.99)) ** 0.9

    def train_step(self, batch: dict[str, Any]) -> Any:
        """A step, if anybody is still waiting for the result."""
        if os.getppid() != self.parent:
            raise TimeIsUp("nobody waits any more")
        return super().train_step(batch)

    def on_epoch_end(self) -> None:
        """Write down everything that going on needs, and end when the time is up."""
        self.current_epoch += 1
        epoch, now = self.before + self.current_epoch, time.monotonic()
        self.spent, self.began = self.spent + now - self.began, now
        with atomic_write(self.job.work / STATE) as temporary:
            state = {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
            torch.save(state | {"epoch": epoch, "spent": self.spent}, temporary)
        loss = float(self.logger.get_value("train_losses", step=-1))
        with atomic_write(self.job.work / PROGRESS) as temporary:
            told = {"steps": epoch * EPOCH, "seconds": round(self.spent, 1), "loss": round(loss, 4)}
            temporary.write_text(json.dumps(told), encoding="utf-8")
        if self.spent >= self.job.seconds:
            raise TimeIsUp

    def on_train_end(self) -> None:
        """Nothing: what is needed is written after every epoch."""


def train(job: Job, parent: int) -> None:
    """Train for a process that waits, or go on with a training that was cut off."""
    state = job.work / STATE
    known = torch.load(state, map_location="cpu", weights_only=True) if state.exists() else None
    before, spent = (known["epoch"], known["spent"]) if known else (0, 0.0)
    seed = job.seed + before  # what goes on does not see the first patches again
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - nnU-Net's loaders draw from it
    torch.manual_seed(seed)
    torch.set_num_threads(job.threads)
    trainer = RecallTrainer(
        plans={**read_json(job.data / "plans.json"), "continue_training": False},
        configuration=CONFIGURATION,
        fold="all",
        dataset_json=read_json(job.data / "dataset.json"),
        device=torch.device(job.device),
    )
    trainer.job, trainer.parent = job, parent
    trainer.num_epochs = max(job.steps // EPOCH - before, 0)
    trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = EPOCH, 1
    trainer.oversample_foreground_percent, trainer.probabilistic_oversampling = 0.5, True
    trainer.initialize()
    trainer.optimizer.register_step_pre_hook(skip_broken_step)
    if has_bfloat16(trainer.device):
        use_bfloat16(trainer)
    if known:
        trainer.network.load_state_dict(known["network"])
        trainer.optimizer.load_state_dict(known["optimizer"])
    trainer.before, trainer.spent, trainer.began = before, spent, time.monotonic()
    if trainer.num_epochs and spent < job.seconds:
        try:
            trainer.run_training()
        except TimeIsUp:
            return


if __name__ == "__main__":
    train(Job.read(Path(sys.argv[1])), int(sys.argv[2]))
