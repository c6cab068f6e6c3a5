"""The supervised rival of the learned choice: predict what each region yields, then let a dynamic programme choose.

The network has the agent's encoder, and heads that predict voxel counts instead of choices. It learns them from the
counts of regions processed alone, so it needs no episodes, and lambda enters only when the programme chooses: one
network serves every lambda. How results of overlapping regions combine is not learned, but guessed from their boxes.

Counts are predicted as multiples of what the heatmap promises, a region's mass, and learned by Poisson regression:
its optimum is the expected count, which is what expected Dice and IoU are made of, and errors weigh in voxels, so
that large objects matter as much as they do there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from assignnet.choice.cost_model import CostModel
from assignnet.choice.rules import in_space_order
from assignnet.choice.tree import Roi, RoiTree
from assignnet.learn.network import NetworkSize, SetEncoder, stack
from assignnet.learn.observation import Observation, observe
from assignnet.value.additive_tree import AdditiveTree
from assignnet.value.instance import Instance, total_slots
from assignnet.value.overlap import box_shares, solve_overlapping
from assignnet.value.voxel_counts import Counts, Metric

BATCH = 16
"""Trees per gradient step."""
FLOOR = 1e-4
"""Mass, as a share of the tree's, that a region is taken to have at least: the network multiplies it."""
HIDDEN = 0.5
"""Share of the features that training hides, lest a network learn a few hundred trees by heart."""
LIMIT = 10.0
"""Predicted logarithms stay within this, so that no input, however strange, overflows."""


@dataclass(frozen=True, slots=True, eq=False)
class Gains:
    """What processing regions yields, in voxels of the foreground as a whole.

    Attributes:
        common: Voxels rightly found in each region, shape (regions,).
        found: Voxels found, rightly or not, shape (regions,).
        true: Voxels of the reference in the whole volume.
    """

    common: Counts
    found: Counts
    true: float


