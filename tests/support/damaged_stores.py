"""Chunked stores and HDF5 files with damage, and what is read of them; for ``fuzzing``.

``python tests/support/damaged_stores.py COUNT`` reads that many and prints what became of them.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import tensorstore as ts
import zarr
from fuzzing import Outcome, damaged, outcomes

from coarse2fine.io import open_store
from coarse2fine.io.stores.presence import check_stored, misfit

_VOXELS = np.random.default_rng(0).integers(1, 255, (4, 12, 16), np.uint8)
_CHUNK = (2, 8, 8)
_ODD: tuple[Any, ...] = (
    *(None, True, False, 0, 1, -1, 2, 3, 0.5, -0.0, 1e-300, 1e300, float("nan"), float("inf"), 2**31, 2**53, 2**63),
    *(
        2**64,
        -(2**63),
        10**30,
        "",
        "0",
        "x",
        "zyx",
        "\x00",
        "../..",
        "nm",
        "1" * 2000,
        [],
        {},
        [0],
        [None],
        [[]],
        [[1]],
    ),
    *([1, 1, 1], [10**6] * 3, [2**40] * 3, [2**62] * 3, ["z", "y", "x"], {"a": 1}, {"name": "gzip"}, [1] * 100),
)


def write_stores(folder: Path) -> list[Path]:
    """One small store of each kind, as their formats' own libraries write them."""
    for version, name in ((2, "0.4"), (3, "0.5")):
        _write_ngff(folder / f"ngff{version}.zarr", version, name)
        place = {"resolution": [40, 4, 4], "offset": [0, 8, 8], "units": ["nm"] * 3, "axis_names": ["z", "y", "x"]}
        shards = {"shards": (4, 16, 16)} if version == 3 else {}
        options = {"data": _VOXELS, "chunks": _CHUNK, "zarr_format": version, "attributes": place}
        zarr.create_array(folder / f"plain{version}.zarr", **options, **shards)
    for level, step in enumerate((1, 2)):
        stated = {"downsamplingFactors": [step, step, 1], "axes": ["x", "y", "z"]}
        _write_tensorstore(folder / f"a.n5/s{level}", "n5", _VOXELS[:, ::step, ::step].T, stated)
    group = {
        "n5": "2.0.0",
        "pixelResolution": {"dimensions": [4, 4, 40], "unit": "nm"},
        "scales": [[1, 1, 1], [2, 2, 1]],
    }
    (folder / "a.n5/attributes.json").write_text(json.dumps(group))
    transform = {"axes": ["z", "y", "x"], "scale": [40, 4, 4], "translate": [0, 0, 0], "units": ["nm"] * 3}
    _write_tensorstore(folder / "b.n5", "n5", _VOXELS.T, {"transform": transform, "offset": [1, 2, 3]})
    for scale, step in enumerate((1, 2)):
        _write_scale(folder / "em.precomputed", scale, _VOXELS[:, ::step, ::step].T[..., None], step)
    with h5py.File(folder / "a.hdf", "w") as file:
        raw = file.create_dataset("volumes/raw", data=_VOXELS, chunks=_CHUNK, compression="gzip", shuffle=True)
        raw.attrs.update({"resolution": (40.0, 4.0, 4.0), "offset": (0.0, 4.0, 4.0), "axis_names": ["z", "y", "x"]})
    return sorted(folder.iterdir())


def _write_ngff(folder: Path, version: int, name: str) -> None:
    datasets = []
    for level, step in enumerate((1, 2)):
        zarr.create_array(folder / str(level), data=_VOXELS[:, ::step, ::step], chunks=_CHUNK, zarr_format=version)
        transforms = [{"type": "scale", "scale": [40, 4 * step, 4 * step]}]
        transforms.append({"type": "translation", "translation": [0, (step - 1) * 2, (step - 1) * 2]})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    axes = [{"name": axis, "type": "space", "unit": "nanometer"} for axis in "zyx"]
    image = {"version": name, "axes": axes, "datasets": datasets}
    group = zarr.open_group(folder, mode="a", zarr_format=version)
    group.attrs.update({"multiscales": [image]} if version == 2 else {"ome": {"version": name, "multiscales": [image]}})


