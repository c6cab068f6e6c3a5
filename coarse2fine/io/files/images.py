"""NIfTI, NRRD, MetaImage and GIPL files.

SimpleITK reads and writes the geometry, so that it is the one that nnU-Net sees; but it never sees a stranger's header,
of which some end the process. Ours are parsed strictly, and SimpleITK reads one that holds nothing but values that were
checked. The voxels pass it by, for two more reasons: isal packs and unpacks gzip faster, and SimpleITK (2.5) reads
damaged voxels without complaint and, when the disk is full, drops voxels of a NIfTI file without an error.
"""

from __future__ import annotations

import itertools
import math
import os
import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import SimpleITK as sitk
from isal import isal_zlib
from numpy.typing import NDArray

from canvas import triple
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io.atomic import atomic_write
from coarse2fine.io.dicom.members import DICOM_SUFFIX, is_series
from coarse2fine.io.dicom.series import read_series
from coarse2fine.io.files import fields, headers
from coarse2fine.io.files.fields import Header
from coarse2fine.io.files.gipl import gipl_header
from coarse2fine.io.files.headers import Layout
from coarse2fine.io.files.metaimage import metaimage_header
from coarse2fine.io.files.nrrd import nrrd_header
from coarse2fine.io.files.readers import (
    NIFTI_SUFFIXES,
    TIFF_SUFFIXES,
    Reader,
    check_channels,
    default_reader,
    grid_by_nibabel,
    scaling_by_nibabel,
    sheared,
    unsuitable,
)
from coarse2fine.io.files.tiff import read_spacing, read_tiff, write_tiff
from coarse2fine.io.files.voxels import check_finite, read_stored
from coarse2fine.io.volume import Grid, Volume

INPUT_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd", ".gipl")
LABEL_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")

_Encoder = Callable[[bytes, tuple[int, ...], memoryview], list[bytes | memoryview]]
_ENCODERS: dict[str, _Encoder] = {
    ".nii.gz": partial(headers.encode_nifti, packing=headers.GZIP),
    ".nii": partial(headers.encode_nifti, packing=headers.PLAIN),
    ".nrrd": headers.encode_nrrd,
    ".mha": headers.encode_meta,
}
_LONGEST_NIFTI_AXIS = 32767
_ITK_NAMES = {
    ".nii.gz": "NiftiImageIO",
    ".nii": "NiftiImageIO",
    ".nrrd": "NrrdImageIO",
    ".nhdr": "NrrdImageIO",
    ".mha": "MetaImageIO",
    ".mhd": "MetaImageIO",
    ".gipl": "GiplImageIO",
}
_VOXEL_TYPES: dict[int, np.dtype[Any]] = {
    sitk.sitkInt8: np.dtype(np.int8),
    sitk.sitkUInt8: np.dtype(np.uint8),
    sitk.sitkInt16: np.dtype(np.int16),
    sitk.sitkUInt16: np.dtype(np.uint16),
    sitk.sitkInt32: np.dtype(np.int32),
    sitk.sitkUInt32: np.dtype(np.uint32),
    sitk.sitkInt64: np.dtype(np.int64),
    sitk.sitkUInt64: np.dtype(np.uint64),
    sitk.sitkFloat32: np.dtype(np.float32),
    sitk.sitkFloat64: np.dtype(np.float64),
}
_COMPONENTS = {  # of vectors, which have one component if the fourth axis of an NRRD file is a list of one
    getattr(sitk, f"sitkVector{name}"): getattr(sitk, f"sitk{name}")
    for name in (*(f"{sign}{bits}" for sign in ("Int", "UInt") for bits in (8, 16, 32, 64)), "Float32", "Float64")
}
# What SimpleITK, the system and isal raise; isal's own stubs call its exception class an instance.
_READ_ERRORS = (RuntimeError, OSError, EOFError, cast(type[Exception], isal_zlib.error))


_HEADERS: dict[str, Callable[[Path], Header]] = {
    ".nrrd": nrrd_header,
    ".nhdr": nrrd_header,
    ".mha": metaimage_header,
    ".mhd": metaimage_header,
    ".gipl": gipl_header,
}


@dataclass(frozen=True, slots=True)
class _Head:
    """What a file says about its voxels; ``dtype`` is that of true values, the layout's that of stored ones."""

    grid: Grid
    dtype: np.dtype[Any]
    layout: Layout


