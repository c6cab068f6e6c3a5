"""Training: it earns more than before, depends on nothing but its arguments, and survives being killed."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from assign_examples import random_instance

from assignnet import Assigner
from assignnet.choice.rules import random_rule
from assignnet.learn import train
from assignnet.learn.agent import Agent, AgentCard, load_agent, save_agent
from assignnet.learn.env import AssignEnv
from assignnet.learn.network import AssignNetwork
from assignnet.learn.train import TrainSettings, checked_weights, copy_state, network_size, train_agent
from assignnet.value.evaluate import Row, evaluate, oracles, summarise
from assignnet.value.instance import Instance
from assignnet.value.synthetic import synthetic_instance

WEIGHTS = (0.02, 0.1, 0.4)
SHORT = TrainSettings(steps=2 * 8 * 6, environments=2, round_steps=8, rounds_between_checks=2, warm_start=1)
"""Six rounds, with a checkpoint after the second, fourth and last."""
GAINS = TrainSettings(kind="gains", steps=4)


def examples(seed: int, count: int, regions: int = 6) -> list[Instance]:
    return [synthetic_instance(np.random.default_rng([seed, index]), regions, features=4) for index in range(count)]


LEARN, HELD = examples(0, 4, regions=4), examples(1, 2, regions=7)  # larger trees than any that was learned from


def run(
    settings: TrainSettings,
    folder: Path,
    *,
    learn: Sequence[Instance] = LEARN,
    held: Sequence[Instance] = HELD,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Agent:
    return train_agent(
        learn, held, settings, folder, features={"source": "none"}, about={"cases": ["a"]}, progress=progress
    )


def same(one: Agent, other: Agent) -> bool:
    """Whether all weights are equal to the last bit."""
    first, second = one.network.state_dict(), other.network.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("agent") / "made" / "training"


@pytest.fixture(scope="module")
def uninterrupted(work: Path) -> Agent:
    return run(SHORT, work)


@pytest.fixture(scope="module")
def checkpoint(work: Path, uninterrupted: Agent) -> Path:
    return work / "checkpoint.pt"


# --- what it is good for


@pytest.mark.long
def test_train_agent__short_training__earns_more_on_unseen_instances_than_before_and_than_chance(
    tmp_path: Path,
) -> None:
    """A few thousand choices, far too few to be good, suffice to beat chance and untrained networks."""
    learn, choose, unseen = examples(1, 30), examples(2, 6), examples(3, 30)
    settings = TrainSettings(
        steps=3072, learning_rate=3e-3, environments=8, round_steps=16, rounds_between_checks=4, limited=0.2
    )
    known = oracles(unseen, "dice", WEIGHTS)

    def earned(assigner: Assigner) -> np.ndarray:
        rows = evaluate(assigner, unseen, "dice", WEIGHTS, known=known)
        assert sum(row.invalid_actions for row in rows) == 0
        return np.array([summary.oracle_fraction for summary in summarise(rows).values()])

    trained = run(settings, tmp_path, learn=learn, held=choose)
    reached = earned(trained)
    size, before = network_size(learn, settings), []
    for seed in range(4):
        torch.manual_seed(seed)
        untrained = Agent(AgentCard("policy", size, {}, {}, "dice", WEIGHTS[:2], {}, {}), AssignNetwork(size))
        before.append(earned(untrained))
    assert (reached > np.mean(before, axis=0) + 0.1).all()
    assert (reached > earned(random_rule) + 0.15).all()
    assert reached.mean() > 0.8


# --- it depends on its arguments alone


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        replace(SHORT, steps=16 * 2),
        replace(SHORT, steps=16 * 2, metric="iou", order=0.1, limited=0.7, start_label=True, warm_start=0),
        GAINS,
    ],
    ids=["policy", "policy with everything", "gains"],
)
def test_train_agent__twice_with_a_seed__gives_the_same_agent(settings: TrainSettings, tmp_path: Path) -> None:
    """Bit by bit, whatever other random numbers were drawn before; another seed gives another one."""
    np.random.seed(1)  # noqa: NPY002 - Stable-Baselines3 draws from the global generators
    one = run(settings, tmp_path / "one")
    two = run(settings, tmp_path / "two")
    other = run(replace(settings, seed=2), tmp_path / "other")
    assert same(one, two)
    assert not same(one, other)


class KilledError(Exception):
    pass


@pytest.mark.alone
@pytest.mark.parametrize("rounds", [1, 2, 5])
def test_train_agent__killed_and_resumed__ends_with_the_same_agent(
    rounds: int, tmp_path: Path, uninterrupted: Agent, checkpoint: Path
) -> None:
    """Before the first checkpoint, right after one, and between two: no trace of the interruption is left."""
    told: list[int] = []

    def kill(done: int, total: int) -> None:
        told.append(done)
        if len(told) == rounds:
            raise KilledError

    with pytest.raises(KilledError):
        run(SHORT, tmp_path, progress=kill)
    resumed = run(SHORT, tmp_path, progress=lambda done, total: told.append(done))
    assert same(resumed, uninterrupted)
    assert resumed.card == uninterrupted.card
    # The agent may be the best of an early round; the last one's weights are in the checkpoint.
    one, other = (torch.load(folder / "checkpoint.pt", weights_only=True) for folder in (tmp_path, checkpoint.parent))
    assert all(torch.equal(value, other["policy"][name]) for name, value in one["policy"].items())
    lost = rounds % SHORT.rounds_between_checks
    assert told == [16 * number for number in (*range(1, rounds + 1), *range(rounds - lost + 1, 7))]


def test_train_agent__finished_training__is_not_run_again(
    tmp_path: Path, checkpoint: Path, uninterrupted: Agent
) -> None:
    """Its result is still there, should writing the agent have failed."""
    shutil.copy(checkpoint, tmp_path)

    def refuse(done: int, total: int) -> None:
        raise AssertionError("a round was run")

    assert same(run(SHORT, tmp_path, progress=refuse), uninterrupted)


@pytest.mark.long
def test_train_agent__every_round__plays_episodes_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No environment begins a round with the seed of another one, or of an earlier round: it would see the same."""
    seeds = []

    class Spy(AssignEnv):
        def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
            if seed is not None:
                seeds.append(seed)
            return super().reset(seed=seed, options=options)

    monkeypatch.setattr(train, "AssignEnv", Spy)
    run(SHORT, tmp_path / "one")
    assert len(seeds) == 6 * 2
    run(replace(SHORT, seed=1), tmp_path / "other")
    assert len(set(seeds)) == len(seeds) == 2 * 6 * 2


