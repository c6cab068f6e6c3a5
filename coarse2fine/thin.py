"""Volumes thinner than a patch, which are better segmented without packing.

nnU-Net pads a thin volume to the patch, and the padding takes part in everything that the network computes. A patch
around one region then shows the region in the surroundings that the network knows, which crops side by side are not.
Such volumes have few patches, so that there is little to save either.
"""

from __future__ import annotations

from collections.abc import Sequence

from assignnet import RoiTree
from canvas import Box, Triple
from coarse2fine.choose import find_tree
from coarse2fine.config import Config
from coarse2fine.fine import CanvasPlan, better_alone, count_tiles, plan_canvases, plan_sizes, tiles_of
from coarse2fine.nnunet import Model
from coarse2fine.resample import Floats
from coarse2fine.view import WorkingView

LEAST_GAIN = 2
"""Unpacked regions are cheap if they take so many times fewer passes than a sliding window."""
MOST_COST = 1.25
"""They are as well if they take at most so many times the passes of packed ones."""


def two_stage(config: Config) -> Config:
    """Settings of two-stage mode: every parent box at native resolution, by a sliding window of full patches.

    This is the classical cascade without any of the acceleration.
    """
    return config.model_copy(
        update={
            "mode": "two-stage",
            "assign": config.assign.model_copy(update={"agent": "all_parents"}),
            "canvas": config.canvas.model_copy(update={"enabled": False, "size": None, "slot": None, "norm": "canvas"}),
            "fine": config.fine.model_copy(
                update={"large_boxes": "native", "postprocess": "crop_and_resize", "crop_threshold": None}
            ),
        }
    )


def is_thin(volume: Triple, patch: Triple) -> bool:
    """Whether a volume has an axis on which a patch sticks out."""
    return any(edge < limit for edge, limit in zip(volume, patch, strict=True))


def unpacked(
    tree: RoiTree, heatmap: Floats, view: WorkingView, model: Model, config: Config, packed: CanvasPlan
) -> tuple[RoiTree, Config, CanvasPlan] | None:
    """The regions of a thin volume and the settings that segment them as two-stage mode does.

    Args:
        tree: The regions.
        heatmap: Where they come from, shape (z, y, x).
        view: The fine model's view of the volume, or of a window of it.
        model: The fine model.
        config: Settings of accelerated mode.
        packed: Its sizes.

    Returns:
        None if the volume is not thin, there are so many regions that packing them saves much, or the settings ask for
        another treatment of regions than the default one.
    """
    asked = not config.canvas.enabled or config.canvas.norm != "case" or config.fine.postprocess == "resize_only"
    if asked or config.mode != "accelerated" or not is_thin(view.whole, model.patch):
        return None
    leaves, classical = tree.leaves, two_stage(config)
    plan = plan_sizes(classical, model)
    step = config.fine.tile_step
    if view.window == Box.whole(view.whole):  # regions of a part of a volume may belong to somebody else
        tree = find_tree(classical, plan, heatmap, view)
    tiles = sum(len(tiles_of(parent.box, plan.native, step)) for parent in tree.parents)
    cheap = LEAST_GAIN * tiles <= count_tiles(view.shape, model.patch, step)
    if not cheap and tiles > MOST_COST * _passes([roi.box for roi in leaves], config, packed, view.shape):
        return None
    return tree, classical, plan


def _passes(boxes: Sequence[Box], config: Config, plan: CanvasPlan, volume: Triple) -> int:
    """What accelerated mode would take for some boxes."""
    if better_alone(boxes, config, plan, volume):
        return len(boxes)
    return len(plan_canvases(boxes, config, plan, volume)) + config.canvas.norm_tiles
