"""Options that only one objective has, given as ``--set NAME.OPTION=VALUE``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated

from pydantic import Field

from coarse2fine.pretrain.borders import Border, Kind
from coarse2fine.pretrain.contrast import MOMENTUM, QUEUE, TEMPERATURE
from coarse2fine.pretrain.dira import PARTS, Shares
from coarse2fine.pretrain.discriminator import RATE, Form

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


@dataclass(frozen=True, slots=True)
class DiraOptions:
    """Of DiRA and of parts of it.

    Attributes:
        discriminative, restorative, adversarial: Weights; None: 1, 10 and 0.001 in 2D, 1, 100 and 1 in 3D, or 1 for a
            part alone.
        queue: Keys that a look is told apart from, at most as many as the training draws.
        momentum: Share of the slow encoder that stays in a step.
        temperature: See ``contrast.info_nce``.
        form: Of the adversarial losses.
        rate: Of the discriminator.
        least: Share of an image's area or volume that each of the two looks shows at least.
    """

    discriminative: float | None = None
    restorative: float | None = None
    adversarial: float | None = None
    queue: Count = QUEUE
    momentum: Annotated[float, Field(ge=0, lt=1)] = MOMENTUM
    temperature: Positive = TEMPERATURE
    form: Form = "squares"
    rate: Positive = RATE
    least: Share = 0.2

    def shares(self, parts: Sequence[str], axes: int) -> Shares:
        """Weights of some parts, and of those that were given one.

        Raises:
            ConfigError: If nothing is left.
        """
        usual = Shares.usual(parts, axes)
        given = {part: weight for part in PARTS if (weight := getattr(self, part)) is not None}
        return replace(usual, **given)
