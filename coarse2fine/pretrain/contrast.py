"""Instance discrimination: two views of an image are to have features alike, and unlike those of all others.

InfoNCE after van den Oord and others, 2018; both ways over a batch as in SimCLR (Chen and others, ICML 2020); with a
slow encoder and a queue as in MoCo v2 (Chen and others, 2020).
"""

from __future__ import annotations

import copy

import torch
from torch import nn
from torch.nn import functional as F

from coarse2fine.networks.features import encoder_of, pooled, width_of

OUTPUTS = 128
TEMPERATURE = 0.2
MOMENTUM = 0.999
QUEUE = 65_536


def projector(width: int) -> nn.Sequential:
    """Pooled features (n, width) in, those that are compared (n, 128) out."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, OUTPUTS))


def info_nce(
    queries: torch.Tensor, positives: torch.Tensor, negatives: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Cross-entropy of finding a query's positive among it and all negatives, by the cosine over a temperature.

    Args:
        queries: Shape (n, width), of length 1.
        positives: Shape (n, width), likewise.
        negatives: Shape (any, width), likewise.
        temperature: The lower, the more those count that are alike.
    """
    alike = (queries * positives).sum(1, keepdim=True)
    logits = torch.cat([alike, queries @ negatives.T], 1) / temperature
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def nt_xent(first: torch.Tensor, second: torch.Tensor, temperature: float) -> torch.Tensor:
    """The same within a batch: each of 2n views is to find its partner among the 2n - 1 others.

    Args:
        first: Shape (n, width), any length.
        second: Of the same images in the same order.
        temperature: See ``info_nce``.
    """
    count = len(first)
    views = F.normalize(torch.cat([first, second]), dim=1)
    logits = views @ views.T / temperature
    logits = logits.masked_fill(torch.eye(2 * count, dtype=torch.bool, device=logits.device), float("-inf"))
    partners = torch.arange(2 * count, device=logits.device).roll(count)
    return F.cross_entropy(logits, partners)


class MomentumContrast(nn.Module):
    """A head for queries, a slow copy of the encoder and of this head for keys, and a queue of keys.

    Args:
        network: Whose encoder learns.
        queue: How many keys of earlier steps a query is told apart from; fewer as long as there were not so many.
        momentum: Share of the slow copy that stays in a step.
        temperature: Of ``info_nce``.
    """

    queue: torch.Tensor
    seen: torch.Tensor

    def __init__(
        self, network: nn.Module, queue: int = QUEUE, momentum: float = MOMENTUM, temperature: float = TEMPERATURE
    ) -> None:
        super().__init__()
        self.momentum, self.temperature = momentum, temperature
        self.project = projector(width_of(network))
        self.slow_encoder = copy.deepcopy(encoder_of(network)).requires_grad_(False)
        self.slow_project = copy.deepcopy(self.project).requires_grad_(False)
        self.register_buffer("queue", torch.zeros(queue, OUTPUTS))
        self.register_buffer("seen", torch.zeros((), dtype=torch.long))

    def loss(self, network: nn.Module, features: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """How badly queries find the keys of the same images; while the network trains, the slow copy follows it.

        Args:
            network: That made the features.
            features: Pooled, of one view of each image, shape (n, width).
            others: The other views as images, shape (n, channels, *image).
        """
        queries = F.normalize(self.project(features), dim=1)
        with torch.no_grad():
            if network.training:
                self._follow(network)
            keys = F.normalize(self.slow_project(pooled(self.slow_encoder, others)), dim=1)
            negatives = self.queue[: int(self.seen)].clone()  # all of it, once there were more than it holds
        loss = info_nce(queries, keys, negatives, self.temperature)
        if network.training:
            self._keep(keys)
        return loss

    def _follow(self, network: nn.Module) -> None:
        """Before the first step nothing stays: the network may have got its weights after this was made."""
        stays = self.momentum if int(self.seen) else 0.0
        for slow, fast in ((self.slow_encoder, encoder_of(network)), (self.slow_project, self.project)):
            for old, new in zip(slow.parameters(), fast.parameters(), strict=True):
                old.mul_(stays).add_(new, alpha=1 - stays)

    def _keep(self, keys: torch.Tensor) -> None:
        """The oldest keys make room."""
        size = len(self.queue)
        places = (int(self.seen) + torch.arange(len(keys), device=keys.device)) % size
        self.queue[places[-size:]] = keys[-size:]
        self.seen += len(keys)
