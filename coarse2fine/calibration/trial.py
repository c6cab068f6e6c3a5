"""One case segmented with one candidate's settings, or in one-stage mode: how good, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from coarse2fine.calibration.candidates import Candidate
from coarse2fine.calibration.cases import CalibrationCase
from coarse2fine.calibration.kit import files_of
from coarse2fine.calibration.memory import recall, remember
from coarse2fine.calibration.passes import CoarsePass, Labels, OneStagePass, as_compared, coarse_pass, one_stage_pass
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.evaluation.masks import Metric, dice, iou, leave_out, mean_over_labels
from coarse2fine.fine.canvases import count_tiles
from coarse2fine.fine.segment import FineStage
from coarse2fine.io import Volume
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.one_stage import segment_one_stage
from coarse2fine.preprocessing.labels import read_labels
from coarse2fine.preprocessing.working_grid import view_volume
from coarse2fine.promise.statement import settings_fingerprint
from coarse2fine.segmenter import Segmenter, make_segmenter
from coarse2fine.system.timing import Run

ONE_STAGE = "one-stage"
Clock = Callable[[], float]
"""Seconds, from any start."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One case, segmented in one way.

    Attributes:
        case: Its name.
        dice, iou: Means over foreground labels: against true labels; without these against one-stage mode's result.
        seconds: From the volume in memory to the labels in memory, the coarse pass included.
        network_voxels: That went into the fine network.
    """

    case: str
    dice: float
    iou: float
    seconds: float
    network_voxels: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """The inverse of ``to_dict``."""
        return cls(**values)


class Bench:
    """One case, on which candidates are tried. Nothing is read or run before somebody asks for what nobody knows.

    Args:
        case: The case.
        config: Settings that were calibrated.
        coarse: The coarse model that may look at the case.
        fine: The fine model.
        work: Folder of what is known already.
    """

    def __init__(self, case: CalibrationCase, config: Config, coarse: Model, fine: Model, work: Path) -> None:
        self.case, self.config, self.coarse, self.fine, self.work = case, as_compared(config), coarse, fine, work
        self._held: dict[str, Any] = {}

    def one_stage(self) -> Trial:
        """The case in one-stage mode."""

        def run() -> Trial:
            passed = self._one_stage()
            view = view_volume(self._volume(), self.fine)
            tiles = count_tiles(view.shape, self.fine.patch, self.config.fine.tile_step)
            return self._judge(passed.labels, passed.seconds, tiles * prod(self.fine.patch))

        return self._recalled(ONE_STAGE, self.config.model_copy(update={"mode": "one-stage"}), run)

    def candidate(self, candidate: Candidate) -> Trial:
        """The case with a candidate's settings."""
        config = as_compared(candidate.config)

        def run() -> Trial:
            segmenter = make_segmenter(config, self.coarse, FineStage.of(self.fine, config))
            looked, volume = self._coarse(segmenter), self._volume()
            began = time.perf_counter()
            labels, voxels = _segment(segmenter, volume, looked)
            return self._judge(labels, looked.seconds + time.perf_counter() - began, voxels)

        return self._recalled(candidate.name, config, run)

    def _recalled(self, name: str, config: Config, run: Callable[[], Trial]) -> Trial:
        about = {
            "files": files_of(self.case.files),
            "models": [model_fingerprint(model) for model in (self.coarse, self.fine)],
            "settings": settings_fingerprint(config),
            "costs": [config.fine.mirroring, str(self.fine.device)],  # of no concern to boxes
        }
        path = self.work / f"{self.case.name}.{name.replace(' ', '-').replace(',', '')}.json"
        known = recall(path, about)
        if known is not None:
            return Trial.from_dict(known["trial"])
        trial = run()
        remember(path, about, {"trial": trial.to_dict()})
        return trial

    def _judge(self, labels: Labels, seconds: float, voxels: int) -> Trial:
        truth = self._truth()
        labels = leave_out(labels, truth, self.fine.labels.ignore)
        reference = leave_out(truth, truth, self.fine.labels.ignore)
        scores = [_mean(metric, labels, reference, self.fine) for metric in (dice, iou)]
        return Trial(self.case.name, scores[0], scores[1], seconds, voxels)

    def _truth(self) -> Labels:
        def read() -> Labels:
            if self.case.labels is None:
                return self._one_stage().labels
            return read_labels(self.case.labels, self.fine, self._volume())

        return self._once("truth", read)

    def _volume(self) -> Volume[NDArray[Any]]:
        return self._once("volume", lambda: self.case.read(self.coarse, self.fine))

    def _one_stage(self) -> OneStagePass:
        def run() -> OneStagePass:
            return one_stage_pass(self.case, self._volume(), self.config, self.coarse, self.fine, self.work)

        return self._once("one-stage", run)

    def _coarse(self, segmenter: Segmenter) -> CoarsePass:
        return self._once("coarse", lambda: coarse_pass(self.case, self._volume(), segmenter, self.work))

    def _once(self, name: str, make: Callable[[], Any]) -> Any:
        if name not in self._held:
            self._held[name] = make()
        return self._held[name]


def _segment(segmenter: Segmenter, volume: Volume[NDArray[Any]], looked: CoarsePass) -> tuple[Labels, int]:
    """Labels, and the voxels that went into the fine network, from what the coarse network said."""
    config, fine, run = segmenter.config, segmenter.stage.model, Run()
    scene = Scene(view_volume(volume, fine), looked.result)
    tree = segmenter.regions(scene, run)
    if not tree.parents and config.rois.empty == "one-stage":
        tiles = count_tiles(scene.view.shape, fine.patch, config.fine.tile_step)
        return segment_one_stage(volume, config, segmenter.coarse, fine, run), tiles * prod(fine.patch)
    found = segmenter.segment(tree, scene, run)
    return found.writer.finish(), found.fine.network_voxels


def _mean(metric: Metric, labels: NDArray[np.integer[Any]], truth: NDArray[np.integer[Any]], fine: Model) -> float:
    return mean_over_labels(metric, labels, truth, fine.labels.foreground)
