"""The one loop: crops in, weights out, whatever the method."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from coarse2fine.errors import C2FError
from coarse2fine.io import atomic_write
from coarse2fine.pretrain.objective import Method, Rival, Source
from coarse2fine.pretrain.schedule import Groups, Schedule, groups_of, without
from coarse2fine.pretrain.state import STATE, Done, Point, load_state, save_state
from coarse2fine.system.device import random_numbers_kept

CURVE, TENSORBOARD = "curve.json", "tensorboard"
_CLIP = 12.0
"""Most of the gradient's norm, as in nnU-Net."""

Told = Callable[[Done], None]
"""Called after every piece of the training."""


def pretrain(
    network: nn.Module,
    method: Method,
    source: Source,
    schedule: Schedule,
    folder: Path,
    told: Told = lambda done: None,
    groups: Groups | None = None,
) -> Done:
    """Train, or go on where a training in this folder was cut off; the network is left with what it has learned.

    Args:
        network: On the device that is to work.
        method: What to learn.
        source: From what.
        schedule: For how long.
        folder: Of state, curve, and TensorBoard's files if that is installed.
        told: Told after every piece.
        groups: Parameters that learn, with scales of their rates; None: all those of network and heads, alike.

    Raises:
        C2FError: If the loss is no number any more, or a state in the folder is of another network.
    """
    learner = _Learner(network, method.heads.to(_device(network)), method, source, schedule, groups)
    with random_numbers_kept(_device(network)), _board(folder / TENSORBOARD) as board:
        done = load_state(folder / STATE, *learner.parts)
        while done.step < schedule.steps and done.seconds < schedule.seconds:
            done = Done((*done.curve, learner.piece(done)))
            save_state(folder / STATE, *learner.parts, done)
            with atomic_write(folder / CURVE) as path:
                path.write_text(json.dumps(done.to_json(), indent=1), encoding="utf-8")
            board(done.curve[-1])
            told(done)
    return done


class _Learner:
    """Network and heads with their optimisers, and what they learn."""

    def __init__(
        self,
        network: nn.Module,
        heads: nn.Module,
        method: Method,
        source: Source,
        schedule: Schedule,
        groups: Groups | None,
    ) -> None:
        self.network, self.heads = network, heads
        self.method, self.source, self.schedule = method, source, schedule
        rivals = [module for module in heads.modules() if isinstance(module, Rival)]
        self.optimizer = schedule.make_optimizer(
            without(groups_of(network, heads) if groups is None else groups, *rivals)
        )
        self.rivals = [rival.make_optimizer() for rival in rivals]

    @property
    def optimizers(self) -> tuple[torch.optim.Optimizer, ...]:
        """That of network and heads, and those of the rivals among them."""
        return self.optimizer, *self.rivals

    @property
    def parts(self) -> tuple[nn.Module, nn.Module, tuple[torch.optim.Optimizer, ...]]:
        """What changes."""
        return self.network, self.heads, self.optimizers

    def piece(self, done: Done) -> Point:
        """Some steps."""
        began, rate = time.monotonic(), 0.0
        last = min(done.step + self.schedule.piece, self.schedule.steps)
        sums: defaultdict[str, float] = defaultdict(float)
        self.network.train()
        for step in range(done.step, last):
            rate = self.schedule.rate_at(step, done.seconds + time.monotonic() - began)
            for name, loss in self.step(step, rate).items():
                sums[name] += loss
        means = {name: total / (last - done.step) for name, total in sums.items()}
        return Point(last, round(done.seconds + time.monotonic() - began, 3), rate, means)

    def step(self, step: int, rate: float) -> dict[str, float]:
        """One step, whose random numbers depend on nothing but the seed and its number; returns the losses."""
        generator = np.random.default_rng((self.schedule.seed, step))
        torch.manual_seed(int(generator.integers(1 << 62)))  # of dropout, where plans have it
        device = _device(self.network)
        batch = {name: values.to(device) for name, values in self.source.draw(self.schedule.batch, generator).items()}
        losses = self.method.losses(self.network, batch, generator)
        total = torch.stack(list(losses.values())).sum()
        if not isfinite(value := float(total.detach())):
            raise C2FError(
                f"the loss is {value:g} at step {step + 1}: learning has failed",
                "Learn more slowly (--rate, a tenth of what it was), into another folder.",
            )
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["scale"]
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        total.backward()
        learning = [one for group in self.optimizer.param_groups for one in group["params"]]
        nn.utils.clip_grad_norm_(learning, _CLIP)  # a rival's gradient must not shrink the network's
        for optimizer in self.optimizers:
            optimizer.step()
        return {name: float(loss.detach()) for name, loss in losses.items()}


def _device(network: nn.Module) -> torch.device:
    return next(network.parameters()).device


@contextmanager
def _board(folder: Path) -> Iterator[Callable[[Point], None]]:
    """Curves for TensorBoard, if that is installed."""
    try:
        from torch.utils.tensorboard import SummaryWriter  # an extra, which costs a web server and gRPC
    except ImportError:
        yield lambda point: None
        return
    writer: Any = SummaryWriter(str(folder))

    def add(point: Point) -> None:
        for name, loss in point.losses.items():
            writer.add_scalar(f"loss/{name}", loss, point.step)
        writer.add_scalar("rate", point.rate, point.step)
        writer.flush()

    try:
        yield add
    finally:
        writer.close()
