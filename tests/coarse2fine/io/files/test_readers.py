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

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import Grid, Volume, read_volume, write_labels
from coarse2fine.io.files.readers import READERS, channel_doubts, look_with, orientation_doubts
from coarse2fine.io.turn import Turn

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
    ours, written = (nibabel.load(folder / f"{side}.nii.gz") for side in ("ours", "theirs"))
    image = nibabel.load(files[0])
    if len(files) > 1:  # nnU-Net writes in the voxel order of the last channel, which is the same in space
        ours, written = (nibabel.as_closest_canonical(labels) for labels in (ours, written))
        image = nibabel.as_closest_canonical(image)
    np.testing.assert_array_equal(ours.get_fdata(), written.get_fdata())
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


def with_both_affines(path: Path, qform: tuple[np.ndarray | None, int], sform: tuple[np.ndarray | None, int]) -> Path:
    image = nibabel.Nifti1Image(voxels(), RAS)
    image.set_qform(*qform)
    image.set_sform(*sform)
    nibabel.save(image, path)
    return path


LPS = np.diag([-1.0, -1, 1, 1]) @ RAS
UNUSUAL: dict[str, Callable[[Path], Path]] = {
    "micrometres": lambda path: patch(save(path, "LPS"), {123: ("b", 3)}),
    "metres": lambda path: patch(save(path, "PIL"), {123: ("b", 1)}),
    "unknown unit": lambda path: patch(save(path, "LPS"), {123: ("b", 7)}),
    "no affine": lambda path: patch(save(path), {252: ("2h", (0, 0))}),
    "qform only": lambda path: with_both_affines(path, (LPS, 1), (None, 0)),
    "qform says otherwise": lambda path: with_both_affines(path, (LPS, 1), (RAS, 1)),
    "qform preferred by ITK": lambda path: with_both_affines(path, (LPS, 1), (RAS, 4)),
    "sform of another size": lambda path: with_both_affines(path, (LPS, 1), (LPS @ np.diag([2, 2, 2, 1]), 1)),
    "qfac of neither": lambda path: patch(with_both_affines(path, (LPS, 1), (None, 0)), {76: ("f", 7)}),
    "sheared beside a qform": lambda path: with_both_affines(path, (LPS, 1), (sheared_affine(), 1)),
    "scaled": lambda path: patch(save(path, "LAS"), {112: ("2f", (0.5, -3))}),
    "no scale": lambda path: patch(save(path, "LAS"), {112: ("2f", (np.nan, np.nan))}),
}


def sheared_affine() -> np.ndarray:
    affine = LPS.copy()
    affine[0, 1] = 0.7
    return affine


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("kind", UNUSUAL)
def test_look_with__unusual_header__equals_nnunet(tmp_path: Path, kind: str, name: str) -> None:
    """Units, affines that disagree and scales are read as by nnU-Net, and results lie where the file says."""
    assert_as_nnunet([UNUSUAL[kind](tmp_path / "a.nii")], name, tmp_path)


@pytest.mark.parametrize("dtype", ["uint8", "int32", "float32", "float64"])
def test_look_with__big_endian__equals_nnunet(tmp_path: Path, dtype: str) -> None:
    """A file of another byte order is turned as any other, and its affine comes back in this machine's order."""
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(dtype).newbyteorder(">"))
    image = nibabel.Nifti1Image(voxels().astype(dtype), RAS, header)
    nibabel.save(image.as_reoriented(axcodes2ornt("PIL")), tmp_path / "a.nii.gz")
    for name in THEIRS:
        assert_as_nnunet([tmp_path / "a.nii.gz"], name, tmp_path)


@pytest.mark.parametrize("name", BY_NIBABEL)
def test_read_volume__sheared_affine_for_nibabel__equals_nnunet(tmp_path: Path, name: str) -> None:
    """Where the plans name nibabel's reader, axes need not be at right angles; labels keep the affine."""
    for number, dtype in enumerate((np.int16, np.float64)):
        path = tmp_path / f"{number}.nii.gz"
        nibabel.save(nibabel.Nifti1Image(voxels().astype(dtype), sheared_affine()), path)
        assert_as_nnunet([path], name, tmp_path, readers=[READERS[name]])


