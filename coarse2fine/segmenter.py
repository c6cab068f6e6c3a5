"""The steps between a volume and its labels, each for a whole volume or for a window of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assignnet import Roi, RoiTree, in_space_order
from canvas import Box
from coarse2fine.coarse.foreground import check_labels, foreground_doubts
from coarse2fine.coarse.heatmap import CoarseResult, CoarseStage, coarse_parts, predict_heatmap
from coarse2fine.coarse.scene import Scene
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError, ModelError
from coarse2fine.fine.deadline import Deadline
from coarse2fine.fine.inputs import UNSETTLED, VolumeNorm
from coarse2fine.fine.segment import FineResult, FineStage, segment_boxes
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.cpu_layers import lean
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.selection.order import worth_of
from coarse2fine.selection.selector import Selector, find_selector, find_tree
from coarse2fine.selection.thin import share_tiles, stage_for, two_stage
from coarse2fine.system.timing import Run, Stage


@dataclass(frozen=True, slots=True, eq=False)
class Segmented:
    """What came of some regions.

    Attributes:
        writer: Holds the labels.
        tree: The regions.
        chosen: Regions that were chosen, in order.
        fine: What the fine stage did with them.
        unpacked: Whether that was what two-stage mode does, in a thin volume.
    """

    writer: LabelWriter
    tree: RoiTree
    chosen: tuple[Roi, ...]
    fine: FineResult
    unpacked: bool


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """The regions that are to be segmented, and how.

    Attributes:
        rois: In order.
        stage: That of the fine model.
        unpacked: Whether it does what two-stage mode does, in a thin volume.
    """

    rois: tuple[Roi, ...]
    stage: FineStage
    unpacked: bool


@dataclass(frozen=True, slots=True, eq=False)
class Segmenter:
    """Two models and the settings by which they segment, from coarse to fine.

    Attributes:
        config: All settings.
        coarse: The coarse model, prepared for inference.
        stage: The fine model, its settings and sizes.
        selector: Who chooses regions.
    """

    config: Config
    coarse: Model
    stage: FineStage
    selector: Selector

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the user should know, whatever the volume is."""
        return (*self.selector.warnings, *foreground_doubts(self.config, self.coarse, self.stage.model))

    @property
    def labels_coarsely(self) -> bool:
        """Whether coarse labels stand anywhere: as inputs of a cascade, or where the fine network does not look."""
        config = self.config
        return self.stage.model.cascade or config.fine.outside == "coarse" or config.deadline is not None

    def heatmap(
        self, view: WorkingView, run: Run, window: Box | None = None, *, keep_outputs: bool = True
    ) -> CoarseResult:
        """What the coarse network says of a volume, or of a window of it, and what an agent may want to see of it.

        Args:
            view: The coarse model's view of the volume.
            run: Books ``coarse`` and ``coarse.network``.
            window: Part of the coarse grid, axes of the coarse model.
            keep_outputs: Whether the result has labels, too.
        """
        keep = self.selector.features.wants_coarse
        with run.clock.time(Stage.COARSE):
            stage = CoarseStage(self.coarse, self.stage.model, self.config.coarse, keep, keep_outputs)
            return predict_heatmap(stage, view, run, window)

    def stage_over(self, view: WorkingView) -> FineStage:
        """The stage that segments a volume: another one if that is thin, see ``selection.thin``."""
        return stage_for(self.stage, view.whole)

    def regions(self, scene: Scene, run: Run) -> RoiTree:
        """Heatmap -> ROI tree, of a whole volume; books ``rois``."""
        with run.stage(Stage.ROIS):
            stage = self.stage_over(scene.view)
            return find_tree(stage.config, stage.plan, scene.coarse.heatmap, scene.view)

    def choose(self, tree: RoiTree, scene: Scene, run: Run) -> Choice:
        """The regions to segment; in a thin volume all, as two-stage mode does it; books ``assign``."""
        stage = self.stage_over(scene.view)
        with run.clock.time(Stage.ASSIGN):
            if stage is not self.stage:
                stage = share_tiles(stage, tree, scene.view.shape)
                return Choice(in_space_order(tree.parents, stage.plan.slot), stage, True)
            return Choice(self.selector.choose(tree, scene, stage.model, run.clock), stage, False)

    def segment(
        self,
        tree: RoiTree,
        scene: Scene,
        run: Run,
        *,
        elsewhere: Sequence[Box] = (),
        norm: VolumeNorm = UNSETTLED,
        track: bool = False,
        probabilities: bool = False,
        closing_s: float = 0.0,
    ) -> Segmented:
        """Choose regions and segment them; in a thin volume all, as two-stage mode does (``selection.thin``).

        Args:
            tree: The regions, found with the settings of ``stage_over``, counted from the start of the scene.
            scene: What they are of.
            run: Books ``assign`` and ``fine``; told of canvases.
            elsewhere: Boxes of the scene that somebody else segments.
            norm: What is settled for the whole volume.
            track: Whether the writer keeps which voxels the fine network decided.
            probabilities: Whether it keeps probabilities.
            closing_s: Under a deadline, how long it takes to do what comes after the fine stage.

        Raises:
            DeadlineError: If the deadline leaves no time for the fine stage.
        """
        choice = self.choose(tree, scene, run)
        stage, norm = choice.stage, UNSETTLED if choice.unpacked else norm
        with run.clock.time(Stage.FINE):
            deadline = self._deadline(choice.rois, scene, run, closing_s)
            writer = LabelWriter(
                scene.view, stage.model, track=track or deadline is not None, probabilities=probabilities
            )
            if stage.config.fine.outside == "coarse":
                for box, found in coarse_parts(scene.coarse, writer.region, writer.back.shape_out):
                    writer.put(box, found)
            boxes, known = ([roi.box for roi in rois] for rois in (choice.rois, tree.leaves))
            fine = segment_boxes(
                stage, scene, boxes, writer, run, known=known, elsewhere=elsewhere, norm=norm, deadline=deadline
            )
        return Segmented(writer, tree, choice.rois, fine, choice.unpacked)

    @property
    def order(self) -> str:
        """By what regions are put in order under a deadline, see ``selection.order``."""
        return self.config.assign.order or self.selector.order

    @property
    def keeps_coarse(self) -> bool:
        """Whether regions that are not reached in time keep the coarse labels: if these mean the same as fine ones."""
        return self.coarse.labels.agree_with(self.stage.model.labels)

    def _deadline(self, rois: Sequence[Roi], scene: Scene, run: Run, closing_s: float) -> Deadline | None:
        """When the run has to be over, and what comes first until then."""
        asked = self.config.deadline
        if asked is None:
            return None
        worth = worth_of(self.order, rois, scene, self.stage.plan.slot, kept=self.keeps_coarse)
        return Deadline(asked, run.clock, closing_s, worth)


def make_segmenter(config: Config, coarse: Model, stage: FineStage) -> Segmenter:
    """Find who chooses regions.

    Args:
        config: All settings.
        coarse: The coarse model.
        stage: The fine model, its settings and sizes.

    Raises:
        ModelError: If the agent cannot be read, or was trained for something else.
    """
    return Segmenter(config, lean(coarse), stage, find_selector(config, stage.plan, coarse, stage.model))


def preset(config: Config) -> Config:
    """The settings that a mode stands for."""
    return two_stage(config) if config.mode == "two-stage" else config


def check_models(config: Config, coarse: Model | None, fine: Model, *, previous: bool = False) -> None:
    """Refuse models that cannot work together.

    Args:
        config: All settings.
        coarse: The coarse model, if there is one.
        fine: The fine model.
        previous: Whether a cascade gets the previous stage's labels from elsewhere.

    Raises:
        ModelError: Naming both sides of the contradiction.
        ConfigError: If a setting does not suit the coarse model.
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
        if config.mode != "one-stage" or (fine.cascade and not previous):
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
    check_labels(config, coarse, fine)
