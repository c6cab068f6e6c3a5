"""What users choose of a pretraining, whatever is learned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import inf

from coarse2fine.pretrain.masking import Kind
from coarse2fine.pretrain.schedule import Schedule


@dataclass(frozen=True, slots=True)
class Settings:
    """What users choose of a pretraining.

    Attributes:
        schedule: How long and how fast.
        objective: What to learn: names of ``methods.METHODS``, with + between them.
        factors: Of their losses, by these names; 1 where there is none.
        own: What only one of them knows, by its name, a dot, and the name of the option: ``{"mae.depth": "2"}``.
        mask, ratio, block, centre: See ``Masking``; ``block`` is the longest edge of blocks in voxels, ``centre`` the
            sigma of both masks and crops, None: all places alike.
        norm_pix: Whether blocks are normalised before they are compared.
        loss_everywhere: Whether visible voxels count, too.
    """

    schedule: Schedule
    objective: str = "mae"
    factors: Mapping[str, float] = field(default_factory=dict)
    own: Mapping[str, str] = field(default_factory=dict)
    mask: Kind = "random"
    ratio: float | None = None
    block: int = 16
    centre: float | None = None
    norm_pix: bool = False
    loss_everywhere: bool = False

    @property
    def sigma(self) -> float:
        """Width of the density of masks and crops."""
        return inf if self.centre is None else self.centre
