"""The demo's overlay picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from coarse2fine.io import Volume, atomic_write
from coarse2fine.page.orientation import as_displayed, display_axes

RESULT, REFERENCE = "#ff4d4d", "#4dc3ff"
ZOOM_MM = 60.0
MARKS = {"A": (0.5, 0.97), "P": (0.5, 0.03), "R": (0.02, 0.5), "L": (0.98, 0.5)}
"""Where the patient's front, back, right and left are, as viewers write them at a picture's edges."""


def draw_overlay(volume: Volume, labels: NDArray[np.generic], reference: NDArray[np.bool_], path: Path) -> None:
    """Draw the slice with most of the result, whole and close up, with outlines of result and reference.

    It is an axial slice with the patient's front on top and right on the left, however the file stores the volume.
    Slices are counted from the feet, the first one being 1.

    Args:
        volume: The CT, (z, y, x) in Hounsfield units.
        labels: The result, same shape.
        reference: The true lesion, same shape.
        path: PNG to write.
    """
    spacing = tuple(volume.grid.spacing[axis] for axis in display_axes(volume.grid)[0])[1:]
    image, labels, reference = (as_displayed(array, volume.grid) for array in (volume.channels[0], labels, reference))
    shown = labels if labels.any() else reference
    z = int((shown != 0).sum(axis=(1, 2)).argmax())
    rows, columns = np.nonzero(shown[z]) if shown[z].any() else (np.array([0]), np.array([0]))
    y, x = float(rows.mean() + 0.5) * spacing[0], float(columns.mean() + 0.5) * spacing[1]
    figure = Figure(figsize=(12, 6.7), facecolor="black", layout="constrained")
    whole, close = figure.subplots(1, 2)
    for axes, title in ((whole, f"slice {z + 1} of {len(labels)}"), (close, f"{ZOOM_MM:.0f} mm around the finding")):
        draw_slice(axes, image[z], (spacing[0], spacing[1]), labels[z] != 0, reference[z])
        axes.set_title(title, color="white")
    half = ZOOM_MM / 2
    whole.add_patch(Rectangle((x - half, y - half), ZOOM_MM, ZOOM_MM, fill=False, color="white", lw=0.8))
    close.set_xlim(x - half, x + half)
    close.set_ylim(y + half, y - half)
    if volume.grid.unit == "mm":
        for letter, place in MARKS.items():
            whole.text(*place, letter, transform=whole.transAxes, color="white", ha="center", va="center")
    for offset, text, colour in ((0.02, "result", RESULT), (0.16, "reference", REFERENCE)):
        close.text(offset, 0.03, text, transform=close.transAxes, color=colour, fontsize=12, weight="bold")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def draw_slice(
    axes: Any,
    image: NDArray[np.generic],
    spacing: tuple[float, float],
    result: NDArray[np.bool_],
    reference: NDArray[np.bool_],
) -> None:
    """One slice in millimetres with two outlines, in the lung window."""
    height, width = image.shape
    extent = (0.0, width * spacing[1], height * spacing[0], 0.0)
    axes.imshow(image, cmap="gray", vmin=-1200, vmax=400, extent=extent, interpolation="bilinear")
    x, y = (np.arange(width) + 0.5) * spacing[1], (np.arange(height) + 0.5) * spacing[0]
    for mask, colour in ((reference, REFERENCE), (result, RESULT)):
        if mask.any():
            axes.contour(x, y, mask.astype(float), levels=[0.5], colors=[colour], linewidths=1.6)
    axes.set_axis_off()
