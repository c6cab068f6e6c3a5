"""The main path: a volume goes in, labels in its own geometry come out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from assignnet import RoiTree
from canvas import Box
from coarse2fine.coarse.heatmap import CoarseResult, look_coarsely
from coarse2fine.config.schema import Config
from coarse2fine.counts import Tally, tally
from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.fine.previous_stage import previous_labels
from coarse2fine.fine.sizes import plan_sizes
from coarse2fine.fine.writeback import LabelWriter, export_labels
from coarse2fine.io import Volume, read_volume, write_labels
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import sliding_window
from coarse2fine.preprocessing.working_grid import view_volume, volume_doubts
from coarse2fine.refine import refine
from coarse2fine.report import NOTHING_FOUND, RunReport, count_labels, peak_memory_mb, versions
from coarse2fine.resampling.operators import Floats
from coarse2fine.selection.selector import Chooser, find_chooser, find_tree
from coarse2fine.selection.thin import two_stage
from coarse2fine.system.memory import return_freed_memory
from coarse2fine.system.timing import Clock

Progress = Callable[[str, int, int], None]
"""Called with (stage, done, total); stages are read, coarse, rois, assign, fine, write."""


def silent(stage: str, done: int, total: int) -> None:
    """Report no progress."""


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of one volume.

    Attributes:
        labels: Shape (z, y, x) of the volume, in its own axis order.
        report: What was done, and how long it took.
        tree: The regions that were found; None in one-stage mode.
        boxes: Regions of the working grid that the fine network segmented.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    report: RunReport
    tree: RoiTree | None = None
    boxes: tuple[Box, ...] = ()


class Pipeline:
    """Coarse-to-fine segmentation with two nnU-Net models.

    Args:
        config: All settings.
        coarse: The low-resolution model; None only in one-stage mode.
        fine: The full-resolution model.

    Raises:
        ModelError: If the models do not fit each other or the mode, or the agent does not fit them.
    """

    def __init__(self, config: Config, coarse: Model | None, fine: Model) -> None:
        self.config = preset(config)
        self.coarse, self.fine = coarse, fine
        self.plan = plan_sizes(self.config, fine)
        check_models(self.config, coarse, fine)
        self.chooser: Chooser | None = None
        if self.config.mode != "one-stage" and coarse is not None:
            self.chooser = find_chooser(self.config, self.plan, coarse, fine)

    @classmethod
    def from_config(cls, config: Config, *, trust_checkpoint: bool = False) -> Self:
        """Load the models that the configuration names.

        Args:
            config: All settings; ``coarse.model`` and ``fine.model`` are folders of trained nnU-Net v2 models.
            trust_checkpoint: Unpickle checkpoints without restriction, which lets them run code.
        """
        device = pick_device(config.device)

        def load(stage: str, folder: Path | None, folds: Sequence[int | str] | None, checkpoint: str) -> Model:
            if folder is None:
                raise ConfigError(
                    f"{stage}.model is not set", f"Name the model folder in the configuration or with --{stage}-model."
                )
            names = None if folds is None else tuple(str(fold) for fold in folds)
            return load_model(folder, folds=names, checkpoint=checkpoint, device=device, trust=trust_checkpoint)

        coarse = None
        if config.mode != "one-stage" or config.coarse.model is not None:
            coarse = load("coarse", config.coarse.model, config.coarse.folds, config.coarse.checkpoint)
        fine = load("fine", config.fine.model, config.fine.folds, config.fine.checkpoint)
        return cls(config, coarse, fine)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that look at a volume, the fine one last."""
        return (self.fine,) if self.coarse is None else (self.coarse, self.fine)

    def run_files(self, files: Sequence[Path], output: Path, progress: Progress = silent) -> Result:
        """From files to a file: one input per channel, labels in the first input's geometry, written atomically."""
        clock = Clock()
        with clock.time("total"):
            progress("read", 0, 1)
            with clock.time("read"):
                volume = read_volume(files, [model.reader for model in self.models])
            progress("read", 1, 1)
            result = self(volume, progress, clock)
            progress("write", 0, 1)
            with clock.time("write"):
                write_labels(result.labels, volume.grid, output)
            progress("write", 1, 1)
        return self._finish(result, clock)

    def __call__(self, volume: Volume, progress: Progress = silent, clock: Clock | None = None) -> Result:
        """Segment a volume in one piece; one that is read by region is read into memory first.

        Args:
            volume: Channels of shape (z, y, x) with their grid.
            progress: Told about every step.
            clock: Receives the time of each stage; if given, the caller books ``total`` itself.
        """
        if clock is not None:
            return self._run(volume, progress, clock)
        clock = Clock()
        with clock.time("total"):
            result = self._run(volume, progress, clock)
        return self._finish(result, clock)

    def _run(self, volume: Volume, progress: Progress, clock: Clock) -> Result:
        with clock.time("read"):  # once, and not for each of the networks; nothing happens to what is in memory
            volume = dataclasses.replace(volume, channels=tuple(np.asarray(channel) for channel in volume.channels))
        if self.chooser is None or self.coarse is None:
            return self._one_stage(volume, progress, clock, ())
        with clock.time("coarse"):
            coarse = self._look(volume, lean(self.coarse), progress, clock, self.chooser.features.wants_coarse)
        with clock.time("fine"):
            view = view_volume(volume, self.fine)
            return_freed_memory()
        with clock.time("rois"):
            progress("rois", 0, 1)
            tree = find_tree(self.config, self.plan, coarse.heatmap, view)
            progress("rois", 1, 1)
        if not tree.parents and self.config.rois.empty == "one-stage":
            return self._one_stage(volume, progress, clock, ("the heatmap is empty: ran one-stage instead",))
        refined = refine(
            tree,
            view,
            self.fine,
            coarse,
            self.chooser,
            self.config,
            self.plan,
            clock,
            lambda done, total: progress("fine", done, total),
        )
        with clock.time("fine"):
            labels = refined.writer.finish()
        tree, fine = refined.tree, refined.fine
        counts = tally(tree, refined.chosen, fine, coarse.heatmap, view.shape, unpacked=refined.unpacked)
        return Result(labels, self._report(volume, labels, counts, self.chooser.warnings), tree, fine.boxes)

    def _look(
        self, volume: Volume, model: Model, progress: Progress, clock: Clock, bottleneck: bool = False
    ) -> CoarseResult:
        """Volume -> heatmap, and what an agent may want to see of it."""
        return look_coarsely(
            view_volume(volume, model, self.config.coarse.spacing),
            model,
            self.fine,
            self.config.coarse,
            clock,
            lambda done, total: progress("coarse", done, total),
            bottleneck=bottleneck,
        )

    def _one_stage(self, volume: Volume, progress: Progress, clock: Clock, warnings: tuple[str, ...]) -> Result:
        """nnU-Net's own procedure with the fine model: a sliding window over everything."""
        view = view_volume(volume, self.fine)
        previous: tuple[Floats, ...] = ()
        if self.fine.cascade and self.coarse is not None:
            with clock.time("coarse"):
                coarse = self._look(volume, self.coarse, progress, clock)
                seen = view_volume(volume, self.coarse, self.config.coarse.spacing)
                previous = (previous_labels(coarse, seen, view, self.fine),)
        with clock.time("fine"):
            data = np.concatenate([view.read(Box.whole(view.shape)), *previous])
            with clock.time("fine.network"):
                logits = sliding_window(
                    self.fine,
                    data,
                    tile_step=self.config.fine.tile_step,
                    mirroring=self.config.fine.mirroring,
                    progress=lambda done, total: progress("fine", done, total),
                )
            writer = LabelWriter(view, self.fine)
            export_labels(writer, self.fine, logits.numpy())
            labels = writer.finish()
        return Result(labels, self._report(volume, labels, None, warnings))

    def _report(
        self,
        volume: Volume,
        labels: NDArray[np.unsignedinteger[Any]],
        chosen: Tally | None,
        warnings: tuple[str, ...] = (),
    ) -> RunReport:
        """Everything but the times, which are not complete before the result is written."""
        found = count_labels(labels)
        counts = chosen or Tally()  # one-stage: nothing is chosen, and everything is seen
        warnings += (*counts.warnings, *volume_doubts(volume, self.models), *(() if found else (NOTHING_FOUND,)))
        return RunReport(
            case=volume.name,
            mode="one-stage" if chosen is None else self.config.mode,
            timing_s={},
            network_s={},
            boxes=counts.boxes,
            canvases=counts.network_inputs,
            coverage=counts.coverage,
            labels=found,
            warnings=warnings,
            device=str(self.fine.device),
            config=self.config.to_dict(),
            agent={} if chosen is None or self.chooser is None else self.chooser.describe(),
        )

    def _finish(self, result: Result, clock: Clock) -> Result:
        """Fill in times, memory and versions."""
        seconds = clock.seconds
        stages = ("read", "coarse", "rois", "assign", "pack", "fine", "write", "total")
        timing = {stage: seconds.get(stage, 0.0) for stage in stages}
        timing["fine"] -= timing["pack"]  # packing happens inside the fine stage
        network = {name.removesuffix(".network"): value for name, value in seconds.items() if name.endswith(".network")}
        report = dataclasses.replace(
            result.report,
            timing_s=timing,
            network_s=network,
            peak_memory_mb=peak_memory_mb(self.fine.device),
            versions=versions(),
        )
        return dataclasses.replace(result, report=report)


