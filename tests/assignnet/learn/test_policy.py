"""The network as a policy of PPO: what is valid, and the same numbers and choices as everywhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from assign_examples import random_instance
from gymnasium import spaces

from assignnet.learn.agent import Agent, AgentCard
from assignnet.learn.env import AssignEnv, DictObservation
from assignnet.learn.network import AssignNetwork, NetworkSize, stack
from assignnet.learn.observation import observe
from assignnet.learn.policy import AssignPolicy
from assignnet.value.instance import Instance, total_slots
from assignnet.value.reward import GainReward

MOST = 30
PLAIN = NetworkSize(4, width=16, layers=1, heads=2)
FULL = NetworkSize(4, volume=3, start_label=True, width=16, layers=2, heads=4)
SIZES = pytest.mark.parametrize("size", [PLAIN, FULL], ids=["plain", "full"])


def example(seed: int, size: NetworkSize = PLAIN) -> Instance:
    return random_instance(seed, families=7, features=size.features, volume=size.volume)


def environment(size: NetworkSize = PLAIN, limited: float = 0.5) -> AssignEnv:
    return AssignEnv(
        lambda random: example(int(random.integers(1000)), size),
        GainReward("dice"),
        max_nodes=MOST,
        features=size.features,
        volume=size.volume,
        limited=limited,
    )


def policy_for(env: AssignEnv, size: NetworkSize = PLAIN, seed: int = 0) -> AssignPolicy:
    """A policy whose scores differ much between regions, and for which stopping is rarely the best."""
    torch.manual_seed(seed)
    policy = AssignPolicy(env.observation_space, env.action_space, lambda _: 1e-3, size=size)
    pointer = policy.network.pointer
    with torch.no_grad():
        for parameter in policy.network.parameters():  # some begin as zeros, which hide what they are multiplied with
            parameter.add_(0.2 * torch.randn_like(parameter))
        pointer.stop.copy_(-pointer.key.weight.T @ pointer.score.weight[0].sign())
        pointer.score.weight.mul_(5)
    policy.set_training_mode(False)
    return policy


def agent_of(policy: AssignPolicy, size: NetworkSize) -> Agent:
    return Agent(AgentCard("policy", size, {}, {}, "dice", (0.01, 0.5), {}, {}), policy.network)


def some_moments(env: AssignEnv, count: int) -> tuple[list[DictObservation], np.ndarray]:
    """Observations from the midst of random episodes, and their masks, shape (count, actions)."""
    random, seen, masks = np.random.default_rng(0), [], []
    env.action_space.seed(0)
    while len(seen) < count:
        observation, over = env.reset(seed=len(seen))[0], False
        for _ in range(int(random.integers(0, 5))):
            valid = np.flatnonzero(env.action_masks()[1:])
            if not over and len(valid):
                observation, _, over, _, _ = env.step(1 + int(random.choice(valid)))
        seen.append(observation)
        masks.append(env.action_masks())
    return seen, np.array(masks)


def batched(observations: list[DictObservation]) -> dict[str, torch.Tensor]:
    """As PPO's buffer hands them over: every part as float32."""
    return {
        name: torch.from_numpy(np.stack([one[name] for one in observations]).astype(np.float32))
        for name in observations[0]
    }


@pytest.mark.long
@pytest.mark.parametrize("budget", [None, 0.0, 0.25, 0.6])
@SIZES
def test_policy__greedy_episodes__choose_what_the_agent_chooses(size: NetworkSize, budget: float | None) -> None:
    """The best valid action in the environment, step by step, is the agent's decoding, whatever lambda and budget."""
    env, lengths = environment(size), []
    policy = policy_for(env, size)
    agent = agent_of(policy, size)
    for seed in range(6):
        instance = example(seed, size)
        for weight in (0.01, 0.3):
            limit = np.inf if budget is None else budget
            observation, _ = env.reset(options={"instance": instance, "weight": weight, "budget": limit})
            over, info = False, {}
            while not over:
                action, _ = policy.predict(observation, deterministic=True, action_masks=env.action_masks())
                observation, _, over, _, info = env.step(int(action))
            slots = None if budget is None else budget * total_slots(instance.tree, instance.cost_model)
            cost_model = replace(instance.cost_model, weight=weight, budget=slots)
            assert info["selection"] == agent(instance.tree, cost_model, instance.features)
            lengths.append(len(info["selection"]))
    if budget == 0:
        assert max(lengths) == 0
    else:
        assert max(lengths) > (4 if budget is None else 1), "one choice proves little"
        assert len(set(lengths)) > 1


