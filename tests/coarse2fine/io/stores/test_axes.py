"""Axes by their names: lists of lengths go with the axes that the metadata name, wherever these stand."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from itertools import permutations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import tensorstore as ts
import zarr

from canvas import Box
from coarse2fine.errors import VolumeError
from coarse2fine.io import Scales, is_store, open_store

VOXELS = np.random.default_rng(0).integers(0, 255, (4, 6, 10), dtype=np.uint8)
LENGTHS = {"z": 40.0, "y": 5.0, "x": 4.0}
OFFSETS = {"z": 80.0, "y": 10.0, "x": 12.0}
FACTORS = {"z": 1, "y": 2, "x": 3}
ORDERS = ["".join(order) for order in permutations("zyx")]


def turned(order: str, voxels: np.ndarray = VOXELS) -> np.ndarray:
    return voxels.transpose(["zyx".index(axis) for axis in order])


def listed(values: dict[str, Any], order: str) -> list[Any]:
    return [values[axis] for axis in order]


def write_n5(folder: Path, order: str, stated: dict[str, Any], voxels: np.ndarray = VOXELS) -> None:
    array = turned(order, voxels)
    metadata = {"dimensions": array.shape, "blockSize": (4, 4, 4), "dataType": "uint8", "compression": {"type": "gzip"}}
    spec = {"driver": "n5", "kvstore": f"file://{folder}/", "metadata": metadata}
    ts.open(spec, create=True).result()[...] = array
    (folder / "attributes.json").write_text(json.dumps(metadata | stated))


def assert_read(
    scales: Scales, spacing: dict[str, float] | None = None, offset: dict[str, float] | None = None
) -> None:
    volume = scales.levels[0]
    assert np.array_equal(volume.channels[0][:, :, :], VOXELS)
    assert volume.grid.spacing == tuple(listed(spacing or LENGTHS, "zyx"))
    assert volume.grid.origin == tuple(listed(offset or dict.fromkeys("zyx", 0.0), "zyx"))
    assert volume.grid.unit == "nm"


@pytest.mark.parametrize("order", ORDERS)
def test_n5__axes_in_any_order__as_tensorstore_reads_them(tmp_path: Path, order: str) -> None:
    """Spacing, unit, offset and factors go by name; tensorstore says which length belongs to which axis."""
    stated = {"axes": list(order), "resolution": listed(LENGTHS, order), "units": ["nm"] * 3}
    stated["offset"] = listed(OFFSETS, order)
    write_n5(tmp_path / "a.n5", order, stated)
    array = ts.open({"driver": "n5", "kvstore": f"file://{tmp_path}/a.n5/"}).result()
    units = {label: unit.multiplier for label, unit in zip(array.domain.labels, array.dimension_units, strict=True)}
    assert_read(open_store(str(tmp_path / "a.n5")), units, OFFSETS)
    stated |= {"downsamplingFactors": listed(FACTORS, order)}
    write_n5(tmp_path / "b.n5", order, stated)
    assert_read(open_store(str(tmp_path / "b.n5")), {axis: LENGTHS[axis] * FACTORS[axis] for axis in "zyx"}, OFFSETS)


@pytest.mark.parametrize("order", ["zyx", "xyz", "yzx"])
@pytest.mark.parametrize("key", ["scales", "downsamplingFactors"])
@pytest.mark.parametrize("named", ["group", "array"])
def test_n5__group_lists_factors__by_name(tmp_path: Path, order: str, key: str, named: str) -> None:
    """Those of the group follow its own axes, or else its arrays'."""
    group = {key: [[1, 1, 1], listed(FACTORS, order)], "resolution": listed(LENGTHS, order), "units": "nm"}
    axes = {"axes": list(order)}
    for level, step in enumerate(((1, 1, 1), tuple(FACTORS[axis] for axis in "zyx"))):
        cut = tuple(slice(None, None, s) for s in step)
        write_n5(tmp_path / f"a.n5/s{level}", order, axes if named == "array" else {}, VOXELS[cut])
    (tmp_path / "a.n5/attributes.json").write_text(json.dumps(group | (axes if named == "group" else {})))
    scales = open_store(str(tmp_path / "a.n5"))
    assert_read(scales)
    assert scales.levels[1].grid.spacing == (40.0, 10.0, 12.0)
    # The first voxel of the level is the mean of several, whose middle is its place.
    middles = [LENGTHS[axis] * np.arange(FACTORS[axis]).mean() for axis in "zyx"]
    assert scales.levels[1].grid.origin == pytest.approx(middles)


