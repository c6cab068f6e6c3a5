"""Reading volumes and writing label maps, with SimpleITK and nibabel as references."""

from __future__ import annotations

import gzip
import struct
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

import coarse2fine
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io import Grid, Volume, read_volume, write_labels

SHAPE = (5, 6, 7)
_TURN = sitk.Euler3DTransform((0, 0, 0), 0.3, -0.2, 0.5).GetMatrix()
OBLIQUE = Grid(SHAPE, (2.5, 0.7, 0.9), origin=(-340.125, 187.5, -166.25), direction=_TURN)
PACKED = [".nii.gz", ".nrrd", ".mha"]


def write(path: Path, content: bytes = b"no volume" * 100) -> Path:
    path.write_bytes(content)
    return path


def noise(dtype: str, shape: tuple[int, ...] = SHAPE) -> np.ndarray:
    """Voxels that use the whole range of their type, so that wrong bytes show."""
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 1e4, shape).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, dtype=dtype, endpoint=True)


def reference_image(array: np.ndarray, grid: Grid = OBLIQUE) -> sitk.Image:
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(grid.spacing[::-1])
    image.SetOrigin(grid.origin[::-1])
    image.SetDirection(grid.direction)
    return image


def save(path: Path, array: np.ndarray | None = None, packed: bool = True) -> Path:
    sitk.WriteImage(reference_image(noise("int16") if array is None else array), str(path), packed)
    return path


def geometry(path: Path) -> tuple[object, ...]:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection(), image.GetPixelIDTypeAsString()


def assert_read_as_simpleitk_does(path: Path) -> Volume:
    volume = read_volume([path])
    image = sitk.ReadImage(str(path))
    expected = sitk.GetArrayFromImage(image)
    np.testing.assert_array_equal(volume.channels[0], expected, strict=True)
    assert volume.grid.shape == expected.shape
    assert volume.grid.spacing[::-1] == image.GetSpacing()
    assert (volume.grid.origin[::-1], volume.grid.direction) == (image.GetOrigin(), image.GetDirection())
    return volume


def patched_nifti(path: Path, fields: dict[int, tuple[str, float]], array: np.ndarray | None = None) -> Path:
    """A NIfTI file with values written over its header: byte offset -> (struct format, value)."""
    plain = bytearray(save(path.with_name("plain.nii"), array).read_bytes())
    for offset, (code, value) in fields.items():
        struct.pack_into(f"<{code}", plain, offset, value)
    path.write_bytes(gzip.compress(plain))
    path.with_name("plain.nii").unlink()
    return path


def meta(path: Path, gap: bytes = b"", **fields: str) -> Path:
    default = {"ObjectType": "Image", "NDims": "3", "BinaryData": "True", "ElementSpacing": "1 2 3", "DimSize": "7 6 5"}
    lines = {**default, "ElementType": "MET_SHORT", **fields, "ElementDataFile": "LOCAL"}
    head = "".join(f"{key} = {value}\n" for key, value in lines.items())
    return write(path, head.encode() + gap + noise("int16").tobytes())


# --- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha", ".mhd"])
@pytest.mark.parametrize("packed", [True, False])
def test_read_volume__each_type_and_format__equals_simpleitk(tmp_path: Path, suffix: str, packed: bool) -> None:
    """Voxels keep value and type, and the geometry is SimpleITK's, with oblique axes."""
    for dtype in ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64"]:
        volume = assert_read_as_simpleitk_does(save(tmp_path / f"a_0000{suffix}", noise(dtype), packed))
        np.testing.assert_array_equal(volume.channels[0], noise(dtype), strict=True)
        assert volume.name == "a"


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32"])
@pytest.mark.parametrize("suffix", [".nii.gz", ".nii"])
def test_read_volume__big_endian_nifti__equals_simpleitk(tmp_path: Path, dtype: str, suffix: str) -> None:
    """Files from other machines give native arrays with the same values."""
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(dtype).newbyteorder(">"))
    path = tmp_path / f"a{suffix}"
    nibabel.Nifti1Image(noise(dtype).T, np.diag([2, 3, 4, 1]), header).to_filename(path)
    volume = assert_read_as_simpleitk_does(path)
    np.testing.assert_array_equal(volume.channels[0], noise(dtype), strict=True)
    assert volume.channels[0].dtype.isnative


