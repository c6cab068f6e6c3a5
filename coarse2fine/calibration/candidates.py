"""Which settings are tried for a kit, and which of them can differ in the boxes that they begin with.

Only what the user left open is tried. A candidate that begins with other boxes than the settings that were calibrated
would void the promise if it were chosen on the same cases. So all that may be chosen are calibrated together
(``also_calibrated``): at the threshold that comes out, none of them misses more than was promised. What acts after the
choice of boxes (normalisation, growth) or can only add boxes (a lower threshold) needs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from assignnet import CostModel
from canvas import triple
from coarse2fine.calibration.misses import THRESHOLDS
from coarse2fine.config.schema import Config
from coarse2fine.fine.segment import FineStage
from coarse2fine.fine.sizes import same_scale
from coarse2fine.nnunet.model import Model
from coarse2fine.segmenter import preset
from coarse2fine.selection.selector import cost_model_of
from coarse2fine.selection.thin import two_stage

LOWER = 4.0
"""Factor by which a careful candidate lowers the threshold."""
CALIBRATED, TWO_STAGE, WIDE_TWO_STAGE = "as calibrated", "two-stage", "two-stage, wider steps between tiles"
WIDE_STEP = 0.75
"""Step between tiles of two-stage mode that is tried beside the usual half: down to a third of the passes."""

Changes = Mapping[str, Any]
"""Settings by their keys, such as ``fine.grow``."""


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """Settings that a kit may get.

    Attributes:
        name: In words.
        changes: In what they differ from those that were calibrated.
        config: All settings.
    """

    name: str
    changes: Changes
    config: Config


def candidates(config: Config, fine: Model, coarse: Model | None = None) -> list[Candidate]:
    """What is tried, two-stage mode last, with wider steps between its tiles and without.

    Args:
        config: Settings, with the threshold that was calibrated.
        fine: The fine model.
        coarse: The coarse model, whose labels may stand where the fine one does not look if they mean the same; None
            to try nothing of that kind.
    """
    found = [Candidate(CALIBRATED, {}, config)]
    if config.mode == "two-stage":
        return found
    open_ones = [
        (name, changes)
        for name, changes in _variations(config, fine, coarse)
        if all(_is_open(config, key) for key in changes)
    ]
    found += [Candidate(name, changes, _changed(config, changes)) for name, changes in open_ones]
    plain = preset(config.model_copy(update={"mode": "two-stage"}))
    if _is_open(config, "fine.tile_step"):
        wide = {"fine.tile_step": WIDE_STEP}
        found.append(Candidate(WIDE_TWO_STAGE, {"mode": "two-stage", **wide}, _changed(plain, wide)))
    return [*found, Candidate(TWO_STAGE, {"mode": "two-stage"}, plain)]


def also_calibrated(config: Config, fine: Model) -> list[Config]:
    """Settings of candidates that may begin with other boxes than those given: to be measured along with them.

    Args:
        config: Settings, at any threshold.
        fine: The fine model. What the coarse one is asked for beside the heatmap changes no box.
    """
    known, also = [_boxes_depend_on(config, fine)], []
    for candidate in candidates(config, fine):
        key = _boxes_depend_on(candidate.config, fine)
        if key not in known:
            known.append(key)
            also.append(candidate.config)
    return also


def _variations(config: Config, fine: Model, coarse: Model | None) -> Iterator[tuple[str, Changes]]:
    if config.fine.grow:
        yield "without growth", {"fine.grow": 0}
    if coarse is not None and config.fine.outside != "coarse" and coarse.labels.agree_with(fine.labels):
        yield "coarse labels outside of boxes", {"fine.outside": "coarse"}
        if config.fine.grow:
            yield "coarse labels outside of boxes, without growth", {"fine.outside": "coarse", "fine.grow": 0}
    if _normalises_instances(fine) and config.canvas.norm != "canvas":
        yield "statistics of the canvas, without growth", {"canvas.norm": "canvas", "fine.grow": 0}
    if same_scale(config):
        plan = FineStage.of(fine, config).plan
        context = triple(2 * width for width in plan.context)
        if any(context) and all(2 * width < edge for width, edge in zip(context, plan.slot, strict=True)):
            yield "twice the context", {"canvas.context": context, "rois.window": plan.window}
    lower = [threshold for threshold in THRESHOLDS if threshold <= config.rois.threshold / LOWER]
    if lower:
        yield "a lower threshold", {"rois.threshold": lower[-1]}


def _normalises_instances(model: Model) -> bool:
    return any(isinstance(layer, nn.InstanceNorm3d) for layer in model.networks[0].modules())


def _is_open(config: Config, key: str) -> bool:
    """Whether a setting was left to the software; the threshold always was."""
    section, _, name = key.partition(".")
    return key == "rois.threshold" or name not in getattr(config, section).model_fields_set


def _changed(config: Config, changes: Changes) -> Config:
    for key, value in changes.items():
        section, _, name = key.partition(".")
        part = getattr(config, section).model_copy(update={name: value})
        config = config.model_copy(update={section: part})
    return config


def _boxes_depend_on(config: Config, fine: Model) -> Sequence[Any]:
    """Equal for settings that begin with the same boxes at the same threshold, in thin volumes, too."""
    stages = [FineStage.of(fine, settings) for settings in (config, two_stage(config))]
    return [
        config.mode,
        config.canvas.enabled,
        config.fine.postprocess,
        config.rois.model_dump(exclude={"threshold", "window"}),
        config.assign,
        config.coarse,
        *((stage.plan.window, _costs(stage)) for stage in stages),
    ]


def _costs(stage: FineStage) -> CostModel | None:
    """What a choice between boxes weighs; None where all parents are taken, whatever they cost."""
    return None if stage.config.assign.agent == "all_parents" else cost_model_of(stage.config, stage.plan)
