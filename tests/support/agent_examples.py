"""Untrained agents, and trees for them to choose from."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from assignnet.learn.agent import Agent, AgentCard
from assignnet.learn.network import AssignNetwork, NetworkSize
from assignnet.learn.supervised import GainNetwork
from assignnet.value.instance import Instance
from assignnet.value.synthetic import synthetic_instance

FEATURES = 3
SIZE = NetworkSize(features=FEATURES, width=16, layers=1, heads=2, start_label=True)
CARD = AgentCard(
    kind="policy",
    network=SIZE,
    features={"source": "fine", "downsample_mode": "center", "global_info": False, "fingerprint": "ab" * 32},
    problem={"packing": "same_size", "large": "resize", "slot": [8, 8, 8], "native": [8, 8, 8]},
    metric="dice",
    weights=(0.01, 0.5),
    training={"seed": 3, "cases": ["a", "b"]},
    metrics={"reward": 0.5},
)


def policy(seed: int = 0, size: NetworkSize = SIZE, eager: float = 1.0) -> Agent:
    """An untrained agent whose scores differ between regions; the higher ``eager``, the later it stops."""
    torch.manual_seed(seed)
    network = AssignNetwork(size)
    with torch.no_grad():
        pointer = network.pointer
        pointer.key.weight.mul_(eager)
        pointer.stop.copy_(-pointer.key.weight.T @ pointer.score.weight[0].sign())
        pointer.score.weight.mul_(5)
    return Agent(replace(CARD, network=size), network)


def gains(seed: int = 0) -> Agent:
    """An untrained agent that chooses by predicted gains; untrained, it believes the heatmap."""
    torch.manual_seed(seed)
    return Agent(replace(CARD, kind="gains"), GainNetwork(SIZE))


def example(seed: int = 0, regions: int = 20) -> Instance:
    return synthetic_instance(np.random.default_rng(seed), regions, features=FEATURES)


def run(agent: Agent, instance: Instance, **changes: Any) -> list[int]:
    """Chosen rows."""
    chosen = agent(instance.tree, replace(instance.cost_model, **changes), instance.features)
    return [instance.tree.rois.index(roi) for roi in chosen]
