"""What nnU-Net's image readers make of files, with nnU-Net's own classes as the reference."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import nibabel.processing
import numpy as np
import pytest
import SimpleITK as sitk
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.nibabel_reader_writer import NibabelIO, NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO, SimpleITKIOWithReorient

from coarse2fine.io import Volume, read_volume, write_labels
from coarse2fine.io.readers import READERS, look_with

THEIRS: dict[str, Callable[[], BaseReaderWriter]] = {
    cls.__name__: cls for cls in (SimpleITKIO, SimpleITKIOWithReorient, NibabelIO, NibabelIOWithReorient)
}
BY_NIBABEL = [name for name, reader in READERS.items() if reader.library == "nibabel"]
SHAPE = (4, 5, 6)  # x, y, z
RAS = np.array([[2.0, 0, 0, -30], [0, 3.0, 0, 20], [0, 0, 4.5, 11], [0, 0, 0, 1]])
ALL_48 = ["".join(code) for axes in itertools.permutations(("RL", "AP", "IS")) for code in itertools.product(*axes)]


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(-99, 999, SHAPE).astype(np.int16)


def turned(degrees: float = 0.0) -> np.ndarray:
    """An affine that is turned about all axes."""
    matrix = sitk.Euler3DTransform((0, 0, 0), *np.deg2rad([degrees, -0.6 * degrees, 0.8 * degrees])).GetMatrix()
    affine = RAS.copy()
    affine[:3, :3] = np.array(matrix).reshape(3, 3) @ RAS[:3, :3]
    return affine


def save(path: Path, code: str = "RAS", affine: np.ndarray = RAS, array: np.ndarray | None = None) -> Path:
    """A file whose axes point to where the code says."""
    image = nibabel.Nifti1Image(voxels() if array is None else array, affine)
    turn = ornt_transform(io_orientation(affine), axcodes2ornt(code))
    nibabel.save(image.as_reoriented(turn), path)
    return path


def patch(path: Path, fields: dict[int, tuple[str, Any]]) -> Path:
    """Writes over a header: byte offset -> (struct format, values)."""
    content = bytearray(path.read_bytes())
    for offset, (code, values) in fields.items():
        struct.pack_into(f"<{code}", content, offset, *np.atleast_1d(values).tolist())
    path.write_bytes(content)
    return path


def seen(volume: Volume[Any], name: str) -> tuple[np.ndarray, tuple[float, ...]]:
    """Voxels and spacing as a reader gives them to the network."""
    aspects = look_with(READERS[name], volume)
    channels = [aspect.turn.array(channel) for aspect, channel in zip(aspects, volume.channels, strict=True)]
    return np.stack(channels).astype(np.float32), aspects[0].spacing


def assert_as_nnunet(files: list[Path], name: str, folder: Path, **reading: Any) -> None:
    """Reader and writer give what nnU-Net's give."""
    theirs = THEIRS[name]()
    expected, properties = theirs.read_images([str(file) for file in files])
    volume = read_volume(files, **reading)
    found, spacing = seen(volume, name)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_allclose(spacing, properties["spacing"], rtol=1e-7)

    labels = (expected[0] > 300).astype(np.uint8) + 2 * (np.indices(expected.shape[1:]).sum(0) % 3 == 0)
    theirs.write_seg(labels, str(folder / "theirs.nii.gz"), properties)
    back = look_with(READERS[name], volume)[0].turn.inverse.array(labels.astype(np.uint8))
    write_labels(np.ascontiguousarray(back), volume.grid, folder / "ours.nii.gz")
    ours, theirs_written = (nibabel.load(folder / f"{side}.nii.gz") for side in ("ours", "theirs"))
    np.testing.assert_array_equal(ours.get_fdata(), theirs_written.get_fdata())
    image = nibabel.load(files[0])
    np.testing.assert_array_equal(ours.affine, image.affine)
    assert ours.header.get_zooms() == image.header.get_zooms()


@pytest.mark.parametrize("name", THEIRS)
def test_look_with__any_orientation__equals_nnunet(tmp_path: Path, name: str) -> None:
    """However the file stores a scan, voxels, spacing and the labels' way back are nnU-Net's."""
    for code in ALL_48 if READERS[name].reorients else ALL_48[::9]:
        assert_as_nnunet([save(tmp_path / "a.nii", code)], name, tmp_path)


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("degrees", [20, 44, 50, 80])
def test_look_with__oblique__equals_nnunet(tmp_path: Path, name: str, degrees: float) -> None:
    """Axes between two directions go to the same one as in nnU-Net's reader."""
    for code in ("RAS", "LPS", "PIL", "SAR"):
        assert_as_nnunet([save(tmp_path / "a.nii", code, turned(degrees))], name, tmp_path)
