"""What boxes cost, and how faithfully they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nnunetv2.inference.sliding_window_prediction import compute_steps_for_sliding_window
from tree_examples import SLOT

from assignnet import CostModel
from assignnet.choice.cost_model import tiles_along
from canvas import Box

relaxed = settings(deadline=None)


@relaxed
@given(st.integers(1, 300), st.integers(1, 64), st.sampled_from([0.25, 0.3, 0.5, 0.75, 1.0]))
def test_tiles_along__edge_at_least_a_tile__counts_like_nnunet(extra, tile, step) -> None:
    """The number of windows is that of nnU-Net's own sliding window."""
    edge = tile + extra - 1
    expected = len(compute_steps_for_sliding_window((edge, edge, edge), (tile, tile, tile), step)[0])
    assert tiles_along(edge, tile, step) == expected


def test_slots__large_box__depends_on_how_it_is_processed() -> None:
    """A box of 8 x 16 x 20 costs one slot when shrunk, 1 x 3 x 4 half-overlapping or 1 x 2 x 3 touching tiles."""
    box = Box.whole((8, 16, 20))
    assert CostModel(SLOT).slots(box) == 1
    assert CostModel(SLOT, large="native").slots(box) == 12
    assert CostModel(SLOT, large="native", tile_step=1.0).slots(box) == 6


def test_fidelity__axes_shrunk_by_2_4_and_1__is_half() -> None:
    """The geometric mean of 1/2, 1/4 and 1 is 1/2, and an axis shorter than the slot gains nothing."""
    assert CostModel(SLOT).fidelity(Box.whole((16, 32, 2))) == pytest.approx(0.5, abs=1e-12)
    assert CostModel(SLOT).fidelity(Box.whole(SLOT)) == pytest.approx(1.0)
    assert CostModel(SLOT, large="native").fidelity(Box.whole((16, 32, 2))) == 1.0


@pytest.mark.parametrize(
    "wrong",
    [
        {"slot": (8, 0, 8)},
        {"weight": -0.1},
        {"weight": float("nan")},
        {"large": "tiled"},
        {"tile_step": 0.0},
        {"drop": True},
        {"keep": 0},
    ],
)
def test_problem__value_out_of_range__raises(wrong) -> None:
    """A cost model that makes no sense is refused, also dropping at weight 0, which could never drop anything."""
    with pytest.raises(ValueError):
        CostModel(**{"slot": SLOT} | wrong)
