"""What is learned: objectives, and methods that add them up."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from torch import nn

Batch = Mapping[str, torch.Tensor]
"""What is learned from at once: ``images``, shape (n, channels, *image), and what belongs to them by other names."""

Views = Mapping[str, torch.Tensor]
"""What an objective made of a batch, by names of its own."""


class Source(Protocol):
    """Where batches come from."""

    def draw(self, count: int, generator: np.random.Generator) -> Batch:
        """Some examples, on the host; all randomness comes from the generator."""


class Objective(Protocol):
    """Something to learn without labels.

    Views are made of a batch, on its device; all randomness comes from the generator.
    """

    @property
    def heads(self) -> nn.Module:
        """Layers beside the network that are trained with it and thrown away; no parameters if there are none."""

    def views(self, batch: Batch, generator: np.random.Generator) -> Views:
        """What the network gets to see, and what it is to find."""

    def loss(self, network: nn.Module, views: Views) -> torch.Tensor | Mapping[str, torch.Tensor]:
        """How far it is from that: a single number, or several by name, which are added up."""


class Rival(nn.Module, ABC):
    """Layers among an objective's heads that learn against the network, by an optimiser of their own.

    Their loss is one of the objective's, which sees to it that no loss has a gradient both here and in the network.
    """

    @abstractmethod
    def make_optimizer(self) -> torch.optim.Optimizer:
        """Theirs, whose rate does not change."""


@dataclass(frozen=True, slots=True)
class Method:
    """A weighted sum of objectives.

    Attributes:
        objectives: By name.
        weights: Of each, by the same names; 1 where there is none.
    """

    objectives: Mapping[str, Objective]
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def heads(self) -> nn.ModuleDict:
        """Those of all objectives."""
        return nn.ModuleDict({name: objective.heads for name, objective in self.objectives.items()})

    def losses(self, network: nn.Module, batch: Batch, generator: np.random.Generator) -> dict[str, torch.Tensor]:
        """The loss of each objective, times its weight; one with several has ``name/part`` for each."""
        losses: dict[str, torch.Tensor] = {}
        for name, objective in self.objectives.items():
            loss = objective.loss(network, objective.views(batch, generator))
            parts = {name: loss} if isinstance(loss, torch.Tensor) else {f"{name}/{part}": loss[part] for part in loss}
            losses |= {part: self.weights.get(name, 1.0) * value for part, value in parts.items()}
        return losses
