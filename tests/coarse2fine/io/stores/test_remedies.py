"""What messages about stores tell to do is done, with the options of c2f-infer, and then the volume is read."""

from __future__ import annotations

import http.server
import json
import re
import shutil
import threading
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import zarr
from stored_volumes import VOXELS, write_n5, write_ngff, write_precomputed, write_zarr

from canvas import Box
from coarse2fine.cli.infer import build_parser
from coarse2fine.errors import C2FError
from coarse2fine.io import Grid, open_store
from coarse2fine.io.stores.labelstore import LabelSpec, create_labels, open_labels
from coarse2fine.large.output import plan_output
from coarse2fine.large.source import Source

PLACE: dict[str, Any] = {"resolution": [40, 4, 4], "units": ["nm"] * 3}
N5 = {"resolution": [4, 4, 40], "units": ["nm"] * 3}
BLOCK = (4, 8, 8)


def read(path: Path | str, *words: str) -> np.ndarray:
    """The finest resolution, as c2f-infer opens it with these options; all others are looked at, too."""
    given = build_parser().parse_args(["-i", str(path), "-o", "out.zarr", *words])
    source = Source(given.input, given.array, given.spacing, given.unit, axes=given.axes, channel=given.channel)
    _, volumes = source.open()
    for volume in volumes:
        assert volume.channels[0][:1, :1, :1].shape == (1, 1, 1)
    return volumes[0].channels[0][:, :, :]


def refused(action: Callable[[], object], problem: str) -> str:
    """The remedy of an action that fails."""
    with pytest.raises(C2FError, match=problem) as caught:
        action()
    return caught.value.remedy


def options_in(remedy: str) -> list[list[str]]:
    """Options that a remedy gives with their value, each by itself."""
    return [[name, value] for name, value in re.findall(r"(--[a-z]+) ([\w/.]+)", remedy)]


def choices_in(remedy: str, option: str = "--array") -> list[list[str]]:
    """The same for remedies that list what an option may name."""
    _, is_there, names = remedy.removesuffix(".").partition(f"({option})")
    assert is_there, remedy
    return [[option, name.split(" (")[0]] for name in re.split(r", (?!\d)", names.partition(": ")[2])]


# --- options ---------------------------------------------------------------------------------------------------------


def a_level_is_missing(path: Path) -> None:
    write_n5(path / "em/s0", VOXELS, N5, BLOCK)
    (path / "em/attributes.json").write_text(json.dumps({"scales": [[1, 1, 1], [2, 2, 1]], **N5}))


def a_level_has_no_spacing(path: Path) -> None:
    write_ngff(path / "em")
    spoil(path / "em/zarr.json", lambda m: m["datasets"][0].pop("coordinateTransformations"))
    zarr.open_group(path, mode="a")


def a_level_is_of_another_type(path: Path) -> None:
    write_ngff(path / "em")
    shutil.rmtree(path / "em/r1")
    write_zarr(path / "em/r1", VOXELS[:, ::2, ::2].astype(np.int16))
    zarr.open_group(path, mode="a")


