"""Sizes of canvases, slots and windows, filled in from the model where settings leave them open."""

from __future__ import annotations

from dataclasses import dataclass

from canvas import (
    Triple,
    triple,
)
from coarse2fine.config.schema import Config
from coarse2fine.errors import ConfigError
from coarse2fine.nnunet.model import Model


@dataclass(frozen=True, slots=True)
class CanvasPlan:
    """Sizes that the configuration leaves to the model, filled in.

    Attributes:
        canvas: Network input.
        slot: Room of one crop.
        capacity: Slots per canvas; None lets the packer choose.
        native: Largest box shown at native resolution: a slot, or in same-scale packing the canvas less context, or
            ``rois.window`` where that is larger.
        window: Largest box that a component is covered with at once.
        step: Growth of a box whose mask touches its face.
        context: Surroundings of a box in same-scale packing.
        divisor: Edges of a network input are multiples of these.
        patch: Size that the model was trained with; thinner volumes are padded to it.
        shared: Whether boxes are seen on the tiles of one sliding window over the volume, and share these.
    """

    canvas: Triple
    slot: Triple
    capacity: int | None
    native: Triple
    window: Triple
    step: Triple
    context: Triple
    divisor: Triple
    patch: Triple
    shared: bool = False


def plan_sizes(config: Config, model: Model) -> CanvasPlan:
    """Fill in the sizes that the configuration leaves open.

    Raises:
        ConfigError: If a size does not fit the model.
    """
    settings = config.canvas
    canvas = settings.size or model.patch
    # Two-stage mode is the plain sliding window, of full patches, inside each box.
    slot = settings.slot or (canvas if config.mode == "two-stage" else triple(max(1, edge // 2) for edge in canvas))
    if not settings.enabled:
        # A crop alone is a network input, so its edges must be divisible as often as the network halves them.
        slot = canvas = triple(-(-edge // by) * by for edge, by in zip(slot, model.divisor, strict=True))
    if any(edge % by for edge, by in zip(canvas, model.divisor, strict=True)):
        raise ConfigError(
            f"canvas.size {list(canvas)} cannot be an input of the fine model {model.folder}",
            f"Each edge must be a multiple of {list(model.divisor)}; the model's patch is {list(model.patch)}.",
        )
    if any(edge > limit for edge, limit in zip(slot, canvas, strict=True)):
        raise ConfigError(
            f"canvas.slot {list(slot)} is larger than the canvas {list(canvas)}", "Choose a smaller slot."
        )
    capacity = None if settings.capacity == "auto" or not settings.enabled else settings.capacity
    context = settings.context or triple(edge // 16 for edge in canvas)
    native = slot
    if same_scale(config):
        # Boxes up to the canvas' size would stay native too, but with less context than wanted, or none. Whoever asks
        # for larger windows accepts that.
        roomy = triple(max(1, edge - 2 * side) for edge, side in zip(canvas, context, strict=True))
        native = triple(
            min(max(pair), edge) for *pair, edge in zip(roomy, config.rois.window or roomy, canvas, strict=True)
        )
    step = config.fine.grow_step or triple(max(1, edge // 4) for edge in slot)
    return CanvasPlan(
        canvas, slot, capacity, native, config.rois.window or native, step, context, model.divisor, model.patch
    )


def same_scale(config: Config) -> bool:
    """Whether crops are bin-packed at one scale; a crop alone per input is always a slot."""
    return config.canvas.packing == "same_scale" and config.canvas.enabled
