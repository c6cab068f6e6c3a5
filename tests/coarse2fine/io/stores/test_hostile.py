"""Image files from strangers: damaged headers, headers that ask for too much, voxels somewhere else."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from fuzzing import outcomes
from image_fuzzing import MAKERS, ours, simpleitk

from coarse2fine.errors import VolumeError
from coarse2fine.io import read_volume

SEEDS = 75  # of each format; `make fuzz` tries more
VOXELS = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
RAW = VOXELS.tobytes()

META = {"ObjectType": "Image", "NDims": "3", "DimSize": "4 3 2", "ElementType": "MET_SHORT", "ElementSpacing": "1 2 3"}
NRRD = {"type": "short", "dimension": "3", "sizes": "4 3 2", "spacings": "1 2 3", "endian": "little", "encoding": "raw"}


def meta(path: Path, content: bytes = RAW, **fields: str) -> Path:
    lines = META | {"ElementDataFile": "LOCAL"} | fields
    lines["ElementDataFile"] = lines.pop("ElementDataFile")
    path.write_bytes("".join(f"{key} = {value}\n" for key, value in lines.items()).encode() + content)
    return path


def nrrd(path: Path, content: bytes = RAW, **fields: str) -> Path:
    lines = {key: value for key, value in (NRRD | fields).items() if value}
    text = "".join(f"{key.replace('_', ' ')}: {value}\n" for key, value in lines.items())
    path.write_bytes(f"NRRD0005\n{text}\n".encode() + content)
    return path


def nifti(path: Path, content: bytes = RAW, shape: tuple[int, ...] = (4, 3, 2), members: int = 1) -> Path:
    image = sitk.GetImageFromArray(np.zeros((1, 1, 1), np.int16))
    sitk.WriteImage(image, str(path.with_suffix("").with_suffix(".nii")))
    head = bytearray(path.with_suffix("").with_suffix(".nii").read_bytes()[:352])
    struct.pack_into("<3h", head, 42, *shape)
    packed = path.suffix == ".gz"
    path.write_bytes(gzip.compress(head) + gzip.compress(content) * members if packed else bytes(head) + content)
    return path


def gipl(path: Path, content: bytes | None = None, **fields: tuple[int, ...]) -> Path:
    head = struct.pack(">4HH4f", *fields.get("sizes", (4, 3, 2)), 1, 15, 1, 2, 3, 1).ljust(252, b"\0")
    path.write_bytes(
        head + struct.pack(">I", 719555000) + (VOXELS.astype(">i2").tobytes() if content is None else content)
    )
    return path


@pytest.mark.long
def test_read_volume__damaged_header__is_refused_or_read_as_simpleitk_does(tmp_path: Path) -> None:
    """No crash, no traceback, no other voxels or geometry; and not everything is refused."""
    paths = [make(seed, tmp_path) for make in MAKERS.values() for seed in range(SEEDS)]
    mine = dict(zip(paths, outcomes("image_fuzzing:ours", paths), strict=True))
    read = [path for path in paths if mine[path].kind != "refused"]
    theirs = dict(zip(read, outcomes("image_fuzzing:simpleitk", read), strict=True))
    assert {path: mine[path] for path in read if mine[path] != theirs[path]} == {}
    counts = Counter(path.name.partition("_")[0] for path in read)
    assert min(counts[name] for name in ("mha", "nrrd", "nii", "gipl")) >= SEEDS // 10
    assert all("\n  " in outcome.detail for outcome in mine.values() if outcome.kind == "refused")  # a remedy


HARMLESS: dict[str, Callable[[Path], Path]] = {
    "negative spacing, MetaImage": lambda p: meta(p / "a.mha", ElementSpacing="1 -2 3", Offset="1 2 3"),
    "negative spacing, NRRD": lambda p: nrrd(p / "a.nrrd", spacings="1 2 -3"),
    "fourth axis, MetaImage": lambda p: meta(p / "a.mha", NDims="4", DimSize="4 3 2 1", ElementSpacing="1 2 3 9"),
    "fourth axis, NRRD": lambda p: nrrd(p / "a.nrrd", dimension="4", sizes="4 3 2 1", spacings="1 2 3 9"),
    "list of one, NRRD": lambda p: nrrd(
        p / "a.nrrd", dimension="4", sizes="1 4 3 2", spacings="nan 1 2 3", kinds="list domain domain domain"
    ),
    "attached .nhdr": lambda p: nrrd(p / "a.nhdr", data_file="a.raw", content=b""),
    ".mhd": lambda p: meta(p / "a.mhd", ElementDataFile="a.raw", content=b""),
    "HeaderSize": lambda p: meta(p / "a.mhd", ElementDataFile="long.raw", HeaderSize="3", content=b""),
    "voxels at the end": lambda p: meta(p / "a.mhd", ElementDataFile="long.raw", HeaderSize="-1", content=b""),
    "packed .mhd": lambda p: meta(p / "a.mhd", ElementDataFile="a.zraw", CompressedData="True", content=b""),
    "text, MetaImage": lambda p: meta(p / "a.mha", " ".join(map(str, range(24))).encode() + b"\n", BinaryData="False"),
    "hexadecimal": lambda p: nrrd(p / "a.nrrd", RAW.hex().encode(), encoding="hex"),
    "text, NRRD": lambda p: nrrd(p / "a.nrrd", " ".join(map(str, range(24))).encode(), encoding="text"),
    "line and byte skip": lambda p: nrrd(p / "a.nrrd", b"a\nb\n???" + RAW, line_skip="2", byte_skip="3"),
    "LONG has four bytes": lambda p: meta(p / "a.mha", RAW * 2, ElementType="MET_LONG"),
    "lines end as on Windows": lambda p: windows(nrrd(p / "a.nrrd")),
    "gipl": lambda p: gipl(p / "a.gipl"),
}


def windows(path: Path) -> Path:
    head, _, content = path.read_bytes().partition(b"\n\n")
    path.write_bytes(head.replace(b"\n", b"\r\n") + b"\r\n\r\n" + content)
    return path


@pytest.mark.parametrize("name", HARMLESS)
def test_read_volume__unusual_but_valid__equals_simpleitk(tmp_path: Path, name: str) -> None:
    """What nnU-Net reads through SimpleITK is read, with the same voxels and geometry."""
    (tmp_path / "a.raw").write_bytes(RAW)
    (tmp_path / "a.zraw").write_bytes(zlib.compress(RAW))
    (tmp_path / "long.raw").write_bytes(b"???" + RAW)
    path = HARMLESS[name](tmp_path)
    assert simpleitk_quietly(path) == ours(path)


def simpleitk_quietly(path: Path) -> str:
    """SimpleITK's reading, in this process's standard error restored."""
    kept = os.dup(2)
    try:
        return simpleitk(path)
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def test_read_volume__voxels_outside_of_the_folder__are_refused(tmp_path: Path) -> None:
    """A header reaches no file but those beside it: neither by its path, nor by a link, nor devices and pipes."""
    folder = tmp_path / "case"
    folder.mkdir()
    (tmp_path / "secret.raw").write_bytes(RAW)
    (folder / "link.raw").symlink_to(tmp_path / "secret.raw")
    os.mkfifo(folder / "pipe.raw")
    for name in ("../secret.raw", str(tmp_path / "secret.raw"), "/dev/zero", "link.raw", "pipe.raw", "no.raw", "."):
        for path in (
            meta(folder / "a.mhd", b"", ElementDataFile=name),
            nrrd(folder / "a.nhdr", b"", data_file=name),
        ):
            with pytest.raises(VolumeError, match=r"outside of its folder|regular file|does not exist") as caught:
                read_volume([path])
            assert "beside the header" in caught.value.remedy
    (folder / "beside.raw").write_bytes(RAW)  # the remedy
    assert (read_volume([meta(folder / "a.mhd", b"", ElementDataFile="beside.raw")]).channels[0] == VOXELS).all()


def test_read_volume__voxels_in_many_files__remedy_works(tmp_path: Path) -> None:
    """A list of slices is refused; SimpleITK writes it into one file that is read."""
    for index in range(2):
        (tmp_path / f"{index}.raw").write_bytes(VOXELS[index].tobytes())
    path = meta(tmp_path / "a.mhd", b"", ElementDataFile="LIST\n0.raw\n1.raw")
    with pytest.raises(VolumeError, match=r"many files.*\n.*WriteImage\(ReadImage\(OLD\), NEW\)"):
        read_volume([path])
    sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / "one.mha"))
    assert (read_volume([tmp_path / "one.mha"]).channels[0] == VOXELS).all()


def test_read_volume__packed_size_missing__remedy_works(tmp_path: Path) -> None:
    """SimpleITK returns memory that it has not filled; we name the line that is missing."""
    packed = zlib.compress(RAW)
    with pytest.raises(VolumeError, match=f"CompressedDataSize = {len(packed)}'"):
        read_volume([meta(tmp_path / "a.mha", packed, CompressedData="True")])
    path = meta(tmp_path / "a.mha", packed, CompressedData="True", CompressedDataSize=str(len(packed)))
    assert (read_volume([path]).channels[0] == VOXELS).all()


def test_read_volume__packed_file_without_gz__remedy_works(tmp_path: Path) -> None:
    """SimpleITK and nibabel go by the name, and so do we."""
    packed = nifti(tmp_path / "b.nii.gz")
    with pytest.raises(VolumeError, match=r"Rename it to a\.nii\.gz"):
        read_volume([packed.rename(tmp_path / "a.nii")])
    assert (read_volume([(tmp_path / "a.nii").rename(tmp_path / "a.nii.gz")]).channels[0] == VOXELS).all()


MEASURE = """
import resource, sys, time
from pathlib import Path
from coarse2fine.errors import VolumeError
from coarse2fine.io import read_volume
for path in sys.argv[1:]:
    before, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    try:
        read_volume([Path(path)])
        print("read", path)
    except VolumeError as error:
        assert error.remedy
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    if time.perf_counter() - start > 5 or used > 1 << 30:
        print(path, time.perf_counter() - start, used)