def spoil(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content = json.loads(path.read_text())
    change(content["attributes"]["ome"]["multiscales"][0])
    path.write_text(json.dumps(content))


WITH_VALUES: dict[str, tuple[Callable[[Path], object], str, list[str], list[str]]] = {
    "N5 lacks a level": (a_level_is_missing, "s1 does not exist", ["--array", "em"], []),
    "a level without spacing": (a_level_has_no_spacing, "does not say its spacing", ["--array", "em"], []),
    "a level of another type": (a_level_is_of_another_type, "differ from those of", ["--array", "em"], []),
    "no unit": (lambda path: write_ngff(path, units=""), "in which unit", [], []),
    "points in time that are channels": (
        lambda path: write_zarr(path, np.stack([VOXELS] * 2), attributes=PLACE, dimension_names=list("tzyx")),
        "2 points in time",
        [],
        [],
    ),
    "so many channels": (
        lambda path: write_zarr(path, VOXELS.transpose(2, 0, 1)[..., None].repeat(65, -1), attributes=PLACE,
                                dimension_names=list("zyxc")),
        "65 channels",
        [],
        [],
    ),
    "axes are not named": (lambda path: write_zarr(path, np.stack([VOXELS] * 2), attributes=PLACE), "no names of axes",
                           [], []),
}  # fmt: skip


@pytest.mark.parametrize("case", WITH_VALUES)
def test_remedy__option_with_its_value__is_read(tmp_path: Path, case: str) -> None:
    """Each option that the message spells out is added to the command as it is; it replaces the one that was there."""
    write, problem, given, more = WITH_VALUES[case]
    write(tmp_path / "a")
    options = options_in(refused(lambda: read(tmp_path / "a", *given), problem))
    assert options
    for option in options:
        kept = [] if option[0] in given else given
        assert read(tmp_path / "a", *kept, *option, *more).size


@pytest.mark.parametrize("unit", ["parsec", ""])
def test_remedy__units_that_are_named__are_read(tmp_path: Path, unit: str) -> None:
    """Each unit that the message lists is one that the option takes."""
    write_ngff(tmp_path / "a", units=unit)
    remedy = refused(lambda: read(tmp_path / "a"), "no unit of length|in which unit")
    units = re.findall(r"\b[nu]?mm?\b", remedy)
    assert units == ["nm", "um", "mm"]
    for name in units:
        assert np.array_equal(read(tmp_path / "a", "--unit", name), VOXELS)


# --- names of arrays -------------------------------------------------------------------------------------------------


def two_in_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        for name in ("em/raw", "other"):
            file.create_dataset(name, data=VOXELS).attrs["resolution"] = (40.0, 4.0, 4.0)
        file["volumes/raw"] = VOXELS[0]


def two_in_n5(path: Path) -> None:
    write_n5(path / "em/s0", VOXELS, N5, BLOCK)
    write_n5(path / "more/other", VOXELS, N5, BLOCK)
    (path / "empty").mkdir()
    for group in (path, path / "empty"):
        (group / "attributes.json").write_text("{}")


def two_in_zarr(path: Path) -> None:
    zarr.open_group(path / "empty", mode="w")
    zarr.open_group(path, mode="a")
    write_ngff(path / "em")
    write_zarr(path / "more/other", attributes=PLACE)


LISTS: dict[str, tuple[Callable[[Path], object], list[str], str]] = {
    "HDF5 of another layout": (two_in_hdf5, ["--array", "volumes/none"], "no dataset volumes/none"),
    "HDF5 with a picture": (two_in_hdf5, [], "not that of a volume"),
    "N5, wrong name": (two_in_n5, ["--array", "em2"], "no array em2"),
    "N5 group": (two_in_n5, [], "without arrays s0"),
    "N5, empty group": (two_in_n5, ["--array", "empty"], "without arrays s0"),
    "zarr, wrong name": (two_in_zarr, ["--array", "em/r7"], "no array em/r7"),
    "zarr group": (two_in_zarr, [], "without OME-NGFF"),
    "zarr, empty group": (two_in_zarr, ["--array", "empty"], "without OME-NGFF"),
}


@pytest.mark.parametrize("case", LISTS)
def test_remedy__arrays_that_are_listed__each_is_read(tmp_path: Path, case: str) -> None:
    write, given, problem = LISTS[case]
    write(tmp_path / "a")
    choices = choices_in(refused(lambda: read(tmp_path / "a", *given), problem))
    assert len(choices) == 2
    for choice in choices:
        assert np.array_equal(read(tmp_path / "a", *choice), VOXELS)


def test_remedy__no_voxels_or_array__another_is_read(tmp_path: Path) -> None:
    """An empty array beside a good one, an archive that is not looked into, and a store that holds none."""
    two_in_zarr(tmp_path / "a")
    zarr.create_array(tmp_path / "a/nothing", shape=(0, 4, 4), dtype="u1", attributes=PLACE)
    assert "another array (--array)" in refused(lambda: read(tmp_path / "a", "--array", "nothing"), "holds no voxels")
    assert np.array_equal(read(tmp_path / "a", "--array", "more/other"), VOXELS)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for file in (tmp_path / "a").rglob("*.*"):
            archive.write(file, file.relative_to(tmp_path / "a"))
    remedy = refused(lambda: read(tmp_path / "a.zip"), "without OME-NGFF")
    assert "Name an image or array in it (--array), by its path from the store's top" in remedy
    assert read(tmp_path / "a.zip", "--array", "more/other").shape == VOXELS.shape
    zarr.open_group(tmp_path / "b", mode="w")
    assert "name another store" in refused(lambda: read(tmp_path / "b"), "without OME-NGFF")
    assert np.array_equal(read(tmp_path / "a/em"), VOXELS)


@pytest.mark.parametrize("name", ["em/r0", "em/r1"])
def test_open_store__resolution_of_an_image_in_a_group__has_its_spacing(tmp_path: Path, name: str) -> None:
    two_in_zarr(tmp_path / "a")
    image, one = (open_store(str(tmp_path / "a"), array=path).levels for path in ("em", name))
    assert [volume.grid for volume in one] == [image[int(name[-1])].grid]


@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize("group", ["em", "setup0/timepoint0"])
def test_open_store__n5_level_by_itself__has_its_spacing(tmp_path: Path, group: str, level: int) -> None:
    """Factors of the group, or of the one above it, count for each of its arrays."""
    for step in (1, 2):
        write_n5(tmp_path / f"{group}/s{step - 1}", VOXELS[:, ::step, ::step], {}, BLOCK)
    factors, place = {"downsamplingFactors": [[1, 1, 1], [2, 2, 1]]}, tmp_path / group
    for folder, stated in ((place.parent, factors), (place, N5 | (factors if group == "em" else {}))):
        (folder / "attributes.json").write_text(json.dumps(stated))
    found = open_store(str(tmp_path), array=f"{group}/s{level}").levels
    assert [volume.grid for volume in found] == [open_store(str(tmp_path), array=group).levels[level].grid]
    assert found[0].grid.spacing == (40, 4 * 2**level, 4 * 2**level)


def test_remedy__n5_levels_in_different_units__one_is_read(tmp_path: Path) -> None:
    """Corrected, all are; the finest one by itself is in any case, and so is all with a unit that is given."""
    for step, unit in ((1, "nm"), (2, "um")):
        stated = {"resolution": [4 * step, 4 * step, 40], "units": [unit] * 3}
        write_n5(tmp_path / f"em/s{step - 1}", VOXELS[:, ::step, ::step], stated, BLOCK)
    (tmp_path / "attributes.json").write_text("{}")
    remedy = refused(lambda: read(tmp_path, "--array", "em"), "units of em/s1")
    assert "Correct the units" in remedy
    (option,) = options_in(remedy)
    for words in (option, ["--array", "em", "--unit", "nm"]):
        assert np.array_equal(read(tmp_path, *words), VOXELS)
    path = tmp_path / "em/s1/attributes.json"
    path.write_text(path.read_text().replace("um", "nanometer"))
    assert np.array_equal(read(tmp_path, "--array", "em"), VOXELS)


# --- places ----------------------------------------------------------------------------------------------------------


def test_remedy__schemes_that_are_listed__lead_to_the_store(tmp_path: Path) -> None:
    """A path and file:// do; the others are understood as addresses."""
    write_zarr(tmp_path / "a", attributes=PLACE)
    remedy = refused(lambda: read(f"ftp://{tmp_path}/a"), "ftp://")
    schemes = re.findall(r"\w+://", remedy)
    assert "Use a path" in remedy
    assert "file://" in schemes
    for prefix in ("", "file://"):
        assert np.array_equal(read(f"{prefix}{tmp_path}/a"), VOXELS)
    for scheme in set(schemes) - {"file://"}:
        assert plan_output(f"{scheme}bucket/out.zarr", objects=False, overwrite=False, inputs="a", work=tmp_path)
    assert refused(lambda: create_labels(spec("ftp://host/out")), "ftp://") == remedy


@pytest.mark.parametrize("name", ["a.hdf", "a.zip"])
def test_remedy__file_on_a_server__downloaded(tmp_path: Path, name: str) -> None:
    """What is read from disks only is read once it is there; here the server is a disk."""
    source = tmp_path / "server" / name
    source.parent.mkdir()
    two_in_hdf5(source) if name == "a.hdf" else zip_up(write_zarr(tmp_path / "other", attributes=PLACE), source)
    assert refused(lambda: read(f"http://127.0.0.1:9/{name}"), "from disks only") == "Download it first."
    urllib.request.urlretrieve(source.as_uri(), tmp_path / name)
    assert np.array_equal(read(tmp_path / name, *(["--array", "other"] if name == "a.hdf" else [])), VOXELS)


def zip_up(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        for file in folder.rglob("*"):
            archive.write(file, file.relative_to(folder))


def test_remedy__path_that_is_none__top_folder_is_read(tmp_path: Path) -> None:
    write_zarr(tmp_path / "a", attributes=PLACE)
    assert refused(lambda: read(tmp_path / "b"), "does not exist") == "Check the path."
    file = tmp_path / "a/zarr.json"
    assert refused(lambda: read(f"zarr://{file}"), "neither a store") == "Name a store's top folder."
    assert "top folder holds zarr.json" in refused(lambda: read(tmp_path / "a/c"), "metadata found")
    assert np.array_equal(read(file.parent), VOXELS)


# --- metadata and voxels that are corrected, copied or converted -----------------------------------------------------


def set_in(name: str, **members: Any) -> Callable[[Path], object]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps(content | members))

    return change


def without_a_chunk_of(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:9])


