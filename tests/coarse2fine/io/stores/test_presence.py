"""Missing chunks: what zarr-python and h5py left out is told from what was lost; sparse volumes raise no alarm."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import h5py
import numpy as np
import pytest
import zarr
from scipy.ndimage import gaussian_filter, zoom

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import Scales, open_store
from coarse2fine.io.stores.presence import check_stored, misfit

RNG = np.random.default_rng(0)
TISSUE = np.clip(gaussian_filter(RNG.normal(0, 1, (32, 64, 64)), 2) * 300 + 120, 40, 250).astype(np.uint8)
SPARSE = np.zeros_like(TISSUE)
SPARSE[6:19, 22:50, 41:58] = TISSUE[6:19, 22:50, 41:58]
NOISE = RNG.normal(0, 300, TISSUE.shape).astype(np.int16)  # spans the fill value
STEP = (1, 4, 4)


def mean(voxels: np.ndarray) -> np.ndarray:
    z, y, x = voxels.shape
    return voxels.reshape(z, y // 4, 4, x // 4, 4).mean((2, 4)).round().astype(voxels.dtype)


DOWNSAMPLERS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "mean": mean,
    "every fourth": lambda voxels: voxels[:, ::4, ::4],
    "the last of four": lambda voxels: voxels[:, 3::4, 3::4],
    "greatest": lambda voxels: voxels.reshape(32, 16, 4, 16, 4).max((2, 4)),
    "median": lambda voxels: np.median(voxels.reshape(32, 16, 4, 16, 4), (2, 4)).astype(voxels.dtype),
    "smooth": lambda voxels: gaussian_filter(voxels, (0, 2, 2))[:, ::4, ::4],
    "splines": lambda voxels: zoom(voxels, (1, 0.25, 0.25), order=3),
}


def write_pyramid(
    folder: Path, fine: np.ndarray, coarse: np.ndarray | None, version: int = 3, **options: object
) -> Path:
    """An OME-NGFF image of two levels; chunks of nothing but the fill value are not written."""
    datasets = []
    for name, voxels, step in (("0", fine, (1, 1, 1)), ("1", coarse, STEP)):
        if voxels is None:
            continue
        shape = {"shape": voxels.shape, "dtype": voxels.dtype, "chunks": (8, 16, 16), "zarr_format": version}
        array = zarr.create_array(folder / name, fill_value=0, **shape, **options)
        array[:] = voxels
        scale = [length * factor for length, factor in zip((40, 4, 4), step, strict=True)]
        datasets.append({"path": name, "coordinateTransformations": [{"type": "scale", "scale": scale}]})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    image = {"version": "0.4" if version == 2 else "0.5", "axes": axes, "datasets": datasets}
    group = zarr.open_group(folder, mode="a", zarr_format=version)
    group.attrs.update(
        {"multiscales": [image]} if version == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    return folder


def chunks_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith((".z", "zarr")))


def opened(folder: Path) -> Scales:
    return open_store(str(folder))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("tissue", name) for name in DOWNSAMPLERS),
        *(("sparse", name) for name in ("mean", "every fourth", "smooth")),
        *(("noise", name) for name in ("mean", "the last of four", "median")),
    ],
)
def test_misfit__levels_made_in_any_way__fit(tmp_path: Path, name: str, kind: str) -> None:
    """However a level was made smaller, and however few of its chunks were worth writing, it fits."""
    fine = {"tissue": TISSUE, "sparse": SPARSE, "noise": NOISE}[kind]
    scales = opened(write_pyramid(tmp_path / "a", fine, DOWNSAMPLERS[name](fine)))
    assert misfit(scales, 1) == ""
    assert misfit(scales, 1, Box((3, 20, 30), (17, 52, 61))) == ""
    assert check_stored(scales) == ()


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("fine", [TISSUE, NOISE], ids=["tissue", "noise"])
def test_misfit__chunks_lost__says_how_many(tmp_path: Path, fine: np.ndarray, version: int) -> None:
    """A level without chunks, or with a few of them gone, reads as the fill value where the finest does not."""
    folder = write_pyramid(tmp_path / "a", fine, mean(fine), version)
    lost = chunks_of(folder / "1")
    for path in lost[:3]:
        path.unlink()
    assert re.search(r"at \d+ of \d+ places its chunks are not stored .* fill value 0", misfit(opened(folder), 1))
    for path in lost[3:]:
        path.unlink()
    assert "none of its chunks is stored" in misfit(opened(folder), 1)
    assert check_stored(opened(folder)) == ()


def test_misfit__never_written_zeros__says_so(tmp_path: Path) -> None:
    """Chunks that are there, but hold nothing but the fill value, are no better than missing ones."""
    folder = write_pyramid(tmp_path / "a", TISSUE, np.zeros_like(mean(TISSUE)), config={"write_empty_chunks": True})
    assert chunks_of(folder / "1")
    assert "never written" in misfit(opened(folder), 1)


@pytest.mark.parametrize("change", ["other volume", "mirrored", "constant", "brighter"])
def test_misfit__other_voxels__says_so(tmp_path: Path, change: str) -> None:
    coarse = mean(TISSUE)
    other = {
        "other volume": RNG.permutation(coarse.ravel()).reshape(coarse.shape),
        "mirrored": coarse[:, ::-1],
        "constant": np.full_like(coarse, 120),
        "brighter": coarse // 2 + 130,
    }[change]
    assert "finest level" in misfit(opened(write_pyramid(tmp_path / "a", TISSUE, other)), 1)


def test_misfit__constant_within_the_noise__says_so(tmp_path: Path) -> None:
    """One value that is possible everywhere shows nothing."""
    varied = NOISE + (np.arange(64) * 10).astype(np.int16)
    constant = np.full_like(mean(varied), 400)
    assert misfit(opened(write_pyramid(tmp_path / "a", varied, constant)), 1)


def test_misfit__chunk_damaged__is_a_reason(tmp_path: Path) -> None:
    folder = write_pyramid(tmp_path / "a", TISSUE, mean(TISSUE))
    for path in chunks_of(folder / "1"):
        path.write_bytes(b"damaged")
    assert "cannot be read" in misfit(opened(folder), 1)
    for path in chunks_of(folder / "0"):
        path.write_bytes(b"damaged")  # which is told where the block is read
    assert check_stored(opened(folder)) == ()


def nested(folder: Path) -> str:
    """Chunks in folders, which the metadata do not say: as zarr-python 2 wrote them before version 2.8."""
    stated = json.loads((folder / ".zarray").read_text())
    stated.pop("dimension_separator", None)
    (folder / ".zarray").write_text(json.dumps(stated))
    for path in chunks_of(folder):
        target = folder.joinpath(*path.name.split("."))
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    return '"dimension_separator": "/"'


def packed(folder: Path) -> str:
    for path in chunks_of(folder):
        path.with_name(f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    return "gunzip -r"


def flat(folder: Path) -> str:
    """Chunks named by dots where zarr 3 has folders."""
    for path in chunks_of(folder):
        path.rename(folder / path.relative_to(folder).as_posix().replace("/", "."))
    for part in folder.iterdir():
        if part.is_dir():
            shutil.rmtree(part)
    return '"separator": "."'


@pytest.mark.parametrize(("spoil", "version"), [(nested, 2), (packed, 2), (packed, 3), (flat, 3)])
@pytest.mark.parametrize("level", ["0", "1"])
def test_remedy__chunks_under_other_names__works(
    tmp_path: Path, spoil: Callable[[Path], str], version: int, level: str
) -> None:
    """The message says what to write or run; done to the letter, the volume is read as it was."""
    folder = write_pyramid(tmp_path / "a", TISSUE, mean(TISSUE), version)
    words = spoil(folder / level)
    if level == "0":
        with pytest.raises(VolumeError, match="none of the") as info:
            check_stored(opened(folder))
        remedy = info.value.remedy
    else:
        remedy = misfit(opened(folder), 1)
    assert words in remedy
    if words == "gunzip -r":
        command = re.search(r"\((gunzip -r .*)\)", remedy)
        assert command
        subprocess.run(command[1].split(), check=True)
    else:
        pair = re.search(r'write ("\w+": ".") into', remedy)
        file = re.search(r"(/\S+(\.zarray|zarr\.json))", remedy)
        assert pair
        assert file
        stated = json.loads(Path(file[1]).read_text())
        place = stated if version == 2 else stated["chunk_key_encoding"]["configuration"]
        place.update(json.loads(f"{{{pair[1]}}}"))
        Path(file[1]).write_text(json.dumps(stated))
    assert check_stored(opened(folder)) == ()
    assert misfit(opened(folder), 1) == ""
    assert np.array_equal(opened(folder).levels[0].channels[0][:, :, :], TISSUE)


def test_check_stored__finest_incomplete__warns(tmp_path: Path) -> None:
    """Half of a copy: the coarse level knows better, and without it the voxels at the gaps do."""
    for name, coarse in (("pair", mean(TISSUE)), ("single", None)):
        folder = write_pyramid(tmp_path / name, TISSUE, coarse)
        assert check_stored(opened(folder)) == ()
        shutil.rmtree(folder / "0/c/2")
        shutil.rmtree(folder / "0/c/3")
        (warning,) = check_stored(opened(folder))
        assert re.search(r"chunks that were looked for are not stored .* read as 0", warning)
        assert ("has other values" in warning) == (name == "pair")
        assert check_stored(opened(folder), Box((0, 0, 0), (16, 64, 64))) == ()
        if coarse is not None:
            assert misfit(opened(folder), 1) == ""


def test_check_stored__nothing_in_the_region__is_refused(tmp_path: Path) -> None:
    """A region of a copy where nothing has arrived; another region works, as the message says."""
    folder = write_pyramid(tmp_path / "a", TISSUE, None)
    shutil.rmtree(folder / "0/c/0")
    with pytest.raises(VolumeError, match=r"voxels \(0, 0, 0\) to \(8, 64, 64\) .* none of the 16 chunks") as info:
        check_stored(opened(folder), Box((0, 0, 0), (8, 64, 64)))
    assert "--region" in info.value.remedy
    assert check_stored(opened(folder), Box((8, 0, 0), (32, 64, 64))) == ()


@pytest.mark.parametrize("early", [False, True])
def test_check_stored__hdf5_chunks_never_written__warns(tmp_path: Path, early: bool) -> None:
    """A writer that was killed leaves chunks without storage, or with storage that holds the fill value."""
    path = tmp_path / "a.hdf"
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((8, 16, 16))
        plist.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY if early else h5py.h5d.ALLOC_TIME_INCR)
        space, group = h5py.h5s.create_simple(TISSUE.shape), file.create_group("volumes")
        h5py.h5d.create(group.id, b"raw", h5py.h5t.NATIVE_UINT8, space, plist)
        raw = file["volumes/raw"]
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
        raw[:16] = TISSUE[:16]
    (warning,) = check_stored(opened(path))
    assert "never written" in warning
    with h5py.File(path, "a") as file:
        file["volumes/raw"][16:] = TISSUE[16:]
    assert check_stored(opened(path)) == ()
    with h5py.File(path, "a") as file:
        file["volumes/raw"][:] = SPARSE
    assert check_stored(opened(path)) == ()


@pytest.mark.parametrize("chunks", [None, (8, 16, 16)])
def test_check_stored__hdf5_nothing_written__is_refused(tmp_path: Path, chunks: tuple[int, int, int] | None) -> None:
    with h5py.File(tmp_path / "a.hdf", "w") as file:
        raw = file.create_dataset("volumes/raw", shape=TISSUE.shape, dtype="u1", chunks=chunks)
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)
    with pytest.raises(VolumeError, match="is stored"):
        check_stored(opened(tmp_path / "a.hdf"))


def test_check_stored__shards__are_looked_into(tmp_path: Path) -> None:
    """Of a sharded array the chunk within its shard counts."""
    folder = tmp_path / "a"
    shape = {"shape": TISSUE.shape, "dtype": "u1", "chunks": (8, 16, 16), "shards": (16, 64, 64)}
    array = zarr.create_array(folder, fill_value=0, **shape, attributes={"resolution": [40, 4, 4], "units": ["nm"] * 3})
    array[:8] = TISSUE[:8]
    assert len(check_stored(opened(folder))) == 1
    array[:] = TISSUE
    assert check_stored(opened(folder)) == ()
