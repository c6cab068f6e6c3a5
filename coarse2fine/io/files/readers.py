"""What nnU-Net's image readers make of a file: which axes the network sees first, which way round, how far apart.

A model's plans name the reader that its training images went through. Volumes are read once, in the file's own voxel
order, and turned to what each model's reader would have given when the model looks at them; so labels never leave the
file's own order, and two models may name different readers.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import nibabel
import numpy as np
import SimpleITK as sitk
from nibabel.orientations import io_orientation
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from canvas import Triple, triple
from coarse2fine.errors import VolumeError
from coarse2fine.io.dicom.members import DICOM_SUFFIX
from coarse2fine.io.files import headers
from coarse2fine.io.turn import Turn
from coarse2fine.io.volume import Grid, Spacing, Volume

NIFTI_SUFFIXES = (".nii.gz", ".nii")
TIFF_SUFFIXES = (".tif", ".tiff")
_SAME_PLACE = 0.01  # voxels that channels may lie apart without a word; rounded headers are better than that
_NIFTI_UNITS = {1: "m", 2: "mm", 3: "\u00b5m"}  # of lengths, by their code; others are taken for mm
_RIGHT_ANGLE = 1e-4  # cosine; SimpleITK refuses what is further from a right angle
_SILENT = logging.getLogger("coarse2fine.io.files.readers.nibabel")  # nibabel tells what it repairs; here it is no news
_SILENT.disabled = True


@dataclass(frozen=True, slots=True)
class Reader:
    """One of nnU-Net's image readers.

    Attributes:
        name: Of nnU-Net's class.
        library: What it reads files with.
        reorients: Whether it turns volumes so that their axes point to the right, to the front and up (RAS).
    """

    name: str
    library: Literal["SimpleITK", "nibabel", "tifffile", "pillow"]
    reorients: bool = False

    def takes(self, suffix: str) -> bool:
        """Whether it reads files with this ending; of those that any reader knows."""
        if self.library == "nibabel":
            return suffix in (*NIFTI_SUFFIXES, DICOM_SUFFIX)
        if self.library == "pillow":
            return False
        return (suffix in TIFF_SUFFIXES) == (self.library == "tifffile")


PICTURES = Reader("NaturalImage2DIO", "pillow")
"""Of pictures, which are no volumes and so not in ``READERS``."""
SIMPLE_ITK = Reader("SimpleITKIO", "SimpleITK")
READERS: Mapping[str, Reader] = {
    reader.name: reader
    for reader in (
        SIMPLE_ITK,
        Reader("SimpleITKIOWithReorient", "SimpleITK", reorients=True),
        Reader("NibabelIO", "nibabel"),
        Reader("NibabelIOWithReorient", "nibabel", reorients=True),
        Reader("Tiff3DIO", "tifffile"),
    )
}


def default_reader(suffix: str) -> Reader:
    """The reader that nnU-Net takes for files with this ending unless it is told otherwise."""
    return READERS["Tiff3DIO"] if suffix in TIFF_SUFFIXES else SIMPLE_ITK


@dataclass(frozen=True, slots=True)
class Aspect:
    """How a reader gives a volume to the network.

    Attributes:
        turn: From the file's voxel order.
        spacing: Distance between voxels, axes of the turned volume.
        corner: Where the first voxel of the turned volume lies (x, y, z); None if nobody knows.
        steps: Where each of its axes leads, voxel by voxel; rows for (z, y, x).
        unit: Of all these lengths, which readers may take from the file as they are.
    """

    turn: Turn
    spacing: Spacing
    corner: NDArray[np.float64] | None = None
    steps: NDArray[np.float64] | None = None
    unit: str = "mm"


def look_with(reader: Reader, volume: Volume[Any]) -> tuple[Aspect, ...]:
    """How a reader gives each channel of a volume to the network.

    Raises:
        VolumeError: If the reader does not take the volume, or its channels do not fit together.
    """
    names = [volume.name] + [f"{volume.name}, channel {index}" for index in range(1, len(volume.channels))]
    return check_channels(reader, names, volume.grids)


def check_channels(reader: Reader, names: Sequence[str], grids: Sequence[Grid]) -> tuple[Aspect, ...]:
    """How a reader gives channels of one case to the network.

    Args:
        reader: The reader.
        names: What to call each channel in messages.
        grids: Of each channel.

    Raises:
        VolumeError: If the reader does not take one of them, or shape or spacing differ once they are turned.
    """
    known: dict[Grid, Aspect] = {}
    aspects = []
    for name, grid in zip(names, grids, strict=True):
        if grid not in known or grid.nifti is not None:
            known[grid] = _aspect(reader, name, grid)
        aspects.append(known[grid])
    first, shape = aspects[0], aspects[0].turn.sizes(grids[0].shape)
    for name, grid, aspect in zip(names, grids, aspects, strict=True):
        turned = aspect.turn.sizes(grid.shape)
        if turned != shape or not np.allclose(aspect.spacing, first.spacing):
            raise VolumeError(
                f"{names[0]} and {name} are channels of one case but differ (z, y, x): shape {shape} and {turned}, "
                f"spacing {first.spacing} {first.unit} and {aspect.spacing} {aspect.unit}",
                "Resample them to one grid.",
            )
    return tuple(aspects)


def channel_doubts(volume: Volume[Any], aspects: Sequence[Aspect]) -> tuple[str, ...]:
    """A warning for each channel that lies elsewhere than the first one, although the voxels are put together.

    Args:
        volume: The volume.
        aspects: Of its channels.
    """
    doubts = []
    first, last = aspects[0], np.array(aspects[0].turn.sizes(volume.grid.shape)) - 1
    for index, aspect in enumerate(aspects[1:], 1):
        if first.corner is None or first.steps is None or aspect.corner is None or aspect.steps is None:
            continue
        corners = np.array(list(itertools.product(*((0, edge) for edge in last))))
        apart = (aspect.corner + corners @ aspect.steps) - (first.corner + corners @ first.steps)
        distance = float(np.linalg.norm(apart, axis=1).max())
        if distance > _SAME_PLACE * min(first.spacing):
            doubts.append(
                f"channel {index} lies up to {distance:.3g} {first.unit} away from channel 0: their origins or "
                "directions differ. The voxels are put together as they are, as nnU-Net does; check that the images "
                "belong together, or resample one to the other's grid"
            )
    return tuple(doubts)


def orientation_doubts(volume: Volume[Any], readers: Sequence[Reader]) -> tuple[str, ...]:
    """A warning if a reader would turn the volume, but nobody knows how it lies."""
    names = sorted({reader.name for reader in readers if reader.reorients})
    if not names or volume.grid.direction is not None:
        return ()
    return (
        f"the model turns volumes so that their axes point right, to the front and up ({', '.join(names)}), but this "
        "one does not say how it lies: its axes are taken for up, to the front and right (z, y, x)",
    )


def scaling_by_nibabel(name: str, nifti: bytes) -> tuple[float, float]:
    """Slope and intercept from stored to true values, as nibabel reads a NIfTI header.

    Raises:
        VolumeError: If nibabel refuses them.
    """
    with _told(name):
        slope, intercept = _header(nifti).get_slope_inter()
    return (1.0, 0.0) if slope is None else (float(slope), float(intercept))


def grid_by_nibabel(name: str, suffix: str, nifti: bytes) -> Grid:
    """The grid of a NIfTI file that only nibabel can read: with a sheared affine, which is no set of cosines.

    Raises:
        VolumeError: If nibabel cannot read it either.
    """
    with _told(name):
        header = _header(nifti)
        x, y, z = header.get_data_shape()[:3]
        affine = np.array(header.get_best_affine(), float)
        zooms = np.array(header.get_zooms()[:3], float)
        if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-12 * np.prod(zooms):
            raise ValueError("its affine is singular")
    lps = np.diag([-1.0, -1.0, 1.0]) @ affine[:3]
    direction = (lps[:, :3] / np.linalg.norm(lps[:, :3], axis=0)).reshape(-1)
    spacing = (float(zooms[2]), float(zooms[1]), float(zooms[0]))
    origin = (float(lps[2, 3]), float(lps[1, 3]), float(lps[0, 3]))
    return Grid(triple((z, y, x)), spacing, "mm", origin, tuple(float(part) for part in direction), suffix, nifti)


def _aspect(reader: Reader, name: str, grid: Grid) -> Aspect:
    if grid.suffix and not reader.takes(grid.suffix):
        raise unsuitable(reader, name, grid.suffix)
    if grid.direction is None:
        return Aspect(Turn(), grid.spacing, unit=grid.unit)
    if reader.library == "nibabel":
        return _aspect_by_nibabel(reader, name, grid)
    return _aspect_by_simpleitk(reader, name, grid)


def unsuitable(reader: Reader, name: str, suffix: str) -> VolumeError:
    """What is wrong with a file that a reader does not take."""
    if reader.library == "tifffile":
        remedy = "Save its voxels as .tif and its spacing in a .json file beside it, as the model's training data were."
    elif suffix in TIFF_SUFFIXES:
        remedy = "Convert it to .nii.gz, with its spacing."
    else:
        remedy = "Convert it to .nii.gz, for example with SimpleITK: WriteImage(ReadImage(OLD), NEW)."
    return VolumeError(f"{name}: the model's reader {reader.name} does not read {suffix} files", remedy)


def _aspect_by_simpleitk(reader: Reader, name: str, grid: Grid) -> Aspect:
    matrix = np.array(grid.direction).reshape(3, 3)
    if grid.nifti is not None and not np.allclose(matrix.T @ matrix, np.eye(3), atol=_RIGHT_ANGLE):
        raise sheared(name)
    turn = Turn()
    if reader.reorients:
        image = sitk.Image(1, 1, 1, sitk.sitkUInt8)
        image.SetDirection(grid.direction)
        orient = sitk.DICOMOrientImageFilter()
        orient.SetDesiredCoordinateOrientation("RAS")
        orient.Execute(image)
        turn = _reversed_order(orient.GetPermuteOrder(), orient.GetFlipAxes())
    z, y, x = (grid.spacing[axis] for axis in turn.axes)
    steps = (matrix * np.array(grid.spacing[::-1])).T[::-1]
    return _placed(turn, (z, y, x), grid.shape, np.array(grid.origin[::-1]), steps)


def _aspect_by_nibabel(reader: Reader, name: str, grid: Grid) -> Aspect:
    if grid.nifti is None:
        raise VolumeError(
            f"{name}: the model's reader {reader.name} needs the header of a NIfTI file",
            "Read the volume from its file with read_volume, or leave out its direction if it lies as the model needs.",
        )
    with _told(name):
        header = _header(grid.nifti)
        shape = header.get_data_shape()
        affine = np.array(header.get_best_affine(), float)
        zooms = header.get_zooms()
    if len(shape) != 3 or shape != grid.shape[::-1]:
        raise VolumeError(
            f"{name}: the header states the shape {' x '.join(map(str, shape))} (x, y, z), and the model's reader "
            f"{reader.name} reads three dimensions only",
            "Save the one volume in it on its own, for example with nibabel: save(squeeze_image(load(OLD)), NEW).",
        )
    _check_scaling(name, header, reader)
    turn = Turn()
    if reader.reorients:
        with _told(name):
            orientation = io_orientation(affine)
            if np.isnan(orientation).any():
                raise ValueError("its affine is singular")
            nothing = np.broadcast_to(np.uint8(0), shape)
            zooms = nibabel.Nifti1Image(nothing, affine, header).as_reoriented(orientation).header.get_zooms()
        order, backwards = orientation[:, 0].argsort(), orientation[:, 1] < 0
        turn = _reversed_order(order.tolist(), backwards[order].tolist())
    x, y, z = (float(zoom) for zoom in zooms)
    unit = _NIFTI_UNITS.get(int(header["xyzt_units"]) & 7, "mm")
    return _placed(turn, (z, y, x), grid.shape, affine[:3, 3], affine[:3, :3].T[::-1], unit)


def _placed(
    turn: Turn,
    spacing: Spacing,
    shape: Triple,
    corner: NDArray[np.float64],
    steps: NDArray[np.float64],
    unit: str = "mm",
) -> Aspect:
    """The aspect of a volume, of which the file's corner and steps are given."""
    turned, last = steps[list(turn.axes)], np.array(turn.sizes(shape)) - 1
    for axis in turn.reversed_axes:
        corner = corner + last[axis] * turned[axis]
        turned[axis] *= -1
    return Aspect(turn, spacing, corner, turned, unit)


