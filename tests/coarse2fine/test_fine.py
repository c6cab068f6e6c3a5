"""The fine stage: order of canvases, inputs of cascades, growth and what others cover."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from pathlib import Path

import numpy as np
import pytest

from canvas import Box, Canvas
from coarse2fine.config import load_config
from coarse2fine.fine import plan_canvases, plan_sizes
from coarse2fine.nnunet import Model, load_model
from coarse2fine.view import open_view
from coarse2fine.writeback import LabelWriter

SPACING = (2.0, 1.0, 1.0)  # the tiny models' own
ORGANS = {"background": 0} | {f"organ {label}": label for label in range(1, 17)}


@pytest.fixture(scope="module")
def organs(model_folder: Callable[..., Path]) -> Model:
    """A model of 17 classes."""
    return load_model(model_folder(labels=ORGANS, patch=(16, 64, 64)))


def peak_of(model: Model, canvases: list[Canvas], shape: tuple[int, int, int]) -> int:
    """Most bytes that a writer holds if crops come in the order of the canvases."""
    writer = LabelWriter(open_view([np.ones(shape, np.uint8)], SPACING, model), model)
    writer.expect(placement.box for canvas in canvases for placement in canvas.placements)
    peak = 0
    for canvas in canvases:
        for placement in canvas.placements:
            writer.add(placement, np.zeros((model.labels.heads, *placement.slot.shape), np.float32))
            peak = max(peak, writer.held)
    assert writer.held == 0
    return peak


def test_plan_canvases__17_classes_and_many_boxes__sums_of_outputs_are_dropped_soon(organs: Model) -> None:
    """Outputs of a small part of the volume exist at once, far fewer than if canvases ran by their size."""
    random, shape = np.random.default_rng(0), (48, 320, 320)
    boxes = []
    for _ in range(120):
        edges = random.integers((3, 8, 8), (12, 48, 48))
        boxes.append(Box.of(random.integers(0, np.array(shape) - edges), edges))
    config = load_config(None, [])
    canvases = plan_canvases(boxes, config, plan_sizes(config, organs), shape)
    sizes = [prod(canvas.shape) for canvas in canvases]
    assert sizes[0] == max(sizes), "memory of the first feature maps serves for all others"
    peak = peak_of(organs, canvases, shape)
    by_size = sorted(canvases, key=lambda canvas: prod(canvas.shape), reverse=True)
    assert peak < 0.8 * peak_of(organs, by_size, shape)
    assert peak < 0.6 * 17 * prod(shape) * 4
