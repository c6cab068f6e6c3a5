"""The main path: a volume goes in, labels in its own geometry come out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from assignnet import RoiTree
from canvas import Box
from coarse2fine.coarse.scene import Scene, scene_within
from coarse2fine.config.schema import Config
from coarse2fine.counts import Tally, boxes_left, tally
from coarse2fine.errors import ConfigError
from coarse2fine.fine.previous_stage import given_labels
from coarse2fine.fine.segment import FineStage
from coarse2fine.io import DICOM_SUFFIX, Volume, read_volume, write_labels, write_segmentation
from coarse2fine.look import Look, look_of
from coarse2fine.measures import measure, row_of
from coarse2fine.nnunet.loading import load_model
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.precision import in_precision, used_precision
from coarse2fine.one_stage import write_one_stage
from coarse2fine.preprocessing.labels import Labels, read_labels
from coarse2fine.preprocessing.mask import mask_over, unset_outside
from coarse2fine.preprocessing.working_grid import view_volume, volume_doubts
from coarse2fine.promise.likeness import likeness_of
from coarse2fine.promise.statement import Promised, check_promise, promised
from coarse2fine.report import (
    NOTHING_FOUND,
    DeadlineKept,
    NetworkTime,
    RunReport,
    Timing,
    count_labels,
    peak_memory_mb,
    versions,
)
from coarse2fine.reserve import closing_seconds
from coarse2fine.segmenter import Segmented, Segmenter, check_models, make_segmenter, preset
from coarse2fine.system.device import pick_device
from coarse2fine.system.timing import Aside, Progress, Run, Stage, silent


@dataclass(frozen=True, slots=True, eq=False)
class Result:
    """What came of one volume.

    Attributes:
        labels: Shape (z, y, x) of the volume, in its own axis order.
        report: What was done, and how long it took.
        tree: The regions that were found; None in one-stage mode.
        boxes: Regions of the working grid that the fine network segmented.
        probabilities: Shape (outputs, z, y, x), in the voxel order of the fine model's reader; None unless asked for.
        look: Where the run looked, in voxels of the volume; None in one-stage mode.
    """

    labels: NDArray[np.unsignedinteger[Any]]
    report: RunReport
    tree: RoiTree | None = None
    boxes: tuple[Box, ...] = ()
    probabilities: NDArray[np.float32] | None = None
    look: Look | None = None


class Pipeline:
    """Coarse-to-fine segmentation with two nnU-Net models.

    Args:
        config: All settings.
        coarse: The low-resolution model; None only in one-stage mode.
        fine: The full-resolution model.
        previous: Whether a cascade gets the previous stage's labels with every volume, so that one-stage mode needs no
            coarse model for it.

    Raises:
        ModelError: If the models do not fit each other or the mode, or the agent does not fit them.
    """

    def __init__(self, config: Config, coarse: Model | None, fine: Model, *, previous: bool = False) -> None:
        self.config = preset(config)
        fine = in_precision(fine, config.fine.precision, exact=config.mode == "one-stage")
        self.coarse, self.fine = coarse, fine
        self.stage = FineStage.of(fine, self.config)
        check_models(self.config, coarse, fine, previous=previous)
        check_promise(self.config, coarse, fine)
        self.segmenter: Segmenter | None = None
        if self.config.mode != "one-stage" and coarse is not None:
            self.segmenter = make_segmenter(self.config, coarse, self.stage)

    @classmethod
    def from_config(cls, config: Config, *, trust_checkpoint: bool = False, previous: bool = False) -> Self:
        """Load the models that the configuration names.

        Args:
            config: All settings; ``coarse.model`` and ``fine.model`` are folders of trained nnU-Net v2 models.
            trust_checkpoint: Unpickle checkpoints without restriction, which lets them run code.
            previous: As of the class.
        """
        needed = config.mode != "one-stage" or config.coarse.model is not None
        coarse = load_stage("coarse", config, trust_checkpoint=trust_checkpoint) if needed else None
        fine = load_stage("fine", config, trust_checkpoint=trust_checkpoint)
        return cls(config, coarse, fine, previous=previous)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models that look at a volume, the fine one last."""
        return (self.fine,) if self.coarse is None else (self.coarse, self.fine)

    def read(self, files: Sequence[Path]) -> Volume[NDArray[Any]]:
        """Read a case, one file for each channel, as the models' readers do; errors as of ``read_volume``."""
        return read_volume(files, [model.reader for model in self.models])

    def run_files(
        self,
        files: Sequence[Path],
        output: Path,
        progress: Progress = silent,
        *,
        probabilities: bool = False,
        measures: bool = False,
        objects: bool = False,
        previous: Path | None = None,
        mask: Path | None = None,
        read: Callable[[Sequence[Path]], Volume[NDArray[Any]]] | None = None,
    ) -> Result:
        """From files to a file: one input per channel, labels in the first input's geometry, written atomically.

        Args:
            files: One for each channel; or a DICOM series' folder or zip file.
            output: The label file; of a DICOM series it may end in .dcm.
            progress: Told of every step.
            probabilities: Whether the result has these, too; they are not written.
            measures: Whether the report has those of labels.
            objects: Whether the report has those of connected objects, too.
            previous: A file with the previous stage's labels, for a cascade.
            mask: A file or store that is set where something is to be looked at; None for everywhere.
            read: Reads the files, instead of ``Pipeline.read``; may have done so before it is asked.

        Raises:
            VolumeError: If a file cannot be used.
            DeadlineError: If there is a deadline that cannot be kept.
        """
        run = Run(progress=progress)
        with run.clock.time(Aside.TOTAL):
            with run.stage(Stage.READ):
                volume = (read or self.read)(files)
                known = read_labels(previous, self.fine, volume) if previous else None
                shown = None if mask is None else mask_over(str(mask), volume.grid)
            result = self._segment(volume, run, output, probabilities, known, shown)
            with run.stage(Stage.WRITE):
                if output.name.endswith(DICOM_SUFFIX):
                    write_segmentation(result.labels, self.fine.labels.values_of, files[0], output)
                else:
                    write_labels(result.labels, volume.grid, output)
        # A deadline is for the labels, which others may read from now on.
        with run.clock.time(Aside.MEASURE):
            report = replace(
                result.report,
                measures=self._rows(result.labels, volume, objects=False) if measures else (),
                objects=self._rows(result.labels, volume, objects=True) if objects else (),
            )
        return self._finish(replace(result, report=report), run)

    def _rows(
        self, labels: NDArray[np.unsignedinteger[Any]], volume: Volume, *, objects: bool
    ) -> tuple[dict[str, Any], ...]:
        return tuple(map(row_of, measure(labels, volume, self.fine.labels.values_of, objects=objects)))

    def __call__(
        self,
        volume: Volume,
        run: Run | None = None,
        *,
        probabilities: bool = False,
        previous: Labels | None = None,
        mask: NDArray[np.bool_] | None = None,
    ) -> Result:
        """Segment a volume in one piece; one that is read by region is read into memory first.

        Args:
            volume: Channels of shape (z, y, x) with their grid.
            run: Receives the time of each stage, and is told about every step; who gives one books ``total``. Its clock
                was made when a deadline began to count.
            probabilities: Whether the result has these, too, and labels are chosen by them. Where the fine network did
                not look, the label that is there is certain.
            previous: The previous stage's labels for a cascade, shape (z, y, x) of the volume; without them it gets the
                coarse model's.
            mask: Where something is looked at, shape of the volume; None for everywhere. Labels are background outside
                of it, whatever the probabilities say.

        Raises:
            DeadlineError: If there is a deadline that cannot be kept.
        """
        if run is not None:
            return self._segment(volume, run, None, probabilities, previous, mask)
        run = Run()
        with run.clock.time(Aside.TOTAL):
            result = self._segment(volume, run, None, probabilities, previous, mask)
        return self._finish(result, run)

    def _segment(
        self,
        volume: Volume,
        run: Run,
        output: Path | None,
        probabilities: bool,
        previous: Labels | None,
        mask: NDArray[np.bool_] | None,
    ) -> Result:
        if self.fine.trial is not None:
            self.fine.trial.passed = None
        with run.clock.time(Stage.READ):  # once, and not for each of the networks; nothing happens to what is in memory
            volume = replace(volume, channels=tuple(np.asarray(channel) for channel in volume.channels))
        if self.segmenter is None:
            return self._one_stage(volume, run, probabilities, previous, mask)
        closing_s = 0.0
        if self.config.deadline is not None:
            with run.clock.time(Stage.WRITE):
                closing_s = closing_seconds(volume, self.fine.labels.dtype, output, run.clock)
        seen = self._look(self.segmenter, volume, run, previous)
        with run.clock.time(Stage.ROIS):
            scene = seen if mask is None else scene_within(seen, mask)
        tree = self.segmenter.regions(scene, run)
        if not tree.parents and self.config.rois.empty == "one-stage":
            empty = "the heatmap is empty: ran one-stage instead"
            return self._one_stage(volume, run, probabilities, previous, mask, empty)
        found = self.segmenter.segment(tree, scene, run, closing_s=closing_s, probabilities=probabilities)
        with run.clock.time(Stage.FINE):
            labels = unset_outside(found.writer.finish(), mask)
            values = found.writer.probabilities()
        with run.clock.time(Stage.ACCOUNT):
            case = likeness_of(volume, seen) if self.config.promise else None
            promise = promised(self.config, case, left=len(found.fine.left), masked=mask is not None)
            kept = self._kept(self.segmenter, found, scene, closing_s)
            counts, notes = tally(found, scene), tuple(run.notes)
            report = self._report(volume, labels, counts, self.segmenter, promise, kept, mask, notes)
            look = look_of(found, scene)
        return Result(labels, report, found.tree, found.fine.boxes, values, look)

    def _kept(self, segmenter: Segmenter, found: Segmented, scene: Scene, closing_s: float) -> DeadlineKept | None:
        """What came of a deadline."""
        asked = self.config.deadline
        if asked is None:
            return None
        left, share = boxes_left(found, scene)
        filled_with = "coarse" if segmenter.keeps_coarse else "background"
        boxes = len(found.chosen) + found.fine.grown + found.fine.late
        return DeadlineKept(asked, closing_s, segmenter.order, boxes, left, share, filled_with)

    def _look(self, segmenter: Segmenter, volume: Volume, run: Run, previous: Labels | None) -> Scene:
        """Volume -> heatmap, and the fine model's view of the volume."""
        with run.clock.time(Stage.COARSE):
            seen = view_volume(volume, segmenter.coarse, self.config.coarse.spacing).uploaded()
        coarse = segmenter.heatmap(seen, run, keep_outputs=segmenter.labels_coarsely)
        with run.clock.time(Stage.FINE):
            view = view_volume(volume, self.fine).uploaded(seen)
            known = given_labels(previous, view, self.fine) if previous is not None and self.fine.cascade else None
        return Scene(view, coarse, known)

    def _one_stage(
        self,
        volume: Volume,
        run: Run,
        probabilities: bool,
        previous: Labels | None,
        mask: NDArray[np.bool_] | None,
        *warnings: str,
    ) -> Result:
        writer = write_one_stage(
            volume, self.config, self.coarse, self.fine, run, probabilities=probabilities, previous=previous
        )
        with run.clock.time(Stage.FINE):
            labels = unset_outside(writer.finish(), mask)
            values = writer.probabilities()
        with run.clock.time(Stage.ACCOUNT):
            report = self._report(volume, labels, None, None, None, None, mask, (*warnings, *run.notes))
        return Result(labels, report, probabilities=values)

    def _report(
        self,
        volume: Volume,
        labels: NDArray[np.unsignedinteger[Any]],
        chosen: Tally | None,
        segmenter: Segmenter | None,
        promise: Promised | None,
        deadline: DeadlineKept | None,
        mask: NDArray[np.bool_] | None,
        warnings: tuple[str, ...] = (),
    ) -> RunReport:
        """Everything but the times, which are not complete before the result is written."""
        found = count_labels(labels)
        counts = chosen or Tally()  # one-stage: nothing is chosen, and everything is seen
        warnings += (
            *(segmenter.warnings if segmenter else ()),
            *counts.warnings,
            *(deadline.warnings if deadline else ()),
            *(promise.warnings if promise else ()),
            *volume_doubts(volume, self.models),
            *(() if found else (NOTHING_FOUND,)),
        )
        return RunReport(
            case=volume.name,
            mode="one-stage" if chosen is None else self.config.mode,
            timing_s=Timing(),  # not complete before the result is written
            network_s=NetworkTime(),
            boxes=counts.boxes,
            canvases=counts.network_inputs,
            coverage=counts.coverage,
            labels=found,
            warnings=warnings,
            device=str(self.fine.device),
            precision=used_precision(self.fine),
            config=self.config.to_dict(),
            agent=segmenter.selector.describe() if segmenter else {},
            promise=promise,
            deadline=deadline,
            in_mask=None if mask is None else int(mask.sum()),
        )

    def _finish(self, result: Result, run: Run) -> Result:
        """Fill in times, memory and versions."""
        seconds = run.clock.named()
        report = replace(
            result.report,
            timing_s=Timing.of(seconds),
            network_s=NetworkTime.of(seconds),
            peak_memory_mb=peak_memory_mb(self.fine.device),
            versions=versions(),
        )
        return replace(result, report=report)


def load_stage(stage: Literal["coarse", "fine"], config: Config, *, trust_checkpoint: bool = False) -> Model:
    """The model of one stage that the configuration names; arguments as of ``Pipeline.from_config``.

    Raises:
        ConfigError: If it names none.
    """
    section = config.coarse if stage == "coarse" else config.fine
    if section.model is None:
        raise ConfigError(
            f"{stage}.model is not set", f"Name the model folder in the configuration or with --{stage}-model."
        )
    folds = None if section.folds is None else tuple(str(fold) for fold in section.folds)
    device = pick_device(config.device)
    return load_model(section.model, folds=folds, checkpoint=section.checkpoint, device=device, trust=trust_checkpoint)