@pytest.mark.parametrize("dtype", ["uint8", "int16", "int32", "float32", "float64"])
@pytest.mark.parametrize(("slope", "intercept"), [(1, -1024), (0.1, 0), (-2.5, 3.7), (0, 5), (1e-8, 0), (np.nan, 1)])
def test_read_volume__scaled_nifti__equals_simpleitk(
    tmp_path: Path, dtype: str, slope: float, intercept: float
) -> None:
    """Slope and intercept give the same floats to the last bit, and are ignored where ITK ignores them."""
    fields = {112: ("f", slope), 116: ("f", intercept)}
    assert_read_as_simpleitk_does(patched_nifti(tmp_path / "a.nii.gz", fields, noise(dtype)))


def test_read_volume__unusual_but_valid_gzip__equals_simpleitk(tmp_path: Path) -> None:
    """A file of many gzip members, one with padding, and one that only claims to be packed are all read."""
    plain = save(tmp_path / "plain.nii").read_bytes()
    members = b"".join(gzip.compress(bytes([byte])) for byte in plain)
    first, rest = gzip.compress(plain[:360]), gzip.compress(plain[360:])
    named = first[:3] + b"\x08" + first[4:10] + b"n" * (32766 - len(first)) + b"\0" + first[10:]
    variants = {
        "members": members,
        "border": named + rest,  # one byte of the second member is in the first 32 KiB
        "padded": gzip.compress(plain + bytes(512)) + bytes(7),
        "plain": plain,
    }
    for name, content in variants.items():
        path = tmp_path / f"{name}.nii.gz"
        path.write_bytes(content)
        assert_read_as_simpleitk_does(path)


@pytest.mark.parametrize(
    ("fields", "content"),
    [
        ({"encoding": "raw", "endian": "big"}, noise("int16").astype(">i2").tobytes()),
        ({"encoding": "gz", "endian": "little"}, gzip.compress(noise("int16").tobytes())),
        ({"encoding": "ascii"}, " ".join(map(str, noise("int16").ravel())).encode()),
        ({"encoding": "raw", "endian": "little", "data file": "other.raw"}, b""),
        ({"encoding": "raw", "endian": "little", "byte skip": "3"}, b"???" + noise("int16").tobytes()),
    ],
)
def test_read_volume__unusual_nrrd__equals_simpleitk(tmp_path: Path, fields: dict[str, str], content: bytes) -> None:
    """Variants of the format are read right, or left to SimpleITK."""
    lines = {"type": "short", "dimension": "3", "sizes": "7 6 5", "spacings": "1 2 3", **fields}
    head = "NRRD0004\n" + "".join(f"{key}: {value}\n" for key, value in lines.items()) + "\n"
    write(tmp_path / "other.raw", noise("int16").tobytes())
    volume = assert_read_as_simpleitk_does(write(tmp_path / "a.nrrd", head.encode() + content))
    np.testing.assert_array_equal(volume.channels[0], noise("int16"), strict=True)


@pytest.mark.parametrize(
    ("fields", "gap"),
    [({"BinaryDataByteOrderMSB": "True"}, b""), ({"ElementByteOrderMSB": "True"}, b""), ({"HeaderSize": "-1"}, b"???")],
)
def test_read_volume__unusual_meta_image__equals_simpleitk(tmp_path: Path, fields: dict[str, str], gap: bytes) -> None:
    """Variants of the format are read right, or left to SimpleITK."""
    assert_read_as_simpleitk_does(meta(tmp_path / "a.mha", gap, **fields))