def _write_tensorstore(folder: Path, driver: str, voxels: np.ndarray, stated: dict[str, Any]) -> None:
    metadata = {"dimensions": voxels.shape, "blockSize": _CHUNK[::-1], "dataType": "uint8", **stated}
    metadata["compression"] = {"type": "gzip"}
    spec = {"driver": driver, "kvstore": f"file://{folder}/", "metadata": metadata}
    ts.open(spec, create=True).result()[...] = voxels


def _write_scale(folder: Path, number: int, voxels: np.ndarray, step: int) -> None:
    scale = {
        "size": voxels.shape[:3],
        "resolution": [4 * step, 4 * step, 40],
        "voxel_offset": [4 // step, 4 // step, 0],
    }
    spec = {
        "driver": "neuroglancer_precomputed",
        "kvstore": f"file://{folder}/",
        "multiscale_metadata": {"type": "image", "data_type": "uint8", "num_channels": 1},
        "scale_metadata": scale | {"encoding": "raw", "chunk_size": _CHUNK[::-1]},
    }
    ts.open(spec, create=True).result()[...] = voxels


def damage(store: Path, target: Path, rng: random.Random) -> None:
    """A copy of a store in which something is not as it was: metadata mostly, sometimes a chunk."""
    if store.is_file():
        target.write_bytes(damaged(store.read_bytes(), rng, 4000))
        return
    shutil.copytree(store, target)
    files = sorted(path for path in target.rglob("*") if path.is_file())
    stated = [path for path in files if path.name in ("zarr.json", ".zarray", ".zattrs", "attributes.json", "info")]
    if rng.random() < 0.15:
        path = rng.choice(files)
        path.write_bytes(damaged(path.read_bytes(), rng, 4000))
        return
    path = rng.choice(stated)
    content = json.loads(path.read_text())
    for _ in range(rng.randint(1, 2)):
        content = _changed(content, rng)
    path.write_text(json.dumps(content))


def _changed(content: Any, rng: random.Random) -> Any:
    """The same JSON with one member gone, doubled, or something else; often deep inside."""
    if isinstance(content, dict | list) and content and rng.random() < 0.9:
        keys: Sequence[Any] = list(content) if isinstance(content, dict) else range(len(content))
        key = rng.choice(keys)
        match rng.randrange(12):
            case 0:
                del content[key]
            case 1 if isinstance(content, list):
                content.insert(key, content[key])
            case _:
                content[key] = _changed(content[key], rng)
        return content
    if isinstance(content, int | float) and rng.random() < 0.4:
        return rng.choice((content * 2, -content, content + 1, content * 10**6, content * 10**12, str(content)))
    return rng.choice(_ODD)


def read_store(path: Path) -> str:
    """A hash of grids and of some voxels of each level, after the checks that a run makes."""
    scales = open_store(str(path))
    found = [str(check_stored(scales)), str([misfit(scales, level) for level in range(1, len(scales.levels))])]
    for volume in scales.levels:
        found.append(str(volume.grid))
        found += [hashlib.sha256(channel[:3, :20, :20].tobytes()).hexdigest() for channel in volume.channels]
    return str(found)


def read_damaged(count: int, folder: Path, seed: int = 0) -> list[tuple[Path, Outcome]]:
    """Damages stores of all kinds in turn and reads them.

    Args:
        count: How many.
        folder: An empty one, for the stores.
        seed: Of the damage.
    """
    (folder / "whole").mkdir()
    stores, paths = write_stores(folder / "whole"), []
    for number in range(count):
        store = stores[number % len(stores)]
        paths.append(folder / f"{number}{store.suffix}")
        damage(store, paths[-1], random.Random(f"{seed} {number}"))
    return list(zip(paths, outcomes("damaged_stores:read_store", paths, limit_s=10), strict=True))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        results = read_damaged(int(sys.argv[1]), Path(temporary), int(sys.argv[2]) if len(sys.argv) > 2 else 0)
    counts = Counter((path.suffix, outcome.kind) for path, outcome in results)
    faults = [f"{path.name}: {outcome}" for path, outcome in results if outcome.kind not in ("read", "refused")]
    sys.stdout.write("\n".join([str(counts), *faults, ""]))