def split_suffix(path: Path) -> tuple[str, str]:
    """File name without ending, and the ending.

    Raises:
        VolumeError: If no reader knows the ending.

    >>> split_suffix(Path("scans/case.v2_0000.nii.gz"))
    ('case.v2_0000', '.nii.gz')
    """
    for suffix in (*INPUT_SUFFIXES, *TIFF_SUFFIXES):
        if path.name.endswith(suffix):
            return path.name.removesuffix(suffix), suffix
    raise VolumeError(f"{path}: unknown file type", f"Volumes end in {', '.join(INPUT_SUFFIXES)}.")


def read_volume(files: Sequence[Path], readers: Sequence[Reader] = ()) -> Volume[NDArray[Any]]:
    """Reads one case.

    The geometry is SimpleITK's, the voxels equal ``sitk.GetArrayFromImage(sitk.ReadImage(file))`` in value and type:
    integers stay what they are unless the file scales them. Checksums of packed files are verified. What else a model's
    reader may make of a file is known to the grid, and made of it when the model looks at the volume.

    Args:
        files: One file per channel. Channels must agree in shape and spacing, as nnU-Net demands. Or the folder or zip
            file of one DICOM series.
        readers: Those of the models that will look at the volume. What one of them does not take is refused before
            voxels are read, and what only they take is read: a sheared affine, by nibabel. None of them stands for
            SimpleITK's.

    Returns:
        The volume, named after the first file, with one array of shape (z, y, x) per channel.

    Raises:
        VolumeError: If a file is missing, damaged, or not a 3D volume of finite real numbers, or if channels differ.
    """
    if is_series(files[0]):
        for reader in readers:
            if not reader.takes(DICOM_SUFFIX):
                raise unsuitable(reader, str(files[0]), "DICOM")
        return read_series(files[0])
    by_nibabel = bool(readers) and all(reader.library == "nibabel" for reader in readers)
    with _quiet():
        for reader, file in itertools.product(readers, files):
            if not reader.takes(split_suffix(file)[1]):
                raise unsuitable(reader, str(file), split_suffix(file)[1])
        if any(split_suffix(file)[1] in TIFF_SUFFIXES for file in files):
            return _read_tiffs(files)
        heads = [_read_head(file, by_nibabel) for file in files]
        grids = [head.grid for head in heads]
        for reader in readers or (default_reader(grids[0].suffix),):
            check_channels(reader, [str(file) for file in files], grids)
        with ThreadPoolExecutor() as pool:
            channels = tuple(pool.map(_read_voxels, files, heads))
    return Volume(channels, grids[0], _case_name(files), tuple(grids[1:]))


def _read_tiffs(files: Sequence[Path]) -> Volume[NDArray[Any]]:
    """A case of TIFF files, which say nothing of where the volume lies."""
    for file in files:
        if not file.is_file():
            raise _no_file(file)
    channels = tuple(read_tiff(file) for file in files)
    spacing, doubts = read_spacing(files[0])
    grids = [
        Grid(triple(channel.shape), spacing, suffix=split_suffix(file)[1])
        for file, channel in zip(files, channels, strict=True)
    ]
    check_channels(default_reader(TIFF_SUFFIXES[0]), [str(file) for file in files], grids)
    for file, channel in zip(files, channels, strict=True):
        check_finite(file, channel)
    return Volume(channels, grids[0], _case_name(files), warnings=doubts)


def _case_name(files: Sequence[Path]) -> str:
    return split_suffix(files[0])[0].removesuffix("_0000")


def write_labels(labels: NDArray[np.uint8] | NDArray[np.uint16], grid: Grid, path: Path) -> None:
    """Writes a label map in the geometry of ``grid`` and in the format that ``path`` ends in.

    The file is what SimpleITK would have written, apart from the packing. One that exists is replaced in one step.

    Args:
        labels: Shape (z, y, x), the grid's.
        grid: Geometry to write, in millimetres.
        path: Ends in one of LABEL_SUFFIXES, or .tif for a grid from TIFF files; its folder exists.

    Raises:
        ValueError: If the labels have another shape than the grid, or are neither uint8 nor uint16.
        OutputError: If the file cannot be written, or its format cannot hold the labels.
    """
    if labels.dtype not in (np.uint8, np.uint16):
        raise ValueError(f"labels of type {labels.dtype}")
    write_voxels(labels, grid, path)