def test_read_volume__header_that_itk_doubts__is_read_quietly(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """ITK's warnings, here of an affine that contradicts the spacing, stay off the terminal."""
    read_volume([patched_nifti(tmp_path / "a.nii.gz", {88: ("f", 9.0)})])
    assert capfd.readouterr() == ("", "")
    sitk.ReadImage(str(tmp_path / "a.nii.gz"))
    assert "WARNING" in capfd.readouterr().err


def test_read_volume__one_slice__is_a_volume(tmp_path: Path) -> None:
    """A volume may be one voxel thick."""
    for suffix in PACKED:
        array = noise("int16", (1, 6, 7))
        assert assert_read_as_simpleitk_does(save(tmp_path / f"a{suffix}", array)).grid.shape == (1, 6, 7)


def test_read_volume__several_channels__keeps_order_and_types(tmp_path: Path) -> None:
    """Channels are neither stacked nor converted, and may come in different formats."""
    arrays = [noise("int16"), noise("float32"), noise("uint8")]
    suffixes = [".nii", ".nii.gz", ".nii"]
    files = [save(tmp_path / f"a_{i:04d}{suffixes[i]}", array) for i, array in enumerate(arrays)]
    for channel, array in zip(read_volume(files).channels, arrays, strict=True):
        np.testing.assert_array_equal(channel, array, strict=True)


@pytest.mark.parametrize("change", [{"shape": (5, 6, 8)}, {"spacing": (2.5, 0.7, 0.91)}])
def test_read_volume__channels_on_different_grids__names_both(tmp_path: Path, change: dict[str, tuple]) -> None:
    """Files that do not belong together are refused, as by nnU-Net."""
    grid = replace(OBLIQUE, **change)
    files = [save(tmp_path / "a_0000.nii.gz"), tmp_path / "a_0001.nii.gz"]
    sitk.WriteImage(reference_image(noise("int16", grid.shape), grid), str(files[1]))
    with pytest.raises(VolumeError, match=r"a_0000\.nii\.gz and .*a_0001\.nii\.gz .* differ"):
        read_volume(files)


def write_image(path: Path, array: np.ndarray, is_vector: bool = False) -> Path:
    sitk.WriteImage(sitk.GetImageFromArray(array, isVector=is_vector), str(path))
    return path


def write_nifti(path: Path, array: np.ndarray, kind: type = nibabel.Nifti1Image) -> Path:
    kind(array, np.eye(4)).to_filename(path)
    return path


def folder(path: Path) -> Path:
    path.mkdir()
    return path


BAD_FILES: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda p: p / "a.nii.gz", "does not exist"),
    "folder": (lambda p: folder(p / "a.nii.gz"), "is not a file"),
    "unknown type": (lambda p: write(p / "a.png"), "unknown file type"),
    "empty": (lambda p: write(p / "a.nii.gz", b""), "too short"),
    "junk NIfTI": (lambda p: write(p / "a.nii.gz"), "not a NIfTI"),
    "junk NRRD": (lambda p: write(p / "a.nrrd"), "cannot be read"),
    "junk MetaImage": (lambda p: write(p / "a.mha"), "cannot be read"),
    "NIfTI-2": (lambda p: write_nifti(p / "a.nii", noise("int16"), nibabel.Nifti2Image), "NIfTI-2"),
    "bad number of axes": (lambda p: patched_nifti(p / "a.nii.gz", {40: ("h", 9)}), "size"),
    "zero-size NIfTI": (lambda p: patched_nifti(p / "a.nii.gz", {46: ("h", 0)}), "size"),
    "zero-size MetaImage": (lambda p: meta(p / "a.mha", DimSize="7 6 0"), "no voxels"),
    "more voxels than memory": (lambda p: meta(p / "a.mha", DimSize="4000000 4000000 900"), "28.8 PB .*cannot hold"),
    "NIfTI spacing 0": (lambda p: patched_nifti(p / "a.nii.gz", {88: ("f", 0)}), "spacing"),
    "NIfTI spacing NaN": (lambda p: patched_nifti(p / "a.nii.gz", {88: ("f", np.nan)}), "spacing"),
    "MetaImage spacing 0": (lambda p: meta(p / "a.mha", ElementSpacing="1 2 0"), "spacing"),
    "singular axes": (lambda p: meta(p / "a.mha", TransformMatrix="1 0 0 0 1 0 0 0 0"), "direction"),
    "2D": (lambda p: write_image(p / "a.nii.gz", noise("int16", (6, 7))), "2 dimensions: 7 x 6"),
    "4D": (lambda p: write_nifti(p / "a.nii", noise("int16", (*SHAPE, 2))), "4 dimensions: 5 x 6 x 7 x 2"),
    "vectors": (
        lambda p: write_image(p / "a.nrrd", noise("uint8", (*SHAPE, 3)), is_vector=True),
        "vectors of 3 numbers",
    ),
    "NIfTI colours": (lambda p: patched_nifti(p / "a.nii.gz", {70: ("h", 128)}), "not real numbers"),
    "complex": (lambda p: write_nifti(p / "a.nii", np.ones(SHAPE, np.complex64)), "not real numbers"),
    "voxels far behind": (lambda p: patched_nifti(p / "a.nii.gz", {108: ("f", 1e30)}), "begin at byte"),
    "short plain NIfTI": (lambda p: write(p / "a.nii", save(p / "b.nii").read_bytes()[:-1]), "truncated"),
    "short packed NIfTI": (lambda p: patched_nifti(p / "a.nii.gz", {46: ("h", 9)}), "truncated"),
    "short plain MetaImage": (lambda p: meta(p / "a.mha", DimSize="7 6 9"), "truncated"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_read_volume__bad_file__says_what_is_wrong(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Every unusable file ends in an error that names it and a remedy, with nothing else on the terminal."""
    make, message = BAD_FILES[name]
    path = make(tmp_path)
    capfd.readouterr()
    with pytest.raises(VolumeError, match=message) as caught:
        read_volume([path])
    assert str(path) in caught.value.problem
    assert caught.value.remedy
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("suffix", PACKED)
@pytest.mark.parametrize("damage", ["half", "tail", "flip"])
def test_read_volume__damaged_packed_voxels__are_noticed(
    tmp_path: Path, suffix: str, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Missing and altered bytes are errors in each format; SimpleITK reads some of these files without complaint."""
    path = save(tmp_path / f"a{suffix}", noise("int16", (20, 30, 40)))
    content = bytearray(path.read_bytes())
    content[len(content) * 3 // 4] ^= 0x55 if damage == "flip" else 0
    path.write_bytes(content[: {"half": len(content) // 2, "tail": -3, "flip": None}[damage]])
    with pytest.raises(VolumeError, match=str(path)):
        read_volume([path])
    assert capfd.readouterr() == ("", "")


def test_read_volume__decompression_bomb__is_refused_early(tmp_path: Path) -> None:
    """Unpacking stops soon after the size that the header states."""
    plain = save(tmp_path / "plain.nii").read_bytes()
    members = gzip.compress(plain) + gzip.compress(bytes(1 << 20)) * 3 + b"\x1f\x8bnever reached"
    (tmp_path / "a.nii.gz").write_bytes(members)
    with pytest.raises(VolumeError, match="far more than its header says"):
        read_volume([tmp_path / "a.nii.gz"])


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_read_volume__voxels_that_are_no_numbers__are_counted_and_located(tmp_path: Path, value: float) -> None:
    """The first bad voxel is given in array order, the count is of all, also in large volumes."""
    array = np.zeros((3, 600, 600), np.float32)
    array[1, 20, 30] = array[2, 599, 599] = value
    with pytest.raises(VolumeError, match=r"2 of 1080000 voxels .* \(1, 20, 30\)"):
        read_volume([save(tmp_path / "a.nii", array)])


# --- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [*PACKED, ".nii"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
@pytest.mark.parametrize("shape", [SHAPE, (1, 6, 7), (1, 1, 1)])
def test_write_labels__each_format__equals_simpleitk(
    tmp_path: Path, suffix: str, dtype: str, shape: tuple[int, int, int]
) -> None:
    """Geometry, type and voxels are what SimpleITK writes for oblique axes, and come back unchanged."""
    labels, grid = noise(dtype, shape), replace(OBLIQUE, shape=shape)
    ours, theirs = tmp_path / f"ours{suffix}", tmp_path / f"theirs{suffix}"
    write_labels(labels, grid, ours)
    sitk.WriteImage(reference_image(labels, grid), str(theirs), True)
    assert geometry(ours) == geometry(theirs)
    np.testing.assert_array_equal(sitk.GetArrayFromImage(sitk.ReadImage(str(ours))), labels, strict=True)
    again = assert_read_as_simpleitk_does(ours)
    assert np.allclose(again.grid.spacing, grid.spacing)
    assert np.allclose(again.grid.direction, grid.direction, atol=1e-5)


def test_write_labels__nifti__has_the_header_of_simpleitk(tmp_path: Path) -> None:
    """All header bytes agree, so that programs that look at other fields see no difference either."""
    labels = noise("uint8")
    write_labels(labels, OBLIQUE, tmp_path / "ours.nii.gz")
    sitk.WriteImage(reference_image(labels), str(tmp_path / "theirs.nii.gz"))
    ours, theirs = (gzip.decompress((tmp_path / f"{name}.nii.gz").read_bytes()) for name in ("ours", "theirs"))
    assert ours == theirs


def test_write_labels__strided_view__writes_its_values(tmp_path: Path) -> None:
    """Labels need not be contiguous: results that were transposed back are views."""
    labels = noise("uint8", (7, 5, 6)).transpose(1, 2, 0)
    write_labels(labels, OBLIQUE, tmp_path / "a.nii.gz")
    np.testing.assert_array_equal(read_volume([tmp_path / "a.nii.gz"]).channels[0], labels)


@pytest.mark.parametrize("suffix", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_write_labels__same_labels_twice__gives_identical_files(tmp_path: Path, suffix: str) -> None:
    """Files hold no time stamps, so results can be compared by checksum."""
    for name in "ab":
        write_labels(noise("uint8"), OBLIQUE, tmp_path / f"{name}{suffix}")
    assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()


def test_write_labels__axis_too_long_for_nifti__names_another_format(tmp_path: Path) -> None:
    """NIfTI-1 counts voxels in 16 bits; larger label maps need another format, which holds them."""
    labels = np.zeros((1, 1, 40_000), np.uint8)
    grid = Grid(labels.shape, (1.0, 1.0, 1.0))
    with pytest.raises(OutputError, match=r"\.nrrd"):
        write_labels(labels, grid, tmp_path / "a.nii.gz")
    write_labels(labels, grid, tmp_path / "a.nrrd")
    assert read_volume([tmp_path / "a.nrrd"]).grid.shape == labels.shape


FULL_DISK = """
import resource, sys
from pathlib import Path
import numpy as np
import coarse2fine
from coarse2fine.errors import OutputError
from coarse2fine.io import Grid, write_labels
labels = np.random.default_rng(0).integers(0, 255, (20, 100, 100), dtype=np.uint8)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    write_labels(labels, Grid(labels.shape, (1.0, 1.0, 1.0)), Path(sys.argv[1]))
except OutputError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limit on file sizes to run into")
@pytest.mark.parametrize(
    "suffix", [".nii.gz", *(pytest.param(suffix, marks=pytest.mark.long) for suffix in (".nii", ".nrrd", ".mha"))]
)
def test_write_labels__no_space__keeps_the_old_file(tmp_path: Path, suffix: str) -> None:
    """When the system refuses a write midway, the message says how much is needed and nothing else has changed."""
    path = tmp_path / f"a{suffix}"
    path.write_bytes(b"old")
    root = Path(coarse2fine.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", FULL_DISK, path], capture_output=True, text=True, check=True, cwd=root)
    assert str(path) in done.stdout
    assert "0.2 MB are needed" in done.stdout
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
