"""Parts of a volume as text: ``0:64,100:200,:``."""

from __future__ import annotations

import math
import re

from canvas import Box
from coarse2fine.errors import ConfigError
from coarse2fine.io.volume import Grid

_NM = {"nm": 1.0, "um": 1e3, "mm": 1e6}
"""Nanometres per unit."""
_END = r"(-?[0-9]{1,15}(?:\.[0-9]{1,15})?)?(nm|um|mm)?"
_RANGE = re.compile(rf"\s*{_END}\s*:\s*{_END}\s*")
_HOW = "Write START:STOP for z, y and x, such as 0:64,100:200,: or, in nanometres, 0:2560nm,400:800nm,:"


def parse_region(text: str, grid: Grid) -> Box:
    """The voxels that a text such as ``0:64,100:200,:`` names.

    One START:STOP per axis, in the order z, y, x, separated by commas. STOP is not part of the region. An end that is
    left out is the volume's. Numbers count voxels from the volume's first one, whatever its origin. With a unit (nm,
    um or mm) they are distances from the first voxel's outer face, and the region gets all voxels that they touch; a
    unit behind STOP alone is START's, too.

    Args:
        text: The region.
        grid: Of the volume.

    Returns:
        A box inside the volume with at least one voxel.

    Raises:
        ConfigError: If the text has another form, or names no voxel or one outside of the volume.

    >>> parse_region("0:2000nm,100:200,:", Grid((64, 512, 512), (40.0, 4.0, 4.0), "nm"))
    Box(start=(0, 100, 0), stop=(50, 200, 512))
    """
    parts = text.split(",")
    if len(parts) != 3:
        raise ConfigError(f"region {text!r} has {len(parts)} axes instead of 3", f"{_HOW}.")
    ends = [
        _axis_range(text, part, axis, size, step, grid.unit)
        for part, axis, size, step in zip(parts, "zyx", grid.shape, grid.spacing, strict=True)
    ]
    z, y, x = ends
    return Box((z[0], y[0], x[0]), (z[1], y[1], x[1]))


def _axis_range(text: str, part: str, axis: str, size: int, step: float, unit: str) -> tuple[int, int]:
    """First voxel and the one after the last, checked."""
    match = _RANGE.fullmatch(part)
    if match is None:
        raise ConfigError(f"region {text!r}: {part.strip()!r} is no range for axis {axis}", f"{_HOW}.")
    start_text, start_unit, stop_text, stop_unit = match.groups()
    for value, suffix in ((start_text, start_unit), (stop_text, stop_unit)):
        if suffix and value is None:
            raise ConfigError(f"region {text!r}: axis {axis} has a unit without a number", f"{_HOW}.")
    if start_unit and stop_text and not stop_unit:
        raise ConfigError(f"region {text!r}: axis {axis} has a unit at START only", "Add it to STOP, too.")
    start = 0 if start_text is None else _voxel(text, start_text, start_unit or stop_unit, step, unit, axis, up=False)
    stop = size if stop_text is None else _voxel(text, stop_text, stop_unit, step, unit, axis, up=True)
    extent = f"{size} voxels or {size * step:g} {unit}"
    if start < 0 or start > size or stop < 0 or stop > size:
        raise ConfigError(
            f"region {text!r}: voxels {start}:{stop} reach outside of the volume, whose axis {axis} has {extent}",
            f"Stay between 0 and {size} voxels.",
        )
    if start >= stop:
        raise ConfigError(
            f"region {text!r} is empty: voxels {start}:{stop} on axis {axis}, which has {extent}",
            "STOP must be greater than START.",
        )
    return start, stop


def _voxel(text: str, value: str, unit: str | None, step: float, grid_unit: str, axis: str, *, up: bool) -> int:
    """An end of a range in voxels; distances are rounded outwards."""
    if unit is None:
        if "." in value:
            raise ConfigError(f"region {text!r}: {value} on axis {axis} is no whole number of voxels", f"{_HOW}.")
        return int(value)
    voxels = float(value) * _NM[unit] / _NM[grid_unit] / step
    nearest = round(voxels)
    if math.isclose(voxels, nearest, rel_tol=1e-9, abs_tol=1e-6):  # 0.3 / 0.1 is a little less than 3
        return nearest
    return math.ceil(voxels) if up else math.floor(voxels)
