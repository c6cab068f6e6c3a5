"""A kit from what was prepared."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from coarse2fine.calibration.kit import write_kit
from coarse2fine.calibration.page import kit_page
from coarse2fine.calibration.prepare import Prepared, Wanted
from coarse2fine.calibration.settle import promise_of, promise_text, ways_out
from coarse2fine.nnunet.fingerprint import model_fingerprint
from coarse2fine.nnunet.model import Model


def write_prepared(
    folder: Path, prepared: Prepared, fine: Model, wanted: Wanted, minutes: float, *, resumed: bool, overwrite: bool
) -> None:
    """Write the kit.

    Args:
        folder: Of the kit.
        prepared: What was prepared.
        fine: The fine model, which the kit names and does not hold.
        wanted: What was asked for.
        minutes: That it took.
        resumed: Whether an earlier run had done a part, which does not count.
        overwrite: Whether a kit that is there may be replaced.
    """
    config = prepared.config
    settings: dict[str, Any] = config.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude={"device"})
    settings["fine"] = {**settings.get("fine", {}), "model": str(fine.folder.resolve())}
    calibration = calibration_of(prepared)
    about = about_of(prepared, fine, wanted, minutes, resumed)
    checkpoints = {"given": config.coarse.checkpoint, "fine": config.fine.checkpoint, "trained": "checkpoint_final.pth"}
    checkpoint = checkpoints[prepared.looks.origin]
    settings["coarse"] = {**settings.get("coarse", {}), "checkpoint": checkpoint}
    page = kit_page(folder.name, calibration, about)
    write_kit(folder, settings, prepared.coarse, checkpoint, calibration, about, page, overwrite=overwrite)


def calibration_of(prepared: Prepared) -> dict[str, Any]:
    """What was measured, for JSON."""
    from_fine = prepared.looks.from_fine
    return {
        "result": asdict(prepared.result),
        "cases": [case.to_dict() for case in prepared.measured],
        "empty": list(prepared.empty),
        "agent": prepared.agent.to_dict() if prepared.agent else None,
        "search": prepared.found.to_dict() if prepared.found else None,
        "spacings": [look.to_dict() for look in from_fine.looks] if from_fine else [],
    }


def about_of(prepared: Prepared, fine: Model, wanted: Wanted, minutes: float, resumed: bool) -> dict[str, Any]:
    """What a card says beside files and software."""
    promise, division = promise_of(prepared.config), prepared.looks.division
    return {
        "made_by": "c2f-prepare",
        "fine_model": str(fine.folder.resolve()),
        "fine_fingerprint": model_fingerprint(fine),
        "cases": [case.name for case in prepared.measured],
        "trained_on": {name: list(cases) for name, cases in division.training.items()},
        "looked_at_by": dict(division.looks),
        "coarse": prepared.looks.origin,
        "coarse_spacing": list(prepared.config.coarse.spacing or prepared.coarse.spacing),
        "seed": wanted.seed,
        "minutes": round(minutes, 1),
        "resumed": resumed,
        "asked": {**asdict(wanted.asked), "loss": wanted.loss, "minutes": wanted.minutes},
        "promise": promise_text(prepared.config),
        "foreground": promise.foreground,
        "ways_out": ways_out(prepared.config) if prepared.result.limit else None,
    }
