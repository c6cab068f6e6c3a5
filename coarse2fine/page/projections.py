"""Where a run looked: boxes over the heatmap, from three sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray

from canvas import Box
from coarse2fine.io import Volume
from coarse2fine.io.turn import Turn
from coarse2fine.look import Look
from coarse2fine.page.orientation import display_turn, shows_patient
from coarse2fine.page.pictures import Frame, Scale, png, scale_for

_COARSE = 192  # voxels of an edge of the image behind the heatmap
_MOST_FRAMES = 1500
HEAT = "magma"


@dataclass(frozen=True, slots=True)
class Side:
    """A volume from one side.

    Attributes:
        words: What is seen from where.
        image: The mean of the image along the line of sight, PNG as a data URL.
        heat: The highest value of the heatmap along the line of sight, coloured; transparent where it is low.
        heat_frame: Where the heatmap lies.
        width, height: In the unit of the volume.
        frames: Boxes, of kinds ``seen``, ``dropped`` and ``late``.
        scale: The scale bar.
        marks: What lies at the top, bottom, left and right: the patient's sides; empty where there is no patient.
    """

    words: str
    image: str
    heat: str
    heat_frame: Frame
    width: float
    height: float
    frames: tuple[Frame, ...]
    scale: Scale
    marks: str


_VIEWS = (  # name, name without a patient, axis of sight, rows, columns, whether rows run upwards, marks
    ("from the feet", "along z", 0, 1, 2, False, "APRL"),
    ("from the front", "along y", 1, 0, 2, True, "SIRL"),
    ("from the left", "along x", 2, 0, 1, True, "SIAP"),
)


def project(volume: Volume[Any], look: Look, channel: int = 0) -> tuple[Side, ...]:
    """The three sides.

    Args:
        volume: The image.
        look: Where the run looked.
        channel: Which one is drawn.
    """
    turn, grid = display_turn(volume.grid), volume.grid
    raw = volume.channels[channel]
    coarse = np.asarray(raw[tuple(slice(None, None, max(1, size // _COARSE)) for size in grid.shape)], np.float32)
    scene = _Scene(
        turn.last_axes(np.where(np.isfinite(coarse), coarse, np.float32(0))),
        turn.last_axes(look.heatmap),
        turn.box(look.within, grid.shape),
        _boxes(look, turn, volume),
        np.array(turn.per_axis(grid.spacing)),
        turn.sizes(grid.shape),
        grid.unit,
        shows_patient(grid),
    )
    return tuple(scene.side(*view) for view in _VIEWS)


def _boxes(look: Look, turn: Turn, volume: Volume[Any]) -> list[tuple[Box, str]]:
    kinds = ((look.boxes, "seen"), (look.dropped, "dropped"), (look.left, "late"))
    return [(turn.box(box, volume.grid.shape), kind) for boxes, kind in kinds for box in boxes[:_MOST_FRAMES]]


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """Everything as displayed."""

    image: NDArray[np.float32]
    heat: NDArray[np.float32]
    within: Box
    boxes: list[tuple[Box, str]]
    spacing: NDArray[np.float64]
    shape: tuple[int, int, int]
    unit: str
    patient: bool

    def side(self, name: str, plain: str, sight: int, rows: int, columns: int, up: bool, marks: str) -> Side:
        up = up and self.patient
        step = -1 if up else 1
        image, heat = self.image.mean(axis=sight)[::step], self.heat.max(axis=sight, initial=0.0)[::step]
        height, width = (float(self.shape[axis] * self.spacing[axis]) for axis in (rows, columns))

        def frame(box: Box, kind: str = "") -> Frame:
            (top, left), (bottom, right) = (
                (corner[rows] * self.spacing[rows], corner[columns] * self.spacing[columns])
                for corner in (box.start, box.stop)
            )
            return Frame(
                float(left), float(height - bottom if up else top), float(right - left), float(bottom - top), kind
            )

        return Side(
            words=name if self.patient else plain,
            image=png(_grey(image)),
            heat=png(_coloured(heat)),
            heat_frame=frame(self.within),
            width=width,
            height=height,
            frames=tuple(dict.fromkeys(frame(box, kind) for box, kind in self.boxes)),
            scale=scale_for(width, self.unit),
            marks=marks if self.patient else "",
        )


def _grey(image: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Dark, so that colours stand out."""
    low, high = np.percentile(image, (1, 99.5))
    return np.asarray(np.clip((image - low) / max(high - low, 1e-9), 0, 1) * 150, np.uint8)


def _coloured(heat: NDArray[np.float32]) -> NDArray[np.uint8]:
    """What is certain is opaque."""
    values = np.clip(heat, 0, 1)
    pixels = np.asarray(colormaps[HEAT](values) * 255, np.uint8)
    pixels[..., 3] = np.asarray(np.sqrt(values) * 255, np.uint8)
    return pixels


def heat_legend() -> str:
    """The colours from 0 to 1, from left to right."""
    return png(np.asarray(colormaps[HEAT](np.linspace(0, 1, 64))[np.newaxis] * 255, np.uint8))