@SIZES
def test_policy__scores_and_values__are_those_of_the_network(size: NetworkSize) -> None:
    """Padding, other trees, and other moments of the same tree in a batch change nothing about an observation."""
    env = environment(size)
    policy = policy_for(env, size)
    observations, scores, values = [], [], []
    with torch.no_grad():
        for step, seed in enumerate((3, 4, 3, 5, 5, 3)):
            instance = example(seed, size)
            env.reset(options={"instance": instance, "weight": 0.2 + 0.1 * step, "budget": 1.5})
            row = int(np.flatnonzero(env.action_masks()[1:])[step])
            observations.append(env.step(1 + row)[0])
            scene = observe(instance.tree, instance.cost_model, instance.features)
            taken = torch.arange(len(scene.parent))[None] == row
            spent = float(scene.cost[row])
            status = torch.tensor([[0.2 + 0.1 * step, spent, 1.5 - spent, 1.0]])
            found = policy.network.pointer(policy.network.encoder(*stack([scene])), taken, torch.tensor([row]), status)
            scores.append(found[0][0])
            values.append(found[1][0])
        batch = batched(observations)
        logits = policy.get_distribution(batch).distribution.logits
        for row, score in enumerate(scores):
            difference = logits[row, : len(score)] - score
            torch.testing.assert_close(difference, difference[:1].expand_as(difference), atol=1e-5, rtol=0)
            assert score.std() > 0.1
        expected = torch.stack(values)[:, None]
        stop = torch.zeros(len(batch["last"]))
        for found in (policy.predict_values(batch), policy(batch)[1], policy.evaluate_actions(batch, stop)[0]):
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    assert len(set(expected.flatten().tolist())) == len(expected)


def test_policy__trees_that_differ_in_one_number__are_told_apart() -> None:
    """A batch's trees are encoded once each; equal ones share that, but one that differs shares it with none."""
    env = environment()
    policy = policy_for(env)
    base = env.reset(options={"instance": example(3), "weight": 0.1, "budget": 2.0})[0]
    observations = [base]
    for part, row, column in (("nodes", 0, 0), ("nodes", 2, 3), ("standing", 1, 5), ("nodes", 1, 10)):
        other = {name: value.copy() for name, value in base.items()}
        other[part][row, column] += 0.1
        observations += [other, base]

    def scores(some: list[DictObservation]) -> torch.Tensor:
        with torch.no_grad():
            return policy.get_distribution(batched(some)).distribution.logits

    alone = torch.cat([scores([one]) for one in observations])
    torch.testing.assert_close(scores(observations), alone, atol=1e-5, rtol=0)
    changes = (alone[1::2] - alone[0]).abs().amax(dim=1)
    assert changes.min() > 1e-3, "or taking one for the other would go unnoticed"


@pytest.mark.long
def test_policy__sampled_actions__are_always_valid() -> None:
    """Of thousands of samples none breaks a rule, though without masks most would; all valid ones occur."""
    env = environment()
    policy = policy_for(env)
    with torch.no_grad():
        policy.network.pointer.score.weight.mul_(0.1)  # scores close to each other, so that everything is sampled
    observations, masks = some_moments(env, 40)
    batch = batched(observations)
    drawn = np.zeros(masks.shape, int)
    unmasked = 0
    with torch.no_grad():
        for _ in range(150):
            actions, _, _ = policy(batch, action_masks=masks)
            drawn[np.arange(len(masks)), actions.numpy()] += 1
            unmasked += int((~masks[np.arange(len(masks)), policy(batch)[0].numpy()]).sum())
    assert not drawn[~masks].any()
    assert (drawn[masks] > 0).mean() > 0.95
    assert unmasked > 500


def by_hand(policy: AssignPolicy, batch: dict[str, torch.Tensor], masks: np.ndarray) -> np.ndarray:
    """Probabilities of actions: the softmax over the valid ones."""
    scores = policy.get_distribution(batch).distribution.logits.double().numpy()
    parts = np.where(masks, np.exp(scores - scores.max(axis=1, keepdims=True)), 0.0)
    return parts / parts.sum(axis=1, keepdims=True)


def test_policy__log_probabilities_and_entropy__are_those_over_valid_actions() -> None:
    """What PPO learns from is the distribution that it samples from, at sampling and at learning."""
    env = environment()
    policy = policy_for(env)
    observations, masks = some_moments(env, 20)
    batch = batched(observations)
    with torch.no_grad():
        share = by_hand(policy, batch, masks)
        actions, _, sampled = policy(batch, action_masks=masks)
        _, learned, entropy = policy.evaluate_actions(batch, actions, torch.from_numpy(masks))
    expected = np.log(share[np.arange(len(masks)), actions.numpy()])
    np.testing.assert_allclose(sampled.numpy(), expected, atol=1e-4)
    np.testing.assert_allclose(learned.numpy(), expected, atol=1e-4)
    assert entropy is not None
    surprise = -np.log(np.where(share > 0, share, 1.0))
    np.testing.assert_allclose(entropy.numpy(), (share * surprise).sum(axis=1), atol=1e-4)
    assert entropy.max() > 1


@pytest.mark.parametrize(
    "train", [lambda policy: policy.parameters(), lambda policy: policy.optimizer.param_groups[0]["params"]]
)
def test_policy__weights__are_exactly_the_networks(train: Callable[[AssignPolicy], object]) -> None:
    """Nothing but the agent's network is trained, so that nothing that is learned is lost with the policy."""
    policy = policy_for(environment())
    assert isinstance(policy.network, AssignNetwork)
    assert {id(one) for one in train(policy)} == {id(one) for one in policy.network.parameters()}


def test_policy__observation_that_is_no_dictionary__raises() -> None:
    """The network needs the parts of an observation by name."""
    policy = policy_for(environment())
    with pytest.raises(TypeError, match="a dictionary"):
        policy.predict_values(torch.zeros(1, 3))
    assert isinstance(policy.observation_space, spaces.Dict)
