"""The schema of the configuration.

All sizes and spacings are [z, y, x] on the axes of the working grid. ``configs/README.md`` lists every key; a test
keeps that list equal to this schema.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

from coarse2fine.config.types import (
    AgentName,
    Count,
    Device,
    Duration,
    FileName,
    Folds,
    Fraction,
    Interval,
    LabelNames,
    ModelFolder,
    Natural,
    NonNegative,
    Number,
    Overlap,
    Padding,
    Probability,
    Size,
    Spacing,
    unknown_agent,
)
from coarse2fine.config.validation import ConflictError, section_of
from coarse2fine.config.yaml import Keys

# What the original system called our keys, so that people who know it are pointed to the new names.
ORIGINAL_NAMES = {
    "roi_threshold": "rois.threshold",
    "prior_downsample": "rois.heatmap_voxel",
    "axis_thr": "rois.min_edge",
    "area_thr": "rois.min_voxels",
    "nmm_recrop": "rois.window",
    "nms_threshold": "rois.nms_threshold",
    "nmm_threshold": "rois.nmm_threshold",
    "lambda": "assign.lambda",
    "downsample_mode": "assign.downsample_mode",
    "pooling_mode": "assign.pooling_mode",
    "start_label": "assign.start_label",
    "global_info": "assign.global_info",
    "canvas_size": "canvas.size",
    "patch_size": "canvas.slot",
    "postprocess": "fine.postprocess",
    "crop_threshold": "fine.crop_threshold",
    "use_prior": "fine.use_prior",
}


# Defaults go by keyword: mypy sees no other ones, and would ask callers for every field.
class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class BodyCrop(_Section):
    """How the volume is cropped to the body before the coarse stage."""

    above: Number = Field(default=-500.0, description="Intensity above which a voxel belongs to the body")
    margin_mm: NonNegative = Field(default=10.0, description="Margin kept around the body")


class CoarseConfig(_Section):
    """The coarse stage: a low-resolution nnU-Net over the whole volume, whose foreground is the heatmap."""

    model: ModelFolder | None = Field(default=None, description="nnU-Net model folder of the coarse network")
    folds: Folds | None = Field(
        default=None, description="Folds whose results are averaged; null = all that the folder has"
    )
    checkpoint: FileName = Field(default="checkpoint_final.pth", description="Checkpoint file in each fold's folder")
    foreground: LabelNames | None = Field(
        default=None, description="Labels of the coarse model that the heatmap counts; null = all but background"
    )
    spacing: Spacing | None = Field(
        default=None, description="Voxel size that the network sees; null = as in the plans"
    )
    patch_size: Size | None = Field(default=None, description="Tile of the sliding window; null = as in the plans")
    tile_step: Fraction = Field(default=0.5, description="Step between tiles, as a share of the tile")
    mirroring: bool = Field(default=False, description="Average over mirrored inputs, where the model allows it")
    body_crop: BodyCrop | None = Field(
        default=None, description="Crop to the body first; null = no, {} = with its defaults"
    )


class RoisConfig(_Section):
    """From the heatmap to the ROI tree."""

    threshold: Probability = Field(default=0.3, description="Heatmap value above which a voxel may be foreground")
    heatmap_voxel: Size | None = Field(
        default=None, description="Voxel of the heatmap; null = that of the coarse network"
    )
    min_edge: NonNegative = Field(default=0.0, description="A component with a shorter box edge is ignored")
    min_voxels: NonNegative = Field(default=0.0, description="A component with fewer voxels is ignored")
    margin: Padding = Field(default=(0, 0, 0), description="Added on each side of a component's box")
    window: Size | None = Field(
        default=None, description="Larger components are cut into windows of this size; null = all that stays native"
    )
    window_step: Fraction = Field(default=1.0, description="Step between these windows, as a share of the window")
    nms_threshold: Fraction = Field(
        default=0.75, description="Overlap from which on the lower-scored of two boxes is dropped"
    )
    nms_overlap: Overlap = Field(
        default="iou", description="Overlap of NMS: over the union (iou) or the smaller box (ios)"
    )
    nmm_threshold: Fraction = Field(default=0.35, description="Overlap from which on children merge into a parent")
    nmm_overlap: Overlap = Field(
        default="ios", description="Overlap of NMM: over the union (iou) or the smaller box (ios)"
    )
    nmm_merging: Literal["greedy", "transitive"] = Field(
        default="greedy",
        description="A parent takes what overlaps its best child (greedy) or any of its children (transitive)",
    )
    empty: Literal["background", "one-stage"] = Field(
        default="background",
        description="If nothing exceeds the threshold: an empty result, or a run in one-stage mode",
    )


class AssignConfig(_Section):
    """Which boxes are processed, and in which order."""

    agent: AgentName = Field(
        default="greedy",
        validation_alias=AliasChoices("agent", "rule"),
        description="Who chooses: a rule, the name of a shipped agent, or an agent's folder (also called rule)",
    )
    # `lambda` is a reserved word of Python, so the attribute needs a name of its own; both work in files.
    weight: NonNegative = Field(
        default=0.05,
        validation_alias=AliasChoices("lambda", "weight"),
        serialization_alias="lambda",
        description="Weight of a box's cost against its gain (also called weight)",
    )
    drop: bool = Field(default=False, description="Whether greedy may leave out ROIs that are not worth their cost")
    keep: Count | None = Field(default=None, description="How many parents the rule top_k selects; null = half of them")
    order: Literal["doubt", "mass", "score", "space", "random", "agent"] | None = Field(
        default=None,
        description="Under a deadline: which regions come first; null = those that an agent trained for it puts first, "
        "else doubt",
    )
    budget: NonNegative | None = Field(
        default=None, description="Most slots that an agent may spend on a volume; null = no limit; rules ignore it"
    )
    features: Literal["none", "coarse", "fine"] = Field(
        default="none",
        description="Training: whose encoder an agent sees ROIs with; at inference the agent's own card rules",
    )
    downsample_mode: Literal["center", "resize"] = Field(
        default="center",
        description="Training, features: fine: an ROI is seen by the slot at its centre, or whole, shrunk to a slot",
    )
    pooling_mode: Literal["max", "mean"] = Field(
        default="max", description="Training: how the features of each quarter of an ROI are pooled"
    )
    global_info: bool = Field(default=False, description="Training: an agent also sees features of the whole volume")
    start_label: bool = Field(
        default=False, description="Training: a learned token stands for the last choice before the first one"
    )


class CanvasConfig(_Section):
    """How crops share one input of the fine network."""

    enabled: bool = Field(
        default=True, description="Several crops per input; false = one crop of the slot's size per input"
    )
    size: Size | None = Field(default=None, description="Input of the fine network; null = the fine model's patch")
    slot: Size | None = Field(default=None, description="Room for one crop; null = half of the canvas on every axis")
    packing: Literal["same_size", "same_scale"] = Field(
        default="same_scale",
        description="Crops keep one scale and are bin-packed, or every crop fills a slot of a grid",
    )
    capacity: Count | Literal["auto"] = Field(
        default="auto", description="Most crops per canvas; auto = as many as fit"
    )
    norm: Literal["canvas", "slot", "case"] = Field(
        default="case",
        description="What instance norm takes its statistics from; case = native tiles, once per volume",
    )
    norm_tiles: Count = Field(default=3, description="Native tiles that the statistics of norm: case are measured on")
    context: Padding | None = Field(
        default=None,
        description="same_scale: real surroundings kept on each side of a box; null = a sixteenth of the canvas",
    )


class FineConfig(_Section):
    """The fine stage: the full-resolution nnU-Net on the chosen boxes."""

    model: ModelFolder | None = Field(default=None, description="nnU-Net model folder of the fine network")
    folds: Folds | None = Field(
        default=None, description="Folds whose results are averaged; null = all that the folder has"
    )
    checkpoint: FileName = Field(default="checkpoint_final.pth", description="Checkpoint file in each fold's folder")
    postprocess: Literal["crop_and_resize", "resize_only"] = Field(
        default="crop_and_resize",
        description="Small boxes stay native and only larger ones are resized, or all are resized",
    )
    crop_threshold: Size | None = Field(default=None, description="Largest box that counts as small; null = the slot")
    large_boxes: Literal["resize", "native"] = Field(
        default="resize", description="A box larger than the slot: one resized crop, or several native crops"
    )
    tile_step: Fraction = Field(
        default=0.5, description="Step between native tiles (one-stage too), as a share of the tile"
    )
    mirroring: bool = Field(default=True, description="Average over mirrored inputs, where the model allows it")
    precision: Literal["fp32", "bf16", "auto"] = Field(
        default="fp32",
        description="On a CPU: single precision, bfloat16, or auto = bfloat16 where the processor has it and labels "
        "stay (never in one-stage mode)",
    )
    use_prior: bool = Field(
        default=False, description="The coarse result becomes extra input channels (3d_cascade_fullres)"
    )
    outside: Literal["background", "coarse"] = Field(
        default="background", description="What voxels outside all processed boxes get: background or the coarse result"
    )
    grow: Natural = Field(default=2, description="How often a box whose mask touches its face may grow and run again")
    grow_above: Probability = Field(
        default=0.0, description="A box grows only into regions where the heatmap somewhere reaches this"
    )
    grow_step: Size | None = Field(
        default=None, description="Growth on each touched side; null = a quarter of the slot"
    )


class BlocksConfig(_Section):
    """Volumes that are read by region: how they are divided. Sizes are voxels of the volume, in its own axis order."""

    cell: Size | None = Field(
        default=None,
        description="Within a cell boxes are found, merged and packed; null = four patches of the fine network",
    )
    per_block: Size = Field(
        default=(1, 2, 2),
        description="Cells of a block, which is read, run and resumed as one; no result depends on it",
    )
    halo: Padding | None = Field(
        default=None, description="How far around its cell a mask may be followed; null = a slot"
    )
    coarse_level: Natural | None = Field(
        default=None,
        description="Scale level that the coarse network reads, 0 = finest; null = the coarsest that is fine enough",
    )
    statistics: Fraction = Field(default=1.0, description="Share of the blocks that are read for intensity statistics")


class KnownConfig(_Section):
    """What the calibration cases were like: the lowest and highest value of each kind."""

    spacing: tuple[Interval, Interval, Interval] = Field(description="Voxel size of each axis (z, y, x) of the files")
    low: tuple[Interval, ...] = Field(description="First percentile of each channel's intensities")
    high: tuple[Interval, ...] = Field(description="99th percentile of each channel's intensities")
    mass: Interval = Field(description="Volume of what the coarse model finds, the heatmap's integral")


class PromiseConfig(_Section):
    """What a calibrated kit promises; written by c2f-prepare, and void where other settings are changed."""

    miss: Fraction = Field(description="Most share of a case's foreground that lies outside of all boxes")
    probability: Probability = Field(description="With which a new case keeps that, or the share of all cases that do")
    confidence: Probability | None = Field(
        default=None, description="That the share of all cases is at least that; null = probability is of a new case"
    )
    cases: Count = Field(description="How many cases it was calibrated on, n")
    rank: Count = Field(description="The k-th lowest of their thresholds was taken")
    foreground: Literal["labels", "one-stage"] = Field(
        description="What counts as foreground: true labels, or what the fine model finds in one-stage mode"
    )
    crossed: bool = Field(
        default=False,
        description="Whether cases were looked at by other coarse models than the kit's, trained without them",
    )
    settings: str = Field(description="Fingerprint of the settings that it was calibrated with")
    coarse_model: str = Field(description="Fingerprint of the coarse model's weights")
    fine_model: str = Field(description="Fingerprint of the fine model's weights")
    known: KnownConfig = Field(description="What the calibration cases were like")


class Config(_Section):
    """All settings of a run."""

    mode: Literal["accelerated", "two-stage", "one-stage"] = Field(
        default="accelerated",
        description="Chosen boxes on canvases, a sliding window where the heatmap is, or everywhere",
    )
    device: Device = Field(default="auto", description="Where the networks run: auto, cpu, cuda, cuda:N or mps")
    deadline: Duration | None = Field(
        default=None,
        description="When the result of a volume has to be there after its run began; null = when it is done",
    )
    coarse: CoarseConfig = Field(default_factory=CoarseConfig, description="The coarse stage")
    rois: RoisConfig = Field(default_factory=RoisConfig, description="From the heatmap to the ROI tree")
    assign: AssignConfig = Field(default_factory=AssignConfig, description="Which boxes, in which order")
    canvas: CanvasConfig = Field(default_factory=CanvasConfig, description="How crops share an input")
    fine: FineConfig = Field(default_factory=FineConfig, description="The fine stage")
    blocks: BlocksConfig = Field(default_factory=BlocksConfig, description="Volumes that are read by region")
    promise: PromiseConfig | None = Field(default=None, description="What a kit made by c2f-prepare promises")

    def to_dict(self) -> dict[str, Any]:
        """The settings under their YAML keys, ready for JSON."""
        return self.model_dump(mode="json", by_alias=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: object) -> object:
        """A section whose keys are all commented out reads as null and means its defaults."""
        if not isinstance(data, Mapping):
            return data
        sections = {name for name, field in cls.model_fields.items() if section_of(field)}
        return {key: value for key, value in data.items() if value is not None or key not in sections}

    @model_validator(mode="after")
    def _values_fit_together(self) -> Config:
        conflicts = list(_conflicts(self))
        if conflicts:
            raise ConflictError(conflicts)
        return self


def _conflicts(config: Config) -> Iterator[tuple[Keys, str]]:
    """What does not fit together, as far as it can be known without the models."""
    if problem := unknown_agent(config.assign.agent):
        yield ("assign", "agent"), problem
    if config.deadline is not None:
        looks = "looks at everything and cannot stop early: leave out the deadline (null)"
        if config.mode == "one-stage":
            yield ("deadline",), f"mode: one-stage {looks}, or choose mode: accelerated"
        elif config.rois.empty == "one-stage":
            yield ("deadline",), f"rois.empty: one-stage {looks}, or set rois.empty: background"
    if config.assign.drop and not config.assign.weight:
        yield ("assign", "drop"), "needs a lambda above 0: at no cost, nothing is too expensive to keep"
    size, slot, capacity = config.canvas.size, config.canvas.slot, config.canvas.capacity
    context, crop_threshold = config.canvas.context, config.fine.crop_threshold
    if size and slot and _exceeds(slot, size):
        yield ("canvas", "slot"), f"{list(slot)} does not fit into canvas.size {list(size)}"
        return
    if size and not slot:
        slot = (max(1, size[0] // 2), max(1, size[1] // 2), max(1, size[2] // 2))
    if size and slot and capacity != "auto" and config.canvas.packing == "same_size":
        room = math.prod(whole // part for whole, part in zip(size, slot, strict=True))
        if capacity > room:
            yield ("canvas", "capacity"), f"{capacity} is more than the {room} slots {list(slot)} in {list(size)}"
    if slot and context and any(2 * width >= edge for width, edge in zip(context, slot, strict=True)):
        yield ("canvas", "context"), f"{list(context)} on both sides leaves no room for a box in a slot {list(slot)}"
    if slot and crop_threshold and _exceeds(crop_threshold, slot):
        yield ("fine", "crop_threshold"), f"{list(crop_threshold)} is larger than the slot {list(slot)}"


def _exceeds(part: Sequence[int], whole: Sequence[int]) -> bool:
    return any(a > b for a, b in zip(part, whole, strict=True))
