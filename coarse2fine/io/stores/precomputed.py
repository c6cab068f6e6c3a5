"""Neuroglancer's precomputed volumes: https://neuroglancer-docs.web.app/datasource/precomputed/volume.html."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from canvas import Triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.stores.layout import Layout, Level, Wanted, by_axis, name_axes
from coarse2fine.io.stores.schema import Precomputed, PrecomputedScale, parse
from coarse2fine.io.stores.tensors import Store
from coarse2fine.io.stores.units import NM_PER
from coarse2fine.io.volume import Grid

INFO = "info"
UNFINISHED = "coarse2fine_unfinished"  # a member of ``info`` while a run still writes

_AXES = ("x", "y", "z", "c")


def find_precomputed(store: Store, wanted: Wanted) -> Layout | None:
    """The volume of a precomputed store; None if it is no such store.

    Args:
        store: The store.
        wanted: Whose ``array`` is the key of one of its scales; None for all.

    Raises:
        VolumeError: If there is no such scale, or the metadata are not valid.
    """
    stated = store.read_json(INFO)
    if stated is None:
        return None
    where = f"{store.where}/{INFO}"
    if stated.get(UNFINISHED):
        raise VolumeError(
            f"{store.where} is the result of a run that has not finished", "Finish it: run the same command again."
        )
    info = parse(Precomputed, where, stated)
    keys = [scale.key for scale in info.scales]
    if wanted.array is not None and wanted.array not in keys:
        raise VolumeError(f"{store.where} has no scale {wanted.array}", f"Its scales are {', '.join(keys)} (--array).")
    axes = name_axes(where, _AXES, (0,) * 4, wanted.axes)
    chosen = [(number, scale) for number, scale in enumerate(info.scales) if wanted.array in (None, scale.key)]
    finest = by_axis(where, "resolution", chosen[0][1].resolution, axes)
    levels = tuple(_level(where, number, scale, axes, finest) for number, scale in chosen)
    is_labels = "its type is segmentation" if info.type == "segmentation" else ""
    return Layout("precomputed", "neuroglancer_precomputed", levels, ("nm",) * 3, is_labels, (INFO,))


def _level(where: str, number: int, scale: PrecomputedScale, axes: tuple[str, ...], finest: tuple[float, ...]) -> Level:
    """A scale; offsets are those of corners in this format, so the centres of larger voxels lie further inside."""
    resolution = by_axis(where, "resolution", scale.resolution, axes)
    corner = by_axis(where, "voxel_offset", scale.voxel_offset, axes)
    offset = tuple(n * size + (size - least) / 2 for n, size, least in zip(corner, resolution, finest, strict=True))
    return Level(scale.key, axes, resolution, offset, {"scale_index": number})


def label_info(
    grid: Grid, shapes: Sequence[Triple], factors: Sequence[Triple], chunk: Triple, dtype: str
) -> dict[str, Any]:
    """The metadata of a label volume.

    Offsets are whole voxels in this format: that of a coarse level is off by half of its voxels at most.

    Args:
        grid: Grid of the finest level.
        shapes: Voxels (z, y, x) of each level.
        factors: Voxels (z, y, x) of the finest level that one voxel of each level stands for.
        chunk: Voxels (z, y, x) of a chunk.
        dtype: An unsigned type; labels of 4 or 8 bytes are compressed, the format knows no way for others.
    """
    nm = NM_PER[grid.unit]
    encoding: dict[str, Any] = {"encoding": "raw"}
    if dtype in ("uint32", "uint64"):
        encoding = {"encoding": "compressed_segmentation", "compressed_segmentation_block_size": [8, 8, 8]}
    scales = []
    for shape, factor in zip(shapes, factors, strict=True):
        resolution = [_plain(s * f * nm) for s, f in zip(grid.spacing, factor, strict=True)][::-1]
        corner = [round(_plain(o * nm) / length) for o, length in zip(grid.origin[::-1], resolution, strict=True)]
        scales.append(
            {
                "key": "_".join(f"{length:g}" for length in resolution),
                "size": list(shape[::-1]),
                "resolution": resolution,
                "voxel_offset": corner,
                "chunk_sizes": [list(chunk[::-1])],
                **encoding,
            }
        )
    return {
        "@type": "neuroglancer_multiscale_volume",
        "type": "segmentation",
        "data_type": dtype,
        "num_channels": 1,
        "scales": scales,
    }


def _plain(value: float) -> float | int:
    """Without the last digits, which conversions of units spoil, and without a fraction if there is none."""
    value = float(f"{value:.12g}")
    return int(value) if value.is_integer() else value
