"""The environment: the standard's own checkers, observations, masks, ends of episodes, and what is drawn."""

from __future__ import annotations

import pickle
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
from assign_examples import line, random_instance
from gymnasium import spaces
from gymnasium.error import ResetNeeded
from gymnasium.utils.env_checker import check_env
from hypothesis import given, settings
from hypothesis import strategies as st
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from stable_baselines3.common.vec_env import DummyVecEnv

from assignnet.choice.rules import check_selection
from assignnet.choice.tree import Features, RoiTree
from assignnet.learn.env import AssignEnv, SyntheticSource, UniformSource
from assignnet.learn.observation import observe
from assignnet.value.instance import Instance
from assignnet.value.reward import GainReward

relaxed = settings(deadline=None, max_examples=40)
STOP, WHOLE, LEFT, RIGHT, LEAF = range(5)
"""Actions in ``line``."""


def environment(*instances: Instance, **options) -> AssignEnv:
    """An environment over some instances, with room for one row of padding more than the largest needs."""
    options = {
        "max_nodes": max(len(instance.tree.rois) for instance in instances) + 1,
        "features": instances[0].features.nodes.shape[1],
        "volume": instances[0].features.volume.size,
        **options,
    }
    return AssignEnv(UniformSource(instances), GainReward("dice"), **options)


def bare(instance: Instance) -> Instance:
    """The same without a region."""
    features = Features(instance.features.nodes[:0], instance.features.volume)
    outcomes = replace(instance.outcomes, start=instance.outcomes.start * 0, node=instance.outcomes.node[:0])
    outcomes = replace(outcomes, label=outcomes.label[:0])
    return replace(instance, tree=RoiTree((), (), instance.tree.volume), features=features, outcomes=outcomes)


def forbidden(instance: Instance, chosen: list[int], row: int, budget: float) -> bool:
    """Whether taking a row breaks a rule, by what checks selections and by adding up slots."""
    rois = instance.tree.rois
    try:
        check_selection(instance.tree, [rois[one] for one in (*chosen, row)])
    except ValueError:
        return True
    slots = [instance.cost_model.slots(rois[one].box) for one in (*chosen, row)]
    return sum(slots) > budget * sum(instance.cost_model.slots(leaf.box) for leaf in instance.tree.leaves) * (1 + 1e-9)


# --- checkers


