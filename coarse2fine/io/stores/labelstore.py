"""Label volumes that many processes write block by block, at several resolutions."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import tensorstore as ts
from numpy.typing import NDArray

from canvas import Box, Triple, triple
from coarse2fine.errors import OutputError, VolumeError
from coarse2fine.io.stores.ngff import group_metadata
from coarse2fine.io.stores.precomputed import INFO, UNFINISHED, label_info
from coarse2fine.io.stores.tensors import Store, open_place, parse_place, reading, writing
from coarse2fine.io.volume import Grid, Spacing

LABEL_TYPES = ("uint8", "uint16", "uint32", "uint64")

_GROUP = "zarr.json"
_CODECS = (
    {"name": "bytes", "configuration": {"endian": "little"}},
    {"name": "zstd", "configuration": {"level": 3, "checksum": True}},
)


@dataclass(frozen=True, slots=True)
class LabelSpec:
    """What a label volume is to be; the same in all processes that write it.

    Attributes:
        where: Folder or URL (file, s3, gs). A relative path is relative to each process's own folder.
        format: "zarr" for an OME-NGFF 0.5 image in zarr v3, "precomputed" for neuroglancer's format.
        grid: Grid of the finest level.
        dtype: One of LABEL_TYPES.
        chunk: Voxels (z, y, x) of a chunk, the same on all levels.
        factors: Voxels (z, y, x) of the finest level that one voxel of each level stands for; (1, 1, 1) first.
        name: Name of the volume.
        shard: Voxels (z, y, x) of a file of zarr v3 that holds whole chunks; None for a file for each chunk.

    Raises:
        ValueError: If the values do not make a label volume.
    """

    where: str
    format: Literal["zarr", "precomputed"]
    grid: Grid
    dtype: str
    chunk: Triple
    factors: tuple[Triple, ...]
    name: str
    shard: Triple | None = None

    def __post_init__(self) -> None:
        if self.format not in ("zarr", "precomputed"):
            raise ValueError(f"no label format {self.format!r}")
        if self.dtype not in LABEL_TYPES:
            raise ValueError(f"labels cannot be of type {self.dtype}")
        if min(self.chunk) < 1 or not self.factors or self.factors[0] != (1, 1, 1):
            raise ValueError(f"chunks of {self.chunk} and factors {self.factors} make no label volume")
        if self.shard and (self.format != "zarr" or any(a % b for a, b in zip(self.shard, self.chunk, strict=True))):
            raise ValueError(f"no {self.format} shards of {self.shard} with chunks of {self.chunk}")
        for fine, coarse in pairwise(self.factors):
            if coarse == fine or any(b % a or b < a for a, b in zip(fine, coarse, strict=True)):
                raise ValueError(f"factors {coarse} are no multiples of {fine}")

    @property
    def unit(self) -> Triple:
        """Voxels (z, y, x) that are written at once, by one process: a shard, or a chunk."""
        return self.shard or self.chunk

    def shape(self, level: int) -> Triple:
        """Voxels (z, y, x) of a level; what does not fill a coarse voxel makes one."""
        return triple(-(-n // f) for n, f in zip(self.grid.shape, self.factors[level], strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class LabelStore:
    """A label volume that exists; see ``open_labels``."""

    spec: LabelSpec
    store: Store
    arrays: tuple[ts.TensorStore, ...]

    def read(self, box: Box, level: int = 0) -> NDArray[Any]:
        """The labels of a region; 0 where nothing has been written.

        Args:
            box: Voxels of the level, inside of its array.
            level: 0 is the finest.

        Raises:
            ValueError: If the box reaches outside.
            VolumeError: If it cannot be read.
        """
        self._check_inside(box, level)
        if box.volume == 0:
            return np.zeros(box.shape, self.spec.dtype)
        with reading(self._name(level), box):
            return np.asarray(self.arrays[level][box.slices].read().result())

    def write(self, box: Box, data: NDArray[Any], level: int = 0) -> None:
        """Writes the labels of a region; they are on the disk when this returns.

        Args:
            box: Voxels of the level, inside of its array. It covers whole chunks, or shards if there are such, because
                two processes that write parts of one would lose labels; only at the array's end may it cut them.
            data: Shape of the box; unsigned integers.
            level: 0 is the finest.

        Raises:
            ValueError: If the box or the data are not as described.
            OutputError: If a label is too large for the store's type, or it cannot be written.
        """
        self._check_inside(box, level)
        shape = self.spec.shape(level)
        for start, stop, chunk, end in zip(box.start, box.stop, self.spec.unit, shape, strict=True):
            if start % chunk or (stop % chunk and stop != end):
                raise ValueError(f"voxels {box.start} to {box.stop} are not whole chunks of {self.spec.unit}")
        if data.shape != box.shape or data.dtype.kind != "u":
            raise ValueError(f"labels of shape {data.shape}, type {data.dtype} do not fit a box of {box.shape}")
        if box.volume == 0:
            return
        dtype = np.dtype(self.spec.dtype)
        if data.dtype.itemsize > dtype.itemsize and int(data.max()) > np.iinfo(dtype).max:
            raise OutputError(
                f"cannot write {self._name(level)}: label {int(data.max())} does not fit into {dtype.name}",
                "Choose a larger type for the labels.",
            )
        with writing(self._name(level)):
            self.arrays[level][box.slices].write(data.astype(dtype, copy=False)).result()

    def build(self, level: int, box: Box) -> None:
        """Writes a region of a coarse level: the most frequent label of the next finer level's voxels, least if tied.

        Args:
            level: 1 or more; the level before it is complete around ``box``.
            box: As for ``write``.

        Raises:
            ValueError: If the box is not as described.
            OutputError: If it cannot be written.
            VolumeError: If the finer level cannot be read.
        """
        fine, coarse = self.spec.factors[level - 1 : level + 1]
        self._check_inside(box, level)
        ratio = [b // a for a, b in zip(fine, coarse, strict=True)]
        with reading(self._name(level - 1), box):
            view = ts.downsample(self.arrays[level - 1], ratio, "mode")
            labels = np.asarray(view[box.slices].read().result())
        self.write(box, labels, level)

    def finish(self) -> None:
        """Writes the metadata that make it a valid label image; until then readers of the format find none.

        Raises:
            OutputError: If they cannot be written.
        """
        spec = self.spec
        if spec.format == "zarr":
            self.store.write_json(_GROUP, group_metadata(spec.grid, spec.factors, spec.name))
        else:
            self.store.write_json(INFO, _info(spec))

    def _check_inside(self, box: Box, level: int) -> None:
        if not Box.whole(self.spec.shape(level)).contains(box):
            raise ValueError(f"voxels {box.start} to {box.stop} are not all in {self.spec.shape(level)}")

    def _name(self, level: int) -> str:
        return f"{self.store.where}, level {level}"


def create_labels(spec: LabelSpec) -> None:
    """Creates the arrays of a label volume, full of zeros; keeps those that are there already.

    Raises:
        OutputError: If there is something else at its place, or it cannot be written.
    """
    store = _open_place(spec)
    _check_ours(spec, store)
    if spec.format == "precomputed" and store.read(INFO) is None:
        store.write_json(INFO, _info(spec) | {UNFINISHED: True})
    _open_arrays(spec, store, create=spec.format == "zarr")


def open_labels(spec: LabelSpec) -> LabelStore:
    """Opens a label volume that ``create_labels`` has created, in any process.

    Nothing is cached: what another process has written is seen.

    Raises:
        OutputError: If it does not exist or is not as ``spec`` says.
    """
    store = _open_place(spec)
    return LabelStore(spec, store, _open_arrays(spec, store, create=False))


def pyramid_factors(shape: Triple, spacing: Spacing, smallest: int = 128) -> tuple[Triple, ...]:
    """Factors of the levels of a pyramid, each half as fine as the one before where it is finest.

    An axis is halved if its voxels are at most sqrt 2 times as long as the shortest, so that voxels become cubes, and
    if it has more than one voxel.

    Args:
        shape: Voxels (z, y, x) of the finest level.
        spacing: Its spacing (z, y, x), in any unit.
        smallest: Voxels per axis that the coarsest level may have.

    Returns:
        Factors (z, y, x) from the finest level, (1, 1, 1) first.

    >>> pyramid_factors((62, 1250, 1250), (40.0, 4.0, 4.0), smallest=256)
    ((1, 1, 1), (1, 2, 2), (1, 4, 4), (1, 8, 8))
    """
    factors = [(1, 1, 1)]
    while True:
        factor = factors[-1]
        now = [-(-n // f) for n, f in zip(shape, factor, strict=True)]
        if max(now) <= smallest:
            return tuple(factors)
        lengths = [s * f if n > 1 else math.inf for n, s, f in zip(now, spacing, factor, strict=True)]
        limit = math.sqrt(2) * min(lengths) * (1 + 1e-9)
        factors.append(triple(2 * f if length <= limit else f for f, length in zip(factor, lengths, strict=True)))


def _open_place(spec: LabelSpec) -> Store:
    try:
        return open_place(parse_place(spec.where), cache_bytes=0)
    except VolumeError as error:
        raise OutputError(error.problem, error.remedy) from error


def _check_ours(spec: LabelSpec, store: Store) -> None:
    """Refuses a folder that holds anything that is not part of such a label volume."""
    if store.folder is None or not store.folder.exists():
        return
    try:
        present = {path.name for path in store.folder.iterdir()}
    except OSError as error:
        raise OutputError(f"cannot write {store.where}: {error.strerror}", "Name a folder.") from error
    ours = {str(level) for level in range(len(spec.factors))} | {_GROUP}
    if spec.format == "precomputed":
        ours = {scale["key"] for scale in _info(spec)["scales"]} | {INFO}
    others = sorted(name for name in present - ours if not name.endswith(".__lock"))
    if others:
        raise OutputError(
            f"cannot write {store.where}: it holds other files, such as {others[0]}", "Name a new or empty folder."
        )


def _open_arrays(spec: LabelSpec, store: Store, create: bool) -> tuple[ts.TensorStore, ...]:
    arrays = []
    for level in range(len(spec.factors)):
        with writing(f"{store.where}, level {level}"):
            if spec.format == "zarr":
                future = store.child(str(level)).open(
                    "zarr3", write=True, create=create, metadata=_array_metadata(spec, level)
                )
            else:
                scale = _info(spec)["scales"][level]
                future = store.open(
                    "neuroglancer_precomputed",
                    write=True,
                    scale_index=level,
                    scale_metadata={key: scale[key] for key in ("size", "resolution", "voxel_offset", "encoding")},
                    multiscale_metadata={"data_type": spec.dtype, "num_channels": 1},
                )
            array = future.result()
            if spec.format == "precomputed":
                array = array[ts.d[:].translate_to[0]][ts.d["channel"][0]][ts.d["z", "y", "x"].transpose[:]]
            layout = array.chunk_layout
            if (layout.write_chunk.shape, layout.read_chunk.shape) != (spec.unit, spec.chunk):
                raise ValueError(f"its chunks are {layout.read_chunk.shape}, not {spec.chunk}")
        arrays.append(array)
    return tuple(arrays)


def _array_metadata(spec: LabelSpec, level: int) -> dict[str, Any]:
    return {
        "shape": list(spec.shape(level)),
        "data_type": spec.dtype,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(spec.unit)}},
        "chunk_key_encoding": {"name": "default"},
        "codecs": list(_CODECS) if spec.shard is None else [_sharding(spec.chunk)],
        "fill_value": 0,
        "dimension_names": ["z", "y", "x"],
    }


def _sharding(chunk: Triple) -> dict[str, Any]:
    """The codec of a shard: its chunks one after the other, and an index of them at the end."""
    index = [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}]
    configuration = {"chunk_shape": list(chunk), "codecs": list(_CODECS), "index_codecs": index}
    return {"name": "sharding_indexed", "configuration": configuration | {"index_location": "end"}}


def _info(spec: LabelSpec) -> dict[str, Any]:
    shapes = [spec.shape(level) for level in range(len(spec.factors))]
    return label_info(spec.grid, shapes, spec.factors, spec.chunk, spec.dtype)
