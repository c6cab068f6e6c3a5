"""A map as a picture: the slice in which it is strongest, with the patient's front on top and right on the left."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure
from numpy.typing import NDArray

from coarse2fine.explain.volumes import Explanation
from coarse2fine.io import Volume, atomic_write
from coarse2fine.page.orientation import as_displayed, display_turn, shows_patient
from coarse2fine.page.pictures import reduced, scale_for
from coarse2fine.page.window import pick_window

HEAT, OUTLINE = "inferno", "#56b4e9"
MARKS = {"A": (0.5, 0.97), "P": (0.5, 0.03), "R": (0.02, 0.5), "L": (0.98, 0.5)}
"""Where the patient's front, back, right and left are."""
_OPACITY = 0.6  # of the map where it is highest


def write_map_picture(volume: Volume[Any], found: Explanation, path: Path, *, title: str, ct: bool) -> int:
    """Write what ``draw_map`` draws, and return the slice's number.

    Raises:
        OutputError: If it cannot be written.
    """
    picture, number = draw_map(volume, found, title=title, ct=ct)
    with atomic_write(path) as temporary:
        temporary.write_bytes(picture)
    return number


def draw_map(volume: Volume[Any], found: Explanation, *, title: str, ct: bool) -> tuple[bytes, int]:
    """Draw a slice as it is, and with the map over it; outlines show the voxels that are explained.

    Args:
        volume: The image; its first channel is drawn.
        found: The map.
        title: What it is a map of.
        ct: Whether values are Hounsfield units.

    Returns:
        The picture as PNG, and the number of the slice, from 1, the one at the feet.
    """
    image, heat, explained = (
        as_displayed(np.asarray(array), volume.grid) for array in (volume.channels[0], found.values, found.explained)
    )
    index = strongest_slice(heat, explained)
    window = pick_window(image[index], image[index][explained[index]], ct=ct)
    spacing = display_turn(volume.grid).per_axis(volume.grid.spacing)[1:]
    height, width = (size * edge for size, edge in zip(heat.shape[1:], spacing, strict=True))
    figure = Figure(figsize=(12, 0.9 + 6 * min(height / width, 3)), facecolor="black", layout="constrained")
    figure.suptitle(f"{title}; slice {index + 1} of {len(heat)}", color="white")
    for axes, shown in zip(figure.subplots(1, 2), (None, heat[index]), strict=True):
        _draw(axes, window.grey(reduced(image[index])[0]), shown, explained[index], (height, width))
        if shows_patient(volume.grid):
            for letter, place in MARKS.items():
                axes.text(*place, letter, transform=axes.transAxes, color="white", ha="center", va="center")
        bar = scale_for(width, volume.grid.unit)
        axes.plot([0.05 * width, 0.05 * width + bar.length], [0.95 * height] * 2, color="white", lw=2)
        axes.text(0.05 * width, 0.94 * height, bar.words, color="white", va="bottom")
    return _as_png(figure), index + 1


def draw_flat_map(
    grey: NDArray[np.uint8], heat: NDArray[np.float32], explained: NDArray[np.bool_], title: str
) -> bytes:
    """A picture as it is, and with its map over it; all of shape (rows, columns).

    Args:
        grey: The picture.
        heat: The map, from 0 to 1.
        explained: Pixels that are explained, which outlines show; none of a classifier.
        title: What it is a map of.

    Returns:
        PNG.
    """
    height, width = grey.shape
    figure = Figure(figsize=(12, 0.9 + 6 * min(height / width, 3)), facecolor="black", layout="constrained")
    figure.suptitle(title, color="white")
    for axes, shown in zip(figure.subplots(1, 2), (None, heat), strict=True):
        _draw(axes, grey, shown, explained, (float(height), float(width)))
    return _as_png(figure)


def _as_png(figure: Figure) -> bytes:
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    return picture.getvalue()


def strongest_slice(heat: NDArray[np.float32], explained: NDArray[np.bool_]) -> int:
    """The slice in which a map adds up to most; of an empty one that with most of what is explained, or the middle."""
    for array in (heat, explained):
        sums = array.sum(axis=(1, 2), dtype=np.float64)
        if sums.any():
            return int(sums.argmax())
    return len(heat) // 2


def coloured(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Colours of map values, the more opaque the higher; shape (rows, columns, 4)."""
    colours = np.asarray(colormaps[HEAT](heat), np.float32)
    colours[..., 3] = _OPACITY * np.sqrt(heat)
    return colours


def _draw(
    axes: Any,
    grey: NDArray[np.uint8],
    heat: NDArray[np.float32] | None,
    explained: NDArray[np.bool_],
    extent: tuple[float, float],
) -> None:
    """One slice."""
    height, width = extent
    edges = (0.0, width, height, 0.0)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=255, extent=edges)
    if heat is not None:
        axes.imshow(coloured(heat), extent=edges, interpolation="nearest")
    if explained.any():
        x, y = (
            (np.arange(size) + 0.5) * edge / size
            for size, edge in zip(explained.shape[::-1], (width, height), strict=True)
        )
        axes.contour(x, y, explained.astype(float), levels=[0.5], colors=[OUTLINE], linewidths=1.2)
    axes.set_axis_off()
