"""The network treats regions as a set, ignores padding, and uses its options where it should."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from assign_examples import random_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet.choice.tree import Features
from assignnet.learn.network import CLIP, AssignNetwork, NetworkSize, stack
from assignnet.learn.observation import OWN, PLACE, STANDING, Observation, observe

FEATURES, VOLUME = 5, 3
EXACT = {"rtol": 1e-4, "atol": 1e-5}
"""Rounding of single precision; sums over regions may be taken in another order."""
relaxed = settings(deadline=None, max_examples=25)


def network(**size) -> AssignNetwork:
    """A network whose parameters, those that begin at zero too, are all random."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        made = AssignNetwork(NetworkSize(FEATURES, **{"width": 16, **size}))
        with torch.no_grad():
            for value in made.parameters():
                value += 0.1 * torch.randn_like(value)
    return made.eval()


def observation(seed: int, families: int = 5) -> Observation:
    instance = random_instance(seed, families, features=FEATURES, volume=VOLUME)
    return observe(instance.tree, instance.cost_model, instance.features)


def scores(
    made: AssignNetwork, *parts: torch.Tensor, chosen: list[int] | None = None, spent: float = 0.2
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores and values of a batch in which the same rows have been chosen."""
    batch, rows = parts[0].shape[:2]
    taken = torch.zeros(batch, rows, dtype=torch.bool)
    taken[:, chosen or []] = True
    last = torch.full((batch,), chosen[-1] if chosen else -1)
    status = torch.tensor([[0.1, spent, 2.0, float(bool(chosen))]]).expand(batch, 4)
    with torch.no_grad():
        return made.pointer(made.encoder(*parts), taken, last, status)


@relaxed
@given(st.integers(0, 1000), st.randoms(use_true_random=False), st.sampled_from([0, 1, 2]))
def test_network__regions_permuted__permutes_the_scores(seed, shuffler, choices) -> None:
    """The order in which regions are listed, parents included, says nothing."""
    made = network(volume=VOLUME, start_label=True)
    nodes, standing, parent, present, volume = stack([observation(seed)])
    rows = nodes.shape[1]
    order = list(range(rows))
    shuffler.shuffle(order)
    place = torch.empty(rows, dtype=torch.int64)
    place[order] = torch.arange(rows)
    chosen = shuffler.sample(range(rows), choices)
    expected, value = scores(made, nodes, standing, parent, present, volume, chosen=chosen)
    moved = nodes[:, order], standing[:, order], place[parent[:, order]], present[:, order], volume
    found, other_value = scores(made, *moved, chosen=place[chosen].tolist())
    torch.testing.assert_close(found[:, 1:], expected[:, 1:][:, order], **EXACT)
    torch.testing.assert_close(found[:, 0], expected[:, 0], **EXACT)
    torch.testing.assert_close(other_value, value, **EXACT)
    assert expected.std() > 0.01  # all the same would agree in any order


@relaxed
@given(st.integers(0, 1000), st.integers(1, 30), st.sampled_from([[], [1], [2, 0]]))
def test_network__padding__changes_no_score_of_a_region(seed, padding, chosen) -> None:
    """Rows that are no regions have no say, whatever they hold."""
    made = network(volume=VOLUME, start_label=True)
    parts = stack([observation(seed)])
    rows = parts[0].shape[1]
    expected, value = scores(made, *parts, chosen=chosen)
    nodes, standing, parent, present, volume = stack([observation(seed)], rows + padding)
    nodes[:, rows:], standing[:, rows:] = 7.0, 3.0
    found, other_value = scores(made, nodes, standing, parent, present, volume, chosen=chosen)
    assert found.shape[1] == rows + padding + 1
    torch.testing.assert_close(found[:, : rows + 1], expected, **EXACT)
    torch.testing.assert_close(other_value, value, **EXACT)


def test_stack__scenes_of_different_sizes__score_as_each_alone() -> None:
    """A batch is only a faster way to look at several trees."""
    made = network(volume=VOLUME)
    observations = [observation(seed, families) for seed, families in enumerate([6, 1, 3])]
    found, values = scores(made, *stack(observations), chosen=[0])
    for index, one in enumerate(observations):
        expected, value = scores(made, *stack([one]), chosen=[0])
        torch.testing.assert_close(found[index, : len(one.parent) + 1], expected[0], **EXACT)
        torch.testing.assert_close(values[index], value[0], **EXACT)


@relaxed
@given(st.integers(0, 1000))
def test_encoder__families__hear_of_their_parents_and_children(seed) -> None:
    """From above comes the parent's vector, one's own without a parent; from below the sum of the children's."""
    made, one = network(), observation(seed)
    heard: dict[str, torch.Tensor] = {}
    for name in ("above", "below"):
        getattr(made.encoder, name).register_forward_hook(
            lambda module, inputs, output, name=name: heard.update({name: inputs[0][0]})
        )
    nodes, standing, *rest = stack([one])
    scores(made, nodes, standing, *rest)
    with torch.no_grad():
        own = made.encoder.own(torch.cat([nodes[0, :, FEATURES:], standing[0, :, :-PLACE]], dim=1))
        vectors = torch.nn.functional.gelu(own + made.encoder.seen(nodes[0, :, :FEATURES]))
    for row, parent in enumerate(one.parent.tolist()):
        children = [other for other, above in enumerate(one.parent.tolist()) if above == row != other]
        torch.testing.assert_close(heard["above"][row], vectors[parent], **EXACT)
        torch.testing.assert_close(heard["below"][row], vectors[children].sum(dim=0), **EXACT)


def test_network__start_label__changes_the_first_scores_only() -> None:
    """The learned token stands in for the last choice where there is none, and nowhere else."""
    labelled, plain = network(start_label=True), network()
    state = labelled.state_dict()
    assert state.pop("pointer.start").abs().min() > 0
    plain.load_state_dict(state)
    parts = stack([observation(0)])
    assert (scores(labelled, *parts)[0] - scores(plain, *parts)[0]).abs().max() > 1e-3
    for chosen in ([0], [2, 1]):
        torch.testing.assert_close(scores(labelled, *parts, chosen=chosen), scores(plain, *parts, chosen=chosen))


def test_network__choices_so_far__change_the_scores() -> None:
    """What is taken, which came last, and how far the choice has come all count."""
    made, parts = network(), stack([observation(0)])
    reference = scores(made, *parts, chosen=[0, 1])[0]
    for options in ({"chosen": [1, 0]}, {"chosen": [2, 1]}, {"chosen": [0, 1], "spent": 0.3}):
        assert (scores(made, *parts, **options)[0] - reference).abs().max() > 1e-4


@pytest.mark.parametrize("others", [0, 1])
@pytest.mark.parametrize("rows", [1, 4])
def test_network__tree_without_regions__gives_finite_scores_and_gradients(rows, others) -> None:
    """An empty tree, alone or beside another one in a batch, spoils neither choosing nor learning."""
    made = network(volume=VOLUME, start_label=True)
    nothing = Observation(
        np.zeros((0, FEATURES + OWN), np.float32),
        np.zeros((0, STANDING), np.float32),
        np.zeros(0, np.int64),
        np.zeros(VOLUME, np.float32),
    )
    observations = [nothing] + [observation(0, families=1)] * others
    parts = stack(observations, max([rows, *(len(one.parent) for one in observations)]))
    encoded = made.encoder(*parts)
    assert all(part.isfinite().all() for part in scores(made, *parts))  # without gradients, torch computes differently
    last = torch.full((len(observations),), -1)
    found, values = made.pointer(encoded, torch.zeros_like(parts[3]), last, torch.zeros(len(observations), 4))
    assert found.isfinite().all()
    assert values.isfinite().all()
    (found[:, 0].sum() + values.sum()).backward()
    assert all(value.grad.isfinite().all() for value in made.parameters() if value.grad is not None)


@pytest.mark.parametrize("size", [0, VOLUME])
def test_network__features_of_the_volume__change_scores_only_if_it_has_them(size) -> None:
    """Without ``global_info`` nothing of the whole volume reaches a score."""
    made = network(volume=size)
    *parts, volume = stack([observation(0)])
    changed = (scores(made, *parts, volume)[0] - scores(made, *parts, volume[:, [1, 2, 0]])[0]).abs().max()
    assert (changed > 1e-4) == (size > 0)


def test_network__features_of_a_region__change_its_score() -> None:
    """A network with features uses them; one without looks at the rest."""
    made = network()
    nodes, *parts = stack([observation(0)])
    other = nodes.clone()
    other[0, 0, 0] += 1
    assert (scores(made, nodes, *parts)[0] - scores(made, other, *parts)[0])[0, 1].abs() > 1e-4
    blind = AssignNetwork(NetworkSize(0, width=16))
    instance = random_instance(0)
    assert blind.encoder.seen is None
    assert scores(blind, *stack([observe(instance.tree, instance.cost_model, Features())]))[0].isfinite().all()


def test_network__huge_inputs__keep_scores_within_the_clip() -> None:
    """Scores stay where exploration does not die."""
    made = network()
    with torch.no_grad():
        made.pointer.score.weight *= 1000
    found, _ = scores(made, *stack([observation(0)]))
    assert found.abs().max() <= CLIP
    assert found.abs().max() > 0.9 * CLIP
