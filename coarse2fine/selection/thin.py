"""Volumes thinner than a patch, which are better segmented without packing.

nnU-Net pads a thin volume to the patch, and the padding takes part in everything that the network computes. A patch
around one region then shows the region in the surroundings that the network knows, which crops side by side are not.
Such volumes have few patches, so that there is little to save either. ``canvas.norm``, which says what becomes of crops
side by side, has no meaning there.
"""

from __future__ import annotations

from dataclasses import replace

from assignnet import RoiTree
from canvas import Triple
from coarse2fine.config.schema import Config
from coarse2fine.fine.canvases import tiles_of, tiles_under
from coarse2fine.fine.segment import FineStage


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


def stage_for(stage: FineStage, volume: Triple) -> FineStage:
    """The stage that segments a volume: in accelerated mode of a thin one that of two-stage mode, else the given one.

    Args:
        stage: As the settings ask for it.
        volume: Shape of the whole working grid.

    Returns:
        The given one, too, if the settings ask for resized crops or for inputs smaller than a patch.
    """
    config, model = stage.config, stage.model
    asked = not config.canvas.enabled or config.fine.postprocess == "resize_only"
    if asked or config.mode != "accelerated" or not is_thin(volume, model.patch):
        return stage
    return FineStage.of(model, two_stage(config))


def share_tiles(stage: FineStage, tree: RoiTree, volume: Triple) -> FineStage:
    """Two-stage mode's stage, but with regions seen on tiles of nnU-Net's sliding window where these are fewer.

    So no thin volume takes more passes than in one-stage mode.

    Args:
        stage: From ``stage_for``.
        tree: The regions.
        volume: Shape of what they are counted in.
    """
    patch, step, boxes = stage.model.patch, stage.config.fine.tile_step, [parent.box for parent in tree.parents]
    around = sum(len(tiles_of(box, stage.plan.native, step)) for box in boxes)
    shared = len(tiles_under(boxes, patch, step, volume)) < around
    return replace(stage, plan=replace(stage.plan, shared=shared))