def test_n5__big_data_viewer__setup_says_the_factors(tmp_path: Path) -> None:
    """The remedy lists what there is; the group above has the factors, the user the spacing."""
    for level, step in enumerate((1, 2)):
        write_n5(tmp_path / f"a.n5/setup0/timepoint0/s{level}", "xyz", {}, VOXELS[:, ::step, ::step])
    (tmp_path / "a.n5/attributes.json").write_text('{"n5": "2.5.0"}')
    (tmp_path / "a.n5/setup0/attributes.json").write_text(
        json.dumps({"downsamplingFactors": [[1, 1, 1], [2, 2, 1]], "dataType": "uint8"})
    )
    (tmp_path / "a.n5/setup0/timepoint0/attributes.json").write_text(
        json.dumps({"multiScale": True, "resolution": [4.0, 5.0, 40.0]})
    )
    with pytest.raises(VolumeError, match="--array") as info:
        open_store(str(tmp_path / "a.n5"))
    name = info.value.remedy.rpartition(": ")[2].rstrip(".")
    with pytest.raises(VolumeError, match="--unit"):
        open_store(str(tmp_path / "a.n5"), array=name)
    scales = open_store(str(tmp_path / "a.n5"), array=name, unit="nm")
    assert_read(scales)
    assert scales.levels[1].grid.spacing == (40, 10, 8)


def test_n5__openorganelle__transform_names_its_own_axes(tmp_path: Path) -> None:
    """In the array or in the group's list of arrays; in whatever order."""
    transform = {"axes": ["y", "z", "x"], "scale": listed(LENGTHS, "yzx"), "translate": listed(OFFSETS, "yzx")}
    transform["units"] = ["nm"] * 3
    write_n5(tmp_path / "a.n5", "xyz", {"transform": transform})
    assert_read(open_store(str(tmp_path / "a.n5")), offset=OFFSETS)
    write_n5(tmp_path / "b.n5/s0", "xyz", {})
    listed_there = {"multiscales": [{"datasets": [{"path": "s0", "transform": transform}]}]}
    (tmp_path / "b.n5/attributes.json").write_text(json.dumps(listed_there))
    assert_read(open_store(str(tmp_path / "b.n5")), offset=OFFSETS)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", ["dimension_names", "_ARRAY_DIMENSIONS", "axis_names"])
def test_plain_zarr__named_axes__go_by_name(tmp_path: Path, order: str, name: str) -> None:
    """Version 3 itself, xarray and funlib name axes; funlib's lengths follow them."""
    stated: dict[str, Any] = {
        "resolution": listed(LENGTHS, order),
        "offset": listed(OFFSETS, order),
        "units": ["nm"] * 3,
    }
    names = list(order.upper() if name == "dimension_names" else order)
    options: dict[str, Any] = {"zarr_format": 3, "dimension_names": names} if name == "dimension_names" else {}
    options = options or {"zarr_format": 2}
    stated |= {} if name == "dimension_names" else {name: names}
    zarr.create_array(tmp_path / "a", data=turned(order), chunks=(4, 4, 4), attributes=stated, **options)
    assert_read(open_store(str(tmp_path / "a")), offset=OFFSETS)
    given = {"z": 1.0, "y": 2.0, "x": 3.0}
    assert_read(open_store(str(tmp_path / "a"), spacing=(1, 2, 3), unit="nm"), given, OFFSETS)


