"""The choice of regions as an environment for reinforcement learning (Gymnasium).

An episode is one tree: every action takes one more region, or stops. Actions that break the rules are masked
(``AssignEnv.action_masks``), after Huang and Ontanon, "A closer look at invalid action masking" (2022).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from numpy.typing import NDArray

from assignnet.learn.observation import OWN, STANDING, observe, still_free
from assignnet.value.instance import Instance, total_slots
from assignnet.value.reward import Reward
from assignnet.value.synthetic import synthetic_instance

DictObservation = dict[str, NDArray[Any]]

STOP = 0
"""The action that ends an episode; action i + 1 takes the region in row i."""
BUDGETS = (0.1, 1.0)
"""Range of budgets that are drawn, as shares of the cost of all children."""
MOST_LEFT = 2.0
"""The budget left is shown up to here; more is as good as no limit."""
ROUNDING = 1e-9
"""Sums of shares may exceed a budget by this much, so that a budget of 1 suffices for all children."""


class InstanceSource(Protocol):
    """Where episodes get their trees from."""

    def __call__(self, random: np.random.Generator) -> Instance:
        """The instance of an episode; all randomness comes from ``random``."""
        ...


@dataclass(frozen=True, slots=True)
class UniformSource:
    """One of some instances, each as likely as the others.

    Attributes:
        instances: To draw from.

    Raises:
        ValueError: If there are none.
    """

    instances: Sequence[Instance]

    def __post_init__(self) -> None:
        if not self.instances:
            raise ValueError("there are no instances to draw from")

    def __call__(self, random: np.random.Generator) -> Instance:
        """See ``InstanceSource``."""
        return self.instances[int(random.integers(len(self.instances)))]


@dataclass(frozen=True, slots=True)
class SyntheticSource:
    """A new synthetic instance for every episode.

    Attributes:
        regions: Fewest and most regions that are asked of ``synthetic_instance``; each number is as likely.
        features: Network features per region.
    """

    regions: tuple[int, int]
    features: int = 0

    def __call__(self, random: np.random.Generator) -> Instance:
        """See ``InstanceSource``."""
        fewest, most = self.regions
        return synthetic_instance(random, int(random.integers(fewest, most + 1)), features=self.features)


@dataclass(slots=True)
class _Episode:
    """What happens to one tree.

    Attributes:
        instance: The tree and what its regions yield.
        weight: Of cost (lambda).
        budget: Share of all children's cost that may be spent; may be infinite.
        fixed: The part of the observation that does not change.
        cost: Of each region as a share of all children's, shape (regions,).
        chosen: Rows chosen so far, in order.
        reward: Sum so far.
        over: Whether it was stopped.
    """

    instance: Instance
    weight: float
    budget: float
    fixed: DictObservation
    cost: NDArray[np.float64]
    chosen: list[int] = field(default_factory=list)
    reward: float = 0.0
    over: bool = False

    @property
    def spent(self) -> float:
        return float(self.cost[self.chosen].sum())

    def free(self) -> NDArray[np.bool_]:
        """Regions that may be chosen now, shape (regions,)."""
        taken = np.zeros(len(self.cost), dtype=bool)
        if self.over:
            return taken
        taken[self.chosen] = True
        fits = self.spent + self.cost <= self.budget + ROUNDING
        return still_free(self.fixed["parent"][: len(taken)], taken) & fits


class AssignEnv(gymnasium.Env[dict[str, Any], np.int64]):
    """Choose regions of a tree one by one, then stop.

    **Observation** (N = ``max_nodes``; rows beyond the tree are padding): ``nodes`` (N, F + 7), ``standing`` (N, 12)
    and ``parent`` (N,) as in ``observation.py`` (padding is its own parent), ``present`` (N,) and ``taken`` (N,)
    of 0 and 1, ``last`` (1,), the row of the last choice or -1, and ``status`` (4,): lambda, cost so far, budget left
    (at most 2), and 1 once something was chosen; costs and budgets as shares of the cost of all children. With
    ``volume``: also ``volume`` (G,), the features of the observed volume.

    **Action**: 0 stops, i + 1 takes row i. ``action_masks`` says which are valid; ``action_space.sample()`` without a
    mask draws from those.

    **Reward**: from ``reward``. An episode ends with the action that stops, and with no other; it is never truncated.
    Its last ``info`` holds ``selection`` (regions in the order of choice), ``reward_sum``, ``quality`` and ``cost`` (as
    a share).

    ``reset`` takes these options: ``instance``, ``weight`` (lambda) and ``budget`` (share of all children's cost).
    What is not given is drawn.

    Args:
        source: Where instances come from.
        reward: What choices are worth.
        max_nodes: Most regions that a tree may have.
        features: Network features per region.
        volume: Features of the observed volume.
        weights: Range of lambda; drawn uniformly in its logarithm.
        limited: Probability that an episode has a budget, drawn uniformly between 0.1 and 1; others have no limit.
        complete: Whether stopping is not valid while anything else is: the episode is about the order alone.

    Raises:
        ValueError: If an argument is out of its range.
    """

    def __init__(
        self,
        source: InstanceSource,
        reward: Reward,
        *,
        max_nodes: int,
        features: int,
        volume: int = 0,
        weights: tuple[float, float] = (0.01, 0.5),
        limited: float = 0.0,
        complete: bool = False,
    ) -> None:
        if max_nodes < 1 or features < 0 or volume < 0:
            raise ValueError(f"impossible shapes: {max_nodes} nodes, {features} features, {volume} of the volume")
        if not 0 < weights[0] <= weights[1] < np.inf:
            raise ValueError(f"the range of weights needs 0 < lower <= upper, not {weights}")
        if not 0 <= limited <= 1:
            raise ValueError(f"limited {limited} is no probability")
        self._source, self._reward = source, reward
        self._shapes = max_nodes, features, volume
        self._weights, self._limited, self._complete = weights, limited, complete
        self._episode: _Episode | None = None
        self.observation_space = _observation_space(max_nodes, features, volume)
        self.action_space = _Choices(max_nodes + 1, self.action_masks)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[DictObservation, dict[str, Any]]:
        """Begin an episode.

        Args:
            seed: Of all that is drawn from now on.
            options: See the class.

        Raises:
            ValueError: If an option is unknown, or the instance has more regions than ``max_nodes`` or other numbers
                of features.
        """
        super().reset(seed=seed)
        given = options or {}
        unknown = given.keys() - {"instance", "weight", "budget"}
        if unknown:
            raise ValueError(f"unknown options for reset: {', '.join(sorted(unknown))}")
        instance = given["instance"] if "instance" in given else self._source(self.np_random)
        weight = given["weight"] if "weight" in given else np.exp(self.np_random.uniform(*np.log(self._weights)))
        budget = given["budget"] if "budget" in given else self._draw_budget()
        fixed = _fixed_part(instance, *self._shapes)
        cost = instance.slots / total_slots(instance.tree, instance.cost_model)
        self._episode = _Episode(instance, float(weight), float(budget), fixed, cost)
        return self._observe(self._episode), {}

    def step(self, action: int | np.integer[Any]) -> tuple[DictObservation, float, bool, bool, dict[str, Any]]:
        """Take a region, or stop.

        Raises:
            ValueError: If the action is masked.
            ResetNeeded: If no episode is under way.
        """
        episode, mask = self._episode, self.action_masks()
        if episode is None or episode.over:
            raise ResetNeeded("no episode is under way: call reset first")
        if not (0 <= action < len(mask) and mask[action]):
            raise ValueError(f"action {action} is not valid now; action_masks() says which are")
        choice = None if action == STOP else int(action) - 1
        reward = float(self._reward(episode.instance, tuple(episode.chosen), choice, episode.weight))
        episode.reward += reward
        if choice is None:
            episode.over = True
        else:
            episode.chosen.append(choice)
        return self._observe(episode), reward, episode.over, False, self._summary(episode) if episode.over else {}

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are valid now, shape (N + 1,), stopping mostly; the name is the one sb3-contrib asks for."""
        mask = np.zeros(self._shapes[0] + 1, dtype=bool)
        if self._episode is not None:
            free = self._episode.free()
            mask[1 : len(free) + 1] = free
        mask[STOP] = not (self._complete and mask.any())
        return mask

    def _draw_budget(self) -> float:
        if self.np_random.random() < self._limited:
            return self.np_random.uniform(*BUDGETS)
        return np.inf

    def _observe(self, episode: _Episode) -> DictObservation:
        """An observation that shares no memory with others, because users keep them."""
        taken = np.zeros(self._shapes[0], dtype=np.int8)
        taken[episode.chosen] = 1
        spent, began = episode.spent, bool(episode.chosen)
        # Rounding may overdraw a budget by a hair.
        left = min(max(episode.budget - spent, 0.0), MOST_LEFT)
        changing: DictObservation = {
            "taken": taken,
            "last": np.array([episode.chosen[-1] if began else -1], dtype=np.int64),
            "status": np.array([episode.weight, spent, left, began], dtype=np.float32),
        }
        return {name: part.copy() for name, part in episode.fixed.items()} | changing

    def _summary(self, episode: _Episode) -> dict[str, Any]:
        rois = episode.instance.tree.rois
        chosen = np.zeros(len(rois), dtype=bool)
        chosen[episode.chosen] = True
        return {
            "selection": tuple(rois[row] for row in episode.chosen),
            "reward_sum": episode.reward,
            "quality": episode.instance.outcomes.quality(chosen, self._reward.metric),
            "cost": episode.spent,
        }


class _Choices(spaces.Discrete):
    """Actions; a sample without a mask is one of those valid now, so that random agents and checkers can play.

    Args:
        count: Number of actions.
        masks: Returns which are valid, shape (count,).
    """

    def __init__(self, count: int, masks: Callable[[], NDArray[np.bool_]]) -> None:
        super().__init__(count)
        self._masks = masks

    def sample(self, mask: Any = None, probability: Any = None) -> np.int64:
        """An action; all valid ones are equally likely if neither a mask nor probabilities are given."""
        if mask is None and probability is None:
            mask = self._masks().astype(np.int8)
        return super().sample(mask=mask, probability=probability)

    def __reduce__(self) -> tuple[Any, ...]:
        # A saved model keeps its action space; it must not drag the environment and its instances along.
        return spaces.Discrete, (int(self.n),)


def _observation_space(max_nodes: int, features: int, volume: int) -> spaces.Dict:
    def numbers(low: float, high: float, *shape: int) -> spaces.Box:
        return spaces.Box(low, high, shape, np.float32)

    most = np.array([np.inf, np.inf, MOST_LEFT, 1], dtype=np.float32)
    parts: dict[str, spaces.Space[Any]] = {
        "nodes": numbers(-np.inf, np.inf, max_nodes, features + OWN),
        "standing": numbers(0, np.inf, max_nodes, STANDING),
        "parent": spaces.Box(0, max_nodes - 1, (max_nodes,), np.int64),
        "present": spaces.Box(0, 1, (max_nodes,), np.int8),
        "taken": spaces.Box(0, 1, (max_nodes,), np.int8),
        "last": spaces.Box(-1, max_nodes - 1, (1,), np.int64),
        "status": spaces.Box(np.zeros_like(most), most),
    }
    if volume:
        parts["volume"] = numbers(-np.inf, np.inf, volume)
    return spaces.Dict(parts)


def _fixed_part(instance: Instance, max_nodes: int, features: int, volume: int) -> DictObservation:
    """The part of an observation that does not change during an episode.

    Raises:
        ValueError: If the instance does not fit the shapes.
    """
    observed = observe(instance.tree, instance.cost_model, instance.features)
    regions, seen = len(observed.parent), observed.nodes.shape[1] - OWN
    if regions > max_nodes:
        raise ValueError(f"{instance.name} has {regions} regions, but max_nodes is {max_nodes}")
    if seen != features:
        raise ValueError(f"{instance.name} has {seen} features per region where {features} are expected")
    if volume and observed.volume.shape != (volume,):
        raise ValueError(
            f"{instance.name} has {observed.volume.size} features of the volume where {volume} are expected"
        )
    nodes = np.zeros((max_nodes, features + OWN), dtype=np.float32)
    standing = np.zeros((max_nodes, STANDING), dtype=np.float32)
    parent = np.arange(max_nodes, dtype=np.int64)
    present = np.zeros(max_nodes, dtype=np.int8)
    nodes[:regions], standing[:regions], parent[:regions], present[:regions] = (
        observed.nodes,
        observed.standing,
        observed.parent,
        1,
    )
    fixed: DictObservation = {"nodes": nodes, "standing": standing, "parent": parent, "present": present}
    return fixed | {"volume": observed.volume.astype(np.float32)} if volume else fixed
