"""Predicting what regions yield, and choosing by it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from assignnet import CostModel, Features, Roi, RoiTree, check_selection, greedy
from assignnet.choice.rules import in_space_order
from assignnet.learn.network import NetworkSize, stack
from assignnet.learn.observation import observe
from assignnet.learn.supervised import GainNetwork, choose_by_gains, predict_gains, train_gains, true_gains
from assignnet.value.instance import Instance, total_slots
from assignnet.value.oracle import oracle
from assignnet.value.synthetic import synthetic_instance
from assignnet.value.voxel_counts import count_outcomes
from canvas import Box

FEATURES = 12
SIZE = NetworkSize(features=FEATURES, width=32, layers=1)


def examples(seed: int, count: int, regions: int = 20) -> list[Instance]:
    random = np.random.default_rng(seed)
    return [synthetic_instance(random, regions, features=FEATURES) for _ in range(count)]


def disturbed(seed: int = 0, size: NetworkSize = SIZE) -> GainNetwork:
    """An untrained network."""
    torch.manual_seed(seed)
    return GainNetwork(size).eval()


def choose(network: GainNetwork, instance: Instance, **changes: float) -> tuple[Roi, ...]:
    cost_model = replace(instance.cost_model, **changes)
    observation = observe(instance.tree, cost_model, instance.features)
    return choose_by_gains(network, instance.tree, cost_model, observation, "dice")


def one_family(truth: list[int], labels: list[tuple[int, int, list[int]]], classes: tuple[int, ...]) -> Instance:
    """An instance on a line of voxels: true labels; start, stop and labels of each region, the parent first."""
    line = np.array(truth, np.uint8).reshape(1, 1, -1)
    boxes = [Box((0, 0, start), (1, 1, stop)) for start, stop, _ in labels]
    found = [
        ((slice(0, 1), slice(0, 1), slice(start, stop)), np.array(row, np.uint8).reshape(1, 1, -1))
        for start, stop, row in labels
    ]
    rois = [Roi(box, 0.9, float(box.shape[2])) for box in boxes]
    tree = RoiTree((rois[0],), (tuple(rois[1:]) or (rois[0],),), (1, 1, len(truth)))
    outcomes = count_outcomes(line, np.zeros_like(line), found, classes)
    return Instance("line", "line", tree, CostModel(slot=(1, 1, 4)), Features(), outcomes, 1.0)


# --- targets


def test_true_gains__one_class__counts_voxels() -> None:
    """Voxels by hand: found in each region, rightly found, and true in all, the missed ones included."""
    instance = one_family([1, 1, 1, 0, 1], [(0, 4, [0, 1, 1, 1]), (0, 2, [1, 1]), (2, 4, [0, 0])], (1,))
    gains = true_gains(instance)
    assert gains.common.tolist() == [2, 2, 0]
    assert gains.found.tolist() == [3, 2, 0]
    assert gains.true == 4


def test_true_gains__rare_class__weighs_as_much_as_a_common_one() -> None:
    """Two classes of 6 and 2 true voxels: each counts as 4, and finding half of either gives 2."""
    instance = one_family(
        [1, 1, 1, 1, 1, 1, 2, 2], [(0, 8, [1, 1, 1, 0, 0, 0, 0, 0]), (0, 3, [0, 0, 0]), (6, 8, [2, 1])], (1, 2)
    )
    gains = true_gains(instance)
    assert gains.true == 8
    np.testing.assert_allclose(gains.common, [2, 0, 2])
    np.testing.assert_allclose(gains.found, [2, 0, 2 + 4 / 6])


def test_true_gains__class_that_is_not_there__counts_as_it_is() -> None:
    """Without any true voxel there is nothing to be in proportion to."""
    instance = one_family([1, 1, 0, 0], [(0, 4, [1, 1, 2, 2])], (1, 2))
    gains = true_gains(instance)
    assert (gains.common.tolist(), gains.found.tolist(), gains.true) == ([2], [4], 2)
    nothing = true_gains(one_family([0, 0, 0, 0], [(0, 4, [1, 1, 0, 0])], (1,)))
    assert (nothing.common.tolist(), nothing.found.tolist(), nothing.true) == ([0], [2], 0)


# --- network


def test_gain_network__regions_in_another_order__predicts_in_that_order() -> None:
    """Regions are a set; the total does not depend on their order at all."""
    instance = examples(0, 1)[0]
    nodes, standing, parent, present, volume = stack([observe(instance.tree, instance.cost_model, instance.features)])
    order = torch.from_numpy(np.random.default_rng(1).permutation(parent.shape[1]))
    place = torch.argsort(order)
    network = disturbed()
    found, right, true = network(nodes, standing, parent, present, volume)
    turned = network(nodes[:, order], standing[:, order], place[parent[:, order]], present, volume)
    torch.testing.assert_close(turned[0], found[:, order])
    torch.testing.assert_close(turned[1], right[:, order])
    torch.testing.assert_close(turned[2], true)
    assert right.std() > 0


def test_gain_network__padding__changes_nothing() -> None:
    """A tree in a batch is seen as it is alone."""
    observations = [
        observe(one.tree, one.cost_model, one.features) for one in (*examples(0, 1), *examples(1, 1, regions=8))
    ]
    network = disturbed()
    together = network(*stack(observations))
    for row, observation in enumerate(observations):
        alone = network(*stack([observation]))
        for part, other in zip(together[:2], alone[:2], strict=True):
            torch.testing.assert_close(part[row, : len(observation.parent)], other[0])
        torch.testing.assert_close(together[2][row], alone[2][0])


@pytest.mark.parametrize("scale", [1.0, 1e6])
def test_predict_gains__any_network__gives_counts_that_can_be(scale: float) -> None:
    """Voxels rightly found are found, and true; what a plan cannot use (infinite, negative) does not occur."""
    instance = examples(0, 1)[0]
    network = disturbed()
    with torch.no_grad():
        for part in (network.region, network.total):
            part[-1].weight.mul_(scale)
        network.total[-1].bias.fill_(-3)
    gains = predict_gains(network, instance.tree, observe(instance.tree, instance.cost_model, instance.features))
    assert np.isfinite(gains.found).all()
    assert (gains.common >= 0).all()
    assert (gains.common <= gains.found).all()
    rows = {roi: row for row, roi in enumerate(instance.tree.rois)}
    leaves = [rows[leaf] for leaf in instance.tree.leaves]  # of a synthetic tree; they share nothing
    assert gains.true >= gains.common[leaves].sum() * (1 - 1e-9)


def test_predict_gains__children_that_overlap__find_common_voxels_once() -> None:
    """Two children that find 30 voxels each, half of them both, are right about 40 different ones."""
    boxes = Box((0, 0, 0), (4, 4, 12)), Box((0, 0, 0), (4, 4, 8)), Box((0, 0, 4), (4, 4, 12))
    whole, left, right = (Roi(box, 0.9, mass) for box, mass in zip(boxes, (80.0, 60.0, 60.0), strict=True))
    tree = RoiTree((whole,), ((left, right),), (8, 8, 16))
    network = disturbed(size=replace(SIZE, features=0))
    with torch.no_grad():
        network.region[-1].weight.zero_()
        network.region[-1].bias.zero_()
        network.total[-1].bias.fill_(-9)
    gains = predict_gains(network, tree, observe(tree, CostModel(slot=(4, 4, 8)), Features()))
    np.testing.assert_allclose(gains.found, [80, 60, 60], rtol=1e-5)
    np.testing.assert_allclose(gains.common, gains.found / 2, rtol=1e-5)
    assert gains.true == pytest.approx(40)


# --- choosing


def test_choose_by_gains__any_weight_and_budget__is_valid_and_in_the_order_of_space() -> None:
    """The dynamic programme's choice is one that the pipeline accepts, and within the budget."""
    for instance in examples(0, 3):
        total = total_slots(instance.tree, instance.cost_model)
        everything = choose(disturbed(), instance, weight=0.0)
        assert len(everything) > 2
        for share in (0.0, 0.2, 0.6):
            chosen = choose(disturbed(), instance, weight=0.01, budget=share * total)
            check_selection(instance.tree, chosen)
            assert instance.slots[instance.chosen(chosen)].sum() <= share * total + 1e-6
            assert chosen == in_space_order(chosen, instance.cost_model.slot)