def preset(config: Config) -> Config:
    """The settings that a mode stands for."""
    return two_stage(config) if config.mode == "two-stage" else config


def check_models(config: Config, coarse: Model | None, fine: Model) -> None:
    """Refuse models that cannot work together.

    Raises:
        ModelError: Naming both sides of the contradiction.
    """
    if fine.cascade and not config.fine.use_prior:
        raise ModelError(
            f"{fine.folder} is a cascade ({fine.configuration}): it needs the coarse result as input",
            "Set fine.use_prior: true.",
        )
    if config.fine.use_prior and not fine.cascade:
        raise ModelError(
            f"fine.use_prior is on, but {fine.folder} ({fine.configuration}) takes no previous result",
            "Set fine.use_prior: false, or use a 3d_cascade_fullres model.",
        )
    if coarse is None:
        if config.mode != "one-stage" or fine.cascade:
            raise ModelError("no coarse model", "Name one with --coarse-model.")
        return
    size = config.coarse.patch_size
    if size is not None and any(edge % by for edge, by in zip(size, coarse.divisor, strict=True)):
        raise ConfigError(
            f"coarse.patch_size {list(size)} cannot be an input of the coarse model {coarse.folder}",
            f"Each edge must be a multiple of {list(coarse.divisor)}; the model's patch is {list(coarse.patch)}.",
        )
    if coarse.cascade:
        raise ModelError(f"{coarse.folder} is a cascade and cannot be the coarse model", "Use a 3d_lowres model.")
    if coarse.channels != fine.channels:
        raise ModelError(
            f"the coarse model {coarse.folder} takes {coarse.channels} channel(s), the fine model "
            f"{fine.folder} {fine.channels}",
            "Use two models trained on the same images.",
        )
    if coarse.labels.names != fine.labels.names:
        raise ModelError(
            f"the models have different labels: {dict(coarse.labels.names)} in {coarse.folder}, "
            f"{dict(fine.labels.names)} in {fine.folder}",
            "Use two models trained on the same labels.",
        )


def pick_device(name: str) -> torch.device:
    """The device that the configuration asks for; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: If it does not exist on this machine.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    device = torch.device(name)
    missing = (device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()) or (
        device.type == "mps" and not torch.backends.mps.is_available()
    )
    if missing:
        raise ConfigError(f"device {name} is not available on this machine", "Use device: auto or cpu.")
    return device
