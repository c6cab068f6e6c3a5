"""Evaluation: rows beside the oracle, choices that break the rules, and summaries."""

from __future__ import annotations

import time
from dataclasses import replace
from math import isnan

import numpy as np
import pytest
import torch
from assign_examples import line, random_instance
from hypothesis import given, settings
from hypothesis import strategies as st

import assignnet.value.evaluate
from assignnet.choice.rules import all_children, all_parents, check_selection, greedy
from assignnet.choice.tree import NO_FEATURES, Roi
from assignnet.value.evaluate import Row, evaluate, oracles, summarise, valid_choices
from assignnet.value.oracle import Choice
from canvas import Box

relaxed = settings(deadline=None, max_examples=80)
WHOLE, LEFT, RIGHT, LEAF = line().tree.rois
STRANGER = Roi(Box((0, 0, 1), (1, 1, 3)), 0.9, 1.0)
BEST = Choice((LEFT, LEAF), 0.8, 0.9)


def choosing(*selection: Roi):
    """An assigner that always chooses the same."""
    return lambda tree, cost_model, features=NO_FEATURES: selection


def row(weight: float = 0.1, **values) -> Row:
    """A row in which most is zero."""
    plain = dict.fromkeys(
        ["reward", "oracle_reward", "oracle_fraction", "bound", "quality", "slots", "seconds", "choose_s"], 0.0
    )
    counts = dict.fromkeys(["invalid_actions", "selected", "dropped"], 0)
    return Row(**({"instance": "some", "weight": weight} | plain | counts | values))


@pytest.fixture
def asked(monkeypatch) -> list[tuple[str, str, float]]:
    """What the oracle is asked; it answers at once."""
    calls = []

    def answer(instance, metric, weight):
        calls.append((instance.name, metric, weight))
        return BEST

    monkeypatch.setattr(assignnet.value.evaluate, "oracle", answer)
    return calls


# --- evaluate


def test_evaluate__line__fills_a_row_as_worked_out_by_hand(asked) -> None:
    """Left and right half find 2 of 4 voxels with one wrong: Dice 4 / 7, for two of three slots; the leaf is lost."""
    (found,) = evaluate(choosing(LEFT, RIGHT), [line()], "dice", [0.3])
    assert found == Row(
        instance="line/0",
        weight=0.3,
        reward=pytest.approx(4 / 7 - 0.2),
        oracle_reward=0.8,
        oracle_fraction=pytest.approx((4 / 7 - 0.2) / 0.8),
        bound=0.9,
        quality=pytest.approx(4 / 7),
        slots=2.0,
        seconds=1.0,
        invalid_actions=0,
        choose_s=found.choose_s,
        selected=2,
        dropped=1,
    )
    assert found.choose_s >= 0
    (found,) = evaluate(choosing(LEFT, RIGHT), [line()], "iou", [0.3])
    assert found.quality == pytest.approx(2 / 5)
    assert asked == [("line/0", "dice", 0.3), ("line/0", "iou", 0.3)]


def test_evaluate__assigner__gets_the_instance_and_the_weight(asked) -> None:
    """Tree and features are the instance's; its cost model has the weight put in, and nothing else changed."""
    instance, seen = random_instance(0, features=3), []
    evaluate(lambda *given: seen.append(given) or (), [instance], "dice", [0.1, 0.4])
    assert [cost_model.weight for _, cost_model, _ in seen] == [0.1, 0.4]
    assert {replace(cost_model, weight=0) for _, cost_model, _ in seen} == {replace(instance.cost_model, weight=0)}
    assert all(tree is instance.tree and features is instance.features for tree, _, features in seen)


def test_evaluate__instances_and_weights__come_in_order(asked) -> None:
    """Rows go instance by instance, and within one in the order of weights."""
    instances = [replace(line(), name=name) for name in "ab"]
    rows = evaluate(choosing(), instances, "dice", [0.4, 0.1])
    assert [(one.instance, one.weight) for one in rows] == [("a", 0.4), ("a", 0.1), ("b", 0.4), ("b", 0.1)]


def test_evaluate__slow_assigner__shows_its_seconds(asked) -> None:
    """The wall clock covers the assigner, and not the oracle."""
    (found,) = evaluate(lambda *given: time.sleep(0.05) or (), [line()], "dice", [0.1])
    assert 0.05 <= found.choose_s < 1


def test_evaluate__choices_that_break_the_rules__are_counted_and_left_out(asked) -> None:
    """A stranger, a repeated leaf and the parent of what was chosen neither count nor cost."""
    (found,) = evaluate(choosing(STRANGER, LEAF, LEFT, LEAF, WHOLE), [line()], "dice", [0.3])
    assert (found.invalid_actions, found.selected, found.slots, found.dropped) == (3, 2, 2.0, 1)
    assert found.reward == pytest.approx(0.8)


@pytest.mark.parametrize(
    ("selection", "dropped"),
    [((), 3), ((WHOLE,), 1), ((WHOLE, LEAF), 0), ((LEFT,), 2), ((LEFT, RIGHT, LEAF), 0), ((LEAF,), 2)],
)
def test_evaluate__children_not_processed__are_dropped(selection, dropped, asked) -> None:
    """A child counts as processed with its parent."""
    assert evaluate(choosing(*selection), [line()], "dice", [0.1])[0].dropped == dropped


def test_evaluate__oracle_earns_nothing__has_no_fraction(monkeypatch) -> None:
    """Where the best is to do nothing there is no fraction of it."""
    monkeypatch.setattr(assignnet.value.evaluate, "oracle", lambda *asked: Choice((), 0.0, 0.1))
    assert isnan(evaluate(choosing(LEFT), [line()], "dice", [5.0])[0].oracle_fraction)