def test_choose_by_gains__greater_weight__never_costs_more() -> None:
    """Lambda enters where the programme chooses; a high one leaves little, or nothing."""
    instance = examples(0, 1)[0]
    costs = [
        instance.slots[instance.chosen(choose(disturbed(), instance, weight=weight))].sum()
        for weight in (0.0, 0.3, 1.0, 100.0)
    ]
    assert costs == sorted(costs, reverse=True)
    assert costs[0] > costs[-1] == 0


# --- training


@pytest.fixture(scope="module")
def trained() -> GainNetwork:
    """On instances that the tests below never see again."""
    return train_gains(examples(1, 120), SIZE, epochs=25, seed=0)


@pytest.mark.long
def test_train_gains__held_out_instances__earn_more_than_rules(trained: GainNetwork) -> None:
    """At every weight, what is lost against the optimum is far less than the better of greedy's two ways loses.

    Choosing at random loses several times as much.
    """
    random = np.random.default_rng(0)
    rules: dict[str, Callable[[Instance, float], tuple[Roi, ...]]] = {
        "gains": lambda one, weight: choose(trained, one, weight=weight),
        "greedy": lambda one, weight: greedy(one.tree, replace(one.cost_model, weight=weight)),
        "greedy that drops": lambda one, weight: greedy(one.tree, replace(one.cost_model, weight=weight, drop=True)),
        "random": lambda one, weight: tuple(roi for roi in one.tree.parents if random.random() < 0.5),
    }
    held = examples(2, 30)
    for weight in (0.05, 0.2, 0.5):
        best = [oracle(one, "dice", weight).reward for one in held]
        lost = {
            name: sum(best) - sum(one.reward(rule(one, weight), "dice", weight) for one in held)
            for name, rule in rules.items()
        }
        assert lost["gains"] < 0.65 * min(lost["greedy"], lost["greedy that drops"]), (weight, lost)
        assert lost["gains"] < 0.3 * lost["random"], (weight, lost)
        assert lost["gains"] < 0.12 * sum(best), (weight, lost)


