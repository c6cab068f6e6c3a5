"""3D TIFF files, with nnU-Net's Tiff3DIO as the reference."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tifffile
from conftest import blobs
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from PIL import Image

from coarse2fine.cli.infer import main
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io import Grid, read_volume, write_labels
from coarse2fine.io.files.readers import READERS

SHAPE = (6, 20, 24)


def save(path: Path, array: np.ndarray | None = None, spacing: object = (4.0, 0.5, 0.7)) -> Path:
    tifffile.imwrite(path, blobs(SHAPE) if array is None else array, photometric="minisblack")
    if spacing is not None:
        (path.parent / f"{path.stem[:-5]}.json").write_text(json.dumps({"spacing": spacing}))
    return path


@pytest.mark.parametrize("suffix", [".tif", ".tiff"])
@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
def test_read_volume__tiff_stacks__equal_nnunet(tmp_path: Path, suffix: str, dtype: str) -> None:
    """Two channels with the spacing beside them: voxels and spacing are nnU-Net's, and nothing is doubtful."""
    files = [save(tmp_path / f"a_000{index}{suffix}", blobs(SHAPE, seed=index).astype(dtype)) for index in (0, 1)]
    expected, properties = Tiff3DIO().read_images([str(file) for file in files])
    volume = read_volume(files, [READERS["Tiff3DIO"]])
    np.testing.assert_array_equal(np.stack(volume.channels).astype(np.float32), expected)
    assert list(volume.grid.spacing) == properties["spacing"]
    assert (volume.name, volume.warnings) == ("a", ())


def test_read_volume__tiff_without_spacing__warns(tmp_path: Path) -> None:
    """nnU-Net takes 1 x 1 x 1 and prints a warning."""
    volume = read_volume([save(tmp_path / "a_0000.tif", spacing=None)])
    assert volume.grid.spacing == (1.0, 1.0, 1.0)
    assert any("a.json" in warning for warning in volume.warnings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: save(path, np.zeros((5, 5), np.uint8)), "holds 5 x 5 voxels"),
        (lambda path: save(path, np.zeros((2, 2, 5, 5), np.uint8)), "holds 2 x 2 x 5 x 5 voxels"),
        (lambda path: save(path, np.zeros((2, 5, 5), np.complex64)), "type complex64"),
        (lambda path: save(path, np.full((2, 5, 5), np.nan, np.float32)), "50 of 50 voxels are NaN"),
        (lambda path: path.write_bytes(b"II*\0" + b"\xff" * 99), "cannot be read|holds no"),
        (lambda path: path.write_bytes(b"no tiff at all" * 9), "cannot be read"),
        (lambda path: path.write_bytes(save(path).read_bytes()[:700]), "cannot be read|more than it can hold"),
        (lambda path: None, "does not exist"),
        *((lambda path, value=value: save(path, spacing=value), "does not say the spacing") for value in (
            None, [1, 2], [1, 2, 0], [1, 2, -3], "abc", [1, 2, [3]], 5)[1:]),
    ],
)  # fmt: skip
def test_read_volume__bad_tiff__says_what_is_wrong(
    tmp_path: Path, make: Callable[[Path], object], message: str
) -> None:
    """Files that are damaged or no volumes are refused by name."""
    make(tmp_path / "a_0000.tif")
    with pytest.raises(VolumeError, match=message):
        read_volume([tmp_path / "a_0000.tif"])


def test_read_volume__packed_as_tifffile_cannot_unpack__remedy_works(tmp_path: Path) -> None:
    """Without imagecodecs, tifffile does not read LZW; saved plainly, as the message says, the volume is read."""
    voxels = blobs(SHAPE).astype(np.uint8)
    first, *others = (Image.fromarray(plane) for plane in voxels)
    path = tmp_path / "a_0000.tif"
    first.save(path, save_all=True, append_images=others, compression="tiff_lzw")
    try:
        tifffile.imread(path)
    except ValueError:
        with pytest.raises(VolumeError, match="imagecodecs") as refused:
            read_volume([path])
        assert "imwrite(NEW, voxels)" in refused.value.remedy
    tifffile.imwrite(path, voxels)
    np.testing.assert_array_equal(read_volume([path]).channels[0], voxels)


def test_read_volume__tiff_and_other_readers__remedies_work(tmp_path: Path) -> None:
    """A reader of TIFF takes no other format, and the others no TIFF; saved as the messages say they do."""
    tiff, nifti = save(tmp_path / "a_0000.tif"), tmp_path / "b_0000.nii.gz"
    with pytest.raises(VolumeError, match=r"SimpleITKIO does not read \.tif files") as refused:
        read_volume([tiff], [READERS["SimpleITKIO"]])
    assert "Convert it to .nii.gz" in refused.value.remedy
    write_labels(blobs(SHAPE).astype(np.uint8), Grid(SHAPE, (4.0, 0.5, 0.7)), nifti)
    volume = read_volume([nifti], [READERS["SimpleITKIO"]])
    with pytest.raises(VolumeError, match=r"Tiff3DIO does not read \.nii\.gz files") as refused:
        read_volume([nifti], [READERS["Tiff3DIO"]])
    assert "Save its voxels as .tif and its spacing in a .json file" in refused.value.remedy
    again = read_volume([save(tmp_path / "b_0000.tif", volume.channels[0])], [READERS["Tiff3DIO"]])
    np.testing.assert_array_equal(again.channels[0], volume.channels[0])


def test_write_labels__tiff__equals_nnunet(tmp_path: Path) -> None:
    """nnU-Net reads the same labels and spacing from our files as from its own; a direction cannot be kept."""
    volume = read_volume([save(tmp_path / "a_0000.tif", np.zeros((4, 5, 3), np.uint8))])
    labels = np.random.default_rng(0).integers(0, 3, (4, 5, 3)).astype(np.uint8)
    Tiff3DIO().write_seg(labels, str(tmp_path / "theirs.tif"), {"spacing": list(volume.grid.spacing)})
    write_labels(labels, volume.grid, tmp_path / "ours.tif")
    (ours, our_spacing), (theirs, their_spacing) = (
        Tiff3DIO().read_seg(str(tmp_path / f"{side}.tif")) for side in ("ours", "theirs")
    )
    np.testing.assert_array_equal(ours, theirs)
    assert our_spacing == their_spacing
    with pytest.raises(OutputError, match="cannot hold a volume's direction"):
        write_labels(labels, replace(volume.grid, direction=volume.grid.cosines), tmp_path / "b.tif")


def test_main__model_of_tiff__writes_tiff_with_its_spacing(
    tmp_path: Path, model_folder: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of TIFF files goes to a folder of TIFF files; other pictures of a NIfTI folder stay unnoticed."""
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    save(folder / "a_0000.tif", spacing=(2.0, 1.0, 1.0))
    options = ["--mode", "one-stage", "--set", "fine.mirroring=false"]
    arguments = ["-i", str(folder), "-o", str(out), *options, "--fine-model"]
    out.mkdir()
    assert main([*arguments, str(model_folder(reader="Tiff3DIO"))]) == 0
    labels, properties = Tiff3DIO().read_seg(str(out / "a.tif"))
    assert labels.shape == (1, *SHAPE)
    assert list(properties["spacing"]) == [2.0, 1.0, 1.0]
    assert main([*arguments, str(model_folder(reader="Tiff3DIO"))]) == 1
    assert "exists already" in capsys.readouterr().err
    assert main([*arguments, str(model_folder())]) == 1
    assert "holds no volume" in capsys.readouterr().err