def test_read_volume__sheared_affine_for_simpleitk__remedy_works(tmp_path: Path) -> None:
    """SimpleITK's readers refuse what SimpleITK cannot read; resampled as the message says it is read."""
    path = tmp_path / "a.nii.gz"
    nibabel.save(nibabel.Nifti1Image(voxels(), sheared_affine()), path)
    for readers in ([], [READERS["SimpleITKIO"]], [READERS["SimpleITKIO"], READERS["NibabelIO"]]):
        with pytest.raises(VolumeError, match="not at right angles") as refused:
            read_volume([path], readers)
    assert "save(processing.resample_to_output(load(OLD)), NEW)" in refused.value.remedy
    nibabel.save(nibabel.processing.resample_to_output(nibabel.load(path)), tmp_path / "new.nii.gz")
    assert_as_nnunet([tmp_path / "new.nii.gz"], "SimpleITKIO", tmp_path)


@pytest.mark.parametrize("scale", [(0, 5), (np.nan, 5), (np.inf, 1), (1e-20, 3)])
def test_look_with__scale_that_libraries_read_differently__nothing_is_guessed(
    tmp_path: Path, scale: tuple[float, float]
) -> None:
    """Read for one model alone, voxels are its reader's; nibabel's reader refuses those that were read by SimpleITK."""
    path = patch(save(tmp_path / "a.nii"), {112: ("2f", scale)})
    assert_as_nnunet([path], "SimpleITKIO", tmp_path)
    reader = READERS["NibabelIO"]
    with pytest.raises(VolumeError, match=r"scl_slope is .* SimpleITK makes .* NibabelIO") as refused:
        look_with(reader, read_volume([path]))
    assert "read_volume(files, readers=[model.reader])" in refused.value.remedy
    expected, _ = NibabelIO().read_images([str(path)])
    np.testing.assert_array_equal(seen(read_volume([path], [reader]), "NibabelIO")[0], expected)


def test_look_with__scale_that_nibabel_refuses__says_so(tmp_path: Path) -> None:
    """An intercept that is no number stops nnU-Net's reader, and ours."""
    path = patch(save(tmp_path / "a.nii"), {112: ("2f", (2, np.nan))})
    with pytest.raises(VolumeError, match="invalid intercept nan"):
        read_volume([path], [READERS["NibabelIO"]])
    with pytest.raises(VolumeError, match="invalid intercept nan"):
        look_with(READERS["NibabelIO"], read_volume([path]))