def _reversed_order(axes: Sequence[int], flips: Sequence[bool]) -> Turn:
    """A turn from one that counts axes (x, y, z)."""
    z, y, x = (bool(flip) for flip in reversed(flips))
    return Turn(triple(2 - axis for axis in reversed(axes)), (z, y, x))


def _check_scaling(name: str, header: nibabel.Nifti1Header, reader: Reader) -> None:
    """Refuses values to which the two libraries would give different scales, as voxels were read by SimpleITK's."""
    with _told(name):
        slope, intercept = header.get_slope_inter()
    theirs = (1.0, 0.0) if slope is None else (slope, intercept)
    ours = headers.itk_scaling(float(header["scl_slope"]), float(header["scl_inter"]))
    if ours != theirs:
        raise VolumeError(
            f"{name}: scl_slope is {header['scl_slope']:g} and scl_inter {header['scl_inter']:g}, of which SimpleITK "
            f"makes {ours[0]:g} and {ours[1]:g}, but the model's reader {reader.name} {theirs[0]:g} and {theirs[1]:g}",
            "Read it for this model alone: read_volume(files, readers=[model.reader]).",
        )


def sheared(name: str) -> VolumeError:
    """What is wrong with axes that are not at right angles."""
    return VolumeError(
        f"{name}: its axes are not at right angles (its affine is sheared), which SimpleITK cannot read, nor models "
        "whose plans name it",
        "Resample it to right angles, for example with nibabel: "
        "save(processing.resample_to_output(load(OLD)), NEW). Do the same with every channel.",
    )


def _header(nifti: bytes) -> nibabel.Nifti1Header:
    """The header as nibabel has it after reading: with what it repairs."""
    header = nibabel.Nifti1Header(nifti, check=False)
    header.check_fix(logger=_SILENT, error_level=40)
    return header


@contextmanager
def _told(name: str) -> Iterator[None]:
    """Turns what nibabel raises for odd headers into an error that names the file."""
    try:
        yield
    except (ValueError, ArithmeticError, HeaderDataError) as error:
        reason = str(error).partition("\n")[0]
        raise VolumeError(
            f"{name}: nibabel, which the model's reader stands on, refuses its header: {reason}",
            "Correct the header.",
        ) from error
