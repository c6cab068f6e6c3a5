"""What choices are worth: sums over episodes, the price of jumping, and measured canvases."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import numpy as np
import pytest
from assign_examples import line, random_instance
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet.choice.cost_model import CostModel
from assignnet.learn.observation import still_free
from assignnet.value.instance import Instance
from assignnet.value.reward import AdjacencyReward, CanvasReward, GainReward, Reward, jump
from assignnet.value.voxel_counts import VoxelCounts

relaxed = settings(deadline=None, max_examples=50)
WHOLE, LEFT, RIGHT, LEAF = range(4)
"""Rows of ``line``."""


def random_choices(instance: Instance, random: np.random.Generator) -> list[int]:
    """A valid selection in random order."""
    chosen: list[int] = []
    for _ in range(random.integers(1, len(instance.tree.rois) + 1)):
        taken = np.zeros(len(instance.tree.rois), bool)
        taken[chosen] = True
        free = np.flatnonzero(still_free(instance.tree.parent_of, taken))
        if len(free):
            chosen.append(int(random.choice(free)))
    return chosen


def play(reward: Reward, instance: Instance, choices: list[int], weight: float) -> list[float]:
    """The rewards of an episode that makes these choices and stops."""
    steps = [*choices, None]
    return [reward(instance, choices[:done], choice, weight) for done, choice in enumerate(steps)]


@pytest.fixture
def counted(monkeypatch) -> list[int]:
    """One entry for every quality that gets computed: the number of regions selected."""
    calls = []
    original = VoxelCounts.quality

    def spy(self, chosen, metric):
        calls.append(int(chosen.sum()))
        return original(self, chosen, metric)

    monkeypatch.setattr(VoxelCounts, "quality", spy)
    return calls


# --- GainReward


def test_gain_reward__line__pays_what_was_worked_out_by_hand() -> None:
    """Dice goes 0, 4/6, 4/7, 8/9 and IoU 0, 2/4, 2/5, 4/5; each region costs a third."""
    dice = play(GainReward("dice"), line(), [LEFT, RIGHT, LEAF], weight=0.3)
    assert dice == pytest.approx([4 / 6 - 0.1, 4 / 7 - 4 / 6 - 0.1, 8 / 9 - 4 / 7 - 0.1, 0])
    iou = play(GainReward("iou"), line(), [LEFT, RIGHT, LEAF], weight=0.0)
    assert iou == pytest.approx([2 / 4, 2 / 5 - 2 / 4, 4 / 5 - 2 / 5, 0])


@relaxed
@given(st.integers(0, 10_000), st.sampled_from(["dice", "iou"]), st.floats(0, 2))
def test_gain_reward__any_order__sums_to_the_reward_of_the_selection(seed, metric, weight) -> None:
    """The sum over an episode is that of the instance, which looks at the selection as a whole."""
    instance = random_instance(seed, side=2)
    choices = random_choices(instance, np.random.default_rng(seed))
    selection = [instance.tree.rois[row] for row in choices]
    total = sum(play(GainReward(metric), instance, choices, weight))
    assert total == pytest.approx(instance.reward(selection, metric, weight), abs=1e-12)


def test_gain_reward__episode__computes_one_quality_per_step(counted) -> None:
    """Only the first step computes two, that of nothing as well."""
    play(GainReward("dice"), line(), [LEFT, RIGHT, LEAF], weight=0.1)
    assert sorted(counted) == [0, 1, 2, 3]


def test_gain_reward__environments_take_turns__still_computes_one_quality_per_step(counted) -> None:
    """One reward that serves eight environments forgets none of them between their steps."""
    reward, instances = GainReward("dice"), [line() for _ in range(8)]
    for done, choice in enumerate([LEFT, RIGHT, LEAF]):
        for instance in instances:
            reward(instance, [LEFT, RIGHT, LEAF][:done], choice, 0.1)
    assert len(counted) == 8 * 4


def test_gain_reward__used_for_much_else__answers_like_a_new_one() -> None:
    """Nothing that was remembered, about this or another instance or choice, shows in an answer."""
    random = np.random.default_rng(0)
    instances = [random_instance(seed, side=2) for seed in range(4)]
    used = GainReward("dice")
    for _ in range(400):
        instance = instances[random.integers(4)]
        *before, choice = random_choices(instance, random)
        weight = float(random.random())
        assert used(instance, before, choice, weight) == GainReward("dice")(instance, before, choice, weight)


# --- AdjacencyReward


def test_jump__line__is_distance_in_native_boxes_over_one_more() -> None:
    """From the centre of the left half to that of the leaf it is 6 voxels, three slots of 2: 3 / 4."""
    assert jump(line(), LEFT, LEAF) == 3 / 4
    assert jump(line(), LEAF, LEFT) == 3 / 4
    assert jump(line(gap=20), LEFT, LEAF) == 13 / 14
    assert jump(line(), LEFT, LEFT) == 0


def test_jump__native_box__is_the_unit_of_each_axis() -> None:
    """A native box of (2, 1, 4) instead of a slot of (1, 1, 2) halves distances along x; other axes count alike."""
    wide = replace(line(), cost_model=CostModel(slot=(1, 1, 2), native=(2, 1, 4)))
    assert jump(wide, LEFT, LEAF) == pytest.approx(1.5 / 2.5)
    instance = random_instance(3, side=2)
    boxes = [instance.tree.rois[row].box for row in (0, -1)]
    centres = [(np.array(box.start) + box.stop) / 2 for box in boxes]
    distance = sqrt(sum(((centres[0] - centres[1]) / np.array((5, 5, 5))) ** 2))
    assert jump(instance, 0, len(instance.tree.rois) - 1) == pytest.approx(distance / (1 + distance))


def test_adjacency_reward__episode__charges_jumps_between_consecutive_choices() -> None:
    """Left, right, leaf jumps 1 and 2 slots: 1/2 + 2/3; left, leaf, right jumps 3 and 2: 3/4 + 2/3."""
    plain = sum(play(GainReward("dice"), line(), [LEFT, RIGHT, LEAF], 0.3))
    reward = AdjacencyReward("dice", 0.1)
    assert sum(play(reward, line(), [LEFT, RIGHT, LEAF], 0.3)) == pytest.approx(plain - 0.1 * (1 / 2 + 2 / 3))
    assert sum(play(reward, line(), [LEFT, LEAF, RIGHT], 0.3)) == pytest.approx(plain - 0.1 * (3 / 4 + 2 / 3))


def test_adjacency_reward__first_choice_and_stop__have_no_price() -> None:
    """There is no jump before the first choice or to the end."""
    gain, reward = GainReward("dice"), AdjacencyReward("dice", 5.0)
    assert reward(line(), (), LEAF, 0.3) == gain(line(), (), LEAF, 0.3)
    assert reward(line(), (LEFT,), None, 0.3) == 0


@pytest.mark.parametrize("weight", [-0.1, float("nan")])
def test_adjacency_reward__negative_weight__raises(weight) -> None:
    """A reward for jumping is not meant."""
    with pytest.raises(ValueError, match="negative"):
        AdjacencyReward("dice", weight)


# --- CanvasReward


class Meter:
    """Stands for real canvases: a quality that depends on the order, and the calls it got."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, ...]] = []

    def __call__(self, instance: Instance, rows: tuple[int, ...]) -> float:
        self.calls.append(rows)
        return 0.01 * sum((place + 1) * row for place, row in enumerate(rows))