def zarr_with(**attributes: Any) -> Callable[[Path], object]:
    return lambda folder: set_in("zarr.json", attributes=PLACE | attributes)(folder)


def n5_with(**members: Any) -> Callable[[Path], object]:
    return set_in("attributes.json", **members)


def overwrite_voxels(path: Path) -> None:
    """Damages the first chunk of a dataset."""
    with h5py.File(path) as file:
        chunk = file["volumes/raw"].id.get_chunk_info(0)
    content = path.read_bytes()
    path.write_bytes(content[: chunk.byte_offset] + bytes(chunk.size) + content[chunk.byte_offset + chunk.size :])


def resolution_of_two(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["volumes/raw"].attrs["resolution"] = (40.0, 4.0)


def write_hdf5(path: Path) -> None:
    with h5py.File(path, "w") as file:
        raw = file.create_dataset("volumes/raw", data=VOXELS, chunks=BLOCK, compression="gzip")
        raw.attrs["resolution"] = (40.0, 4.0, 4.0)


MENDED: dict[str, tuple[str, Callable[[Path], object], str, str]] = {
    "offset": (
        "zarr 2",
        set_in(".zattrs", offset=[0, float("nan"), 0]),
        "offset is not a finite number",
        "Correct its metadata",
    ),
    "spacing": ("zarr", zarr_with(resolution=[40, 0, 4]), "not positive", "Correct its metadata"),
    "spacing of two": ("zarr", zarr_with(resolution=[40, 4]), "not a list of 3 numbers", "Correct it"),
    "text": ("zarr", zarr_with(resolution="x"), "resolution", "Correct this member"),
    "no object": ("zarr", set_in("zarr.json", attributes=[]), "no JSON object", "Correct this member"),
    "shape": ("zarr", set_in("zarr.json", shape=[2**40] * 3), "no volume has so many|voxels", "Correct its metadata"),
    "no JSON": ("zarr", lambda folder: (folder / "zarr.json").write_text("{"), "valid JSON", "Correct it, or copy"),
    "a list": ("zarr", lambda folder: (folder / "zarr.json").write_text("[]"), "not a JSON object", "Correct it, or"),
    "a chunk": ("zarr", without_a_chunk_of("c/0/0/0"), "cannot be read", "copy or download the store again"),
    "unknown codec": (
        "zarr",
        set_in("zarr.json", codecs=[{"name": "crc24"}]),
        "cannot be read",
        "of a kind that tensorstore does not read: rewrite the array",
    ),
    "transform": (
        "ngff",
        lambda folder: spoil(
            folder / "zarr.json", lambda m: m["datasets"][1]["coordinateTransformations"][0].update(type="affine")
        ),
        "of type 'affine'",
        "correct its metadata",
    ),
    "scale of two": (
        "ngff",
        lambda folder: spoil(
            folder / "zarr.json", lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[4, 4])
        ),
        "not a list of 3 numbers",
        "Give one for each axis of the image",
    ),
    "a level": ("ngff", lambda folder: shutil.rmtree(folder / "r0"), "does not exist", "the store may be incomplete"),
    "factors": ("n5", n5_with(downsamplingFactors=[[1, 1, 1]]), "downsamplingFactors", "Correct it"),
    "block": ("n5", without_a_chunk_of("0/0/0"), "cannot be read", "copy or download the store again"),
    "HDF5": ("HDF5", without_a_chunk_of("."), "cannot be read", "copy or download it again"),
    "HDF5 voxels": ("HDF5", overwrite_voxels, "cannot be read", "copy or download it again"),
    "HDF5 resolution": ("HDF5", resolution_of_two, "not a list of 3 numbers", "Correct it"),
    "info": ("precomputed", set_in("info", scales=[]), "scales", "Correct this member"),
}
WRITERS: dict[str, Callable[[Path], object]] = {
    "zarr": lambda path: write_zarr(path, attributes=PLACE),
    "zarr 2": lambda path: write_zarr(path, version=2, attributes=PLACE),
    "ngff": write_ngff,
    "n5": lambda path: write_n5(path, VOXELS, N5, BLOCK),
    "precomputed": write_precomputed,
    "HDF5": write_hdf5,
}