@pytest.mark.parametrize("names", [["depth", "row", "column"], ["z", None, None], ["a", "z", "y"]])
def test_remedy__unknown_dimension_names__overridden(tmp_path: Path, names: list[str | None]) -> None:
    """What nobody can know must be said; the message says how."""
    zarr.create_array(tmp_path / "a", data=turned("xzy"), chunks=(4, 4, 4), dimension_names=names)
    given: dict[str, Any] = {"spacing": tuple(listed(LENGTHS, "zyx")), "unit": "nm"}
    with pytest.raises(VolumeError, match=r"z, y and x are needed") as info:
        open_store(str(tmp_path / "a"), **given)
    assert "--axes zyx" in info.value.remedy
    assert_read(open_store(str(tmp_path / "a"), axes="xzy", **given))
    for wrong in ("zy", "zyxq", "zzyx", "tzyx"):
        with pytest.raises(VolumeError, match="axes"):
            open_store(str(tmp_path / "a"), axes=wrong, **given)


@pytest.mark.parametrize("order", ["zyx", "xyz", "czyx", "yxcz"])
@pytest.mark.parametrize("version", [2, 3])
def test_ngff__units_and_transforms__by_axis(tmp_path: Path, order: str, version: int) -> None:
    """Other units per axis; scale and translation of a level, then those of the image."""
    units = {"z": "micrometer", "y": "nanometer", "x": "angstrom"}
    own = {"z": 0.02, "y": 2.5, "x": 20.0, "c": 1.0}
    shift = {"z": 0.01, "y": 1.0, "x": 10.0, "c": 0.0}
    voxels = turned(order.replace("c", ""))
    voxels = np.expand_dims(voxels, order.index("c")) if "c" in order else voxels
    zarr.create_array(tmp_path / "a/0", data=voxels, chunks=(4,) * len(order), zarr_format=version)
    listing = [
        {"type": "scale", "scale": listed(own, order)},
        {"type": "translation", "translation": listed(shift, order)},
    ]
    twice = {"type": "scale", "scale": [2.0] * len(order)}
    more = {"type": "translation", "translation": listed({"z": 0.06, "y": 8, "x": 100, "c": 0}, order)}
    image = {
        "axes": [{"name": axis, "type": "space", "unit": units.get(axis)} for axis in order],
        "datasets": [{"path": "0", "coordinateTransformations": listing}],
        "coordinateTransformations": [twice, more],
    }
    for axis in image["axes"]:
        if axis["name"] == "c":
            axis.update(type="channel", name="stain", unit=None)
    group = zarr.open_group(tmp_path / "a", mode="a", zarr_format=version)
    group.attrs.update(
        {"multiscales": [image]} if version == 2 else {"ome": {"version": "0.5", "multiscales": [image]}}
    )
    offset = {"z": 2 * 10.0 + 60, "y": 2 * 1.0 + 8, "x": 2 * 1.0 + 10}
    assert_read(open_store(str(tmp_path / "a")), offset=offset)


def test_ngff__arrays_name_their_axes_otherwise__asks(tmp_path: Path) -> None:
    """Image and array contradict each other: one of them is right, and the user knows which."""
    zarr.create_array(tmp_path / "a/0", data=turned("xyz"), chunks=(4, 4, 4), dimension_names=["x", "y", "z"])
    scale = [{"type": "scale", "scale": listed(LENGTHS, "xyz")}]
    axes = [{"name": axis, "unit": "nanometer"} for axis in "zyx"]
    image = {"axes": axes, "datasets": [{"path": "0", "coordinateTransformations": scale}]}
    zarr.open_group(tmp_path / "a", mode="a").attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    with pytest.raises(VolumeError, match="calls its axes x, y, z, but its image z, y, x") as info:
        open_store(str(tmp_path / "a"))
    assert "--axes zyx or --axes xyz" in info.value.remedy
    assert_read(open_store(str(tmp_path / "a"), axes="xyz"))