class GainNetwork(nn.Module):
    """Encoder, a head that looks at each region, and one that looks at all of them.

    Args:
        size: Shapes; ``start_label`` has no effect.
    """

    def __init__(self, size: NetworkSize) -> None:
        super().__init__()
        self.size = size
        width = size.width
        self.encoder = SetEncoder(size)
        if self.encoder.seen is not None:
            # After the normalisation: before it, hiding some would make the others look larger in use than in training.
            self.encoder.seen.insert(1, nn.Dropout(HIDDEN))
        self.region = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 2))
        self.total = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))

    def forward(
        self,
        nodes: torch.Tensor,
        standing: torch.Tensor,
        parent: torch.Tensor,
        present: torch.Tensor,
        volume: torch.Tensor,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Predict counts; arguments as for ``SetEncoder``.

        Returns:
            Logarithm of the voxels found, shape (batch, n); log-odds that a found voxel is right, shape (batch, n);
            logarithm of the true voxels, shape (batch,). Voxels are counted in units of the tree's mass. Rows of
            padding mean nothing.
        """
        encoded = self.encoder(nodes, standing, parent, present, volume)
        region = self.region(encoded.regions).clamp(-LIMIT, LIMIT)
        found = torch.log(standing[..., 1].clamp_min(FLOOR)) + region[..., 0]
        return found, region[..., 1], self.total(encoded.summary)[:, 0].clamp(-LIMIT, LIMIT)


def true_gains(instance: Instance) -> Gains:
    """What the network is to predict for an instance: each region as if it alone were processed.

    Several classes are added up, each in proportion to how rare it is: the quality is a mean over classes, so half of
    a small class is worth as much as half of a large one. Classes that the volume does not have count as they are.
    What a region finds less than lies outside of all regions counts as nothing.
    """
    common, found = instance.outcomes.alone(len(instance.tree.rois))
    true = instance.outcomes.confusion(np.zeros(len(common), dtype=bool)).true
    has = true > 0
    factor = np.where(has, true.sum() / np.maximum(has.sum(), 1) / np.where(has, true, 1.0), 1.0)
    rightly = np.maximum(common @ factor, 0.0)
    return Gains(rightly, np.maximum(found @ factor, rightly), float(true.sum()))


def predict_gains(network: GainNetwork, tree: RoiTree, observation: Observation) -> Gains:
    """What a network expects of the regions of a tree, each as if it alone were processed.

    The true voxels are at least those that the smallest regions can rightly find together, overlaps counted once.

    Args:
        network: In evaluation mode.
        tree: Has at least one region.
        observation: The same tree as ``observe`` shows it.
    """
    with torch.inference_mode():
        found, right, true = (value[0].double().numpy() for value in network(*stack([observation])))
    common = np.exp(found) / (1.0 + np.exp(-right))
    rows = np.arange(len(common))
    leaf = np.bincount(observation.parent, observation.parent != rows, minlength=len(rows)) == 0
    shares = box_shares([roi.box for roi in tree.rois])
    reachable = (common / (1.0 + shares @ leaf))[leaf].sum()
    unit = tree.mass or 1.0
    return Gains(common * unit, np.exp(found) * unit, float(max(np.exp(true), reachable)) * unit)


def choose_by_gains(
    network: GainNetwork, tree: RoiTree, cost_model: CostModel, observation: Observation, metric: Metric
) -> tuple[Roi, ...]:
    """The selection that is best if the predicted counts are right, in ``in_space_order``.

    Args:
        network: In evaluation mode.
        tree: Has at least one region.
        cost_model: Its weight is lambda, its budget is kept.
        observation: The same tree as ``observe`` shows it.
        metric: Quality that is to be high.
    """
    gains, total, rois = predict_gains(network, tree, observation), total_slots(tree, cost_model), tree.rois
    cost = np.array([cost_model.slots(roi.box) for roi in rois]) / total
    budget = None if cost_model.budget is None else cost_model.budget / total
    counts = gains.common[:, None], gains.found[:, None], np.array([gains.true])
    sums = AdditiveTree.of(observation.parent, *counts, cost, cost_model.weight, metric, budget)
    chosen = solve_overlapping(sums, box_shares([roi.box for roi in rois]))
    return in_space_order([rois[row] for row in np.flatnonzero(chosen)], cost_model.slot)


@dataclass(frozen=True, slots=True, eq=False)
class _Example:
    """A tree and what to predict for it.

    Attributes:
        observation: What the network sees.
        found: Voxels found, shape (regions,), in units that make it 1 for a region that holds its share of the truth.
        right: Share of them that is right, shape (regions,).
        true: Logarithm of the true voxels, in units of the tree's mass.
        unit: Logarithm of the tree's mass, in the units of ``found``.
    """

    observation: Observation
    found: Counts
    right: Counts
    true: float
    unit: float


def train_gains(
    instances: Sequence[Instance],
    size: NetworkSize,
    *,
    epochs: int,
    seed: int,
    learning_rate: float = 1e-3,
    progress: Callable[[int, int], None] = lambda done, total: None,
    watch: Callable[[GainNetwork], object] = lambda network: None,
) -> GainNetwork:
    """Train a network to predict what regions yield.

    Args:
        instances: To learn from; those without regions are passed over.
        size: Shapes of the network.
        epochs: Passes over all instances.
        seed: Fixes the result, together with the instances and the number of threads. PyTorch's own random numbers
            go on as if nothing had happened.
        learning_rate: Of Adam; falls linearly to 0.
        progress: Called after every pass with the number of passes done and their total.
        watch: Called after every pass with the network in evaluation mode, to see how it does on other instances. It
            may copy the network's weights, and must not change them.

    Raises:
        ValueError: If there is no instance with regions.
    """
    examples = [_example(instance) for instance in instances if instance.tree.parents]
    if not examples:
        raise ValueError("training needs at least one instance that has regions")
    random = np.random.default_rng(seed)
    with _seeded(random):
        network = GainNetwork(size)
    optimizer = torch.optim.Adam(network.parameters(), learning_rate)
    steps = max(epochs * -(-len(examples) // BATCH), 1)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, steps)
    for epoch in range(epochs):
        network.train()
        order = random.permutation(len(examples))
        with _seeded(random):
            for first in range(0, len(order), BATCH):
                loss = _loss(network, [examples[index] for index in order[first : first + BATCH]])
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(network.parameters(), 1.0)
                optimizer.step()
                schedule.step()
        network.eval()
        progress(epoch + 1, epochs)
        watch(network)
    return network.eval()


@contextmanager
def _seeded(random: np.random.Generator) -> Iterator[None]:
    """PyTorch's random numbers follow from ``random`` inside, and go on outside as if nothing had happened."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.integers(1 << 63)))
        yield


def _example(instance: Instance) -> _Example:
    gains, mass = true_gains(instance), instance.tree.mass or 1.0
    observation = observe(instance.tree, instance.cost_model, instance.features)
    unit = (gains.true or mass) / len(observation.parent)
    right = gains.common / np.where(gains.found > 0, gains.found, 1.0)
    true = float(np.clip(np.log(max(gains.true, 1.0) / mass), -LIMIT, LIMIT))
    return _Example(observation, gains.found / unit, right, true, float(np.log(mass / unit)))


def _loss(network: GainNetwork, batch: Sequence[_Example]) -> torch.Tensor:
    """Poisson regression of the voxels found, cross-entropy of each being right, Huber loss of the true ones."""
    inputs = stack([example.observation for example in batch])
    found, right, true = network(*inputs)
    wanted, share = torch.zeros_like(found), torch.zeros_like(found)
    for row, example in enumerate(batch):
        wanted[row, : len(example.found)] = torch.from_numpy(example.found)
        share[row, : len(example.right)] = torch.from_numpy(example.right)
    unit = torch.tensor([[example.unit] for example in batch])
    counts = F.poisson_nll_loss(found + unit, wanted, reduction="none")
    hits = F.binary_cross_entropy_with_logits(right, share, weight=wanted, reduction="none")
    return (counts + hits)[inputs[3]].mean() + F.huber_loss(true, torch.tensor([example.true for example in batch]))
