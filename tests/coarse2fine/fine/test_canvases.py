"""How boxes get onto canvases: what cannot be done is refused with a remedy that works."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from canvas import Box
from coarse2fine.config.reader import load_config
from coarse2fine.errors import ConfigError
from coarse2fine.fine.canvases import plan_canvases
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.nnunet.loading import load_model


def test_plan_canvases__no_grid_of_that_capacity__each_change_that_is_named_works(
    model_folder: Callable[..., Path],
) -> None:
    """A canvas of 8 x 16 x 16 is divided into 1, 4 or 8 slots of 4 x 8 x 8 or more, but not into 3."""
    model, boxes = load_model(model_folder()), [Box((0, 0, 0), (4, 8, 8))]

    def pack(*settings: str) -> int:
        config = load_config(None, ["canvas.packing=same_size", *settings])
        return len(plan_canvases(boxes, config, plan_sizes(config, model), (8, 16, 16)))

    with pytest.raises(ConfigError, match="capacities are 1, 4, 8") as caught:
        pack("canvas.capacity=3")
    assert caught.value.remedy == "Change canvas.capacity, canvas.slot or canvas.size."
    assert pack("canvas.capacity=4") == 1
    assert pack("canvas.capacity=16", "canvas.slot=[2, 8, 8]") == 1
    assert pack("canvas.capacity=3", "canvas.size=[12, 16, 16]", "canvas.slot=[4, 16, 16]") == 1
