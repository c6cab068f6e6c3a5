"""The slices that matter, as they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.io import Volume
from coarse2fine.io.turn import Turn
from coarse2fine.look import Look
from coarse2fine.page.objects import Found, Objects, choose_slices, find_objects
from coarse2fine.page.orientation import as_displayed, display_turn, shows_patient
from coarse2fine.page.outlines import outline
from coarse2fine.page.pictures import Frame, Scale, close_up, png, reduced, scale_for
from coarse2fine.page.thumbnail import thumbnail
from coarse2fine.page.window import Window, pick_window

_NEAR_MM = 15.0  # around what was found, whose intensities decide which window is taken


@dataclass(frozen=True, slots=True)
class Panel:
    """A slice.

    Attributes:
        number: Of the slice, from 1, the one at the feet.
        image: PNG as a data URL.
        width, height: In the unit of the volume.
        outlines: SVG paths by label.
        close: What is shown close up; None for nothing.
        scale, close_scale: Their scale bars.
    """

    number: int
    image: str
    width: float
    height: float
    outlines: Mapping[int, str]
    close: Frame | None
    scale: Scale
    close_scale: Scale | None


@dataclass(frozen=True, slots=True)
class Montage:
    """All of them.

    Attributes:
        panels: From the feet on, or as stored.
        main: Which of them shows the largest object.
        thumbnail: That one, small; PNG as a data URL.
        slices: How many the volume has.
        seen, objects: How many objects they show well, of how many.
        window: How intensities became greys.
        centre: The voxel (z, y, x), as stored, in the middle of the largest object where that is largest.
        factor: How many pixels of a slice are one of the picture's, along an edge.
        patient: Whether they are drawn with the patient's front on top and right on the left.
    """

    panels: tuple[Panel, ...]
    main: int
    thumbnail: str
    slices: int
    seen: int
    objects: int
    window: Window
    centre: Triple
    factor: int
    patient: bool


def make_montage(
    volume: Volume[Any], labels: NDArray[np.unsignedinteger[Any]], look: Look | None, *, channel: int = 0, ct: bool
) -> Montage:
    """The slices that matter most: of a result its objects, of an empty one where the heatmap is highest.

    Args:
        volume: The image.
        labels: The result; shape (z, y, x) of the volume.
        look: Where the run looked; None if everywhere.
        channel: Which one is drawn.
        ct: Whether its values are Hounsfield units.
    """
    turn = display_turn(volume.grid)
    found = find_objects(labels, turn)
    image, shown = (as_displayed(array, volume.grid) for array in (np.asarray(volume.channels[channel]), labels))
    spacing = turn.per_axis(volume.grid.spacing)
    indices = choose_slices(found.largest) or _suspicious(look, volume, len(image))
    slices = {index: reduced(image[index]) for index in indices}
    window = pick_window(
        np.concatenate([pixels.ravel() for pixels, _ in slices.values()]),
        _near(found, image, indices, spacing),
        ct=ct,
    )
    peak = found.largest[0].peak if found.largest else indices[0]
    drawn = _Drawn(window, (spacing[1], spacing[2]), volume.grid.unit, found.largest)
    return Montage(
        panels=tuple(drawn.panel(index, slices[index][0], shown[index]) for index in indices),
        main=indices.index(peak),
        thumbnail=drawn.thumbnail(slices[peak][0], shown[peak]),
        slices=len(image),
        seen=sum(any(map(one.seen_in, indices)) for one in found.largest),
        objects=found.count,
        window=window,
        centre=_centre(found, peak, turn, triple(image.shape)),
        factor=max(factor for _, factor in slices.values()),
        patient=shows_patient(volume.grid),
    )


@dataclass(frozen=True, slots=True)
class _Drawn:
    """How slices are drawn."""

    window: Window
    spacing: tuple[float, float]
    unit: str
    objects: Sequence[Found]

    def panel(self, index: int, pixels: NDArray[np.float32], labels: NDArray[np.unsignedinteger[Any]]) -> Panel:
        height, width = (size * edge for size, edge in zip(labels.shape, self.spacing, strict=True))
        here = [one for one in self.objects if one.peak == index] or [one for one in self.objects if one.seen_in(index)]
        close = close_up(self._frame(here), (height, width), self.unit) if here else None
        return Panel(
            number=index + 1,
            image=png(self.window.grey(pixels)),
            width=width,
            height=height,
            outlines={int(value): outline(labels == value, self.spacing) for value in np.unique(labels) if value},
            close=close,
            scale=scale_for(width, self.unit),
            close_scale=scale_for(close.width, self.unit) if close else None,
        )

    def thumbnail(self, pixels: NDArray[np.float32], labels: NDArray[np.unsignedinteger[Any]]) -> str:
        extent = labels.shape[0] * self.spacing[0], labels.shape[1] * self.spacing[1]
        return thumbnail(self.window.grey(pixels), labels, extent, sorted({one.value for one in self.objects}))

    def _frame(self, objects: Sequence[Found]) -> Frame:
        start = np.min([one.box.start[1:] for one in objects], axis=0) * self.spacing
        stop = np.max([one.box.stop[1:] for one in objects], axis=0) * self.spacing
        return Frame(float(start[1]), float(start[0]), float(stop[1] - start[1]), float(stop[0] - start[0]))


def _centre(found: Objects, peak: int, turn: Turn, shape: Triple) -> Triple:
    """See ``Montage``; of nothing the middle of the slice that is shown."""
    box = found.largest[0].box if found.largest else Box.whole(shape)
    row, column = ((a + b) // 2 for a, b in zip(box.start[1:], box.stop[1:], strict=True))
    return turn.inverse.box(Box.of((peak, row, column), (1, 1, 1)), shape).start


def _suspicious(look: Look | None, volume: Volume[Any], slices: int) -> list[int]:
    """Where nothing was found, the slice in which the heatmap is highest; without a heatmap the middle one."""
    if look is None or not look.heatmap.size or not look.heatmap.any():
        return [slices // 2]
    heat = as_displayed(look.heatmap, volume.grid).max(axis=(1, 2))
    inside = display_turn(volume.grid).box(look.within, volume.grid.shape)
    return [inside.start[0] + int((heat.argmax() + 0.5) * inside.shape[0] / len(heat))]


def _near(
    found: Objects, image: NDArray[Any], indices: Sequence[int], spacing: tuple[float, float, float]
) -> NDArray[Any]:
    """Intensities around the objects of the slices that are shown."""
    parts = []
    for one in found.largest:
        if one.peak in indices:
            rows, columns = (
                slice(max(a - int(_NEAR_MM / edge), 0), b + int(_NEAR_MM / edge))
                for a, b, edge in zip(one.box.start[1:], one.box.stop[1:], spacing[1:], strict=True)
            )
            parts.append(np.asarray(image[one.peak, rows, columns]).ravel())
    return np.concatenate(parts) if parts else np.empty(0)