@pytest.mark.parametrize("version", ["0.1", "0.2", None])
def test_ngff__first_versions__with_spacing_given(tmp_path: Path, version: str | None) -> None:
    """Versions 0.1 and 0.2 are (t, c, z, y, x) and say no spacing: what the message asks for is enough."""
    for level, step in enumerate((1, 2)):
        zarr.create_array(tmp_path / f"a/{level}", data=VOXELS[None, None, :, ::step, ::step], zarr_format=2)
    image = {"datasets": [{"path": "0"}, {"path": "1"}]} | ({"version": version} if version else {})
    zarr.open_group(tmp_path / "a", mode="a", zarr_format=2).attrs["multiscales"] = [image]
    with pytest.raises(VolumeError, match=r"\(--spacing, --unit\)"):
        open_store(str(tmp_path / "a"))
    given: dict[str, Any] = {"spacing": tuple(listed(LENGTHS, "zyx")), "unit": "nm"}
    scales = open_store(str(tmp_path / "a"), **given)
    assert_read(scales)
    assert scales.levels[1].grid.spacing == (40, 10, 8)
    assert_read(open_store(str(tmp_path / "a"), array="0", **given))


def test_ngff__axes_missing__are_named(tmp_path: Path) -> None:
    zarr.create_array(tmp_path / "a/0", data=VOXELS)
    scale = [{"type": "scale", "scale": listed(LENGTHS, "zyx")}]
    image = {"datasets": [{"path": "0", "coordinateTransformations": scale}]}
    zarr.open_group(tmp_path / "a", mode="a").attrs["ome"] = {"version": "0.5", "multiscales": [image]}
    with pytest.raises(VolumeError, match="lack axes") as info:
        open_store(str(tmp_path / "a"))
    assert "--axes zyx" in info.value.remedy
    assert_read(open_store(str(tmp_path / "a"), axes="zyx", unit="nm"))


