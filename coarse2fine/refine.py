"""The second look: of the regions that the first one found, choose some and segment them finely."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from assignnet import Roi, RoiTree, in_space_order
from canvas import Box
from coarse2fine.coarse.heatmap import CoarseResult, paint_coarse
from coarse2fine.config.schema import Config
from coarse2fine.fine.segment import FineResult, segment_boxes
from coarse2fine.fine.sizes import CanvasPlan
from coarse2fine.fine.writeback import LabelWriter
from coarse2fine.nnunet.instance_norm import NormStatistics
from coarse2fine.nnunet.model import Model
from coarse2fine.nnunet.sliding_window import Progress
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.selection.selector import Chooser
from coarse2fine.selection.thin import unpacked
from coarse2fine.system.timing import Clock


@dataclass(frozen=True, slots=True, eq=False)
class Refined:
    """What the second look gave.

    Attributes:
        writer: Holds the labels.
        tree: The regions; other ones than were given in a thin volume that is segmented as two-stage mode does it.
        chosen: Regions that were chosen, in order.
        fine: What the fine stage did with them.
        unpacked: Whether that was what two-stage mode does, in a thin volume.
    """

    writer: LabelWriter
    tree: RoiTree
    chosen: tuple[Roi, ...]
    fine: FineResult
    unpacked: bool


def refine(
    tree: RoiTree,
    view: WorkingView,
    model: Model,
    coarse: CoarseResult,
    chooser: Chooser,
    config: Config,
    plan: CanvasPlan,
    clock: Clock,
    progress: Progress,
    *,
    elsewhere: Sequence[Box] = (),
    statistics: NormStatistics | None = None,
    alone: bool | None = None,
    track: bool = False,
) -> Refined:
    """Choose regions and segment them; in a thin volume all of them, as two-stage mode does (``thin.py``).

    Args:
        tree: The regions.
        view: The fine model's view of the volume, or of a window of it.
        model: The fine model.
        coarse: The coarse result over the same region of space.
        chooser: Who chooses.
        config: All settings.
        plan: The fine stage's sizes.
        clock: Books ``assign`` and ``fine``.
        progress: Called with canvases done and known so far.
        elsewhere: Boxes of the view that somebody else segments.
        statistics: Of ``norm: case``, if they have been measured already.
        alone: See ``segment_boxes``.
        track: Whether the writer keeps which voxels the fine network decided.
    """
    with clock.time("assign"):
        plain = unpacked(tree, coarse.heatmap, view, model, config)
        if plain is None:
            chosen = chooser.choose(tree, coarse, view, model, clock)
        else:
            tree, config, plan = plain
            chosen = in_space_order(tree.parents, plan.slot)
    with clock.time("fine"):
        writer = LabelWriter(view, model, track=track)
        if config.fine.outside == "coarse":
            paint_coarse(coarse, writer.labels, writer.region, writer.back.shape_out)
        fine = segment_boxes(
            view,
            model,
            [roi.box for roi in chosen],
            config,
            plan,
            writer,
            coarse,
            clock,
            progress,
            known=[roi.box for roi in tree.leaves],
            elsewhere=elsewhere,
            statistics=statistics if plain is None else None,
            alone=alone if plain is None else None,
        )
    return Refined(writer, tree, chosen, fine, plain is not None)