def copy(old: Path, new: Path) -> None:
    shutil.copytree(old, new) if old.is_dir() else shutil.copy(old, new)


@pytest.mark.parametrize("case", MENDED)
def test_remedy__damage__undone(tmp_path: Path, case: str) -> None:
    """What the message names is what is wrong, and nothing else: as it was before, the store is read."""
    kind, damage, problem, remedy = MENDED[case]
    path, kept = tmp_path / "a", tmp_path / "b"
    WRITERS[kind](path)
    copy(path, kept)
    damage(path)
    assert remedy in refused(lambda: read(path), problem)
    path.rename(tmp_path / "bad")
    copy(kept, path)
    assert np.array_equal(read(path), VOXELS)


@pytest.mark.parametrize("dtype", ["float16", "int64"])
def test_remedy__type_of_voxels__converted(tmp_path: Path, dtype: str) -> None:
    """Every type that the message names is read."""
    write_zarr(tmp_path / "a", VOXELS.astype(dtype), chunk=32, attributes=PLACE)
    remedy = refused(lambda: read(tmp_path / "a"), f"type {dtype}")
    types = re.findall(r"u?int\d+|float\d+", remedy)
    assert len(types) >= 3
    for name in types:
        voxels = VOXELS.astype(dtype).astype(name)
        write_zarr(tmp_path / name, voxels, chunk=32, attributes=PLACE)
        assert np.array_equal(read(tmp_path / name), voxels)


