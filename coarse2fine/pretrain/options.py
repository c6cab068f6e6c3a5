"""Options that only one objective has, given as ``--set NAME.OPTION=VALUE``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from coarse2fine.pretrain.borders import Border, Kind
from coarse2fine.pretrain.contrast import TEMPERATURE

Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]


@dataclass(frozen=True, slots=True)
class RotationOptions:
    """Of rotation.

    Attributes:
        border, width: See ``Border``.
    """

    border: Kind = "disc"
    width: float = 0.05

    @property
    def covered(self) -> Border:
        """What is covered."""
        return Border(self.border, self.width)


@dataclass(frozen=True, slots=True)
class JigsawOptions:
    """Of a jigsaw.

    Attributes:
        border, width: See ``Border``.
        orders: How many are to be told apart.
    """

    border: Kind = "frame"
    width: float = 0.05
    orders: Annotated[int, Field(ge=2)] = 100

    @property
    def covered(self) -> Border:
        """What is covered."""
        return Border(self.border, self.width)


@dataclass(frozen=True, slots=True)
class ExemplarOptions:
    """Of exemplar.

    Attributes:
        border, width: See ``Border``.
        least: Share of an image's area or volume that each of the two looks shows at least.
        temperature: See ``contrast.info_nce``.
    """

    border: Kind = "disc"
    width: float = 0.05
    least: Share = 0.2
    temperature: Positive = TEMPERATURE

    @property
    def covered(self) -> Border:
        """What is covered."""
        return Border(self.border, self.width)