@pytest.mark.parametrize("name", BY_NIBABEL)
def test_read_volume__four_axes_for_nibabel__remedy_works(tmp_path: Path, name: str) -> None:
    """nnU-Net's readers by nibabel take three axes only; the one frame, squeezed as the message says, is read."""
    path = tmp_path / "a.nii"
    nibabel.save(nibabel.Nifti1Image(voxels()[..., None], RAS), path)
    with pytest.raises(VolumeError, match="three dimensions only") as refused:
        read_volume([path], [READERS[name]])
    assert "save(squeeze_image(load(OLD)), NEW)" in refused.value.remedy
    nibabel.save(nibabel.squeeze_image(nibabel.load(path)), tmp_path / "new.nii")
    assert_as_nnunet([tmp_path / "new.nii"], name, tmp_path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
@pytest.mark.parametrize("name", BY_NIBABEL)
def test_read_volume__format_that_the_reader_does_not_take__remedy_works(
    tmp_path: Path, name: str, suffix: str
) -> None:
    """Formats that nibabel does not read are refused before voxels are, also if somebody has read them already."""
    image = sitk.ReadImage(str(save(tmp_path / "plain.nii", "PIL")))
    path, new = tmp_path / f"a{suffix}", tmp_path / "new.nii.gz"
    sitk.WriteImage(image, str(path))
    with pytest.raises(VolumeError, match=rf"{name} does not read \{suffix} files") as refused:
        read_volume([path], [READERS[name]])
    with pytest.raises(VolumeError, match=rf"{name} does not read \{suffix} files"):
        look_with(READERS[name], read_volume([path]))
    assert "WriteImage(ReadImage(OLD), NEW)" in refused.value.remedy
    sitk.WriteImage(sitk.ReadImage(str(path)), str(new))
    assert_as_nnunet([new], name, tmp_path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_look_with__other_formats_that_simpleitk_reorients__equal_nnunet(tmp_path: Path, suffix: str) -> None:
    """SimpleITK's reorienting reader takes what SimpleITK reads."""
    path = tmp_path / f"a{suffix}"
    for code in ("LPS", "PIL", "SAR"):
        sitk.WriteImage(sitk.ReadImage(str(save(tmp_path / "plain.nii", code, turned(20)))), str(path))
        expected, properties = SimpleITKIOWithReorient().read_images([str(path)])
        found, spacing = seen(read_volume([path]), "SimpleITKIOWithReorient")
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(spacing, properties["spacing"])


# --- further channels ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in THEIRS if READERS[name].reorients])
def test_read_volume__channels_stored_differently__are_turned_one_by_one(tmp_path: Path, name: str) -> None:
    """A reader that turns volumes turns every channel by its own header, as nnU-Net's does; nothing is to warn of."""
    files = [save(tmp_path / "a_0000.nii", "LPS"), save(tmp_path / "a_0001.nii", "PIL", array=voxels(1))]
    assert_as_nnunet(files, name, tmp_path, readers=[READERS[name]])
    volume = read_volume(files, [READERS[name]])
    assert channel_doubts(volume, look_with(READERS[name], volume)) == ()


@pytest.mark.parametrize("name", THEIRS)
@pytest.mark.parametrize("change", ["origin", "direction"])
def test_channel_doubts__second_channel_elsewhere__is_said_as_nnunet_does(
    tmp_path: Path, name: str, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where nnU-Net's reader warns that channels differ in origin or direction, so do we, with the distance."""
    affine = RAS.copy()
    if change == "origin":
        affine[2, 3] += 10
    else:
        affine[:3, 1] *= -1
    files = [save(tmp_path / "a_0000.nii"), tmp_path / "a_0001.nii"]
    nibabel.save(nibabel.Nifti1Image(voxels(1), affine), files[1])
    assert_as_nnunet(files, name, tmp_path)
    warned = "WARNING! Not all input images have the same" in capsys.readouterr().out
    volume = read_volume(files)
    doubts = channel_doubts(volume, look_with(READERS[name], volume))
    assert bool(doubts) == warned
    if change == "origin":
        assert "channel 1 lies up to 10 mm away from channel 0" in doubts[0]


@pytest.mark.parametrize("name", THEIRS)
def test_read_volume__second_channel_of_another_size__is_refused_as_by_nnunet(tmp_path: Path, name: str) -> None:
    """Shapes or spacings that differ stop nnU-Net, and us."""
    for files in (
        [save(tmp_path / "a_0000.nii", "LPS"), save(tmp_path / "a_0001.nii", "LPS", RAS @ np.diag([2, 1, 1, 1]))],
        [save(tmp_path / "b_0000.nii", "LPS"), save(tmp_path / "b_0001.nii", "LPS", array=voxels()[1:])],
    ):
        with pytest.raises((RuntimeError, ValueError)):
            THEIRS[name]().read_images([str(file) for file in files])
        with pytest.raises(VolumeError, match="channels of one case but differ"):
            read_volume(files, [READERS[name]])


# --- where nobody knows the direction --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", READERS)
def test_look_with__unknown_direction__axes_are_taken_as_they_are_with_a_warning(name: str) -> None:
    """Arrays and stores say nothing of a patient: no reader turns them, and those that would have warn."""
    volume = Volume((np.zeros((2, 3, 4), np.uint8),), Grid((2, 3, 4), (5.0, 1.0, 2.0)), "array")
    (aspect,) = look_with(READERS[name], volume)
    assert (aspect.turn, aspect.spacing) == (Turn(), (5.0, 1.0, 2.0))
    doubts = orientation_doubts(volume, [READERS[name]])
    assert bool(doubts) == READERS[name].reorients
    assert all(name in doubt for doubt in doubts)


# --- turns -----------------------------------------------------------------------------------------------------------

TURNS = [
    Turn(axes, flips)
    for axes in itertools.permutations(range(3))
    for flips in itertools.product((False, True), repeat=3)
]


def test_turn__any_two_of_the_48__act_as_on_arrays() -> None:
    """Inverses, sequences, shapes and boxes are what the turned arrays say."""
    array = np.arange(2 * 3 * 4).reshape(2, 3, 4)
    box = Box((0, 1, 1), (1, 3, 2))
    for turn in TURNS:
        moved = np.asarray(turn.array(array))
        np.testing.assert_array_equal(turn.inverse.array(moved), array)
        np.testing.assert_array_equal(turn.last_axes(array[None])[0], moved)
        assert moved.shape == turn.sizes(array.shape)
        inside = turn.box(box, array.shape)
        np.testing.assert_array_equal(turn.array(array[box.slices]), moved[inside.slices])
        for other in TURNS[::7]:
            np.testing.assert_array_equal(turn.then(other).array(array), other.array(moved))
