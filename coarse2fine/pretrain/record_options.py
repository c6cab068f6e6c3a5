"""Options of what is learned from images with reports, given as ``--set NAME.OPTION=VALUE``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from coarse2fine.pretrain.convirt import PROJECTION
from coarse2fine.pretrain.convirt import SHARE as CONVIRT_SHARE
from coarse2fine.pretrain.records.contrast import TEMPERATURE
from coarse2fine.pretrain.records.text import TextShape
from coarse2fine.pretrain.records.vocabulary import LENGTH
from coarse2fine.pretrain.records.words import RATIO
from coarse2fine.pretrain.refers import SHARE as REFERS_SHARE
from coarse2fine.pretrain.refers import VIEWS

Count = Annotated[int, Field(ge=1)]
Part = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class RecordOptions:
    """Of the network that reads reports.

    Attributes:
        length: Most tokens of a report.
        width, depth, heads, dropout: See ``TextShape``.
    """

    length: Annotated[int, Field(ge=3)] = LENGTH
    width: Count = 384
    depth: Count = 6
    heads: Count = 6
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1

    def text(self, entries: int) -> TextShape:
        """Of a vocabulary with so many entries."""
        return TextShape(entries, self.length, self.width, self.depth, self.heads, self.dropout)


@dataclass(frozen=True, slots=True)
class MrmOptions(RecordOptions):
    """Of masked records.

    Attributes:
        words: Share of words that are hidden.
        detail: Pixels that are painted for each one that the transformer sees, along each axis.
        normalised: Whether patches are normalised before they are compared; None: not with losses at several depths.
        decoder_width, decoder_depth, decoder_heads: See ``DecoderShape``.
    """

    words: Annotated[float, Field(gt=0, lt=1)] = RATIO
    detail: Count = 1
    normalised: bool | None = None
    decoder_width: int | None = None
    decoder_depth: int | None = None
    decoder_heads: int | None = None


@dataclass(frozen=True, slots=True)
class ConvirtOptions(RecordOptions):
    """Of the contrast of images and reports.

    Attributes:
        projection: Width of the space in which they are compared.
        temperature, share: See ``records.contrast``.
    """

    projection: Count = PROJECTION
    temperature: Positive = TEMPERATURE
    share: Part = CONVIRT_SHARE


@dataclass(frozen=True, slots=True)
class RefersOptions(ConvirtOptions):
    """Of the same with several views, and of captions.

    Attributes:
        views: Of each patient.
    """

    share: Part = REFERS_SHARE
    views: Count = VIEWS
