"""Scale levels of a volume beside its finest one: where their voxels lie, by spacing and origin.

Levels need not begin and end with the finest one: a coarse voxel may be the mean of some fine ones or one of them, what
does not fill a voxel may be left out, and a region of the finest level need not begin where a coarse voxel does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from canvas import Box, Triple, triple
from coarse2fine.io import Grid, LazyArray, Volume
from coarse2fine.io.overlap import MOST_UNCOVERED, SAME, beyond, ends, touched
from coarse2fine.nnunet.model import Model
from coarse2fine.preprocessing.statistics import Scan
from coarse2fine.preprocessing.working_grid import WorkingView, view_volume
from coarse2fine.resampling.operators import Place, plan_resampling


def part_of(level: Volume[LazyArray], box: Box) -> Volume[LazyArray]:
    """A part of a level that knows where it lies."""
    return Volume(tuple(_part(channel, box) for channel in level.channels), level.grid.part(box), level.name)


def _part(array: LazyArray, box: Box) -> LazyArray:
    return LazyArray(box.shape, array.dtype, lambda wanted: array[wanted.shift(box.start).slices])


def uncovered(finest: Grid, level: Grid, box: Box) -> str:
    """Why a level does not show a box of the finest one; empty if it does."""
    if (found := beyond(finest, level, box)) is None:
        return ""
    axis, length = found
    return (
        f"it does not show all of the volume: in {'zyx'[axis]} its {level.shape[axis]} voxels end "
        f"{length:g} {level.unit} before what is to be segmented does."
    )


def reaches_over(finest: Grid, level: Grid) -> str:
    """What to tell of a level that shows more than rounding explains; empty if it does not."""
    for axis, ((low, high), size) in enumerate(
        zip(ends(finest, level, Box.whole(finest.shape)), level.shape, strict=True)
    ):
        if low > MOST_UNCOVERED + SAME or size - high > MOST_UNCOVERED + SAME:
            length, own = finest.shape[axis] * finest.spacing[axis], size * level.spacing[axis]
            return (
                f"in {'zyx'[axis]} it is {own:g} {level.unit} long, the finest one {length:g} {level.unit}: its place "
                "is taken from spacings and origins in the metadata; check these."
            )
    return ""


def open_level(
    level: Volume[LazyArray],
    finest: Volume[Any],
    model: Model,
    target_spacing: Sequence[float] | None,
    scan: Scan,
) -> WorkingView:
    """The working grid that a model has over the finest level, whose voxels are made from another level.

    Args:
        level: What is read.
        finest: The finest level, of which the scan is.
        model: The model.
        target_spacing: See ``view_volume``.
        scan: Statistics of the finest level.
    """
    view = view_volume(finest, model, target_spacing, scan)
    crop = view.crop.turned(model.untranspose)
    held = part_of(level, touched(finest.grid, level.grid, crop))
    sides = ends(finest.grid, held.grid, crop)
    turned_shape = triple(held.grid.shape[axis] for axis in model.transpose)
    places = [
        _place(sides[axis], held.grid.shape[axis], size) for axis, size in zip(model.transpose, view.whole, strict=True)
    ]
    resampling = plan_resampling(
        turned_shape, view.whole, view.spacing, target_spacing or model.spacing, model.data_method, places
    )
    return dataclasses.replace(
        view,
        channels=tuple(channel.transpose(model.transpose) for channel in held.channels),
        resampling=resampling,
        bounds=tuple(_bounds(pair, resampling.apart, turned_shape) for pair in view.bounds),
        crop=Box.whole(turned_shape),
        full=turned_shape,
    )


def _place(side: tuple[float, float], size: int, outputs: int) -> Place | None:
    """Where the centres of so many outputs lie that fill the space between two ends."""
    low, high = side
    if abs(low) < SAME and abs(high - size) < SAME:
        return None
    step = (high - low) / outputs
    return low + step / 2 - 0.5, step


def _bounds(pair: tuple[Any, Any], apart: int | None, shape: Triple) -> tuple[Any, Any]:
    """Bounds of slices where these are the same in the level, else those of all of them."""
    low, high = pair
    if apart is not None and low.ndim and len(low) == shape[apart]:
        return low, high
    return (low.min(), high.max()) if low.ndim else (low, high)
