"""Volumes thinner than a patch, which are better segmented without packing.

nnU-Net pads a thin volume to the patch, and the padding takes part in everything that the network computes. A patch
around one region then shows the region in the surroundings that the network knows, which crops side by side are not.
Such volumes have few patches, so that there is little to save either. ``canvas.norm``, which says what becomes of crops
side by side, has no meaning there.
"""

from __future__ import annotations

from dataclasses import replace

from assignnet import RoiTree
from canvas import Box, Triple
from coarse2fine.config.schema import Config
from coarse2fine.fine.canvases import tiles_of, tiles_under
from coarse2fine.fine.sizes import CanvasPlan, plan_sizes
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.working_grid import WorkingView
from coarse2fine.resampling.operators import Floats
from coarse2fine.selection.selector import find_tree


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
    tree: RoiTree, heatmap: Floats, view: WorkingView, model: Model, config: Config
) -> tuple[RoiTree, Config, CanvasPlan] | None:
    """The regions of a thin volume and the settings that segment them as two-stage mode does.

    Where patches around the regions would be more than the tiles of nnU-Net's sliding window over the volume that touch
    them, regions are seen on these tiles instead. So no thin volume takes more passes than in one-stage mode.

    Args:
        tree: The regions.
        heatmap: Where they come from, shape (z, y, x).
        view: The fine model's view of the volume, or of a window of it.
        model: The fine model.
        config: Settings of accelerated mode.

    Returns:
        None if the volume is not thin, or the settings ask for resized crops or for inputs smaller than a patch.
    """
    asked = not config.canvas.enabled or config.fine.postprocess == "resize_only"
    if asked or config.mode != "accelerated" or not is_thin(view.whole, model.patch):
        return None
    classical = two_stage(config)
    plan, step = plan_sizes(classical, model), config.fine.tile_step
    if view.window == Box.whole(view.whole):  # regions of a part of a volume may belong to somebody else
        tree = find_tree(classical, plan, heatmap, view)
    boxes = [parent.box for parent in tree.parents]
    around = sum(len(tiles_of(box, plan.native, step)) for box in boxes)
    return tree, classical, replace(plan, shared=len(tiles_under(boxes, model.patch, step, view.shape)) < around)