@pytest.mark.parametrize("seed", [5000, 2**32 - 1])
def test_train_agent__large_seed__is_one_like_any_other(seed: int, tmp_path: Path) -> None:
    """All that NumPy's old generator, which Stable-Baselines3 seeds, can take."""
    assert run(replace(SHORT, steps=16, seed=seed), tmp_path).card.training["settings"]["seed"] == seed


@pytest.mark.long
def test_train_agent__trees_with_too_many_regions__are_not_learned_from(tmp_path: Path) -> None:
    """They would make every observation as large as theirs; if there are no others, that is an error."""
    settings, large = replace(SHORT, steps=32, most=4), examples(4, 1, regions=5)
    one = run(settings, tmp_path / "one", learn=[*large, *LEARN])
    assert same(one, run(settings, tmp_path / "other"))
    assert not same(one, run(replace(settings, most=5), tmp_path / "more", learn=[*large, *LEARN]))
    with pytest.raises(ValueError, match="every tree has more than 4 regions"):
        run(settings, tmp_path / "none", learn=large)


# --- checkpoints


@pytest.mark.parametrize(
    ("changed", "learn", "held"),
    [
        ({"learning_rate": 2e-3}, LEARN, HELD),
        ({"steps": SHORT.steps + 16}, LEARN, HELD),
        ({"metric": "iou"}, LEARN, HELD),
        ({}, LEARN[:-1], HELD),
        ({}, LEARN, HELD[:-1]),
        ({}, [*LEARN[:-1], examples(5, 1)[0]], HELD),
        ({}, *([random_instance(seed, 3, features=5) for seed in range(2)] for _ in range(2))),
    ],
    ids=["rate", "steps", "metric", "fewer", "fewer to validate", "another instance", "other features"],
)
def test_train_agent__checkpoint_of_something_else__is_refused(
    changed: dict[str, Any], learn: list[Instance], held: list[Instance], checkpoint: Path, tmp_path: Path
) -> None:
    """Going on with other settings or other instances would give an agent that nobody could get again."""
    shutil.copy(checkpoint, tmp_path)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    with pytest.raises(ValueError, match=r"checkpoint\.pt is of a training with other settings or instances: remove"):
        run(replace(SHORT, **changed), tmp_path, learn=learn, held=held)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_train_agent__its_folder__holds_a_checkpoint_without_code_and_curves(checkpoint: Path) -> None:
    """The checkpoint loads without unpickling objects, and no half-written file is left beside it."""
    assert sorted(path.name for path in checkpoint.parent.iterdir()) == ["checkpoint.pt", "tensorboard"]
    assert any((checkpoint.parent / "tensorboard").glob("events*"))
    state = torch.load(checkpoint, weights_only=True)
    assert (state["round"], state["steps"]) == (6, SHORT.steps)