def test_canvas_reward__episode__sums_to_the_measured_quality() -> None:
    """Gains as counted, the correction at the end; the sum is measured quality less cost (nothing has Dice 0)."""
    rewards = play(CanvasReward("dice", Meter()), line(), [LEAF, LEFT], 0.3)
    assert rewards[:2] == play(GainReward("dice"), line(), [LEAF, LEFT], 0.3)[:2]
    assert sum(rewards) == pytest.approx(0.01 * (1 * LEAF + 2 * LEFT) - 0.2)


def test_canvas_reward__same_content__is_measured_once() -> None:
    """Another object of the same content, or another weight, needs no canvas; another order or case does."""
    meter = Meter()
    reward = CanvasReward("dice", meter)
    for instance in (line(), line(), line().weighted(0.4)):
        play(reward, instance, [LEFT, LEAF], 0.1)
        play(reward, instance, [LEFT, LEAF], 0.2)
    assert meter.calls == [(LEFT, LEAF)]
    play(reward, line(), [LEAF, LEFT], 0.1)
    assert len(meter.calls) == 2
    others = [
        replace(line(), case="other"),
        replace(line(), name="line/1"),
        replace(line(), cost_model=CostModel(slot=(1, 1, 2), large="native")),
    ]
    for done, other in enumerate(others):
        play(reward, other, [LEFT, LEAF], 0.1)
        assert len(meter.calls) == 3 + done


def test_canvas_reward__more_than_it_remembers__forgets_the_least_recent() -> None:
    """With room for two, the third selection pushes out the one that was used longest ago."""
    meter = Meter()
    reward = CanvasReward("dice", meter, remember=2)
    for row in (WHOLE, LEFT, WHOLE, RIGHT, WHOLE, LEFT):
        reward(line(), (row,), None, 0.1)
    assert meter.calls == [(WHOLE,), (LEFT,), (RIGHT,), (LEFT,)]


def test_canvas_reward__nothing_chosen__runs_no_canvas() -> None:
    """Without a region nothing is shared, and the counted quality is exact."""
    meter = Meter()
    assert CanvasReward("dice", meter)(line(), (), None, 0.1) == 0
    assert meter.calls == []
