"""A warm start for reinforcement learning: the network first learns to choose what the oracle chooses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from assignnet.learn.network import STATUS, AssignNetwork, stack
from assignnet.learn.observation import Observation, observe, still_free
from assignnet.value.instance import Instance
from assignnet.value.oracle import oracle
from assignnet.value.voxel_counts import Metric

BATCH = 64


def imitate(
    network: AssignNetwork,
    instances: Sequence[Instance],
    metric: Metric,
    weights: tuple[float, float],
    *,
    passes: int,
    seed: int,
    learning_rate: float = 1e-3,
) -> None:
    """Train a network, in place, to choose any of the oracle's regions that are left, and to stop when none is.

    The oracle's selection is a set. So at a random moment of choosing, the score of each region that is still free,
    less that of stopping, is the log-odds that the oracle selects it: the best choice is then the surest member, and
    stopping when none is more likely a member than not.

    Args:
        network: Is changed.
        instances: To learn from.
        metric: Quality that the oracle maximises.
        weights: Range of lambda; drawn uniformly in its logarithm, four times per instance.
        passes: Over all instances.
        seed: Fixes the result.
        learning_rate: Of Adam; falls linearly to 0.
    """
    random = np.random.default_rng(seed)
    torch.manual_seed(seed)
    examples = []
    for instance in instances:
        observation = observe(instance.tree, instance.cost_model, instance.features)
        drawn = np.exp(random.uniform(np.log(weights[0]), np.log(weights[1]), 4)).tolist()
        examples += [
            (observation, instance.chosen(oracle(instance, metric, weight).selection), weight) for weight in drawn
        ]
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    steps = passes * -(-len(examples) // BATCH)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, max(steps, 1))
    network.train()
    for _ in range(passes):
        order = random.permutation(len(examples))
        for first in range(0, len(order), BATCH):
            loss = _loss(network, [examples[index] for index in order[first : first + BATCH]], random)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def _loss(
    network: AssignNetwork, batch: Sequence[tuple[Observation, NDArray[np.bool_], float]], random: np.random.Generator
) -> torch.Tensor:
    """The mean over moments, one drawn for each example."""
    most = max(max(len(observation.parent) for observation, _, _ in batch), 1)
    shape = (len(batch), most)
    taken, wanted, free = (np.zeros(shape, bool) for _ in range(3))
    last, status = np.full(len(batch), -1), np.zeros((len(batch), STATUS), np.float32)
    for row, (observation, selected, weight) in enumerate(batch):
        members = random.permutation(np.flatnonzero(selected))
        done = members[: random.integers(len(members) + 1)]
        count = len(observation.parent)
        taken[row, done] = True
        wanted[row, members[len(done) :]] = True
        free[row, :count] = still_free(observation.parent, taken[row, :count])
        last[row] = done[-1] if len(done) else -1
        status[row] = weight, observation.cost[done].sum(), 2.0, len(done) > 0
    encoded = network.encoder(*stack([observation for observation, _, _ in batch], most))
    scores, _ = network.pointer(encoded, *map(torch.from_numpy, (taken, last, status)))
    margin, aims = scores[:, 1:] - scores[:, :1], torch.from_numpy(wanted).float()
    losses = nn.functional.binary_cross_entropy_with_logits(margin, aims, reduction="none")
    return losses[torch.from_numpy(free)].mean() if free.any() else 0.0 * scores.sum()