@pytest.mark.long
def test_train_agent__without_tensorboard__learns_the_same_and_keeps_no_curves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Curves are for people; what is learned does not depend on them."""
    settings = replace(SHORT, steps=32)
    with_curves = run(settings, tmp_path / "with")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)  # cannot be imported
    assert same(run(settings, tmp_path / "without"), with_curves)
    assert [path.name for path in (tmp_path / "without").iterdir()] == ["checkpoint.pt"]


# --- which network it returns


@pytest.mark.long
@pytest.mark.parametrize("best", [0, 2])
@pytest.mark.parametrize("settings", [SHORT, GAINS], ids=["policy", "gains"])
def test_train_agent__networks_seen_meanwhile__the_best_on_validation_is_returned(
    settings: TrainSettings, best: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Four are evaluated on the validation instances; whichever earns most is the agent, after resuming too."""
    seen: list[dict[str, torch.Tensor]] = []

    def fake(agent: Agent, instances: Sequence[Instance], *arguments: Any, **options: Any) -> list[Row]:
        assert list(instances) == HELD
        assert arguments == (settings.metric, checked_weights(settings))
        rows = evaluate(agent, instances, *arguments, **options)
        seen.append(copy_state(agent.network))
        return [replace(row, reward=float(len(seen) - 1 == best)) for row in rows]

    def kill(done: int, total: int) -> None:
        if settings is SHORT and done == 5 * 16:
            raise KilledError

    monkeypatch.setattr(train, "evaluate", fake)
    if settings is SHORT:
        with pytest.raises(KilledError):
            run(settings, tmp_path, progress=kill)
    network = run(settings, tmp_path).network.state_dict()
    assert len(seen) == 4
    assert [all(torch.equal(state[name], network[name]) for name in state) for state in seen].index(True) == best
    assert not torch.equal(*(state["encoder.own.weight"] for state in (seen[0], seen[-1])))


@pytest.mark.parametrize("settings", [SHORT, GAINS], ids=["policy", "gains"])
@pytest.mark.parametrize("packing", ["same_size", "same_scale"])
def test_train_agent__its_card__says_what_it_was_trained_for(
    settings: TrainSettings, packing: str, tmp_path: Path
) -> None:
    """The agent can be written and read, and its card has all that tells whether it fits a run."""
    context = None if packing == "same_size" else (1, 1, 1)
    some = [random_instance(seed, 3, features=2, volume=3) for seed in range(3)]
    some = [replace(one, cost_model=replace(one.cost_model, context=context)) for one in some]
    agent = run(replace(settings, steps=1), tmp_path / "work", learn=some[:2], held=some[2:])
    save_agent(tmp_path / "agent", agent)
    card = load_agent(tmp_path / "agent").card
    assert card.problem == {"packing": packing, "large": "resize", "slot": [6, 6, 6], "native": [5, 5, 5]}
    assert (card.kind, card.metric, card.weights) == (settings.kind, "dice", (0.01, 0.5))
    assert (card.network.features, card.network.volume) == (2, 3)
    assert card.features == {"source": "none"}
    assert card.training["cases"] == ["a"]
    assert card.training["settings"]["learning_rate"] == settings.learning_rate


# --- small parts


def test_network_size__instances_of_different_features__raises() -> None:
    """One network cannot see features of two lengths, nor none at all."""
    two, three = (random_instance(0, 2, features=count) for count in (2, 3))
    with pytest.raises(ValueError, match="features of one length"):
        network_size([two, three], SHORT)
    with pytest.raises(ValueError, match="features of one length"):
        network_size([], SHORT)


def test_checked_weights__range__is_covered_from_end_to_end() -> None:
    """Networks are compared at the range's ends and evenly, in its logarithm, between them."""
    weights = checked_weights(replace(SHORT, weights=(0.01, 0.27)))
    assert weights == pytest.approx((0.01, 0.03, 0.09, 0.27))
