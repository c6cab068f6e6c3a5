"""What the metadata of chunked stores may be: anything else is refused before a library sees it.

This is for safety: TensorStore opens arrays, but does not read how NGFF's levels belong together, and no library says
which file and member is wrong, and how, before it asks for memory.
Members that are not read here may be anything.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from coarse2fine.errors import VolumeError
from coarse2fine.system.terminal import plain

_LONGEST = 1 << 40  # voxels along an axis
_MOST_LEVELS = 64

Number = Annotated[float, Field(strict=True)]
Length = Annotated[int, Field(strict=True, ge=0, le=_LONGEST)]
Edge = Annotated[int, Field(strict=True, ge=1, le=_LONGEST)]
Numbers = list[Number]
Factors = Annotated[list[Annotated[Numbers, Field(max_length=5)]], Field(min_length=1, max_length=_MOST_LEVELS)]
Text = Annotated[str, Field(strict=True, max_length=1000)]
Names = list[Text | None]
Units = Text | list[Text | None]


class _Metadata(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True)


class NgffAxis(_Metadata):
    """An axis of an OME-NGFF image."""

    name: Text
    type: Text | None = None
    unit: Text | None = None


class NgffTransform(_Metadata):
    """A coordinate transformation."""

    type: Text
    scale: Numbers | None = None
    translation: Numbers | None = None


class NgffDataset(_Metadata):
    """A resolution of an image."""

    path: Text
    transforms: list[NgffTransform] | None = Field(None, alias="coordinateTransformations")


class NgffImage(_Metadata):
    """An entry of ``multiscales``; versions 0.1 and 0.2 have no axes, 0.3 only their names."""

    axes: Annotated[list[NgffAxis | Text], Field(min_length=2, max_length=5)] | None = None
    datasets: Annotated[list[NgffDataset], Field(min_length=1, max_length=_MOST_LEVELS)]
    transforms: list[NgffTransform] | None = Field(None, alias="coordinateTransformations")
    version: Text | None = None


class Ngff(_Metadata):
    """The attributes of an OME-NGFF image; of several entries the first counts."""

    multiscales: Annotated[list[Any], Field(min_length=1)]
    version: Text | None = None


class PlainAttributes(_Metadata):
    """Attributes by which plain arrays say where they lie (funlib.persistence, xarray)."""

    axis_names: Names | None = None
    dimensions: Names | None = Field(None, alias="_ARRAY_DIMENSIONS")
    resolution: Numbers | None = None
    voxel_size: Numbers | None = None
    offset: Numbers | None = None
    units: Units | None = None


class Zarr2Array(_Metadata):
    """``.zarray``."""

    zarr_format: Literal[2]
    shape: Annotated[list[Length], Field(max_length=8)]
    chunks: Annotated[list[Edge], Field(max_length=8)]
    dtype: Text | list[Any]
    order: Literal["C", "F"]
    separator: Literal[".", "/"] | None = Field(None, alias="dimension_separator")
    compressor: dict[str, Any] | None = None
    filters: list[dict[str, Any]] | None = None
    fill_value: Any = None


class _Chunks(_Metadata):
    chunk_shape: Annotated[list[Edge], Field(max_length=8)]


class _ChunkGrid(_Metadata):
    name: Text
    configuration: _Chunks


class Zarr3Codec(_Metadata):
    """A step between voxels and bytes."""

    name: Text
    configuration: dict[str, Any] | None = None


class Zarr3Array(_Metadata):
    """``zarr.json`` of an array."""

    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: Annotated[list[Length], Field(max_length=8)]
    data_type: Text | dict[str, Any]
    chunk_grid: _ChunkGrid
    codecs: Annotated[list[Zarr3Codec | Text], Field(min_length=1, max_length=16)]
    dimension_names: Names | None = None
    fill_value: Any = None


class N5PixelResolution(_Metadata):
    """Spacing, as Fiji's plugins write it."""

    dimensions: Numbers
    unit: Text | None = None


class N5Transform(_Metadata):
    """OpenOrganelle's convention, whose order of axes is its own."""

    axes: list[Text]
    scale: Numbers
    translate: Numbers | None = None
    units: list[Text | None] | None = None


class _N5Dataset(_Metadata):
    path: Text
    transform: N5Transform | None = None


class _N5Multiscale(_Metadata):
    datasets: list[_N5Dataset]


class N5Attributes(_Metadata):
    """``attributes.json`` of a group or array."""

    axes: Annotated[Names, Field(max_length=8)] | None = None
    scales: Factors | None = None
    factors: Factors | Numbers | None = Field(None, alias="downsamplingFactors")
    pixel_resolution: N5PixelResolution | Numbers | None = Field(None, alias="pixelResolution")
    resolution: Numbers | None = None
    units: Units | None = None
    offset: Numbers | None = None
    transform: N5Transform | None = None
    multiscales: list[_N5Multiscale] | None = None


class N5Array(_Metadata):
    """What every array's ``attributes.json`` has."""

    dimensions: Annotated[list[Length], Field(min_length=1, max_length=8)]
    blocks: Annotated[list[Edge], Field(min_length=1, max_length=8, alias="blockSize")]
    dtype: Text = Field(alias="dataType")
    compression: dict[str, Any] | None = None


class PrecomputedScale(_Metadata):
    """A resolution of a precomputed volume; (x, y, z)."""

    key: Text
    size: Annotated[list[Length], Field(min_length=3, max_length=3)]
    resolution: Annotated[Numbers, Field(min_length=3, max_length=3)]
    voxel_offset: Annotated[
        list[Annotated[int, Field(strict=True, ge=-_LONGEST, le=_LONGEST)]], Field(min_length=3)
    ] = [
        0,
        0,
        0,
    ]
    chunk_sizes: Annotated[
        list[Annotated[list[Edge], Field(min_length=3, max_length=3)]], Field(min_length=1, max_length=16)
    ]
    encoding: Text
    sharding: dict[str, Any] | None = None


class Precomputed(_Metadata):
    """``info``."""

    scales: Annotated[list[PrecomputedScale], Field(min_length=1, max_length=_MOST_LEVELS)]
    type: Text | None = None
    data_type: Text
    num_channels: Annotated[int, Field(strict=True, ge=1, le=1 << 16)]


Schema = TypeVar("Schema", bound=BaseModel)


def parse(schema: type[Schema], where: str, content: Mapping[str, Any]) -> Schema:
    """Metadata of a known kind.

    Args:
        schema: The kind.
        where: The file, for messages.
        content: What was read.

    Raises:
        VolumeError: Naming the member that is not as it must be, and its value.
    """
    try:
        return schema.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        value = "" if first["type"] == "missing" else f", not {plain(repr(first['input'])[:100])}"
        raise VolumeError(f"{where}: {name}: {_lower(first['msg'])}{value}", "Correct this member.") from error


def _lower(text: str) -> str:
    return text[:1].lower() + text[1:]