CHANNELS = np.stack([VOXELS, VOXELS // 2, VOXELS // 3])


@pytest.mark.parametrize("order", ["czyx", "zyxc", "tczyx", "tzyxc"])
@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_channel__one_of_three__is_the_volume(tmp_path: Path, order: str, kind: str) -> None:
    """All channels, or the one that is named, counted from 0; others are refused with the number that there are."""
    voxels = CHANNELS if order.index("c") < order.index("z") else np.moveaxis(CHANNELS, 0, -1)
    voxels = voxels[None] if "t" in order else voxels
    where = write_array(tmp_path, kind, voxels)
    given: dict[str, Any] = {
        "axes": order,
        "array": "a" if kind == "hdf5" else None,
        "spacing": (1, 1, 1),
        "unit": "nm",
    }
    assert len(open_store(where, **given).levels[0].channels) == 3
    for channel in range(3):
        scales = open_store(where, channel=channel, **given)
        (array,) = scales.levels[0].channels
        assert np.array_equal(array[1:, 2:5, :], CHANNELS[channel][1:, 2:5, :])
        assert scales.storage[0].stored(Box.whole(VOXELS.shape))
    with pytest.raises(VolumeError, match="no channel 3") as info:
        open_store(where, channel=3, **given)
    assert "It has 3" in info.value.remedy
    with pytest.raises(VolumeError, match="no names of axes") as info:
        open_store(where, **given | {"axes": None})
    assert "--axes" in info.value.remedy


def write_array(folder: Path, kind: str, voxels: np.ndarray, attributes: dict[str, Any] | None = None) -> str:
    if kind == "zarr":
        zarr.create_array(folder / "a.zarr", data=voxels, zarr_format=2, attributes=attributes)
        return str(folder / "a.zarr")
    with h5py.File(folder / "a.h5", "w") as file:
        dataset = file.create_dataset("a", data=voxels, chunks=True)
        dataset.attrs.update(attributes or {})
    return str(folder / "a.h5")


@pytest.mark.parametrize("where", [(0, 1), (0, 4), (0,), (3,)])
@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
def test_open_store__single_time_and_channel__are_left_out(tmp_path: Path, where: tuple[int, ...], kind: str) -> None:
    """Arrays of four and five axes without names, of which only three have a length."""
    path = write_array(tmp_path, kind, np.expand_dims(VOXELS, where))
    given: dict[str, Any] = {"array": "a" if kind == "hdf5" else None, "spacing": tuple(LENGTHS.values()), "unit": "nm"}
    assert_read(open_store(path, **given))


@pytest.mark.parametrize("order", ["zyx", "xyz", "cyzx"])
@pytest.mark.parametrize("kind", ["zarr", "hdf5"])
@pytest.mark.parametrize("size", ["resolution", "voxel_size"])
def test_funlib__offset_and_units__by_axis_names(tmp_path: Path, order: str, kind: str, size: str) -> None:
    """Lengths are of the axes in space only; a channel is marked by ^."""
    space = order.replace("c", "")
    voxels = turned(space)[None] if "c" in order else turned(space)
    names = [f"{axis}^" if axis == "c" else axis for axis in order]
    stated = {size: [v / 1000 for v in listed(LENGTHS, space)], "offset": [v / 1000 for v in listed(OFFSETS, space)]}
    path = write_array(tmp_path, kind, voxels, stated | {"units": ["um"] * 3, "axis_names": names})
    assert_read(open_store(path, array="a" if kind == "hdf5" else None), offset=OFFSETS)


@pytest.mark.parametrize("kind", ["axistags", "labels"])
def test_hdf5__other_programs__name_axes_and_lengths(tmp_path: Path, kind: str) -> None:
    """Tags of ilastik or HDF5's own labels, and Fiji's lengths."""
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("exported_data", data=turned("xyz")[None, ..., None])
        if kind == "axistags":
            dataset.attrs["axistags"] = json.dumps({"axes": [{"key": key} for key in "txyzc"]})
        for number, name in enumerate("txyzc" if kind == "labels" else ""):
            dataset.dims[number].label = name
        dataset.attrs["element_size_um"] = [0.004, 0.005, 0.04]
    assert_read(open_store(str(tmp_path / "a.h5"), array="exported_data"))


@pytest.mark.parametrize("top", ["", "a.zarr/"])
@pytest.mark.parametrize("write", ["zarr", "n5"])
def test_zip__store_or_folder_in_it__is_read(tmp_path: Path, top: str, write: str) -> None:
    """As zarr-python's ZipStore writes it, or as somebody packs a folder; by its name it is a store."""
    folder = tmp_path / "store"
    if write == "zarr":
        stated = {"resolution": listed(LENGTHS, "zyx"), "offset": listed(OFFSETS, "zyx"), "units": ["nm"] * 3}
        zarr.create_array(folder, data=VOXELS, chunks=(4, 4, 4), attributes=stated)
    else:
        stated = {
            "axes": list("xyz"),
            "resolution": listed(LENGTHS, "xyz"),
            "offset": listed(OFFSETS, "xyz"),
            "units": ["nm"] * 3,
        }
        write_n5(folder, "xyz", stated)
    path = tmp_path / "a.zarr.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, f"{top}{file.relative_to(folder)}")
    assert is_store(str(path))
    scales = open_store(str(path))
    assert_read(scales, offset=OFFSETS)
    assert (scales.name, open_store(scales.where).identity) == ("a", scales.identity)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(VolumeError):
        open_store(str(path))


def gives(error: Callable[[], Any]) -> str:
    with pytest.raises(VolumeError) as info:
        error()
    return info.value.remedy


def test_remedy__group_without_image__lists_arrays(tmp_path: Path) -> None:
    """Images and arrays below a group are listed, and the first of them can be read."""
    stated = {"resolution": listed(LENGTHS, "zyx"), "units": ["nm"] * 3}
    zarr.open_group(tmp_path / "a", mode="w")
    zarr.create_array(tmp_path / "a/volumes/raw", data=VOXELS, attributes=stated)
    for array in (None, "volumes", "volumes/none"):
        remedy = gives(lambda array=array: open_store(str(tmp_path / "a"), array=array))
        assert remedy == "Name one in it (--array): volumes/raw."
    assert_read(open_store(str(tmp_path / "a"), array="volumes/raw"))
