"""What messages about image files tell to do is done to the letter, and then they are read or written."""

from __future__ import annotations

import gzip
import re
import resource
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from coarse2fine.errors import C2FError
from coarse2fine.io import Grid, check_writable, read_volume, write_labels
from coarse2fine.io.files.cases import find_cases, input_suffixes, label_suffixes
from coarse2fine.io.files.readers import READERS

VOXELS = np.random.default_rng(0).integers(1, 255, (4, 6, 8), dtype=np.int16)
SIMPLE, NIBABEL, TIFF = (READERS[name] for name in ("SimpleITKIO", "NibabelIO", "Tiff3DIO"))


def save(path: Path, voxels: np.ndarray = VOXELS, **options: object) -> Path:
    """An image file of the type that its name says."""
    if path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, voxels)
        path.with_suffix(".json").write_text('{"spacing": [2.0, 0.75, 0.5]}')
        return path
    image = sitk.GetImageFromArray(voxels)
    image.SetSpacing((0.5, 0.75, 2.0))
    sitk.WriteImage(image, str(path), **options)
    return path


def refused(action: Callable[[], object], problem: str) -> str:
    """The remedy of an action that fails."""
    with pytest.raises(C2FError, match=problem) as caught:
        action()
    return caught.value.remedy


def suffixes_in(remedy: str) -> list[str]:
    return re.findall(r"\.[a-z]+(?:\.gz)?\b", remedy)


# --- names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reader", [SIMPLE, TIFF], ids=lambda reader: reader.name)
def test_remedy__endings_of_volumes__each_is_read_and_found(tmp_path: Path, reader: object) -> None:
    """Whatever ending a message lists, a file of that kind is a case, and is read; so in a folder, too."""
    suffixes = input_suffixes(reader)
    (tmp_path / "a.txt").write_text("x")
    listed = suffixes_in(refused(lambda: find_cases(tmp_path, 1, suffixes), "holds no volume"))
    assert listed == list(suffixes)
    if reader is SIMPLE:
        assert suffixes_in(refused(lambda: read_volume([tmp_path / "a.txt"]), "unknown file type")) == listed
    for suffix in listed:
        folder = tmp_path / suffix
        folder.mkdir()
        save(folder / f"a{suffix}")
        (case,) = find_cases(folder, 1, suffixes)
        assert np.array_equal(read_volume(case.files, readers=[reader]).channels[0], VOXELS)


@pytest.mark.parametrize("reader", [SIMPLE, TIFF], ids=lambda reader: reader.name)
def test_remedy__endings_of_labels__each_is_written(tmp_path: Path, reader: object) -> None:
    """The endings in the message are all that a result may have."""
    labels, grid = VOXELS.astype(np.uint8), Grid(VOXELS.shape, (2.0, 0.75, 0.5), "mm")
    listed = suffixes_in(
        refused(lambda: check_writable(tmp_path / "a.png", False, label_suffixes(reader)), "unknown file type")
    )
    assert listed == list(label_suffixes(reader))
    for suffix in listed:
        check_writable(tmp_path / f"a{suffix}", False, label_suffixes(reader))
        write_labels(labels, grid, tmp_path / f"a{suffix}")
        assert np.array_equal(read_volume([tmp_path / f"a{suffix}"]).channels[0], labels)
    assert set(suffixes_in(refused(lambda: write_labels(labels, grid, tmp_path / "a.png"), "unknown"))) <= set(listed)


def two_of_a_case(folder: Path) -> None:
    save(folder / "a.nrrd"), save(folder / "a.mha")


def two_of_a_channel(folder: Path) -> None:
    save(folder / "a_0000.nrrd"), save(folder / "a_0000.mha"), save(folder / "a_0001.nrrd")


def one_without_number(folder: Path) -> None:
    save(folder / "a_0000.nrrd"), save(folder / "a_0001.nrrd"), save(folder / "b.mha")


def a_channel_too_few(folder: Path) -> None:
    save(folder / "a_0000.nrrd")


def remove_the_mha(folder: Path) -> None:
    next(folder.glob("*.mha")).unlink()