@pytest.mark.long
def test_train_gains__many_passes_over_few_instances__learns_them_by_heart() -> None:
    """The targets are what the loss leads to: voxels found, rightly found, and true."""
    few = [*examples(3, 2, regions=6), *examples(4, 1, regions=9)]
    network = train_gains(few, SIZE, epochs=400, seed=0, learning_rate=0.01)
    for instance in few:
        observation = observe(instance.tree, instance.cost_model, instance.features)
        found, right, true = (part[0].detach().double().numpy() for part in network(*stack([observation])))
        target, unit = true_gains(instance), instance.tree.mass
        close = 0.05 * target.true
        np.testing.assert_allclose(np.exp(found) * unit, target.found, atol=close)
        np.testing.assert_allclose(np.exp(found) * unit / (1 + np.exp(-right)), target.common, atol=close)
        assert np.exp(true[()]) * unit == pytest.approx(target.true, rel=0.05)


def test_train_gains__twice_with_a_seed__gives_the_same_network_and_disturbs_no_other() -> None:
    """The result depends on the arguments alone, and PyTorch's own random numbers go on as if nothing had happened."""
    torch.manual_seed(7)
    undisturbed = torch.rand(3)
    torch.manual_seed(7)
    one = train_gains(examples(0, 20), SIZE, epochs=2, seed=1).state_dict()
    assert torch.equal(torch.rand(3), undisturbed)
    two, other = (train_gains(examples(0, 20), SIZE, epochs=2, seed=seed).state_dict() for seed in (1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_train_gains__callbacks__are_told_after_every_pass() -> None:
    """Progress counts passes; who watches sees the network as it is then, in evaluation mode."""
    done, seen = [], []

    def watch(network: GainNetwork) -> None:
        seen.append((network.training, network.region[-1].weight.detach().clone()))

    network = train_gains(
        examples(0, 4), SIZE, epochs=3, seed=0, progress=lambda now, total: done.append((now, total)), watch=watch
    )
    assert done == [(1, 3), (2, 3), (3, 3)]
    assert [training for training, _ in seen] == [False] * 3
    assert not torch.equal(seen[0][1], seen[2][1])
    assert torch.equal(seen[2][1], network.region[-1].weight)
    assert not network.training


def test_train_gains__instances_without_regions_or_truth__are_survived() -> None:
    """A volume without any object teaches that everything found is wrong; one without regions teaches nothing."""
    empty = RoiTree((), (), (8, 8, 8))
    nothing = one_family([0, 0, 0, 0], [(0, 4, [1, 1, 0, 0])], (1,))
    bare = replace(nothing, tree=empty)
    network = train_gains([nothing, bare], replace(SIZE, features=0), epochs=30, seed=0, learning_rate=0.01)
    gains = predict_gains(network, nothing.tree, observe(nothing.tree, nothing.cost_model, nothing.features))
    assert gains.common[0] < 0.2 * gains.found[0]
    with pytest.raises(ValueError, match="at least one instance that has regions"):
        train_gains([bare], SIZE, epochs=1, seed=0)
