"""A DICOM series as a volume: slices in the order in which they lie, as GDCM and SimpleITK put them together."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from coarse2fine.errors import VolumeError
from coarse2fine.io.dicom.members import DICOM_SUFFIX, ZIP_SUFFIX, Member, open_members
from coarse2fine.io.dicom.slices import Header, Slice, pydicom_of_extra, read_header, read_slice, told
from coarse2fine.io.volume import Grid, Volume

_UNEVEN = 0.05  # of a step, by which steps may differ; positions are often rounded
_DRIFT = 0.5  # of a step, by which a slice may lie off the even grid from the first slice to the last
_TILT = 2e-3  # sine of the angle between steps and the slices' normal
_ASIDE = 0.1  # of a voxel, by which a slice may lie aside, beside the tilt
_SAME = 1e-4  # by which directions of one series may differ, and spacings relative to themselves
_LONGEST_NIFTI_AXIS = 32767
_MOST_LISTED = 6
_APART = "Move those of one volume into a folder of their own."


@dataclass(frozen=True, slots=True)
class Stack:
    """The slices of a volume in the order in which they lie.

    Attributes:
        slices: From the first on.
        step: Millimetres from one to the next.
    """

    slices: tuple[Slice, ...]
    step: float

    @property
    def grid(self) -> Grid:
        """Where the voxels lie."""
        first = self.slices[0]
        spacing = (self.step, *first.spacing)
        shape = (len(self.slices), *first.shape)
        directions = np.stack([*first.axes, np.cross(*first.axes)], axis=1)  # columns for x, y, z
        x, y, z = first.position.tolist()
        cosines = tuple(directions.ravel().tolist())
        nifti = _as_nifti(directions, spacing, first.position, shape) if max(shape) <= _LONGEST_NIFTI_AXIS else None
        return Grid(shape, spacing, "mm", (z, y, x), cosines, DICOM_SUFFIX, nifti)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Of true values: 16-bit integers where these are exact, else single precision."""
        scales = {(one.slope, one.intercept) for one in self.slices}
        if all(slope.is_integer() and intercept.is_integer() for slope, intercept in scales):
            ends = [end * one.slope + one.intercept for one in self.slices for end in (one.low, one.high)]
            for kind in (np.int16, np.uint16):
                if np.iinfo(kind).min <= min(ends) and max(ends) <= np.iinfo(kind).max:
                    return np.dtype(kind)
        return np.dtype(np.float32)


def series_name(path: Path) -> str:
    """What to call the volume: as its folder or zip file is called."""
    name = path.resolve().name
    return name[: -len(ZIP_SUFFIX)] if name.lower().endswith(ZIP_SUFFIX) and not path.is_dir() else name


def read_series(path: Path) -> Volume[NDArray[Any]]:
    """Reads the one series of a folder or zip file.

    Raises:
        VolumeError: If it is not one volume of grey values on an even grid, or damaged.
        ConfigError: If pydicom is not installed.
    """
    pydicom_of_extra()
    with open_members(path) as members:
        stack = stack_of(path, members)
        grid = stack.grid
        voxels = np.empty(grid.shape, stack.dtype)
        for target, one in zip(voxels, stack.slices, strict=True):
            target[...] = _values(one)
    return Volume((voxels,), grid, series_name(path))


def stack_of(path: Path, members: Sequence[Member]) -> Stack:
    """The slices of a series, sorted by where they lie; their names and numbers say nothing.

    Raises:
        VolumeError: If they are not those of one volume on an even grid.
    """
    headers = [read_header(member) for member in members]
    _check_one_series(path, headers)
    slices = [read_slice(header) for header in headers]
    first = slices[0]
    for one in slices:
        _check_alike(first, one)
    normal = np.cross(*first.axes)
    along = np.array([one.position @ normal for one in slices])
    order = np.argsort(along, kind="stable")
    slices = [slices[index] for index in order]
    return Stack(tuple(slices), _even_step(path, slices, along[order], normal))


def _check_one_series(path: Path, headers: Sequence[Header]) -> None:
    """Refuses a folder with files of several series."""
    counts = Counter(header.series for header in headers)
    if len(counts) == 1:
        return
    called = {header.series: header.called for header in headers}
    most = counts.most_common(_MOST_LISTED)
    listed = [f"{called[series] or series} ({count} file{'s' * (count > 1)})" for series, count in most]
    more = f" and {len(counts) - _MOST_LISTED} more" if len(counts) > _MOST_LISTED else ""
    raise VolumeError(
        f"{path} holds {len(counts)} series: {', '.join(listed)}{more}",
        "A folder or zip file is one series: move the files of each (equal SeriesInstanceUID) into one of its own.",
    )


