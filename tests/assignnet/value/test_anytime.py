"""Quality against time of an order, and the area under it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assignnet import NO_FEATURES, CostModel, all_children
from assignnet.value.anytime import ORDERS, AnytimeCurve, anytime_curve, best_order, mean_area, order_area
from assignnet.value.instance import Instance, total_slots
from assignnet.value.reward import AnytimeReward
from assignnet.value.synthetic import synthetic_instance


def made_up(seed: int, regions: int = 12) -> Instance:
    made = synthetic_instance(np.random.default_rng(seed), regions, features=0)
    return replace(made, features=NO_FEATURES)


@settings(deadline=None)
@given(st.lists(st.tuples(st.floats(0.01, 1), st.floats(0, 1)), min_size=1, max_size=6), st.floats(0, 1))
def test_area__any_steps__is_the_mean_quality_over_all_moments(steps: list[tuple[float, float]], first: float) -> None:
    """Computed by looking at many moments, evenly spread from 0 to 1."""
    times = np.cumsum([0.0, *(lasts for lasts, _ in steps)])
    qualities = [first, *(quality for _, quality in steps)]
    moments = (np.arange(20_000) + 0.5) / 20_000
    seen = np.array(qualities)[np.searchsorted(times, moments, side="right") - 1]
    area = AnytimeCurve(tuple(times.tolist()), tuple(qualities)).area
    assert area == pytest.approx(seen.mean(), abs=1e-3)


def test_anytime_curve__steps_of_several_regions__ends_with_the_quality_of_all() -> None:
    """Time goes on by what each step takes, and quality is that of what is done until then."""
    instance = made_up(0)
    rows = len(instance.tree.rois)
    leaves = [row for row, roi in enumerate(instance.tree.rois) if roi in set(instance.tree.leaves)]
    steps = [tuple(leaves[:3]), tuple(leaves[3:])]
    curve = anytime_curve(instance.outcomes, steps, [3.0, 1.0], "dice", regions=rows)
    assert curve.times == (0.0, 0.75, 1.0)
    done = np.zeros(rows, bool)
    for quality, more in zip(curve.qualities, ((), *steps), strict=True):
        done[list(more)] = True
        assert quality == instance.outcomes.quality(done, "dice")


@pytest.mark.parametrize("seed", range(5))
def test_anytime_reward__any_order__sums_to_the_area(seed: int) -> None:
    """Less what doing nothing yields; lambda plays no part, nor does stopping."""
    instance, random = made_up(seed), np.random.default_rng(seed)
    rois = {roi: row for row, roi in enumerate(instance.tree.rois)}
    order = [instance.tree.leaves[index] for index in random.permutation(len(instance.tree.leaves))]
    reward, rows = AnytimeReward("dice"), [rois[roi] for roi in order]
    weights = random.uniform(0, 1, len(rows))
    earned = sum(
        reward(instance, rows[:index], row, float(weight))
        for index, (row, weight) in enumerate(zip(rows, weights, strict=True))
    )
    nothing = instance.outcomes.quality(np.zeros(len(rois), bool), "dice")
    assert nothing + earned == pytest.approx(order_area(instance, order, "dice"))
    assert reward(instance, rows, None, 1.0) == 0


@pytest.mark.parametrize("seed", range(5))
def test_best_order__few_steps__is_hardly_beaten_by_any_other(seed: int) -> None:
    """Of 200 random orders none has a greater area; they name all steps, each once."""
    instance, random = made_up(seed, 6), np.random.default_rng(seed)
    rows = {roi: row for row, roi in enumerate(instance.tree.rois)}
    steps = [(rows[leaf],) for leaf in instance.tree.leaves]
    seconds = [float(instance.slots[row]) for (row,) in steps]
    best = best_order(instance.outcomes, steps, seconds, "dice", regions=len(rows))
    assert sorted(best) == list(range(len(steps)))
    orders = [best, *(random.permutation(len(steps)).tolist() for _ in range(200))]
    areas = [order_area(instance, [instance.tree.leaves[index] for index in order], "dice") for order in orders]
    assert areas[0] >= max(areas) - 0.01


@pytest.mark.parametrize("name", ORDERS)
def test_orders__any_rule__cover_every_family(name: str) -> None:
    """They put the same regions in order; by mass is better than as they lie in space."""
    instances = [made_up(seed, 30) for seed in range(6)]
    for instance in instances:
        order = ORDERS[name](instance.tree, instance.cost_model)
        covered = {roi.box for roi in order}
        for parent, children in zip(instance.tree.parents, instance.tree.children, strict=True):
            assert parent.box in covered or {child.box for child in children} <= covered
        assert len(covered) == len(order)
    areas = {rule: mean_area(ORDERS[rule], instances, "dice") for rule in ORDERS}
    assert areas["mass"] == max(areas.values())


def test_order_area__more_than_all_children_would_cost__counts_nothing_after_time_1() -> None:
    """Whoever takes regions that cost more has less time for the last of them."""
    instance = made_up(1)
    cheap = replace(instance, cost_model=CostModel(slot=instance.cost_model.slot))
    order = all_children(instance.tree, cheap.cost_model)
    spent = sum(cheap.cost_model.slots(roi.box) for roi in order)
    assert spent == pytest.approx(total_slots(cheap.tree, cheap.cost_model))
    first, last = order_area(cheap, order, "dice"), order_area(cheap, order[::-1], "dice")
    assert 0 < first <= 1
    assert 0 < last <= 1