CASES: dict[str, tuple[Callable[[Path], None], int, str, str, Callable[[Path], object]]] = {
    "twins": (two_of_a_case, 1, "both", "Keep only one of them there", remove_the_mha),
    "twins of a channel": (two_of_a_channel, 2, "both", "Keep only one of them there", remove_the_mha),
    "no number": (one_without_number, 2, "no channel number", "move it to another folder", remove_the_mha),
    "too few": (
        a_channel_too_few,
        2,
        "missing a_0001",
        "needs exactly the channels 0000, 0001",
        lambda folder: save(folder / "a_0001.nrrd"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_remedy__files_of_a_case__are_found(tmp_path: Path, case: str) -> None:
    write, channels, problem, remedy, mend = CASES[case]
    write(tmp_path)
    assert remedy in refused(lambda: find_cases(tmp_path, channels, input_suffixes(SIMPLE)), problem)
    mend(tmp_path)
    (found,) = find_cases(tmp_path, channels, input_suffixes(SIMPLE))
    assert len(read_volume(found.files).channels) == channels


def test_remedy__path_of_nothing__volume_or_folder_is_found(tmp_path: Path) -> None:
    remedy = refused(lambda: find_cases(tmp_path / "b.nrrd", 1, input_suffixes(SIMPLE)), "does not exist")
    assert remedy == "Name a volume, or a folder of volumes."
    path = save(tmp_path / "a.nrrd")
    assert find_cases(path, 1, input_suffixes(SIMPLE)) == find_cases(tmp_path, 1, input_suffixes(SIMPLE))
    for other in (tmp_path / "b.nrrd", tmp_path / "c.nii"):
        other.mkdir(exist_ok=True) if other.suffix == ".nii" else None
        assert refused(lambda other=other: read_volume([other]), "is not a file|does not exist") == "Check the path."
    assert np.array_equal(read_volume([path]).channels[0], VOXELS)


# --- places of results -----------------------------------------------------------------------------------------------


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow beyond 5 kB."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (5000, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_remedy__result_that_cannot_be_written__is_written(tmp_path: Path) -> None:
    """A folder in its place, one that is a file, no room, a type without directions, and an axis too long for one."""
    labels, grid = VOXELS.astype(np.uint8), Grid(VOXELS.shape, (2.0, 0.75, 0.5), "mm")
    (tmp_path / "folder.mha").mkdir()
    (tmp_path / "file").write_text("x")
    assert refused(lambda: check_writable(tmp_path / "folder.mha", True), "it is a folder") == "Name a file."
    remedy = refused(lambda: write_labels(labels, grid, tmp_path / "file/a.mha"), "cannot write")
    assert remedy == "Check that the folder exists and that you may write there."
    noise = np.random.default_rng(0).integers(0, 255, (16, 32, 32), dtype=np.uint8)
    with full_disk():
        remedy = refused(lambda: write_labels(noise, Grid(noise.shape, grid.spacing), tmp_path / "a.mha"), "too large")
    assert re.match(r"0\.0 MB are needed, .* are free on this disk\. Free some, raise the quota", remedy)
    write_labels(labels, grid, tmp_path / "a.mha")
    assert np.array_equal(read_volume([tmp_path / "a.mha"]).channels[0], labels)
    turned = Grid(grid.shape, grid.spacing, "mm", direction=(1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0))
    long = np.ones((1, 1, 1 << 15), np.uint8)
    for name, voxels, place, problem in (
        ("a.tif", labels, turned, "cannot hold a volume's direction"),
        ("a.nii.gz", long, Grid(long.shape, (1.0, 1.0, 1.0), "mm"), "too large for NIfTI"),
    ):
        listed = suffixes_in(refused(lambda: write_labels(voxels, place, tmp_path / name), problem))  # noqa: B023
        assert listed
        for suffix in listed:
            write_labels(voxels, place, tmp_path / f"b{suffix}")
            assert np.array_equal(read_volume([tmp_path / f"b{suffix}"]).channels[0], voxels)


# --- files that are damaged, or of another kind ----------------------------------------------------------------------


def at(place: int, layout: str, *values: float) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + struct.pack(layout, *values) + content[place + struct.calcsize(layout) :]


def first(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    return lambda content: content.replace(old, new, 1)


DAMAGE: dict[str, tuple[str, Callable[[bytes], bytes], str]] = {
    "NIfTI of size 0": ("a.nii", at(42, "<h", 0), "states the size"),
    "NIfTI's first voxel": ("a.nii", at(108, "<f", 1e30), "begin at byte"),
    "NIfTI is short": ("a.nii", lambda content: content[:200], "too short"),
    "NIfTI is cut": ("a.nii", lambda content: content[:-9], "truncated"),
    "packed NIfTI is cut": ("a.nii.gz", lambda content: content[:-20], "truncated|cannot be read"),
    "packed NIfTI goes on": (
        "a.nii.gz",
        lambda content: gzip.compress(gzip.decompress(content) + bytes(16 << 20)),
        "far more than its header says",
    ),
    "NIfTI much too small": ("a.nii", at(42, "<3h", 800, 600, 400), "cannot hold"),
    "NRRD of text": (
        "a.nrrd",
        lambda content: content.replace(b"encoding: raw", b"encoding: ascii").partition(b"\n\n")[0] + b"\n\nx" * 192,
        "its voxels are no",
    ),
    "NRRD of size 0": ("a.nrrd", first(b"sizes: 8", b"sizes: 0"), "holds no voxels"),
    "MHA is another file": ("a.mha", lambda _: b"x" * 999, "cannot be read"),
    "TIFF of size 0": ("a.tif", lambda content: content[:40], "cannot be read"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_remedy__damage__file_is_copied_again(tmp_path: Path, case: str) -> None:
    """The message says that the file may be damaged and what to do; the undamaged one is read."""
    name, damage, problem = DAMAGE[case]
    options = {} if name.endswith((".gz", ".tif")) else {"useCompression": False}
    path = save(tmp_path / name, **options)
    reader = TIFF if path.suffix == ".tif" else SIMPLE
    content = path.read_bytes()
    path.write_bytes(damage(content))
    remedy = refused(lambda: read_volume([path], readers=[reader]), problem)
    assert re.search("[Cc]opy (or download )?it again", remedy), remedy
    path.write_bytes(content)
    assert np.array_equal(read_volume([path], readers=[reader]).channels[0], VOXELS)


@pytest.mark.parametrize("name", ["a.mhd", "a.nhdr"])
@pytest.mark.parametrize("place", ["/somewhere/else.raw", "../else.raw", "none.raw", "link.raw", "folder"])
def test_remedy__voxels_elsewhere__put_beside_the_header(tmp_path: Path, name: str, place: str) -> None:
    """The voxels lie beside the header under their plain name, which the header says."""
    folder = tmp_path / "a"
    folder.mkdir()
    path = save(folder / name, useCompression=False)
    (raw,) = (file for file in folder.iterdir() if file != path)
    raw = raw.rename(tmp_path / "else.raw")
    (folder / "link.raw").symlink_to(raw)
    (folder / "folder").mkdir()
    text = path.read_text()
    named = re.search(r"(?:ElementDataFile = |data file: )(.*)", text)[1]  # type: ignore[index]
    path.write_text(text.replace(named, place))
    assert refused(lambda: read_volume([path]), "outside of its folder|says that its voxels are in") == (
        "Put the voxels beside the header, as a file of their own, and write its plain name into the header."
    )
    raw.rename(folder / "voxels.raw")
    path.write_text(text.replace(named, "voxels.raw"))
    assert np.array_equal(read_volume([path]).channels[0], VOXELS)


def test_remedy__kinds_of_voxels__written_as_the_message_says(tmp_path: Path) -> None:
    """GIPL's rare types as type 15; vectors, colours and complex numbers one real number per voxel, one file each."""
    path = save(tmp_path / "a.gipl")
    path.write_bytes(at(8, ">H", 31)(path.read_bytes()))
    remedy = refused(lambda: read_volume([path]), "GIPL's type 31")
    code = re.search(r"type (\d+) \(short\)", remedy)
    assert code
    path.write_bytes(at(8, ">H", int(code[1]))(path.read_bytes()))
    assert np.array_equal(read_volume([path]).channels[0], VOXELS)

    pair = np.stack([VOXELS.T, VOXELS.T + 1], -1)
    vectors = nibabel.Nifti1Image(pair[:, :, :, None], np.eye(4))
    vectors.header.set_intent("vector")
    flat = nibabel.Nifti1Image(VOXELS.T, np.eye(4))
    flat.header.set_intent("vector")
    for image, problem in (
        (flat, "vectors or colours"),
        (vectors, "dimensions|vectors"),
        (nibabel.Nifti1Image(VOXELS.T.astype(np.complex64), np.eye(4)), "voxels are not real numbers"),
    ):
        nibabel.save(image, tmp_path / "b.nii")
        assert "one file" in refused(lambda: read_volume([tmp_path / "b.nii"]), problem)
    for number in range(2):
        nibabel.save(nibabel.Nifti1Image(pair[..., number], np.eye(4)), tmp_path / f"b_000{number}.nii")
    found = read_volume([tmp_path / f"b_000{number}.nii" for number in range(2)]).channels
    assert [np.array_equal(found[number], VOXELS + number) for number in range(2)] == [True, True]
    tifffile.imwrite(tmp_path / "c.tif", np.zeros((4, 6, 8, 3), np.uint8), photometric="rgb")
    remedy = refused(lambda: read_volume([tmp_path / "c.tif"], readers=[TIFF]), "not a volume of real numbers")
    assert "one file per channel: NAME_0000.tif" in remedy
    assert read_volume([save(tmp_path / "c_0000.tif")], readers=[TIFF]).channels