def write_voxels(voxels: NDArray[Any], grid: Grid, path: Path) -> None:
    """Writes voxels of another type, such as float32, likewise; arguments and errors as of ``write_labels``."""
    if voxels.shape != grid.shape:
        raise ValueError(f"voxels of shape {voxels.shape} do not fit a grid of {grid.shape}")
    if path.name.endswith(TIFF_SUFFIXES):
        write_tiff(voxels, grid, path)
        return
    suffix = next((suffix for suffix in LABEL_SUFFIXES if path.name.endswith(suffix)), None)
    if suffix is None:
        raise OutputError(f"cannot write {path}: unknown file type", f"Use one of {', '.join(LABEL_SUFFIXES)}.")
    if suffix.startswith(".nii") and max(voxels.shape) > _LONGEST_NIFTI_AXIS:
        raise OutputError(f"cannot write {path}: shape {voxels.shape} is too large for NIfTI", "Use .nrrd or .mha.")
    stored = np.ascontiguousarray(voxels).data.cast("B")
    try:
        parts = _ENCODERS[suffix](_one_voxel_file(grid, voxels.dtype, suffix), grid.shape[::-1], stored)
    except (RuntimeError, OSError, ValueError) as error:
        raise OutputError(
            f"cannot write {path}: SimpleITK gave no header for its geometry ({_reason(error)})",
            f"Check that there is space in {tempfile.gettempdir()}; other formats, such as .nrrd, may hold it.",
        ) from error
    with atomic_write(path, needed=sum(map(len, parts))) as temp, temp.open("wb") as stream:
        stream.writelines(parts)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps ITK's warnings off the terminal: what matters of them is checked here and raised."""
    before = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(before)


def _read_head(file: Path, by_nibabel: bool) -> _Head:
    """Geometry, voxel type and layout of a file, checked; of NIfTI files as nibabel reads them, if that is wanted."""
    suffix = split_suffix(file)[1]
    if not file.is_file():
        raise _no_file(file)
    try:
        if suffix in NIFTI_SUFFIXES:
            return _read_nifti_head(file, suffix, by_nibabel)
        header = _HEADERS[suffix](file)
        reader = _information(suffix, header.vetted)
        dtype, grid = _voxel_type(file, reader), _grid(file, suffix, reader)
    except _READ_ERRORS as error:
        raise _unreadable(file, error) from error
    if grid.shape != header.shape:
        raise fields.damaged(file, f"its shape may be {grid.shape} or {header.shape} (z, y, x)")
    return _Head(grid, dtype, header.layout)


def _information(suffix: str, vetted: bytes) -> sitk.ImageFileReader:
    """SimpleITK's reader, after it has read a header that can do it no harm."""
    handle, name = tempfile.mkstemp(prefix="c2f-", suffix=suffix.removesuffix(".gz"))
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(vetted)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_ITK_NAMES[suffix])
        reader.SetFileName(name)
        reader.ReadImageInformation()
        return reader
    finally:
        Path(name).unlink()


def _read_nifti_head(file: Path, suffix: str, by_nibabel: bool) -> _Head:
    """What a NIfTI file says about its voxels."""
    layout, nifti = headers.nifti_layout(file), headers.nifti_header(file)
    try:
        reader = _information(suffix, headers.vetted_nifti(nifti))
        dtype, grid = _voxel_type(file, reader), replace(_grid(file, suffix, reader), nifti=nifti)
    except RuntimeError as error:
        if "orthonormal" not in str(error):
            raise
        if not by_nibabel:
            raise sheared(str(file)) from error
        grid = grid_by_nibabel(str(file), suffix, nifti)
        dtype = np.dtype(np.float32) if layout.scaled else layout.dtype.newbyteorder("=")
    if by_nibabel:
        slope, intercept = scaling_by_nibabel(str(file), nifti)
        if (slope, intercept) != (layout.slope, layout.intercept):
            layout = replace(layout, slope=slope, intercept=intercept)
            dtype = np.dtype(np.float32) if layout.scaled else layout.dtype.newbyteorder("=")
            # Of true values, nobody can read the scale differently any more.
            grid = replace(grid, nifti=headers.with_nifti_scaling(nifti, 1.0, 0.0))
    return _Head(grid, dtype, layout)


def _voxel_type(file: Path, reader: sitk.ImageFileReader) -> np.dtype[Any]:
    """The type of the voxels, which must be single real numbers in three dimensions."""
    pixel = _COMPONENTS.get(reader.GetPixelID(), reader.GetPixelID()) if reader.GetNumberOfComponents() == 1 else -1
    if pixel not in _VOXEL_TYPES:
        raise VolumeError(
            f"{file}: voxels are of type {sitk.GetPixelIDValueAsString(reader.GetPixelID())}, not single real numbers",
            "Convert colours to grey values, and write channels into one file each, NAME_0000, NAME_0001, ...",
        )
    return _VOXEL_TYPES[pixel]


