"""How long and how fast to learn."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import cos, inf, pi
from typing import Any, Literal, Self

import torch
from torch import nn

Groups = Iterable[dict[str, Any]]
"""Parameters with what is special about them: ``params``, and ``scale`` (1) of their learning rate."""


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how fast to learn; as nnU-Net does unless something else is said.

    Attributes:
        steps: All of them.
        batch: Images in each.
        seed: Of all random numbers.
        rate: Highest learning rate.
        seconds: Most time, over all pieces.
        piece: Steps after which everything is written down.
        optimizer: ``sgd`` with Nesterov momentum, or ``adamw`` with betas 0.9 and 0.95, as transformers are trained.
        momentum, decay: Of SGD, and of the weights; AdamW spares those with a single axis.
        warm_up: Share of the training in which the rate rises from 0, linearly.
        fall: How it falls to 0 after that: ``poly``, with ``power``, or half a ``cosine``.
        power: See ``fall``.
    """

    steps: int
    batch: int
    seed: int = 0
    rate: float = 1e-2
    seconds: float = inf
    piece: int = 50
    optimizer: Literal["sgd", "adamw"] = "sgd"
    momentum: float = 0.99
    decay: float = 3e-5
    warm_up: float = 0.0
    fall: Literal["poly", "cosine"] = "poly"
    power: float = 0.9

    @classmethod
    def of_transformers(cls, steps: int, batch: int, seed: int = 0, base_rate: float = 1.5e-4, **others: Any) -> Self:
        """As He and others train masked autoencoders.

        AdamW, a tenth of warm-up, and a rate of ``base_rate`` for each 256 images of a batch, which falls as a cosine.
        """
        usual: dict[str, Any] = {"optimizer": "adamw", "decay": 0.05, "warm_up": 0.1, "fall": "cosine"}
        return cls(steps, batch, seed, **{"rate": base_rate * batch / 256, **usual, **others})

    def rate_at(self, step: int, seconds: float) -> float:
        """Learning rate of a step, or after a time, whichever is nearer to the end."""
        part = min(max(step / self.steps, seconds / self.seconds), 1.0)
        if part < self.warm_up:
            return self.rate * max(part, 1 / self.steps) / self.warm_up
        left = (1 - part) / (1 - self.warm_up)
        return self.rate * (left**self.power if self.fall == "poly" else (1 - cos(pi * left)) / 2)

    def make_optimizer(self, groups: Groups) -> torch.optim.Optimizer:
        """Of parameters, each group of which keeps the ``scale`` of its rate."""
        groups = [{"scale": 1.0, **group} for group in groups]
        if self.optimizer == "sgd":
            return torch.optim.SGD(groups, self.rate, momentum=self.momentum, weight_decay=self.decay, nesterov=True)
        parts = [
            {**group, "params": chosen, "weight_decay": self.decay if decays else 0.0}
            for group in groups
            for decays in (True, False)
            if (chosen := [one for one in group["params"] if (one.ndim > 1) == decays])
        ]
        return torch.optim.AdamW(parts, self.rate, betas=(0.9, 0.95))


def groups_of(*modules: nn.Module) -> Groups:
    """All their parameters that learn, in one group."""
    return [{"params": [one for module in modules for one in module.parameters() if one.requires_grad]}]


def without(groups: Groups, *modules: nn.Module) -> Groups:
    """The same groups but for parameters of some modules."""
    left_out = {id(one) for module in modules for one in module.parameters()}
    kept = [{**group, "params": [one for one in group["params"] if id(one) not in left_out]} for group in groups]
    return [group for group in kept if group["params"]]
