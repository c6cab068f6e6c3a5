"""Sizes that settings leave to the model, against sums by hand."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from canvas import Triple
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model

# The tiny networks halve z once, y and x twice: edges are multiples of 2, 4 and 4.
PATCH: Triple = (16, 48, 64)


@pytest.fixture(scope="module")
def model(model_folder: Callable[..., Path]) -> Model:
    return load_model(model_folder(patch=PATCH))


def test_plan_sizes__nothing_set__follows_from_the_patch(model: Model) -> None:
    """Slots are half the patch, steps a quarter of a slot; context, a 16th of the patch, leaves less to be native."""
    plan = plan_sizes(load_config(None, []), model)
    assert (plan.canvas, plan.patch, plan.divisor) == (PATCH, PATCH, (2, 4, 4))
    assert (plan.slot, plan.step, plan.context) == ((8, 24, 32), (2, 6, 8), (1, 3, 4))
    assert plan.native == plan.window == (14, 42, 56)
    assert plan.capacity is None


def test_plan_sizes__other_modes__have_the_slots_that_they_need(model: Model) -> None:
    """Two-stage mode sees full patches; a crop alone is a network input, rounded up to what the network can halve."""
    assert plan_sizes(load_config(None, ["mode=two-stage"]), model).slot == PATCH
    resized = plan_sizes(load_config(None, ["canvas.packing=same_size", "canvas.capacity=4"]), model)
    assert (resized.native, resized.window, resized.capacity) == ((8, 24, 32), (8, 24, 32), 4)
    single = plan_sizes(load_config(None, ["canvas.enabled=false", "canvas.slot=[5, 9, 16]"]), model)
    assert single.canvas == single.slot == single.native == (6, 12, 16)
    assert single.capacity is None


def test_plan_sizes__window_larger_than_what_context_leaves__stays_native_up_to_the_canvas(model: Model) -> None:
    """Whoever asks for larger windows accepts less context; smaller ones change nothing else."""
    for window, native in (((15, 99, 20), (15, 48, 56)), ((2, 2, 2), (14, 42, 56))):
        plan = plan_sizes(load_config(None, [f"rois.window={list(window)}"]), model)
        assert (plan.native, plan.window) == (native, window)


@pytest.mark.parametrize(
    ("setting", "problem", "mended"),
    [
        ("canvas.size=[16, 50, 64]", "canvas.size [16, 50, 64] cannot be an input", "canvas.size=[16, 52, 64]"),
        ("canvas.slot=[8, 24, 65]", "canvas.slot [8, 24, 65] is larger", "canvas.slot=[8, 24, 64]"),
    ],
)
def test_plan_sizes__size_that_does_not_fit__is_refused(setting: str, problem: str, mended: str, model: Model) -> None:
    """With the size that the remedy asks for, there is a plan."""
    with pytest.raises(ConfigError) as error:
        plan_sizes(load_config(None, [setting]), model)
    assert problem in str(error.value)
    plan_sizes(load_config(None, [mended]), model)