def _grid(file: Path, suffix: str, reader: sitk.ImageFileReader) -> Grid:
    """The grid of a file, in the axis order of arrays, checked to be one that can be written again."""
    axes = reader.GetDimension()
    if axes not in (3, 4):
        raise fields.damaged(file, f"it has {axes} axes")
    z, y, x = reader.GetSize()[2::-1]
    steps, direction = reader.GetSpacing()[:3], reader.GetDirection()
    headers.check_spacing(file, steps)
    if axes == 4 and not np.linalg.det(np.reshape(direction, (4, 4))):  # which SimpleITK refuses as a whole
        raise VolumeError(f"{file}: its axes are not independent (direction {direction})", "Correct the header.")
    cosines = tuple(  # as SimpleITK has them once it has read voxels, too: with positive spacing
        math.copysign(1, steps[column]) * direction[axes * row + column] for row in range(3) for column in range(3)
    )
    sx, sy, sz = map(abs, steps)
    ox, oy, oz = reader.GetOrigin()[:3]
    grid = Grid(triple((z, y, x)), (sz, sy, sx), "mm", (oz, oy, ox), cosines, suffix)
    if not all(map(math.isfinite, (*reader.GetOrigin(), *direction))):
        raise VolumeError(f"{file}: origin or direction is not a finite number", "Correct the header.")
    _one_voxel(grid, np.dtype(np.uint8))
    return grid


def _read_voxels(file: Path, head: _Head) -> NDArray[Any]:
    """The voxels of a file, shape (z, y, x), as SimpleITK would give them."""
    try:
        voxels = read_stored(head.layout, math.prod(head.grid.shape))
    except MemoryError as error:
        size = math.prod(head.grid.shape) * head.dtype.itemsize
        raise VolumeError(
            f"{file}: {size / 1e9:.1f} GB of voxels do not fit into memory",
            "If the volume is smaller than that, its header is damaged. Otherwise convert it to a store, such as "
            "OME-Zarr, which is read by region, or use a larger machine.",
        ) from error
    except _READ_ERRORS as error:
        raise _unreadable(file, error) from error
    voxels = voxels.reshape(head.grid.shape)
    if not voxels.dtype.isnative:
        voxels = voxels.byteswap(inplace=True).view(voxels.dtype.newbyteorder("="))
    if head.layout.scaled:
        voxels = _rescaled(voxels, head.layout, head.dtype)
    check_finite(file, voxels)
    return voxels


def _rescaled(stored: NDArray[Any], layout: Layout, dtype: np.dtype[Any]) -> NDArray[Any]:
    """True values of stored ones, rounded exactly where ITK rounds."""
    voxels = np.empty(stored.shape, dtype)
    for true, slice_ in zip(voxels, stored, strict=True):
        true[...] = slice_.astype(dtype).astype(np.float64) * layout.slope + layout.intercept
    return voxels


def _one_voxel(grid: Grid, dtype: np.dtype[Any]) -> sitk.Image:
    """The smallest image with this geometry; SimpleITK raises RuntimeError if no image can have it."""
    image = sitk.GetImageFromArray(np.zeros((1, 1, 1), dtype))
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin[::-1])
    image.SetDirection(grid.cosines)
    return image


def _one_voxel_file(grid: Grid, dtype: np.dtype[Any], suffix: str) -> bytes:
    """What SimpleITK writes for the smallest image with this geometry; NIfTI with all that a NIfTI file said of it."""
    nifti = grid.nifti if suffix in NIFTI_SUFFIXES else None
    if nifti is not None and headers.nifti_shape(nifti)[:3] == grid.shape[::-1]:
        plain = _one_voxel_file(Grid(grid.shape, grid.spacing), dtype, suffix)
        return headers.with_nifti_geometry(plain, nifti)
    # In a folder of its own: where others may write, the file could be replaced by a link before SimpleITK opens it.
    with tempfile.TemporaryDirectory(prefix="c2f-") as folder, _quiet():
        path = Path(folder) / f"voxel{suffix.removesuffix('.gz')}"
        sitk.WriteImage(_one_voxel(grid, dtype), str(path), True)
        return path.read_bytes()


def _no_file(file: Path) -> VolumeError:
    return VolumeError(f"{file} {'is not a file' if file.exists() else 'does not exist'}", "Check the path.")


def _unreadable(file: Path, error: Exception) -> VolumeError:
    if isinstance(error, EOFError):
        return VolumeError(f"{file} is truncated: it ends before its last voxel", "Copy or download it again.")
    return VolumeError(f"{file} cannot be read: {_reason(error)}", "It may be damaged or misnamed: copy it again.")


def _reason(error: Exception) -> str:
    """The first telling line of an error; ITK's begin with places in its source code and addresses of objects."""
    if isinstance(error, OSError):
        return error.strerror or str(error)
    match = re.search(r"ERROR: (?:\w+\(0x\w+\): )?(.+)", str(error))
    return match[1] if match else str(error)