def test_evaluate__known_choices__are_not_computed_again(asked) -> None:
    """Several assigners share what the oracle chose; only what is missing is asked for."""
    instances = [replace(line(), name=name) for name in "ab"]
    known = oracles(instances, "dice", [0.1, 0.2])
    assert len(asked) == 4
    for assigner in (all_parents, all_children, greedy):
        evaluate(assigner, instances, "dice", [0.2, 0.1], known=known)
    assert len(asked) == 4
    evaluate(greedy, instances, "dice", [0.2, 0.3], known=known)
    assert asked[4:] == [("a", "dice", 0.3), ("b", "dice", 0.3)]


def test_evaluate__two_instances_of_one_name__do_not_share_a_choice(monkeypatch) -> None:
    """Choices belong to the instance itself."""
    first, other = line(), line(gap=4)
    monkeypatch.setattr(assignnet.value.evaluate, "oracle", lambda one, *rest: Choice((), float(one is first), 2.0))
    known = oracles([first, other], "dice", [0.1])
    rows = evaluate(choosing(), [first, other], "dice", [0.1], known=known)
    assert [one.oracle_reward for one in rows] == [1.0, 0.0]


def test_evaluate__assigner_that_draws__is_repeatable_and_disturbs_nobody(asked) -> None:
    """The same seed gives the same rows, another one others, and PyTorch's random state stays as it was."""

    def drawing(tree, cost_model, features=NO_FEATURES):
        return tuple(leaf for leaf in tree.leaves if torch.rand(()) < 0.5)

    instances = [random_instance(seed) for seed in range(4)]
    before = torch.random.get_rng_state()
    first, again, other = (
        [one.reward for one in evaluate(drawing, instances, "dice", [0.1], seed=seed)] for seed in (3, 3, 4)
    )
    assert first == again != other
    assert torch.equal(torch.random.get_rng_state(), before)


def test_evaluate__oracles_own_choice__earns_all_of_it() -> None:
    """The real oracle's selection has fraction 1, breaks no rule, and no rule earns more."""
    instances, weights = [random_instance(seed) for seed in range(4)], [0.02, 0.2]
    known = oracles(instances, "dice", weights)
    choices = iter(known.values())
    rows = evaluate(lambda *given: next(choices).selection, instances, "dice", weights, known=known)
    assert [one.reward for one in rows] == pytest.approx([one.oracle_reward for one in rows])
    assert not any(one.invalid_actions for one in rows)
    for assigner in (all_parents, all_children, greedy):
        for one in evaluate(assigner, instances, "dice", weights, known=known):
            assert one.reward <= one.oracle_reward + 1e-9


# --- valid_choices


def is_allowed(tree, selection) -> bool:
    """Whether all are nodes of the tree, each is there once, and none beside its parent."""
    families = zip(tree.parents, tree.children, strict=True)
    related = [{parent, child} for parent, children in families for child in children if child != parent]
    chosen = set(selection)
    return chosen <= set(tree.rois) and len(chosen) == len(selection) and not any(pair <= chosen for pair in related)


@relaxed
@given(st.integers(0, 10_000), st.integers(0, 12))
def test_valid_choices__any_list__keeps_what_is_allowed_one_by_one(seed, count) -> None:
    """Each choice is kept if, and only if, what was kept so far may be selected together with it."""
    random = np.random.default_rng(seed)
    tree = random_instance(seed, families=4, side=2).tree
    nodes = [*tree.rois, STRANGER]
    selection = [nodes[index] for index in random.integers(len(nodes), size=count)]
    kept: list[Roi] = []
    for roi in selection:
        if is_allowed(tree, [*kept, roi]):
            kept.append(roi)
    assert valid_choices(tree, selection) == (tuple(kept), count - len(kept))
    check_selection(tree, kept)
    if not is_allowed(tree, selection):
        with pytest.raises(ValueError, match=r"not a node|more than once|together with its parent"):
            check_selection(tree, selection)


# --- summarise


def test_summarise__rows_of_two_weights__averages_each() -> None:
    """Weights stay apart and in order; numbers are means, broken rules a sum."""
    names = ["reward", "bound", "quality", "slots", "seconds", "choose_s", "selected", "dropped"]
    rows = [
        row(0.2, invalid_actions=1, **{name: float(index) for index, name in enumerate(names)}),
        row(0.1, reward=7.0, oracle_reward=14.0),
        row(0.2, invalid_actions=2, **{name: 3.0 * index for index, name in enumerate(names)}),
    ]
    found = summarise(rows)
    assert list(found) == [0.2, 0.1]
    assert [getattr(found[0.2], name) for name in names] == [2.0 * index for index in range(len(names))]
    assert (found[0.2].instances, found[0.2].invalid_actions) == (2, 3)
    assert (found[0.1].instances, found[0.1].reward, found[0.1].oracle_reward) == (1, 7.0, 14.0)


def test_summarise__instances_where_little_can_be_earned__hardly_count() -> None:
    """The fraction is 0.8 of 1.0 + 0.01 + 0, not the mean of 0.9, -10 and something undefined."""
    rows = [row(reward=0.9, oracle_reward=1.0), row(reward=-0.1, oracle_reward=0.01), row(oracle_fraction=float("nan"))]
    assert summarise(rows)[0.1].oracle_fraction == pytest.approx(0.8 / 1.01)


def test_summarise__nothing_can_be_earned__has_no_fraction() -> None:
    """If the oracle earns nothing at all, neither does anyone a share of it."""
    assert isnan(summarise([row(), row(reward=-1.0)])[0.1].oracle_fraction)
    assert summarise([]) == {}