@pytest.mark.parametrize("volume", [0, 3])
@pytest.mark.parametrize("checker", [check_env, check_env_sb3])
def test_assign_env__checkers__find_no_error(checker, volume) -> None:
    """Gymnasium's and Stable-Baselines3's own checkers accept it, with random actions."""
    env = environment(random_instance(1, features=4, volume=volume), limited=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both warn of whatever is no image or plain vector
        checker(env)


def test_action_masks__vectorised__are_found_by_sb3_contrib() -> None:
    """The masks of all environments arrive where PPO looks for them."""
    vectorised = DummyVecEnv([lambda: environment(line()) for _ in range(2)])
    vectorised.reset()
    vectorised.step([LEFT, LEAF])
    assert get_action_masks(vectorised).tolist() == [[1, 0, 0, 1, 1, 0], [1, 1, 1, 1, 0, 0]]


def test_action_space__pickled__leaves_the_environment_behind() -> None:
    """A saved model keeps the action space, not the instances."""
    env = environment(random_instance(0))
    copy = pickle.loads(pickle.dumps(env.action_space))
    assert type(copy) is spaces.Discrete
    assert copy == env.action_space
    assert len(pickle.dumps(env.action_space)) < 1000


# --- reset


def test_reset__instance__shows_its_scene_and_padding() -> None:
    """Rows of the tree are those of the observation; padding is zero, absent, and its own parent."""
    instance = random_instance(2, features=4, volume=3)
    env = environment(instance, max_nodes=40)
    seen, info = env.reset(seed=0, options={"weight": 0.25, "budget": 0.5})
    observation, count = observe(instance.tree, instance.cost_model, instance.features), len(instance.tree.rois)
    for name in ("nodes", "standing", "parent"):
        np.testing.assert_array_equal(seen[name][:count], getattr(observation, name))
    np.testing.assert_array_equal(seen["volume"], instance.features.volume)
    assert not seen["nodes"][count:].any()
    assert not seen["standing"][count:].any()
    assert seen["parent"][count:].tolist() == list(range(count, 40))
    assert seen["present"].tolist() == [1] * count + [0] * (40 - count)
    assert (seen["taken"].any(), seen["last"].tolist(), info) == (False, [-1], {})
    assert seen["status"].tolist() == [0.25, 0, 0.5, 0]
    assert {name: (part.shape, str(part.dtype)) for name, part in seen.items()} == {
        "nodes": ((40, 11), "float32"),
        "standing": ((40, 12), "float32"),
        "parent": ((40,), "int64"),
        "present": ((40,), "int8"),
        "taken": ((40,), "int8"),
        "last": ((1,), "int64"),
        "status": ((4,), "float32"),
        "volume": ((3,), "float32"),
    }


def test_reset__same_seed__gives_the_same_episodes() -> None:
    """Two environments draw the same instances, weights and budgets; another seed draws others."""
    instances = [random_instance(seed) for seed in range(6)]

    def episodes(seed: int) -> list[list[float]]:
        env = environment(*instances, limited=0.5)
        return [
            [float(part.sum()) for part in env.reset(seed=seed if first else None)[0].values()]
            for first in [True, *[False] * 9]
        ]

    assert episodes(5) == episodes(5)
    assert episodes(5) != episodes(6)


def test_reset__many_episodes__draw_weights_uniform_in_the_logarithm() -> None:
    """Each of four equal parts of the range's logarithm gets a quarter of the episodes, and no more is drawn."""
    env = environment(line(), weights=(0.01, 0.16))
    env.reset(seed=0)
    drawn = np.array([env.reset()[0]["status"][0] for _ in range(2000)])
    shares = np.histogram(drawn, [0.01, 0.02, 0.04, 0.08, 0.16])[0] / 2000
    assert abs(shares - 0.25).max() < 0.04
    assert drawn.min() >= np.float32(0.01)
    assert drawn.max() <= np.float32(0.16)


def test_reset__limited_share__draws_budgets_for_it() -> None:
    """Three in ten episodes have a budget, uniform in 0.1 to 1; the others show the most that is shown, 2."""
    env = environment(line(), limited=0.3)
    env.reset(seed=0)
    drawn = np.array([env.reset()[0]["status"][2] for _ in range(2000)])
    limited = drawn[drawn < 2]
    assert abs(len(limited) / 2000 - 0.3) < 0.04
    assert abs(np.histogram(limited, [0.1, 0.4, 0.7, 1.0])[0] / len(limited) - 1 / 3).max() < 0.08


def test_reset__tree_larger_than_the_environment__raises_with_both_numbers() -> None:
    """Nothing is cut off silently."""
    env = environment(line(), max_nodes=3)
    with pytest.raises(ValueError, match=r"line/0 has 4 regions, but max_nodes is 3"):
        env.reset()


@pytest.mark.parametrize(
    ("options", "message"), [({"features": 5}, "4 features per region.* 5"), ({"volume": 2}, "3 features of the.* 2")]
)
def test_reset__other_number_of_features__raises_with_both_numbers(options, message) -> None:
    """An instance of another feature model is refused."""
    with pytest.raises(ValueError, match=message):
        environment(random_instance(1, features=4, volume=3), **options).reset()


def test_reset__volume_features_not_wanted__are_left_out() -> None:
    """An environment without global features takes instances that have some."""
    seen, _ = environment(random_instance(1, volume=3), volume=0).reset()
    assert "volume" not in seen


def test_reset__unknown_option__raises() -> None:
    """A misspelt option does not pass for a drawn value."""
    with pytest.raises(ValueError, match="weigth"):
        environment(line()).reset(options={"weigth": 0.1})


@pytest.mark.parametrize(
    "wrong",
    [{"max_nodes": 0}, {"features": -1}, {"weights": (0.0, 0.5)}, {"weights": (0.5, 0.1)}, {"limited": 1.5}],
)
def test_assign_env__argument_out_of_range__raises(wrong) -> None:
    """An environment that could not work cannot be built."""
    with pytest.raises(ValueError):
        environment(line(), **wrong)


# --- step


def test_step__line__follows_the_choices() -> None:
    """Taken rows, the last one, cost and budget left are those of left half, leaf, stop."""
    env = environment(line())
    env.reset(options={"weight": 0.3, "budget": 0.75})
    seen, reward, *ended, info = env.step(LEFT)
    assert (seen["taken"].tolist(), seen["last"].tolist()) == ([0, 1, 0, 0, 0], [1])
    assert seen["status"] == pytest.approx([0.3, 1 / 3, 0.75 - 1 / 3, 1])
    assert reward == pytest.approx(4 / 6 - 0.1)
    assert (ended, info) == ([False, False], {})
    seen, reward, *ended, info = env.step(LEAF)
    assert (seen["taken"].tolist(), seen["last"].tolist()) == ([0, 1, 0, 1, 0], [3])
    assert env.action_masks().tolist() == [True] + [False] * 5
    seen, reward, *ended, info = env.step(STOP)
    assert (reward, ended) == (0, [True, False])
    assert info["selection"] == (line().tree.rois[1], line().tree.rois[3])
    assert [info[name] for name in ("reward_sum", "quality", "cost")] == pytest.approx([0.8, 1, 2 / 3])


@relaxed
@given(st.integers(0, 10_000), st.sampled_from([0.0, 0.2, 0.5, 1.0, float("inf")]))
def test_action_masks__random_play__are_what_the_rules_allow(seed, budget) -> None:
    """At every step exactly the rows that keep the selection valid and within the budget are open, and no padding."""
    instance, random = random_instance(seed, side=2), np.random.default_rng(seed)
    env = environment(instance)
    env.reset(options={"budget": budget})
    chosen: list[int] = []
    while True:
        mask = env.action_masks()
        expected = [not forbidden(instance, chosen, row, budget) for row in range(len(instance.tree.rois))]
        assert mask.tolist() == [True, *expected, False]
        action = int(random.choice(np.flatnonzero(mask)))
        _, _, over, _, info = env.step(action)
        if over:
            break
        chosen.append(action - 1)
    selection = tuple(instance.tree.rois[row] for row in chosen)
    assert info["selection"] == selection


def test_action_masks__budget_for_all_children__lets_all_be_taken() -> None:
    """Rounding of sums does not stand in the way of the last child."""
    for seed in range(20):
        instance = random_instance(seed, families=12)
        env = environment(instance)
        env.reset(options={"budget": 1.0})
        rows = {roi: row for row, roi in enumerate(instance.tree.rois)}
        for leaf in instance.tree.leaves:
            seen, *_ = env.step(rows[leaf] + 1)
        assert seen["status"][2] == pytest.approx(0, abs=1e-6)
        assert seen["status"][2] >= 0


@relaxed
@given(st.integers(0, 10_000), st.floats(0.01, 2))
def test_step__random_play__sums_to_the_reward_of_the_selection(seed, weight) -> None:
    """Rewards, their sum, quality and cost in the last info agree with the instance's own."""
    instance = random_instance(seed, side=2)
    env = environment(instance)
    env.reset(options={"weight": weight})
    env.action_space.seed(seed)
    rewards, over = [], False
    while not over:
        _, reward, over, _, info = env.step(env.action_space.sample())
        rewards.append(reward)
    chosen = instance.chosen(info["selection"])
    assert sum(rewards) == pytest.approx(instance.reward(info["selection"], "dice", weight), abs=1e-12)
    assert info["reward_sum"] == pytest.approx(sum(rewards), abs=1e-12)
    assert info["quality"] == instance.outcomes.quality(chosen, "dice")
    every_leaf = instance.slots[instance.chosen(instance.tree.leaves)].sum()
    assert info["cost"] == pytest.approx(instance.slots[chosen].sum() / every_leaf)


@pytest.mark.parametrize("action", [-1, WHOLE, LEFT, 5, 6, 100])
def test_step__invalid_action__raises_and_changes_nothing(action) -> None:
    """After the left half: itself, its parent, padding and numbers out of range are refused."""
    env = environment(line())
    env.reset(options={"weight": 0.3})
    env.step(LEFT)
    with pytest.raises(ValueError, match=re.escape(f"action {action} ")):
        env.step(action)
    assert env.step(STOP)[4]["reward_sum"] == pytest.approx(4 / 6 - 0.1)


def test_step__no_episode__raises() -> None:
    """Neither before the first reset nor after the end is there anything to choose."""
    env = environment(line())
    with pytest.raises(ResetNeeded):
        env.step(STOP)
    env.reset()
    env.step(STOP)
    assert env.action_masks().tolist() == [True, False, False, False, False, False]
    with pytest.raises(ResetNeeded):
        env.step(STOP)


def test_step__tree_without_regions__can_only_stop() -> None:
    """An empty tree is an episode of one step worth nothing, with and without features."""
    for instance in (bare(line()), bare(random_instance(0, features=4, volume=3))):
        env = environment(instance, max_nodes=3)
        env.reset()
        assert env.action_masks().tolist() == [True, False, False, False]
        _, reward, over, _, info = env.step(STOP)
        assert (reward, over, info["selection"], info["cost"]) == (0, True, (), 0)


# --- sources


def test_uniform_source__many_draws__gives_each_as_often() -> None:
    """Four instances get a quarter of the draws each."""
    instances = [replace(line(), name=str(index)) for index in range(4)]
    source, random = UniformSource(instances), np.random.default_rng(0)
    drawn = [int(source(random).name) for _ in range(2000)]
    assert abs(np.bincount(drawn) / 2000 - 0.25).max() < 0.04


def test_uniform_source__no_instance__raises() -> None:
    """There must be something to draw."""
    with pytest.raises(ValueError, match="no instances"):
        UniformSource(())


def test_synthetic_source__same_random_state__makes_the_same_new_instances() -> None:
    """Every draw is another instance with the features asked for, and all comes from the generator."""
    source = SyntheticSource((5, 20), features=3)
    first, again = np.random.default_rng(3), np.random.default_rng(3)
    drawn = [source(first) for _ in range(5)]
    assert [instance.tree for instance in drawn] == [source(again).tree for _ in range(5)]
    assert len({instance.tree for instance in drawn}) == 5
    assert {instance.features.nodes.shape[1] for instance in drawn} == {3}


def test_synthetic_source__range_of_regions__asks_for_each_number(monkeypatch) -> None:
    """Both ends of the range occur."""
    asked = []
    monkeypatch.setattr("assignnet.learn.env.synthetic_instance", lambda _, regions, **__: asked.append(regions))
    source, random = SyntheticSource((2, 5)), np.random.default_rng(0)
    for _ in range(100):
        source(random)
    assert set(asked) == {2, 3, 4, 5}
