"""The agent's network as a policy for Stable-Baselines3's PPO with invalid choices masked."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from sb3_contrib.common.maskable.distributions import MaskableDistribution
from sb3_contrib.common.maskable.policies import MaskableActorCriticPolicy
from stable_baselines3.common.torch_layers import FlattenExtractor
from stable_baselines3.common.type_aliases import PyTorchObs, Schedule

from assignnet.learn.network import AssignNetwork, NetworkSize


class AssignPolicy(MaskableActorCriticPolicy):
    """Scores of the pointer are the logits of the choice; encoder and pointer also estimate the value.

    Args:
        observation_space: That of ``AssignEnv``.
        action_space: Stopping, and one choice per row.
        lr_schedule: Learning rate.
        size: Shapes of the network.
        **options: As for ``MaskableActorCriticPolicy``.
    """

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        action_space: spaces.Space[Any],
        lr_schedule: Schedule,
        *,
        size: NetworkSize,
        **options: Any,
    ) -> None:
        self._size = size
        options["features_extractor_class"] = FlattenExtractor  # has no weights; the network reads the parts by name
        super().__init__(observation_space, action_space, lr_schedule, **options)

    def _build(self, lr_schedule: Schedule) -> None:
        self.network = AssignNetwork(self._size)
        self.optimizer = torch.optim.Adam(self.parameters(), lr=lr_schedule(1), eps=1e-5)

    def _look(self, obs: PyTorchObs) -> tuple[MaskableDistribution, torch.Tensor]:
        """Distribution over choices, not masked yet, and values, shape (batch, 1)."""
        if not isinstance(obs, dict):
            raise TypeError("the policy needs the observations of AssignEnv, a dictionary")
        rows = max(int(obs["present"].sum(dim=1).max()), 1)
        parts = [obs[name][:, :rows] for name in ("nodes", "standing", "parent", "present")]
        parts.append(obs["volume"] if "volume" in obs else parts[0].new_zeros(len(parts[0]), 0))
        first, tree = _distinct(parts[:2])
        nodes, standing, parent, present, volume = (part[first] for part in parts)
        encoded = self.network.encoder(nodes.float(), standing.float(), parent.long(), present.bool(), volume.float())
        scores, values = self.network.pointer(
            encoded.select(tree), obs["taken"][:, :rows].bool(), obs["last"].long()[:, 0], obs["status"].float()
        )
        padding = scores.new_zeros(len(scores), obs["present"].shape[1] - rows)
        scores = torch.cat([scores, padding], dim=1)
        return self.action_dist.proba_distribution(action_logits=scores), values[:, None]

    def forward(
        self, obs: PyTorchObs, deterministic: bool = False, action_masks: np.ndarray | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choices, values and the choices' log-probabilities."""
        distribution, values = self._look(obs)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        actions = distribution.get_actions(deterministic=deterministic)
        return actions, values, distribution.log_prob(actions)

    def evaluate_actions(
        self, obs: PyTorchObs, actions: torch.Tensor, action_masks: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Values, log-probabilities of given choices, and the entropy of the distribution."""
        distribution, values = self._look(obs)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return values, distribution.log_prob(actions), distribution.entropy()

    def get_distribution(self, obs: PyTorchObs, action_masks: np.ndarray | None = None) -> MaskableDistribution:
        """The distribution over choices."""
        distribution, _ = self._look(obs)
        if action_masks is not None:
            distribution.apply_masking(action_masks)
        return distribution

    def predict_values(self, obs: PyTorchObs) -> torch.Tensor:
        """Values, shape (batch, 1)."""
        return self._look(obs)[1]


def _distinct(parts: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The first row of each distinct tree in a batch, and for each row its tree; a batch holds many steps of few trees.

    Args:
        parts: What tells trees apart, each of shape (batch, ...).
    """
    keys = torch.cat([part.flatten(1).double() @ _probe(part.flatten(1).shape[1]) for part in parts], dim=1)
    distinct, tree = torch.unique(keys, dim=0, return_inverse=True)
    first = torch.full((len(distinct),), len(keys), dtype=torch.int64)
    return first.scatter_reduce(0, tree, torch.arange(len(keys)), "amin"), tree


def _probe(length: int) -> torch.Tensor:
    """Irregular numbers, by whose products with them rows that differ are told apart; shape (length, 2)."""
    steps = torch.arange(1, length + 1, dtype=torch.float64)
    return torch.stack([torch.sin(steps * steps), torch.cos(steps * 0.7)], dim=1)
