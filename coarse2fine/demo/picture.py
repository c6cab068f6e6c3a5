"""The demo's overlay picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from coarse2fine.io import Volume, atomic_write

RESULT, REFERENCE = "#ff4d4d", "#4dc3ff"
ZOOM_MM = 60.0


def draw_overlay(volume: Volume, labels: NDArray[np.generic], reference: NDArray[np.bool_], path: Path) -> None:
    """Draw the slice with most of the result, whole and close up, with outlines of result and reference.

    Args:
        volume: The CT, (z, y, x) in Hounsfield units.
        labels: The result, same shape.
        reference: The true lesion, same shape.
        path: PNG to write.
    """
    shown = labels if labels.any() else reference
    z = int((shown != 0).sum(axis=(1, 2)).argmax())
    image, spacing = volume.channels[0][z], volume.grid.spacing
    rows, columns = np.nonzero(shown[z]) if shown[z].any() else (np.array([0]), np.array([0]))
    centre = float(rows.mean()) * spacing[1], float(columns.mean()) * spacing[2]
    figure = Figure(figsize=(12, 6.7), facecolor="black", layout="constrained")
    whole, close = figure.subplots(1, 2)
    for axes, title in ((whole, f"slice {z} of {labels.shape[0]}"), (close, f"{ZOOM_MM:.0f} mm around the finding")):
        draw_slice(axes, image, (spacing[1], spacing[2]), labels[z] != 0, reference[z])
        axes.set_title(title, color="white")
    half = ZOOM_MM / 2
    whole.add_patch(
        Rectangle((centre[1] - half, centre[0] - half), ZOOM_MM, ZOOM_MM, fill=False, color="white", lw=0.8)
    )
    close.set_xlim(centre[1] - half, centre[1] + half)
    close.set_ylim(centre[0] + half, centre[0] - half)
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
