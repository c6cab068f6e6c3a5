"""Runs under a clock that only networks move, so that tests of deadlines do not depend on the machine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from math import prod
from pathlib import Path

import torch
from conftest import blobs
from torch import nn

from coarse2fine.config.reader import load_config
from coarse2fine.io import Grid, Volume
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.pipeline import Pipeline, Result
from coarse2fine.system.timing import Run, RunClock

SPACING, SHAPE = (2.0, 1.0, 1.0), (16, 36, 36)


LAYERS = 60
"""Layers that the time of a pass is spread over."""


class Slow(nn.Module):
    """A network of which each pass takes some time.

    Args:
        network: That computes.
        lasts: Seconds that an input of so many voxels takes.
        wait: Lets seconds pass.
    """

    def __init__(self, network: nn.Module, lasts: Callable[[int], float], wait: Callable[[float], None]) -> None:
        super().__init__()
        self.network, self.lasts, self.wait = network, lasts, wait
        self.layers = nn.ModuleList(nn.Identity() for _ in range(LAYERS))

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """The network's outputs."""
        seconds = self.lasts(prod(batch.shape[2:]))
        for layer in self.layers:
            self.wait(seconds / LAYERS)
            layer(batch)
        result: torch.Tensor = self.network(batch)
        return result


class SlowRun:
    """One run after the other of two models; one second of the clock is 1,000 voxels of the fine network.

    Args:
        models: Folders of the coarse and the fine model.
        overrides: Settings.
        coarse_s: What each pass of the coarse network takes; 0 leaves it as it is.
        late: Factors by which the first passes of inputs of at least ``large`` voxels take longer.
        large: See ``late``; 0 for all.
    """

    def __init__(
        self,
        models: tuple[Path, Path],
        overrides: Sequence[str] = (),
        *,
        coarse_s: float = 0.5,
        late: Sequence[float] = (),
        large: int = 0,
    ) -> None:
        self.time, self.passes, self._late, self._large = 0.0, list[int](), list(late), large
        self._coarse_s = coarse_s
        settings = ["fine.mirroring=false", "rois.threshold=0.55", "fine.grow=0", "canvas.norm=canvas", *overrides]
        config = load_config(None, [f"coarse.model={models[0]}", f"fine.model={models[1]}", *settings])
        coarse, fine = (load_model(folder) for folder in models)
        self.pipeline = Pipeline(
            config, self._slowed(coarse, self._look) if coarse_s else coarse, self._slowed(fine, self._work)
        )

    def __call__(self, volume: Volume | None = None) -> Result:
        """Segment a volume, with a clock of its own."""
        image = blobs(SHAPE)
        self.time, self.passes = 0.0, []
        volume = volume or Volume((image,), Grid(image.shape, SPACING), "blobs")
        return self.pipeline(volume, Run(RunClock(lambda: self.time)))

    def _slowed(self, model: Model, lasts: Callable[[int], float]) -> Model:
        """The model with networks that take time."""

        # Functions, because the pipeline copies networks, and the object of a method would be copied along.
        def wait(seconds: float) -> None:
            self.time += seconds

        networks = tuple(Slow(network, lambda voxels: lasts(voxels), wait) for network in model.networks)
        return dataclasses.replace(model, networks=networks)

    def _look(self, voxels: int) -> float:
        return self._coarse_s

    def _work(self, voxels: int) -> float:
        factor = self._late.pop(0) if self._late and voxels >= self._large else 1.0
        self.passes.append(voxels)
        return factor * voxels / 1000
