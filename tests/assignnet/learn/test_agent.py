"""Choosing with a trained agent, and runs that it does not fit."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from agent_examples import CARD, FEATURES, SIZE, example, gains, policy, run

from assignnet import CostModel, Features, RoiTree, check_selection
from assignnet.learn.agent import Agent, check_fit
from assignnet.learn.env import AssignEnv
from assignnet.learn.network import AssignNetwork
from assignnet.learn.supervised import GainNetwork
from assignnet.value.instance import Instance, total_slots
from assignnet.value.reward import GainReward


def played(agent: Agent, instance: Instance, weight: float, budget: float) -> list[int]:
    """Rows that the best valid scores choose in the environment in which agents are trained."""
    most = len(instance.tree.rois) + 5
    env = AssignEnv(lambda random: instance, GainReward("dice"), max_nodes=most, features=FEATURES)
    seen, _ = env.reset(options={"weight": weight, "budget": budget})
    over, rows = False, []
    while not over:
        batch = {name: torch.from_numpy(part)[None] for name, part in seen.items()}
        with torch.no_grad():
            present = batch["present"].bool()
            encoded = agent.network.encoder(
                batch["nodes"], batch["standing"], batch["parent"], present, torch.zeros(1, 0)
            )
            scores, _ = agent.network.pointer(encoded, batch["taken"].bool(), batch["last"][:, 0], batch["status"])
        action = int(np.where(env.action_masks(), scores[0].numpy(), -np.inf).argmax())
        rows.append(action - 1)
        seen, _, over, _, _ = env.step(action)
    return rows[:-1]


# --- choosing


@pytest.mark.parametrize(("weight", "budget"), [(0.1, np.inf), (0.1, 0.3), (20.0, np.inf)])
def test_agent__policy__chooses_what_its_scores_choose_in_the_environment(weight: float, budget: float) -> None:
    """What an agent sees and may do is the same in use as in training, padding and masks included."""
    lengths = []
    for seed in range(6):
        agent, instance = policy(seed, eager=0.6), example(seed)
        slots = None if budget == np.inf else budget * total_slots(instance.tree, instance.cost_model)
        expected = played(agent, instance, weight, budget)
        assert run(agent, instance, weight=weight, budget=slots) == expected
        lengths.append(len(expected))
    assert sum(length > 3 for length in lengths) >= 2, "the test needs agents that choose much"


@pytest.mark.parametrize("make", [policy, gains])
@pytest.mark.parametrize("share", [None, 0.0, 0.15, 0.5, 1.0])
def test_agent__any_budget__is_kept_by_a_valid_selection(make: Callable[[int], Agent], share: float | None) -> None:
    """No region is chosen twice or beside its parent, and the selection costs no more than the budget."""
    for seed in range(3):
        instance = example(seed)
        budget = None if share is None else share * total_slots(instance.tree, instance.cost_model)
        rows = run(make(seed), instance, weight=0.01, budget=budget)
        check_selection(instance.tree, [instance.tree.rois[row] for row in rows])
        assert budget is None or instance.slots[rows].sum() <= budget + 1e-6
        assert rows or share in (0.0, 0.15)


@pytest.mark.parametrize("make", [policy, gains])
def test_agent__families_in_another_order__chooses_the_same_regions(make: Callable[[], Agent]) -> None:
    """An agent sees a set: how the tree is written down does not matter."""
    instance, agent = example(), make()
    tree, rois = instance.tree, instance.tree.rois
    turned = RoiTree(tree.parents[::-1], tree.children[::-1], tree.volume)
    features = Features(instance.features.nodes[[rois.index(roi) for roi in turned.rois]])
    chosen = agent(tree, instance.cost_model, instance.features)
    assert agent(turned, instance.cost_model, features) == chosen
    assert len(chosen) > 2


def test_agent__policy__encodes_a_tree_once() -> None:
    """Only the pointer runs for every choice, which is what makes an agent fast."""
    agent, calls = policy(), []
    agent.network.encoder.register_forward_hook(lambda *_: calls.append(1))
    assert len(run(agent, example())) > 2
    assert len(calls) == 1


def test_agent__equal_scores__stops_first_and_takes_the_lowest_row_next() -> None:
    """Ties do not depend on the machine."""
    agent, instance = policy(), example()
    with torch.no_grad():
        agent.network.pointer.score.weight.zero_()
    assert run(agent, instance) == []


@pytest.mark.parametrize("make", [policy, gains])
def test_agent__no_region__chooses_nothing(make: Callable[[], Agent]) -> None:
    """An empty heatmap gives an empty tree, for which nobody computes features."""
    assert make()(RoiTree((), (), (8, 8, 8)), CostModel(slot=(8, 8, 8))) == ()


def test_agent__other_features__are_refused() -> None:
    """Features of another number, or not finite, are an error and not a bad choice."""
    agent, instance = policy(), example()
    few = Features(instance.features.nodes[:, 1:])
    with pytest.raises(ValueError, match=r"2 features per region .* trained with 3"):
        agent(instance.tree, instance.cost_model, few)
    broken = instance.features.nodes.copy()
    broken[4, 1] = np.nan
    with pytest.raises(ValueError, match="not finite"):
        agent(instance.tree, instance.cost_model, Features(broken))
    with pytest.raises(ValueError, match=r"0 of the volume, .* trained with 3 and 4"):
        policy(size=replace(SIZE, volume=4))(instance.tree, instance.cost_model, instance.features)


def test_agent__another_network_than_the_card_says__is_refused() -> None:
    """Kind and size on the card are those of the network."""
    with pytest.raises(ValueError, match="GainNetwork"):
        Agent(CARD, GainNetwork(SIZE))
    with pytest.raises(ValueError, match="width"):
        Agent(CARD, AssignNetwork(replace(SIZE, width=32)))


# --- fit


def test_check_fit__the_run_it_was_trained_for__has_no_reason() -> None:
    """Names that one side lacks are not compared, nor is the size of a slot."""
    features = {"source": "fine", "fingerprint": "ab" * 32, "pooling_mode": "max"}
    assert check_fit(CARD, features=features, cost_model=CostModel(slot=(12, 12, 12)), count=3, volume=9) == []


def test_check_fit__another_run__gives_every_reason() -> None:
    """Each reason names the setting and both values."""
    features = {"source": "coarse", "fingerprint": "cd" * 32, "downsample_mode": "center"}
    cost_model = CostModel(slot=(8, 8, 8), large="native", context=(1, 1, 1))
    reasons = check_fit(CARD, features=features, cost_model=cost_model, count=7)
    assert len(reasons) == 5
    for text, expected in [
        ("features.source", "'coarse', but the agent was trained with 'fine'"),
        ("features.fingerprint", "cdcd"),
        ("problem.packing", "'same_scale', but the agent was trained with 'same_size'"),
        ("problem.large", "'native', but the agent was trained with 'resize'"),
        ("features per region", "7, but the agent was trained with 3"),
    ]:
        assert [reason for reason in reasons if text in reason and expected in reason]
