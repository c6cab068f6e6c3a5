"""Imitating the oracle: the network ends up choosing much as the oracle does on what it has seen."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from assign_examples import random_instance

from assignnet import Assigner, all_parents
from assignnet.learn.agent import Agent, AgentCard
from assignnet.learn.imitation import imitate
from assignnet.learn.network import AssignNetwork, NetworkSize
from assignnet.value.evaluate import Oracles, evaluate, oracles, summarise
from assignnet.value.instance import Instance
from assignnet.value.oracle import oracle
from assignnet.value.synthetic import synthetic_instance

SIZE = NetworkSize(4, width=16, layers=1, heads=2)
RANGE = (0.01, 0.5)
WEIGHTS = (0.02, 0.1, 0.4)


def network(seed: int = 0, size: NetworkSize = SIZE) -> AssignNetwork:
    torch.manual_seed(seed)
    return AssignNetwork(size)


def agent(trained: AssignNetwork) -> Agent:
    return Agent(AgentCard("policy", trained.size, {}, {}, "dice", RANGE, {}, {}), trained)


@pytest.fixture(scope="module")
def instances() -> list[Instance]:
    return [synthetic_instance(np.random.default_rng([0, index]), 10, features=4) for index in range(16)]


@pytest.fixture(scope="module")
def known(instances: list[Instance]) -> Oracles:
    return oracles(instances, "dice", WEIGHTS)


def shares(assigner: Assigner, instances: Sequence[Instance], known: Oracles) -> np.ndarray:
    """Of the oracle's reward, weight by weight."""
    rows = evaluate(assigner, instances, "dice", WEIGHTS, known=known)
    assert sum(row.invalid_actions for row in rows) == 0
    return np.array([summary.oracle_fraction for summary in summarise(rows).values()])


@pytest.mark.long
def test_imitate__instances_it_has_seen__earns_nearly_what_the_oracle_earns(
    instances: list[Instance], known: Oracles
) -> None:
    """At every lambda more than before and than the best rule without an eye on gains, on average by far."""
    learner = network()
    before, rule = shares(agent(learner), instances, known), shares(all_parents, instances, known)
    imitate(learner, instances, "dice", RANGE, passes=100, seed=0, learning_rate=0.01)
    after = shares(agent(learner), instances, known)
    assert (after > np.maximum(before, rule)).all(), (before, rule, after)
    assert after.mean() > max(before.mean(), rule.mean()) + 0.1
    assert after.min() > 0.9


@pytest.mark.long
def test_imitate__one_instance__makes_the_oracles_choice_and_stops() -> None:
    """With enough passes over one tree, nothing is left out and nothing is added, at low lambda and at high."""
    one = synthetic_instance(np.random.default_rng(8), 12, features=4)
    selections = []
    for weight in (0.01, 0.4):
        learner = network()
        imitate(learner, [one], "iou", (weight, weight), passes=200, seed=0, learning_rate=0.01)
        chosen = agent(learner)(one.tree, one.weighted(weight).cost_model, one.features)
        assert set(chosen) == set(oracle(one, "iou", weight).selection)
        selections.append(chosen)
    assert len(selections[0]) > len(selections[1]) > 2, "lambda makes a difference, or the test would prove little"


@pytest.mark.long
def test_imitate__lambda__is_what_the_choice_depends_on() -> None:
    """The same tree at different weights of cost: many regions where they are cheap, few where they are dear."""
    one = synthetic_instance(np.random.default_rng(8), 12, features=4)
    learner = network()
    imitate(learner, [one] * 16, "dice", (0.01, 2.0), passes=150, seed=0, learning_rate=0.01)
    weights = (0.02, 1.5)
    few, many = sorted((oracle(one, "dice", weight).selection for weight in weights), key=len)
    assert 0 < len(few) < len(many) - 3, "or the test would prove little"
    for weight in weights:
        chosen = agent(learner)(one.tree, one.weighted(weight).cost_model, one.features)
        best = oracle(one, "dice", weight)
        assert abs(len(chosen) - len(best.selection)) <= 1
        assert one.reward(chosen, "dice", weight) > 0.9 * best.reward


@pytest.mark.long
def test_imitate__twice_with_a_seed__gives_the_same_network(instances: list[Instance]) -> None:
    """The result depends on the network, the instances and the seed alone."""
    results = []
    for seed in (1, 1, 2):
        learner = network()
        np.random.seed(len(results))  # noqa: NPY002 - what others draw must not matter
        imitate(learner, instances, "dice", RANGE, passes=3, seed=seed)
        results.append(learner.state_dict())
    one, two, other = results
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("families", [[0], [0, 6], [6, 1]])
def test_imitate__trees_of_any_size__are_survived(families: list[int]) -> None:
    """A tree without regions, where only stopping is right, and batches of large and small ones; with all features."""
    size = NetworkSize(3, volume=2, start_label=True, width=16, layers=1, heads=2)
    some = [random_instance(seed, count, features=3, volume=2) for seed, count in enumerate(families)]
    learner = network(size=size)
    before = {name: value.clone() for name, value in learner.state_dict().items()}
    imitate(learner, some, "iou", RANGE, passes=2, seed=0)
    after = learner.state_dict()
    assert all(value.isfinite().all() for value in after.values())
    if max(families):
        assert not torch.equal(before["pointer.stop"], after["pointer.stop"])


@pytest.mark.parametrize(("count", "passes"), [(0, 3), (2, 0)])
def test_imitate__nothing_to_do__changes_nothing(instances: list[Instance], count: int, passes: int) -> None:
    """No instances, or no pass."""
    learner, same = network(), network()
    imitate(learner, instances[:count], "dice", RANGE, passes=passes, seed=0)
    assert all(torch.equal(value, same.state_dict()[name]) for name, value in learner.state_dict().items())