"""
HUGE = "100000 100000 100000"


def exhausting(folder: Path) -> list[Path]:
    """Files that ask for far more than they hold, or unpack to far more than they ask for."""
    zeros = bytes(1 << 24)
    packed = gzip.compress(zeros)
    stream = zlib.compress(bytes(1 << 26))
    sparse = nifti(folder / "sparse.nii", b"", (32767, 32767, 32767))
    with sparse.open("r+b") as file:
        file.truncate(1 << 43)
    return [
        sparse,
        nifti(folder / "peta.nii.gz", RAW, (32767, 32767, 32767)),
        nifti(folder / "more.nii.gz", zeros, (100, 100, 100), members=64),
        nifti(folder / "fewer.nii.gz", zeros, (1024, 1024, 1000), members=60),
        nifti(folder / "empty.nii.gz", b"", (100, 100, 100), members=100000),
        meta(folder / "peta.mha", DimSize=HUGE),
        meta(folder / "gap.mha", stream, DimSize=HUGE, CompressedData="True", CompressedDataSize=str(len(stream))),
        meta(folder / "more.mha", stream, CompressedData="True", CompressedDataSize=str(len(stream))),
        meta(folder / "text.mha", b"0 " * 1000, DimSize=HUGE, BinaryData="False"),
        nrrd(folder / "peta.nrrd", sizes=HUGE),
        nrrd(folder / "hex.nrrd", RAW.hex().encode(), sizes=HUGE, encoding="hex"),
        nrrd(folder / "gzip.nrrd", packed * 64, sizes=HUGE, encoding="gzip"),
        nrrd(folder / "more.nrrd", packed * 64, encoding="gzip"),
        nrrd(folder / "comments.nrrd", b"#\n" * (1 << 24), encoding=""),
        gipl(folder / "giga.gipl", sizes=(65535, 65535, 65535)),
    ]


def test_read_volume__exhausting_file__is_refused_in_seconds_and_little_memory(tmp_path: Path) -> None:
    """Whatever a header asks for and a stream unpacks to: at most 5 s and 1 GB until the error."""
    paths = [str(path) for path in exhausting(tmp_path)]
    done = subprocess.run([sys.executable, "-c", MEASURE, *paths], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("", "")
