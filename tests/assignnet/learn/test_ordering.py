"""Agents that put regions in order for work that may be cut off: nothing is left out, what gains most comes first."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from agent_examples import example, gains, policy, run

from assignnet import check_selection
from assignnet.learn.agent import Agent, load_agent, save_agent
from assignnet.learn.env import STOP, AssignEnv
from assignnet.learn.observation import observe
from assignnet.learn.supervised import GainNetwork, predict_gains
from assignnet.learn.train import TrainSettings, train_agent
from assignnet.value.anytime import order_area
from assignnet.value.instance import Instance
from assignnet.value.reward import AnytimeReward
from assignnet.value.synthetic import synthetic_instance


def anytime(agent: Agent) -> Agent:
    """The same network, as if it had been trained for an order."""
    return Agent(replace(agent.card, training={"settings": {"anytime": True}}), agent.network)


def assert_complete(instance: Instance, rows: list[int]) -> None:
    """Every family is there, as a parent or as its children."""
    rois, taken = instance.tree.rois, set(rows)
    check_selection(instance.tree, [rois[row] for row in rows])
    for parent, children in zip(instance.tree.parents, instance.tree.children, strict=True):
        assert rois.index(parent) in taken or {rois.index(child) for child in children} <= taken


@pytest.mark.parametrize("make", [policy, gains])
@pytest.mark.parametrize("seed", range(3))
def test_agent__trained_for_an_order__leaves_nothing_out(make: Callable[[int], Agent], seed: int) -> None:
    """Whatever a region costs, and however small a budget; as another agent the same network leaves some out."""
    instance = example(seed)
    ordered = run(anytime(make(seed)), instance, weight=50.0)
    assert_complete(instance, ordered)
    assert len(run(make(seed), instance, weight=50.0, budget=3.0)) < len(ordered)


def test_order_by_gains__first_region__has_the_best_predicted_rate() -> None:
    """Computed from the predicted counts: quality with it alone, over its cost."""
    agent, instance = anytime(gains(4)), example(4)
    assert isinstance(agent.network, GainNetwork)
    seen = observe(instance.tree, instance.cost_model, instance.features)
    counts = predict_gains(agent.network, instance.tree, seen)
    rates = 2 * counts.common / (counts.found + counts.true) / instance.slots
    assert run(agent, instance)[0] == int(np.argmax(rates))


@pytest.mark.parametrize("settings", [None, [], {"anytime": "yes"}, {}, {"anytime": False}])
def test_anytime__card_that_does_not_say_so__is_no_order(settings: object, tmp_path: Path) -> None:
    """Cards are strangers' files; what ``training`` holds may be anything."""
    agent = gains()
    save_agent(tmp_path, Agent(replace(agent.card, training={"settings": settings}), agent.network))
    assert not load_agent(tmp_path).card.anytime
    save_agent(tmp_path, anytime(agent))
    assert load_agent(tmp_path).card.anytime


def test_action_masks__complete_episodes__stop_only_at_the_end() -> None:
    """The reward of an episode is the area that its order reaches, less that of nothing."""
    instance, random = example(1), np.random.default_rng(0)
    env = AssignEnv(
        lambda random: instance, AnytimeReward("dice"), max_nodes=40, features=3, complete=True, weights=(0.1, 0.2)
    )
    env.reset(seed=0)
    rows, earned, over = list[int](), 0.0, False
    while not over:
        mask = env.action_masks()
        assert mask[STOP] == (not mask[1:].any())
        action = int(random.choice(np.flatnonzero(mask)))
        rows += [action - 1] if action != STOP else []
        _, reward, over, _, info = env.step(action)
        earned += reward
    assert_complete(instance, rows)
    nothing = instance.outcomes.quality(np.zeros(len(instance.tree.rois), bool), "dice")
    assert nothing + earned == pytest.approx(order_area(instance, info["selection"], "dice"))


@pytest.mark.parametrize(
    "settings",
    [
        TrainSettings(kind="gains", steps=2, anytime=True),
        TrainSettings(steps=32, environments=2, round_steps=8, rounds_between_checks=1, warm_start=1, anytime=True),
    ],
)
def test_train_agent__anytime__gives_one_that_leaves_nothing_out(settings: TrainSettings, tmp_path: Path) -> None:
    """The card says so, and a copy that is read again does the same."""
    made = [synthetic_instance(np.random.default_rng(seed), 6, features=3) for seed in range(4)]
    torch.manual_seed(0)
    agent = train_agent(made[:3], made[3:], settings, tmp_path, features={"source": "fine"}, about={})
    assert agent.card.anytime
    rows = run(agent, made[3])
    assert_complete(made[3], rows)
