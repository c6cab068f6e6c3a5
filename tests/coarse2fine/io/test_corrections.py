"""Files that are refused with a remedy: it is followed to the letter, and then they are read."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tensorstore as ts
import zarr

from coarse2fine.errors import VolumeError
from coarse2fine.io import open_store, read_volume
from coarse2fine.io.files import voxels
from coarse2fine.io.files.readers import READERS
from coarse2fine.io.stores import volumes as stores

VOXELS = np.random.default_rng(0).integers(1, 255, (4, 6, 8), dtype=np.int16)
PLACE: dict[str, Any] = {"resolution": [40, 4, 4], "units": ["nm"] * 3}


def save(path: Path, **options: Any) -> Path:
    image = sitk.GetImageFromArray(VOXELS)
    image.SetSpacing((0.5, 0.75, 2.0))
    sitk.WriteImage(image, str(path), **options)
    return path


def refusal(path: Path, **options: Any) -> VolumeError:
    with pytest.raises(VolumeError) as caught:
        read_volume([path], **options)
    assert str(path) in str(caught.value)
    return caught.value


def assert_read(path: Path, **options: Any) -> None:
    assert np.array_equal(read_volume([path], **options).channels[0], VOXELS)


def replaced(old: bytes, new: bytes) -> Callable[[bytes], bytes]:
    def change(content: bytes) -> bytes:
        assert old in content
        return content.replace(old, new, 1)

    return change


def at(place: int, layout: str, *values: float) -> Callable[[bytes], bytes]:
    return lambda content: content[:place] + struct.pack(layout, *values) + content[place + struct.calcsize(layout) :]


HEADERS: dict[str, tuple[str, Callable[[bytes], bytes]]] = {
    "no number": ("a.mha", replaced(b"ElementSpacing = 0.5", b"ElementSpacing = abc")),
    "a number too few": ("a.mha", replaced(b"DimSize = 8 6 4", b"DimSize = 8 6")),
    "another word": ("a.mha", replaced(b"ElementType = MET_SHORT", b"ElementType = MET_SHORTS")),
    "beyond all numbers": ("a.mha", replaced(b"Offset = 0", b"Offset = 1e999")),
    "spacing 0": ("a.mha", replaced(b"ElementSpacing = 0.5", b"ElementSpacing = 0")),
    "an NRRD without numbers": ("a.nrrd", replaced(b"space origin: (0,", b"space origin: (x,")),
    "an NRRD of infinite size": ("a.nrrd", replaced(b"space directions: (0.5,", b"space directions: (1e999,")),
    "NIfTI spacing 0": ("a.nii", at(80, "<f", 0.0)),
    "NIfTI spacing infinite": ("a.nii", at(80, "<f", float("inf"))),
    "a GIPL origin that is no number": ("a.gipl", at(204, ">d", float("nan"))),
}


@pytest.mark.parametrize("case", HEADERS)
def test_remedy__correct_the_header__is_read(tmp_path: Path, case: str) -> None:
    """What the message names is what is wrong, and nothing else: with its old value the file is read."""
    name, change = HEADERS[case]
    path = save(tmp_path / name)
    content = path.read_bytes()
    path.write_bytes(change(content))
    assert refusal(path).remedy.startswith("Correct the header")
    path.write_bytes(content)
    assert_read(path)


def test_remedy__correct_the_header_for_nibabel__is_read(tmp_path: Path) -> None:
    """An affine that lost an axis, for a model whose reader is nibabel's."""
    path = save(tmp_path / "a.nii")
    content, readers = path.read_bytes(), [READERS["NibabelIOWithReorient"]]
    path.write_bytes(at(280, "<4f", 0, 0, 0, 0)(content))
    assert refusal(path, readers=readers).remedy.startswith("Correct the header")
    path.write_bytes(content)
    assert_read(path, readers=readers)


def test_remedy__nifti_2__converted(tmp_path: Path) -> None:
    image = nibabel.Nifti2Image(VOXELS.T, np.diag([0.5, 0.75, 2, 1]))
    nibabel.save(image, tmp_path / "a.nii.gz")
    error = refusal(tmp_path / "a.nii.gz")
    assert "NIfTI-2" in error.problem
    assert "save(Nifti1Image.from_image(load(OLD)), NEW)" in error.remedy
    nibabel.save(nibabel.Nifti1Image.from_image(nibabel.load(tmp_path / "a.nii.gz")), tmp_path / "b.nii.gz")
    assert_read(tmp_path / "b.nii.gz")