def _check_alike(first: Slice, other: Slice) -> None:
    """Refuses slices of one series that differ in shape, spacing or direction, as scouts do."""
    what = (
        ("rows and columns", first.shape, other.shape, first.shape == other.shape),
        ("PixelSpacing", first.spacing, other.spacing, np.allclose(first.spacing, other.spacing, rtol=_SAME, atol=0)),
        ("ImageOrientationPatient", first.axes, other.axes, np.allclose(first.axes, other.axes, rtol=0, atol=_SAME)),
    )
    for name, mine, its, same in what:
        if not same:
            values = f"{np.ravel(mine).tolist()} and {np.ravel(its).tolist()}"
            raise VolumeError(f"{first.member.name} and {other.member.name} differ in {name}: {values}", _APART)


def _even_step(path: Path, slices: Sequence[Slice], along: NDArray[np.float64], normal: NDArray[np.float64]) -> float:
    """Millimetres from slice to slice, which must be the same everywhere, and straight ahead."""
    if len(slices) == 1:
        return slices[0].thickness
    steps = np.diff(along)
    usual = float(np.median(steps))
    same = np.flatnonzero(steps <= _UNEVEN * usual) if usual > 0 else np.flatnonzero(steps <= 0)
    if usual <= 0 or same.size:
        one, other = slices[same[0]], slices[same[0] + 1]
        raise VolumeError(
            f"{one.member.name} and {other.member.name} lie in the same place; so do {same.size} pairs of slices in "
            f"{path}: they are copies, or several phases or echoes",
            _APART,
        )
    worst = int(np.argmax(np.abs(steps - usual)))
    if abs(steps[worst] - usual) > _UNEVEN * usual:
        missing = round(steps[worst] / usual) - 1
        gap = f"{missing} slice(s) seem to be missing" if missing > 0 else "slices lie unevenly"
        raise VolumeError(
            f"{path}: between {slices[worst].member.name} and {slices[worst + 1].member.name} are "
            f"{steps[worst]:.6g} mm, elsewhere {usual:.6g} mm: {gap} (at most {_UNEVEN:.0%} may differ)",
            "Export or copy the whole series again; if it was taken like this, resample it to an even grid.",
        )
    _check_straight(path, slices, along, normal)
    even = np.linspace(along[0], along[-1], len(slices))
    if np.abs(along - even).max() > _DRIFT * usual:
        worst = int(np.argmax(np.abs(along - even)))
        raise VolumeError(
            f"{path}: steps from slice to slice change from {steps.min():.6g} to {steps.max():.6g} mm, so that "
            f"{slices[worst].member.name} lies {abs(along[worst] - even[worst]):.3g} mm from an even grid",
            "Resample it to an even grid, or give the part of the series that has one.",
        )
    return float(even[1] - even[0])


def _check_straight(
    path: Path, slices: Sequence[Slice], along: NDArray[np.float64], normal: NDArray[np.float64]
) -> None:
    """Refuses a tilted gantry, whose slices lie aside of each other."""
    apart = np.array([one.position - slices[0].position for one in slices])
    aside = np.linalg.norm(apart - np.outer(apart @ normal, normal), axis=1)
    allowed = _TILT * (along - along[0]) + _ASIDE * min(slices[0].spacing)
    if (aside > allowed).any():
        worst = int(np.argmax(aside - allowed))
        angle = math.degrees(math.atan2(aside[worst], along[worst] - along[0]))
        raise VolumeError(
            f"{path}: slices lie up to {aside.max():.4g} mm aside of the first one ({slices[worst].member.name}: "
            f"{angle:.3g} degrees): the gantry was tilted, or slices are from several scans",
            "Resample it to right angles, for example with SimpleITK (ImageSeriesReader with "
            "ForceOrthogonalDirectionOff, then Resample onto a grid at right angles), and segment the .nii.gz.",
        )


def _values(one: Slice) -> NDArray[Any]:
    """The true values of a slice."""
    from pydicom.pixels import pixel_array

    with told(one.member.name), one.member.open() as stream:
        stored = pixel_array(stream, raw=True)
    if stored.shape != one.shape or stored.dtype.kind not in "iu":
        raise VolumeError(
            f"{one.member.name} holds {' x '.join(map(str, stored.shape))} voxels of type {stored.dtype}, but its "
            f"header says {' x '.join(map(str, one.shape))} whole numbers",
            "It may be damaged: copy it again.",
        )
    if one.slope == 1 and one.intercept == 0:
        return stored
    return stored * one.slope + one.intercept


def _as_nifti(
    directions: NDArray[np.float64], spacing: tuple[float, ...], position: NDArray[np.float64], shape: tuple[int, ...]
) -> bytes:
    """The header of a NIfTI file of the same geometry, for readers that stand on nibabel."""
    affine = np.eye(4)
    affine[:3, :3], affine[:3, 3] = directions * spacing[::-1], position
    affine[:2] *= -1  # from LPS to RAS
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    header.set_data_shape(shape[::-1])
    header.set_zooms(spacing[::-1])
    header.set_xyzt_units("mm")
    header.set_qform(affine, 1)
    header.set_sform(affine, 1)
    return bytes(header.binaryblock)
