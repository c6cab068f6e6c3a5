"""The settings that cases are measured with, and those that a kit gets."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

from canvas import Triple, triple
from coarse2fine.calibration.calibrate import Asked, Calibration, known_of
from coarse2fine.calibration.misses import MeasuredCase
from coarse2fine.config.schema import Config, PromiseConfig
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model
from coarse2fine.promise.statement import settings_fingerprint, state


def with_margin(config: Config, coarse: Model, fine: Model) -> Config:
    """Boxes get a margin of a coarse voxel, unless the settings name another one."""
    if "margin" in config.rois.model_fields_set:
        return config
    rois = config.rois.model_copy(update={"margin": coarse_voxel(config, coarse, fine)})
    return config.model_copy(update={"rois": rois})


def coarse_voxel(config: Config, coarse: Model, fine: Model) -> Triple:
    """A voxel of the coarse model in voxels of the working grid: nothing is known more precisely than that."""
    turned = config.coarse.spacing or coarse.spacing
    in_file = [turned[axis] for axis in coarse.untranspose]
    ratios = (in_file[axis] / step for axis, step in zip(fine.transpose, fine.spacing, strict=True))
    return triple(ceil(ratio - 1e-3) for ratio in ratios)


def at_threshold(config: Config, result: Calibration) -> Config:
    """Settings with the threshold that was calibrated."""
    return config.model_copy(update={"rois": config.rois.model_copy(update={"threshold": result.threshold})})


def settle(
    config: Config,
    coarse: Model,
    fine: Model,
    measured: Sequence[MeasuredCase],
    result: Calibration,
    asked: Asked,
    *,
    labelled: bool,
    crossed: bool = False,
    chosen: Config | None = None,
) -> Config:
    """The settings that the kit gets: those that were measured, with the threshold and the promise.

    Args:
        config: That cases were measured with.
        coarse: The kit's coarse model.
        fine: The fine model.
        measured: The cases.
        result: What came of them.
        asked: What is promised.
        labelled: Whether foreground is that of true labels, not what the fine model finds everywhere.
        crossed: Whether cases were looked at by other coarse models than the kit's.
        chosen: What a search made of ``at_threshold`` of these; None for that itself.
    """
    config = (chosen or at_threshold(config, result)).model_copy(update={"promise": None})
    promise = PromiseConfig.model_validate(
        {
            "miss": asked.miss,
            "probability": result.probability,
            "confidence": asked.confidence,
            "cases": len(measured),
            "rank": result.rank,
            "foreground": "labels" if labelled else "one-stage",
            "crossed": crossed,
            "settings": settings_fingerprint(config),
            "coarse_model": model_fingerprint(coarse),
            "fine_model": model_fingerprint(fine),
            "known": known_of(measured),
        }
    )
    return config.model_copy(update={"promise": promise})


def everywhere(config: Config) -> Config:
    """Settings of a kit that looks everywhere."""
    return config.model_copy(update={"mode": "one-stage"})


def ways_out(config: Config) -> str:
    """What may help where the coarse model is the limit.

    Args:
        config: That cases were measured with.
    """
    margin = [2 * width for width in config.rois.margin]
    return (
        f"a wider margin (--set 'rois.margin={margin}'), more that may be missed (--miss), more cases and a lower "
        "--probability, longer training (--minutes), or a better coarse model (--coarse-model)"
    )


def promise_text(config: Config) -> str:
    """What a kit promises, in words."""
    if config.mode == "one-stage":
        return "one-stage mode looks everywhere, so that nothing is left out"
    return state(promise_of(config))


def promise_of(config: Config) -> PromiseConfig:
    """The promise that ``settle`` wrote."""
    if config.promise is None:
        raise ValueError("a kit's settings hold a promise")
    return config.promise