def test_remedy__image_and_labels_mixed_up__the_other_is_read(tmp_path: Path) -> None:
    write_ngff(tmp_path / "labels", **{"image-label": {}})
    write_zarr(tmp_path / "a", VOXELS.astype(np.float32), attributes=PLACE)
    assert "Name the image" in refused(lambda: read(tmp_path / "labels"), "label file given as image")
    assert read(tmp_path / "a").size
    assert "Labels are integers: name another" in refused(
        lambda: open_store(str(tmp_path / "a"), as_labels=True), "are no labels"
    )
    assert open_store(str(tmp_path / "labels"), as_labels=True).levels
    assert refused(lambda: open_store(str(tmp_path / "a"), spacing=(1.0, 1.0)), "not three numbers") == (  # type: ignore[arg-type]
        "Give three (--spacing)."
    )
    assert np.array_equal(read(tmp_path / "a", "--spacing", "40,4,4"), VOXELS)


# --- results ---------------------------------------------------------------------------------------------------------


def spec(where: Path | str, form: Any = "zarr") -> LabelSpec:
    grid = Grid((8, 8, 8), (40.0, 4.0, 4.0), "nm")
    return LabelSpec(str(where), form, grid, "uint8", (8, 8, 8), ((1, 1, 1),), "labels")


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server that has nothing."""

    class Quiet(http.server.BaseHTTPRequestHandler):
        def log_message(self, *words: object) -> None:
            pass

        def do_GET(self) -> None:
            self.send_error(404)

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Quiet) as host:
        thread = threading.Thread(target=host.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield f"http://127.0.0.1:{host.server_port}"
        host.shutdown()
        thread.join()


@pytest.mark.parametrize("case", ["other files", "a file", "another store", "nothing", "a server"])
def test_remedy__place_of_labels__new_folder_takes_them(tmp_path: Path, server: str, case: str) -> None:
    """Wherever they cannot be written, they can in the folder that the message asks for."""
    there = tmp_path / "there"
    where, problem, remedy = {
        "other files": (there, "holds other files, such as notes", "Name a new or empty folder"),
        "a file": (there / "notes", "Not a directory", "Name a folder"),
        "another store": (there / "store", "cannot write", "name a new folder"),
        "nothing": (there / "none", "cannot write", "name a new folder, or start the run anew"),
        "a server": (f"{server}/a", "cannot write", "use a folder or a bucket"),
    }[case]
    there.mkdir()
    (there / "notes").write_text("x")
    write_zarr(there / "store/0", VOXELS.astype(np.int16))
    action = open_labels if case == "nothing" else create_labels
    assert remedy in refused(lambda: action(spec(where)), problem)
    create_labels(spec(tmp_path / "new"))
    open_labels(spec(tmp_path / "new")).write(Box((0, 0, 0), (8, 8, 8)), np.ones((8, 8, 8), np.uint8))


def test_remedy__result_of_a_run_that_was_cut_short__is_read_when_it_is_finished(tmp_path: Path) -> None:
    """The same run makes its store again, which keeps what is there, and ends."""
    there, action = spec(tmp_path / "a", "precomputed"), lambda: open_store(str(tmp_path / "a"), as_labels=True)
    create_labels(there)
    assert refused(action, "has not finished") == "Finish it: run the same command again."
    create_labels(there)
    open_labels(there).finish()
    assert action().levels[0].grid.shape == (8, 8, 8)