@pytest.mark.parametrize("name", ["a.nii.gz", "a.mha", "a.nrrd"])
def test_remedy__shrunk_too_much__unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A file that is packed as no image should be; the message says how to unpack this kind of file."""
    path = save(tmp_path / name, useCompression=True)
    assert_read(path)
    for limit in ("_MUCH", "_LARGEST_SHRUNK", "_SHRUNK"):
        monkeypatch.setattr(voxels, limit, 0)
    remedy = refusal(path).remedy
    if name == "a.nii.gz":
        assert f"gzip -dk {path}" in remedy
        subprocess.run(["gzip", "-dk", path], check=True)
        assert_read(tmp_path / "a.nii")
    else:
        assert "WriteImage(ReadImage(OLD), NEW)" in remedy
        sitk.WriteImage(sitk.ReadImage(str(path)), str(tmp_path / f"new_{name}"))
        assert_read(tmp_path / f"new_{name}")


def test_remedy__deflated_twice__repacked(tmp_path: Path) -> None:
    """By h5repack where it is, else by writing the dataset anew with h5py, which is what it does."""
    old, new = tmp_path / "a.hdf", tmp_path / "b.hdf"
    with h5py.File(old, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk(VOXELS.shape)
        plist.set_deflate(4)
        plist.set_filter(h5py.h5z.FILTER_DEFLATE, h5py.h5z.FLAG_OPTIONAL, (4,))
        space = h5py.h5s.create_simple(VOXELS.shape)
        h5py.h5d.create(file.create_group("volumes").id, b"raw", h5py.h5t.NATIVE_INT16, space, plist)
        file["volumes/raw"][:] = VOXELS
        file["volumes/raw"].attrs["resolution"] = (40.0, 4.0, 4.0)
    with pytest.raises(VolumeError, match="deflate twice") as info:
        open_store(str(old))
    assert "h5repack -f GZIP=4 OLD NEW" in info.value.remedy
    if shutil.which("h5repack"):
        subprocess.run(["h5repack", "-f", "GZIP=4", old, new], check=True)
    else:
        with h5py.File(old) as source, h5py.File(new, "w") as target:
            raw = source["volumes/raw"]
            target.create_dataset("volumes/raw", data=raw[:], chunks=raw.chunks, compression=4)
            target["volumes/raw"].attrs.update(raw.attrs)
    assert np.array_equal(open_store(str(new)).levels[0].channels[0][:, :, :], VOXELS)


def test_remedy__unknown_scale__each_that_is_listed_opens(tmp_path: Path) -> None:
    """The keys in the message are those that --array takes."""
    for step in (1, 2):
        scale = {"size": VOXELS[:, ::step, ::step].T.shape, "resolution": [4 * step, 4 * step, 40]}
        spec = {
            "driver": "neuroglancer_precomputed",
            "kvstore": f"file://{tmp_path}/em/",
            "multiscale_metadata": {"type": "image", "data_type": "uint16", "num_channels": 1},
            "scale_metadata": scale | {"encoding": "raw", "chunk_size": [8, 8, 8]},
        }
        ts.open(spec, create=True).result()[...] = VOXELS[:, ::step, ::step].T[..., None].astype(np.uint16)
    with pytest.raises(VolumeError, match="no scale 9") as info:
        open_store(str(tmp_path / "em"), array="9")
    keys = info.value.remedy.removeprefix("Its scales are ").removesuffix(" (--array).").split(", ")
    assert len(keys) == 2
    for key, step in zip(keys, (1, 2), strict=True):
        found = open_store(str(tmp_path / "em"), array=key).levels[0].channels[0][:, :, :]
        assert np.array_equal(found, VOXELS[:, ::step, ::step])


def test_remedy__shards_too_large__written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "_MOST_IN_SHARD", 4)
    options = {"data": VOXELS, "chunks": (2, 2, 2), "attributes": PLACE}
    zarr.create_array(tmp_path / "a", shards=(4, 6, 8), **options)
    with pytest.raises(VolumeError, match="shards hold more than 4 chunks") as info:
        open_store(str(tmp_path / "a"))
    assert "smaller shards" in info.value.remedy
    zarr.create_array(tmp_path / "b", shards=(2, 4, 4), **options)
    assert np.array_equal(open_store(str(tmp_path / "b")).levels[0].channels[0][:, :, :], VOXELS)
