"""How well an assigner chooses: the reward of its choices beside the best that is known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import fsum, nan
from time import perf_counter

import torch

from assignnet.choice.rules import Assigner
from assignnet.choice.tree import Roi, RoiTree
from assignnet.value.instance import Instance
from assignnet.value.oracle import Choice, oracle
from assignnet.value.voxel_counts import Metric

Oracles = Mapping[tuple[Instance, float], Choice]
"""The oracle's choices by instance (the object, not its name) and weight."""


@dataclass(frozen=True, slots=True)
class Row:
    """What one assigner chose for one instance at one weight.

    Attributes:
        instance: Name of the instance.
        weight: Of cost (lambda).
        reward: Of its valid choices, see ``Instance.reward``.
        oracle_reward: Of the best choice that is known.
        oracle_fraction: ``reward`` over ``oracle_reward``; NaN where the best is to do nothing, which earns 0.
        bound: No choice earns more, with the reservation in ``Choice``.
        quality: Dice or IoU of the valid choices.
        slots: Their cost.
        seconds: What the fine network takes for that.
        invalid_actions: Choices that broke the rules, see ``valid_choices``.
        choose_s: Seconds that the assigner took, on the wall clock.
        selected: Number of valid choices.
        dropped: Children that are processed neither by themselves nor as part of their parent.
    """

    instance: str
    weight: float
    reward: float
    oracle_reward: float
    oracle_fraction: float
    bound: float
    quality: float
    slots: float
    seconds: float
    invalid_actions: int
    choose_s: float
    selected: int
    dropped: int


@dataclass(frozen=True, slots=True)
class Summary:
    """All rows of one weight.

    Attributes:
        instances: Number of rows.
        oracle_fraction: Sum of the rewards over the sum of the oracle's. Not the mean of the rows' fractions: where
            little can be earned they mean little, and where nothing can, such as at a high weight, they do not exist.
            NaN if the oracle earns nothing at all.
        invalid_actions: Their sum; a trained agent has 0.
        reward: The mean; this and all others as in ``Row``.
        oracle_reward: The mean.
        bound: The mean.
        quality: The mean.
        slots: The mean.
        seconds: The mean.
        choose_s: The mean.
        selected: The mean.
        dropped: The mean.
    """

    instances: int
    oracle_fraction: float
    invalid_actions: int
    reward: float
    oracle_reward: float
    bound: float
    quality: float
    slots: float
    seconds: float
    choose_s: float
    selected: float
    dropped: float


def oracles(
    instances: Iterable[Instance], metric: Metric, weights: Sequence[float]
) -> dict[tuple[Instance, float], Choice]:
    """The oracle's choices, to be shared by all assigners that are evaluated."""
    return {
        (instance, weight): oracle(instance, metric, weight) for instance in instances for weight in map(float, weights)
    }


def evaluate(
    assigner: Assigner,
    instances: Iterable[Instance],
    metric: Metric,
    weights: Sequence[float],
    *,
    known: Oracles | None = None,
    seed: int = 0,
) -> list[Row]:
    """Let an assigner choose in every instance at every weight.

    Args:
        assigner: A rule or an agent. It gets the instance's cost model with the weight put in.
        instances: With known outcomes. A budget in their cost model binds assigners that mind it, not the oracle.
        metric: Of the whole volume.
        weights: Values of lambda.
        known: The oracle's choices if they have been computed (``oracles``); what is missing is computed.
        seed: For assigners that draw from PyTorch's random numbers; what else draws from them is not disturbed.

    Returns:
        Rows, instance by instance, in the order of ``weights``.
    """
    rows = []
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for instance in instances:
            for weight in map(float, weights):
                best = (known or {}).get((instance, weight))
                if best is None:
                    best = oracle(instance, metric, weight)
                rows.append(_row(assigner, instance, metric, weight, best))
    return rows


def summarise(rows: Iterable[Row]) -> dict[float, Summary]:
    """One summary per weight, in the order in which weights occur."""
    groups: dict[float, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.weight, []).append(row)
    return {weight: _summary(group) for weight, group in groups.items()}


def valid_choices(tree: RoiTree, selection: Iterable[Roi]) -> tuple[tuple[Roi, ...], int]:
    """What remains of a selection if choices that break the rules are left out, and how many those are.

    Going through it in order, a choice breaks the rules if it is no node of the tree, or if it, its parent or one of
    its children has been chosen before.

    >>> from canvas import Box
    >>> left, right = (Roi(Box.of((0, 0, x), (4, 4, 4)), 0.9, 1.0) for x in (0, 4))
    >>> whole = Roi(Box.whole((4, 4, 8)), 0.9, 2.0)
    >>> tree = RoiTree((whole,), ((left, right),), (4, 4, 8))
    >>> valid_choices(tree, [left, whole, right, right]) == ((left, right), 2)
    True
    """
    rows = {roi: row for row, roi in enumerate(tree.rois)}
    parent = tree.parent_of.tolist()
    valid: list[Roi] = []
    closed: set[int] = set()
    broken = 0
    for roi in selection:
        row = rows.get(roi)
        if row is None or row in closed:
            broken += 1
            continue
        valid.append(roi)
        # A child closes its parent but not its siblings; a parent closes all its family.
        closed.update({row, parent[row]} if parent[row] != row else _family(parent, row))
    return tuple(valid), broken


def _family(parent: list[int], row: int) -> set[int]:
    return {other for other, above in enumerate(parent) if above == row}


def _row(assigner: Assigner, instance: Instance, metric: Metric, weight: float, best: Choice) -> Row:
    cost_model = instance.weighted(weight).cost_model
    began = perf_counter()
    selection = assigner(instance.tree, cost_model, instance.features)
    choose_s = perf_counter() - began
    valid, broken = valid_choices(instance.tree, selection)
    chosen = instance.chosen(valid)
    reward = instance.reward(valid, metric, weight)
    slots = float(instance.slots[chosen].sum())
    return Row(
        instance=instance.name,
        weight=weight,
        reward=reward,
        oracle_reward=best.reward,
        oracle_fraction=_share(reward, best.reward),
        bound=best.bound,
        quality=instance.outcomes.quality(chosen, metric),
        slots=slots,
        seconds=slots * instance.seconds_per_slot,
        invalid_actions=broken,
        choose_s=choose_s,
        selected=len(valid),
        dropped=_dropped(instance.tree, set(valid)),
    )


def _dropped(tree: RoiTree, selected: set[Roi]) -> int:
    families = zip(tree.parents, tree.children, strict=True)
    return sum(len(set(children) - selected) for parent, children in families if parent not in selected)


def _summary(rows: Sequence[Row]) -> Summary:
    def mean(name: str) -> float:
        return fsum(getattr(row, name) for row in rows) / len(rows)

    return Summary(
        instances=len(rows),
        oracle_fraction=_share(fsum(row.reward for row in rows), fsum(row.oracle_reward for row in rows)),
        invalid_actions=sum(row.invalid_actions for row in rows),
        reward=mean("reward"),
        oracle_reward=mean("oracle_reward"),
        bound=mean("bound"),
        quality=mean("quality"),
        slots=mean("slots"),
        seconds=mean("seconds"),
        choose_s=mean("choose_s"),
        selected=mean("selected"),
        dropped=mean("dropped"),
    )


def _share(reward: float, best: float) -> float:
    return reward / best if best > 0 else nan
